//! The epoch loop. In: a checked configuration and a job. Out: a run file, checkpoints, and on rank 0 a line an epoch and
//! the closing table. Decides what happens when; how gradients are reduced, times stored and tables drawn is elsewhere.

mod checkpoints;
mod console;
mod divergence;
mod global_batch;
mod gpus;
mod record;
mod resume;
mod sampling;
mod start;
mod training;
mod weights;

use std::time::Instant;

use crate::cli;
use crate::config::Config;
use crate::data::{self, Datasets};
use crate::environment;
use crate::error::{Error, Result};
use crate::launch::Job;
use crate::output;
use crate::quantize::command;
use crate::store::{CheckpointFolder, Owner, RunFile};
use crate::table::{Attribute, Table};
pub use checkpoints::Checkpoints;
pub use global_batch::GlobalBatch;
pub use record::{EpochRow, Record, Score};
use start::{Beginning, Start};
pub use training::{Progress, Training, loader_options, timed_step};
pub use weights::load;

/// Trains as configured and writes the run file at every epoch's end, checkpoints as configured and when a signal comes.
///
/// # Errors
/// [`Error::Stopped`] on every rank if a signal ended it before its end; before the first step what cannot be written or
/// resumed.
pub fn run(config: &Config, job: &Job, args: &cli::Train) -> Result<()> {
    let given = job.agree(start::output_path(config, args.resume.as_deref()))?;
    let datasets = job.agree(data::open(config))?;
    let stem = format!("{}-{}ranks", config.model.name.as_str(), job.world_size);
    let owner = output::claim(job, given.as_deref(), &stem, args.force)?;
    let out = owner.as_ref().map(Owner::target);
    let Start::Begin { is_resumed, how } = start::find(args, out, config, job, &datasets)? else {
        if let Some(out) = out {
            println!("{} is finished: nothing to do", out.display());
        }
        return Ok(());
    };
    let samples = datasets.train.len();
    let config = &start::with_its_batch(config, job, how.as_deref(), samples)?;
    let batch = job.agree(GlobalBatch::new(config, samples, job.world_size))?;
    if config.quantize.enabled {
        job.agree(command::check_calibration(config, &datasets.train))?;
    }
    let quantized = match config.quantize.enabled {
        true => output::claim_at(job, &out.map(command::beside).unwrap_or_default(), args.force)?,
        false => None,
    };
    let created =
        owner.zip(how).map(|(owner, how)| Outputs::create(owner, quantized, *how, config, job, &datasets, &batch));
    let mut outputs = job.agree(created.transpose())?;
    let resume = outputs.as_mut().and_then(|outputs| outputs.resume.take());
    let from = resume.as_ref().map(|resume| resume.path.clone());
    let folder = outputs.as_mut().and_then(|outputs| outputs.folder.take());
    let mut checkpoints = job.agree(Checkpoints::new(&config.checkpoint, folder, from.as_deref()))?;
    let mut training = match is_resumed {
        true => Training::resumed(config, job, &datasets, resume.as_ref())?,
        false => Training::new(config, job, &datasets)?,
    };
    if job.is_root() {
        console::print_header(config, job, &datasets, &training.replica, &batch);
        if let Some(from) = &from {
            println!("# goes on after step {} from {}", training.steps_done(), from.display());
        }
    }
    drop(resume); // its tensors are as large as the training's own

    let started = Instant::now();
    let ended = epochs(&mut training, &mut checkpoints, outputs.as_mut(), config.train.epochs);
    if matches!(ended, Ok((Some(_), _))) {
        checkpoints.stopping();
    }
    // After an error too: what is still being written is a good state of before.
    let saved = checkpoints.finish();
    let (signal, written) = ended?;
    // There is more than the last epoch's end wrote, or perhaps there was no epoch left to do.
    if let Some(outputs) = outputs.as_mut().filter(|_| signal.is_some() || !written || is_resumed) {
        outputs.flush(&training)?;
    }
    if let Some(signal) = signal {
        let checkpoint = job.agree(saved)?;
        return Err(checkpoints::stopped(signal, training.steps_done(), checkpoint));
    }
    if let Some(outputs) = &outputs {
        let (path, seconds) = (outputs.run_file.path(), started.elapsed().as_secs_f64());
        console::print_closing(config, job.world_size, &training.tables(), path, seconds);
    }
    drop(checkpoints); // from here on a signal ends the job: all is written, and to quantize can be repeated
    if config.quantize.enabled {
        let mut checkpoint = training.checkpoint();
        weights::share(&job.communicator, &mut checkpoint)?;
        let quantized = command::quantize_state(config, job, &checkpoint.tensors, &datasets)?;
        let written = outputs.as_mut().map(|outputs| {
            command::print(&quantized, config);
            command::write(&quantized, job, outputs.quantized.as_mut().expect("made at the start"))?;
            let mut tables = training.tables();
            tables.extend(quantized.tables.iter().cloned());
            outputs.run_file.set_warnings(job.warnings());
            outputs.run_file.finish(&tables, Some(&checkpoint))
        });
        job.agree(written.unwrap_or(Ok(())))?;
    }
    Ok(())
}

