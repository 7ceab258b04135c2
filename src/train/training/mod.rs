//! A training under way: trains, tests, records and saves one epoch after the other.

mod saving;
mod showing;
mod testing;

use std::sync::Arc;
use std::time::Instant;

use super::checkpoints::{Checkpoints, Decision};
use super::convolutions::Convolutions;
use super::divergence::{self, Divergence};
use super::draws::Draws;
use super::gpus::Gpus;
use super::partial_epoch::PartialEpoch;
use super::reads::ReadRecord;
use super::record::{EpochRow, Record};
use super::resume::Resume;
use super::sampling::{self, Sampling};
use super::step::{loader_options, timed_step};
use super::{GlobalBatch, Score, weights};
use crate::collective::{Communicator, progress};
use crate::config::Plan;
use crate::data::{AugmentSeed, BatchPlan, Dataset, Datasets, Feed, LoaderOptions, Sampler};
use crate::device::StepRecorder;
use crate::error::{Error, Result};
use crate::launch::Job;
use crate::live::Live;
use crate::metrics::flops;
use crate::model::Model;
use crate::optim::{Average, LossScale, Optimizer, Schedule};
use crate::parallel::Replica;
use crate::store::{Checkpoint, Table};
use crate::trace::TraceRecord;
use crate::units::Bytes;
use crate::workload;

/// A training: the replica, what it is trained with, and what is measured. All ranks call its methods together.
///
/// # Examples
/// ```no_run
/// use hpml::config::{Config, Plan};
/// use hpml::live::Live;
/// use hpml::train::{Checkpoints, Progress, Training};
///
/// # fn main() -> std::process::ExitCode {
/// let config = Config::default();
/// hpml::launch::run(&config.launch.clone(), |job| {
///     let plan = Plan::new(config, job.world_size)?;
///     job.configure(&plan)?;
///     let datasets = hpml::data::open(&plan.data)?;
///     let mut training = Training::new(&plan, job, &datasets)?;
///     while training.epoch(&mut Checkpoints::none(), &mut Live::hidden())? == Progress::Epoch {}
///     Ok(())
/// })
/// # }
/// ```
pub struct Training<'a> {
    plan: Plan,
    job: &'a Job,
    gpus: Gpus,
    reads: ReadRecord,
    convolutions: Convolutions,
    train_feed: Feed,
    test_feed: Feed,
    replica: Replica,
    record: Record,
    divergence: Divergence,
    trace: TraceRecord,
    sampling: Sampling,
    optimizer: Optimizer,
    draws: Draws,
    average: Option<Average>,
    /// Whether the model holds the averaged weights at the moment: between two epochs, if there is an average.
    averaged: bool,
    /// Whether a loss or a weight that is NaN or infinite is an error.
    must_be_finite: bool,
    /// Whether a loss or a weight became NaN or infinite without being an error.
    diverged: bool,
    sampler: Sampler,
    schedule: Schedule,
    global_batch: GlobalBatch,
    /// Multiplications and additions of the network per sample, or why they are not known.
    operations: Result<[u64; 2], String>,
    /// The table `/buckets`, on rank 0.
    buckets: Option<Table>,
    epochs_done: usize,
    steps_done: usize,
    epoch: PartialEpoch,
    /// Steps at which this training was resumed.
    resumed_at: Vec<i64>,
}

/// Work done by a call of [`Training::epoch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Trained and tested one more epoch.
    Epoch,
    /// Stopped within the epoch by the signal of this number, and saved.
    Stopped(usize),
    /// Nothing: all epochs were done before.
    Finished,
}

