//! The racks of a job's hosts: hosts behind one switch, whose uplink they share. Who is in which rack, and in which order the hosts
//! talk to each other for it.

use std::collections::HashMap;

use super::{Combine, Communicator};
use crate::error::{Error, Result};
use crate::metrics::Kind;

/// Variable with the name of a rank's rack; before Slurm's.
const RACK: &str = "HPML_RACK";

/// Racks of a communicator's hosts.
pub(super) struct Racks {
    /// Number of racks: more than one, and fewer than hosts.
    pub(super) count: usize,
    /// Hosts of the smallest rack, and of the largest.
    pub(super) hosts: [usize; 2],
    /// Communicators of a leader; `None` on the other ranks.
    pub(super) peers: Option<Peers>,
}

/// The leaders with which a leader talks on each level.
pub(super) struct Peers {
    /// Leaders of this rack.
    pub(super) within: Communicator,
    /// Leaders at the same place in each rack; `None` at a place that not every rack has.
    pub(super) between: Option<Communicator>,
    /// Number of hosts of each rack, in the order of the racks.
    pub(super) sizes: Vec<usize>,
}

/// Names of a rank's rack by their origin.
struct Names {
    /// `HPML_RACK`, unless it is empty.
    given: Option<String>,
    /// The switches above the node by Slurm's topology plugin.
    switch: Option<String>,
}

impl Names {
    /// The names that the environment has, whose variables `variable` returns.
    ///
    /// Slurm's address of a node is `s0.s1.node7` with the pattern `switch.switch.node` (topology/tree), `b8.node7` with
    /// `block.node` (topology/block), and `node7` with `node` where it knows no topology. Source: `topology_p_get_node_addr` of
    /// these plugins.
    fn new(variable: impl Fn(&str) -> Option<String>) -> Names {
        let given = variable(RACK).map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
        let address = variable("SLURM_TOPOLOGY_ADDR").zip(variable("SLURM_TOPOLOGY_ADDR_PATTERN"));
        let switch = address.and_then(|(address, pattern)| {
            let above = pattern.strip_suffix(".node")?.split('.');
            let depth = above.clone().count();
            // A torus has coordinates, which are no racks.
            let are_switches = above.into_iter().all(|part| part == "switch" || part == "block");
            let parts: Vec<&str> = address.splitn(depth + 1, '.').collect();
            (are_switches && parts.len() == depth + 1).then(|| parts[..depth].join("."))
        });
        Names { given, switch }
    }
}

impl Racks {
    /// The racks of the hosts of these `leaders`, given what tells this rank's `rack` from others. Orders the leaders by rack: racks in
    /// the order of their first rank, the hosts of a rack in theirs. `None` where racks make no difference. A collective of all ranks,
    /// of which `here` are those of this host.
    ///
    /// # Errors
    /// Returns [`Error::Mpi`] if MPI reports a failure.
    pub(super) fn of(here: &Communicator, leaders: &mut Option<Communicator>, rack: u64) -> Result<Option<Racks>> {
        let mut shape = [0u64; 3];
        let mut peers = None;
        if let Some(leader) = leaders {
            let (places, sizes) = places(&leader.all_gather(Kind::Control, &[rack])?);
            let [smallest, largest] = extremes(&sizes);
            shape = [sizes.len(), smallest, largest].map(|number| number as u64);
            if make_a_difference(sizes.len(), largest) {
                let (rack, place) = places[leader.rank()];
                let position = sizes[..rack].iter().sum::<usize>() + place;
                let every = "every rank passes a color";
                let ordered = leader.split_in_order(Some(0), position)?.expect(every);
                let within = ordered.split(Some(rack))?.expect(every);
                let between = ordered.split((place < smallest).then_some(place))?;
                *leaders = Some(ordered);
                peers = Some(Peers { within, between, sizes });
            }
        }
        here.broadcast(Kind::Control, &mut shape)?;
        let [count, smallest, largest] = shape.map(|number| number as usize);
        Ok(make_a_difference(count, largest).then_some(Racks { count, hosts: [smallest, largest], peers }))
    }

    /// Whether all racks have as many hosts.
    pub(super) fn are_equal(&self) -> bool {
        self.hosts[0] == self.hosts[1]
    }
}

/// Whether `racks` racks, the largest of `largest` hosts, are a level between a host and the whole.
fn make_a_difference(racks: usize, largest: usize) -> bool {
    racks > 1 && largest > 1
}

/// Checks that the ranks of `all` agree on their racks, where `here` are those of this rank's host. A collective.
///
/// # Errors
/// Returns [`Error::Rack`] on all ranks if HPML_RACK is missing on some, or differs on a host, and [`Error::Mpi`] if MPI reports a
/// failure.
pub fn check_racks(all: &Communicator, here: &Communicator) -> Result<()> {
    agreed(all, here).map(drop)
}

