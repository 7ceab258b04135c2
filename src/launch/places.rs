//! The cores, threads and devices of the ranks: one line per group of ranks that have the same, and a warning where that is
//! probably a mistake.

use std::collections::{BTreeSet, HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::affinity::Bound;
use crate::units::{counted, ranges};

/// Host, device, threads and cores of a rank.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Name of the host.
    pub host: String,
    /// Rank among those of the host, from 0.
    pub local_rank: usize,
    /// Number of compute threads.
    pub threads: usize,
    /// Device and its name: `cpu`, `cuda:0 NVIDIA H200`.
    pub device: String,
    /// Number of cores, as Linux counts them, that the rank may use.
    pub cores: usize,
    /// Linux's numbers of these cores: `0-3,8`; empty if they could not be read.
    pub cpus: String,
    /// Number of ranks that may use any of these cores, this one included.
    pub sharing: usize,
    /// Number of cores that the ranks of this host may use together.
    pub cores_of_ranks: usize,
    /// Number of cores that the rank could use if it were not bound.
    pub cores_unbound: usize,
    /// Number of cores of the host.
    pub cores_of_host: usize,
    /// The program that keeps the rank from the host's other cores.
    pub bound: Bound,
}

/// One line per group of ranks that have the same, each on its host:
/// `ranks 0-3 on vm: cpu, 1 thread each; may use 2 of 2 cores, shared by 4 ranks, not bound`.
pub(super) fn lines(places: &[Place]) -> Vec<String> {
    let hosts = Hosts::new(places);
    let what = |place: &'_ Place| {
        let Place { threads, cores, sharing, cores_of_host, bound, .. } = *place;
        (threads, cores, sharing, cores_of_host, bound, hosts.is_oversubscribed(place))
    };
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (rank, place) in places.iter().enumerate() {
        let has_the_same = |group: &&mut Vec<usize>| {
            let first = &places[group[0]];
            kind(&first.device) == kind(&place.device) && what(first) == what(place)
        };
        match groups.iter_mut().find(has_the_same) {
            Some(group) => group.push(rank),
            None => groups.push(vec![rank]),
        }
    }
    groups.iter().map(|ranks| line(places, ranks, &hosts)).collect()
}

/// Ranks and compute threads on each host.
struct Hosts<'a>(HashMap<&'a str, (usize, usize)>);

impl Hosts<'_> {
    fn new(places: &[Place]) -> Hosts<'_> {
        let mut hosts = HashMap::new();
        for place in places {
            let (ranks, threads) = hosts.entry(place.host.as_str()).or_insert((0, 0));
            (*ranks, *threads) = (*ranks + 1, *threads + place.threads);
        }
        Hosts(hosts)
    }

    fn ranks(&self, place: &Place) -> usize {
        self.0[place.host.as_str()].0
    }

    fn threads(&self, place: &Place) -> usize {
        self.0[place.host.as_str()].1
    }

    fn is_oversubscribed(&self, place: &Place) -> bool {
        self.threads(place) > place.cores_of_ranks
    }
}

fn line(places: &[Place], ranks: &[usize], all: &Hosts) -> String {
    let place = &places[ranks[0]];
    let several = ranks.len() > 1;
    let hosts = hosts(ranks.iter().map(|&rank| places[rank].host.as_str()));
    let threads = if place.threads == 1 { "1 thread".to_owned() } else { format!("{} threads", place.threads) };
    let mut line = format!(
        "{} {} on {hosts}: {}, {threads}{}; may use {} of {} cores",
        if several { "ranks" } else { "rank" },
        ranges(ranks),
        devices(ranks.iter().map(|&rank| places[rank].device.as_str())),
        if several { " each" } else { "" },
        place.cores,
        place.cores_of_host
    );
    if place.sharing > 1 {
        line += &format!(", shared by {} ranks", place.sharing);
    }
    if all.is_oversubscribed(place) {
        line += " (oversubscribed)";
    }
    line += &match place.bound {
        Bound::Nobody => ", not bound".to_owned(),
        bound => format!(", bound by {}", bound.as_str()),
    };
    line
}

