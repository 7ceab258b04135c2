//! The epoch loop. In: a checked configuration and a job. Out: a run file, and on rank 0 a line an epoch and the closing
//! table. Decides what happens when; how gradients are reduced, times stored and tables drawn is elsewhere.

mod closing;
mod optimizer;
mod record;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::config::Config;
use crate::data::{self, AugmentSeed, BatchPlan, Dataset, Loader, LoaderOptions, Sampler};
use crate::error::{Error, Result};
use crate::launch::Job;
use crate::metrics::{Part, StepTimes};
use crate::model::Model;
use crate::parallel::{Replica, StepResult};
use crate::quantize::command;
use crate::store::RunFile;
pub use optimizer::Sgd;
use record::{EpochRow, Record};
pub use record::{environment, ranks};

/// Trains as configured and writes the run file at every epoch's end.
pub fn run(config: &Config, job: &Job, force: bool) -> Result<()> {
    let datasets = job.agree(data::open(config))?;
    let out = output_path(config, job)?;
    let created = job
        .is_root()
        .then(|| RunFile::create(&out, force, config, record::environment(job, &datasets), vec![record::ranks(job)]));
    let mut run_file = job.agree(created.transpose())?;

    let model = Model::new(&config.model, config.run.seed);
    let mut replica = Replica::new(model, job.communicator.clone(), config)?;
    let mut sgd = Sgd::new(replica.state.parameters.as_slice().len(), &config.optim);
    let mut sampler = Sampler::new(
        datasets.train.len(),
        job.world_size,
        job.rank,
        config.data.shuffle,
        config.data.drop_last,
        config.run.seed,
    );
    let mut record = Record::new(config, job.world_size);
    if job.is_root() {
        closing::print_header(config, job, &datasets, &replica);
    }

    let started = Instant::now();
    let mut global_step = 0;
    for epoch in 0..config.train.epochs {
        let steps_left = match config.train.max_steps {
            0 => usize::MAX,
            most => most - global_step,
        };
        sampler.set_epoch(epoch as u64);
        let mut plan = BatchPlan::even(sampler.indices(), config.train.batch_per_rank);
        if plan.sizes.is_empty() {
            // With drop_last and fewer samples than ranks, as in PyTorch; a run without a step is nobody's wish.
            let (key, value) = ("data.drop_last".into(), "true".into());
            let expected =
                format!("{} samples on {} ranks leave none: use fewer ranks", datasets.train.len(), job.world_size);
            return job.agree(Err(Error::ConfigValue { place: "data".into(), key, value, expected }));
        }
        plan.sizes.truncate(steps_left);
        plan.indices.truncate(plan.sizes.iter().sum());

        let steps = plan.sizes.len();
        let mut pass =
            Pass { config, job, progress: progress_bar(job, epoch, config.train.epochs, steps), epoch, global_step };
        let trained = pass.train(&mut replica, &mut sgd, &datasets.train, plan)?;
        let checksum = replica.agreed_checksum(epoch)?;
        let test_started = Instant::now();
        let tested = pass.test(&mut replica, &datasets.test)?;
        pass.progress.finish_and_clear();

        record.add_steps(&job.communicator, epoch, global_step, &trained.times)?;
        global_step += steps;
        let train = Replica::sum_over_ranks(&job.communicator, trained.result)?;
        record.add_epoch(EpochRow {
            epoch,
            train,
            test: tested,
            seconds: trained.seconds,
            test_seconds: test_started.elapsed().as_secs_f64(),
            images_per_second: train.samples as f64 / trained.seconds,
            lr: config.train.lr,
            checksum,
        });
        if let Some(run_file) = &mut run_file {
            closing::print_epoch(record.epochs(), config.train.epochs);
            let checkpoint = record::checkpoint(&replica.model, epoch + 1, global_step);
            run_file.flush(&record.tables(&job.communicator.ledger()), Some(&checkpoint))?;
        }
        if global_step == config.train.max_steps {
            break;
        }
    }
    if let Some(run_file) = &run_file {
        let ledger = job.communicator.ledger();
        closing::print_closing(&record, &ledger, &replica, job, run_file.path(), started.elapsed().as_secs_f64());
    }
    if config.quantize.enabled {
        let checkpoint = record::checkpoint(&replica.model, record.epochs().len(), global_step);
        let quantized = command::quantize_state(config, job, &checkpoint.tensors, &datasets)?;
        let written = run_file.as_mut().map(|run_file| {
            let mut tables = record.tables(&job.communicator.ledger());
            tables.extend(quantized.tables.iter().cloned());
            run_file.flush(&tables, Some(&checkpoint))?;
            command::print(&quantized, config);
            command::write(config, &quantized, run_file.path(), &command::beside(run_file.path()), force)
        });
        job.agree(written.unwrap_or(Ok(())))?;
    }
    Ok(())
}