impl<'a> Training<'a> {
    /// A training before its first epoch.
    ///
    /// # Errors
    /// The data do not suit the plan, or a rank or the device fails.
    pub fn new(plan: &Plan, job: &'a Job, datasets: &Datasets) -> Result<Training<'a>> {
        let model =
            job.agree(weights::initial(&plan.model, datasets.train.form(), divergence::model_seed(plan, job.rank)))?;
        Training::with_model(plan, job, datasets, model, None)
    }

    /// A training at the step where it was saved, with the checkpoint `resume` on rank 0.
    ///
    /// # Errors
    /// The checkpoint does not suit the model or the ranks, or holds values that are NaN or infinite.
    pub fn resumed(plan: &Plan, job: &'a Job, datasets: &Datasets, resume: Option<&Resume>) -> Result<Training<'a>> {
        let mut model = job.agree(Model::new(&plan.model, datasets.train.form(), plan.run.seed))?;
        let load =
            |resume: &Resume| weights::load(&mut model, &resume.content.model.tensors, &resume.path, "checkpoint");
        job.agree(resume.map_or(Ok(()), load))?;
        let tables = resume.map_or(&[][..], |resume| &resume.content.tables);
        let mut training = Training::with_model(plan, job, datasets, model, Some(tables))?;
        training.restore(resume)?;
        Ok(training)
    }

    /// A training of `model`; one that goes on has the `earlier` tables on rank 0, and none on the others.
    fn with_model(
        plan: &Plan,
        job: &'a Job,
        datasets: &Datasets,
        mut model: Model,
        earlier: Option<&[Table]>,
    ) -> Result<Training<'a>> {
        let samples = datasets.train.len();
        let sampler = sampling::sampler(plan, samples, job.world_size, job.rank);
        let global_batch = job.agree(GlobalBatch::new(plan, samples))?;

        let mut convolutions = earlier.map_or_else(Convolutions::default, Convolutions::of_training);
        let operations = job.agree(workload::operations(plan, datasets.train.form(), &model))?;
        let buckets = job.is_root().then(|| workload::buckets(plan, datasets.train.form())).transpose();
        let buckets = job.agree(buckets)?;
        convolutions.choose(&mut model, plan, job.target, &job.communicator, plan.train.batch_per_rank)?;
        let plan = &job.agree(job.fitting(plan, &job.communicator, model.parameter_count()))?;
        let replica = Replica::new(model, job.target, job.communicator.clone(), plan)?;
        let (device, most) = (job.target.own_memory(), plan.data.gpu_mb as Bytes * 1_000_000);
        let feed = |dataset: &Arc<Dataset>| job.agree(Feed::new(dataset.clone(), device, most));
        Ok(Training {
            optimizer: Optimizer::new(replica.state(), &plan.optim)
                .with_loss_scale(LossScale::of(plan.model.precision)),
            draws: Draws::seeded(replica.model().draws(), job.target, plan.run.seed, job.rank)?,
            average: Average::new(plan.optim.ema, replica.state()),
            averaged: false,
            must_be_finite: true,
            diverged: false,
            schedule: Schedule::new(
                &plan.schedule,
                plan.train.lr,
                global_batch.steps_of(&plan.train),
                global_batch.steps_per_epoch,
                global_batch.samples,
            ),
            record: Record::new(plan, job.world_size, global_batch.steps_of(&plan.train)),
            divergence: Divergence::new(plan.metrics.spread_steps),
            trace: job.agree(TraceRecord::of(plan, global_batch.steps_of(&plan.train), job.world_size))?,
            sampling: Sampling::new(samples),
            gpus: Gpus::new(job.target, &job.gpu_uuid),
            reads: ReadRecord::default(),
            convolutions,
            train_feed: feed(&datasets.train)?,
            test_feed: feed(&datasets.test)?,
            plan: plan.clone(),
            job,
            replica,
            sampler,
            global_batch,
            operations,
            buckets,
            epochs_done: 0,
            steps_done: 0,
            epoch: PartialEpoch::default(),
            resumed_at: Vec::new(),
        })
    }

    /// Accepts a loss or a weight that is NaN or infinite, which otherwise is an error; [`has_diverged`](Self::has_diverged)
    /// tells whether there was one.
    pub fn tolerating_divergence(mut self) -> Training<'a> {
        self.must_be_finite = false;
        self
    }

    /// Whether an epoch ended with a loss or a weight that is NaN or infinite.
    pub fn has_diverged(&self) -> bool {
        self.diverged
    }

