//! The clock of a step. A CPU completes an operation before the call returns; a GPU completes it later, so its times lie between
//! events that are read once they are complete.

use std::time::Instant;

use super::Target;
use crate::config::Timing;
use crate::error::Result;
use crate::metrics::{Part, StepTimes};
use crate::sys::gpu::{Event, Stream};
use crate::units::Second;

/// Source of the moments between which a step's parts are timed.
#[derive(Clone)]
pub enum Clock {
    /// Host clock.
    Host,
    /// Synchronizes the stream, then reads the host clock (profile mode): nothing overlaps.
    Waiting(Stream),
    /// Records a CUDA event; the time is read later.
    Events(Stream),
}

/// A moment of a [`Clock`].
pub enum Moment {
    /// Reading of the host clock.
    Host(Instant),
    /// Event on a GPU, whose time is known once it is complete.
    Gpu(Event),
}

impl Clock {
    /// The clock for work on `target`, under `metrics.timing`.
    ///
    /// # Errors
    /// Returns [`Error::Gpu`](crate::error::Error::Gpu) if the GPU has failed.
    pub fn of(target: Target, timing: Timing) -> Result<Clock> {
        Ok(match (target, timing) {
            (Target::Cpu | Target::Emulated, _) => Clock::Host,
            (Target::Gpu { index, .. }, Timing::Profile) => Clock::Waiting(Stream::of_tensors(index)?),
            (Target::Gpu { index, .. }, Timing::Overlap) => Clock::Events(Stream::of_tensors(index)?),
        })
    }

    /// The present moment; on a GPU, the moment when all work enqueued before it is complete.
    ///
    /// # Errors
    /// Returns [`Error::Gpu`](crate::error::Error::Gpu) if the GPU has failed.
    pub fn now(&self) -> Result<Moment> {
        match self {
            Clock::Host => Ok(Moment::Host(Instant::now())),
            Clock::Waiting(stream) => stream.synchronize().map(|()| Moment::Host(Instant::now())),
            Clock::Events(stream) => Ok(Moment::Gpu(stream.event()?)),
        }
    }
}

/// Seconds from one moment to another of the same clock; waits until both are complete.
///
/// # Errors
/// Returns [`Error::Gpu`](crate::error::Error::Gpu) if the GPU has failed.
pub fn seconds_between(from: &Moment, to: &Moment) -> Result<Second> {
    match (from, to) {
        (Moment::Host(from), Moment::Host(to)) => Ok(to.duration_since(*from).as_secs_f64()),
        (Moment::Gpu(from), Moment::Gpu(to)) => {
            to.wait()?;
            to.since(from)
        }
        _ => unreachable!("two moments of one clock"),
    }
}

/// The times of one step on one rank, some of which may still lie between incomplete events.
#[derive(Default)]
pub struct StepRecorder {
    known: StepTimes,
    later: Vec<(Part, Moment, Moment)>,
}

impl StepRecorder {
    /// Adds `seconds` to `part`.
    pub fn add(&mut self, part: Part, seconds: Second) {
        self.known.add(part, seconds);
    }

    /// Adds the time between two moments of one clock to `part`.
    pub fn span(&mut self, part: Part, from: Moment, to: Moment) {
        match (from, to) {
            (Moment::Host(from), Moment::Host(to)) => self.add(part, to.duration_since(from).as_secs_f64()),
            (from, to) => self.later.push((part, from, to)),
        }
    }

    /// Adds the time since `from`, a moment of `clock`, to `part`.
    ///
    /// # Errors
    /// Returns [`Error::Gpu`](crate::error::Error::Gpu) if the GPU has failed.
    pub fn since(&mut self, part: Part, from: Moment, clock: &Clock) -> Result<()> {
        self.span(part, from, clock.now()?);
        Ok(())
    }

    /// The times of the step; waits until all events are complete.
    ///
    /// # Errors
    /// Returns [`Error::Gpu`](crate::error::Error::Gpu) if the GPU has failed.
    pub fn resolve(&mut self) -> Result<StepTimes> {
        for (part, from, to) in self.later.drain(..) {
            self.known.add(part, seconds_between(&from, &to)?);
        }
        Ok(self.known)
    }
}