/// What one epoch's training on this rank gave.
struct Trained {
    result: StepResult,
    times: Vec<StepTimes>,
    /// From the first step's start to the last one's end.
    seconds: f64,
}

/// One pass over the data.
struct Pass<'a> {
    config: &'a Config,
    job: &'a Job,
    progress: ProgressBar,
    epoch: usize,
    global_step: usize,
}

impl Pass<'_> {
    fn train(
        &mut self,
        replica: &mut Replica,
        sgd: &mut Sgd,
        dataset: &Arc<Dataset>,
        plan: BatchPlan,
    ) -> Result<Trained> {
        let steps = plan.sizes.len();
        let seed = AugmentSeed { seed: self.config.run.seed, epoch: self.epoch as u64 };
        let options = loader_options(self.config, replica, self.config.data.augment.then_some(seed));
        let mut loader = Loader::start(dataset.clone(), plan, options);
        let mut times = Vec::with_capacity(steps);
        let mut result = StepResult::default();
        let epoch_started = Instant::now();
        for step in 0..steps {
            let (one, time) = timed_step(&mut loader, replica, sgd, self.job.world_size, self.config.train.lr)?;
            if !one.loss_sum.is_finite() {
                let (rank, lr) = (self.job.rank, self.config.train.lr);
                let step = self.global_step + step;
                return Err(Error::LossNotFinite { loss: one.loss_sum, epoch: self.epoch, step, rank, lr });
            }
            result.add(one);
            times.push(time);
            self.progress.inc(1);
        }
        let seconds = epoch_started.elapsed().as_secs_f64();
        replica.end_epoch()?;
        Ok(Trained { result, times, seconds })
    }

    /// Loss and accuracy over the whole test set, each rank testing its own share of it, no sample twice.
    fn test(&self, replica: &mut Replica, dataset: &Arc<Dataset>) -> Result<StepResult> {
        let (rank, ranks, samples) = (self.job.rank, self.job.world_size, dataset.len());
        let own = (rank * samples / ranks) as u32..((rank + 1) * samples / ranks) as u32;
        let plan = BatchPlan::even(own.collect(), self.config.train.test_batch);
        let mut result = StepResult::default();
        for batch in Loader::start(dataset.clone(), plan, loader_options(self.config, replica, None)) {
            result.add(replica.evaluate(&batch)?);
        }
        Replica::sum_over_ranks(&self.job.communicator, result)
    }
}

/// One optimiser step on the loader's next batch, and how long each part of it took on this rank.
pub fn timed_step(
    loader: &mut Loader,
    replica: &mut Replica,
    sgd: &mut Sgd,
    ranks: usize,
    lr: f64,
) -> Result<(StepResult, StepTimes)> {
    let mut time = StepTimes::default();
    let started = Instant::now();
    let batch = loader.next().expect("the loader yields every batch of its plan");
    time.add(Part::Data, started.elapsed().as_secs_f64());
    // The sampler pads, so every rank has as many samples as this one.
    let result = replica.step(&batch, batch.len * ranks, &mut time)?;
    let update = Instant::now();
    let state = &mut replica.state;
    sgd.step(state.parameters.as_mut_slice(), state.gradients.as_slice(), lr);
    drop(batch);
    time.add(Part::Optimizer, update.elapsed().as_secs_f64());
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

/// `run.out`, or a name made of model, ranks and rank 0's clock. Only rank 0 writes, so only its answer matters.
fn output_path(config: &Config, job: &Job) -> Result<PathBuf> {
    if !config.run.out.is_empty() {
        return Ok(PathBuf::from(&config.run.out));
    }
    let time = jiff::Zoned::now().strftime("%Y%m%d-%H%M%S");
    Ok(PathBuf::from(format!("results/{}-{}ranks-{time}.h5", config.model.name.as_str(), job.world_size)))
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
