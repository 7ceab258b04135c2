//! The clock of a step. A CPU completes an operation before the call returns; a GPU completes it later, so its times lie between
//! events that are read once they are complete.

use std::time::Instant;

use super::Target;
use crate::config::Timing;
use crate::error::Result;
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
#[derive(Clone)]
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
