//! The epoch loop. In: a checked configuration and a job. Out: a run file, checkpoints, and on rank 0 a line an epoch and
//! the closing table. Decides what happens when; how gradients are reduced, times stored and tables drawn is elsewhere.

mod agreement;
mod checkpoints;
mod closing;
mod device_optimizer;
mod gpus;
mod optimizer;
mod record;
mod resume;
mod sampling;
mod schedule;
mod training;
mod weights;

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::cli;
use crate::config::Config;
use crate::data;
use crate::error::{Error, Result};
use crate::launch::Job;
use crate::quantize::command;
use crate::store::{self, Attribute, CheckpointFolder, RunFile};
pub use checkpoints::Checkpoints;
pub use optimizer::{Average, Optimizer};
pub use record::{EpochRow, Record, environment, loss_and_accuracy, ranks};
use resume::Start;
pub use schedule::Schedule;
pub use training::{Progress, Training, loader_options, timed_step};
pub use weights::load;

/// Trains as configured and writes the run file at every epoch's end, checkpoints as configured and when a signal comes.
///
/// Error: [`Error::Stopped`] on every rank if a signal ended it before its end.
pub fn run(config: &Config, job: &Job, args: &cli::Train) -> Result<()> {
    let out = job.agree(output_path(config, job, args.resume.as_deref()))?;
    let start = match &args.resume {
        Some(given) => resume::find(given, &out, config, job)?,
        None => Start::Anew { replace: args.force },
    };
    let (resume, force) = match start {
        Start::Finished => {
            if job.is_root() {
                println!("{} is finished: nothing to do", out.display());
            }
            return Ok(());
        }
        Start::From(resume) => (Some(resume), true),
        Start::Anew { replace } => (None, replace),
    };
    let config = &match &resume {
        Some(resume) => resume::with_its_batch(config, job, resume.as_ref())?,
        None => config.clone(),
    };
    let datasets = job.agree(data::open(config))?;
    let resumed = resume.iter().flatten().next();
    let from = resumed.map(|resumed| resumed.path.clone());
    let created = job.is_root().then(|| {
        no_other_checkpoints(&out, force)?;
        let mut environment = record::environment(job, &datasets);
        environment
            .extend(resumed.map(|resumed| ("resumed_at_steps".to_owned(), Attribute::Ints(resumed.resumed_at()))));
        RunFile::create(&out, force, config, environment, vec![record::ranks(job)])
    });
    let mut run_file = job.agree(created.transpose())?;
    let folder =
        run_file.as_ref().map(|run_file| CheckpointFolder::new(run_file, config.checkpoint.keep, from.as_deref()));
    let mut checkpoints = job.agree(Checkpoints::new(&config.checkpoint, folder, from.as_deref()))?;
    let mut training = match &resume {
        Some(resume) => Training::resumed(config, job, &datasets, resume.as_ref())?,
        None => Training::new(config, job, &datasets)?,
    };
    if job.is_root() {
        closing::print_header(config, job, &datasets, &training.replica);
        if let Some(from) = &from {
            println!("# goes on after step {} from {}", training.steps_done(), from.display());
        }
    }
    drop(resume); // its tensors are as large as the training's own

    let started = Instant::now();
    let (signal, written) = epochs(&mut training, &mut checkpoints, run_file.as_mut(), config.train.epochs)?;
    if signal.is_some() {
        checkpoints.stopping();
    }
    let saved = checkpoints.finish();
    // There is more than the last epoch's end wrote, or perhaps there was no epoch left to do.
    if let Some(run_file) = run_file.as_mut().filter(|_| signal.is_some() || !written || from.is_some()) {
        flush(run_file, &training)?;
    }
    if let Some(signal) = signal {
        let checkpoint = job.agree(saved)?;
        return Err(checkpoints::stopped(signal, training.steps_done(), checkpoint));
    }
    if let Some(run_file) = &run_file {
        let ledger = training.record.ledger(&job.communicator.ledger());
        let seconds = started.elapsed().as_secs_f64();
        closing::print_closing(&training.record, &ledger, &training.replica, job, run_file.path(), seconds);
    }
    drop(checkpoints); // from here on a signal ends the job: all is written, and to quantize can be repeated
    if config.quantize.enabled {
        let mut checkpoint = training.checkpoint();
        weights::share(&job.communicator, &mut checkpoint)?;
        let quantized = command::quantize_state(config, job, &checkpoint.tensors, &datasets)?;
        let written = run_file.as_mut().map(|run_file| {
            let mut tables = training.tables();
            tables.extend(quantized.tables.iter().cloned());
            run_file.flush(&tables, Some(&checkpoint))?;
            command::print(&quantized, config, job.target);
            command::write(config, &quantized, run_file.path(), &command::beside(run_file.path()), force)
        });
        job.agree(written.unwrap_or(Ok(())))?;
    }
    Ok(())
}

/// Trains to the last of `all` epochs, writing the run file after each. The signal that stopped it before, if one did, and
/// whether the last epoch's run file could be written.
fn epochs(
    training: &mut Training,
    checkpoints: &mut Checkpoints,
    mut run_file: Option<&mut RunFile>,
    all: usize,
) -> Result<(Option<usize>, bool)> {
    let mut written = true;
    loop {
        match training.epoch(checkpoints)? {
            Progress::Epoch => {}
            Progress::Stopped(signal) => return Ok((Some(signal), written)),
            Progress::Finished => return Ok((None, written)),
        }
        if let Some(run_file) = &mut run_file {
            closing::print_epoch(training.record.epochs(), all);
            written = match flush(run_file, training) {
                // There may be room again later, and the training need not be lost for it.
                Err(error @ Error::Output { .. }) => {
                    log::error!("after epoch {}: {error}", training.record.epochs().len());
                    false
                }
                result => result.map(|()| true)?,
            };
        }
        if let Some(signal) = training.between_epochs(checkpoints)?
            && !training.is_finished()
        {
            return Ok((Some(signal), written));
        }
    }
}

/// The run file as it is now.
fn flush(run_file: &mut RunFile, training: &Training) -> Result<()> {
    run_file.flush(&training.tables(), Some(&training.checkpoint()))
}

/// Checkpoints of another training would be taken for this one's by the next `--resume auto`.
fn no_other_checkpoints(out: &Path, force: bool) -> Result<()> {
    let folder = CheckpointFolder::path_beside(out);
    if !force && store::has_checkpoints(&folder)? { Err(Error::OutputExists { path: folder }) } else { Ok(()) }
}

/// `run.out`, or that of the checkpoint, or a name made of model, ranks and rank 0's clock. Only rank 0 writes, so only its
/// answer matters.
fn output_path(config: &Config, job: &Job, resume: Option<&str>) -> Result<PathBuf> {
    if !config.run.out.is_empty() {
        return Ok(PathBuf::from(&config.run.out));
    }
    match resume {
        Some("auto") => {
            let message = "say of which run: give its run file with --out FILE.h5".into();
            return Err(Error::ConfigSyntax { place: "--resume auto".into(), message });
        }
        Some(checkpoint) => {
            if let Some(run_file) = CheckpointFolder::run_file_of(Path::new(checkpoint)) {
                return Ok(run_file);
            }
        }
        None => {}
    }
    let time = jiff::Zoned::now().strftime("%Y%m%d-%H%M%S");
    Ok(PathBuf::from(format!("results/{}-{}ranks-{time}.h5", config.model.name.as_str(), job.world_size)))
}
