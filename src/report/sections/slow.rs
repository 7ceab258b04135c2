//! Tables of the ranks and hosts that are slower than the others, for the section of `/steps`.

use std::collections::BTreeMap;

use crate::config::Timing;
use crate::metrics::definitions::{EXCESS, OWN_WORK, RANK, RATIO, SLOW_IN, WORLD_SIZE};
use crate::metrics::{Group, PartMeans, SlowRank, StepTimes, slow_ranks};
use crate::table::{Cell, Heading, Sheet};

/// Greatest number of slow ranks or hosts shown of a group.
const MOST: usize = 10;

/// Tables `slow-ranks` and, where there are several hosts, `slow-hosts`; without rows if there is no slow one. `host` is the host
/// of a rank, empty if it is not known.
pub fn sheets<'a>(groups: &[Group], host: &dyn Fn(i64) -> &'a str) -> [Sheet; 2] {
    let columns = |name: Heading, more: Option<Heading>| {
        let of_group =
            [Heading::from(&WORLD_SIZE), Heading::new("timing", "1", "profile: nothing overlaps, or overlap")];
        let measured =
            [Heading::from(&OWN_WORK), Heading::from(&RATIO), Heading::from(&SLOW_IN), Heading::from(&EXCESS)];
        of_group.into_iter().chain([name]).chain(more).chain(measured).collect::<Vec<_>>()
    };
    let mut ranks = Sheet::new("slow-ranks", "Slow ranks").with_keys(3);
    ranks.columns = columns(Heading::from(&RANK), Some(Heading::new("host", "1", "host of the rank")));
    let mut hosts = Sheet::new("slow-hosts", "Slow hosts").with_keys(3);
    hosts.columns = columns(Heading::new("host", "1", "host; the mean over its ranks"), None);
    let mut notes = (Vec::new(), Vec::new());
    for group in groups {
        let timing = if group.conditions.is_profile { Timing::Profile } else { Timing::Overlap };
        let of_group = [Cell::Int(group.conditions.world_size as i64), Cell::from(timing.as_str())];
        let row = |name: Vec<Cell>, slow: &SlowRank| -> Vec<Cell> {
            let measured = [Cell::Float(slow.own), Cell::Float(slow.ratio), Cell::from(slow.part.as_str())];
            let cells = of_group.iter().cloned().chain(name).chain(measured);
            cells.chain([Cell::Float(slow.excess)]).collect()
        };
        let slow = slow_ranks(&group.ranks);
        let note = |found: usize, all: usize, what: &str| {
            let shown = if found > MOST { format!(", the slowest {MOST} shown") } else { String::new() };
            format!("{found} of {all} {what} at 1.2 times the median or more{shown}")
        };
        notes.0.push(note(slow.len(), group.ranks.len(), "ranks"));
        let of_rank = |slow: &SlowRank| row(vec![Cell::Int(slow.rank), Cell::from(host(slow.rank))], slow);
        ranks.rows.extend(slow.iter().take(MOST).map(of_rank));

        let (names, means) = by_host(group, host);
        let slow = slow_ranks(&means);
        notes.1.push(note(slow.len(), names.len(), "hosts"));
        hosts.rows.extend(slow.iter().take(MOST).map(|slow| row(vec![Cell::from(names[slow.rank as usize])], slow)));
    }
    (ranks.note, hosts.note) = (notes.0.join("; and "), notes.1.join("; and "));
    [ranks, hosts]
}

/// The hosts of a group's ranks, and by their number here the mean over their ranks.
fn by_host<'a>(group: &Group, host: &dyn Fn(i64) -> &'a str) -> (Vec<&'a str>, BTreeMap<i64, PartMeans>) {
    let mut hosts: BTreeMap<&str, (f64, PartMeans)> = BTreeMap::new();
    for (rank, means) in &group.ranks {
        let (ranks, sum) = hosts.entry(host(*rank)).or_insert((0.0, [0.0; StepTimes::PARTS]));
        *ranks += 1.0;
        sum.iter_mut().zip(means).for_each(|(sum, mean)| *sum += mean);
    }
    let means = hosts.values().map(|(ranks, sum)| sum.map(|sum| sum / ranks));
    (hosts.keys().copied().collect(), (0..).zip(means).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Conditions, RankStep, groups};

    fn steps(seconds: impl Fn(i64) -> f32) -> Vec<Group> {
        let conditions = Conditions { world_size: 64, is_profile: false };
        let step = |rank| {
            let times = StepTimes::from_slice(&[seconds(rank); StepTimes::PARTS]);
            RankStep { step: 0, conditions, rank, is_warmup: false, times }
        };
        groups(&(0..64).map(step).collect::<Vec<_>>())
    }

    #[test]
    fn a_slow_rank_and_a_slow_host_are_named() {
        let names: Vec<String> = (0..64).map(|rank| format!("node{:02}", rank / 8)).collect();
        let host = |rank: i64| names[rank as usize].as_str();
        let [ranks, hosts] = sheets(&steps(|_| 1.0), &host);
        assert!(ranks.rows.is_empty() && hosts.rows.is_empty());
        let [ranks, hosts] = sheets(&steps(|rank| if rank == 13 { 5.0 } else { 1.0 }), &host);
        assert_eq!(ranks.note, "1 of 64 ranks at 1.2 times the median or more");
        assert_eq!((&ranks.rows[0][2], &ranks.rows[0][3]), (&Cell::Int(13), &Cell::from("node01")));
        assert_eq!(hosts.rows.len(), 1, "five times slower is 1.5 times over the host");
        let [ranks, hosts] = sheets(&steps(|rank| if rank / 8 == 7 { 2.0 } else { 1.0 }), &host);
        assert_eq!((ranks.rows.len(), hosts.rows.len(), &hosts.rows[0][2]), (8, 1, &Cell::from("node07")));
        let [ranks, _] = sheets(&steps(|rank| if rank < 30 { 2.0 } else { 1.0 }), &host);
        assert!(ranks.rows.len() == 10 && ranks.note.ends_with("the slowest 10 shown"), "{}", ranks.note);
    }
}
