//! hpml against PyTorch DistributedDataParallel (gloo) on the same machine and the same libtorch: `cargo bench --bench ddp`.
//!
//! Runs of both alternate, so that a drift of the machine's speed affects both; the claim is the ratio of medians. Both
//! train CIFAR-10 with the same loader work (crop and flip for ResNet-18), batches, ranks and one thread per rank; ResNet-50 random
//! images of 64x64. ResNets: median over the steps of the slowest rank's step. Net: steps per second of an uninterrupted loop.
//!
//! The peer is benches/peers/ddp.py. Needs HPML_CIFAR10 (folder of the binary files) and PyTorch's `torchrun` (HPML_TORCHRUN, or
//! on the PATH); says what is missing and stops otherwise. HPML_ROUNDS: runs of each (3). An argument picks cases by name.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

/// Allocator settings of the best tuned PyTorch script: glibc keeps freed memory, as hpml does by itself.
const KEEP: &str = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592";

struct Case {
    name: &'static str,
    ranks: usize,
    batch: usize,
    model: &'static str,
    steps: usize,
    warmup: usize,
    /// Pixels per side of random images; CIFAR-10 without.
    size: Option<usize>,
    hpml: &'static [&'static str],
    /// Variables of both.
    environment: &'static [(&'static str, &'static str)],
    /// Name, flags, and whether the environment tunes the allocator.
    peers: &'static [(&'static str, &'static [&'static str], bool)],
}

const TUNED: &[&str] = &["--channels-last", "--fused", "--bucket-view"];
const TUNED_BF16: &[&str] = &["--channels-last", "--fused", "--bucket-view", "--bf16"];

/// What keeps libtorch, oneDNN and hpml to AVX2.
const AVX2_ALONE: &[(&str, &str)] = &[("ONEDNN_MAX_CPU_ISA", "AVX2"), ("ATEN_CPU_CAPABILITY", "avx2")];

const RESNET18: Case = Case {
    name: "",
    ranks: 2,
    batch: 32,
    model: "resnet18",
    steps: 8,
    warmup: 2,
    size: None,
    hpml: &[],
    environment: &[],
    peers: &[("DDP", &[], false), ("DDP tuned", TUNED, true)],
};

const NET: Case = Case {
    name: "",
    ranks: 2,
    batch: 4,
    model: "net",
    steps: 1500,
    warmup: 50,
    size: None,
    hpml: &[],
    environment: &[],
    peers: &[("DDP", &[], false)],
};

const CASES: &[Case] = &[
    Case { name: "resnet18-b128", batch: 128, steps: 4, warmup: 1, ..RESNET18 },
    Case { name: "resnet18-b32", ..RESNET18 },
    Case {
        name: "resnet18-b32-avx2",
        steps: 5,
        environment: AVX2_ALONE,
        peers: &[("DDP tuned", TUNED, true)],
        ..RESNET18
    },
    Case {
        name: "resnet18-b32-bf16",
        hpml: &["--set", "model.precision=bf16"],
        peers: &[("DDP bf16", &["--bf16"], false), ("DDP bf16 tuned", TUNED_BF16, true)],
        ..RESNET18
    },
    Case {
        name: "resnet50-64x64-b8",
        model: "resnet50",
        batch: 8,
        steps: 4,
        warmup: 1,
        size: Some(64),
        peers: &[("DDP tuned", TUNED, true)],
        ..RESNET18
    },
    Case { name: "net-b4-1rank", ranks: 1, peers: &[("plain PyTorch", &["--plain"], false)], ..NET },
    Case { name: "net-b4-2ranks", ..NET },
    Case { name: "net-b32-2ranks", batch: 32, steps: 500, ..NET },
];

