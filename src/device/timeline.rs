//! Spans of a traced step on one rank, by the host clock of its process.

use std::sync::OnceLock;
use std::time::Instant;

use super::recorder::Message;
use super::{Clock, Moment};
use crate::error::Result;
use crate::metrics::Part;
use crate::sys::gpu::Event;
use crate::units::Second;

/// What a rank does side by side with other things.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Computation, and waiting for anything.
    Compute,
    /// Collectives.
    Communication,
}

impl Lane {
    /// Both, in the order of their numbers in traces.
    pub const ALL: [Lane; 2] = [Lane::Compute, Lane::Communication];

    /// Name in files.
    pub fn as_str(self) -> &'static str {
        match self {
            Lane::Compute => "compute",
            Lane::Communication => "communication",
        }
    }
}

/// Name of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    /// A part of the step.
    Part(Part),
    /// The moment when the last gradient of a bucket was complete.
    Ready,
}

impl Name {
    /// Name in files.
    pub fn as_str(self) -> &'static str {
        match self {
            Name::Part(part) => part.as_str(),
            Name::Ready => "ready",
        }
    }

    /// The name in the order of its [`number`](Self::number)s; `None` for other numbers.
    pub fn numbered(number: usize) -> Option<Name> {
        match Part::ALL.get(number) {
            Some(part) => Some(Name::Part(*part)),
            None => (number == Part::ALL.len()).then_some(Name::Ready),
        }
    }

    /// Number of the name, as ranks send it.
    pub fn number(self) -> usize {
        match self {
            Name::Part(part) => part as usize,
            Name::Ready => Part::ALL.len(),
        }
    }
}

/// A span of a traced step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TraceSpan {
    /// Lane of the span. Spans of one lane lie one after the other, or one in the other.
    pub lane: Lane,
    /// What was done.
    pub name: Name,
    /// Buffer that it was done with, of communication.
    pub message: Message,
    /// Seconds since [`origin`].
    pub start: Second,
    /// Seconds since [`origin`], not before `start`.
    pub end: Second,
}

/// Moment from which this process counts the seconds of its spans.
pub fn origin() -> Instant {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    *ORIGIN.get_or_init(Instant::now)
}

/// Seconds since [`origin`] at `instant`; negative before it.
pub fn since_origin(instant: Instant) -> Second {
    let origin = origin();
    match instant.checked_duration_since(origin) {
        Some(after) => after.as_secs_f64(),
        None => -origin.duration_since(instant).as_secs_f64(),
    }
}

/// The spans of a step so far, between moments that may not be complete.
pub(super) struct Timeline {
    /// On a GPU, an event and the seconds since the origin when it was complete.
    base: Option<(Event, Second)>,
    spans: Vec<(Lane, Name, Message, Moment, Moment)>,
}

impl Timeline {
    /// An empty timeline of work that `clock` times.
    pub fn new(clock: &Clock) -> Result<Timeline> {
        let base = match clock {
            Clock::Host | Clock::Waiting(_) => None,
            Clock::Events(stream) => {
                let event = stream.event()?;
                stream.synchronize()?;
                Some((event, since_origin(Instant::now())))
            }
        };
        Ok(Timeline { base, spans: Vec::with_capacity(64) })
    }

    /// Adds a span.
    pub fn push(&mut self, lane: Lane, name: Name, message: Message, from: &Moment, to: &Moment) {
        self.spans.push((lane, name, message, from.clone(), to.clone()));
    }

    /// Number of spans.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// The spans in seconds since the origin.
    pub fn spans(self) -> Result<Vec<TraceSpan>> {
        let seconds = |moment: &Moment| match (moment, &self.base) {
            (Moment::Host(instant), _) => Ok(since_origin(*instant)),
            (Moment::Gpu(event), Some((base, at))) => {
                event.wait()?;
                Ok(at + event.since(base)?)
            }
            (Moment::Gpu(_), None) => unreachable!("events come from a clock of events"),
        };
        let span = |(lane, name, message, from, to): &(Lane, Name, Message, Moment, Moment)| {
            let start = seconds(from)?;
            Ok(TraceSpan { lane: *lane, name: *name, message: *message, start, end: seconds(to)?.max(start) })
        };
        self.spans.iter().map(span).collect()
    }
}
