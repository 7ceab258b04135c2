//! The CPUs that a rank may use, who took the others from it, and how many threads that makes.

use std::collections::BTreeSet;

use super::ancestors::{Ancestor, ancestors, own_cpus};

/// CPUs of a host by Linux's numbers. Empty where they cannot be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Cpus(BTreeSet<usize>);

/// Words of 64 CPUs in which ranks tell each other theirs.
const WORDS: usize = 32;

impl Cpus {
    /// From a list as Linux writes it: `0-3,8`.
    pub fn parse(list: &str) -> Cpus {
        let ranges = list.split(',').filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.trim().parse().ok()?..=last.trim().parse::<usize>().ok()?)
        });
        Cpus(ranges.flatten().collect())
    }

    /// All that the host has switched on.
    pub fn of_host() -> Cpus {
        Cpus::parse(&std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default())
    }

    /// How many; as many as the system tells where the set could not be read.
    pub fn count(&self) -> usize {
        if self.0.is_empty() { std::thread::available_parallelism().map_or(1, usize::from) } else { self.0.len() }
    }

    /// A bit a CPU.
    pub fn to_words(&self) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        for cpu in self.0.iter().filter(|cpu| **cpu < 64 * WORDS) {
            words[cpu / 64] |= 1 << (cpu % 64);
        }
        words
    }

    /// The CPUs of [`to_words`](Self::to_words).
    pub fn from_words(words: &[u64]) -> Cpus {
        Cpus((0..64 * words.len()).filter(|cpu| words[cpu / 64] >> (cpu % 64) & 1 == 1).collect())
    }

    /// Whether a CPU is in both sets.
    pub fn overlaps(&self, other: &Cpus) -> bool {
        !self.0.is_disjoint(&other.0)
    }
}

/// CPUs that are in any of the sets.
pub(super) fn together<'a>(sets: impl IntoIterator<Item = &'a Cpus>) -> Cpus {
    Cpus(sets.into_iter().flat_map(|set| set.0.iter().copied()).collect())
}

/// Threads for a rank that may use the CPUs `own` together with `sharing` ranks, itself among them: at least 1.
pub(super) fn fair_share(own: &Cpus, sharing: usize) -> usize {
    (own.count() / sharing.max(1)).max(1)
}

/// Who keeps a rank from using all CPUs of its host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Bound {
    /// The rank may use all of them.
    #[default]
    Nobody,
    /// MPI's launcher.
    Mpirun,
    /// The MPI library, when it started.
    Mpi,
    /// Slurm: the job's share of the node, or the step's of the job.
    Slurm,
    /// OpenMP's runtime, which bound the thread that everything begins with.
    OpenMp,
    /// What stood above the launcher: taskset, a container, another batch system.
    Outside,
}

impl Bound {
    /// All of them, in the order of their numbers.
    pub const ALL: [Bound; 6] = [Bound::Nobody, Bound::Mpirun, Bound::Mpi, Bound::Slurm, Bound::OpenMp, Bound::Outside];

    /// By whom, for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Bound::Nobody => "nobody",
            Bound::Mpirun => "mpirun",
            Bound::Mpi => "MPI at its start",
            Bound::Slurm => "Slurm",
            Bound::OpenMp => "OMP_PROC_BIND",
            Bound::Outside => "what started the launcher (taskset, a container, a batch system)",
        }
    }

    /// Whoever left the CPUs `own` to this process, and how many there would be without that.
    pub(super) fn find(own: &Cpus, from: &Surroundings) -> (Bound, usize) {
        if own.0.is_empty() || own.count() >= from.host.count() {
            return (Bound::Nobody, own.count());
        }
        if own.count() < from.at_start.count() {
            return (Bound::Mpi, from.at_start.count());
        }
        let above = from.ancestors.iter().map(|ancestor| (ancestor.name.as_str(), Cpus::parse(&ancestor.cpus).count()));
        match above.into_iter().find(|(_, cpus)| *cpus > own.count()) {
            Some((_, cpus)) if from.openmp_binds => (Bound::OpenMp, cpus),
            Some(("slurmstepd", cpus)) => (Bound::Slurm, from.slurms.unwrap_or(own.count()).min(cpus)),
            Some((name, cpus)) if is_launcher(name) => (Bound::Mpirun, cpus),
            _ => (Bound::Outside, own.count()),
        }
    }
}

