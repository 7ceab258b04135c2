//! The clock of a step. A CPU does what it is told before the call returns; a GPU does it later, so its times are between
//! events, read when they have happened.

use std::time::Instant;

use super::Target;
use crate::config::Timing;
use crate::error::Result;
use crate::metrics::{Part, StepTimes};
use crate::sys::gpu::{Event, Stream};
use crate::units::Second;

/// Tells when something is done.
#[derive(Clone)]
pub enum Clock {
    /// When the call returns.
    Host,
    /// When the GPU has done all that it was asked to, waiting for that: no overlap.
    Waiting(Stream),
    /// The same without waiting.
    Events(Stream),
}

/// A moment of a [`Clock`].
pub enum Moment {
    /// Now.
    Host(Instant),
    /// When the GPU comes to it.
    Gpu(Event),
}

impl Clock {
    /// Of what `target` does, as a step is timed.
    pub fn of(target: Target, timing: Timing) -> Result<Clock> {
        Ok(match (target, timing) {
            (Target::Cpu | Target::Emulated, _) => Clock::Host,
            (Target::Gpu { index, .. }, Timing::Profile) => Clock::Waiting(Stream::of_tensors(index)?),
            (Target::Gpu { index, .. }, Timing::Overlap) => Clock::Events(Stream::of_tensors(index)?),
        })
    }

    /// The present moment, or on a GPU the one when all is done that it was asked to do so far.
    pub fn now(&self) -> Result<Moment> {
        match self {
            Clock::Host => Ok(Moment::Host(Instant::now())),
            Clock::Waiting(stream) => stream.synchronize().map(|()| Moment::Host(Instant::now())),
            Clock::Events(stream) => Ok(Moment::Gpu(stream.event()?)),
        }
    }
}

/// Seconds from one moment to another of the same clock, once both have come. Error: the GPU has failed.
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

/// The times of a step on one rank, of which some may not be over.
#[derive(Default)]
pub struct StepRecorder {
    known: StepTimes,
    later: Vec<(Part, Moment, Moment)>,
}

impl StepRecorder {
    /// Adds seconds to a part.
    pub fn add(&mut self, part: Part, seconds: Second) {
        self.known.add(part, seconds);
    }

    /// Adds the time from one moment to another of the same clock.
    pub fn span(&mut self, part: Part, from: Moment, to: Moment) {
        match (from, to) {
            (Moment::Host(from), Moment::Host(to)) => self.add(part, to.duration_since(from).as_secs_f64()),
            (from, to) => self.later.push((part, from, to)),
        }
    }

    /// Adds the time since a moment of `clock`.
    pub fn since(&mut self, part: Part, from: Moment, clock: &Clock) -> Result<()> {
        self.span(part, from, clock.now()?);
        Ok(())
    }

    /// The times, waiting for those that are not over. Error: the GPU has failed.
    pub fn resolve(&mut self) -> Result<StepTimes> {
        for (part, from, to) in self.later.drain(..) {
            self.known.add(part, seconds_between(&from, &to)?);
        }
        Ok(self.known)
    }
}
