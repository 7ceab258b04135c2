//! Going on where a training was saved: every number back in its place. What there is to go on from, and whether it fits,
//! is found by [`start`](super::start).

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::{Training, weights};
use crate::error::{Error, Result};
use crate::launch::Job;
use crate::metrics::Kind;
use crate::parallel::{Replica, StepResult};
use crate::store::{self, Attribute, Checkpoint, NamedTensor, Resumable, TensorValues};

/// A checkpoint that was read.
pub struct Resume {
    /// Its file.
    pub path: PathBuf,
    /// What it holds.
    pub content: Resumable,
}

impl Resume {
    /// The counts that the training goes on with, which a damaged or foreign file may have of any size.
    ///
    /// # Errors
    /// [`Error::Dataset`] names the count.
    pub(super) fn checked(self) -> Result<Resume> {
        let counts = ["steps", "epochs", "steps_in_epoch", "correct", "samples", "optimizer_steps", "batches_tracked"];
        let counts = counts.map(|name| (name, 0)).into_iter();
        for (name, least) in counts.chain([("world_size", 1), ("global_batch", 1)]) {
            let found = self.attribute(name);
            if !matches!(found, Some(Attribute::Int(count)) if (least..1 << 40).contains(count)) {
                let found = found.map_or("missing".into(), |value| format!("{value:?}"));
                let message = format!("{found}, expected a count, at least {least}");
                return Err(Error::Dataset { path: self.path, name: format!("resume: {name}"), message });
            }
        }
        Ok(self)
    }

    fn attribute(&self, name: &str) -> Option<&Attribute> {
        store::attribute(&self.content.state.attributes, name)
    }

    pub(super) fn number(&self, name: &str) -> f64 {
        match self.attribute(name) {
            Some(Attribute::Int(value)) => *value as f64,
            Some(Attribute::Float(value)) => *value,
            _ => 0.0,
        }
    }

    /// The steps at which this training has been resumed before, and now.
    pub fn resumed_at(&self) -> Vec<i64> {
        let mut steps = match self.attribute("resumed_at_steps") {
            Some(Attribute::Ints(steps)) => steps.clone(),
            _ => Vec::new(),
        };
        steps.push(self.number("steps") as i64);
        steps
    }

    fn floats(&self, name: &str, expected: usize) -> Result<&[f32]> {
        match self.content.state.tensor(name).map(|tensor| &tensor.values) {
            Some(TensorValues::F32(values)) if values.len() == expected => Ok(values),
            found => {
                let found = found.map_or("missing".into(), |values| format!("{} values", values.len()));
                let message = format!("{found}, expected {expected} of float32: not of this model");
                Err(Error::Dataset { path: self.path.clone(), name: format!("resume/{name}"), message })
            }
        }
    }
}

/// The first number of a checkpoint's model and state that is NaN or infinite.
fn not_finite(content: &Resumable) -> Option<String> {
    weights::not_finite(&content.model).or_else(|| weights::not_finite(&content.state))
}

/// This rank's `values` as a tensor on rank 0: `[n]` if they are the same everywhere, `[ranks, n]` if each rank has its own.
fn save(job: &Job, name: &str, values: &[f32], own: bool) -> Result<Option<NamedTensor>> {
    let gathered = if own { job.communicator.gather(Kind::Control, values)? } else { Vec::new() };
    Ok(job.is_root().then(|| match own {
        true => NamedTensor::new(name, vec![job.world_size, values.len()], TensorValues::F32(gathered)),
        false => NamedTensor::new(name, vec![values.len()], TensorValues::F32(values.to_vec())),
    }))
}

/// What [`save`] saved on `ranks` ranks, of this `length`. Where each had its own and there are not as many now: rank 0's.
fn receive(job: &Job, resume: Option<&Resume>, name: &str, length: usize, own: bool, ranks: usize) -> Result<Vec<f32>> {
    let rows = if own { ranks } else { 1 };
    let saved = resume.map(|resume| resume.floats(name, rows.saturating_mul(length))).transpose();
    let mut values = job.agree(saved)?.map_or_else(|| vec![0.0; rows * length], <[f32]>::to_vec);
    job.communicator.broadcast(Kind::Parameters, &mut values)?;
    let row = if rows == job.world_size { job.rank } else { 0 };
    values.drain(..row * length);
    values.truncate(length);
    Ok(values)
}

