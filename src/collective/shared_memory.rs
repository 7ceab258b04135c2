//! Room for memory that the ranks of a host share. Containers often give 64 MB.

use super::{Combine, Communicator};
use crate::error::{Error, Result};
use crate::metrics::Kind;
use crate::units::{Bytes, format_bytes};

/// Where MPI libraries keep the memory that ranks of a host share.
const PLACE: &str = "/dev/shm";

/// Learns whether every host of `ranks` has room for shared memory, of which this rank's host needs `needed` bytes. A collective.
///
/// Asked before MPI: where there is no room Open MPI 4.1 returns an error from MPI_Win_allocate_shared on one rank, and the others
/// wait in it for ever.
///
/// # Errors
/// [`Error::SharedMemory`], the same on all ranks, if a host has none; a rank is gone.
pub fn has_room(ranks: &Communicator, needed: Bytes) -> Result<()> {
    let free = free().filter(|free| *free < needed);
    let mut worst = [free.map_or(0.0, |_| needed as f64), -free.map_or(f64::MAX, |free| free as f64)];
    ranks.all_reduce(Kind::Control, Combine::Max, &mut worst)?;
    let [needed, free] = [worst[0], -worst[1]].map(|bytes| format_bytes(bytes as Bytes));
    if worst[0] == 0.0 { Ok(()) } else { Err(Error::SharedMemory { place: PLACE, needed, free }) }
}

/// Free bytes of the host's shared memory; `None` if there is no such place.
fn free() -> Option<Bytes> {
    let found = rustix::fs::statvfs(PLACE).ok()?;
    Some(found.f_bavail as Bytes * found.f_frsize as Bytes)
}
