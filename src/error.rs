//! What can go wrong, with the thing, the place and the mend. One variant a kind of cause; `Display` is the whole message.

use std::path::{Path, PathBuf};

/// Exit status of a job that the same start would fail in the same way.
pub const FAILED: u8 = 1;
/// Exit status of a job that a signal stopped and that can be resumed: EX_TEMPFAIL of sysexits.h, "try again later".
pub const STOPPED: u8 = 75;
/// Exit status of a job that has lost a rank, a host or the network between them, so that another start may do better:
/// EX_UNAVAILABLE of sysexits.h.
pub const LOST: u8 = 69;

/// Result of every fallible function here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error the user can act on. `Display` is one line: what, where, and what to do.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's message is its documentation
pub enum Error {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },

    #[error("{place}: {key} = {value}: {expected}")]
    ConfigValue { place: String, key: String, value: String, expected: String },

    #[error("{place}: {message}")]
    ConfigSyntax { place: String, message: String },

    #[error("--set {given}: expected section.key=value, as in --set train.epochs=3")]
    OverrideSyntax { given: String },

    #[error("{}: no data here: {mend}", path.display())]
    DataMissing { path: PathBuf, mend: String },

    #[error("{}: {found} bytes, expected {expected} ({records} records of {record_bytes}): {mend}", path.display())]
    DataSize { path: PathBuf, found: u64, expected: u64, records: u64, record_bytes: u64, mend: String },

    #[error("{}: record {record} (byte {offset}) has label {label}, expected 0 to 9: not CIFAR-10's binary layout, or damaged; fetch it again", path.display())]
    DataLabel { path: PathBuf, record: usize, offset: u64, label: u8 },

    #[error("{}: exists already: choose another name, or overwrite it with --force", path.display())]
    OutputExists { path: PathBuf },

    #[error("{}: is being written by {owner}: wait for it, end it or choose another name; --force takes the name from it", path.display())]
    OutputOwned { path: PathBuf, owner: String },

    #[error("{}: {owner} has taken this name with --force: nothing more of this job is written to it", path.display())]
    OutputLost { path: PathBuf, owner: String },

    #[error("{}: cannot be written: {reason}: choose another place or make room there", path.display())]
    Output { path: PathBuf, reason: String },

    #[error("{}: {message}", path.display())]
    File { path: PathBuf, message: String },

    #[error("{}: {name}: {message}", path.display())]
    Dataset { path: PathBuf, name: String, message: String },

    #[error("launch.device = \"cuda\": {reason}: set launch.device = \"cpu\" or \"auto\"")]
    Device { reason: String },

    #[error("the GPU: {reason}: look at it with nvidia-smi, or set launch.device = \"cpu\"")]
    Gpu { reason: String },

    #[error(
        "they are written for libtorch {expected} and this is {loaded} (built with {built}): steps are launched kernel by kernel, which is slower with few images; build with libtorch {expected} (scripts/setup), or set launch.cuda_graphs = false"
    )]
    GraphVersion { expected: String, built: String, loaded: String },

    #[error("no NCCL here ({reason}): parallel.all_reduce = \"mpi\" does without it")]
    NcclMissing { reason: String },

    #[error("{call}: {reason}: NCCL_DEBUG=INFO tells more, parallel.all_reduce = \"mpi\" does without NCCL")]
    Nccl { call: &'static str, reason: String },

    #[error(
        "{started}, but MPI joined none of them: each would be a job of its own for {library}, which this hpml uses: {mend}; \
         launch.allow_singletons = true is for separate jobs that are meant"
    )]
    Singleton { started: String, library: String, mend: String },

    #[error("rank {rank} read another configuration than rank 0: give every rank the same file and the same --set")]
    ConfigDiffers { rank: usize },

    #[error(
        "parameters differ between ranks after epoch {epoch} (checksum {found:016x} on rank {rank}, {expected:016x} on rank 0): a rank computed or received something else; set launch.threads the same everywhere and check the memory of that host"
    )]
    ParametersDiffer { epoch: usize, rank: usize, found: u64, expected: u64 },

    #[error(
        "{what} at epoch {epoch}, step {step}: the training has diverged; nothing of it is saved, what was saved before stays: lower train.lr (now {lr}), set optim.clip_norm, or check the data"
    )]
    NotFinite { what: String, epoch: usize, step: usize, lr: f64 },

    #[error("signals cannot be listened to: {reason}")]
    Signals { reason: String },

    #[error(
        "stopped by {signal} after step {step}, nothing lost: {}; go on with the same command and --resume auto (status 75)",
        checkpoint.display()
    )]
    Stopped { signal: &'static str, step: usize, checkpoint: PathBuf },

    #[error(
        "--resume: {key} is {now}, but {} was made with {saved}: give what the run began with, or start anew without --resume",
        checkpoint.display()
    )]
    ResumeDiffers { key: String, now: String, saved: String, checkpoint: PathBuf },

    #[error("--resume: {}: {message}", path.display())]
    ResumeRefused { path: PathBuf, message: String },

    #[error(
        "overlap needs a second thread that calls MPI, MPI_THREAD_SERIALIZED, and {library} grants {granted}: set metrics.timing (in a sweep sweep.timing) to \"profile\", which reduces after the backward pass, or use an MPI built with support for threads"
    )]
    ThreadLevel { library: String, granted: &'static str },

    #[error("{call} failed on rank {rank}: MPI error {code}")]
    Mpi { call: &'static str, rank: usize, code: i32 },

    #[error("{0}")]
    Verify(String),

    #[error("{name}: {problem}: not a checkpoint of net or resnet18")]
    QuantizeModel { name: String, problem: String },

    #[error("{name}: value {index} is {value}: quantization needs finite numbers; train again with a lower train.lr")]
    QuantizeNotFinite { name: String, index: usize, value: f32 },

    #[error(
        "{name}: its output is 0 for every calibration image: a dead layer has no scale; train it further or calibrate on other images"
    )]
    DeadLayer { name: String },

    #[error("no calibration images: set quantize.calibration_images to at least 1 and check data.dir")]
    CalibrationEmpty,

    #[error("{name}: scale overflow: {problem}; choose another quantize.activation_range or quantize.weight_range")]
    ScaleOverflow { name: String, problem: String },

    /// An error that all ranks know of; this rank prints it.
    #[error("{0}")]
    Agreed(Box<Error>),

    /// An error that all ranks know of and another rank prints.
    #[error("ended by an error on rank {rank}")]
    OnRank { rank: usize },
}

impl Error {
    /// With which status a process ends that has met this: what a batch script decides by whether to queue the job again.
    pub fn status(&self) -> u8 {
        match self {
            Error::Agreed(error) => error.status(),
            Error::Stopped { .. } => STOPPED,
            Error::Mpi { .. } | Error::Nccl { .. } => LOST,
            _ => FAILED,
        }
    }
}

/// Adds the path to an error of the file system.
pub trait AtPath<T> {
    /// The same result, its error naming `path`.
    fn at(self, path: &Path) -> Result<T>;
}

impl<T> AtPath<T> for std::io::Result<T> {
    fn at(self, path: &Path) -> Result<T> {
        self.map_err(|source| Error::Io { path: path.to_owned(), source })
    }
}

impl<T> AtPath<T> for hdf5::Result<T> {
    fn at(self, path: &Path) -> Result<T> {
        self.map_err(|error| Error::File { path: path.to_owned(), message: error.to_string() })
    }
}