fn main() {
    let torchrun = std::env::var_os("HPML_TORCHRUN").unwrap_or_else(|| "torchrun".into());
    let Some(data) = std::env::var_os("HPML_CIFAR10") else {
        println!("ddp: left out: set HPML_CIFAR10 to the folder of CIFAR-10's binary files");
        return;
    };
    if let Err(error) = Command::new(&torchrun).arg("--help").stdout(Stdio::null()).status() {
        println!("ddp: left out: {}: {error}: set HPML_TORCHRUN to PyTorch's torchrun", torchrun.display());
        return;
    }
    let rounds: usize = std::env::var("HPML_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    println!("| case | program | images/s, median (min-max) | hpml is faster by | runs |");
    println!("|---|---|--:|--:|--:|");
    for case in
        CASES.iter().filter(|case| wanted.is_empty() || wanted.iter().any(|name| case.name.contains(name.as_str())))
    {
        let mut rates: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for _ in 0..rounds {
            rates.entry("hpml").or_default().push(run_hpml(case, data.as_ref()));
            for (name, flags, keep) in case.peers {
                rates.entry(name).or_default().push(run_peer(case, data.as_ref(), &torchrun, flags, *keep));
            }
        }
        let hpml = median(&rates["hpml"]);
        for (name, rates) in &rates {
            let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
            let most = rates.iter().copied().fold(0.0, f64::max);
            let ratio = if *name == "hpml" { String::new() } else { format!("{:.2}x", hpml / median(rates)) };
            println!(
                "| {} | {name} | {:.1} ({least:.1}-{most:.1}) | {ratio} | {} |",
                case.name,
                median(rates),
                rates.len()
            );
        }
    }
}

/// Images per second of one run of hpml.
fn run_hpml(case: &Case, data: &Path) -> f64 {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("run.h5");
    let config = match case.model {
        "net" => concat!(env!("CARGO_MANIFEST_DIR"), "/configs/cifar10-net.toml"),
        _ => concat!(env!("CARGO_MANIFEST_DIR"), "/configs/cifar10-resnet18.toml"),
    };
    let set = |key: &str, value: usize| ["--set".to_owned(), format!("{key}={value}")];
    let mut command = Command::new("mpirun");
    command.args(["-n", &case.ranks.to_string(), env!("CARGO_BIN_EXE_hpml"), "train", config, "--out"]).arg(&out);
    match case.size {
        None => command.arg("--data").arg(data),
        Some(size) => {
            let shape = format!("data.shape=[3,{size},{size}]");
            let set = ["--data", "synthetic", "--set", &shape, "--set", "data.augment=false", "--set"];
            command.args(set).arg(format!("model.name={}", case.model))
        }
    };
    command.args(case.hpml).envs(case.environment.iter().copied());
    command.args(set("train.batch_per_rank", case.batch)).args(set("train.max_steps", case.steps + case.warmup));
    command
        .args(set("metrics.warmup_steps", case.warmup))
        .args(set("launch.threads", 1))
        .args(set("data.test_samples", 100));
    command.envs([("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")]);
    let output = command.output().expect("mpirun can be started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let file = hdf5::File::open(&out).expect("hpml wrote its run file");
    let seconds: Vec<f64> = file.dataset("steps/step").and_then(|column| column.read_raw()).expect("steps/step");
    let slowest: Vec<f64> =
        seconds.chunks(case.ranks).skip(case.warmup).map(|ranks| ranks.iter().copied().fold(0.0, f64::max)).collect();
    let step = if case.model == "net" { slowest.iter().sum::<f64>() / slowest.len() as f64 } else { median(&slowest) };
    (case.batch * case.ranks) as f64 / step
}

/// Images per second of one run of the peer.
fn run_peer(case: &Case, data: &Path, torchrun: &OsStr, flags: &[&str], keep: bool) -> f64 {
    let mut command = Command::new(torchrun);
    command.args(["--standalone", &format!("--nproc_per_node={}", case.ranks)]);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/ddp.py"));
    match case.size {
        None => command.arg("--data").arg(data),
        Some(size) => command.args(["--size", &size.to_string()]),
    };
    command.envs(case.environment.iter().copied());
    command.args(["--model", case.model, "--batch", &case.batch.to_string()]).args(flags);
    command.args(["--warmup", &case.warmup.to_string(), "--steps", &case.steps.to_string()]);
    if case.model == "net" {
        command.arg("--unbroken");
    }
    command.env("OMP_NUM_THREADS", "1");
    if keep {
        command.env("GLIBC_TUNABLES", KEEP);
    }
    let output = command.output().expect("torchrun can be started");
    let text = String::from_utf8_lossy(&output.stdout);
    let json = text.lines().last().unwrap_or_default();
    // One of gloo's threads sometimes aborts the process at its end, after its figures are printed.
    assert!(json.starts_with('{'), "{}", String::from_utf8_lossy(&output.stderr));
    number(json, "images_per_second")
}

/// Number that follows `"key":` in one line of JSON.
fn number(json: &str, key: &str) -> f64 {
    let rest = json.split(&format!("\"{key}\": ")).nth(1).unwrap_or_else(|| panic!("{key} is missing in {json}"));
    rest.split([',', '}'])
        .next()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| panic!("{key} is not a number in {json}"))
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}
