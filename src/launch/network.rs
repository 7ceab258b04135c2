//! The network between the hosts of a job, measured once for everything that it reduces.

use std::collections::BTreeSet;

use super::Job;
use crate::collective::{Communicator, DeviceCollectives, Network, measure_network};
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
    /// them or needs none: those that the network suggests, which is measured and returned. A collective of `ranks`; on one host
    /// nothing is sent.
    ///
    /// # Errors
    /// A rank is gone.
    pub fn with_crossovers(&self, plan: &Plan, ranks: &Communicator) -> Result<(Plan, Option<Network>)> {
        let parallel = &plan.parallel;
        let chooses = parallel.all_reduce == Algorithm::Auto && parallel.crossovers.is_empty();
        let through_host = DeviceCollectives::go_through_host(self.target, parallel.all_reduce);
        // Alike on all ranks, which `places` are not.
        let is_one_host = self.ranks_of_host().iter().filter(|rank| **rank < ranks.size()).count() == ranks.size();
        if !chooses || is_one_host || !through_host {
            return Ok((plan.clone(), None));
        }
        let network = measure_network(ranks)?;
        let plan = match &network {
            Some(network) => plan.adapted(|config| config.parallel.crossovers = network.crossovers().into())?,
            None => plan.clone(),
        };
        Ok((plan, network))
    }
}
