//! The CPUs that a rank may use, the program that keeps it from the others, and the number of threads that follows.

use serde::{Deserialize, Serialize};

use super::ancestors::{Ancestor, ancestors};
use super::cpus::Cpus;

/// Threads for a rank whose CPUs `own` are shared by `sharing` ranks, itself included: at least 1.
pub(super) fn fair_share(own: &Cpus, sharing: usize) -> usize {
    (own.count() / sharing.max(1)).max(1)
}

/// The program that keeps a rank from using all CPUs of its host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bound {
    /// No program: the rank may use all CPUs.
    #[default]
    Nobody,
    /// MPI's launcher.
    Mpirun,
    /// The MPI library, during its initialization.
    Mpi,
    /// Slurm: the job has a share of the node, or the step a share of the job.
    Slurm,
    /// OpenMP's runtime, which bound the main thread.
    OpenMp,
    /// A program above the launcher: taskset, a container, another batch system.
    Outside,
}

impl Bound {
    /// Name for people, after "bound by".
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

    /// The program that reduced this process's CPUs to `own`, and the number of CPUs without that.
    pub(super) fn find(own: &Cpus, from: &Surroundings) -> (Bound, usize) {
        if own.is_unknown() || own.count() >= from.host.count() {
            return (Bound::Nobody, own.count());
        }
        if own.count() < from.at_start.count() {
            return (Bound::Mpi, from.at_start.count());
        }
        let above = from.ancestors.iter().map(|ancestor| (ancestor.name.as_str(), ancestor.cpus.count()));
        match above.into_iter().find(|(_, cpus)| *cpus > own.count()) {
            Some((_, cpus)) if from.openmp_binds => (Bound::OpenMp, cpus),
            Some(("slurmstepd", cpus)) => (Bound::Slurm, from.slurms.unwrap_or(own.count()).min(cpus)),
            Some((name, cpus)) if is_launcher(name) => (Bound::Mpirun, cpus),
            _ => (Bound::Outside, own.count()),
        }
    }
}

/// The CPUs and settings around a process, from which [`Bound::find`] concludes.
#[derive(Debug, Clone, Default)]
pub(super) struct Surroundings {
    /// CPUs of the host.
    pub host: Cpus,
    /// CPUs that the process could use before MPI was initialized.
    pub at_start: Cpus,
    /// Ancestors of the process, its parent first.
    pub ancestors: Vec<Ancestor>,
    /// Whether the user's environment makes OpenMP's runtime bind threads.
    pub openmp_binds: bool,
    /// CPUs of a Slurm job on this host; `None` outside Slurm.
    pub slurms: Option<usize>,
}

impl Surroundings {
    /// The surroundings of this process. Call before MPI is initialized.
    pub fn look() -> Surroundings {
        let set =
            |name: &str| std::env::var(name).is_ok_and(|value| !["", "false", "FALSE", "disabled"].contains(&&*value));
        Surroundings {
            host: Cpus::of_host(),
            at_start: Cpus::of_this_process(),
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
    fn ranks_that_share_cpus_divide_them() {
        assert_eq!(fair_share(&Cpus::parse("0-15"), 4), 4);
        assert_eq!(fair_share(&Cpus::parse("0-3,8-11"), 2), 4);
        assert_eq!(fair_share(&Cpus::parse("0"), 1), 1);
        assert_eq!(fair_share(&Cpus::parse("0-1"), 4), 1);
    }

    #[test]
    fn whoever_narrowed_the_cpus_is_found() {
        let ancestor =
            |name: &str, cpus: &str| Ancestor { name: name.into(), command: String::new(), cpus: Cpus::parse(cpus) };
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
