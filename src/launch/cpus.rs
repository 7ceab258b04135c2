//! Sets of CPUs: of a process and of the host, and their exchange between ranks.

use std::collections::BTreeSet;
use std::fmt;

use procfs::process::{Process, Status};

use crate::units::ranges;

/// A set of a host's CPUs, by Linux's numbers. Empty if it cannot be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Cpus(BTreeSet<usize>);

/// Number of 64-bit words in which ranks exchange their sets.
const WORDS: usize = 32;

impl Cpus {
    /// The CPUs that the process with this `status` may run on.
    pub fn of(status: &Status) -> Cpus {
        let ranges = status.cpus_allowed_list.iter().flatten();
        Cpus(ranges.flat_map(|&(first, last)| first as usize..=last as usize).collect())
    }

    /// The CPUs that this process may run on.
    pub fn of_this_process() -> Cpus {
        let status = Process::myself().and_then(|process| process.status());
        status.map(|status| Cpus::of(&status)).unwrap_or_default()
    }

    /// Parses a list as Linux writes it: `0-3,8`.
    pub fn parse(list: &str) -> Cpus {
        let ranges = list.split(',').filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.trim().parse().ok()?..=last.trim().parse::<usize>().ok()?)
        });
        Cpus(ranges.flatten().collect())
    }

    /// All CPUs of this host that are online. Read by hand: procfs does not read /sys, and sysinfo gives names, not numbers.
    pub fn of_host() -> Cpus {
        Cpus::parse(&std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default())
    }

    /// Whether the set could not be read.
    pub fn is_unknown(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of CPUs; the standard library's count if the set could not be read.
    pub fn count(&self) -> usize {
        if self.is_unknown() { std::thread::available_parallelism().map_or(1, usize::from) } else { self.0.len() }
    }

    /// Bit mask of the set: one bit per CPU.
    pub fn to_words(&self) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        for cpu in self.0.iter().filter(|cpu| **cpu < 64 * WORDS) {
            words[cpu / 64] |= 1 << (cpu % 64);
        }
        words
    }

    /// The set whose bit mask is `words`; inverse of [`to_words`](Self::to_words).
    pub fn from_words(words: &[u64]) -> Cpus {
        Cpus((0..64 * words.len()).filter(|cpu| words[cpu / 64] >> (cpu % 64) & 1 == 1).collect())
    }

    /// Whether the sets share a CPU.
    pub fn overlaps(&self, other: &Cpus) -> bool {
        !self.0.is_disjoint(&other.0)
    }
}

/// The set as Linux writes it: `0-3,8`.
impl fmt::Display for Cpus {
    fn fmt(&self, to: &mut fmt::Formatter) -> fmt::Result {
        to.write_str(&ranges(&self.0.iter().copied().collect::<Vec<_>>()))
    }
}

/// Union of the sets.
pub(super) fn union<'a>(sets: impl IntoIterator<Item = &'a Cpus>) -> Cpus {
    Cpus(sets.into_iter().flat_map(|set| set.0.iter().copied()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_told_to_other_ranks_in_words() {
        let cpus = Cpus::parse("0-3,8, 70-71");
        assert_eq!((cpus.count(), cpus.to_string().as_str()), (7, "0-3,8,70-71"));
        assert_eq!(Cpus::from_words(&cpus.to_words()), cpus);
        assert!(cpus.overlaps(&Cpus::parse("71")) && !cpus.overlaps(&Cpus::parse("4-7")));
        assert_eq!(union([&cpus, &Cpus::parse("4-8")]).count(), 11);
    }

    #[test]
    fn this_process_runs_on_cpus_of_its_host() {
        let (own, host) = (Cpus::of_this_process(), Cpus::of_host());
        assert!(!own.is_unknown() && own.overlaps(&host) && own.count() <= host.count(), "{own:?} {host:?}");
    }
}
