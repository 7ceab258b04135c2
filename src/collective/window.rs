//! Memory that all ranks of a host map, and the barrier at which they wait for each other without calling MPI.

use std::ffi::{c_char, c_int, c_void};
use std::mem::{ManuallyDrop, MaybeUninit};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

use mpi::ffi;

use super::Communicator;
use super::backoff::{Backoff, WaitPolicy};
use super::shared_memory::has_room;
use super::{progress, turn};
use crate::error::Result;
use crate::metrics::Kind;
use crate::units::{Bytes, format_bytes};

/// A window of shared memory: a part per rank, mapped by all ranks of one host.
///
/// Dropping it is no collective: it gives this rank's pages back to the system, whereas the addresses stay reserved
/// until the process ends. A tensor that outlives its buffer therefore reads zeros, not another's memory.
pub(super) struct Window {
    bases: Vec<*mut u8>, // by rank; each at the start of a page
    bytes: usize,        // whole pages
    rank: usize,
}

// SAFETY: plain addresses of a mapping that is never taken away. Who may write where, and when, is decided by those who use
// the addresses.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    /// A window with `bytes` zeroed bytes per rank of `host`, rounded up to whole pages. The ranks share a host. A collective.
    ///
    /// # Errors
    /// Returns [`Error::SharedMemory`](crate::error::Error::SharedMemory) on all ranks if there is no room, and
    /// [`Error::Mpi`](crate::error::Error::Mpi) if MPI cannot allocate or map the memory.
    ///
    /// # Panics
    /// Panics if the ranks do not pass equal `bytes`: one would reach beyond the end of another's part.
    pub(super) fn allocate(host: &Communicator, bytes: usize) -> Result<Window> {
        let page = page_bytes();
        let bytes = bytes.max(1).next_multiple_of(page);
        has_room(host, (host.size() * (bytes + page)) as Bytes)?;
        let (window, base) = allocate_shared(host, bytes + page)?; // a page more: to begin at the start of one
        let skip = base.align_offset(page);
        // SAFETY: `skip` is less than a page, so the bytes lie in this rank's own part.
        // Touched first by its owner: that decides the memory node, and shows at once whether there is room.
        unsafe { std::ptr::write_bytes(base.wrapping_add(skip), 0, bytes) };
        // Gathered instead of computed anew for every peer, so that all ranks agree on a part's first byte. The collective also
        // keeps every rank from writing to a part before its owner has zeroed it.
        let layouts = host.all_gather(Kind::Control, &[skip as u64, bytes as u64])?;
        let mut bases = Vec::with_capacity(host.size());
        for (rank, layout) in layouts.chunks(2).enumerate() {
            assert_eq!(layout[1], bytes as u64, "rank {rank} of this host shares another size than this one");
            let base = query(host, window, rank)?.wrapping_add(layout[0] as usize);
            // A mapping begins at the start of a page in every process, so an offset into a page is the same in all of them.
            assert!(base.align_offset(page) == 0, "rank {rank}'s shared memory is mapped across the borders of pages");
            bases.push(base);
        }
        Ok(Window { bases, bytes, rank: host.rank() })
    }

    /// Address at which `rank`'s part is mapped in this process.
    pub(super) fn base(&self, rank: usize) -> *mut u8 {
        self.bases[rank]
    }

    /// Number of ranks.
    pub(super) fn ranks(&self) -> usize {
        self.bases.len()
    }

    /// Rank of this process.
    pub(super) fn rank(&self) -> usize {
        self.rank
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: our own whole pages of a shared mapping: later reads give zeros.
        let code = unsafe { libc::madvise(self.bases[self.rank].cast(), self.bytes, libc::MADV_REMOVE) };
        if code != 0 && self.rank == 0 {
            not_given_back(self.bytes, &std::io::Error::last_os_error());
        }
    }
}

/// Logs, once per process, that shared memory is not freed.
fn not_given_back(bytes: usize, error: &std::io::Error) {
    static TOLD: Once = Once::new();
    TOLD.call_once(|| {
        log::warn!(
            "{} of shared memory stay taken until the job ends (madvise: {error}): memory grows with every training of a \
             study and visit of a sweep, and peak memory counts the earlier ones too; set parallel.all_reduce = \"mpi\" or \
             \"ring\" to do without shared memory",
            format_bytes(bytes as Bytes)
        );
    });
}

