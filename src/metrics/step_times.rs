//! The parts of a step.

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
    /// Collectives from the moment every rank had come to their end, hidden or not; with compressed gradients also compressing
    /// and restoring them.
    Comm,
    /// Waiting for slower ranks before a collective could start.
    CommWait,
    /// The time of the step during which this rank did nothing but wait for collectives.
    CommExposed,
    /// The optimiser's update.
    Optimizer,
    /// The whole step.
    Step,
}

impl Part {
    /// All parts.
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

    /// Name, unit and meaning.
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

    /// Column in files.
    pub fn as_str(self) -> &'static str {
        self.definition().name
    }

    /// Whether the part is time of collectives, which one rank alone does not have.
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

    /// From [`as_array`](Self::as_array)'s numbers, as another rank sent them. Panics if they are not `PARTS`.
    pub fn from_slice(seconds: &[f32]) -> StepTimes {
        StepTimes { seconds: seconds.try_into().expect("as many numbers as parts") }
    }

    /// The seconds of one part.
    pub fn get(&self, part: Part) -> f32 {
        self.seconds[part as usize]
    }

    /// Adds to one part.
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
