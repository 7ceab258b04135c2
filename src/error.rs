//! Errors with the thing, the place and the mend. One variant per cause; `Display` is the whole message.
//!
//! ```
//! use hpml::error::{AtPath, Error, STOPPED};
//! use std::path::Path;
//!
//! let path = Path::new("configs/none.toml");
//! let error: Error = std::fs::read_to_string(path).at(path).unwrap_err();
//! eprintln!("hpml: {error}"); // configs/none.toml: No such file or directory (os error 2)
//! assert_ne!(error.status(), STOPPED);
//! ```

use std::path::{Path, PathBuf};

/// Exit status of a job that would fail in the same way if it were started again.
pub const FAILED: u8 = 1;
/// Exit status of a job that a signal stopped and that can be resumed: EX_TEMPFAIL of sysexits.h, "try again later".
pub const STOPPED: u8 = 75;
/// Exit status of a job that has lost a rank, a host or the network between them, and may succeed if it is started again:
/// EX_UNAVAILABLE of sysexits.h.
pub const LOST: u8 = 69;

/// Result of hpml's fallible functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error that the user can act on. `Display` is one line: what, where, and what to do.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's message is its documentation
pub enum Error {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },

    #[error("{place}: {key} = {value}: {expected}")]
    ConfigValue { place: String, key: String, value: String, expected: String },

    #[error("{place}: {message}")]
    ConfigSyntax { place: String, message: String },

    #[error("--set {given}: expected section.key=value, {hint}")]
    OverrideSyntax { given: String, hint: String },

    #[error("{}: no data here: {mend}", path.display())]
    DataMissing { path: PathBuf, mend: String },

    #[error("{}: {found} bytes, expected {expected} ({records} records of {record_bytes}): {mend}", path.display())]
    DataSize { path: PathBuf, found: u64, expected: u64, records: u64, record_bytes: u64, mend: String },

    #[error("{}: record {record} (byte {offset}) has label {label}, expected 0 to {last}: not {set}'s binary layout, or damaged; fetch it again", path.display())]
    DataLabel { path: PathBuf, record: usize, offset: u64, label: u8, last: usize, set: &'static str },

    #[error("{}: exists already: choose another name, or overwrite it with --force", path.display())]
    OutputExists { path: PathBuf },

    #[error("{}: is being written by {owner}: wait for it, end it or choose another name; --force takes the name from it", path.display())]
    OutputOwned { path: PathBuf, owner: String },

    #[error("{}: {owner} has taken this name with --force: nothing more of this job is written to it", path.display())]
    OutputLost { path: PathBuf, owner: String },

    #[error("{}: cannot be written: {reason}: choose another place, or make room there", path.display())]
    Output { path: PathBuf, reason: String },

    #[error("{}: {message}", path.display())]
    File { path: PathBuf, message: String },

    #[error("{}: {name}: {message}", path.display())]
    Dataset { path: PathBuf, name: String, message: String },

    #[error("launch.device = \"cuda\": {reason}: set launch.device = \"cpu\" or \"auto\"")]
    Device { reason: String },

    #[error("the GPU: {reason}: check it with nvidia-smi, or set launch.device = \"cpu\"")]
    Gpu { reason: String },

    #[error(
        "built with libtorch {built}, but {file} is loaded, which is {loaded}: take it off LD_LIBRARY_PATH, set LIBTORCH to a libtorch like the one of the build (for a pack), or build hpml anew (scripts/setup)"
    )]
    Libtorch { built: String, loaded: String, file: String },

    #[error("no NCCL here ({reason}): install it, or set parallel.all_reduce = \"mpi\" to do without")]
    NcclMissing { reason: String },

    #[error("{call}: {reason}: set NCCL_DEBUG=INFO for details, or parallel.all_reduce = \"mpi\" to do without NCCL")]
    Nccl { call: &'static str, reason: String },

    #[error(
        "{started}, but MPI joined none of them: each would be a job of its own for {library}, which this hpml uses: {mend}; \
         set launch.allow_singletons = true if they are meant to be separate jobs"
    )]
    Singleton { started: String, library: String, mend: String },

    #[error(
        "this hpml was built for {built}, and the MPI library that it finds is {loaded}, which cannot run it: load the MPI that it \
         was built with (module, PATH, LD_LIBRARY_PATH), or build hpml with this one (scripts/setup, then cargo build --release)"
    )]
    MpiDiffers { built: String, loaded: String },

    #[error(
        "parts of this hpml were compiled with the header of another MPI than {built} (the library is {loaded}): run scripts/setup, \
         which cleans them, and cargo build --release"
    )]
    MpiMixed { built: String, loaded: String },

    #[error("rank {rank} read another configuration than rank 0: pass the same file and the same --set to every rank")]
    ConfigDiffers { rank: usize },

    #[error(
        "parameters differ between ranks after epoch {epoch} (checksum {found:016x} on rank {rank}, {expected:016x} on rank 0): a rank computed or received something else; set launch.threads the same everywhere and check the memory of that host"
    )]
    ParametersDiffer { epoch: usize, rank: usize, found: u64, expected: u64 },

    #[error(
        "{what} at epoch {epoch}, step {step}: the training has diverged; nothing of it is saved, earlier checkpoints stay: lower train.lr (now {lr}), set optim.clip_norm, or check the data"
    )]
    NotFinite { what: String, epoch: usize, step: usize, lr: f64 },

    #[error("signal handlers cannot be registered: {reason}")]
    Signals { reason: String },

    #[error(
        "stopped by {signal} after step {step}, nothing lost: {}; continue with the same command and --resume auto (status 75)",
        checkpoint.display()
    )]
    Stopped { signal: &'static str, step: usize, checkpoint: PathBuf },

    #[error(
        "--resume: {key} is {now}, but {} was made with {saved}: set what the run began with, or start anew without --resume",
        checkpoint.display()
    )]
    ResumeDiffers { key: String, now: String, saved: String, checkpoint: PathBuf },

    #[error("--resume: {}: {message}", path.display())]
    ResumeRefused { path: PathBuf, message: String },

    #[error(
        "overlap needs a second thread that calls MPI, MPI_THREAD_SERIALIZED, and {library} grants {granted}: set metrics.timing (in a sweep sweep.timing) to \"profile\", which reduces after the backward pass, or use an MPI built with support for threads"
    )]
    ThreadLevel { library: String, granted: &'static str },

    #[error("{call} failed on rank {rank}: MPI error {code}: a rank or the network may be lost; start the job again")]
    Mpi { call: &'static str, rank: usize, code: i32 },

    #[error(
        "{place}: {free} are free on a host whose ranks need {needed} of shared memory: enlarge it (of a container: --shm-size, or the host's own bound into it), or do without by parallel.all_reduce = \"ring\" (hpml collectives: --algorithm ring, or a smaller --max)"
    )]
    SharedMemory { place: &'static str, needed: String, free: String },

    #[error("{0}")]
    Verify(String),

    #[error("{name}: {problem}")]
    QuantizeModel { name: String, problem: String },

    #[error("int8 cannot express node {name} ({kind}): {problem}")]
    QuantizeNode { name: String, kind: &'static str, problem: String },

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

    #[error("HPML_RACK on rank {rank}: {problem}")]
    Rack { rank: usize, problem: &'static str },

    /// Error of this rank that all ranks know of; this rank prints it.
    #[error("{0}")]
    Agreed(Box<Error>),

    /// Error of rank `rank` that all ranks know of; that rank prints it.
    #[error("ended by an error on rank {rank}")]
    OnRank { rank: usize },
}

impl Error {
    /// Exit status of a process that ends with this error; a batch script decides by it whether to queue the job again.
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
    /// The result with an error that names `path`.
    ///
    /// # Errors
    /// Returns the error of `self`, as [`Error::Io`] or [`Error::File`].
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
