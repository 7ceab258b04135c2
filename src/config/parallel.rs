//! Section `[parallel]`: what the ranks send each other, in which form and by which algorithm.

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};

/// Section `[parallel]` of the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Parallel {
    /// Smallest bucket of gradients that is all-reduced at once, in MB (10^6 bytes), of whole
    /// parameters; 1 MB completes the bucket of the last parameters, which is reduced first.
    pub bucket_mb: f64,
    /// All-reduce of the gradients: shared (shared memory within a host, a ring of one rank per
    /// host between hosts), halving (halving and doubling between hosts instead), hierarchical (rings
    /// within racks of hosts, and between racks what each rack has summed), ring (over all ranks), mpi
    /// (MPI_Allreduce) or auto (shared on one host; between hosts by buffer size, see crossovers).
    pub all_reduce: Algorithm,
    /// Between hosts auto takes mpi below the first of these two sizes in bytes, shared from the last
    /// on, and halving between them; of three, hierarchical from the second on; [] measures the network
    /// at the start. A resumed training keeps those of its checkpoint.
    pub crossovers: Vec<u64>,
    /// Batch-norm statistics: broadcast (from rank 0 every step, DDP's forward_sync_buffers, which was
    /// broadcast_buffers before PyTorch 2.13), average (every epoch), local (no exchange) or sync
    /// (batch norm over the global batch, as SyncBatchNorm; gradients are then reduced after the
    /// backward pass, without overlap).
    pub buffers: BufferSync,
    /// Broadcasts rank 0's initial parameters to all ranks; false: nothing makes them equal, and
    /// their equality is not checked.
    pub broadcast_parameters: bool,
    /// Initializes the parameters of all ranks from run.seed; false: each rank from a different seed.
    pub same_seed: bool,
    /// A mistake to study: rank r steps with lr * (1 + lr_spread * r); 0: all ranks with lr.
    pub lr_spread: f64,
    /// Form in which gradients are sent: none (float32), bf16, fp16, int8 (one scale per block) or
    /// powersgd (low-rank factors); int8 and powersgd send the error of a step with a later one
    /// (error feedback).
    pub compression: Compression,
    /// Gradients per scale of int8, 64 to 65536; a message has 1/4 + 1/block of float32's bytes.
    pub compression_block: usize,
    /// Rank of powersgd's factors of a gradient matrix, 1 to 64.
    pub compression_rank: usize,
    /// Optimizer steps at the start of a training whose gradients are not compressed; 0: none.
    pub compression_start: usize,
    /// Optimizer steps from one average of parameters and momentum over the ranks to the next, with
    /// another at the end of every epoch; 1: gradients are all-reduced every step instead.
    pub local_steps: usize,
}

impl Parallel {
    /// Whether all ranks must end every epoch with the same parameters.
    pub fn keeps_ranks_equal(&self) -> bool {
        self.broadcast_parameters && self.lr_spread == 0.0
    }
}

/// Algorithm of an all-reduce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// `shared` on one host; between hosts `mpi`, `halving`, `hierarchical` or `shared`, by the size of the buffer.
    Auto,
    /// Shared memory within a host, a ring of one rank per host between hosts.
    Shared,
    /// Shared memory within a host, halving and doubling among one rank per host between hosts.
    Halving,
    /// Shared memory within a host, a ring of one rank per host within a rack, and an all-reduce of each host's slice between
    /// racks; `shared` without racks of equal size.
    Hierarchical,
    /// Ring over all ranks by MPI's point-to-point messages, also within a host.
    Ring,
    /// `MPI_Allreduce`.
    Mpi,
}

impl Algorithm {
    /// Name in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::Auto => "auto",
            Algorithm::Shared => "shared",
            Algorithm::Halving => "halving",
            Algorithm::Hierarchical => "hierarchical",
            Algorithm::Ring => "ring",
            Algorithm::Mpi => "mpi",
        }
    }

    /// Whether the ranks of a host reduce through memory that they share.
    pub fn shares_memory(self) -> bool {
        matches!(self, Algorithm::Auto | Algorithm::Shared | Algorithm::Halving | Algorithm::Hierarchical)
    }
}

/// Treatment of batch norm's running statistics over the ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BufferSync {
    /// Rank 0's statistics are broadcast before every step and every test: DistributedDataParallel's default,
    /// `forward_sync_buffers=True` (`broadcast_buffers=True` before PyTorch 2.13).
    Broadcast,
    /// Statistics are averaged over the ranks at the end of every epoch.
    Average,
    /// Statistics are not exchanged after the first broadcast; the checkpoint has rank 0's, each rank tests with those it has.
    /// DistributedDataParallel's `forward_sync_buffers=False` (its `broadcast_buffers=False` leaves them out of the first one, too).
    Local,
    /// Batch norm is computed over the batches of all ranks, forward and backward, so that its statistics are equal.
    Sync,
}

/// Form in which an all-reduce sends gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// float32, uncompressed.
    None,
    /// bfloat16.
    Bf16,
    /// IEEE half precision, with one scale per bucket.
    Fp16,
    /// One byte per gradient and one scale per block, with error feedback.
    Int8,
    /// PowerSGD: rank-r factors of each gradient matrix, with error feedback.
    PowerSgd,
}

impl Compression {
    /// Name in the configuration.
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
