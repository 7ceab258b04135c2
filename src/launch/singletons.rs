//! Singletons: processes that a launcher started together and MPI did not join, each of which would take itself for the whole
//! job. In: the launchers' variables, of which each process has a set. Out: the error that names the launcher and the mend.

use super::ancestors::Ancestor;
use crate::error::Error;

/// A launcher, and the variables that it sets for its processes.
struct Launcher {
    kind: Kind,
    /// Name for people.
    name: &'static str,
    /// Variable with the number of processes.
    size: &'static str,
    /// Variable with the rank of the process, from 0.
    rank: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Torchrun,
    /// A launcher that comes with an MPI library, which reads its variables.
    Mpi,
    Srun,
}

/// Known launchers, innermost first: a launcher passes on the variables of the one that started it.
const LAUNCHERS: [Launcher; 5] = [
    Launcher { kind: Kind::Torchrun, name: "torchrun", size: "WORLD_SIZE", rank: "RANK" },
    Launcher { kind: Kind::Mpi, name: "Open MPI's mpirun", size: "OMPI_COMM_WORLD_SIZE", rank: "OMPI_COMM_WORLD_RANK" },
    Launcher { kind: Kind::Mpi, name: "MVAPICH's mpirun", size: "MV2_COMM_WORLD_SIZE", rank: "MV2_COMM_WORLD_RANK" },
    Launcher {
        kind: Kind::Mpi,
        name: "a launcher with PMI (mpiexec of MPICH or Intel MPI, srun --mpi=pmi2)",
        size: "PMI_SIZE",
        rank: "PMI_RANK",
    },
    Launcher { kind: Kind::Srun, name: "srun", size: STEP, rank: "SLURM_PROCID" },
];

/// Variable with the number of tasks of a Slurm step. (SLURM_NTASKS is the job's in a batch script, where one process is right.)
const STEP: &str = "SLURM_STEP_NUM_TASKS";
/// Variable with the number of a Slurm step in its job.
const STEP_ID: &str = "SLURM_STEP_ID";
/// Variable with the rank of a process that was started with PMIx, which has none for the number of processes.
const PMIX_RANK: &str = "PMIX_RANK";

/// The launchers' variables in this process's environment.
pub(super) struct Variables<'a> {
    read: &'a dyn Fn(&str) -> Option<String>,
    /// Whether this process belongs to a task of srun.
    in_step: bool,
}

/// Finding that this process is a singleton by mistake.
#[derive(Debug)]
pub(super) struct Singleton {
    /// Error that names the launcher and the mend.
    pub error: Error,
    /// Whether this process is the one that prints the error.
    pub speaks: bool,
}