    /// Trains (the rest of) one epoch, tests, and records both, unless `checkpoints` stops it before the epoch's end; `live` shows
    /// how far it is.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if a loss or a weight is NaN or infinite, unless that is tolerated; [`Error::ParametersDiffer`]; a
    /// rank or the device has failed.
    pub fn epoch(&mut self, checkpoints: &mut Checkpoints, live: &mut Live) -> Result<Progress> {
        let job = self.job;
        if self.is_finished() {
            return Ok(Progress::Finished);
        }
        let train = self.plan.train.clone();
        let steps_left = match train.max_steps {
            0 => usize::MAX,
            most => most - self.steps_done,
        };
        let (epoch, started) = (self.epochs_done, Instant::now());
        self.exchange_average(false);
        self.sampler.set_epoch(if self.plan.data.set_epoch { epoch as u64 } else { 0 });
        let mut batches = self.batches();
        batches.skip(self.epoch.steps() * train.accumulate);
        batches.truncate(steps_left.saturating_mul(train.accumulate));
        let steps = batches.sizes.len().div_ceil(train.accumulate);
        self.begin_epoch_of(live, steps);
        let train_started = Instant::now();
        if let Some(signal) = self.train(batches, live, checkpoints)? {
            live.clear();
            return Ok(Progress::Stopped(signal));
        }
        let trained = train_started.elapsed();
        self.gpus.end_epoch(&job.communicator, epoch)?;
        self.reads.end_epoch(&job.communicator, &self.train_feed, epoch, self.epoch.seconds())?;
        if job.is_root() {
            self.sampling.draw(&self.plan, job.world_size, epoch, self.epoch.steps());
        }
        let checksum = self.replica.agreed_checksum(epoch)?;
        let test_started = Instant::now();
        let form = self.test_feed.dataset().form();
        self.exchange_average(true);
        self.measure_statistics()?;
        let test = self.test(live)?;
        if self.divergence.is_measured() {
            let own = self.test_share(0..self.test_feed.len(), live)?;
            let score = Score::new(own, form);
            self.divergence.after_epoch(&job.communicator, self.replica.state(), epoch, score)?;
        }
        live.clear();
        let tested = test_started.elapsed();

        self.gather_times()?;
        let done = std::mem::take(&mut self.epoch);
        let seconds = done.seconds();
        let train = Replica::sum_over_ranks(&job.communicator, done.result())?;
        let loss = |name: &str, sum: f64| (!sum.is_finite()).then(|| format!("{name} loss is {sum}"));
        let found = weights::not_finite(&self.checkpoint()).or_else(|| loss("test", test.loss_sum));
        self.agree_on_finite(found.or_else(|| loss("training", train.loss_sum)))?;
        self.epochs_done += 1;
        let scale = self.optimizer.loss_scale();
        let images_per_second = train.samples as f64 / seconds;
        let forward = self.operations.as_ref().map_or(f64::NAN, |[forward, _]| *forward as f64);
        self.record.add_epoch(EpochRow {
            epoch,
            world_size: job.world_size,
            train: Score::new(train, form),
            test: Score::new(test, form),
            seconds,
            test_seconds: tested.as_secs_f64(),
            gather_seconds: (started.elapsed() - trained - tested).as_secs_f64(),
            write_seconds: f64::NAN,
            checkpoint_seconds: f64::NAN,
            images_per_second,
            flops: flops(forward, images_per_second),
            peak_share: f64::NAN,
            lr: self.schedule.lr(self.steps_done - 1),
            loss_scale: scale.map_or(f64::NAN, |scale| scale.factor().into()),
            skipped_steps: scale.map_or(f64::NAN, |scale| scale.skipped() as f64),
            checksum,
        });
        Ok(Progress::Epoch)
    }