/// What a process's CPUs are held against.
#[derive(Debug, Clone, Default)]
pub(super) struct Surroundings {
    /// CPUs of the host.
    pub host: Cpus,
    /// Those that the process might use before MPI started.
    pub at_start: Cpus,
    /// The processes above it.
    pub ancestors: Vec<Ancestor>,
    /// Whether the user asked OpenMP's runtime to bind threads.
    pub openmp_binds: bool,
    /// CPUs that Slurm gave the job on this host, if it is one of Slurm's.
    pub slurms: Option<usize>,
}

impl Surroundings {
    /// Those of this process. Before MPI starts.
    pub fn look() -> Surroundings {
        let set =
            |name: &str| std::env::var(name).is_ok_and(|value| !["", "false", "FALSE", "disabled"].contains(&&*value));
        Surroundings {
            host: Cpus::of_host(),
            at_start: Cpus::parse(&own_cpus()),
            ancestors: ancestors(),
            openmp_binds: ["OMP_PROC_BIND", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"].into_iter().any(set),
            slurms: std::env::var("SLURM_CPUS_ON_NODE").ok().and_then(|count| count.parse().ok()),
        }
    }
}

/// Whether a program of this name, cut at 15 characters, starts ranks for an MPI library.
fn is_launcher(name: &str) -> bool {
    const NAMES: [&str; 12] = [
        "mpirun",
        "mpiexec",
        "mpiexec.hydra",
        "mpirun_rsh",
        "mpispawn",
        "orterun",
        "orted",
        "prte",
        "prted",
        "prterun",
        "hydra_pmi_proxy",
        "hydra_bstrap_pr",
    ];
    NAMES.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_told_to_other_ranks_in_words() {
        let cpus = Cpus::parse("0-3,8, 70-71");
        assert_eq!(cpus.count(), 7);
        assert_eq!(Cpus::from_words(&cpus.to_words()), cpus);
        assert!(cpus.overlaps(&Cpus::parse("71")) && !cpus.overlaps(&Cpus::parse("4-7")));
        assert_eq!(together([&cpus, &Cpus::parse("4-8")]).count(), 11);
    }

    #[test]
    fn ranks_that_share_cpus_divide_them() {
        assert_eq!(fair_share(&Cpus::parse("0-15"), 4), 4);
        assert_eq!(fair_share(&Cpus::parse("0-3,8-11"), 2), 4);
        assert_eq!(fair_share(&Cpus::parse("0"), 1), 1);
        assert_eq!(fair_share(&Cpus::parse("0-1"), 4), 1);
    }

    #[test]
    fn whoever_narrowed_the_cpus_is_found() {
        let ancestor =
            |name: &str, cpus: &str| Ancestor { name: name.into(), command: String::new(), cpus: cpus.into() };
        let (one, four) = ("5", "0-3");
        let surroundings = |at_start: &str, ancestors: &[Ancestor]| Surroundings {
            host: Cpus::parse("0-63"),
            at_start: Cpus::parse(at_start),
            ancestors: ancestors.to_vec(),
            slurms: Some(8),
            ..Surroundings::default()
        };
        let find = |own: &str, ancestors: &[Ancestor]| Bound::find(&Cpus::parse(own), &surroundings(own, ancestors));
        let (step, shell) = (ancestor("slurmstepd", "0-63"), ancestor("bash", "0-63"));
        let mpirun = |cpus: &str| ancestor("mpirun", cpus);
        assert_eq!(find("0-63", &[mpirun("0-63"), shell.clone()]), (Bound::Nobody, 64));
        assert_eq!(find(one, &[mpirun("0-63"), shell.clone()]), (Bound::Mpirun, 64));
        // mpirun's daemon has the job's share, the rank a core of it; or all of that share.
        assert_eq!(find(one, &[ancestor("orted", four), step.clone()]), (Bound::Mpirun, 4));
        assert_eq!(find(four, &[ancestor("orted", four), step]), (Bound::Slurm, 8));
        assert_eq!(find(four, &[mpirun(four), shell.clone()]), (Bound::Outside, 4));
        assert_eq!(find(four, &[mpirun(four)]), (Bound::Outside, 4));
        let all = [mpirun("0-63"), shell];
        assert_eq!(Bound::find(&Cpus::parse(one), &surroundings("0-63", &all)), (Bound::Mpi, 64));
        let openmp = Surroundings { openmp_binds: true, ..surroundings(one, &all) };
        assert_eq!(Bound::find(&Cpus::parse(one), &openmp), (Bound::OpenMp, 64));
    }
}
