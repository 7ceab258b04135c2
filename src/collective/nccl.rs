//! NCCL, opened at run time: collectives on GPU memory, in the order of a CUDA stream.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use libloading::os::unix::RTLD_NOW;
use tch::Tensor;

use super::traffic::Collective;
use super::{Communicator, progress};
use crate::error::{Error, Result};
use crate::metrics::Kind;
use crate::sys::gpu::{self, Stream};
use crate::units::format_bytes;

/// NCCL's file name, in libtorch's wheels as in NVIDIA's packages.
const LIBRARY: &str = "libnccl.so.2";
/// Poll interval while a communicator is being set up.
const POLL: Duration = Duration::from_millis(1);

/// `ncclComm_t`.
type Comm = *mut c_void;
/// `ncclResult_t`; see nccl.h.
type Status = c_int;
const SUCCESS: Status = 0;
const IN_PROGRESS: Status = 7;
const SUM: c_int = 0;

/// `ncclUniqueId`: 128 bytes, drawn by rank 0, that the ranks of one communicator share.
#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([u8; 128]);

/// `ncclConfig_t` as of NCCL 2.18. Later versions accept it by its size and version, with defaults for fields it lacks.
#[repr(C)]
struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

impl Config {
    /// A configuration whose calls return at once, so that [`Nccl::settle`] can wait with a limit. Source:
    /// `NCCL_CONFIG_INITIALIZER`, nccl.h 2.18.
    fn without_blocking() -> Config {
        /// `NCCL_CONFIG_UNDEF_INT`.
        const DEFAULT: c_int = c_int::MIN;
        Config {
            size: size_of::<Config>(),
            magic: 0xcafe_beef,
            version: 21_800,
            blocking: 0,
            cga_cluster_size: DEFAULT,
            min_ctas: DEFAULT,
            max_ctas: DEFAULT,
            net_name: std::ptr::null(),
            split_share: DEFAULT,
        }
    }
}

