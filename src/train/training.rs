//! A training under way: one epoch after the other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::record::{self, EpochRow, Record};
use super::{Average, Optimizer, Schedule};
use crate::config::Config;
use crate::data::{AugmentSeed, BatchPlan, Dataset, Datasets, Loader, LoaderOptions, Sampler};
use crate::error::{Error, Result};
use crate::launch::Job;
use crate::metrics::{Part, StepTimes};
use crate::model::Model;
use crate::parallel::{Replica, StepResult};
use crate::store::Checkpoint;

/// Everything that changes while a network is trained. All ranks call its methods together.
pub struct Training<'a> {
    config: &'a Config,
    job: &'a Job,
    datasets: &'a Datasets,
    /// The model on this rank.
    pub replica: Replica,
    /// What was measured.
    pub record: Record,
    optimizer: Optimizer,
    average: Option<Average>,
    /// Whether the model holds the averaged weights at the moment: between two epochs, if there is an average.
    averaged: bool,
    /// Whether a loss that is no number ends the job at once.
    must_be_finite: bool,
    sampler: Sampler,
    schedule: Schedule,
    epochs_done: usize,
    steps_done: usize,
}

impl<'a> Training<'a> {
    /// Before the first epoch.
    pub fn new(config: &'a Config, job: &'a Job, datasets: &'a Datasets) -> Result<Training<'a>> {
        let (samples, shuffle, drop_last) = (datasets.train.len(), config.data.shuffle, config.data.drop_last);
        let sampler = Sampler::new(samples, job.world_size, job.rank, shuffle, drop_last, config.run.seed);
        let plan = BatchPlan::even(sampler.indices(), config.train.batch_per_rank);
        if plan.sizes.is_empty() {
            // With drop_last and fewer samples than ranks, as in PyTorch; a run without a step is nobody's wish.
            let (key, value) = ("data.drop_last".into(), "true".into());
            let expected = format!("{samples} samples on {} ranks leave none: use fewer ranks", job.world_size);
            return job.agree(Err(Error::ConfigValue { place: "data".into(), key, value, expected }));
        }
        let per_epoch = plan.sizes.len().div_ceil(config.train.accumulate);
        let most = if config.train.max_steps == 0 { usize::MAX } else { config.train.max_steps };
        let total = (config.train.epochs * per_epoch).min(most);
        let global_batch = config.train.batch_per_rank * config.train.accumulate * job.world_size;

        let model = Model::new(&config.model, config.run.seed);
        let replica = Replica::new(model, job.communicator.clone(), config)?;
        Ok(Training {
            optimizer: Optimizer::new(&replica.state.tensors, &config.optim),
            average: Average::new(config.optim.ema),
            averaged: false,
            must_be_finite: true,
            schedule: Schedule::new(config, total, per_epoch, global_batch),
            record: Record::new(config, job.world_size),
            config,
            job,
            datasets,
            replica,
            sampler,
            epochs_done: 0,
            steps_done: 0,
        })
    }

    /// The same, but a loss that is no number is left to who reads the record.
    pub fn that_may_diverge(mut self) -> Training<'a> {
        self.must_be_finite = false;
        self
    }

    /// Trains and tests one epoch and takes it into the record. False, and nothing done, if all are done.
    pub fn epoch(&mut self) -> Result<bool> {
        let (config, job) = (self.config, self.job);
        let steps_left = match config.train.max_steps {
            0 => usize::MAX,
            most => most - self.steps_done,
        };
        if self.epochs_done == config.train.epochs || steps_left == 0 {
            return Ok(false);
        }
        let epoch = self.epochs_done;
        self.exchange_average(false);
        self.sampler.set_epoch(if config.data.set_epoch { epoch as u64 } else { 0 });
        let mut plan = BatchPlan::even(self.sampler.indices(), config.train.batch_per_rank);
        plan.sizes.truncate(steps_left.saturating_mul(config.train.accumulate));
        plan.indices.truncate(plan.sizes.iter().sum());
        let steps = plan.sizes.len().div_ceil(config.train.accumulate);
        let progress = progress_bar(job, epoch, config.train.epochs, steps);
        let trained = self.train(plan, &progress)?;
        let checksum = self.replica.agreed_checksum(epoch)?;
        let test_started = Instant::now();
        self.exchange_average(true);
        let test = self.test()?;
        progress.finish_and_clear();

        self.record.add_steps(&job.communicator, epoch, self.steps_done, &trained.times)?;
        self.steps_done += steps;
        self.epochs_done += 1;
        let train = Replica::sum_over_ranks(&job.communicator, trained.result)?;
        self.record.add_epoch(EpochRow {
            epoch,
            train,
            test,
            seconds: trained.seconds,
            test_seconds: test_started.elapsed().as_secs_f64(),
            images_per_second: train.samples as f64 / trained.seconds,
            lr: self.schedule.lr(self.steps_done - 1),
            checksum,
        });
        Ok(true)
    }