impl<'a> Variables<'a> {
    /// The variables that `read` finds. `ancestors` decide whether a Slurm step named there is this process's own.
    pub fn new(read: &'a dyn Fn(&str) -> Option<String>, ancestors: &[Ancestor]) -> Variables<'a> {
        // A batch job that was submitted from within a step inherits the step's variables, but not the daemon's title.
        let daemon = ancestors.iter().find(|ancestor| ancestor.name == "slurmstepd");
        let of_script = ["batch]", "interactive]", "extern]"];
        let in_script = daemon.is_some_and(|daemon| of_script.iter().any(|step| daemon.command.contains(step)));
        // srun --pty gives a shell to one of its tasks.
        Variables { read, in_step: !in_script && read("SLURM_PTY_PORT").is_none() }
    }

    /// The number in the variable `name` of `launcher`, unless it concerns other processes than this one.
    fn number(&self, launcher: &Launcher, name: &str) -> Option<usize> {
        let is_in_force = match launcher.kind {
            // Clusters set WORLD_SIZE for other purposes, too.
            Kind::Torchrun => [launcher.rank, "LOCAL_RANK"].iter().all(|name| (self.read)(name).is_some()),
            Kind::Srun => self.in_step,
            Kind::Mpi => true,
        };
        (self.read)(name).filter(|_| is_in_force)?.parse().ok()
    }

    /// The finding for a process that is alone for the MPI library `library` although a launcher started it with others; `None`
    /// if it is meant to be alone.
    pub fn singleton(&self, library: &str) -> Option<Singleton> {
        let size = |launcher: &Launcher| self.number(launcher, launcher.size);
        let is_joined = LAUNCHERS.iter().any(|launcher| launcher.kind == Kind::Mpi && size(launcher) == Some(1));
        let several = LAUNCHERS
            .iter()
            .filter(|launcher| !is_joined || launcher.kind == Kind::Torchrun)
            .find_map(|launcher| Some((launcher, size(launcher).filter(|&size| size > 1)?)));
        let (started, speaks) = match several {
            Some((launcher, size)) => {
                let started = format!("{} started {size} processes ({} = {size})", launcher.name, launcher.size);
                (started, self.number(launcher, launcher.rank).is_none_or(|rank| rank == 0))
            }
            None => {
                let rank = self.pmix_rank().filter(|&rank| rank > 0 && !is_joined)?;
                (format!("a launcher with PMIx started several processes ({PMIX_RANK} = {rank})"), rank == 1)
            }
        };
        let mut mend = mend(library);
        if several.is_some_and(|(launcher, _)| launcher.kind == Kind::Torchrun) {
            mend.push_str(", not with torchrun");
        }
        Some(Singleton { error: Error::Singleton { started, library: library.into(), mend }, speaks })
    }

    fn pmix_rank(&self) -> Option<usize> {
        (self.read)(PMIX_RANK)?.parse().ok()
    }

    /// Warning to print before MPI is initialized, in case the library then ends the process: Open MPI 4 in a Slurm step without
    /// PMIx, MPICH 5 under a launcher that speaks PMIx alone, which most builds of it do not.
    pub fn warning_before_start(&self, library: &str) -> Option<String> {
        if self.is_not_first() {
            return None;
        }
        let is_set = |name: &&str| (self.read)(name).is_some();
        if library.starts_with("MPICH Version: 5") && is_set(&PMIX_RANK) && !is_set(&"PMI_RANK") {
            let by = if is_set(&"OMPI_COMM_WORLD_RANK") { "Open MPI's mpirun" } else { "a launcher with PMIx" };
            return Some(format!(
                "{by} started this ({PMIX_RANK} is set), and {library} may not know PMIx: if MPI does not start now, {}",
                mend(library)
            ));
        }
        let is_step = ["SLURM_NODELIST", STEP_ID].iter().all(is_set);
        let is_served = [PMIX_RANK, "PMI_RANK", "OMPI_COMM_WORLD_RANK"].iter().any(is_set);
        let dies = library.starts_with("Open MPI v4") && is_step && !is_served;
        dies.then(|| {
            format!(
                "this is a Slurm step ({STEP_ID} is set) without PMIx ({PMIX_RANK} is not), through which {library} joins its \
                 processes: if MPI does not start now, {}",
                mend(library)
            )
        })
    }

    /// Whether this process is not the first of those that were started together, by the launchers' variables.
    pub fn is_not_first(&self) -> bool {
        let rank = LAUNCHERS.iter().find_map(|launcher| self.number(launcher, launcher.rank));
        rank.or_else(|| self.pmix_rank()).is_some_and(|rank| rank > 0)
    }
}

fn mend(library: &str) -> String {
    let plugin = if library.starts_with("Open MPI") { "pmix" } else { "pmi2" };
    format!("start them with the mpirun of that MPI, or with srun --mpi={plugin}")
}

#[cfg(test)]
mod tests {
    use super::super::cpus::Cpus;
    use super::*;

    const LIBRARY: &str = "Open MPI v4.1.4";

    fn check(variables: &[(&str, &str)], ancestors: &[Ancestor]) -> Option<(String, bool)> {
        let read = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string());
        let found = Variables::new(&read, ancestors).singleton(LIBRARY);
        found.map(|singleton| (singleton.error.to_string(), singleton.speaks))
    }

    #[test]
    fn each_launchers_variables_are_named_with_the_mend_and_its_first_process_speaks() {
        for (size, rank) in LAUNCHERS.map(|launcher| (launcher.size, launcher.rank)) {
            for (number, speaks) in [("0", true), ("3", false)] {
                let variables = [(size, "4"), (rank, number), ("LOCAL_RANK", number)];
                let (message, found) = check(&variables, &[]).expect(size);
                assert_eq!(found, speaks, "{size}");
                for words in [&format!("({size} = 4)"), LIBRARY, "srun --mpi=pmix", "launch.allow_singletons = true"] {
                    assert!(message.contains(words), "{words}: {message}");
                }
                assert_eq!(message.contains("not with torchrun"), size == "WORLD_SIZE");
            }
        }
        // PMIx does not tell the first process that there are others: the second speaks.
        assert_eq!(check(&[("PMIX_RANK", "0")], &[]), None);
        let (message, speaks) = check(&[("PMIX_RANK", "1")], &[]).unwrap();
        assert!(message.contains("(PMIX_RANK = 1)") && speaks, "{message}");
        assert!(!check(&[("PMIX_RANK", "2")], &[]).unwrap().1);
    }

