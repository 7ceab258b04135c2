//! hpml against PyTorch DistributedDataParallel (gloo) on the same machine and the same libtorch: `cargo bench --bench ddp`.
//!
//! Runs of both alternate, so that a drift of the machine's speed affects both; the claim is the ratio of medians. Both
//! train CIFAR-10 with the same loader work (crop and flip for ResNet-18), batches, ranks and one thread per rank. ResNet-18:
//! median over the steps of the slowest rank's step. Net: steps per second of an uninterrupted loop.
//!
//! Needs HPML_CIFAR10 (folder of the binary files), HPML_PEERS (folder of the peer program `ddp.py`) and HPML_TORCHRUN (a
//! `torchrun`); says what is missing and stops otherwise. HPML_ROUNDS: runs of each (3). An argument picks cases by name.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

/// Allocator settings of the best tuned PyTorch script: glibc keeps freed memory, as hpml does by itself.
const KEEP: &str = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592";

struct Case {
    name: &'static str,
    ranks: usize,
    batch: usize,
    model: &'static str,
    steps: usize,
    warmup: usize,
    hpml: &'static [&'static str],
    /// Name, flags, and whether the environment tunes the allocator.
    peers: &'static [(&'static str, &'static [&'static str], bool)],
}

const TUNED: &[&str] = &["--channels-last", "--opt", "fused", "--bucket-view"];
const BF16: &[&str] = &["--channels-last", "--bf16"];

const CASES: &[Case] = &[
    Case {
        name: "resnet18-b128",
        ranks: 2,
        batch: 128,
        model: "resnet18",
        steps: 4,
        warmup: 1,
        hpml: &[],
        peers: &[("DDP", &[], false), ("DDP tuned", TUNED, true)],
    },
    Case {
        name: "resnet18-b32",
        ranks: 2,
        batch: 32,
        model: "resnet18",
        steps: 8,
        warmup: 2,
        hpml: &[],
        peers: &[("DDP", &[], false), ("DDP tuned", TUNED, true)],
    },
    Case {
        name: "resnet18-b32-bf16",
        ranks: 2,
        batch: 32,
        model: "resnet18",
        steps: 8,
        warmup: 2,
        hpml: &["--set", "model.precision=bf16"],
        peers: &[("DDP bf16", BF16, false)],
    },
    Case {
        name: "net-b4-1rank",
        ranks: 1,
        batch: 4,
        model: "net",
        steps: 1500,
        warmup: 50,
        hpml: &[],
        peers: &[("plain PyTorch", &["--no-ddp"], false)],
    },
    Case {
        name: "net-b4-2ranks",
        ranks: 2,
        batch: 4,
        model: "net",
        steps: 1500,
        warmup: 50,
        hpml: &[],
        peers: &[("DDP", &[], false)],
    },
];

fn main() {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let (Some(data), Some(peers), Some(torchrun)) =
        (folder("HPML_CIFAR10"), folder("HPML_PEERS"), folder("HPML_TORCHRUN"))
    else {
        println!("ddp: left out: set HPML_CIFAR10, HPML_PEERS and HPML_TORCHRUN (see benches/ddp.rs)");
        return;
    };
    let rounds: usize = std::env::var("HPML_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    println!("| case | program | images/s, median (min-max) | hpml is faster by | runs |");
    println!("|---|---|--:|--:|--:|");
    for case in
        CASES.iter().filter(|case| wanted.is_empty() || wanted.iter().any(|name| case.name.contains(name.as_str())))
    {
        let mut rates: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for _ in 0..rounds {
            rates.entry("hpml").or_default().push(run_hpml(case, &data));
            for (name, flags, keep) in case.peers {
                rates.entry(name).or_default().push(run_peer(case, &data, &peers, &torchrun, flags, *keep));
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
fn run_hpml(case: &Case, data: &std::path::Path) -> f64 {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("run.h5");
    let config = match case.model {
        "net" => concat!(env!("CARGO_MANIFEST_DIR"), "/configs/cifar10-net.toml"),
        _ => concat!(env!("CARGO_MANIFEST_DIR"), "/configs/cifar10-resnet18.toml"),
    };
    let set = |key: &str, value: usize| ["--set".to_owned(), format!("{key}={value}")];
    let mut command = Command::new("mpirun");
    command.args(["-n", &case.ranks.to_string(), env!("CARGO_BIN_EXE_hpml"), "train", config, "--data"]).arg(data);
    command.arg("--out").arg(&out).args(case.hpml);
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
fn run_peer(
    case: &Case,
    data: &std::path::Path,
    peers: &std::path::Path,
    torchrun: &std::path::Path,
    flags: &[&str],
    keep: bool,
) -> f64 {
    let mut command = Command::new(torchrun);
    command.args(["--standalone", &format!("--nproc_per_node={}", case.ranks)]).arg(peers.join("ddp.py"));
    command.arg("--data").arg(data).args(["--model", case.model, "--batch", &case.batch.to_string()]).args(flags);
    let net = case.model == "net";
    let steps = if net { 10 } else { case.steps };
    command.args(["--warmup", &case.warmup.to_string(), "--steps", &steps.to_string()]);
    if net {
        command.args(["--continuous", &case.steps.to_string()]);
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
    match net {
        true => number(json, "cont_steps_s") * (case.batch * case.ranks) as f64,
        false => number(json, "img_s"),
    }
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
