//! Compressed gradients and local steps under the real launcher: their bytes, their results, and what is refused.

use std::path::Path;
use std::time::Duration;

use crate::common::{Finished, Mpirun, column, folder, texts};

/// Settings of every way to send less.
const WAYS: [&[&str]; 6] = [
    &["parallel.compression=bf16"],
    &["parallel.compression=fp16"],
    &["parallel.compression=int8"],
    &["parallel.compression=powersgd"],
    &["parallel.local_steps=4"],
    &["parallel.local_steps=16", "optim.name=lamb", "train.lr=0.002"],
];

fn train(ranks: usize, out: &Path, settings: &[&str]) -> Finished {
    let run = Mpirun::ranks(ranks).args(["train", "--out", out.to_str().unwrap(), "--force"]);
    let run = run.args(["--set", "data.test_samples=100"]).timeout(Duration::from_secs(240));
    settings.iter().fold(run, |run, setting| run.args(["--set", setting])).run()
}

/// Messages and bytes of one kind in the ledger; the kinds are parameters, gradients, buffers, metrics, control.
fn counted(file: &Path, kind: &str) -> (f64, f64) {
    let row = texts(file, "comm/kind").iter().position(|name| name == kind).unwrap();
    (column(file, "comm/messages")[row], column(file, "comm/bytes")[row])
}

#[test]
fn every_way_trains_on_one_to_four_ranks_to_identical_parameters() {
    // Every epoch compares a checksum of the parameters over the ranks; a difference would end the job.
    for ways in WAYS {
        for ranks in [1, 2, 3, 4] {
            let folder = folder();
            let out = folder.path().join("run.h5");
            let settings = [&["data.train_samples=1200", "train.batch_per_rank=7", "train.epochs=2"], ways].concat();
            train(ranks, &out, &settings).succeeded();
            let loss = column(&out, "epochs/train_loss");
            assert!(loss[1] < loss[0], "{ways:?}, {ranks} ranks: {loss:?}");
        }
    }
}

#[test]
fn overlap_and_profile_with_several_buckets_train_the_same_and_the_parts_add_up() {
    let folder = folder();
    let resnet =
        ["model.name=resnet18", "model.width=8", "train.max_steps=6", "train.epochs=1", "train.batch_per_rank=4"];
    for ways in &WAYS[..5] {
        let mut losses = Vec::new();
        for (timing, accumulate) in [("overlap", 1), ("profile", 1), ("overlap", 2), ("profile", 2)] {
            let out = folder.path().join("run.h5");
            let more = [format!("metrics.timing={timing}"), format!("train.accumulate={accumulate}")];
            let more = [more[0].as_str(), more[1].as_str(), "data.train_samples=200"];
            let is_local = ways[0].starts_with("parallel.local_steps"); // has no buckets
            let buckets: &[&str] = if is_local { &[] } else { &["parallel.bucket_mb=0.05"] };
            train(2, &out, &[&resnet, &more[..], buckets, ways].concat()).succeeded();
            losses.push(column(&out, "epochs/train_loss")[0]);
            if timing == "profile" {
                let steps = column(&out, "steps/step");
                let mut shares = vec![0.0; steps.len()];
                for part in ["data", "forward", "backward", "comm_wait", "comm", "optimizer"] {
                    let seconds = column(&out, &format!("steps/{part}"));
                    shares
                        .iter_mut()
                        .zip(seconds.iter().zip(&steps))
                        .for_each(|(share, (part, step))| *share += part / step);
                }
                // Twelve short steps: a busy system takes the core away between two parts of some, but not of all.
                let fullest = shares.iter().copied().fold(0.0, f64::max);
                assert!((fullest - 1.0).abs() < 0.02, "{ways:?}: {shares:?}");
            }
        }
        assert_eq!((losses[0], losses[2]), (losses[1], losses[3]), "{ways:?}");
    }
}

