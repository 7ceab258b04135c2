//! Files of a training, on rank 0: the run file, and the folder of its checkpoints. Known to be writable before the first step.

use std::time::{Duration, Instant};

use super::resume::Resume;
use super::start::Beginning;
use super::{GlobalBatch, Training};
use crate::config::Plan;
use crate::data::Datasets;
use crate::environment;
use crate::error::{Error, Result};
use crate::launch::Job;
use crate::store::{Attribute, Checkpoint, CheckpointFolder, Owner, RunFile, Table};

/// Share of a training's time that it may spend on writing the run file between epochs, however short the epochs and however slow
/// the file system.
const WRITING_SHARE: f64 = 0.02;

/// Run file of a training, and what its checkpoints begin with.
pub struct Outputs {
    run_file: RunFile,
    /// Time at which this was made.
    started: Instant,
    /// Duration of the last writing of the run file, and of all of them.
    writing: Option<[Duration; 2]>,
    /// Whether the run file holds every epoch that is done.
    is_current: bool,
    /// Whether the run file is finished by what follows the training.
    has_sequel: bool,
    /// Steps in the run file that is there: it stays until this training has done as many.
    steps_there: usize,
    /// Tables that the run file was last written with, once the training is finished.
    written: Vec<Table>,
    /// Folder of the checkpoints, until [`Checkpoints`](super::Checkpoints) writes there.
    pub folder: Option<CheckpointFolder>,
    /// Checkpoint to go on from, until the training has taken it in.
    pub resume: Option<Resume>,
}

impl Outputs {
    /// Prepares the run file at the place that `owner` owns, and its folder of checkpoints.
    ///
    /// # Errors
    /// A place cannot be written, or holds what `how` does not allow to be replaced.
    pub fn create(
        owner: Owner,
        how: Beginning,
        has_sequel: bool,
        plan: &Plan,
        job: &Job,
        datasets: &Datasets,
        batch: &GlobalBatch,
    ) -> Result<Outputs> {
        let Beginning { resume, identity, replace, force, steps_there, .. } = how;
        let mut environment = environment::attributes(job, Some(datasets));
        environment.extend(how.environment);
        environment.push(("global_batch".to_owned(), Attribute::Int(batch.samples as i64)));
        environment.extend(
            resume.as_ref().map(|resume| ("resumed_at_steps".to_owned(), Attribute::Ints(resume.resumed_at()))),
        );
        let mut run_file =
            RunFile::create_owned(owner, replace, identity, plan, environment, vec![environment::table(job)])?;
        run_file.set_written(plan.as_written());
        run_file.set_warnings(job.warnings()); // checkpoints have them, too
        let from = resume.as_ref().map(|resume| resume.path.as_path());
        let folder = CheckpointFolder::new(&run_file, plan.checkpoint.keep, from, force)?;
        Ok(Outputs {
            run_file,
            started: Instant::now(),
            writing: None,
            is_current: false,
            has_sequel,
            steps_there,
            written: Vec::new(),
            folder: Some(folder),
            resume,
        })
    }

    /// Path of the run file.
    pub fn path(&self) -> &std::path::Path {
        self.run_file.path()
    }

    /// Adds the network's operations per sample to `/environment` from the next flush on, or why they are not known.
    pub fn set_operations(&mut self, operations: Result<[u64; 2], &str>) {
        match operations {
            Ok([forward, training]) => {
                self.run_file.add_to_environment("operations_forward", Attribute::Int(forward as i64));
                self.run_file.add_to_environment("operations_training", Attribute::Int(training as i64));
            }
            Err(reason) => self.run_file.add_to_environment("operations_unknown", Attribute::Text(reason.into())),
        }
    }

    /// Adds a table that stays as it is, from the next flush on.
    pub fn add_table(&mut self, table: Table) {
        self.run_file.add_table(table);
    }

    /// Adds the operations per second of each rank's fastest matrix product to `/environment` from the next flush on, and their sum.
    pub fn set_peak(&mut self, ranks: &[f64]) {
        self.run_file.add_to_environment("peak_flops", Attribute::Float(ranks.iter().sum()));
        self.run_file.add_to_environment("peak_flops_of_ranks", Attribute::Floats(ranks.to_vec()));
    }

    /// Whether the run file holds every epoch that is done.
    pub fn is_current(&self) -> bool {
        self.is_current
    }

    /// Writes the run file after an epoch if it is the first or the last one, or if writing keeps within [`WRITING_SHARE`] of the
    /// time. A failure is logged: there may be room again later, and the training need not be lost for it.
    ///
    /// # Errors
    /// An error of [`RunFile::flush`] other than [`Error::Output`].
    pub fn after_epoch(&mut self, training: &Training) -> Result<()> {
        self.is_current = false;
        let allowed = self.started.elapsed().mul_f64(WRITING_SHARE);
        let is_due = self.writing.is_none_or(|[last, all]| all + 2 * last <= allowed); // this one, and the training's last
        if !is_due && !training.is_finished() {
            return Ok(());
        }
        match self.flush(training) {
            Err(error @ Error::Output { .. }) => {
                let epoch = training.record().epochs().len();
                log::error!(
                    "run file not written after epoch {epoch}: {error}; training continues and tries again after the next \
                     epoch"
                );
                Ok(())
            }
            result => result,
        }
    }

    /// Writes the run file as it is now, unless that would take away what an earlier job of the run had done.
    ///
    /// # Errors
    /// An error of [`RunFile::flush`].
    pub fn flush(&mut self, training: &Training) -> Result<()> {
        if training.steps_done() < self.steps_there {
            return Ok(());
        }
        let started = Instant::now();
        self.run_file.set_warnings(training.warnings());
        let (tables, checkpoint) = (training.tables(), training.checkpoint());
        match training.is_finished() && !self.has_sequel {
            true => self.run_file.finish(&tables, Some(&checkpoint))?,
            false => self.run_file.flush(&tables, Some(&checkpoint))?,
        }
        self.is_current = true;
        let (took, before) = (started.elapsed(), self.writing.map_or(Duration::ZERO, |[_, all]| all));
        self.writing = Some([took, before + took]);
        if training.is_finished() {
            self.written = tables;
        }
        Ok(())
    }

    /// Adds the epochs that the run file lacks after an error, which may have spoilt the weights: those in the file stay.
    pub fn keep_records(&mut self, training: &Training) {
        if self.is_current || self.writing.is_none() {
            return;
        }
        if let Err(error) = self.run_file.update(&training.tables()) {
            log::error!("the last epochs are missing in the run file: {error}");
        }
    }

    /// Takes the tables that the run file was last written with; empty before the training is finished.
    pub fn take_written(&mut self) -> Vec<Table> {
        std::mem::take(&mut self.written)
    }

    /// Writes the run file for the last time, with the tables of what followed the training.
    ///
    /// # Errors
    /// As [`RunFile::finish`].
    pub fn finish(&mut self, training: &Training, weights: &Checkpoint, more: &[Table]) -> Result<()> {
        self.run_file.set_warnings(training.warnings());
        let mut tables = training.tables();
        tables.extend_from_slice(more);
        self.run_file.finish(&tables, Some(weights))
    }
}
