//! The levels that an all-reduce between hosts has: hosts, racks, the whole; the table `/levels`, and a line.

use crate::collective::{Level, Levels, Link, Network};
use crate::config::Algorithm;
use crate::table::{Schema, Table};
use crate::units::{counted, gigabytes_per_second};

/// One level of an all-reduce by one algorithm.
struct OfAlgorithm {
    algorithm: Algorithm,
    level: Level,
    groups: usize,
    members: [usize; 2],
    carrier: Option<&'static str>,
    /// One hop of a ring of the members, if it was measured.
    hop: Option<Link>,
    leaving: Option<f64>,
}

/// Columns of `/levels`.
fn schema() -> Schema<OfAlgorithm> {
    let none = "shared memory, or the network was not measured";
    Schema::new("levels", "row")
        .text(("algorithm", "1", "algorithm of an all-reduce between hosts, as in /allreduce"), |row: &OfAlgorithm| {
            row.algorithm.as_str()
        })
        .text(("level", "1", "host (its ranks), rack (its hosts) or system (its racks, or hosts without racks)"), |row| {
            match row.level {
                Level::Host => "host",
                Level::Rack => "rack",
                Level::System => "system",
            }
        })
        .count(("groups", "1", "number of hosts, of racks, of systems"), |row| row.groups)
        .count(("members_min", "1", "members of the smallest group"), |row| row.members[0])
        .count(("members_max", "1", "members of the largest group"), |row| row.members[1])
        .text(("carrier", "1", "what carries it among the members of a group"), |row| row.carrier.unwrap_or_default())
        .float(
            ("hop_latency", "s", &*format!("time of a hop of a ring of the members without data, all groups at once; NaN: {none}")),
            |row| row.hop.map_or(f64::NAN, |hop| hop.latency),
        )
        .float(
            ("hop_bandwidth", "GB/s", &*format!("bytes of a hop per second beyond its latency; NaN: {none}")),
            |row| row.hop.map_or(f64::NAN, |hop| gigabytes_per_second(hop.bandwidth())),
        )
        .float(
            (
                "leaving",
                "1",
                "bytes that leave the group that sends most per byte of the buffer, computed from the messages; NaN: nothing \
                 leaves the system",
            ),
            |row| row.leaving.unwrap_or(f64::NAN),
        )
}

/// The table without rows, which its documentation is generated from.
pub fn empty_levels() -> Table {
    schema().table(&[])
}

/// The table `/levels` of the algorithms that are `used`, of those that have levels; without rows on one host. `network` is what was
/// measured of it.
pub fn levels(levels: &Levels, network: Option<&Network>, used: impl Fn(Algorithm) -> bool) -> Table {
    let algorithms = [Algorithm::Halving, Algorithm::Hierarchical, Algorithm::Shared];
    let of_level = |algorithm: Algorithm, level: Level| {
        let racks = network.and_then(|network| network.racks.as_ref());
        let hop = match level {
            Level::Host => None,
            Level::Rack => racks.map(|racks| racks.within),
            Level::System => racks.map(|racks| racks.between).or(network.map(|network| network.hop)),
        };
        let (groups, members) = levels.groups(level);
        let (carrier, leaving) = (levels.carrier(algorithm, level), levels.leaving(algorithm, level));
        OfAlgorithm { algorithm, level, groups, members, carrier, hop, leaving }
    };
    let used = algorithms.into_iter().filter(|&algorithm| levels.hosts > 1 && used(algorithm));
    let all: Vec<_> =
        used.flat_map(|algorithm| levels.list().into_iter().map(move |level| of_level(algorithm, level))).collect();
    schema().table(&all)
}

/// The levels in one line: `4 hosts of 2 ranks in 2 racks of 2 hosts`.
pub fn describe_levels(levels: &Levels) -> String {
    let members = |[least, most]: [usize; 2], one: &str| match least == most {
        true => counted(least, one),
        false => format!("{least} to {}", counted(most, one)),
    };
    let mut line = format!("{} of {}", counted(levels.hosts, "host"), members(levels.ranks_of_host, "rank"));
    if let (racks @ 2.., hosts) = levels.groups(Level::Rack) {
        line += &format!(" in {racks} racks of {}", members(hosts, "host"));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_names_every_level() {
        let mut levels = Levels { hosts: 5, ranks_of_host: [2, 2], racks: vec![2, 3] };
        assert_eq!(describe_levels(&levels), "5 hosts of 2 ranks in 2 racks of 2 to 3 hosts");
        levels.racks.clear();
        assert_eq!(describe_levels(&levels), "5 hosts of 2 ranks");
    }
}
