//! The few C and C++ calls that no crate wraps: the allocator, the environment, libtorch's, the GPU's. One of the folders where
//! `unsafe` is allowed; Cargo.toml lists them.
#![allow(unsafe_code)]

pub mod gpu;
mod graph;
mod kernels;
mod libtorch;

pub use graph::{Graph, GraphPool};
pub use kernels::BatchNorm;
pub use libtorch::{backward_with, im2col_conv2d, seeded};

/// Makes the allocator keep freed memory instead of giving it back to the system.
///
/// Activations of 32 MiB and more lie above glibc's mmap threshold: by default each step maps, faults in and unmaps
/// them again (400,000 page faults a step for ResNet-18 at batch 128, 1.3x the step time). Call first thing in `main`.
/// The user's own setting (`MALLOC_*` or `GLIBC_TUNABLES`) is respected. Elsewhere than on glibc this does nothing.
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
            // Every free of 64 KiB or more would merge all fast bins: 3 % of a step of few images. The per-thread cache stays.
            libc::mallopt(libc::M_MXFAST, 0);
        }
    }
}

/// Gives freed memory back to the system (and the GPU) after all: between two pieces of work that do not need it at the same
/// time.
pub fn give_back_freed_memory() {
    gpu::give_back_memory();
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: releases pages that the allocator holds free.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Runs `work` with at most `more` bytes of private memory beyond what this process has: more than that is refused by the
/// allocator, instead of the kernel killing a process when all memory is used.
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

/// Bytes of private memory that this process may still take by its limit (`ulimit -d`).
pub fn private_memory_left() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes the struct given.
    match unsafe { libc::getrlimit(libc::RLIMIT_DATA, &mut limit) } {
        0 if limit.rlim_cur != libc::RLIM_INFINITY => limit.rlim_cur.saturating_sub(private_memory()),
        _ => u64::MAX,
    }
}

/// What `RLIMIT_DATA` counts, in bytes.
fn private_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmData:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).map_or(u64::MAX, |kb| kb * 1024)
}

/// Ends this process without running anything else of it, for when nothing else of it can be trusted to end.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: only ends the process.
    unsafe { libc::_exit(status) }
}

/// Sends SIGTERM to the process that started this one.
pub fn terminate_parent() {
    // SAFETY: takes numbers.
    unsafe { libc::kill(libc::getppid(), libc::SIGTERM) };
}

/// Sets `name` for this process unless the user has set it. Call before any other thread runs.
pub fn default_environment(name: &str, value: &str) {
    if std::env::var_os(name).is_none() {
        // SAFETY: single-threaded at this point (first statements of `main`), so nobody reads the environment meanwhile.
        unsafe { std::env::set_var(name, value) }
    }
}

// HDF5's high-level library, of which hdf5-metno binds nothing. `dataset.id()` is of the type given here, or this does
// not compile (HDF5 1.8 had 32 bits).
unsafe extern "C" {
    fn H5DSset_scale(dataset: i64, name: *const libc::c_char) -> libc::c_int;
    fn H5DSattach_scale(dataset: i64, scale: i64, axis: libc::c_uint) -> libc::c_int;
    fn H5Lunregister(class: libc::c_int) -> libc::c_int;
}

/// From now on a link of HDF5 that points to another file cannot be opened, in this process.
pub fn refuse_external_links() {
    /// `H5L_TYPE_EXTERNAL`.
    const EXTERNAL: libc::c_int = 64;
    static ONCE: std::sync::Once = std::sync::Once::new();
    // SAFETY: takes a number, and `sync` keeps other threads out of the library. It fails only if there is no such class.
    ONCE.call_once(|| hdf5::sync::sync(|| _ = unsafe { H5Lunregister(EXTERNAL) }));
}

/// Makes a dataset an HDF5 dimension scale, the coordinate of the dimension `name`.
pub fn set_dimension_scale(dataset: &hdf5::Dataset, name: &str) -> hdf5::Result<()> {
    let name = std::ffi::CString::new(name).map_err(|_| format!("{name:?} is no name for a dimension"))?;
    // SAFETY: the handle is open as long as `dataset` lives, the name ends in a 0 and outlives the call, and `sync`
    // keeps other threads out of the library.
    hdf5::sync::sync(|| hdf5_status(unsafe { H5DSset_scale(dataset.id(), name.as_ptr()) }))
}

/// Says that `axis` of a dataset runs along `scale`.
pub fn attach_dimension_scale(dataset: &hdf5::Dataset, scale: &hdf5::Dataset, axis: u32) -> hdf5::Result<()> {
    // SAFETY: both handles are open as long as the references live, and `sync` keeps other threads out of the library.
    hdf5::sync::sync(|| hdf5_status(unsafe { H5DSattach_scale(dataset.id(), scale.id(), axis) }))
}

fn hdf5_status(status: libc::c_int) -> hdf5::Result<()> {
    if status < 0 { Err(hdf5::Error::query()?) } else { Ok(()) }
}