macro_rules! functions {
    ($($field:ident = $name:literal ($($argument:ty),*) -> $result:ty;)*) => {
        /// NCCL's functions, by their names and signatures in nccl.h.
        struct Functions {
            $($field: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl Functions {
            fn open() -> Result<Functions, String> {
                let library = gpu::open(LIBRARY, RTLD_NOW)?;
                // SAFETY: the signatures are nccl.h's; the library is never closed.
                let functions = unsafe {
                    Functions {
                        $($field: *library
                            .get(concat!($name, "\0").as_bytes())
                            .map_err(|_| concat!("it has no ", $name, ": at least NCCL 2.18 is needed").to_owned())?,)*
                    }
                };
                std::mem::forget(library);
                Ok(functions)
            }
        }
    };
}

functions! {
    version = "ncclGetVersion" (*mut c_int) -> Status;
    unique_id = "ncclGetUniqueId" (*mut UniqueId) -> Status;
    init = "ncclCommInitRankConfig" (*mut Comm, c_int, UniqueId, c_int, *mut Config) -> Status;
    state = "ncclCommGetAsyncError" (Comm, *mut Status) -> Status;
    abort = "ncclCommAbort" (Comm) -> Status;
    destroy = "ncclCommDestroy" (Comm) -> Status;
    all_reduce = "ncclAllReduce" (*const c_void, *mut c_void, usize, c_int, c_int, Comm, *mut c_void) -> Status;
    broadcast = "ncclBroadcast" (*const c_void, *mut c_void, usize, c_int, c_int, Comm, *mut c_void) -> Status;
    all_gather = "ncclAllGather" (*const c_void, *mut c_void, usize, c_int, Comm, *mut c_void) -> Status;
    reduce_scatter = "ncclReduceScatter" (*const c_void, *mut c_void, usize, c_int, c_int, Comm, *mut c_void) -> Status;
    send = "ncclSend" (*const c_void, usize, c_int, c_int, Comm, *mut c_void) -> Status;
    receive = "ncclRecv" (*mut c_void, usize, c_int, c_int, Comm, *mut c_void) -> Status;
    group_start = "ncclGroupStart" () -> Status;
    group_end = "ncclGroupEnd" () -> Status;
    error_text = "ncclGetErrorString" (Status) -> *const c_char;
    last_error = "ncclGetLastError" (Comm) -> *const c_char;
}

/// The library, or the reason why it cannot be loaded.
fn library() -> Result<&'static Functions, &'static str> {
    static LIBRARY_OR_REASON: OnceLock<Result<Functions, String>> = OnceLock::new();
    LIBRARY_OR_REASON.get_or_init(Functions::open).as_ref().map_err(String::as_str)
}

/// Version of the installed NCCL, for example `2.28.9`.
///
/// # Errors
/// Returns the reason if NCCL cannot be loaded.
pub fn nccl_version() -> Result<String, String> {
    let functions = library().map_err(|reason| format!("no NCCL here ({reason})"))?;
    let mut version = 0;
    // SAFETY: writes one int.
    unsafe { (functions.version)(&mut version) };
    Ok(format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100))
}

/// A communicator of NCCL over the ranks of an MPI communicator, each with a GPU of its own.
pub struct Nccl {
    functions: &'static Functions,
    comm: Comm,
    ranks: usize,
    limit: Duration,
    /// Whether a call has failed: the communicator can only be aborted.
    broken: bool,
}

// SAFETY: a communicator of NCCL belongs to no thread; `&mut self` keeps its calls apart.
unsafe impl Send for Nccl {}

impl Nccl {
    /// A communicator over the ranks of `ranks`. A collective, called by each rank after [`gpu::use_gpu`]. A `limit` of zero
    /// waits for ever.
    ///
    /// # Errors
    /// Returns [`Error::NcclMissing`] if NCCL cannot be loaded, and [`Error::Nccl`] if it fails or the ranks have not met within
    /// `limit`.
    pub fn start(ranks: &Communicator, limit: Duration) -> Result<Nccl> {
        let functions = library().map_err(|reason| Error::NcclMissing { reason: reason.into() })?;
        let mut id = UniqueId([0; 128]);
        if ranks.rank() == 0 {
            // SAFETY: writes the 128 bytes.
            check(functions, std::ptr::null_mut(), "ncclGetUniqueId", unsafe { (functions.unique_id)(&mut id) })?;
        }
        // The first is rank 0's.
        let ids = ranks.all_gather(Kind::Control, &id.0)?;
        id.0.copy_from_slice(&ids[..128]);
        let mut nccl = Nccl { functions, comm: std::ptr::null_mut(), ranks: ranks.size(), limit, broken: false };
        let mut config = Config::without_blocking();
        // SAFETY: `comm` is written; `config` is read before the call returns.
        let status =
            unsafe { (functions.init)(&mut nccl.comm, ranks.size() as c_int, id, ranks.rank() as c_int, &mut config) };
        nccl.settle("ncclCommInitRankConfig", status)?;
        Ok(nccl)
    }

    /// Enqueues on `stream` a `collective` of `source` into `target`, contiguous tensors of one kind in GPU memory. They are equally
    /// long, but the source of an all-gather and the target of a reduce-scatter are one part, and may be this rank's part of the
    /// other. For an all-reduce and a broadcast both may be one tensor.
    ///
    /// # Errors
    /// Returns [`Error::Nccl`] if NCCL refuses the call.
    ///
    /// # Safety
    /// The tensors' memory stays valid and untouched until the collective is complete on the stream.
    pub unsafe fn enqueue(
        &mut self,
        collective: Collective,
        source: &Tensor,
        target: &Tensor,
        stream: &Stream,
    ) -> Result<()> {
        let (from, to, count) = (source.data_ptr().cast_const(), target.data_ptr(), source.numel());
        let (element, stream) = (data_type(source.kind()), stream.handle());
        // SAFETY: the caller's promise; the communicator is ours.
        let (call, status) = unsafe {
            match collective {
                Collective::AllReduce => {
                    ("ncclAllReduce", (self.functions.all_reduce)(from, to, count, element, SUM, self.comm, stream))
                }
                Collective::Broadcast => {
                    ("ncclBroadcast", (self.functions.broadcast)(from, to, count, element, 0, self.comm, stream))
                }
                Collective::AllGather => {
                    ("ncclAllGather", (self.functions.all_gather)(from, to, count, element, self.comm, stream))
                }
                Collective::ReduceScatter => {
                    let (call, count) = (self.functions.reduce_scatter, target.numel());
                    ("ncclReduceScatter", call(from, to, count, element, SUM, self.comm, stream))
                }
                Collective::AllToAll => {
                    let part = count / self.ranks;
                    let bytes = part * source.kind().elt_size_in_bytes();
                    self.grouped(|functions, comm, peer| {
                        let (from, to) = (from.byte_add(peer * bytes), to.byte_add(peer * bytes));
                        let sent = (functions.send)(from, part, element, peer as c_int, comm, stream);
                        let received = (functions.receive)(to, part, element, peer as c_int, comm, stream);
                        [sent, received]
                    })
                }
                Collective::Barrier | Collective::Gather => unreachable!("{collective:?} goes through MPI"),
            }
        };
        self.settle(call, status)
    }

    /// Groups the calls that `enqueue` makes for every peer, so that NCCL starts them together. Returns the call and its status.
    ///
    /// # Safety
    /// What `enqueue` passes to NCCL is valid until the group is complete on its stream.
    unsafe fn grouped(&self, enqueue: impl Fn(&Functions, Comm, usize) -> [Status; 2]) -> (&'static str, Status) {
        // SAFETY: a group is opened and closed by this thread; the rest is the caller's promise.
        unsafe {
            let mut status = (self.functions.group_start)();
            let calls = (0..self.ranks).flat_map(|peer| enqueue(self.functions, self.comm, peer));
            let failed = calls.filter(|status| *status != SUCCESS && *status != IN_PROGRESS).last();
            let ended = (self.functions.group_end)();
            status = if status == SUCCESS { ended } else { status };
            ("ncclSend and ncclRecv", failed.unwrap_or(status))
        }
    }

    /// Checks for asynchronous errors: a lost peer, a network that fails.
    ///
    /// # Errors
    /// Returns [`Error::Nccl`] if there was one.
    pub fn check_peers(&mut self) -> Result<()> {
        let mut state = SUCCESS;
        // SAFETY: the communicator is ours, one int is written.
        let status = unsafe { (self.functions.state)(self.comm, &mut state) };
        let state = if status == SUCCESS { state } else { status };
        if state == IN_PROGRESS { Ok(()) } else { self.checked("a collective of NCCL", state) }
    }

    /// Waits until `call` has completed, at most for the communicator's limit.
    fn settle(&mut self, call: &'static str, status: Status) -> Result<()> {
        let started = Instant::now();
        let mut status = status;
        while status == IN_PROGRESS {
            if !self.limit.is_zero() && started.elapsed() > self.limit {
                self.broken = true;
                let reason = format!("not all ranks have called it within {:.1} s", self.limit.as_secs_f64());
                return Err(Error::Nccl { call, reason });
            }
            std::thread::sleep(POLL);
            // SAFETY: as in `check_peers`.
            let asked = unsafe { (self.functions.state)(self.comm, &mut status) };
            if asked != SUCCESS {
                status = asked;
            }
        }
        self.checked(call, status)
    }

    fn checked(&mut self, call: &'static str, status: Status) -> Result<()> {
        let result = check(self.functions, self.comm, call, status);
        self.broken |= result.is_err();
        result
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        if self.comm.is_null() {
            return;
        }
        // SAFETY: ours, and not used again. A broken one would wait for its peers for ever unless aborted.
        unsafe {
            if self.broken {
                (self.functions.abort)(self.comm)
            } else {
                (self.functions.destroy)(self.comm)
            };
        }
    }
}

fn check(functions: &Functions, comm: Comm, call: &'static str, status: Status) -> Result<()> {
    if status == SUCCESS {
        return Ok(());
    }
    // SAFETY: both return texts of NCCL's that end in a 0; without a communicator the last error of any is given.
    let reason = unsafe {
        let text = |pointer: *const c_char| match pointer.is_null() {
            true => String::new(),
            false => CStr::from_ptr(pointer).to_string_lossy().lines().next().unwrap_or_default().to_owned(),
        };
        let (what, why) = (text((functions.error_text)(status)), text((functions.last_error)(comm)));
        if why.is_empty() { what } else { format!("{what} ({why})") }
    };
    let progress = progress::here();
    let reason = match progress.waits_for {
        Some((kind, bytes)) => {
            format!("{reason}, in step {}, {} of {}", progress.step, format_bytes(bytes), kind.as_str())
        }
        None => reason,
    };
    Err(Error::Nccl { call, reason })
}

/// The `ncclDataType_t` of a tensor's kind.
fn data_type(element: tch::Kind) -> c_int {
    match element {
        tch::Kind::Half => 6,
        tch::Kind::Float => 7,
        tch::Kind::Double => 8,
        tch::Kind::BFloat16 => 9,
        other => unreachable!("gradients of {other:?}"),
    }
}