/// Warnings of probable mistakes in how the ranks were started, each with its effect and its mend.
///
/// With `chosen` (the user set `launch.threads`, and so knows how many cores a rank needs) idle cores are no mistake. `library`
/// is the MPI library's name, which decides the mend.
pub(super) fn warnings(places: &[Place], chosen: bool, library: &str) -> Vec<String> {
    let all = Hosts::new(places);
    let mut found: Vec<(String, Vec<&str>)> = Vec::new();
    for place in places.iter().filter(|place| place.local_rank == 0) {
        let texts = oversubscription(&all, place).into_iter().chain(idle(&all, place, library).filter(|_| !chosen));
        for text in texts {
            match found.iter_mut().find(|(known, _)| *known == text) {
                Some((_, names)) => names.push(&place.host),
                None => found.push((text, vec![&place.host])),
            }
        }
    }
    found.into_iter().map(|(text, names)| format!("on {}: {text}", hosts(names))).collect()
}

fn oversubscription(all: &Hosts, place: &Place) -> Option<String> {
    let mend = match all.ranks(place) > place.cores_of_ranks {
        true => format!("start at most {} on a host", counted(place.cores_of_ranks, "rank")),
        false => "leave launch.threads = 0, which gives each rank its share".into(),
    };
    all.is_oversubscribed(place).then(|| {
        format!(
            "{} compute threads share {} cores: ranks wait for a core, so step times and speedup do not apply to ranks with \
             cores of their own; {mend}",
            all.threads(place),
            place.cores_of_ranks
        )
    })
}

/// Warning of cores that the ranks of a host leave idle because of how they were started.
fn idle(all: &Hosts, place: &Place, library: &str) -> Option<String> {
    let ranks = all.ranks(place);
    let each = (place.cores_unbound / ranks).max(1);
    let open_mpi = library.starts_with("Open MPI");
    let mend = match place.bound {
        Bound::Nobody | Bound::Outside => return None,
        Bound::Mpirun if open_mpi => format!("mpirun --bind-to none, or --map-by slot:PE={each}"),
        Bound::Mpi if open_mpi => "OMPI_MCA_hwloc_base_binding_policy=none".into(),
        Bound::Mpirun | Bound::Mpi => "I_MPI_PIN=off (Intel MPI), mpiexec -bind-to none (MPICH)".into(),
        Bound::Slurm => format!("srun --cpus-per-task={each}"),
        Bound::OpenMp => "unset OMP_PROC_BIND, GOMP_CPU_AFFINITY and KMP_AFFINITY".into(),
    };
    (place.cores_of_ranks < place.cores_unbound).then(|| {
        format!(
            "{} may use {} of {} cores, the others are idle: bound by {}; {mend}",
            if ranks == 1 { "the rank".to_owned() } else { format!("the {ranks} ranks") },
            place.cores_of_ranks,
            place.cores_unbound,
            place.bound.as_str()
        )
    })
}

/// List of distinct host names: `n1`, `n1, n2`, or `16 hosts (n1 ... n16)`.
fn hosts<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let (mut distinct, mut known) = (Vec::new(), HashSet::new());
    distinct.extend(names.into_iter().filter(|name| known.insert(*name)));
    match distinct.as_slice() {
        [first, .., last] if distinct.len() > 4 => format!("{} hosts ({first} ... {last})", distinct.len()),
        _ => distinct.join(", "),
    }
}

/// Type and name of a device, without its number: `("cuda", "NVIDIA H200")` for `cuda:3 NVIDIA H200`.
fn kind(device: &str) -> (&str, &str) {
    let (place, name) = device.split_once(' ').unwrap_or((device, ""));
    (place.split(':').next().unwrap_or_default(), name)
}

