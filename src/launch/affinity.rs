//! How many threads a rank may use, from the CPUs that the launcher bound it to.

use std::collections::BTreeSet;

/// The CPUs this process may run on, as Linux writes them: `0-3,8`. Empty where that cannot be read.
pub(super) fn allowed_cpus() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    line.map(|list| list.trim().to_owned()).unwrap_or_default()
}

/// Threads for a rank that may use the CPUs `own`, beside the ranks of its host (itself among them) with the CPU lists
/// `neighbours`: its CPUs divided by the ranks that share any of them, at least 1.
pub(super) fn fair_share(own: &str, neighbours: &[&str]) -> usize {
    let cpus = parse(own);
    let sharing = neighbours.iter().filter(|other| !parse(other).is_disjoint(&cpus)).count();
    let available =
        if cpus.is_empty() { std::thread::available_parallelism().map_or(1, usize::from) } else { cpus.len() };
    (available / sharing.max(1)).max(1)
}

/// CPUs that ranks with these lists may use together.
pub(super) fn together(lists: &[&str]) -> usize {
    let all: BTreeSet<usize> = lists.iter().flat_map(|list| parse(list)).collect();
    if all.is_empty() { std::thread::available_parallelism().map_or(1, usize::from) } else { all.len() }
}

fn parse(list: &str) -> BTreeSet<usize> {
    list.split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.trim().parse().ok()?..=last.trim().parse::<usize>().ok()?)
        })
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_that_share_cpus_divide_them_and_bound_ranks_keep_their_own() {
        assert_eq!(fair_share("0-15", &["0-15"; 4]), 4);
        assert_eq!(fair_share("0-3", &["0-3", "4-7", "8-11"]), 4);
        assert_eq!(fair_share("0", &["0", "1"]), 1);
        assert_eq!(fair_share("0-1", &["0-1"; 4]), 1);
        assert_eq!(fair_share("0-3,8-11", &["0-3,8-11"; 2]), 4);
    }
}
