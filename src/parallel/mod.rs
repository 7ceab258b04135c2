//! Reduction of each gradient as soon as it is complete. In: a model, its device and a communicator. Out: a [`Replica`] that
//! keeps its parameters equal on all ranks: hooks on the gradients tell when a bucket is complete, and its all-reduce starts
//! while the backward pass goes on. Never calls MPI itself, never updates a parameter.

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
