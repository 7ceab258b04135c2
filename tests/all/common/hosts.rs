//! Several hosts on one machine: network namespaces with links of 1 Gbit/s (`tests/lab/hosts.sh`). They need root.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::{Mpirun, is_open_mpi};

/// Emulated hosts, removed on drop.
pub struct Hosts {
    prefix: String,
}

impl Hosts {
    /// Creates `count` hosts for the test `name`; `None`, with the reason on stderr, if they cannot be created.
    pub fn up(count: usize, test: &str) -> Option<Hosts> {
        if !is_open_mpi(test) {
            return None; // hosts.sh plays its remote shell
        }
        // Short: host names become part of Open MPI's socket paths. Unique: tests run concurrently.
        static SETS: AtomicUsize = AtomicUsize::new(0);
        let hosts = Hosts { prefix: format!("h{}{}", std::process::id(), SETS.fetch_add(1, Ordering::Relaxed)) };
        let output = hosts.script(&["up", &count.to_string(), "1gbit"]);
        if output.status.success() {
            return Some(hosts);
        }
        let reason = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
        eprintln!("{test}: left out: no emulated hosts (they need root, iproute2 and network namespaces): {reason}");
        None
    }

    fn script(&self, args: &[&str]) -> Output {
        self.command().args(args).output().expect("bash is there")
    }

    fn command(&self) -> Command {
        let mut command = Command::new("bash");
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/hosts.sh")).env("HOSTS", &self.prefix);
        command
    }

    /// Name of host `index`.
    pub fn name(&self, index: usize) -> String {
        format!("{}-{index}", self.prefix)
    }

    /// Moves the odd hosts to a second rack, behind an uplink of 200 Mbit/s.
    pub fn part_into_racks(&self) {
        let output = self.script(&["racks", "200mbit"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Takes the link of host `index` down; whether it could.
    pub fn cut(&self, index: usize) -> bool {
        self.script(&["cut", &index.to_string()]).status.success()
    }

    /// Prepares `hpml` with `per_host` ranks on each of `hosts` hosts.
    pub fn hpml(&self, hosts: usize, per_host: usize) -> Mpirun {
        self.program(hosts, per_host, &[env!("CARGO_BIN_EXE_hpml")])
    }

    /// Prepares `program` with `per_host` ranks on each of `hosts` hosts.
    pub fn program(&self, hosts: usize, per_host: usize, program: &[&str]) -> Mpirun {
        let mut command = self.command();
        command.args(["mpirun", &hosts.to_string(), &per_host.to_string()]).args(program);
        Mpirun::command(command).timeout(Duration::from_secs(240))
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.script(&["down"]);
    }
}
