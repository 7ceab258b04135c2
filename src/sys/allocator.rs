//! The allocator: freed memory that it keeps, and the limit of the memory that it may take.

use super::gpu;

/// Makes the allocator keep freed memory instead of giving it back to the system.
///
/// Activations of 32 MiB and more lie above glibc's mmap threshold: by default each step maps, faults in and unmaps
/// them again (400,000 page faults per step for ResNet-18 at batch 128, 1.3x the step time). Call first thing in `main`.
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
        // SAFETY: mallopt only sets parameters of the allocator; called before any other thread runs.
        unsafe {
            libc::mallopt(libc::M_MMAP_MAX, 0);
            libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
            libc::mallopt(libc::M_TOP_PAD, 64 << 20);
            // With fast bins every free of 64 KiB or more merges all of them: 3 % of a step with small batches. The per-thread
            // cache stays.
            libc::mallopt(libc::M_MXFAST, 0);
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
