//! Samples and labels. In: the `[data]` section. Out: [`Datasets`], whose samples are read or made by index; the indices that each rank
//! draws in an epoch ([`Sampler`]); and a [`Feed`] of batches, made by a [`Loader`] on other threads, or by a device from its own copy
//! of the samples.
//!
//! A data set has a [`Form`] and a source: files of several formats, read sample by sample while they are trained on; a set that is
//! made in memory, one copy per host; or samples that are made when they are needed. What lies at `data.dir` decides which. Beside
//! the copy per host nothing here talks to other ranks: a rank's samples follow from its number and the seed.

mod array;
mod augment;
mod chunks;
mod cifar;
mod dataset;
mod form;
mod generated;
mod idx;
mod loader;
mod npy;
mod open;
mod prepare;
mod resident;
mod sampler;
mod shared;
mod source;
mod synthetic;

use std::sync::Arc;

pub use augment::AugmentSeed;
pub use cifar::{CIFAR10, CIFAR100, Cifar};
pub use dataset::Dataset;
pub use form::Form;
pub use loader::{Batch, BatchPlan, Loader, LoaderOptions};
pub use open::{open, open_shared};
pub use resident::{Batches, Feed};
pub use sampler::{Sampler, samples_per_rank};
pub use source::Reads;

/// Data sets of a run.
pub struct Datasets {
    /// Data set to train on.
    pub train: Arc<Dataset>,
    /// Data set to test on, of the same form.
    pub test: Arc<Dataset>,
    /// Name for the header and the run file, with the place it was read from.
    pub name: String,
}

impl Datasets {
    /// Form of the samples.
    pub fn form(&self) -> Form {
        self.train.form()
    }
}