/// A shared window with `bytes` per rank, and the address of this rank's part. It is never freed, see [`Window`].
fn allocate_shared(host: &Communicator, bytes: usize) -> Result<(ffi::MPI_Win, *mut u8)> {
    let _turn = turn::take("allocating shared memory");
    let mut base: *mut c_void = std::ptr::null_mut();
    let (mut info, mut window) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: strings end in 0; MPI writes `info`, `base` and `window`.
    unsafe {
        // Not one block: each rank's part on its own pages, and on its own memory node where there are several.
        ffi::MPI_Info_create(info.as_mut_ptr());
        let (key, value): (*const c_char, *const c_char) = (c"alloc_shared_noncontig".as_ptr(), c"true".as_ptr());
        ffi::MPI_Info_set(info.assume_init(), key, value);
        let base_address: *mut *mut c_void = &mut base;
        let code = ffi::MPI_Win_allocate_shared(
            bytes as ffi::MPI_Aint,
            1,
            info.assume_init(),
            host.raw(),
            base_address.cast(),
            window.as_mut_ptr(),
        );
        ffi::MPI_Info_free(info.as_mut_ptr());
        host.check("MPI_Win_allocate_shared", code)?;
        Ok((window.assume_init(), base.cast()))
    }
}

/// Address of `rank`'s part of `window` in this process, by MPI_Win_shared_query.
fn query(host: &Communicator, window: ffi::MPI_Win, rank: usize) -> Result<*mut u8> {
    let _turn = turn::take("allocating shared memory");
    let (mut size, mut unit) = (0, 0);
    let mut base: *mut c_void = std::ptr::null_mut();
    let address: *mut *mut c_void = &mut base;
    // SAFETY: MPI writes the three values; the window is a live one.
    let code = unsafe { ffi::MPI_Win_shared_query(window, rank as c_int, &mut size, &mut unit, address.cast()) };
    host.check("MPI_Win_shared_query", code)?;
    Ok(base.cast())
}

fn page_bytes() -> usize {
    // SAFETY: reads a constant of the system.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// A type for which zeroed memory is a valid value, and which several processes may use at once.
///
/// # Safety
/// All zeros is a valid value, every field is atomic, and the alignment is no larger than a page.
pub(super) unsafe trait SharedCell: Sync + 'static {}

// SAFETY: an atomic integer, of which 0 is a value.
unsafe impl SharedCell for AtomicU64 {}

/// One zeroed `T` per rank of `host`, in the order of the ranks, mapped by all of them. A collective.
///
/// The memory stays mapped until the process ends: a slower rank may still read the cell of a rank that has ended.
pub(super) fn one_per_rank<T: SharedCell>(host: &Communicator) -> Result<Vec<&'static T>> {
    let window = ManuallyDrop::new(Window::allocate(host, size_of::<T>())?);
    // SAFETY: the part of every rank is whole pages, zero at first, used as this `T` only, and mapped until the process ends.
    Ok((0..window.ranks()).map(|rank| unsafe { &*window.base(rank).cast::<T>() }).collect())
}

/// A barrier in shared memory for the ranks of a host: a counter per rank, each on a page of its own.
pub(super) struct SharedBarrier {
    counters: Vec<&'static AtomicU64>, // by rank
    rank: usize,
    passed: AtomicU64, // barriers entered by this rank
}

impl SharedBarrier {
    /// A barrier for the ranks of `host`, which share a host. A collective.
    pub(super) fn new(host: &Communicator) -> Result<SharedBarrier> {
        Ok(SharedBarrier { counters: one_per_rank(host)?, rank: host.rank(), passed: AtomicU64::new(0) })
    }

    /// Waits until every rank of the host has entered. Writes of a rank before the call are visible to all of them after it.
    /// One thread of a process may call it at a time.
    pub(super) fn wait(&self, policy: WaitPolicy) {
        let mine = self.passed.load(Ordering::Relaxed) + 1;
        self.passed.store(mine, Ordering::Relaxed);
        self.counters[self.rank].store(mine, Ordering::Release);
        let mut backoff = Backoff::within_host(policy);
        for counter in &self.counters {
            // A rank can be one barrier ahead, having seen all of this one; not more.
            while counter.load(Ordering::Acquire) < mine {
                backoff.pause();
            }
        }
    }
}

/// Lets the ranks of `host` read each other's [`progress`]. A collective, called once.
///
/// # Errors
/// Returns [`Error::Mpi`](crate::error::Error::Mpi) if MPI cannot allocate shared memory.
pub fn share_progress(host: &Communicator) -> Result<()> {
    progress::share(host.rank(), one_per_rank(host)?);
    Ok(())
}

// SAFETY: atomic integers, of which 0 is a value; aligned as they are.
unsafe impl SharedCell for progress::Marks {}
