//! A hierarchical all-reduce between hosts in racks of equal size, for networks whose racks share uplinks.
//!
//! `r` racks of `m` hosts: a reduce-scatter by a ring within each rack leaves every host with a slice of `1/m` of the buffer; hosts
//! with the same slice, one per rack, all-reduce it, all slices at once; an all-gather by a ring within each rack ends it. A host
//! sends `2 (n-1)/n` of the buffer in all, as in a ring of all `n = m r` hosts, in `2 (m-1) + 2 (r-1)` hops instead of `2 (n-1)`, and
//! `2 (r-1)/r` of the buffer leave a rack instead of `2 (n-1)/n`. Between a power of two of racks halving takes `2 log2(r)` rounds.
//! Source: Goyal et al., Accurate, Large Minibatch SGD, 2017, section 4, with racks in place of servers.

use std::time::Instant;

use super::backoff::WaitPolicy;
use super::racks::Peers;
use super::{Element, halving, ring};
use crate::error::Result;
use crate::units::Second;

/// Replaces every host's `values` by their sum, bit-identical on all of them, and returns the seconds between racks.
///
/// # Panics
/// The racks are not equal in size.
pub(super) fn all_reduce<T: Element>(peers: &Peers, values: &mut [T], policy: WaitPolicy) -> Result<Second> {
    let between = peers.between.as_ref().expect("in racks of equal size every host has a peer in each");
    let own = ring::reduce_scatter(&peers.within, values, policy)?;
    let started = Instant::now();
    match halves(between.size()) {
        true => halving::all_reduce(between, &mut values[own], policy)?,
        false => ring::all_reduce(between, &mut values[own], policy)?,
    }
    let seconds = started.elapsed().as_secs_f64();
    ring::all_gather(&peers.within, values, policy)?;
    Ok(seconds)
}

/// Whether `racks` racks reduce by halving and doubling; else by a ring, which sends less.
pub(super) fn halves(racks: usize) -> bool {
    racks.is_power_of_two()
}
