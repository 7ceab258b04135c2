//! A training under way: one epoch after the other.

use std::ops::Range;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::checkpoints::{Checkpoints, Verdict};
use super::divergence::{self, Divergence};
use super::gpus::Gpus;
use super::record::{EpochRow, Record};
use super::resume::Resume;
use super::sampling::{self, Sampling};
use super::{GlobalBatch, weights};
use crate::collective::{Communicator, progress};
use crate::config::{self, Plan};
use crate::data::{AugmentSeed, BatchPlan, Batches, Datasets, Feed, LoaderOptions, Sampler};
use crate::device::StepRecorder;
use crate::error::{Error, Result};
use crate::launch::Job;
use crate::metrics::{Part, StepTimes};
use crate::model::Model;
use crate::optim::{Average, Optimizer, Schedule};
use crate::parallel::{Replica, StepResult};
use crate::store::{Checkpoint, Table};
use crate::sys::gpu::range;

/// Training images over all ranks, rounded up to whole batches, in which the averaged weights' statistics are measured at an epoch's
/// end: means within 2 % of a standard deviation, for 1.4 % of the time of an epoch of CIFAR-10.
const STATISTICS_IMAGES: usize = 2048;

/// Everything that changes while a network is trained. All ranks call its methods together.
pub struct Training<'a> {
    pub(super) plan: Plan,
    pub(super) job: &'a Job,
    pub(super) gpus: Gpus,
    train_feed: Feed,
    test_feed: Feed,
    /// The model on this rank.
    pub replica: Replica,
    /// What was measured.
    pub record: Record,
    pub(super) agreement: Divergence,
    pub(super) sampling: Sampling,
    pub(super) optimizer: Optimizer,
    pub(super) average: Option<Average>,
    /// Whether the model holds the averaged weights at the moment: between two epochs, if there is an average.
    pub(super) averaged: bool,
    /// Whether a loss or a weight that is NaN or infinite ends the job.
    must_be_finite: bool,
    /// Whether there was one where it does not.
    diverged: bool,
    sampler: Sampler,
    schedule: Schedule,
    pub(super) global_batch: GlobalBatch,
    pub(super) epochs_done: usize,
    pub(super) steps_done: usize,
    /// The epoch under way.
    pub(super) so_far: EpochSoFar,
    /// The steps at which this training was resumed.
    pub(super) resumed_at: Vec<i64>,
}

/// What this rank has done of an epoch.
#[derive(Default)]
pub(super) struct EpochSoFar {
    pub(super) steps: usize,
    pub(super) result: StepResult,
    /// From the first step's start to the last one's end, without what lay between two jobs.
    pub(super) seconds: f64,
    /// Of the steps whose times rank 0 does not have yet.
    times: Vec<StepRecorder>,
}

/// How far a training has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// An epoch more was trained and tested.
    Epoch,
    /// A signal stopped it, and it is saved.
    Stopped(usize),
    /// All was done already.
    Finished,
}

