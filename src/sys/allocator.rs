//! The allocator: freed memory that it keeps, and the limit of the memory that it may take.

use std::alloc::{GlobalAlloc, Layout, System};

use super::gpu;

/// The system's allocator, which requests huge pages once [`keep_freed_memory`] has been called.
pub struct Allocator;

// SAFETY: all calls go to the system's allocator.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        let memory = unsafe { System.alloc(layout) };
        huge_pages::allocated(layout.size());
        memory
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        let memory = unsafe { System.alloc_zeroed(layout) };
        huge_pages::allocated(layout.size());
        memory
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe { System.realloc(memory, layout, size) }
    }
}

/// Huge pages for the heap.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod huge_pages {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    const PAGE: usize = 2 << 20;
    /// Bytes of the smallest allocation that may have grown the heap by enough.
    const LARGE: usize = 64 << 10;

    /// End of the part of the heap that huge pages were requested for.
    static REQUESTED: AtomicUsize = AtomicUsize::new(usize::MAX);

    fn heap_end() -> usize {
        // SAFETY: reads the end and moves nothing.
        unsafe { libc::sbrk(0) as usize }
    }

    /// Leaves the heap as it is, and has huge pages requested for all that it grows by.
    pub fn begin() {
        REQUESTED.store(heap_end().next_multiple_of(PAGE), Relaxed);
    }

    /// Requests huge pages for what the heap has grown by, after an allocation and before it is written to: the first write makes
    /// the page.
    pub extern "C" fn allocated(bytes: usize) {
        if bytes < LARGE || REQUESTED.load(Relaxed) == usize::MAX {
            return;
        }
        let (begin, end) = (REQUESTED.load(Relaxed), heap_end() / PAGE * PAGE);
        // The end moves back where freed memory is given back.
        let is_ours = begin != end && REQUESTED.compare_exchange(begin, end, Relaxed, Relaxed).is_ok();
        if is_ours && begin < end {
            // SAFETY: advice on memory of the heap, which changes no byte of it; an error is no loss.
            unsafe { libc::madvise(begin as *mut libc::c_void, end - begin, libc::MADV_HUGEPAGE) };
        }
    }
}

/// No advice elsewhere.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
mod huge_pages {
    pub fn allocated(_bytes: usize) {}
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
unsafe extern "C" {
    fn hpml_tensor_allocator(allocated: extern "C" fn(usize));
}

/// Makes the allocator keep freed memory instead of giving it back to the system, and requests huge pages for tensors and buffers.
///
/// Activations of 32 MiB and more lie above glibc's mmap threshold: by default each step maps, faults in and unmaps
/// them again (400,000 page faults per step for ResNet-18 at batch 128, 1.3x the step time). In pages of 4 KiB a pass over
/// activations waits for addresses to be translated (6 % of the step time of ResNet-18 at batch 32). Call first thing in `main`.
/// The user's own setting (`MALLOC_*` or `GLIBC_TUNABLES`) is respected. Does nothing without glibc.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let chosen_by_user = std::env::vars_os().any(|(name, value)| {
            let (name, value) = (name.to_string_lossy(), value.to_string_lossy());
            name.starts_with("MALLOC_") || (name == "GLIBC_TUNABLES" && value.contains("malloc"))
        });
        if chosen_by_user {
            return;
        }
        // SAFETY: mallopt only sets parameters of the allocator, and libtorch's is replaced by one whose memory it can free, too;
        // called before any other thread runs.
        unsafe {
            libc::mallopt(libc::M_MMAP_MAX, 0);
            libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
            libc::mallopt(libc::M_TOP_PAD, 64 << 20);
            // With fast bins every free of 64 KiB or more merges all of them: 3 % of a step with small batches. The per-thread
            // cache stays.
            libc::mallopt(libc::M_MXFAST, 0);
            huge_pages::begin();
            hpml_tensor_allocator(huge_pages::allocated);
        }
    }
}

/// Releases freed memory to the system (and the GPU) in spite of [`keep_freed_memory`]. Call between two pieces of work that do
/// not need it at the same time.
pub fn give_back_freed_memory() {
    gpu::give_back_memory();
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: releases pages that the allocator holds free.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Runs `work` with at most `more` bytes of private memory beyond what this process has. The allocator refuses any more, before
/// all memory is used and the kernel kills a process.
pub fn with_memory_limit<T>(more: u64, work: impl FnOnce() -> T) -> T {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: reads and writes the struct given; a soft limit can be set back up to the hard one.
    let before = unsafe {
        libc::getrlimit(libc::RLIMIT_DATA, &mut limit);
        let before = limit;
        limit.rlim_cur = private_memory().saturating_add(more).min(before.rlim_cur);
        libc::setrlimit(libc::RLIMIT_DATA, &limit);
        before
    };
    struct Restore(libc::rlimit);
    impl Drop for Restore {
        fn drop(&mut self) {
            // SAFETY: as above; also when `work` panics.
            unsafe { libc::setrlimit(libc::RLIMIT_DATA, &self.0) };
        }
    }
    let _restore = Restore(before);
    work()
}

/// Bytes of private memory that this process may still take under its limit (`ulimit -d`); `u64::MAX` without a limit.
pub fn private_memory_left() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes the struct given.
    match unsafe { libc::getrlimit(libc::RLIMIT_DATA, &mut limit) } {
        0 if limit.rlim_cur != libc::RLIM_INFINITY => limit.rlim_cur.saturating_sub(private_memory()),
        _ => u64::MAX,
    }
}

/// Private memory of this process, in bytes, as `RLIMIT_DATA` counts it.
fn private_memory() -> u64 {
    let status = procfs::process::Process::myself().and_then(|process| process.status());
    status.ok().and_then(|status| status.vmdata).map_or(u64::MAX, |kibibytes| kibibytes * 1024)
}