    #[test]
    fn one_process_that_was_meant_is_none_of_several() {
        assert_eq!(check(&[], &[]), None);
        // A batch script, and one process that srun started in it.
        assert_eq!(check(&[("SLURM_NTASKS", "4"), ("SLURM_PROCID", "0")], &[]), None);
        assert_eq!(check(&[("SLURM_NTASKS", "1"), (STEP, "1"), ("SLURM_PROCID", "0")], &[]), None);
        // mpirun -n 1 within a step, and on nodes where Open MPI's own daemons are the step.
        assert_eq!(check(&[("OMPI_COMM_WORLD_SIZE", "1"), (STEP, "2"), ("SLURM_PROCID", "1")], &[]), None);
        assert_eq!(check(&[("PMI_SIZE", "1"), ("PMI_RANK", "0"), (STEP, "1")], &[]), None);
        // A shell of srun --pty, and a cluster's own WORLD_SIZE.
        assert_eq!(check(&[(STEP, "4"), ("SLURM_PROCID", "0"), ("SLURM_PTY_PORT", "40000")], &[]), None);
        assert_eq!(check(&[("WORLD_SIZE", "4")], &[]), None);
        // torchrun within one task.
        assert!(check(&[("WORLD_SIZE", "4"), ("RANK", "0"), ("LOCAL_RANK", "0"), ("PMI_SIZE", "1")], &[]).is_some());
    }

    #[test]
    fn a_batch_job_submitted_from_within_a_step_is_no_task_of_it() {
        let ancestor =
            |name: &str, command: &str| Ancestor { name: name.into(), command: command.into(), cpus: Cpus::default() };
        let step = [(STEP, "2"), ("SLURM_PROCID", "0")];
        let under = |title: &str| [ancestor("bash", "bash job.sh"), ancestor("slurmstepd", title)];
        assert_eq!(check(&step, &under("slurmstepd: [23.batch]")), None);
        assert_eq!(check(&step, &under("slurmstepd: [23.interactive]")), None);
        assert!(check(&step, &under("slurmstepd: [23.0]")).is_some());
    }

    #[test]
    fn open_mpi_under_srun_without_pmix_is_told_before_it_starts() {
        let told = |variables: &[(&str, &str)], library: &str| {
            let read =
                |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string());
            Variables::new(&read, &[]).warning_before_start(library)
        };
        let task = |rank| [(STEP, "2"), (STEP_ID, "0"), ("SLURM_NODELIST", "n[1-2]"), ("SLURM_PROCID", rank)];
        let message = told(&task("0"), LIBRARY).unwrap();
        assert!(message.contains("srun --mpi=pmix") && message.contains("SLURM_STEP_ID"), "{message}");
        assert_eq!(told(&task("1"), LIBRARY), None);
        assert_eq!(told(&task("0"), "MPICH Version: 4.2"), None);
        assert_eq!(told(&task("0")[..2], LIBRARY), None);
        assert_eq!(told(&[&task("0")[..], &[("PMIX_RANK", "0")]].concat(), LIBRARY), None);

        let mpich = "MPICH Version: 5.0.2";
        let by_open_mpi = |rank| [("PMIX_RANK", rank), ("OMPI_COMM_WORLD_RANK", rank)];
        let message = told(&by_open_mpi("0"), mpich).unwrap();
        assert!(message.contains("Open MPI's mpirun") && message.contains("srun --mpi=pmi2"), "{message}");
        assert_eq!(told(&by_open_mpi("1"), mpich), None);
        assert_eq!(told(&by_open_mpi("0"), LIBRARY), None);
        // MPICH 4 takes itself for alone, which is an error once it has started.
        assert_eq!(told(&by_open_mpi("0"), "MPICH Version: 4.0.2"), None);
        assert_eq!(told(&[("PMIX_RANK", "0"), ("PMI_RANK", "0")], mpich), None);
    }
}
