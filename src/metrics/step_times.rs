//! Times of the parts of a step.

use std::ffi::CStr;

use super::definitions;
use crate::table::Definition;
use crate::units::Second;

/// A part of a step's time, in the order of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Waiting for the next batch.
    Data,
    /// The forward pass and the loss.
    Forward,
    /// The backward pass, without waiting for collectives.
    Backward,
    /// Collectives from the arrival of the slowest rank to their end, hidden or not; with compressed gradients including
    /// compression and decompression.
    Comm,
    /// Waiting for slower ranks before a collective could start.
    CommWait,
    /// Time of the step during which this rank did nothing but wait for collectives.
    CommExposed,
    /// The optimizer's update.
    Optimizer,
    /// The whole step.
    Step,
}

impl Part {
    /// All parts, in the order of the tables.
    pub const ALL: [Part; 8] = [
        Part::Data,
        Part::Forward,
        Part::Backward,
        Part::Comm,
        Part::CommWait,
        Part::CommExposed,
        Part::Optimizer,
        Part::Step,
    ];

    /// Name, unit and meaning of the part.
    pub fn definition(self) -> &'static Definition {
        match self {
            Part::Data => &definitions::DATA,
            Part::Forward => &definitions::FORWARD,
            Part::Backward => &definitions::BACKWARD,
            Part::Comm => &definitions::COMM,
            Part::CommWait => &definitions::COMM_WAIT,
            Part::CommExposed => &definitions::COMM_EXPOSED,
            Part::Optimizer => &definitions::OPTIMIZER,
            Part::Step => &definitions::STEP,
        }
    }

    /// Name of the part's column in files.
    pub fn as_str(self) -> &'static str {
        self.definition().name
    }

    /// Name of the part's NVTX range.
    pub fn range_name(self) -> &'static CStr {
        match self {
            Part::Data => c"data",
            Part::Forward => c"forward",
            Part::Backward => c"backward",
            Part::Comm => c"comm",
            Part::CommWait => c"comm_wait",
            Part::CommExposed => c"comm_exposed",
            Part::Optimizer => c"optimizer",
            Part::Step => c"step",
        }
    }

    /// Whether the part is time of collectives, which a single rank does not have.
    pub fn is_comm(self) -> bool {
        matches!(self, Part::Comm | Part::CommWait | Part::CommExposed)
    }
}

/// Seconds of one step on one rank, by part.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StepTimes {
    seconds: [f32; Part::ALL.len()],
}

impl StepTimes {
    /// Number of parts, the length of [`as_array`](Self::as_array).
    pub const PARTS: usize = Part::ALL.len();

    /// Restores the times from the values of [`as_array`](Self::as_array), as another rank sent them.
    ///
    /// # Panics
    /// There are not [`PARTS`](Self::PARTS) values.
    pub fn from_slice(seconds: &[f32]) -> StepTimes {
        StepTimes { seconds: seconds.try_into().expect("as many numbers as parts") }
    }

    /// Seconds of `part`.
    pub fn get(&self, part: Part) -> f32 {
        self.seconds[part as usize]
    }

    /// Adds `seconds` to `part`.
    pub fn add(&mut self, part: Part, seconds: Second) {
        self.seconds[part as usize] += seconds as f32;
    }

    /// Sets one part.
    pub fn set(&mut self, part: Part, seconds: Second) {
        self.seconds[part as usize] = seconds as f32;
    }

    /// All parts in the order of [`Part::ALL`].
    pub fn as_array(&self) -> &[f32; Self::PARTS] {
        &self.seconds
    }
}
