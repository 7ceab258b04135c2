//! Memory that all ranks of a host see, and the gate at which they wait for each other without calling MPI.

use std::ffi::{c_char, c_void};
use std::mem::{ManuallyDrop, MaybeUninit};
use std::sync::atomic::{AtomicU64, Ordering};

use mpi::ffi;

use super::Communicator;
use super::patience::{Patience, Pauses};
use crate::error::Result;

/// A piece of memory of each rank, mapped by all ranks of one host.
///
/// Dropping it is no collective: it gives this rank's pages back to the system, whereas the addresses stay reserved
/// until the process ends. A tensor that outlives its buffer therefore reads zeros, not another's memory.
pub(super) struct Window {
    bases: Vec<*mut u8>, // by rank
    bytes: usize,
    rank: usize,
}

// SAFETY: plain addresses of a mapping that is never taken away. Who may write where, and when, is decided by those who use
// the addresses.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    /// `bytes` zero bytes, and what fills a page, for each rank of `host`, whose ranks share a host.
    pub(super) fn allocate(host: &Communicator, bytes: usize) -> Result<Window> {
        let bytes = bytes.max(1).next_multiple_of(page_bytes());
        let mut base: *mut c_void = std::ptr::null_mut();
        let (mut info, mut window) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: strings end in 0; MPI writes `info`, `base` and `window`. The window is never freed, see above.
        unsafe {
            // Not one block: each rank's part page-aligned, and on its own memory node where there are several.
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
            // Touched first by its owner: that decides the memory node, and shows at once whether there is room.
            std::ptr::write_bytes(base.cast::<u8>(), 0, bytes);
        }
        let bases: Result<Vec<*mut u8>> = (0..host.size())
            .map(|rank| {
                let (mut size, mut unit) = (0, 0);
                let mut peer: *mut c_void = std::ptr::null_mut();
                let address: *mut *mut c_void = &mut peer;
                // SAFETY: MPI writes the three values; the window was made above.
                let code = unsafe {
                    let window = window.assume_init();
                    ffi::MPI_Win_shared_query(window, rank as i32, &mut size, &mut unit, address.cast())
                };
                host.check("MPI_Win_shared_query", code)?;
                Ok(peer.cast())
            })
            .collect();
        host.barrier()?; // nobody writes to a part before its owner has zeroed it
        Ok(Window { bases: bases?, bytes, rank: host.rank() })
    }

    /// Where `rank`'s part begins in this process.
    pub(super) fn base(&self, rank: usize) -> *mut u8 {
        self.bases[rank]
    }

    /// Number of ranks.
    pub(super) fn ranks(&self) -> usize {
        self.bases.len()
    }

    /// This process among them.
    pub(super) fn rank(&self) -> usize {
        self.rank
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: our own whole pages of a shared mapping: later reads give zeros.
        // Where the system cannot do it, the memory is kept until the process ends.
        unsafe { libc::madvise(self.bases[self.rank].cast(), self.bytes, libc::MADV_REMOVE) };
    }
}

fn page_bytes() -> usize {
    // SAFETY: asks for a constant of the system.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// Where the ranks of a host wait for each other: a counter of each, far from the others' cache lines.
pub(super) struct Gate {
    /// Never dropped: a slower rank may still look at our counter when we are gone.
    counters: ManuallyDrop<Window>,
    passed: AtomicU64,
}

impl Gate {
    pub(super) fn new(host: &Communicator) -> Result<Gate> {
        let counters = ManuallyDrop::new(Window::allocate(host, size_of::<AtomicU64>())?);
        Ok(Gate { counters, passed: AtomicU64::new(0) })
    }

    /// Returns when every rank of the host has come here. What a rank wrote before, all of them see afterwards.
    ///
    /// One thread of a process at a time, as with MPI.
    pub(super) fn pass(&self, patience: Patience) {
        let mine = self.passed.load(Ordering::Relaxed) + 1;
        self.passed.store(mine, Ordering::Relaxed);
        self.counter(self.counters.rank()).store(mine, Ordering::Release);
        let mut pauses = Pauses::within_host(patience);
        for rank in 0..self.counters.ranks() {
            // A rank can be one gate ahead, having seen ours open; not more.
            while self.counter(rank).load(Ordering::Acquire) < mine {
                pauses.pause();
            }
        }
    }

    fn counter(&self, rank: usize) -> &AtomicU64 {
        // SAFETY: the part of every rank is a page, zero at first, only ever used as this counter, and mapped until the process ends.
        unsafe { &*self.counters.base(rank).cast::<AtomicU64>() }
    }
}
