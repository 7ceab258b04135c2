//! Memory available to a case, and memory that it took.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;

use procfs::process::{ClearRefs, Process, Status};

use crate::sys;
use crate::units::Bytes;

/// Bytes that each of `sharing` ranks of this host can take beyond what it has: its share of what the system (or the job's
/// control group, which holds Slurm's limit) has left, within the process's own limit.
pub(super) fn room(sharing: usize) -> Bytes {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let free = system.available_memory();
    let limited = system.cgroup_limits().map_or(free, |limits| limits.free_memory.min(free));
    (limited / sharing.max(1) as u64).min(sys::private_memory_left())
}

/// Resident bytes of this process now.
pub(super) fn resident() -> Bytes {
    status_bytes(|status| status.vmrss)
}

/// Greatest resident bytes since [`forget_peak`].
pub(super) fn peak() -> Bytes {
    status_bytes(|status| status.vmhwm)
}

/// Resets the peak. If the system refuses, peaks are those of the whole run.
pub(super) fn forget_peak() {
    let _ = Process::myself().and_then(|process| process.clear_refs(ClearRefs::PeakRSS));
}

/// Bytes in a `field` of this process's status, which counts in KiB; 0 if it cannot be read.
fn status_bytes(field: impl Fn(&Status) -> Option<u64>) -> Bytes {
    let status = Process::myself().and_then(|process| process.status());
    status.ok().and_then(|status| field(&status)).unwrap_or(0) * 1024
}

/// Predicts the memory of one rank at `batch` from that of smaller or equal batches, along the line through the two largest
/// known. Returns 0 if too few are known.
///
/// `known` is (batch, peak bytes), in any order.
pub(super) fn extrapolated(known: &[(usize, Bytes)], batch: usize) -> Bytes {
    let mut smaller: Vec<(usize, Bytes)> = known.iter().copied().filter(|&(size, _)| size <= batch).collect();
    smaller.sort_unstable();
    smaller.dedup_by(|next, kept| {
        let same = next.0 == kept.0;
        kept.1 = if same { kept.1.max(next.1) } else { kept.1 };
        same
    });
    match smaller[..] {
        [.., (size, peak)] if size == batch => peak,
        [.., (first, low), (second, high)] => {
            let slope = high.saturating_sub(low) as f64 / (second - first) as f64;
            (high as f64 + slope * (batch - second) as f64) as Bytes
        }
        _ => 0,
    }
}

/// Runs `work`, for which other ranks do not wait. Returns false if it ran out of memory and was abandoned; any other panic ends
/// the job.
///
/// The allocator, oneDNN and C++ word a failed allocation differently, so any error of libtorch is taken for one, and logged.
pub(super) fn survives(work: impl FnOnce()) -> bool {
    let ends_job = Arc::new(panic::take_hook());
    let otherwise = ends_job.clone();
    panic::set_hook(Box::new(move |info| match info.payload_as_str() {
        Some(message) if message.contains("Torch(") => {
            log::warn!(
                "out of memory, so this case is left out (a smaller sweep.batch_per_rank needs less): {}",
                message.lines().next().unwrap_or_default()
            );
        }
        _ => otherwise(info),
    }));
    // The caller discards what `work` leaves half done.
    let survived = panic::catch_unwind(AssertUnwindSafe(work)).is_ok();
    panic::set_hook(Box::new(move |info| ends_job(info)));
    survived
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_grows_along_the_line_of_the_last_two_batches() {
        let known = [(128, 2000), (32, 800), (128, 1900), (512, 6800)];
        assert_eq!(extrapolated(&known, 32), 800);
        assert_eq!(extrapolated(&known, 128), 2000);
        assert_eq!(extrapolated(&known, 1024), 6800 + 512 * 4800 / 384);
        assert_eq!(extrapolated(&known[..1], 512), 0);
        assert_eq!(extrapolated(&[], 512), 0);
    }

    #[test]
    fn this_process_takes_memory_and_there_is_more() {
        forget_peak();
        assert!(resident() > 1 << 20 && peak() >= resident() / 2);
        assert!(room(1) >= room(2) && room(1) > 0);
    }
}