    /// Saves between two epochs if `checkpoints` says so. Returns the signal that stops the training, if one has come. To be
    /// called when the run file holds the last epoch.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if a value to be saved is NaN or infinite, unless that is tolerated.
    pub fn between_epochs(&mut self, checkpoints: &mut Checkpoints) -> Result<Option<usize>> {
        let decision = checkpoints.after_epoch(self.job, self.epochs_done, self.steps_done)?;
        self.carry_out(decision, checkpoints)
    }

    /// Saves if that was decided. Returns the signal, if the decision is to stop.
    fn carry_out(&mut self, decision: Decision, checkpoints: &mut Checkpoints) -> Result<Option<usize>> {
        if decision != Decision::Continue {
            let (content, copied) = self.capture()?;
            checkpoints.write(self.steps_done, content, copied);
        }
        Ok(match decision {
            Decision::Stop(signal) => Some(signal),
            Decision::Continue | Decision::Save => None,
        })
    }

    /// Sends the times of the steps since the last call to rank 0. A collective.
    fn gather_times(&mut self) -> Result<()> {
        let (times, spans) = self.epoch.take_times()?;
        let first = self.steps_done - times.len();
        self.record.add_steps(&self.job.communicator, self.epochs_done, first, &times)?;
        self.trace.add(self.job, first, &spans)
    }

    /// Whether no step is left.
    pub fn is_finished(&self) -> bool {
        let most = self.plan.train.max_steps;
        self.epochs_done >= self.plan.train.epochs || most > 0 && self.steps_done >= most
    }

    /// Optimizer steps done.
    pub fn steps_done(&self) -> usize {
        self.steps_done
    }

    /// Multiplications and additions of the network per sample, see [`Workload::operations`](crate::workload::Workload::operations).
    ///
    /// # Errors
    /// Returns why they are not known, for a network from a file.
    pub fn operations(&self) -> Result<[u64; 2], &str> {
        self.operations.as_ref().copied().map_err(String::as_str)
    }

    /// The model on this rank.
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// Steps and epochs as measured.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Steps and epochs as measured, to take rows out of them.
    pub fn record_mut(&mut self) -> &mut Record {
        &mut self.record
    }

    /// Tables of all measurements, as the run file holds them.
    pub fn tables(&self) -> Vec<Table> {
        let mut tables = self.record.tables(&self.job.communicator.ledger());
        tables.extend(self.more_tables());
        tables
    }

    /// Tables beside those of the record: `/sampling`, `/gpu` on GPUs, `/convolutions` where Winograd could compute some, `/reads` where
    /// samples are read from files, `/spread` and `/ranks` with `metrics.spread_steps`, `/trace` and `/clocks` with
    /// `metrics.trace_steps`, `/buckets`.
    pub fn more_tables(&self) -> Vec<Table> {
        let tables = std::iter::once(self.sampling.table()).chain(self.gpus.table()).chain(self.convolutions.table());
        let tables = tables.chain(self.reads.table()).chain(self.divergence.tables());
        tables.chain(self.trace.tables()).chain(self.buckets.clone()).collect()
    }

    /// Warnings of this run so far, on rank 0.
    pub fn warnings(&self) -> Vec<String> {
        self.job.warnings()
    }

    /// The ranks that train together.
    pub fn communicator(&self) -> &Communicator {
        &self.job.communicator
    }

    /// Weights that were tested last, with PyTorch's names.
    pub fn checkpoint(&self) -> Checkpoint {
        weights::checkpoint(&self.replica, self.epochs_done, self.steps_done)
    }

