//! How the ranks stay together: what they send each other, in which form and which way.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Parallel {
    pub bucket_mb: f64,
    pub all_reduce: Algorithm,
    pub buffers: BufferSync,
    pub broadcast_parameters: bool,
    pub same_seed: bool,
    pub lr_spread: f64,
    pub compression: Compression,
    pub compression_block: usize,
    pub compression_rank: usize,
    pub compression_start: usize,
    pub local_steps: usize,
}

impl Parallel {
    /// Whether all ranks must end every epoch with the same parameters.
    pub fn keeps_ranks_equal(&self) -> bool {
        self.broadcast_parameters && self.lr_spread == 0.0
    }
}

/// Which way an all-reduce of gradients goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// Shared, but MPI's for small buffers between hosts.
    Auto,
    /// Within a host through shared memory; between hosts one rank of each in a ring.
    Shared,
    /// A ring of all ranks over MPI's point-to-point messages, hosts or not.
    Ring,
    /// MPI_Allreduce.
    Mpi,
}

impl Algorithm {
    /// The name as in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::Auto => "auto",
            Algorithm::Shared => "shared",
            Algorithm::Ring => "ring",
            Algorithm::Mpi => "mpi",
        }
    }
}

/// How batch norm's running statistics stay together over the ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BufferSync {
    /// Rank 0's are broadcast before every step and every test, as DistributedDataParallel does.
    Broadcast,
    /// Their mean over the ranks is taken at the end of every epoch.
    Average,
    /// Every rank keeps its own; the checkpoint and the test use rank 0's and each rank's own.
    Local,
    /// Batch norm over the batches of all ranks, in the forward and in the backward pass: nothing is left to differ.
    Sync,
}

/// What an all-reduce of gradients sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// The gradients.
    None,
    /// Their upper halves, rounded.
    Bf16,
    /// Half precision, scaled into its range.
    Fp16,
    /// A byte each and a scale a block; what is lost is sent later.
    Int8,
    /// Thin matrices whose products come near; what is lost is sent later.
    PowerSgd,
}

impl Compression {
    /// The name as in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Bf16 => "bf16",
            Compression::Fp16 => "fp16",
            Compression::Int8 => "int8",
            Compression::PowerSgd => "powersgd",
        }
    }
}
