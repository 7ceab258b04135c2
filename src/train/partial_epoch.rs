//! The part of an epoch that is done, as far as this rank knows it.

use super::resume::{Restoring, Saving};
use crate::device::{StepRecorder, TraceSpan};
use crate::error::Result;
use crate::metrics::StepTimes;
use crate::parallel::StepResult;
use crate::store::Attribute;

/// Steps of the epoch under way, and what they gave on this rank.
#[derive(Default)]
pub struct PartialEpoch {
    steps: usize,
    result: StepResult,
    /// Seconds from the start of the first step to the end of the last, without the time between two jobs.
    seconds: f64,
    /// Times of the steps that rank 0 does not have yet.
    times: Vec<StepRecorder>,
}

impl PartialEpoch {
    /// Steps done.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Loss and correct predictions on this rank.
    pub fn result(&self) -> StepResult {
        self.result
    }

    /// Seconds of training.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// Counts a step with its `time`.
    pub fn add_step(&mut self, time: StepRecorder) {
        self.times.push(time);
        self.steps += 1;
    }

    /// Adds the result of one or more steps.
    pub fn add_result(&mut self, result: StepResult) {
        self.result.add(result);
    }

    /// Sets the seconds of training to `seconds`.
    pub fn set_seconds(&mut self, seconds: f64) {
        self.seconds = seconds;
    }

    /// Times of the last step, unless [`take_times`](Self::take_times) has taken them.
    pub fn last_times(&mut self) -> Option<&mut StepRecorder> {
        self.times.last_mut()
    }

    /// Times of the steps since the last call, and the spans of each. Waits for the device.
    ///
    /// # Errors
    /// The device has failed.
    pub fn take_times(&mut self) -> Result<(Vec<StepTimes>, Vec<Vec<TraceSpan>>)> {
        let mut steps = std::mem::take(&mut self.times);
        let times = steps.iter_mut().map(StepRecorder::resolve).collect::<Result<_>>()?;
        Ok((times, steps.iter_mut().map(StepRecorder::spans).collect::<Result<_>>()?))
    }

    /// Adds the counts to a checkpoint; `all` is the result over the ranks.
    pub fn capture(&self, all: StepResult, saving: &mut Saving) {
        saving.attribute("steps_in_epoch", Attribute::Int(self.steps as i64));
        saving.attribute("loss_sum", Attribute::Float(all.loss_sum));
        saving.attribute("correct", Attribute::Int(all.correct as i64));
        saving.attribute("samples", Attribute::Int(all.samples as i64));
        saving.attribute("seconds", Attribute::Float(self.seconds));
    }

    /// The part of an epoch that a checkpoint was written in. The result over all ranks counts as rank 0's.
    pub fn restored(from: &Restoring) -> PartialEpoch {
        let [correct, samples] = ["correct", "samples"].map(|name| from.of_root(name) as usize);
        let result = StepResult { loss_sum: from.of_root("loss_sum"), correct, samples };
        PartialEpoch {
            steps: from.number("steps_in_epoch") as usize,
            result,
            seconds: from.number("seconds"),
            times: Vec::new(),
        }
    }
}
