//! What it cost: the clock of a step, the ledger of messages, bandwidths. Pure arithmetic on seconds and bytes; knows
//! neither MPI nor tensors.

mod bandwidth;
mod clock;
mod ledger;

pub use bandwidth::{algbw, all_reduce_busbw};
pub use clock::{Part, PartSummary, StepTimes, Summary, anatomy};
pub use ledger::{Entry, Kind, Ledger};