/// What tells this rank's rack from others, on all ranks of `all`; `None` on all of them if some have no name for it. `here` are the
/// ranks of this host. A collective.
///
/// # Errors
/// Those of [`check_racks`].
pub(super) fn agreed(all: &Communicator, here: &Communicator) -> Result<Option<u64>> {
    let names = Names::new(|name| std::env::var(name).ok());
    let mut named = [&names.given, &names.switch].map(|name| f64::from(u8::from(name.is_some())));
    all.all_reduce(Kind::Control, Combine::Sum, &mut named)?;
    let [given, switches] = named.map(|ranks| ranks as usize);
    if given == 0 && switches < all.size() {
        return Ok(None); // no rank names its rack, and Slurm not that of every node
    }
    let name = if given > 0 { names.given } else { names.switch };
    if let Some(rank) = first_rank(all, name.is_none())? {
        return Err(Error::Rack { rank, problem: "is not set, but on other ranks: set it for all ranks or for none" });
    }
    let hash = hash_of(&name.unwrap_or_default());
    let mut of_leader = [hash];
    here.broadcast(Kind::Control, &mut of_leader)?;
    match first_rank(all, of_leader[0] != hash)? {
        Some(rank) if given > 0 => {
            let problem = "differs from that of another rank of its host: name one rack for all ranks of a host";
            Err(Error::Rack { rank, problem })
        }
        Some(_) => Ok(None), // several of Slurm's nodes on one host
        None => Ok(Some(hash)),
    }
}

/// Lowest rank of `all` that `fails`, on all ranks; `None` if none does. A collective.
fn first_rank(all: &Communicator, fails: bool) -> Result<Option<usize>> {
    let mut rank = [if fails { all.rank() } else { all.size() } as f64];
    all.all_reduce(Kind::Control, Combine::Min, &mut rank)?;
    Ok(Some(rank[0] as usize).filter(|&rank| rank < all.size()))
}

fn hash_of(name: &str) -> u64 {
    let digest = blake3::hash(name.as_bytes());
    u64::from_le_bytes(digest.as_bytes()[..8].try_into().expect("a blake3 hash has 32 bytes"))
}

/// Rack of each host, numbered in the order of their first hosts, and its place in the rack; and the number of hosts of each rack,
/// given what tells the `racks` apart.
fn places(racks: &[u64]) -> (Vec<(usize, usize)>, Vec<usize>) {
    let (mut numbers, mut sizes) = (HashMap::new(), Vec::new());
    let place = |rack| {
        let number = *numbers.entry(rack).or_insert(sizes.len());
        if number == sizes.len() {
            sizes.push(0);
        }
        sizes[number] += 1;
        (number, sizes[number] - 1)
    };
    (racks.iter().map(place).collect(), sizes)
}

/// Smallest and largest of `sizes`; zeros if there is none.
pub(super) fn extremes(sizes: &[usize]) -> [usize; 2] {
    [sizes.iter().min(), sizes.iter().max()].map(|size| size.copied().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(variables: &[(&str, &str)]) -> (Option<String>, Option<String>) {
        let find = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string());
        let Names { given, switch } = Names::new(find);
        (given, switch)
    }

    #[test]
    fn a_rack_has_the_name_that_is_given_or_its_switches() {
        assert_eq!(names(&[]), (None, None));
        assert_eq!(names(&[(RACK, " ")]), (None, None));
        assert_eq!(names(&[(RACK, "r1 ")]).0.unwrap(), "r1");
        let slurm = |address, pattern| {
            names(&[("SLURM_TOPOLOGY_ADDR", address), ("SLURM_TOPOLOGY_ADDR_PATTERN", pattern)]).1.unwrap_or_default()
        };
        assert_eq!(slurm("s0.s1.node7", "switch.switch.node"), "s0.s1");
        assert_eq!(slurm("b8.node7.cluster", "block.node"), "b8");
        assert_eq!(slurm("node7", "node"), "");
        assert_eq!(slurm("t:0:1:2.node7", "torus:x:y:z.node"), "");
        assert_eq!(slurm("s0", "switch.node"), "");
    }

    #[test]
    fn hosts_are_ordered_by_the_first_host_of_their_rack() {
        let (placed, sizes) = places(&[7, 3, 7, 9, 3, 7]);
        assert_eq!(placed, [(0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2)]);
        assert_eq!((&sizes[..], extremes(&sizes)), (&[3, 2, 1][..], [1, 3]));
        assert!(places(&[]).1.is_empty());
    }
}
