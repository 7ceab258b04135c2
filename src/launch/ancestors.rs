//! The ancestors of this process: their programs, command lines and CPUs.

use procfs::process::Process;

use super::cpus::Cpus;

/// An ancestor of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ancestor {
    /// Name of its program, at most 15 characters: `mpirun`, `slurmstepd`.
    pub name: String,
    /// Command line. Slurm's daemon of a step writes the step into it: `slurmstepd: [23.batch]`.
    pub command: String,
    /// CPUs that it may run on.
    pub cpus: Cpus,
}

/// The ancestors of this process, its parent first, as far as `/proc` shows them: none from inside a container.
pub(super) fn ancestors() -> Vec<Ancestor> {
    let mut found = Vec::new();
    let mut pid = std::os::unix::process::parent_id() as i32;
    while pid > 0 {
        let Ok((status, command)) = Process::new(pid).and_then(|process| Ok((process.status()?, process.cmdline())))
        else {
            break;
        };
        let (cpus, command) = (Cpus::of(&status), command.unwrap_or_default().join(" "));
        pid = status.ppid;
        found.push(Ancestor { name: status.name, command, cpus });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_sees_its_parent_with_its_cpus() {
        let parent = ancestors().into_iter().next().expect("a process has a parent");
        assert!(!parent.name.is_empty() && !parent.command.is_empty() && !parent.cpus.is_unknown(), "{parent:?}");
    }
}
