//! The levels of the network: ranks of a host, hosts of a rack, racks; and what an all-reduce sends over each.

use super::cost::{self, Crossovers};
use super::halving::Rounds;
use super::hierarchical::halves;
use super::hosts::Hosts;
use super::racks::extremes;
use super::segments::Plan;
use super::{Combine, Communicator};
use crate::config::{Algorithm, Parallel};
use crate::error::Result;
use crate::metrics::Kind;

/// What is between the members of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Ranks of a host: shared memory.
    Host,
    /// Hosts of a rack: a switch.
    Rack,
    /// Racks, or hosts where racks are not known: the rest of the network.
    System,
}

/// Number of ranks on the hosts, and of hosts in the racks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Levels {
    /// Number of hosts.
    pub hosts: usize,
    /// Ranks of the host with the fewest, and of that with the most.
    pub ranks_of_host: [usize; 2],
    /// Hosts of each rack, in the order in which hosts are linked; empty where racks are not known or make no difference, and on
    /// ranks other than 0.
    pub racks: Vec<usize>,
}

impl Levels {
    /// The levels that the ranks of `communicator` are on. A collective.
    ///
    /// # Errors
    /// Returns [`Error::Rack`](crate::error::Error::Rack) on all ranks if the racks contradict each other, and
    /// [`Error::Mpi`](crate::error::Error::Mpi) if MPI reports a failure.
    pub fn of(communicator: &Communicator) -> Result<Levels> {
        let hosts = Hosts::of(communicator)?;
        let size = hosts.here.size() as f64;
        let mut sizes = [size, -size];
        communicator.all_reduce(Kind::Control, Combine::Max, &mut sizes)?;
        let peers = hosts.racks.and_then(|racks| racks.peers);
        Ok(Levels {
            hosts: hosts.count,
            ranks_of_host: [-sizes[1] as usize, sizes[0] as usize],
            racks: peers.map_or(Vec::new(), |peers| peers.sizes),
        })
    }

    /// The levels from the inside out: without that of racks where there are none.
    pub fn list(&self) -> Vec<Level> {
        match self.racks.is_empty() {
            true => vec![Level::Host, Level::System],
            false => vec![Level::Host, Level::Rack, Level::System],
        }
    }

    /// Number of groups of a level, and members of the smallest and of the largest group: hosts and their ranks, racks and their
    /// hosts, one system and its racks or hosts.
    pub fn groups(&self, level: Level) -> (usize, [usize; 2]) {
        match level {
            Level::Host => (self.hosts, self.ranks_of_host),
            Level::Rack => (self.racks.len(), extremes(&self.racks)),
            Level::System => (1, [if self.racks.is_empty() { self.hosts } else { self.racks.len() }; 2]),
        }
    }

    /// The algorithm that reduces a buffer of `bytes` bytes, given a configuration whose crossovers are pinned. For rank 0, which
    /// knows the racks.
    pub fn algorithm_for(&self, parallel: &Parallel, bytes: usize) -> Algorithm {
        let crossovers = Crossovers::configured(&parallel.crossovers);
        let [least, most] = extremes(&self.racks);
        let has_slices = !self.racks.is_empty() && least == most;
        cost::choose(parallel.all_reduce, crossovers, self.hosts, has_slices, bytes)
    }

    /// Name of what carries an all-reduce by `algorithm` among the members of a group; `None` if the levels do not tell.
    pub fn carrier(&self, algorithm: Algorithm, level: Level) -> Option<&'static str> {
        match (algorithm, level) {
            (algorithm, Level::Host) => algorithm.shares_memory().then_some("shared memory"),
            (Algorithm::Halving, _) => Some("halving"),
            (Algorithm::Hierarchical, Level::System) if halves(self.racks.len()) => Some("halving"),
            (Algorithm::Shared | Algorithm::Hierarchical, _) => Some("ring"),
            _ => None,
        }
    }

    /// Bytes that leave a group of the level, that which sends most, per byte of a buffer that is all-reduced between hosts by
    /// `algorithm`, computed from its messages; `None` for the whole system, which nothing leaves, and for other algorithms.
    pub fn leaving(&self, algorithm: Algorithm, level: Level) -> Option<f64> {
        let messages = messages(algorithm, self.hosts, &self.racks)?;
        match level {
            Level::Host => Some(most_leaving(&messages, &(0..self.hosts).collect::<Vec<_>>())),
            Level::Rack => Some(most_leaving(&messages, &racks_of_hosts(&self.racks))),
            Level::System => None,
        }
    }
}

/// Source, destination and bytes per byte of the buffer.
type Sent = (usize, usize, f64);

