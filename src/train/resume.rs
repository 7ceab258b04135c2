//! The state with which a training goes on where it was saved: from its components into a checkpoint ([`Saving`]), and back
//! ([`Restoring`]). Which checkpoint there is, and whether it fits, is found by [`start`](super::start).

use std::path::PathBuf;

use super::draws::Draws;
use super::weights;
use crate::error::{Error, Result};
use crate::launch::Job;
use crate::metrics::Kind;
use crate::optim::{Average, LossScale, Optimizer};
use crate::parallel::Replica;
use crate::store::{self, Attribute, Checkpoint, NamedTensor, Resumable, TensorValues};
use crate::units::counted;

/// Checkpoint to go on from, as read from its file.
pub struct Resume {
    /// File of the checkpoint.
    pub path: PathBuf,
    /// Model, state and tables.
    pub content: Resumable,
}

impl Resume {
    /// This checkpoint, after a check of the counts that the training goes on with: in a damaged or foreign file they may have
    /// any size.
    ///
    /// # Errors
    /// [`Error::Dataset`] names the count.
    pub fn checked(self) -> Result<Resume> {
        let counts = ["steps", "epochs", "steps_in_epoch", "correct", "samples", "optimizer_steps", "batches_tracked"];
        let counts = counts.map(|name| (name, 0)).into_iter();
        for (name, least) in counts.chain([("world_size", 1), ("global_batch", 1)]) {
            let found = self.attribute(name);
            if !found.and_then(Attribute::integer).is_some_and(|count| (least..1 << 40).contains(&count)) {
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

    /// Value of the attribute `name`; 0 without one.
    pub fn number(&self, name: &str) -> f64 {
        self.attribute(name).and_then(Attribute::number).unwrap_or(0.0)
    }

    /// Steps at which this training was resumed, the present one included.
    pub fn resumed_at(&self) -> Vec<i64> {
        // Missing in a training that was never resumed.
        let mut steps = self.attribute("resumed_at_steps").and_then(Attribute::integers).unwrap_or_default().to_vec();
        steps.push(self.number("steps") as i64);
        steps
    }

    /// The bytes of a tensor of `expected` bytes; `None` if there is no such tensor.
    fn bytes(&self, name: &str, expected: usize) -> Option<Vec<u8>> {
        match self.content.state.tensor(name).map(|tensor| &tensor.values) {
            Some(TensorValues::I8(values)) if values.len() == expected => {
                Some(values.iter().map(|&value| value as u8).collect())
            }
            _ => None,
        }
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

/// Name of the first value of a checkpoint's model and state that is NaN or infinite.
pub fn not_finite(content: &Resumable) -> Option<String> {
    weights::not_finite(&content.model).or_else(|| weights::not_finite(&content.state))
}

/// Resumable state of a training on its way into a checkpoint: components add to it, in the same order on all ranks. Rank 0 holds
/// what is written.
pub struct Saving<'a> {
    job: &'a Job,
    ranks_are_apart: bool,
    state: Checkpoint,
}

impl<'a> Saving<'a> {
    /// Nothing yet. `ranks_are_apart`: each rank has parameters of its own.
    pub fn new(job: &'a Job, ranks_are_apart: bool) -> Saving<'a> {
        Saving { job, ranks_are_apart, state: Checkpoint::default() }
    }

    /// Adds an attribute.
    pub fn attribute(&mut self, name: &str, value: Attribute) {
        self.state.attributes.push((name.to_owned(), value));
    }

    /// Adds moments and step count of the optimizer, and the loss scale if there is one. A collective.
    pub fn optimizer(&mut self, optimizer: &Optimizer) -> Result<()> {
        let (steps, moments) = optimizer.state();
        self.attribute("optimizer_steps", Attribute::Int(steps));
        if let Some(scale) = optimizer.loss_scale() {
            self.attribute("loss_scale", Attribute::Float(scale.factor().into()));
            self.attribute("loss_scale_steady", Attribute::Int(scale.steady().into()));
            self.attribute("skipped_steps", Attribute::Int(scale.skipped() as i64));
        }
        moments.into_iter().try_for_each(|(name, values)| self.tensor(name, &values, self.ranks_are_apart))
    }

    /// Adds the averaged weights, if there are any, and batch norm's statistics of them. A collective.
    pub fn average(&mut self, average: Option<&Average>) -> Result<()> {
        self.attribute("average_batches", Attribute::Int(average.map_or(0, |average| average.batches_tracked)));
        let Some(average) = average else { return Ok(()) };
        self.tensor("average", &average.weights.read(), self.ranks_are_apart)?;
        self.tensor("average_buffers", &average.buffers.read(), true)
    }

    /// Adds what a replica has beside the parameters that all ranks share. A collective.
    pub fn replica(&mut self, replica: &mut Replica) -> Result<()> {
        self.attribute("batches_tracked", Attribute::Int(replica.state().batches_tracked));
        self.attribute("local_steps", Attribute::Int(replica.local_steps() as i64));
        if self.ranks_are_apart {
            self.tensor("parameters", &replica.state().parameters.read(), true)?;
        }
        replica.compression().iter().try_for_each(|(name, values)| self.tensor(name, values, true))?;
        self.tensor("buffers", &replica.state().buffers.read(), true)
    }

    /// Adds the states of the generators that the network draws from, a row per rank. A collective.
    pub fn draws(&mut self, draws: &Draws) -> Result<()> {
        for (name, state) in draws.states()? {
            let rows = self.job.communicator.gather(Kind::Control, &state)?;
            if self.job.is_root() {
                let values = rows.into_iter().map(|byte| byte as i8).collect();
                let shape = vec![self.job.world_size, state.len()];
                self.state.tensors.push(NamedTensor::new(name, shape, TensorValues::I8(values)));
            }
        }
        Ok(())
    }

    /// State that was added, on rank 0.
    pub fn end(self) -> Checkpoint {
        self.state
    }

    /// Adds this rank's `values`: `[n]` if they are the same everywhere, `[ranks, n]` if each rank has its `own`.
    fn tensor(&mut self, name: &str, values: &[f32], own: bool) -> Result<()> {
        let gathered = if own { self.job.communicator.gather(Kind::Control, values)? } else { Vec::new() };
        if self.job.is_root() {
            self.state.tensors.push(match own {
                true => NamedTensor::new(name, vec![self.job.world_size, values.len()], TensorValues::F32(gathered)),
                false => NamedTensor::new(name, vec![values.len()], TensorValues::F32(values.to_vec())),
            });
        }
        Ok(())
    }
}

/// Numbers of a checkpoint that all ranks learn.
const NUMBERS: [&str; 12] = [
    "steps",
    "epochs",
    "steps_in_epoch",
    "seconds",
    "optimizer_steps",
    "loss_scale",
    "loss_scale_steady",
    "skipped_steps",
    "world_size",
    "local_steps",
    "batches_tracked",
    "average_batches",
];

/// Resumable state of a training on its way out of a checkpoint, which rank 0 has read: components take their part of it, in the
/// same order on all ranks.
pub struct Restoring<'a> {
    job: &'a Job,
    resume: Option<&'a Resume>,
    ranks_are_apart: bool,
    numbers: [f64; NUMBERS.len()],
}

impl<'a> Restoring<'a> {
    /// Checks the checkpoint and tells all ranks its numbers. `ranks_are_apart` as when it was saved. A collective.
    ///
    /// # Errors
    /// A number of the model or of the state is NaN or infinite.
    pub fn new(job: &'a Job, resume: Option<&'a Resume>, ranks_are_apart: bool) -> Result<Restoring<'a>> {
        let check = |resume: &Resume| match not_finite(&resume.content) {
            None => Ok(()),
            Some(what) => {
                let message = format!("{what}: the training had diverged; give an earlier checkpoint to --resume");
                Err(Error::File { path: resume.path.clone(), message })
            }
        };
        job.agree(resume.map_or(Ok(()), check))?;
        let numbers = job.from_root(NUMBERS.map(|name| resume.map_or(0.0, |resume| resume.number(name))))?;
        Ok(Restoring { job, resume, ranks_are_apart, numbers })
    }

    /// One of the numbers that all ranks know.
    pub fn number(&self, name: &str) -> f64 {
        let index = NUMBERS.iter().position(|known| *known == name);
        self.numbers[index.expect("a number that all ranks know")]
    }

    /// A number of the checkpoint on rank 0; 0 on the others.
    pub fn of_root(&self, name: &str) -> f64 {
        self.resume.map_or(0.0, |resume| resume.number(name))
    }

    /// Restores moments and step count of the optimizer, and its loss scale. A collective.
    pub fn optimizer(&self, optimizer: &mut Optimizer) -> Result<()> {
        if optimizer.loss_scale().is_some() {
            let (factor, steady, skipped) =
                (self.number("loss_scale"), self.number("loss_scale_steady"), self.number("skipped_steps"));
            optimizer.set_loss_scale(LossScale::new(factor as f32, steady as u32, skipped as usize));
        }
        let moments = optimizer.restore(self.number("optimizer_steps") as i64);
        for (name, moment) in ["first_moment", "second_moment"].into_iter().zip(moments) {
            moment.write(&self.tensor(name, moment.len(), self.ranks_are_apart)?);
        }
        Ok(())
    }

    /// Restores the averaged weights and batch norm's statistics of them. A collective.
    pub fn average(&self, average: Option<&mut Average>) -> Result<()> {
        let Some(average) = average else { return Ok(()) };
        average.weights.write(&self.tensor("average", average.weights.len(), self.ranks_are_apart)?);
        average.buffers.write(&self.tensor("average_buffers", average.buffers.len(), true)?);
        average.batches_tracked = self.number("average_batches") as i64;
        Ok(())
    }

    /// Restores the generators that the network draws from. On another number or kind of devices there is no state for each: the
    /// draws begin anew, and the log says so. A collective.
    pub fn draws(&self, draws: &Draws) -> Result<()> {
        let ranks = self.job.world_size;
        for (name, generator) in draws.generators() {
            let bytes = ranks * generator.state()?.len();
            let saved = self.resume.and_then(|resume| resume.bytes(name, bytes)).filter(|_| self.ranks() == ranks);
            if self.job.from_root([f64::from(u8::from(saved.is_some()))])? == [0.0] {
                if self.job.is_root() {
                    log::info!(
                        "the checkpoint has no {name} of {}: what dropout draws begins anew, as at the start of a training",
                        counted(ranks, "rank")
                    );
                }
                continue;
            }
            let own = self.job.communicator.scatter(Kind::Parameters, &saved.unwrap_or_default(), bytes / ranks)?;
            self.job.agree(generator.restore(&own))?;
        }
        Ok(())
    }

    /// Refuses another number of ranks where each rank had something of its own that cannot be shared out.
    ///
    /// # Errors
    /// [`Error::ConfigValue`] on all ranks.
    pub fn check_ranks(&self, replica: &Replica) -> Result<()> {
        let ranks = self.ranks();
        if (!self.ranks_are_apart && replica.compression().is_empty()) || ranks == self.job.world_size {
            return Ok(());
        }
        let expected = format!("each of the {ranks} ranks had parameters or errors of its own: use {ranks} ranks");
        let (key, value) = ("world_size".into(), self.job.world_size.to_string());
        self.job.agree(Err(Error::ConfigValue { place: "--resume".into(), key, value, expected }))
    }

    /// Restores what a replica has beside the parameters that all ranks share. A collective.
    pub fn replica(&self, replica: &mut Replica) -> Result<()> {
        if self.ranks_are_apart {
            let parameters = &mut replica.state_mut().parameters;
            parameters.write(&self.tensor("parameters", parameters.len(), true)?);
        }
        let mut carried = replica.compression();
        for (name, values) in &mut carried {
            *values = self.tensor(name, values.len(), true)?;
        }
        replica
            .restore_compression(&carried, self.number("steps") as usize)
            .expect("the lengths are those that the replica gave");
        replica.set_local_steps(self.number("local_steps") as usize);
        let buffers = &mut replica.state_mut().buffers;
        buffers.write(&self.tensor("buffers", buffers.len(), true)?);
        replica.state_mut().batches_tracked = self.number("batches_tracked") as i64;
        Ok(())
    }

    fn ranks(&self) -> usize {
        self.number("world_size") as usize
    }

    /// This rank's `length` values of a tensor that [`Saving`] has saved. Where each rank had its `own` and there are not as many
    /// ranks now: rank 0's. A collective.
    fn tensor(&self, name: &str, length: usize, own: bool) -> Result<Vec<f32>> {
        let rows = if own { self.ranks() } else { 1 };
        let saved = self.resume.map(|resume| resume.floats(name, rows.saturating_mul(length))).transpose();
        let saved = self.job.agree(saved)?.unwrap_or_default();
        if own && rows == self.job.world_size {
            return self.job.communicator.scatter(Kind::Parameters, saved, length);
        }
        let mut values = if self.job.is_root() { saved[..length].to_vec() } else { vec![0.0; length] };
        self.job.communicator.broadcast(Kind::Parameters, &mut values)?;
        Ok(values)
    }
}
