//! What a run file says of where and when it was measured, under the real launcher, against what Linux and Python say.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::common::{self, Mpirun, column, folder, text, texts};

const SOON: Duration = Duration::from_secs(240);

/// Attribute of `/environment` that is a text.
fn told(file: &Path, name: &str) -> Option<String> {
    let environment = hdf5::File::open(file).unwrap().group("environment").unwrap();
    let value: hdf5::types::VarLenUnicode = environment.attr(name).ok()?.read_scalar().unwrap();
    Some(value.as_str().to_owned())
}

/// Attribute of `/environment` that is a whole number.
fn number(file: &Path, name: &str) -> Option<i64> {
    let environment = hdf5::File::open(file).unwrap().group("environment").unwrap();
    environment.attr(name).ok().map(|value| value.read_scalar().unwrap())
}

/// Output of a program, trimmed; `None` if it is not here or fails.
fn said(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

/// Seconds since 1970 of an ISO 8601 time with offset, by `date`.
fn seconds(time: &str) -> i64 {
    said("date", &["-d", time, "+%s"]).unwrap_or_else(|| panic!("date reads no {time}")).parse().unwrap()
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

/// A short job of `command` that writes `out`.
fn job(ranks: usize, command: &str, out: &Path) -> Mpirun {
    let sizes = ["--set", "data.train_samples=64", "--set", "data.test_samples=32", "--set", "train.epochs=1"];
    let args: &[&str] = if command == "allreduce" { &["--min", "8", "--max", "64"] } else { &sizes };
    Mpirun::ranks(ranks).arg(command).args(args).args(["--out", text(out)]).timeout(SOON)
}

#[test]
fn the_host_is_the_one_that_linux_tells_of() {
    let folder = folder();
    let out = folder.path().join("run.h5");
    let before = now();
    job(2, "train", &out).env("TZ", "Asia/Kathmandu").env("UCX_TLS", "self,sm,tcp").run().succeeded();
    let after = now();
    let [started, ended] = ["started", "ended"].map(|name| told(&out, name).unwrap());
    assert!(before <= seconds(&started) && seconds(&started) <= seconds(&ended) && seconds(&ended) <= after);
    assert!(["+05:45", "+00:00"].iter().any(|offset| started.ends_with(offset)), "{started}"); // without zone files UTC

    let proc = |path: &str| std::fs::read_to_string(path).unwrap();
    let memory = proc("/proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok());
    assert_eq!(number(&out, "memory_bytes"), memory.map(|kib: i64| 1024 * kib));
    assert_eq!(told(&out, "kernel").unwrap(), proc("/proc/sys/kernel/osrelease").trim());
    let python = "import os; print(os.cpu_count())";
    assert_eq!(number(&out, "cores").map(|cores| cores.to_string()), said("python3", &["-c", python]));
    let lscpu = said("sh", &["-c", "LC_ALL=C lscpu -p=SOCKET,NODE | grep -v '^#'"]);
    for (column, name) in [(0, "sockets"), (1, "numa_nodes")] {
        let found: Option<std::collections::BTreeSet<String>> = lscpu
            .as_ref()
            .map(|all| all.lines().filter_map(|line| Some(line.split(',').nth(column)?.to_owned())).collect());
        if let (Some(found), Some(number)) = (found.filter(|found| !found.contains("")), number(&out, name)) {
            assert_eq!(number, found.len() as i64, "{name}");
        }
    }
    let governor = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").ok();
    assert_eq!(told(&out, "cpu_governor").is_some(), governor.is_some());
    if Path::new("/.dockerenv").exists() {
        assert!(told(&out, "container").is_some());
    }
    assert!(told(&out, "mpi_transport_set").unwrap().contains("UCX_TLS=self,sm,tcp"));
    if common::is_open_mpi("mpi_transport_loaded") {
        // 4.1 keeps its components in files of their own; later builds need not.
        assert!(told(&out, "mpi_transport_loaded").is_none_or(|loaded| !loaded.is_empty()));
    }
}

#[test]
fn each_rank_has_the_cores_that_it_was_given() {
    let folder = folder();
    let out = folder.path().join("run.h5");
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let own = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
    job(2, "train", &out).env("OMPI_MCA_hwloc_base_binding_policy", "none").run().succeeded();
    let cpus = texts(&out, "environment/cpus");
    assert_eq!(cpus.len(), 2);
    if common::is_open_mpi("each_rank_has_the_cores_that_it_was_given") {
        assert_eq!(cpus, [own, own]);
    }
}

#[test]
fn every_kind_of_file_says_it_and_inspect_and_the_page_show_it_with_the_whole_configuration() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    job(1, "train", &path("run.h5")).args(["--set", "quantize.enabled=true"]).run().succeeded();
    job(2, "allreduce", &path("allreduce.h5")).run().succeeded();
    for file in ["run.h5", "run-int8.h5", "allreduce.h5"] {
        let file = path(file);
        for name in ["started", "ended", "kernel"] {
            assert!(told(&file, name).is_some(), "{name}: {}", file.display());
        }
        let shown = Mpirun::alone().args(["inspect", text(&file)]).run().succeeded().stdout;
        let page = folder.path().join("page.html");
        Mpirun::alone().args(["report", text(&file), "--force", "--html", text(&page)]).run().succeeded();
        let page = std::fs::read_to_string(&page).unwrap();
        for name in ["started", "ended", "memory_bytes", "kernel"] {
            assert!(shown.contains(name) && page.contains(name), "{name}: {shown}");
        }
        // Every key, the last of a long section too.
        for key in ["model.name", "train.lr", "launch.comm_timeout_s", "quantize.finetune_epochs", "study.seeds"] {
            assert!(shown.contains(&format!("  {key} = ")) && page.contains(key), "{key}: {shown}");
        }
    }
    // A file that is not finished has a start and no end.
    let begun = path("begun.h5");
    let settings = ["--set", "train.epochs=200", "--set", "checkpoint.every_epochs=1"];
    let running = job(1, "train", &begun).args(settings).spawn().until("an epoch", || begun.exists());
    common::kill("TERM", running.rank_pids(1)[0]);
    running.wait();
    assert!(told(&begun, "started").is_some() && told(&begun, "ended").is_none());
}

/// Attribute of `/environment` that is one number or several.
fn numbers(file: &Path, name: &str) -> Option<Vec<f64>> {
    let environment = hdf5::File::open(file).unwrap().group("environment").unwrap();
    environment.attr(name).ok().map(|values| values.read_raw().unwrap())
}

#[test]
fn a_training_says_its_operations_per_second_and_their_share_of_the_ranks_fastest_products() {
    let folder = folder();
    let out = folder.path().join("run.h5");
    let run = job(2, "train", &out).args(["--set", "train.epochs=2"]).run().succeeded();
    // The networks' numbers are held against PyTorch's in workload.rs.
    let forward = number(&out, "operations_forward").unwrap() as f64;
    assert_eq!((forward, number(&out, "operations_training")), (2.0 * 651_720.0, Some(3_204_720)));
    let (ranks, all) = (numbers(&out, "peak_flops_of_ranks").unwrap(), numbers(&out, "peak_flops").unwrap());
    // No processor with libtorch's kernels is slower, and no GPU of today faster.
    assert!(ranks.len() == 2 && ranks.iter().all(|rate| (1e8..1e17).contains(rate)), "{ranks:?}");
    let near = |found: f64, expected: f64| (found / expected - 1.0).abs() < 1e-12; // rounding
    assert!(all.len() == 1 && near(all[0], ranks.iter().sum()), "{all:?} {ranks:?}");
    let [speed, flops, share] =
        ["images_per_second", "flops", "peak_share"].map(|name| column(&out, &format!("epochs/{name}")));
    assert_eq!(flops.len(), 2);
    for epoch in 0..2 {
        assert!(near(flops[epoch], 3.0 * forward * speed[epoch]), "{flops:?} {speed:?}");
        assert!(near(share[epoch], 100.0 * flops[epoch] / all[0]), "{share:?}");
    }
    let page = folder.path().join("page.html");
    Mpirun::alone().args(["report", text(&out), "--html", text(&page)]).run().succeeded();
    let report = Mpirun::alone().args(["report", text(&out)]).run().succeeded();
    let page = std::fs::read_to_string(&page).unwrap();
    for shown in [&run.stdout, &report.stdout, &page] {
        assert!(shown.contains("flops") && shown.contains("peak_share"), "{shown}");
    }
    assert!(page.contains("peak_flops"));
}

#[test]
fn without_a_peak_there_is_no_share() {
    let folder = folder();
    let out = folder.path().join("run.h5");
    let run = job(1, "train", &out).args(["--set", "metrics.peak=false"]).run().succeeded();
    assert_eq!(numbers(&out, "peak_flops"), None);
    assert!(column(&out, "epochs/peak_share")[0].is_nan() && column(&out, "epochs/flops")[0] > 0.0);
    assert!(run.stdout.contains("flops") && !run.stdout.contains("peak_share"), "{}", run.stdout);
}