/// What `hosts` hosts, those of a rack next to each other, send in all for one all-reduce.
fn messages(algorithm: Algorithm, hosts: usize, racks: &[usize]) -> Option<Vec<Sent>> {
    let ring = |hosts: usize| -> Vec<Sent> {
        let each = 2.0 * (hosts - 1) as f64 / hosts as f64;
        (0..hosts).map(|host| (host, (host + 1) % hosts, each)).collect()
    };
    let halving = |hosts: usize| -> Vec<Sent> {
        let elements = hosts.next_power_of_two(); // so that every half is whole
        let plans = (0..hosts).map(|host| (host, Rounds::halving(host, hosts, elements, usize::MAX)));
        let sent = |(host, plan): (usize, Rounds)| -> Vec<Sent> {
            let sent = (0..plan.sends()).map(|index| plan.sent(index));
            sent.map(|sent| (host, sent.peer, sent.elements.len() as f64 / elements as f64)).collect()
        };
        plans.flat_map(sent).collect()
    };
    match algorithm {
        Algorithm::Shared => Some(ring(hosts)),
        Algorithm::Halving => Some(halving(hosts)),
        Algorithm::Hierarchical if !racks.is_empty() => {
            let (count, size) = (racks.len(), racks[0]);
            let within = (0..count).flat_map(|rack| {
                ring(size).into_iter().map(move |(from, to, bytes)| (from + rack * size, to + rack * size, bytes))
            });
            let of_slice = if halves(count) { halving(count) } else { ring(count) };
            let between = (0..size).flat_map(|place| {
                let host = move |rack: usize| rack * size + place;
                of_slice.iter().map(move |&(from, to, bytes)| (host(from), host(to), bytes / size as f64))
            });
            Some(within.chain(between).collect())
        }
        _ => None,
    }
}

/// Number of the rack of each host, given the number of hosts of each of the `racks`.
fn racks_of_hosts(racks: &[usize]) -> Vec<usize> {
    racks.iter().enumerate().flat_map(|(rack, &hosts)| std::iter::repeat_n(rack, hosts)).collect()
}

/// Bytes that leave the group that sends most, `groups` being the number of each host's group.
fn most_leaving(messages: &[Sent], groups: &[usize]) -> f64 {
    let mut sent = vec![0.0; groups.iter().max().map_or(0, |most| most + 1)];
    let crossing = messages.iter().filter(|(from, to, _)| groups[*from] != groups[*to]);
    crossing.for_each(|(from, _, bytes)| sent[groups[*from]] += bytes);
    sent.into_iter().fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaving(algorithm: Algorithm, hosts: usize, racks: &[usize]) -> f64 {
        most_leaving(&messages(algorithm, racks.len(), &vec![hosts; racks.len() / hosts]).unwrap(), racks)
    }

    #[test]
    fn hosts_ordered_by_rack_send_less_over_the_uplinks() {
        use Algorithm::{Halving, Hierarchical, Shared};
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-12, "{found}, not {expected}");
        // Two racks of two hosts.
        near(leaving(Shared, 2, &[0, 0, 1, 1]), 1.5);
        near(leaving(Shared, 2, &[0, 1, 0, 1]), 3.0);
        near(leaving(Halving, 2, &[0, 0, 1, 1]), 1.0);
        near(leaving(Halving, 2, &[0, 1, 0, 1]), 2.0);
        near(leaving(Hierarchical, 2, &[0, 0, 1, 1]), 1.0);
        // Two racks of three, whose fold by halving crosses the uplink.
        let racks = [0, 0, 0, 1, 1, 1];
        near(leaving(Shared, 3, &racks), 5.0 / 3.0);
        assert!(leaving(Halving, 3, &racks) > 2.0);
        near(leaving(Hierarchical, 3, &racks), 1.0);
        // 2 (r-1)/r of three racks of four.
        near(leaving(Hierarchical, 4, &[0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]), 4.0 / 3.0);
    }

    #[test]
    fn a_host_sends_as_much_whichever_of_these_carries_it() {
        let levels = Levels { hosts: 8, ranks_of_host: [1, 2], racks: vec![4, 4] };
        for algorithm in [Algorithm::Shared, Algorithm::Halving, Algorithm::Hierarchical] {
            let sent = levels.leaving(algorithm, Level::Host).unwrap();
            assert!((sent - 2.0 * 7.0 / 8.0).abs() < 1e-12, "{algorithm:?}: {sent}");
        }
        assert_eq!((levels.groups(Level::Rack), levels.groups(Level::System)), ((2, [4, 4]), (1, [2, 2])));
        assert_eq!(levels.leaving(Algorithm::Mpi, Level::Host), None);
        let parallel = Parallel { all_reduce: Algorithm::Auto, crossovers: vec![10, 20, 30], ..Parallel::default() };
        let chosen = |levels: &Levels| [1, 10, 20, 30].map(|bytes| levels.algorithm_for(&parallel, bytes));
        use Algorithm::{Halving, Hierarchical, Mpi, Shared};
        assert_eq!(chosen(&levels), [Mpi, Halving, Hierarchical, Shared]);
        let unequal = Levels { racks: vec![3, 5], ..levels.clone() };
        assert_eq!(chosen(&unequal), [Mpi, Halving, Shared, Shared]);
        let flat = Levels { racks: Vec::new(), ..levels };
        assert_eq!((flat.list().len(), flat.groups(Level::System)), (2, (1, [8, 8])));
    }
}