impl Training<'_> {
    /// Whether each rank has parameters of its own, between two steps.
    fn ranks_are_apart(&self) -> bool {
        !self.plan.parallel.keeps_ranks_equal() || self.plan.parallel.local_steps > 1
    }

    /// Everything that [`restore`](Self::restore) needs, on rank 0; and how long the copy took. A collective between two
    /// steps.
    ///
    /// Error: a number of it is NaN or infinite.
    pub(super) fn capture(&mut self) -> Result<(Option<Resumable>, Duration)> {
        let started = Instant::now();
        let was_averaged = self.averaged;
        self.exchange_average(false);
        if !self.replica.knows_at_once() && self.steps_done > 0 {
            self.take_result(self.steps_done - 1, self.plan.train.lr)?; // waits for the device
        }
        self.gather_times()?;
        let result = Replica::sum_over_ranks(&self.job.communicator, self.so_far.result)?;
        let own = self.ranks_are_apart();
        let mut saved = Vec::new();
        let (optimizer_steps, moments) = self.optimizer.state();
        for (name, values) in moments {
            saved.extend(save(self.job, name, &values, own)?);
        }
        if let Some(average) = &self.average {
            saved.extend(save(self.job, "average", &average.weights.read(), own)?);
            saved.extend(save(self.job, "average_buffers", &average.buffers.read(), true)?);
        }
        if own {
            saved.extend(save(self.job, "parameters", &self.replica.state.parameters.read(), own)?);
        }
        for (name, values) in self.replica.compression() {
            saved.extend(save(self.job, &name, &values, true)?);
        }
        saved.extend(save(self.job, "buffers", &self.replica.state.buffers.read(), true)?);
        let content = self.job.is_root().then(|| {
            let int = |value: usize| Attribute::Int(value as i64);
            let attributes = [
                ("steps", int(self.steps_done)),
                ("epochs", int(self.epochs_done)),
                ("steps_in_epoch", int(self.so_far.steps)),
                ("loss_sum", Attribute::Float(result.loss_sum)),
                ("correct", int(result.correct)),
                ("samples", int(result.samples)),
                ("seconds", Attribute::Float(self.so_far.seconds)),
                ("optimizer_steps", Attribute::Int(optimizer_steps)),
                ("batches_tracked", Attribute::Int(self.replica.state.batches_tracked)),
                ("average_batches", Attribute::Int(self.average.as_ref().map_or(0, |average| average.batches_tracked))),
                ("world_size", int(self.job.world_size)),
                ("local_steps", int(self.replica.local_steps())),
                ("global_batch", int(self.global_batch.samples)),
                ("resumed_at_steps", Attribute::Ints(self.resumed_at.clone())),
            ];
            let attributes = attributes.map(|(name, value)| (name.to_owned(), value)).into();
            Resumable {
                tables: self.tables(),
                model: weights::checkpoint(&self.replica, self.epochs_done, self.steps_done),
                state: Checkpoint { tensors: saved, attributes },
            }
        });
        self.agree_on_finite(content.as_ref().and_then(not_finite))?;
        self.exchange_average(was_averaged);
        Ok((content, started.elapsed()))
    }

    /// Puts everything back but the model, which was loaded before. `resume` is there on rank 0. A collective.
    pub(super) fn restore(&mut self, resume: Option<&Resume>) -> Result<()> {
        let job = self.job;
        let check = |resume: &Resume| match not_finite(&resume.content) {
            None => Ok(()),
            Some(what) => {
                let message = format!("{what}: the training had diverged; give an earlier checkpoint to --resume");
                Err(Error::File { path: resume.path.clone(), message })
            }
        };
        job.agree(resume.map_or(Ok(()), check))?;
        let number = |name: &str| resume.map_or(0.0, |resume| resume.number(name));
        let [steps, epochs, steps_in_epoch, seconds, optimizer_steps, ranks, local_steps, batches, average_batches] =
            job.from_root([
                number("steps"),
                number("epochs"),
                number("steps_in_epoch"),
                number("seconds"),
                number("optimizer_steps"),
                number("world_size"),
                number("local_steps"),
                number("batches_tracked"),
                number("average_batches"),
            ])?;
        let (own, ranks) = (self.ranks_are_apart(), ranks as usize);
        let mut carried = self.replica.compression();
        if (own || !carried.is_empty()) && ranks != job.world_size {
            let expected = format!("each of the {ranks} ranks had parameters or errors of its own: use {ranks} ranks");
            let (key, value) = ("world_size".into(), job.world_size.to_string());
            return job.agree(Err(Error::ConfigValue { place: "--resume".into(), key, value, expected }));
        }
        (self.steps_done, self.epochs_done) = (steps as usize, epochs as usize);
        self.so_far.steps = steps_in_epoch as usize;
        self.so_far.seconds = seconds;
        // What all ranks had counted together is rank 0's part of the sum at the epoch's end.
        self.so_far.result = StepResult {
            loss_sum: number("loss_sum"),
            correct: number("correct") as usize,
            samples: number("samples") as usize,
        };
        for (name, moment) in
            ["first_moment", "second_moment"].iter().zip(self.optimizer.restore(optimizer_steps as i64))
        {
            moment.write(&receive(job, resume, name, moment.len(), own, ranks)?);
        }
        let parameters = &mut self.replica.state.parameters;
        if let Some(average) = &mut self.average {
            average.weights.write(&receive(job, resume, "average", parameters.len(), own, ranks)?);
            average.buffers.write(&receive(job, resume, "average_buffers", average.buffers.len(), true, ranks)?);
            average.batches_tracked = average_batches as i64;
        }
        if own {
            parameters.write(&receive(job, resume, "parameters", parameters.len(), own, ranks)?);
        }
        for (name, values) in &mut carried {
            *values = receive(job, resume, name, values.len(), true, ranks)?;
        }
        self.replica.restore_compression(&carried, self.steps_done).expect("as many numbers as it gave");
        self.replica.set_local_steps(local_steps as usize);
        let buffers = &mut self.replica.state.buffers;
        buffers.write(&receive(job, resume, "buffers", buffers.len(), true, ranks)?);
        self.replica.state.batches_tracked = batches as i64;
        if let Some(resume) = resume {
            self.resumed_at = resume.resumed_at();
            self.record.resume(self.steps_done, &resume.content.tables);
            self.agreement.resume(&resume.content.tables);
            self.gpus.resume(&resume.content.tables);
            self.draw_again(self.epochs_done);
        } else {
            self.record.resume(self.steps_done, &[]);
        }
        // Between two epochs the model holds what was tested, and what a run file without another epoch would hold.
        self.exchange_average(self.so_far.steps == 0);
        Ok(())
    }
}