    /// The weights that were tested last, with PyTorch's names.
    pub fn checkpoint(&self) -> Checkpoint {
        record::checkpoint(&self.replica.model, self.epochs_done, self.steps_done)
    }

    fn train(&mut self, plan: BatchPlan, progress: &ProgressBar) -> Result<Trained> {
        let (config, job, epoch) = (self.config, self.job, self.epochs_done);
        let seed = AugmentSeed { seed: config.run.seed, epoch: epoch as u64 };
        let options = loader_options(config, &self.replica, config.data.augment.then_some(seed));
        let batches_of_steps: Vec<Vec<usize>> = plan.sizes.chunks(config.train.accumulate).map(<[_]>::to_vec).collect();
        let mut loader = Loader::start(self.datasets.train.clone(), plan, options);
        let mut times = Vec::with_capacity(batches_of_steps.len());
        let mut result = StepResult::default();
        let epoch_started = Instant::now();
        for batches in batches_of_steps {
            let step = self.steps_done + times.len();
            let lr = self.schedule.lr(step);
            let (one, time) =
                timed_step(&mut loader, &batches, &mut self.replica, &mut self.optimizer, job.world_size, lr)?;
            if self.must_be_finite && !one.loss_sum.is_finite() {
                return Err(Error::LossNotFinite { loss: one.loss_sum, epoch, step, rank: job.rank, lr });
            }
            if let Some(average) = &mut self.average {
                average.update(self.replica.state.parameters.as_slice());
            }
            result.add(one);
            times.push(time);
            progress.inc(1);
        }
        if let Some(last) = times.last_mut() {
            self.replica.end_local_steps(self.optimizer.moments(), last)?;
        }
        let seconds = epoch_started.elapsed().as_secs_f64();
        self.replica.end_epoch()?;
        Ok(Trained { result, times, seconds })
    }

    /// Loss and accuracy over the whole test set, each rank testing its own share of it, no sample twice.
    fn test(&mut self) -> Result<StepResult> {
        let dataset: &Arc<Dataset> = &self.datasets.test;
        let (rank, ranks, samples) = (self.job.rank, self.job.world_size, dataset.len());
        let own = (rank * samples / ranks) as u32..((rank + 1) * samples / ranks) as u32;
        let plan = BatchPlan::even(own.collect(), self.config.train.test_batch);
        let mut result = StepResult::default();
        for batch in Loader::start(dataset.clone(), plan, loader_options(self.config, &self.replica, None)) {
            result.add(self.replica.evaluate(&batch)?);
        }
        Replica::sum_over_ranks(&self.job.communicator, result)
    }

    /// Puts the averaged weights into the model, or the trained ones back.
    fn exchange_average(&mut self, averaged: bool) {
        if let Some(average) = &mut self.average
            && self.averaged != averaged
        {
            average.swap(self.replica.state.parameters.as_mut_slice());
            self.averaged = averaged;
        }
    }
}

/// What one epoch's training on this rank gave.
struct Trained {
    result: StepResult,
    times: Vec<StepTimes>,
    /// From the first step's start to the last one's end.
    seconds: f64,
}

/// One optimiser step on the loader's next batches, which have these sizes, and how long each part of it took on this rank.
pub fn timed_step(
    loader: &mut Loader,
    batches: &[usize],
    replica: &mut Replica,
    optimizer: &mut Optimizer,
    ranks: usize,
    lr: f64,
) -> Result<(StepResult, StepTimes)> {
    let mut time = StepTimes::default();
    let mut result = StepResult::default();
    let started = Instant::now();
    // The sampler pads, so every rank has as many samples as this one.
    let global_batch = batches.iter().sum::<usize>() * ranks;
    for number in 1..=batches.len() {
        let waiting = Instant::now();
        let batch = loader.next().expect("the loader yields every batch of its plan");
        time.add(Part::Data, waiting.elapsed().as_secs_f64());
        result.add(if number < batches.len() {
            replica.accumulate(&batch, global_batch, &mut time)?
        } else {
            replica.step(&batch, global_batch, &mut time)?
        });
    }
    let update = Instant::now();
    let state = &mut replica.state;
    optimizer.step(state.parameters.as_mut_slice(), state.gradients.as_slice(), lr);
    time.add(Part::Optimizer, update.elapsed().as_secs_f64());
    replica.updated(optimizer.moments(), &mut time)?;
    time.add(Part::Step, started.elapsed().as_secs_f64());
    Ok((result, time))
}

/// How batches are prepared for this model.
pub fn loader_options(config: &Config, replica: &Replica, augment: Option<AugmentSeed>) -> LoaderOptions {
    LoaderOptions {
        mean: config.data.mean,
        std: config.data.std,
        augment,
        channels_last: replica.model.channels_last,
        prefetch: config.data.prefetch,
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
