//! Reduction of each gradient as soon as it is complete. In: a model, its device and a communicator. Out: a [`Replica`] that
//! keeps its parameters equal on all ranks: forward and backward pass by segments, where each segment's gradients are
//! all-reduced while the segments before it still compute. Never calls MPI itself, never updates a parameter.

mod batch_norm;
mod bucket;
mod compress;
mod exchange;
mod flat;
mod local;
mod pass;
mod replica;
mod tally;
mod worker;

pub use batch_norm::SyncBatchNorm;
pub use bucket::Bucket;
pub use compress::Reducer;
pub use flat::{Flat, FlatState, FlatTensor, norm};
pub use local::LocalSteps;
pub use replica::Replica;
pub use tally::StepResult;
