//! The part of an epoch that is done, as far as this rank knows it.

use super::resume::{Restoring, Saving};
use crate::device::{StepRecorder, TraceSpan};
use crate::error::Result;
use crate::live::Measured;
use crate::metrics::{Part, StepTimes};
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
    shown: Shown,
}

/// What the view of the training has had of an epoch.
#[derive(Default)]
struct Shown {
    steps: usize,
    result: StepResult,
    /// Number of leading entries of `times` that it has had.
    times: usize,
    /// Sums of times that rank 0 has taken, but not the view.
    rest: Measured,
}

impl Shown {
    fn add(&mut self, times: &StepTimes) {
        self.rest.step += f64::from(times.get(Part::Step));
        self.rest.exposed += f64::from(times.get(Part::CommExposed));
    }
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
        let times: Vec<StepTimes> = steps.iter_mut().map(StepRecorder::resolve).collect::<Result<_>>()?;
        times[self.shown.times..].iter().for_each(|times| self.shown.add(times));
        self.shown.times = 0;
        Ok((times, steps.iter_mut().map(StepRecorder::spans).collect::<Result<_>>()?))
    }

    /// Steps and their times since the last call, and loss and correct predictions on this rank. Waits for the device.
    ///
    /// # Errors
    /// The device has failed.
    pub fn take_measured(&mut self) -> Result<(Measured, StepResult)> {
        for index in self.shown.times..self.times.len() {
            let times = self.times[index].resolve()?;
            self.shown.add(&times);
        }
        self.shown.times = self.times.len();
        let StepResult { loss_sum, correct, samples } = std::mem::replace(&mut self.shown.result, self.result);
        let result = StepResult {
            loss_sum: self.result.loss_sum - loss_sum,
            correct: self.result.correct - correct,
            samples: self.result.samples - samples,
        };
        let steps = self.steps - std::mem::replace(&mut self.shown.steps, self.steps);
        Ok((Measured { steps, ..std::mem::take(&mut self.shown.rest) }, result))
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
        let steps = from.number("steps_in_epoch") as usize;
        PartialEpoch {
            steps,
            result,
            seconds: from.number("seconds"),
            times: Vec::new(),
            shown: Shown { steps, result, ..Shown::default() },
        }
    }
}
