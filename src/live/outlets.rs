//! The files that a training writes while it runs: opened before the first step, by rank 0, with one error for all ranks.

use std::path::Path;

use super::Interval;
use super::board::Board;
use super::log::{Ending, Epoch, Event, Log, Start};
use crate::config::Metrics;
use crate::error::{Error, Result};
use crate::launch::Job;
use crate::output;

/// Log and event files of a training, on rank 0; none on other ranks.
pub struct Outlets {
    log: Option<Log>,
    board: Option<Board>,
    /// Whether a failure to write was reported: once is enough.
    has_failed: bool,
}

impl Outlets {
    /// Neither log nor event files.
    pub fn none() -> Outlets {
        Outlets { log: None, board: None, has_failed: false }
    }

    /// Opens what `metrics` names and writes nothing yet. `run_file` is the training's run file, on rank 0. Files that are there are
    /// continued if the training `goes_on`; `force` replaces them otherwise. A collective.
    ///
    /// # Errors
    /// [`Error::Output`], [`Error::OutputOwned`] or [`Error::OutputExists`] if a file cannot be written or must not be touched.
    pub fn open(job: &Job, metrics: &Metrics, run_file: Option<&Path>, goes_on: bool, force: bool) -> Result<Outlets> {
        let mut outlets = Outlets::none();
        if !metrics.log.is_empty() {
            let path = Path::new(&metrics.log);
            job.agree(run_file.map_or(Ok(()), |run_file| is_another(path, run_file)))?;
            let owner = output::claim_at(job, path, force)?;
            outlets.log = job.agree(owner.map(|owner| Log::open(owner, goes_on, force)).transpose())?;
        }
        if !metrics.tensorboard.is_empty() {
            let folder = Path::new(&metrics.tensorboard);
            let open = || Board::open(folder, job.host_name(), goes_on, force);
            outlets.board = job.agree(job.is_root().then(open).transpose())?;
        }
        Ok(outlets)
    }

    /// Whether there is neither log nor event files.
    pub fn are_none(&self) -> bool {
        self.log.is_none() && self.board.is_none()
    }

    pub(super) fn start(&mut self, start: &Start) {
        self.log(Event::Start(start));
        self.board(|board| board.start(start.step));
    }

    pub(super) fn interval(&mut self, interval: &Interval) {
        self.log(Event::Interval(interval));
        let scalars = [
            ("loss/train", interval.loss),
            ("images_per_second", interval.images_per_second),
            ("exposed_share", interval.exposed_share),
            ("lr", interval.lr),
        ];
        self.board(|board| board.scalars(interval.step, &scalars));
    }

    pub(super) fn epoch(&mut self, epoch: &Epoch) {
        self.log(Event::Epoch(epoch));
        let scalars = [("loss/test", epoch.test_loss), ("accuracy/test", epoch.test_accuracy)];
        self.board(|board| board.scalars(epoch.step, &scalars));
    }

    pub(super) fn end(&mut self, step: usize, outcome: Ending) {
        self.log(Event::End { step, outcome });
    }

    fn log(&mut self, event: Event) {
        if let Some(log) = &mut self.log {
            let written = log.write(event);
            report(&mut self.has_failed, log.path(), written);
        }
    }

    fn board(&mut self, write: impl FnOnce(&mut Board) -> std::io::Result<()>) {
        if let Some(board) = &mut self.board {
            let written = write(board);
            report(&mut self.has_failed, board.path(), written);
        }
    }
}

/// Reports the first failure to write: what a training computes need not be lost for it.
fn report(has_failed: &mut bool, path: &Path, written: std::io::Result<()>) {
    if let Err(error) = written
        && !std::mem::replace(has_failed, true)
    {
        ::log::error!(
            "{}: not written: {error}; the training continues, tries again at the next interval, and does not say so again",
            path.display()
        );
    }
}

/// Checks that the log is not the run file.
fn is_another(log: &Path, run_file: &Path) -> Result<()> {
    let whole = |path: &Path| std::path::absolute(path).ok();
    if whole(log) != whole(run_file) {
        return Ok(());
    }
    let expected = "is the run file: name another file for the log".into();
    let value = log.display().to_string();
    Err(Error::ConfigValue { place: "metrics".into(), key: "metrics.log".into(), value, expected })
}
