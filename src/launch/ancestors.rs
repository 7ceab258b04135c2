//! The ancestors of this process: their programs, command lines and CPUs.

/// An ancestor of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ancestor {
    /// Name of its program, at most 15 characters: `mpirun`, `slurmstepd`.
    pub name: String,
    /// Command line. Slurm's daemon of a step writes the step into it: `slurmstepd: [23.batch]`.
    pub command: String,
    /// CPUs it may run on, as Linux writes them: `0-3,8`.
    pub cpus: String,
}

/// The ancestors of this process, its parent first, as far as `/proc` shows them: none from inside a container.
pub(super) fn ancestors() -> Vec<Ancestor> {
    let mut found = Vec::new();
    let mut pid = std::os::unix::process::parent_id();
    while pid > 0 {
        let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}"));
        let Ok(status) = read("status") else { break };
        let status = String::from_utf8_lossy(&status);
        let command = read("cmdline").unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let of = |name| field(&status, name).unwrap_or_default().to_owned();
        found.push(Ancestor { name: of("Name"), command, cpus: of(CPUS) });
        pid = of("PPid").parse().unwrap_or(0);
    }
    found
}

/// The CPUs that this process may run on, as Linux writes them: `0-3,8`. Empty if `/proc` cannot be read.
pub(super) fn own_cpus() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    field(&status, CPUS).unwrap_or_default().to_owned()
}

const CPUS: &str = "Cpus_allowed_list";

/// Value of the field `name` in the text of `/proc/PID/status`.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_sees_its_parent_and_its_own_cpus() {
        assert!(ancestors().first().is_some_and(|parent| !parent.name.is_empty() && !parent.cpus.is_empty()));
        assert!(!own_cpus().is_empty());
        assert_eq!(field("Name:\tmpirun\nPPid:\t7\n", "PPid"), Some("7"));
    }
}
