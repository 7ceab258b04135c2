//! When a training is saved and when it stops: by the clock, by epochs, by a signal. All ranks decide together, at the same step.
//! The file is written on a thread of its own; the step waits for the copy only.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::collective::Combine;
use crate::config;
use crate::error::{Error, Result};
use crate::launch::{Job, Signals, signal_name};
use crate::metrics::Kind;
use crate::store::{CheckpointFolder, Resumable, Written};
use crate::units::{format_bytes, format_seconds};

/// Interval at which the ranks ask each other about signals and the clock; steps that take longer are each followed by a
/// question.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// Next action of a training after a step, the same on all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Take the next step.
    Continue,
    /// Save, then take the next step.
    Save,
    /// Save and end: the signal of this number has come.
    Stop(usize),
}

/// Decides on and writes the checkpoints of one training.
pub struct Checkpoints {
    every: Option<Duration>,
    every_epochs: usize,
    signals: Option<Signals>,
    /// Folder of the checkpoints, on rank 0 while no file is being written.
    folder: Option<CheckpointFolder>,
    writing: Option<Writing>,
    saved: Instant,
    /// Time of the ranks' last question, and the step that it came before.
    asked: Option<(Instant, usize)>,
    ask_at: usize,
    /// Newest checkpoint that is written and complete.
    last: Option<PathBuf>,
}

impl Checkpoints {
    /// No checkpoints; signals end the process, as they do by default.
    pub fn none() -> Checkpoints {
        Checkpoints {
            every: None,
            every_epochs: 0,
            signals: None,
            folder: None,
            writing: None,
            saved: Instant::now(),
            asked: None,
            ask_at: 0,
            last: None,
        }
    }

    /// Checkpoints as configured, in the `folder` that rank 0 gives; `last` is the newest one there. From now on signals are
    /// caught.
    ///
    /// # Errors
    /// [`Error::Signals`] if signals cannot be caught.
    pub fn new(
        config: &config::Checkpoint,
        folder: Option<CheckpointFolder>,
        last: Option<&Path>,
    ) -> Result<Checkpoints> {
        let signals = Signals::listen().map_err(|error| Error::Signals { reason: error.to_string() })?;
        let seconds = 60.0 * config.every_minutes;
        Ok(Checkpoints {
            // An interval too long for a clock is none.
            every: Duration::try_from_secs_f64(seconds).ok().filter(|every| !every.is_zero()),
            every_epochs: config.every_epochs,
            signals: Some(signals),
            folder,
            last: last.map(Path::to_owned),
            ..Checkpoints::none()
        })
    }

    /// Decides between two steps, before `step`. A collective, which the ranks enter at the same steps.
    ///
    /// # Errors
    /// A rank is gone.
    pub fn after_step(&mut self, job: &Job, step: usize) -> Result<Decision> {
        if self.signals.is_none() || step < self.ask_at {
            return Ok(Decision::Continue);
        }
        self.ask(job, step, false)
    }

    /// Decides after `epochs` epochs, before `step`. A collective.
    ///
    /// # Errors
    /// A rank is gone.
    pub fn after_epoch(&mut self, job: &Job, epochs: usize, step: usize) -> Result<Decision> {
        if self.signals.is_none() {
            return Ok(Decision::Continue);
        }
        self.ask(job, step, self.every_epochs > 0 && epochs.is_multiple_of(self.every_epochs))
    }

    fn ask(&mut self, job: &Job, step: usize, due: bool) -> Result<Decision> {
        if self.writing.as_ref().is_some_and(|writing| writing.thread.is_finished()) {
            self.collect();
        }
        let signal = self.signals.as_ref().map_or(0, Signals::received);
        // Rank 0's clock decides. While a file is being written the answer is no: the next question comes soon enough, and no
        // step waits.
        let timely = self.every.is_some_and(|every| self.saved.elapsed() >= every) && self.writing.is_none();
        let steps = match self.asked {
            Some((before, first)) if step > first => {
                ASK_EVERY.as_secs_f64() * (step - first) as f64 / before.elapsed().as_secs_f64()
            }
            _ => 1.0, // the time of a step is not known yet
        };
        let steps = steps.clamp(1.0, 1000.0).floor();
        let mut answers = [signal as f64, f64::from(job.is_root() && timely), if job.is_root() { steps } else { 0.0 }];
        job.communicator.all_reduce(Kind::Control, Combine::Max, &mut answers)?;
        let [signal, timely, steps] = answers.map(|answer| answer as usize);
        self.asked = Some((Instant::now(), step));
        self.ask_at = step + steps;
        Ok(match signal {
            0 if due || timely > 0 => Decision::Save,
            0 => Decision::Continue,
            signal => Decision::Stop(signal),
        })
    }

    /// Writes the `content` that rank 0 gives, on another thread; waits only for a file that is still being written. `copied` is
    /// the time that the copy took.
    pub fn write(&mut self, step: usize, content: Option<Resumable>, copied: Duration) {
        self.saved = Instant::now();
        self.collect();
        if let (Some(folder), Some(content)) = (self.folder.take(), content) {
            self.writing = Some(Writing::start(folder, step, content, copied));
        }
    }

    /// Waits for the file that is being written. Returns the newest complete checkpoint, on rank 0.
    ///
    /// # Errors
    /// The file could not be written.
    pub fn finish(&mut self) -> Result<Option<&Path>> {
        match self.collect() {
            Some(error) => Err(error),
            None => Ok(self.last.as_deref()),
        }
    }

    /// Ignores further signals until the process has ended, so that its exit status is the one of the stopped training.
    pub fn stopping(&mut self) {
        if let Some(signals) = self.signals.take() {
            signals.keep();
        }
    }

    /// Waits for the file that is being written, if there is one. A failure is logged and the training continues: the checkpoint
    /// before is still there, and the disk may have room again.
    fn collect(&mut self) -> Option<Error> {
        let Writing { step, copied, thread } = self.writing.take()?;
        let outcome = thread.join().expect("a panic ends the job");
        self.folder = Some(outcome.folder);
        match outcome.written {
            Ok(written) => {
                log::info!(
                    "checkpoint of step {step}: {} to {}, copied in {}, written in {}",
                    format_bytes(written.bytes),
                    written.path.display(),
                    format_seconds(copied.as_secs_f64()),
                    format_seconds(outcome.seconds)
                );
                self.last = Some(written.path);
                None
            }
            Err(error) => {
                log::error!(
                    "checkpoint of step {step} not written: {error}; training continues, and the checkpoint before it stays"
                );
                Some(error)
            }
        }
    }
}

/// Error with which a training ends that `signal` has stopped before `step`, with its last `checkpoint`.
pub fn stopped(signal: usize, step: usize, checkpoint: Option<&Path>) -> Error {
    let checkpoint = checkpoint.map(Path::to_owned).unwrap_or_default();
    Error::Stopped { signal: signal_name(signal), step, checkpoint }
}

/// Checkpoint that a thread is writing.
struct Writing {
    step: usize,
    copied: Duration,
    thread: JoinHandle<Outcome>,
}

struct Outcome {
    folder: CheckpointFolder,
    written: Result<Written>,
    seconds: f64,
}

impl Writing {
    fn start(mut folder: CheckpointFolder, step: usize, content: Resumable, copied: Duration) -> Writing {
        let write = move || {
            let started = Instant::now();
            let written = folder.write(step, &content);
            Outcome { folder, written, seconds: started.elapsed().as_secs_f64() }
        };
        let thread = std::thread::Builder::new().name("hpml-checkpoint".into()).spawn(write);
        Writing { step, copied, thread: thread.expect("a thread can be started") }
    }
}
