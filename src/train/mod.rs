//! The epoch loop. In: a checked configuration and a job. Out: a run file, and on rank 0 a line an epoch and the closing
//! table. Decides what happens when; how gradients are reduced, times stored and tables drawn is elsewhere.

mod agreement;
mod closing;
mod optimizer;
mod record;
mod sampling;
mod schedule;
mod training;

use std::path::PathBuf;
use std::time::Instant;

use crate::config::Config;
use crate::data;
use crate::error::Result;
use crate::launch::Job;
use crate::quantize::command;
use crate::store::RunFile;
pub use optimizer::{Average, Optimizer};
pub use record::{EpochRow, Record, environment, loss_and_accuracy, ranks};
pub use schedule::Schedule;
pub use training::{Training, loader_options, timed_step};

/// Trains as configured and writes the run file at every epoch's end.
pub fn run(config: &Config, job: &Job, force: bool) -> Result<()> {
    let datasets = job.agree(data::open(config))?;
    let out = output_path(config, job)?;
    let created = job
        .is_root()
        .then(|| RunFile::create(&out, force, config, record::environment(job, &datasets), vec![record::ranks(job)]));
    let mut run_file = job.agree(created.transpose())?;
    let mut training = Training::new(config, job, &datasets)?;
    if job.is_root() {
        closing::print_header(config, job, &datasets, &training.replica);
    }

    let started = Instant::now();
    while training.epoch()? {
        if let Some(run_file) = &mut run_file {
            closing::print_epoch(training.record.epochs(), config.train.epochs);
            let mut tables = training.record.tables(&job.communicator.ledger());
            tables.extend(training.more_tables());
            run_file.flush(&tables, Some(&training.checkpoint()))?;
        }
    }
    if let Some(run_file) = &run_file {
        let ledger = job.communicator.ledger();
        let seconds = started.elapsed().as_secs_f64();
        closing::print_closing(&training.record, &ledger, &training.replica, job, run_file.path(), seconds);
    }
    if config.quantize.enabled {
        let checkpoint = training.checkpoint();
        let quantized = command::quantize_state(config, job, &checkpoint.tensors, &datasets)?;
        let written = run_file.as_mut().map(|run_file| {
            let mut tables = training.record.tables(&job.communicator.ledger());
            tables.extend(training.more_tables());
            tables.extend(quantized.tables.iter().cloned());
            run_file.flush(&tables, Some(&checkpoint))?;
            command::print(&quantized, config);
            command::write(config, &quantized, run_file.path(), &command::beside(run_file.path()), force)
        });
        job.agree(written.unwrap_or(Ok(())))?;
    }
    Ok(())
}

/// `run.out`, or a name made of model, ranks and rank 0's clock. Only rank 0 writes, so only its answer matters.
fn output_path(config: &Config, job: &Job) -> Result<PathBuf> {
    if !config.run.out.is_empty() {
        return Ok(PathBuf::from(&config.run.out));
    }
    let time = jiff::Zoned::now().strftime("%Y%m%d-%H%M%S");
    Ok(PathBuf::from(format!("results/{}-{}ranks-{time}.h5", config.model.name.as_str(), job.world_size)))
}
