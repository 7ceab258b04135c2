//! What is trained on, and which of it each rank draws.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Data {
    pub dir: String,
    pub train_samples: usize,
    pub test_samples: usize,
    pub shuffle: bool,
    pub set_epoch: bool,
    pub shares: Shares,
    pub drop_last: bool,
    pub augment: bool,
    pub mean: [f32; 3],
    pub std: [f32; 3],
    pub prefetch: usize,
}

/// Which samples of an epoch a rank draws. The first is right; the others are mistakes to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shares {
    /// Its part of one order that all ranks share, as DistributedSampler.
    Disjoint,
    /// Its part of an order of its own: each rank has seeded its sampler differently.
    OwnOrder,
    /// Rank 0's part, as all others do.
    Same,
}
