//! The timeline: each span of the steps of `metrics.trace_steps`, on every rank, by rank 0's clock. In: the spans of a step's record.
//! Out: the tables `/trace` and `/clocks`, what the ranks waited for, and the trace in Chrome's form, which Perfetto and Holistic Trace
//! Analysis read.

mod chrome;
mod critical;
mod record;

pub use chrome::{ChromeEvent, chrome_trace, hta_trace};
pub use critical::{Cause, Exposed, LONG_STEP, Slowest, causes, sentence, slowest, step_times};
pub use record::{TraceRecord, clocks, trace};

use crate::device::{Lane, Name};
use crate::units::{Bytes, Second};

/// A span of a traced step of one rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row {
    /// MPI rank.
    pub rank: usize,
    /// Optimizer step, from 0.
    pub step: usize,
    /// Lane of the span.
    pub lane: Lane,
    /// What was done.
    pub name: Name,
    /// Bucket of gradients that it was done with, if it was one.
    pub bucket: Option<usize>,
    /// Bytes of the message as the ledger counts them; 0 without one.
    pub bytes: Bytes,
    /// Samples that the rank trained on in the step; 0 if an earlier build wrote the file.
    pub samples: usize,
    /// Seconds on rank 0's clock since the trace of the first job began; those of a resumed job follow on those before it.
    pub start: Second,
    /// Seconds on rank 0's clock, as `start`.
    pub end: Second,
}

impl Default for Row {
    fn default() -> Row {
        let (lane, name) = (Lane::Compute, Name::Ready);
        Row { rank: 0, step: 0, lane, name, bucket: None, bytes: 0, samples: 0, start: 0.0, end: 0.0 }
    }
}

impl Row {
    /// Duration of the span.
    pub fn seconds(&self) -> Second {
        self.end - self.start
    }
}

/// A measurement of one rank's clock against rank 0's.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ClockRow {
    /// MPI rank.
    pub rank: usize,
    /// Moment of the measurement, seconds on rank 0's clock as in [`Row::start`].
    pub at: Second,
    /// Seconds that the rank's clock lies ahead of rank 0's, each since its process's own beginning.
    pub offset: Second,
    /// Greatest error of `offset`: half of the least round trip.
    pub uncertainty: Second,
}
