//! The ring in place of shared memory where the hosts have no room for the gradients.

use super::Job;
use crate::collective::{Communicator, has_room};
use crate::config::{Algorithm, Compression, Plan};
use crate::error::{Error, Result};
use crate::units::Bytes;

/// Room that is left to others, per rank.
const LEFT: Bytes = 1 << 20;

impl Job {
    /// The plan for `ranks` that reduce `elements` gradients on CPU cores: by the ring, with a warning, where `auto` would take
    /// more shared memory than a host has. A collective of `ranks`.
    ///
    /// # Errors
    /// [`Error::SharedMemory`] if `shared`, `halving` or `hierarchical` is set and there is no room; a rank is gone.
    pub fn fitting(&self, plan: &Plan, ranks: &Communicator, elements: usize) -> Result<Plan> {
        let algorithm = plan.parallel.all_reduce;
        let shares = algorithm.shares_memory() && self.target.own_memory().is_none();
        if !shares || ranks.size() == 1 {
            return Ok(plan.clone());
        }
        let on_host = ranks.split_by_host()?.size() as Bytes;
        let copies = if plan.parallel.compression == Compression::None { 1 } else { 2 }; // what is sent has a buffer of its own
        let of_rank = copies * (elements * size_of::<f32>()) as Bytes + LEFT;
        match has_room(ranks, if on_host > 1 { on_host * of_rank } else { 0 }) {
            Err(error @ Error::SharedMemory { .. }) if algorithm == Algorithm::Auto => {
                self.warn(format!(
                    "gradients are reduced by the ring, which is slower than through shared memory: {error}"
                ));
                plan.adapted(|config| config.parallel.all_reduce = Algorithm::Ring)
            }
            room => room.map(|()| plan.clone()),
        }
    }
}