impl<'a> Training<'a> {
    /// Before the first epoch.
    pub fn new(plan: &Plan, job: &'a Job, datasets: &Datasets) -> Result<Training<'a>> {
        let model = Model::new(&plan.model, divergence::model_seed(plan, job.rank));
        Training::with_model(plan, job, datasets, model)
    }

    /// Where it was saved; `resume` is there on rank 0.
    pub fn resumed(plan: &Plan, job: &'a Job, datasets: &Datasets, resume: Option<&Resume>) -> Result<Training<'a>> {
        let mut model = Model::new(&plan.model, plan.run.seed);
        let load =
            |resume: &Resume| weights::load(&mut model, &resume.content.model.tensors, &resume.path, "checkpoint");
        job.agree(resume.map_or(Ok(()), load))?;
        let mut training = Training::with_model(plan, job, datasets, model)?;
        training.restore(resume)?;
        Ok(training)
    }

    fn with_model(plan: &Plan, job: &'a Job, datasets: &Datasets, model: Model) -> Result<Training<'a>> {
        let samples = datasets.train.len();
        let sampler = sampling::sampler(plan, samples, job.world_size, job.rank);
        let global_batch = job.agree(GlobalBatch::new(plan, samples))?;
        let most = if plan.train.max_steps == 0 { usize::MAX } else { plan.train.max_steps };
        let total = (plan.train.epochs * global_batch.steps_per_epoch).min(most);

        let replica = Replica::new(model, job.target, job.communicator.clone(), plan)?;
        let device = job.target.own_memory();
        Ok(Training {
            optimizer: Optimizer::new(&replica.state, &plan.optim),
            average: Average::new(plan.optim.ema, &replica.state),
            averaged: false,
            must_be_finite: true,
            diverged: false,
            schedule: Schedule::new(
                &plan.schedule,
                plan.train.lr,
                total,
                global_batch.steps_per_epoch,
                global_batch.samples,
            ),
            record: Record::new(plan, job.world_size),
            agreement: Divergence::new(plan.metrics.spread_steps),
            sampling: Sampling::new(samples),
            gpus: Gpus::new(job.target, &job.gpu_uuid),
            train_feed: Feed::new(datasets.train.clone(), device),
            test_feed: Feed::new(datasets.test.clone(), device),
            plan: plan.clone(),
            job,
            replica,
            sampler,
            global_batch,
            epochs_done: 0,
            steps_done: 0,
            so_far: EpochSoFar::default(),
            resumed_at: Vec::new(),
        })
    }

    /// Makes a loss or a weight that is NaN or infinite no error:
    /// [`has_diverged`](Self::has_diverged) tells.
    pub fn that_may_diverge(mut self) -> Training<'a> {
        self.must_be_finite = false;
        self
    }

    /// Whether an epoch ended with a loss or a weight that is NaN or infinite.
    pub fn has_diverged(&self) -> bool {
        self.diverged
    }

    /// Trains and tests (the rest of) one epoch and takes it into the record, unless `checkpoints` stops it before.
    pub fn epoch(&mut self, checkpoints: &mut Checkpoints) -> Result<Progress> {
        let job = self.job;
        if self.is_finished() {
            return Ok(Progress::Finished);
        }
        let train = self.plan.train.clone();
        let steps_left = match train.max_steps {
            0 => usize::MAX,
            most => most - self.steps_done,
        };
        let epoch = self.epochs_done;
        self.exchange_average(false);
        self.sampler.set_epoch(if self.plan.data.set_epoch { epoch as u64 } else { 0 });
        let mut plan = self.batches();
        plan.skip(self.so_far.steps * train.accumulate);
        plan.truncate(steps_left.saturating_mul(train.accumulate));
        let steps = plan.sizes.len().div_ceil(train.accumulate);
        let progress = progress_bar(job, epoch, train.epochs, steps + self.so_far.steps);
        progress.set_position(self.so_far.steps as u64);
        if let Some(signal) = self.train(plan, &progress, checkpoints)? {
            progress.finish_and_clear();
            return Ok(Progress::Stopped(signal));
        }
        self.gpus.end_epoch(&job.communicator, epoch)?;
        if job.is_root() {
            self.sampling.draw(&self.plan, job.world_size, epoch, self.so_far.steps);
        }
        let checksum = self.replica.agreed_checksum(epoch)?;
        let test_started = Instant::now();
        self.exchange_average(true);
        self.measure_statistics()?;
        let test = self.test()?;
        if self.agreement.is_measured() {
            let own = self.test_share(0..self.test_feed.len())?;
            self.agreement.after_epoch(&job.communicator, &self.replica.state, epoch, &own)?;
        }
        progress.finish_and_clear();

        self.gather_times()?;
        let EpochSoFar { result, seconds, .. } = std::mem::take(&mut self.so_far);
        let train = Replica::sum_over_ranks(&job.communicator, result)?;
        let loss = |name: &str, sum: f64| (!sum.is_finite()).then(|| format!("{name} loss is {sum}"));
        let found = weights::not_finite(&self.checkpoint()).or_else(|| loss("test", test.loss_sum));
        self.agree_on_finite(found.or_else(|| loss("training", train.loss_sum)))?;
        self.epochs_done += 1;
        self.record.add_epoch(EpochRow {
            epoch,
            world_size: job.world_size,
            train,
            test,
            seconds,
            test_seconds: test_started.elapsed().as_secs_f64(),
            images_per_second: train.samples as f64 / seconds,
            lr: self.schedule.lr(self.steps_done - 1),
            checksum,
        });
        Ok(Progress::Epoch)
    }

    /// After an epoch, when its results are safe: the signal, if one asks to stop here.
    pub fn between_epochs(&mut self, checkpoints: &mut Checkpoints) -> Result<Option<usize>> {
        let verdict = checkpoints.after_epoch(self.job, self.epochs_done, self.steps_done)?;
        self.obey(verdict, checkpoints)
    }

    /// Saves if asked to. The signal, if it is one that stops the training.
    fn obey(&mut self, verdict: Verdict, checkpoints: &mut Checkpoints) -> Result<Option<usize>> {
        if verdict != Verdict::GoOn {
            let (content, copied) = self.capture()?;
            checkpoints.write(self.steps_done, content, copied);
        }
        Ok(match verdict {
            Verdict::Stop(signal) => Some(signal),
            Verdict::GoOn | Verdict::Save => None,
        })
    }

    /// The times of the steps since the last call go to rank 0.
    pub(super) fn gather_times(&mut self) -> Result<()> {
        let times = std::mem::take(&mut self.so_far.times);
        let times: Vec<StepTimes> = times.into_iter().map(|mut times| times.resolve()).collect::<Result<_>>()?;
        self.record.add_steps(&self.job.communicator, self.epochs_done, self.steps_done - times.len(), &times)
    }

    /// Whether no step is left.
    pub fn is_finished(&self) -> bool {
        let most = self.plan.train.max_steps;
        self.epochs_done >= self.plan.train.epochs || most > 0 && self.steps_done >= most
    }

    /// How many steps are done.
    pub fn steps_done(&self) -> usize {
        self.steps_done
    }

    /// Counts what was drawn in the first so many epochs, as if this process had drawn it.
    pub(super) fn draw_again(&mut self, epochs: usize) {
        for epoch in 0..epochs {
            self.sampling.draw(&self.plan, self.job.world_size, epoch, self.global_batch.steps_per_epoch);
        }
    }

    /// All that was measured, as the run file holds it.
    pub fn tables(&self) -> Vec<Table> {
        let mut tables = self.record.tables(&self.job.communicator.ledger());
        tables.extend(self.more_tables());
        tables
    }

    /// What was measured beside the record: `/sampling`, `/gpu` where there are GPUs, `/spread` and `/ranks` where asked for.
    pub fn more_tables(&self) -> Vec<Table> {
        std::iter::once(self.sampling.table()).chain(self.gpus.table()).chain(self.agreement.tables()).collect()
    }

    /// Warnings of this run so far, on rank 0.
    pub fn warnings(&self) -> Vec<String> {
        self.job.warnings()
    }

    /// The ranks that train together.
    pub fn communicator(&self) -> &Communicator {
        &self.job.communicator
    }

    /// The weights that were tested last, with PyTorch's names.
    pub fn checkpoint(&self) -> Checkpoint {
        weights::checkpoint(&self.replica, self.epochs_done, self.steps_done)
    }

    /// The signal that stopped it, if one did.
    fn train(
        &mut self,
        plan: BatchPlan,
        progress: &ProgressBar,
        checkpoints: &mut Checkpoints,
    ) -> Result<Option<usize>> {
        let (job, epoch) = (self.job, self.epochs_done);
        let options = self.training_options();
        let sizes_of_steps: Vec<Vec<usize>> =
            plan.sizes.chunks(self.plan.train.accumulate).map(<[_]>::to_vec).collect();
        if self.steps_done == 0 {
            self.agreement.after_step(&job.communicator, &self.replica.state, epoch, 0)?;
        }
        self.gpus.begin_epoch();
        let (before, started) = (self.so_far.seconds, Instant::now());
        let mut batches = self.train_feed.batches(plan, options);
        for (done, sizes) in sizes_of_steps.iter().enumerate() {
            // Between two steps of an epoch; at its end the epoch's own question follows.
            if done > 0 {
                let verdict = checkpoints.after_step(job, self.steps_done)?;
                if let Some(signal) = self.obey(verdict, checkpoints)? {
                    return Ok(Some(signal));
                }
            }
            let step = self.steps_done;
            let lr = self.schedule.lr(step) * (1.0 + self.plan.parallel.lr_spread * job.rank as f64);
            let time = timed_step(&mut batches, sizes, &mut self.replica, &mut self.optimizer, job.world_size, lr)?;
            if self.replica.knows_at_once() {
                self.take_result(step, lr)?;
            }
            if let Some(average) = &mut self.average {
                average.update(&self.replica.state.parameters, step + 1);
            }
            self.so_far.times.push(time);
            self.so_far.steps += 1;
            self.steps_done += 1;
            progress::set_step(self.steps_done);
            self.agreement.after_step(&job.communicator, &self.replica.state, epoch, self.steps_done)?;
            self.so_far.seconds = before + started.elapsed().as_secs_f64();
            progress.inc(1);
        }
        if !self.replica.knows_at_once() {
            self.take_result(self.steps_done - 1, self.schedule.lr(self.steps_done - 1))?; // waits for the device
        }
        // Of the last step, unless its times have gone to rank 0 already.
        let mut unseen = StepRecorder::default();
        let last = self.so_far.times.last_mut().unwrap_or(&mut unseen);
        self.replica.end_local_steps(self.optimizer.moments(), last)?;
        self.so_far.seconds = before + started.elapsed().as_secs_f64();
        self.replica.end_epoch()?;
        Ok(None)
    }

    /// Counts what the steps since the last call gave, of which `step` was the last.
    pub(super) fn take_result(&mut self, step: usize, lr: f64) -> Result<()> {
        let result = self.replica.take_result()?;
        self.so_far.result.add(result);
        if self.must_be_finite && !result.loss_sum.is_finite() {
            let what = format!("loss is {} on rank {}", result.loss_sum, self.job.rank);
            return Err(Error::NotFinite { what, epoch: self.epochs_done, step, lr });
        }
        Ok(())
    }

    /// Holds what is to be saved after the last step to be finite; `found` says what on this rank is not. A collective.
    ///
    /// Error on every rank: any rank has found something, unless the training may diverge.
    pub(super) fn agree_on_finite(&mut self, found: Option<String>) -> Result<()> {
        let step = self.steps_done.saturating_sub(1);
        let (epoch, lr) = (self.epochs_done, self.schedule.lr(step));
        let own = found.map_or(Ok(()), |what| Err(Error::NotFinite { what, epoch, step, lr }));
        match self.job.agree(own) {
            Err(Error::Agreed(_) | Error::OnRank { .. }) if !self.must_be_finite => {
                self.diverged = true;
                Ok(())
            }
            agreed => agreed,
        }
    }

    /// This rank's batches of the epoch under way.
    fn batches(&self) -> BatchPlan {
        BatchPlan::even(self.sampler.indices(), self.plan.train.batch_per_rank)
    }

    /// How the batches of the epoch under way are prepared.
    fn training_options(&self) -> LoaderOptions {
        let seed = AugmentSeed { seed: self.plan.run.seed, epoch: self.epochs_done as u64 };
        loader_options(&self.plan.data, &self.replica, self.plan.data.augment.then_some(seed))
    }

    /// Gives the averaged weights, which the model holds, batch norm's statistics of their own: those of the epoch's first
    /// batches, as they were trained on.
    fn measure_statistics(&mut self) -> Result<()> {
        if self.average.is_none() || self.replica.state.buffers.is_empty() {
            return Ok(());
        }
        let mut plan = self.batches();
        plan.truncate(STATISTICS_IMAGES.div_ceil(self.plan.train.batch_per_rank * self.job.world_size));
        let batches = self.train_feed.batches(plan, self.training_options());
        self.replica.measure_statistics(batches)
    }

    /// Loss and accuracy over the whole test set, each rank testing its own share of it, no sample twice.
    fn test(&mut self) -> Result<StepResult> {
        let (rank, ranks, samples) = (self.job.rank, self.job.world_size, self.test_feed.len());
        let own = self.test_share(rank * samples / ranks..(rank + 1) * samples / ranks)?;
        Replica::sum_over_ranks(&self.job.communicator, own)
    }

    /// This rank's network on these test samples.
    fn test_share(&mut self, samples: Range<usize>) -> Result<StepResult> {
        let indices = (samples.start as u32..samples.end as u32).collect();
        let plan = BatchPlan::even(indices, self.plan.train.test_batch);
        for batch in self.test_feed.batches(plan, loader_options(&self.plan.data, &self.replica, None)) {
            self.replica.evaluate(&batch);
        }
        self.replica.take_result()
    }

    /// Puts the averaged weights into the model, or the trained ones back.
    pub(super) fn exchange_average(&mut self, averaged: bool) {
        if let Some(average) = &mut self.average
            && self.averaged != averaged
        {
            average.swap(&mut self.replica.state);
            self.averaged = averaged;
        }
    }
}

/// One optimiser step on the next `batches`, which have these `sizes`, and how long each part of it takes on this rank.
pub fn timed_step(
    batches: &mut Batches,
    sizes: &[usize],
    replica: &mut Replica,
    optimizer: &mut Optimizer,
    ranks: usize,
    lr: f64,
) -> Result<StepRecorder> {
    let _range = range(c"step");
    let mut time = StepRecorder::default();
    let clock = replica.clock().clone();
    let started = clock.now()?;
    // The sampler pads, so every rank has as many samples as this one.
    let global_batch = sizes.iter().sum::<usize>() * ranks;
    for number in 1..=sizes.len() {
        let waiting = clock.now()?;
        let batch = {
            let _range = range(c"batch");
            batches.next().expect("every batch of the plan comes")
        };
        time.since(Part::Data, waiting, &clock)?;
        if number < sizes.len() {
            replica.accumulate(&batch, global_batch, &mut time)?;
        } else {
            replica.step(&batch, global_batch, &mut time)?;
        }
    }
    let update = clock.now()?;
    {
        let _range = range(c"optimizer");
        optimizer.step(&mut replica.state, lr)?;
    }
    time.since(Part::Optimizer, update, &clock)?;
    replica.updated(optimizer.moments(), &mut time)?;
    time.since(Part::Step, started, &clock)?;
    Ok(time)
}

/// How batches are prepared for this model.
pub fn loader_options(data: &config::Data, replica: &Replica, augment: Option<AugmentSeed>) -> LoaderOptions {
    LoaderOptions {
        mean: data.mean,
        std: data.std,
        augment,
        channels_last: replica.model.channels_last,
        prefetch: data.prefetch,
    }
}

/// Rank 0's, on a terminal only.
fn progress_bar(job: &Job, epoch: usize, epochs: usize, steps: usize) -> ProgressBar {
    if !job.is_root() {
        return ProgressBar::hidden();
    }
    let template = "epoch {msg} [{bar:40}] {pos}/{len} steps, {per_sec}, {eta} left";
    let style = ProgressStyle::with_template(template).expect("the template is valid").progress_chars("=> ");
    let target = ProgressDrawTarget::stderr_with_hz(4);
    let bar = ProgressBar::with_draw_target(Some(steps as u64), target).with_style(style);
    bar.set_message(format!("{}/{epochs}", epoch + 1));
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}
