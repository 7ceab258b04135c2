//! Several hosts on one machine: network namespaces with links of 1 Gbit/s (`tests/lab/hosts.sh`). Needs root; left out
//! elsewhere.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{Mpirun, checkpoints, column, folder, is_open_mpi, text, texts};

/// Emulated hosts, removed on drop.
struct Hosts {
    prefix: String,
}

impl Hosts {
    /// Creates `count` hosts for the test `name`; `None`, with the reason on stderr, if they cannot be created.
    fn up(count: usize, test: &str) -> Option<Hosts> {
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

    /// Prepares `hpml` with `per_host` ranks on each of `hosts` hosts.
    fn hpml(&self, hosts: usize, per_host: usize) -> Mpirun {
        let mut command = self.command();
        command.args(["mpirun", &hosts.to_string(), &per_host.to_string(), env!("CARGO_BIN_EXE_hpml")]);
        Mpirun::command(command).timeout(Duration::from_secs(240))
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.script(&["down"]);
    }
}

#[test]
fn every_sum_is_right_between_hosts() {
    let Some(hosts) = Hosts::up(4, "every_sum_is_right_between_hosts") else { return };
    let folder = folder();
    for (count, per_host) in [(2, 1), (2, 2), (3, 1), (4, 1)] {
        let out = folder.path().join(format!("{count}x{per_host}.h5"));
        let sizes = ["allreduce", "--min", "2", "--max", "1M", "--factor", "40", "--iters", "2"];
        let ways = ["--algorithm", "auto", "--algorithm", "shared", "--algorithm", "ring"];
        let run = hosts.hpml(count, per_host).args(sizes).args(ways).args(["--out", out.to_str().unwrap()]).run();
        let run = run.succeeded();
        assert!(run.stdout.contains(&format!("{}-1", hosts.prefix)), "the ranks are on one host\n{}", run.stdout);
        let wrong = column(&out, "allreduce/wrong");
        assert!(wrong.iter().all(|&count| count == 0.0), "{count} x {per_host} ranks: {wrong:?}");
        // auto: MPI_Allreduce for small buffers, window and ring for large ones.
        for way in ["mpi", "shared", "ring"] {
            assert!(texts(&out, "allreduce/algorithm").iter().any(|used| used == way), "{way} was not measured");
        }
    }
}

#[test]
fn two_hosts_train_to_the_parameters_of_two_ranks_on_one() {
    let Some(hosts) = Hosts::up(2, "two_hosts_train_to_the_parameters_of_two_ranks_on_one") else { return };
    let folder = folder();
    // Three buckets above the ring's least size: the first two on the communication thread, during the backward pass.
    let train = |run: Mpirun, out: PathBuf| {
        run.args(["train", "--out", out.to_str().unwrap(), "--set", "model.name=resnet18", "--set", "model.width=16"])
            .args(["--set", "train.max_steps=3", "--set", "data.test_samples=40", "--set", "parallel.bucket_mb=0.5"])
            .args(["--set", "launch.threads=1"])
            .run()
            .succeeded();
        texts(&out, "epochs/parameter_checksum")
    };
    let apart = train(hosts.hpml(2, 1), folder.path().join("apart.h5"));
    let together = train(Mpirun::ranks(2), folder.path().join("together.h5"));
    assert_eq!(apart, together);
}

#[test]
fn a_host_that_is_cut_off_ends_the_job_and_loses_nothing() {
    let Some(hosts) = Hosts::up(2, "a_host_that_is_cut_off_ends_the_job_and_loses_nothing") else { return };
    let folder = folder();
    let out = folder.path().join("run.h5");
    let train = |run: Mpirun, epochs: usize| {
        run.args(["train", "--out", text(&out), "--resume", "auto", "--set", &format!("train.epochs={epochs}")])
            .args(["--set", "data.train_samples=1600", "--set", "data.test_samples=100"])
            .args(["--set", "checkpoint.every_epochs=1", "--set", "launch.comm_timeout_s=3"])
    };
    let run = train(hosts.hpml(2, 1), 10_000).timeout(Duration::from_secs(60)).spawn();
    let run = run.until("checkpoint", || !checkpoints(&out).is_empty());
    assert!(hosts.script(&["cut", "1"]).status.success());
    let finished = run.wait();
    assert!(!finished.status.success(), "{}", finished.stdout);
    let told = finished.messages().into_iter().find(|message| message.contains("one of rank 1 has not"));
    assert!(told.is_some_and(|message| message.contains("after step")), "{}", finished.stderr);
    let newest = checkpoints(&out).pop().expect("a checkpoint");
    Mpirun::alone().args(["inspect", text(&newest)]).run().succeeded();
    train(Mpirun::ranks(2), 1).run().succeeded();
}
