//! The network between the hosts of a job, measured once for everything that it reduces.

use std::collections::BTreeSet;

use super::Job;
use crate::collective::{Communicator, Crossovers, DeviceCollectives, Network, measure_network};
use crate::config::{Algorithm, Plan};
use crate::error::Result;

impl Job {
    /// Number of hosts, by their names, on rank 0; 0 on the others.
    pub fn hosts(&self) -> usize {
        self.hosts_of(self.world_size)
    }

    /// Number of hosts of the first `ranks` ranks, by their names, on rank 0; 0 on the others.
    pub fn hosts_of(&self, ranks: usize) -> usize {
        self.places.iter().take(ranks).map(|place| &place.host).collect::<BTreeSet<_>>().len()
    }

    /// The plan for `ranks`, the first of the job, with the sizes at which `auto` changes the all-reduce between hosts, unless it has
    /// them or needs none: those `kept` from before, equal on all ranks ([`crossovers_from_root`](Self::crossovers_from_root)), or else
    /// those that the network suggests, which is measured and returned. A collective of `ranks`; on one host nothing is sent.
    ///
    /// # Errors
    /// A rank is gone.
    pub fn with_crossovers(
        &self,
        plan: &Plan,
        ranks: &Communicator,
        kept: Option<Crossovers>,
    ) -> Result<(Plan, Option<Network>)> {
        let parallel = &plan.parallel;
        let chooses = parallel.all_reduce == Algorithm::Auto && parallel.crossovers.is_empty();
        let through_host = DeviceCollectives::go_through_host(self.target, parallel.all_reduce);
        // Alike on all ranks, which `places` are not.
        let is_one_host = self.ranks_of_host().iter().filter(|rank| **rank < ranks.size()).count() == ranks.size();
        if !chooses || is_one_host || !through_host {
            return Ok((plan.clone(), None));
        }
        let network = if kept.is_some() { None } else { measure_network(ranks)? };
        let plan = match kept.or_else(|| network.as_ref().map(Network::crossovers)) {
            Some(crossovers) => plan.adapted(|config| config.parallel.crossovers = crossovers.into())?,
            None => plan.clone(),
        };
        Ok((plan, network))
    }

    /// Rank 0's `crossovers` on all ranks. A collective.
    ///
    /// # Errors
    /// A rank is gone.
    pub fn crossovers_from_root(&self, crossovers: Option<Crossovers>) -> Result<Option<Crossovers>> {
        let numbers = crossovers.map_or([-1.0; 3], |Crossovers { mpi_below, hierarchical_from, ring_from }| {
            [mpi_below, hierarchical_from, ring_from].map(|bytes| bytes as f64)
        });
        let from_root = self.from_root(numbers)?;
        let [mpi_below, hierarchical_from, ring_from] = from_root.map(|bytes| bytes as u64);
        let given = Crossovers { mpi_below, hierarchical_from, ring_from };
        Ok((from_root[0] >= 0.0).then_some(given))
    }
}