    /// Trains on `batches`, the rest of an epoch. Returns the signal that stopped it, if one did.
    fn train(&mut self, batches: BatchPlan, live: &mut Live, checkpoints: &mut Checkpoints) -> Result<Option<usize>> {
        let (job, epoch) = (self.job, self.epochs_done);
        let options = self.training_options();
        let sizes_of_steps: Vec<Vec<usize>> =
            batches.sizes.chunks(self.plan.train.accumulate).map(<[_]>::to_vec).collect();
        if self.steps_done == 0 {
            self.divergence.after_step(&job.communicator, self.replica.state(), epoch, 0)?;
        }
        self.gpus.begin_epoch();
        self.trace.begin(&job.communicator)?;
        let (before, started) = (self.epoch.seconds(), Instant::now());
        let mut batches = self.train_feed.batches(batches, options);
        for (done, sizes) in sizes_of_steps.iter().enumerate() {
            // Between two steps; what follows the last one is decided after the epoch.
            if done > 0 {
                let decision = checkpoints.after_step(job, self.steps_done)?;
                if let Some(signal) = self.carry_out(decision, checkpoints)? {
                    return Ok(Some(signal));
                }
            }
            let step = self.steps_done;
            let lr = self.schedule.lr(step) * (1.0 + self.plan.parallel.lr_spread * job.rank as f64);
            let (optimizer, traced) = (&mut self.optimizer, self.trace.wants(step));
            let time = timed_step(&mut batches, sizes, &mut self.replica, optimizer, job.world_size, lr, traced)?;
            self.trace.count(step, time.span_count(), sizes.iter().sum());
            if self.replica.result_is_ready() {
                self.take_result(step, lr)?;
            }
            if let Some(average) = &mut self.average {
                average.update(&self.replica.state().parameters, step + 1);
            }
            self.epoch.add_step(time);
            self.steps_done += 1;
            progress::set_step(self.steps_done);
            self.divergence.after_step(&job.communicator, self.replica.state(), epoch, self.steps_done)?;
            self.epoch.set_seconds(before + started.elapsed().as_secs_f64());
            if live.advance() {
                self.show(live, lr, false)?;
            }
        }
        if !self.replica.result_is_ready() {
            self.take_result(self.steps_done - 1, self.schedule.lr(self.steps_done - 1))?; // waits for the device
        }
        // Not recorded if the times of the last step have gone to rank 0 already.
        let mut unseen = StepRecorder::default();
        let last = self.epoch.last_times().unwrap_or(&mut unseen);
        self.replica.end_local_steps(self.optimizer.moments(), last)?;
        self.epoch.set_seconds(before + started.elapsed().as_secs_f64());
        if live.wants_rest() {
            self.show(live, self.schedule.lr(self.steps_done - 1), true)?;
        }
        self.replica.end_epoch()?;
        Ok(None)
    }

    /// Adds the results of the steps since the last call, the last of which is `step`.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if the loss is NaN or infinite, unless that is tolerated.
    fn take_result(&mut self, step: usize, lr: f64) -> Result<()> {
        let result = self.replica.take_result()?;
        self.epoch.add_result(result);
        let scale = self.optimizer.loss_scale().filter(LossScale::is_lost);
        let what = match (result.loss_sum.is_finite(), scale) {
            (false, _) => format!("loss is {} on rank {}", result.loss_sum, self.job.rank),
            (true, Some(scale)) => format!("a gradient is not finite, even with a loss scale of {:e}", scale.factor()),
            (true, None) => return Ok(()),
        };
        if self.must_be_finite {
            return Err(Error::NotFinite { what, epoch: self.epochs_done, step, lr });
        }
        Ok(())
    }

    /// Learns whether a value is NaN or infinite after the last step; `found` names the one on this rank. A collective.
    ///
    /// # Errors
    /// [`Error::NotFinite`] on all ranks if there is one on any rank, unless that is tolerated.
    fn agree_on_finite(&mut self, found: Option<String>) -> Result<()> {
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

    /// Options of the loader of the epoch under way.
    fn training_options(&self) -> LoaderOptions {
        let seed = AugmentSeed { seed: self.plan.run.seed, epoch: self.epochs_done as u64 };
        loader_options(&self.plan.data, &self.train_feed, &self.replica, self.plan.data.augment.then_some(seed))
    }

    /// Puts the averaged weights into the model (`averaged`), or the trained ones.
    fn exchange_average(&mut self, averaged: bool) {
        if let Some(average) = &mut self.average
            && self.averaged != averaged
        {
            average.swap(self.replica.state_mut());
            self.averaged = averaged;
        }
    }
}
