//! What the ranks exchange: that the ledger tells the truth of it, and what becomes of a training that leaves some of it
//! out.

mod common;

use std::path::Path;
use std::process::Command;

use common::{Mpirun, column, folder};

const NARROW_RESNET: [&str; 6] =
    ["--set", "model.name=resnet18", "--set", "model.width=8", "--set", "train.batch_per_rank=8"];

/// Whether the MPI here is an Open MPI that counts its messages itself.
fn can_monitor() -> bool {
    let info = Command::new("ompi_info").output().map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let can = info.is_ok_and(|info| info.contains("pml: monitoring"));
    if !can {
        eprintln!("left out: this MPI has no monitoring component (Open MPI's pml_monitoring)");
    }
    can
}

/// Bytes that all ranks sent point to point: in messages of the program's own, and inside MPI's collectives.
///
/// Source: Open MPI, ompi/mca/common/monitoring/README: a line `E` (external) or `I` (internal) a pair of ranks.
fn monitored(folder: &Path, ranks: usize) -> (f64, f64) {
    let (mut own, mut inside) = (0.0, 0.0);
    for rank in 0..ranks {
        let text = std::fs::read_to_string(folder.join(format!("mpi.{rank}.prof"))).unwrap();
        for fields in text.lines().map(|line| line.split('\t').collect::<Vec<_>>()) {
            let bytes = || fields[3].split(' ').next().unwrap().parse::<f64>().unwrap();
            match fields[0] {
                "E" => own += bytes(),
                "I" => inside += bytes(),
                _ => {}
            }
        }
    }
    (own, inside)
}

#[test]
fn the_ledger_tells_what_mpi_sent() {
    if !can_monitor() {
        return;
    }
    let resnet = [&NARROW_RESNET[..], &["--set", "train.max_steps=20"]].concat();
    for ranks in [2, 4] {
        for (algorithm, model) in [
            ("ring", &["--set", "model.name=net"][..]),
            ("mpi", &["--set", "model.name=net"]),
            ("ring", &resnet),
            ("mpi", &resnet),
            ("shared", &resnet),
        ] {
            let folder = folder();
            let out = folder.path().join("run.h5");
            let monitor = |name: &str| format!("OMPI_MCA_pml_monitoring_{name}");
            Mpirun::ranks(ranks)
                .env(&monitor("enable"), "2")
                .env(&monitor("enable_output"), "3")
                .env("OMPI_MCA_osc", "^monitoring") // it takes shared windows for its own kind and ends the job
                .env(&monitor("filename"), folder.path().join("mpi").to_str().unwrap())
                .args(["train", "--out", out.to_str().unwrap(), "--set", &format!("parallel.all_reduce={algorithm}")])
                .args(["--set", "data.train_samples=800", "--set", "data.test_samples=100"])
                .args(model)
                .run()
                .succeeded();
            let (own, inside) = monitored(folder.path(), ranks);
            // Kinds in their order: parameters, gradients, buffers, metrics, control.
            let (sent, bytes) = (column(&out, "comm/sent_bytes"), column(&out, "comm/bytes"));
            let counted: f64 = sent.iter().sum();
            let case = format!("{ranks} ranks, {algorithm}, {model:?}: ledger {sent:?}, MPI {own} + {inside}");
            if algorithm == "shared" {
                assert_eq!((sent[1], own), (0.0, 0.0), "{case}");
            } else {
                assert_eq!(sent[1], 2.0 * (ranks - 1) as f64 * bytes[1], "{case}");
            }
            if algorithm == "ring" {
                assert_eq!(own, sent[1], "{case}"); // these messages are hpml's own: to the byte
            }
            eprintln!("{case}: {:+.3} %", 100.0 * (counted / (own + inside) - 1.0));
            assert!((counted / (own + inside) - 1.0).abs() < 0.01, "{case}");
        }
    }
}

/// One entry after the other of a run file's checkpoint whose names `keep` holds for, in the order of the names.
fn checkpoint(file: &Path, keep: impl Fn(&str) -> bool) -> Vec<f32> {
    let file = hdf5::File::open(file).unwrap();
    let mut tensors = file.group("checkpoint").unwrap().datasets().unwrap();
    tensors.retain(|tensor| keep(&tensor.name()) && !tensor.name().ends_with("num_batches_tracked"));
    tensors.sort_by_key(|tensor| tensor.name());
    tensors.iter().flat_map(|tensor| tensor.read_raw::<f32>().unwrap()).collect()
}

/// Greatest difference, over the greatest magnitude.
fn difference(one: &[f32], two: &[f32]) -> f32 {
    assert_eq!(one.len(), two.len());
    let greatest = one.iter().fold(0f32, |greatest, value| greatest.max(value.abs()));
    one.iter().zip(two).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / greatest
}

#[test]
fn with_synchronised_batch_norm_the_ranks_train_as_one_with_the_global_batch() {
    let folder = folder();
    // A plain step of rate 1 leaves the gradient in the parameters. The embedded images have flat areas, in which max
    // pooling would find ties; this network has none.
    let train = |ranks: usize, batch: usize, more: &[&str]| {
        let out = folder.path().join("run.h5");
        let run = Mpirun::ranks(ranks).args(["train", "--force", "--out", out.to_str().unwrap()]);
        let run = run.args(NARROW_RESNET).args(["--set", &format!("train.batch_per_rank={batch}")]);
        let run = run.args(["--set", "train.lr=1.0", "--set", "optim.momentum=0.0", "--set", "train.max_steps=1"]);
        let run = run.args(["--set", "data.train_samples=256", "--set", "data.test_samples=64"]);
        run.args(["--set", "launch.threads=1"]).args(more).run().succeeded();
        let buffers = checkpoint(&out, |name| name.contains("running"));
        (checkpoint(&out, |name| !name.contains("running")), buffers, column(&out, "epochs/train_loss")[0])
    };
    let (start, ..) = train(1, 64, &["--set", "train.lr=1e-30"]);
    let gradient = |parameters: &[f32]| -> Vec<f32> { start.iter().zip(parameters).map(|(a, b)| a - b).collect() };
    let sync = ["--set", "parallel.buffers=sync"];
    let (parameters, buffers, loss) = train(1, 64, &sync);
    let expected = gradient(&parameters);
    for (ranks, batch, more) in [
        (2, 32, &["--set", "metrics.timing=profile"][..]),
        (4, 16, &[]),
        (2, 32, &["--set", "parallel.all_reduce=ring"]),
    ] {
        let (own, own_buffers, own_loss) = train(ranks, batch, &[&sync[..], more].concat());
        let (gradients, statistics) = (difference(&expected, &gradient(&own)), difference(&buffers, &own_buffers));
        eprintln!("{ranks} ranks: gradients {gradients:e}, statistics {statistics:e}, loss {:e}", own_loss - loss);
        assert!(gradients < 1e-5 && statistics < 1e-5 && (own_loss - loss).abs() < 1e-5, "{ranks} ranks: {gradients}");
    }
    // What it is held against: without it, each rank has its own statistics, and another gradient.
    let (local, ..) = train(2, 32, &["--set", "parallel.buffers=local"]);
    assert!(difference(&expected, &gradient(&local)) > 1e-2);

    // Two batches a step, each of them over all ranks.
    train(2, 16, &[&sync[..], &["--set", "train.accumulate=2", "--set", "train.max_steps=3"]].concat());
    train(2, 16, &[&sync[..], &["--set", "model.precision=bf16"]].concat());
}
