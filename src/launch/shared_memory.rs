//! Whether the hosts' shared memory has room for the buffers that `parallel.all_reduce = "auto"` would put there. Containers often
//! give 64 MB.

use super::Job;
use crate::collective::{Combine, Communicator};
use crate::config::{Algorithm, Compression, Plan};
use crate::error::{Error, Result};
use crate::metrics::Kind;
use crate::units::{Bytes, format_bytes};

/// Where MPI libraries keep the memory that ranks of a host share.
const PLACE: &str = "/dev/shm";

/// Room that is left to others, per rank.
const LEFT: Bytes = 1 << 20;

impl Job {
    /// The plan for `ranks` that reduce `elements` gradients on CPU cores: by the ring, with a warning, where `auto` would take
    /// more shared memory than a host has. A collective of `ranks`.
    ///
    /// # Errors
    /// [`Error::ConfigValue`] if `shared` is set and there is no room; a rank is gone.
    pub fn fitting(&self, plan: &Plan, ranks: &Communicator, elements: usize) -> Result<Plan> {
        let algorithm = plan.parallel.all_reduce;
        let shares = matches!(algorithm, Algorithm::Auto | Algorithm::Shared) && self.target.own_memory().is_none();
        if !shares || ranks.size() == 1 {
            return Ok(plan.clone());
        }
        let on_host = ranks.split_by_host()?.size();
        let copies = if plan.parallel.compression == Compression::None { 1 } else { 2 }; // what is sent has a buffer of its own
        let needed = on_host as Bytes * (copies * (elements * size_of::<f32>()) as Bytes + LEFT);
        let free = free().filter(|free| *free < needed && on_host > 1);
        let mut worst = [free.map_or(0.0, |_| needed as f64), -free.map_or(f64::MAX, |free| free as f64)];
        ranks.all_reduce(Kind::Control, Combine::Max, &mut worst)?;
        let [needed, free] = [worst[0], -worst[1]].map(|bytes| format_bytes(bytes as Bytes));
        if worst[0] == 0.0 {
            return Ok(plan.clone());
        }
        let enlarge = format!("enlarge {PLACE} (of a container: --shm-size, or the host's own bound into it)");
        if algorithm == Algorithm::Shared {
            return Err(Error::ConfigValue {
                place: PLACE.into(),
                key: "parallel.all_reduce".into(),
                value: "\"shared\"".into(),
                expected: format!("needs {needed} of shared memory, and {free} are free: {enlarge}, or set \"auto\""),
            });
        }
        self.warn(format!(
            "gradients are reduced by the ring, not through shared memory, which is slower: {PLACE} has {free} free on a host whose \
             ranks need {needed}: {enlarge}"
        ));
        plan.adapted(|config| config.parallel.all_reduce = Algorithm::Ring)
    }
}

/// Free bytes of the host's shared memory; `None` if there is no such place.
fn free() -> Option<Bytes> {
    let found = rustix::fs::statvfs(PLACE).ok()?;
    Some(found.f_bavail as Bytes * found.f_frsize as Bytes)
}