/// The tables of a training without rows, in the order of the run file, for their documentation.
pub fn empty_tables() -> Vec<Table> {
    vec![
        record::steps().table(&[]),
        record::epochs().table(&[]),
        record::comm().table(&[]),
        sampling::sampling().table(&[]),
        divergence::spread().table(&[]),
        divergence::ranks().table(&[]),
        gpus::gpu().table(&[]),
    ]
}

/// The files of a training, on rank 0: all are known to be writable before the first step.
struct Outputs {
    run_file: RunFile,
    /// Where the int8 network goes, if one is wanted.
    quantized: Option<RunFile>,
    /// Steps in the run file that is there: it stays until as many are done.
    steps_there: usize,
    /// Until the checkpoints are written there.
    folder: Option<CheckpointFolder>,
    /// Until the training has taken it in.
    resume: Option<resume::Resume>,
}

impl Outputs {
    fn create(
        owner: Owner,
        quantized: Option<Owner>,
        how: Beginning,
        config: &Config,
        job: &Job,
        datasets: &Datasets,
        batch: &GlobalBatch,
    ) -> Result<Outputs> {
        let Beginning { resume, identity, replace, force, steps_there, .. } = how;
        let source = (owner.target(), identity.run_id.as_str());
        let quantized = quantized.map(|owner| command::create(owner, force, config, source)).transpose()?;
        let mut environment = environment::attributes(job, Some(datasets));
        environment.extend(how.environment);
        environment.push(("global_batch".to_owned(), Attribute::Int(batch.samples as i64)));
        environment.extend(
            resume.as_ref().map(|resume| ("resumed_at_steps".to_owned(), Attribute::Ints(resume.resumed_at()))),
        );
        let mut run_file =
            RunFile::create_owned(owner, replace, identity, config, environment, vec![environment::table(job)])?;
        run_file.set_warnings(job.warnings()); // checkpoints have them, too
        let from = resume.as_ref().map(|resume| resume.path.as_path());
        let folder = CheckpointFolder::new(&run_file, config.checkpoint.keep, from, force)?;
        Ok(Outputs { run_file, quantized, steps_there, folder: Some(folder), resume })
    }

    /// Writes the run file as it is now, unless that would take away what an earlier job of the run had done.
    fn flush(&mut self, training: &Training) -> Result<()> {
        if training.steps_done() < self.steps_there {
            return Ok(());
        }
        self.run_file.set_warnings(training.job.warnings());
        let (tables, checkpoint) = (training.tables(), training.checkpoint());
        // With an int8 network still to come it is not finished.
        match training.is_finished() && self.quantized.is_none() {
            true => self.run_file.finish(&tables, Some(&checkpoint)),
            false => self.run_file.flush(&tables, Some(&checkpoint)),
        }
    }
}

/// Trains to the last of `all` epochs, writing the run file after each. The signal that stopped it before, if one did, and
/// whether the last epoch's run file could be written.
fn epochs(
    training: &mut Training,
    checkpoints: &mut Checkpoints,
    mut outputs: Option<&mut Outputs>,
    all: usize,
) -> Result<(Option<usize>, bool)> {
    let mut written = true;
    loop {
        match training.epoch(checkpoints)? {
            Progress::Epoch => {}
            Progress::Stopped(signal) => return Ok((Some(signal), written)),
            Progress::Finished => return Ok((None, written)),
        }
        if let Some(outputs) = &mut outputs {
            console::print_epoch(training.record.epochs(), all);
            written = match outputs.flush(training) {
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
