//! The log of a training: a file of JSON lines (`metrics.log`), an object per line, each written at once, so that a job that is
//! killed leaves whole lines.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use serde::Serialize;

use super::Interval;
use crate::error::{Error, Result};
use crate::store::Owner;

/// Start of a job that trains.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Start {
    /// Version of hpml.
    pub hpml: &'static str,
    /// Id of the run.
    pub run_id: String,
    /// Run file.
    pub run_file: String,
    /// Optimizer steps done: 0, or those of the checkpoint that the job goes on from.
    pub step: usize,
    /// Steps of the whole training.
    pub steps: usize,
    /// Epochs of the whole training.
    pub epochs: usize,
    /// Number of ranks.
    pub ranks: usize,
    /// Samples of a step over all ranks.
    pub global_batch: usize,
    /// Network.
    pub model: &'static str,
    /// Name of the data.
    pub data: String,
}

/// Epoch that has ended, over all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Epoch {
    /// Number of the epoch, from 0.
    pub epoch: usize,
    /// Optimizer steps done, over all epochs.
    pub step: usize,
    /// Mean loss of the training samples.
    pub train_loss: f64,
    /// Correct predictions on the training samples, percent.
    pub train_accuracy: f64,
    /// Mean loss of the test samples.
    pub test_loss: f64,
    /// Correct predictions on the test samples, percent.
    pub test_accuracy: f64,
    /// Learning rate of the epoch's last step.
    pub lr: f64,
    /// Wall time of the training, without the test.
    pub seconds: f64,
    /// Wall time of the test.
    pub test_seconds: f64,
    /// Training samples of all ranks per second of `seconds`.
    pub images_per_second: f64,
    /// Exposed communication as a share of the steps' time on rank 0; NaN for one rank.
    pub exposed_share: f64,
}

/// Way in which a job that trains has ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ending {
    /// With its last step.
    Finished,
    /// By a signal, with a checkpoint.
    Stopped,
    /// By an error.
    Failed,
}

/// Object of the log.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub(super) enum Event<'a> {
    Start(&'a Start),
    Interval(&'a Interval),
    Epoch(&'a Epoch),
    End { step: usize, outcome: Ending },
}

#[derive(Serialize)]
struct Line<'a> {
    /// Time of writing, UTC, in ISO 8601.
    time: String,
    #[serde(flatten)]
    event: Event<'a>,
}

/// Log that is being written.
pub(super) struct Log {
    file: File,
    owner: Owner,
    /// Whether what is there is taken away before the first line.
    replace: bool,
    /// Whether the file ends within a line, which a full disk can leave.
    is_torn: bool,
}

impl Log {
    /// Opens the log that `owner` owns and writes nothing yet. A log that is there is continued if `goes_on`, and replaced with `force`.
    ///
    /// # Errors
    /// [`Error::Output`] if it cannot be written, [`Error::OutputExists`] if it is there and must not be touched.
    pub fn open(owner: Owner, goes_on: bool, force: bool) -> Result<Log> {
        let path = owner.target();
        let cannot = |reason: String| Error::Output { path: path.to_owned(), reason };
        // A FIFO would block the job until it is read.
        if std::fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            return Err(cannot("it is no file".into()));
        }
        let text = std::fs::read(path).unwrap_or_default();
        if !text.is_empty() && !goes_on && !force {
            return Err(Error::OutputExists { path: path.to_owned() });
        }
        let file =
            OpenOptions::new().append(true).create(true).open(path).map_err(|error| cannot(error.to_string()))?;
        let is_torn = text.last().is_some_and(|&last| last != b'\n');
        Ok(Log { file, replace: !goes_on && !text.is_empty(), is_torn, owner })
    }

    /// File of the log.
    pub fn path(&self) -> &Path {
        self.owner.target()
    }

    /// Writes one line.
    ///
    /// # Errors
    /// It cannot be written; the next line will not be joined to a part of it.
    pub fn write(&mut self, event: Event) -> std::io::Result<()> {
        self.owner.check().map_err(std::io::Error::other)?; // another job may have taken the file over
        if std::mem::take(&mut self.replace) {
            self.file.set_len(0)?;
            self.is_torn = false;
        }
        let line = Line { time: jiff::Timestamp::now().to_string(), event };
        let line = serde_json::to_string(&line).expect("numbers and texts have a JSON form");
        let text = format!("{}{line}\n", if self.is_torn { "\n" } else { "" });
        self.is_torn = true;
        self.file.write_all(text.as_bytes())?;
        self.is_torn = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Claim;

    fn open(path: &Path, goes_on: bool, force: bool) -> Result<Log> {
        Log::open(Claim::new(path, false).unwrap().wait().unwrap(), goes_on, force)
    }

    fn end(step: usize) -> Event<'static> {
        Event::End { step, outcome: Ending::Finished }
    }

    #[test]
    fn a_log_goes_on_after_a_torn_line_and_is_replaced_only_by_force() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.jsonl");
        open(&path, false, false).unwrap().write(end(1)).unwrap();
        assert!(matches!(open(&path, false, false), Err(Error::OutputExists { .. })));
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"ti").unwrap();
        let mut log = open(&path, true, false).unwrap();
        log.write(end(2)).unwrap();
        log.write(end(3)).unwrap();
        drop(log);
        let text = std::fs::read_to_string(&path).unwrap();
        let steps: Vec<_> = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).ok()).collect();
        let steps: Vec<_> = steps.into_iter().map(|line| line.map(|line| line["step"].clone())).collect();
        assert_eq!(steps, [Some(1.into()), None, Some(2.into()), Some(3.into())]);
        open(&path, false, true).unwrap().write(end(4)).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1);
    }

    #[test]
    fn what_is_not_a_number_is_null() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.jsonl");
        let interval = Interval {
            epoch: 0,
            step: 3,
            steps: 10,
            loss: 2.5,
            lr: 0.1,
            images_per_second: 100.0,
            exposed_share: f64::NAN,
            seconds_left: f64::INFINITY,
        };
        open(&path, false, false).unwrap().write(Event::Interval(&interval)).unwrap();
        let line: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(line["event"], "interval");
        assert!(line["exposed_share"].is_null() && line["seconds_left"].is_null() && line["loss"] == 2.5, "{line}");
    }
}