/// Summary of devices of one kind: `cpu`, `cuda:0-3 NVIDIA H200`.
fn devices<'a>(devices: impl Iterator<Item = &'a str> + Clone) -> String {
    let (place, name) = devices.clone().next().map_or(("", ""), kind);
    let number = |device: &str| device.split(' ').next()?.split_once(':')?.1.parse().ok();
    let numbers: BTreeSet<usize> = devices.filter_map(number).collect();
    let numbers = ranges(&numbers.into_iter().collect::<Vec<_>>());
    format!("{place}{}{numbers} {name}", if numbers.is_empty() { "" } else { ":" }).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIBRARY: &str = "Open MPI v4.1.4";

    /// Ranks on hosts of 64 cores, bound to `cores` of their own each.
    fn bound(hosts: &[&str], ranks: usize, cores: usize, bound: Bound) -> Vec<Place> {
        let place = |host: &&str, local_rank| Place {
            host: host.to_string(),
            local_rank,
            threads: cores,
            device: "cpu".into(),
            cores,
            cpus: String::new(),
            sharing: 1,
            cores_of_ranks: ranks * cores,
            cores_unbound: 64,
            cores_of_host: 64,
            bound,
        };
        hosts.iter().flat_map(|host| (0..ranks).map(move |local_rank| place(host, local_rank))).collect()
    }

    /// Ranks of one host that share its cores.
    fn shared(ranks: usize, cores: usize) -> Vec<Place> {
        let mut places = bound(&["vm"], ranks, cores, Bound::Nobody);
        for place in &mut places {
            (place.sharing, place.threads) = (ranks, (cores / ranks).max(1));
            (place.cores_of_ranks, place.cores_unbound, place.cores_of_host) = (cores, cores, cores);
        }
        places
    }

    #[test]
    fn ranks_that_have_the_same_are_one_line() {
        assert_eq!(
            lines(&bound(&["n1", "n2"], 2, 8, Bound::Slurm)),
            ["ranks 0-3 on n1, n2: cpu, 8 threads each; may use 8 of 64 cores, bound by Slurm"]
        );
        assert_eq!(lines(&shared(1, 2)), ["rank 0 on vm: cpu, 2 threads; may use 2 of 2 cores, not bound"]);
        let mut places = bound(&["n1", "n2"], 2, 8, Bound::Nobody);
        for (rank, place) in places.iter_mut().enumerate() {
            place.device = format!("cuda:{} NVIDIA H200", rank % 2);
        }
        places[3].threads = 4;
        let found = lines(&places);
        assert!(found[0].starts_with("ranks 0-2 on n1, n2: cuda:0-1 NVIDIA H200, 8 threads each;"), "{found:?}");
        assert!(found[1].starts_with("rank 3 on n2: cuda:1 NVIDIA H200, 4 threads;"), "{found:?}");
        let many: Vec<String> = (1..=16).map(|number| format!("n{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(lines(&bound(&many, 4, 16, Bound::Nobody))[0].starts_with("ranks 0-63 on 16 hosts (n1 ... n16): cpu"));
    }

    #[test]
    fn more_threads_than_cores_are_warned_of_and_fewer_are_not() {
        let places = shared(4, 2);
        let [line] = &lines(&places)[..] else { panic!("{:?}", lines(&places)) };
        assert!(line.ends_with("may use 2 of 2 cores, shared by 4 ranks (oversubscribed), not bound"), "{line}");
        let found = warnings(&places, true, LIBRARY);
        assert!(found.len() == 1 && found[0].starts_with("on vm: 4 compute threads share 2 cores"), "{found:?}");
        assert!(found[0].ends_with("start at most 2 ranks on a host"), "{found:?}");
        let mut places = shared(2, 2);
        places.iter_mut().for_each(|place| place.threads = 100);
        let found = warnings(&places, true, LIBRARY);
        assert!(found[0].ends_with("leave launch.threads = 0, which gives each rank its share"), "{found:?}");
        assert_eq!(warnings(&shared(2, 2), false, LIBRARY), [""; 0]);
    }

    #[test]
    fn cores_left_idle_are_warned_of_with_the_launchers_own_mend() {
        let told = |by, mend: &str| {
            let found = warnings(&bound(&["n1", "n2"], 2, 1, by), false, LIBRARY);
            let [text] = &found[..] else { panic!("{found:?}") };
            assert!(text.starts_with("on n1, n2: the 2 ranks may use 2 of 64 cores") && text.ends_with(mend), "{text}");
        };
        told(Bound::Mpirun, "bound by mpirun; mpirun --bind-to none, or --map-by slot:PE=32");
        told(Bound::Slurm, "srun --cpus-per-task=32");
        told(Bound::Mpi, "OMPI_MCA_hwloc_base_binding_policy=none");
        // Whoever set the threads knows; what a container leaves is no mistake; and here nothing is idle.
        assert_eq!(warnings(&bound(&["n1"], 2, 1, Bound::Mpirun), true, LIBRARY), [""; 0]);
        assert_eq!(warnings(&bound(&["n1"], 2, 1, Bound::Outside), false, LIBRARY), [""; 0]);
        assert_eq!(warnings(&bound(&["n1"], 64, 1, Bound::Mpirun), false, LIBRARY), [""; 0]);
    }
}