#[test]
fn the_bytes_in_the_ledger_are_those_of_the_compressed_gradients() {
    // Steps of one bucket with Net; ResNet-18 at its full width for PowerSGD, whose matrices grow slower than the gradient.
    let folder = folder();
    let bytes = |settings: &[&str]| {
        let out = folder.path().join("run.h5");
        let few = ["train.max_steps=2", "train.epochs=1", "train.batch_per_rank=2", "data.train_samples=100"];
        train(2, &out, &[&few, settings].concat()).succeeded();
        counted(&out, "gradients").1
    };
    let net = 2.0 * 4.0 * 61_770.0;
    assert_eq!(bytes(&[]), net);
    assert_eq!(bytes(&["parallel.compression=bf16"]), net / 2.0);
    assert_eq!(bytes(&["parallel.compression=fp16"]), net / 2.0 + 2.0 * 4.0);
    assert_eq!(bytes(&["parallel.compression=int8"]), 2.0 * (61_770.0 + 4.0 * 242.0));
    assert!(bytes(&["parallel.compression=int8", "parallel.compression_block=64"]) <= 0.27 * net);
    let powersgd = bytes(&["parallel.compression=powersgd"]);
    assert!(powersgd < 0.1 * net);
    // One of the two steps is not compressed.
    let late = bytes(&["parallel.compression=powersgd", "parallel.compression_start=1"]);
    assert_eq!(late, net / 2.0 + powersgd / 2.0);

    let resnet = 2.0 * 4.0 * 11_173_962.0;
    for (compression, most) in [("int8", 0.255), ("powersgd", 0.1)] {
        let found = bytes(&["model.name=resnet18", &format!("parallel.compression={compression}")]);
        assert!(found < most * resnet, "{compression}: {}", found / resnet);
    }
}

#[test]
fn local_steps_send_parameters_and_momentum_once_in_a_while_and_at_an_epochs_end() {
    let folder = folder();
    let out = folder.path().join("run.h5");
    // 20 steps per epoch: averages of two arrays after 8, after 16 and at the end.
    let settings = ["data.train_samples=400", "train.batch_per_rank=10", "train.epochs=2", "parallel.local_steps=8"];
    train(2, &out, &settings).succeeded();
    assert_eq!(counted(&out, "gradients"), (0.0, 0.0));
    assert_eq!(counted(&out, "parameters"), (1.0 + 2.0 * 3.0 * 2.0, 4.0 * 61_770.0 * 13.0));

    // With one step per epoch the mean of the ranks' updates is the update with their mean gradient, momentum and all.
    let losses = |more: &[&str]| {
        let same = ["data.train_samples=40", "train.batch_per_rank=20", "train.epochs=8", "train.lr=0.05"];
        train(2, &out, &[&same, more].concat()).succeeded();
        column(&out, "epochs/train_loss")
    };
    let (apart, together) = (losses(&["parallel.local_steps=2"]), losses(&[]));
    for (one, other) in apart.iter().zip(&together) {
        assert!((one / other - 1.0).abs() < 1e-4, "{apart:?} {together:?}"); // rounding, and ties of max pooling
    }
    assert!(apart[7] < apart[0]);
}

#[test]
fn compressed_gradients_learn_as_much_as_plain_ones() {
    let folder = folder();
    let loss = |settings: &[&str]| {
        let out = folder.path().join("run.h5");
        let same = ["data.train_samples=3000", "train.batch_per_rank=8", "train.epochs=2", "train.lr=0.02"];
        train(2, &out, &[&same, settings].concat()).succeeded();
        column(&out, "epochs/train_loss")[1]
    };
    let plain = loss(&[]);
    // The loss falls from 2.3 to about 1.1. Batches are small, so that any rounding grows to some 0.1; a wrong scale or a
    // forgotten rank makes it 0.5 and more.
    for ways in &WAYS[..5] {
        let found = loss(ways);
        assert!((found - plain).abs() < 0.35, "{ways:?}: {found}, plain {plain}");
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let folder = folder();
    let out = folder.path().join("run.h5");
    let cases: [(&[&str], &[&str]); 9] = [
        (&["parallel.compression=zip"], &["zip"]),
        (&["parallel.compression_block=32"], &["parallel.compression_block = 32", "64 to 65536"]),
        (&["parallel.compression_block=65537"], &["parallel.compression_block = 65537", "64 to 65536"]),
        (&["parallel.compression_rank=0"], &["parallel.compression_rank = 0", "1 to 64"]),
        (&["parallel.compression_rank=65"], &["parallel.compression_rank = 65", "1 to 64"]),
        (&["parallel.local_steps=0"], &["parallel.local_steps = 0", "at least 1"]),
        (&["parallel.local_steps=2", "parallel.compression=int8"], &["parallel.local_steps = 2", "compression"]),
        (&["parallel.local_steps=2", "optim.ema=0.9"], &["parallel.local_steps = 2", "optim.ema"]),
        (&["parallel.compression=int8", "parallel.all_reduce=ring"], &["parallel.all_reduce = ring", "auto"]),
    ];
    for (settings, told) in cases {
        let run = train(2, &out, settings);
        assert!(!run.status.success() && !out.exists(), "{settings:?}");
        let messages = run.messages();
        assert!(
            messages.len() == 1 && told.iter().all(|told| messages[0].contains(told)),
            "{settings:?}: {messages:?}"
        );
    }
}
