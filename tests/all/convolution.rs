//! Winograd's convolutions: chosen once, alike on all ranks, kept by a resumed run, and refused where they cannot be.

use std::path::Path;

use crate::common::{Mpirun, column, folder, has, kill, parameters, text, texts};

/// A small ResNet whose later stages have enough work for a trial.
const SMALL: [&str; 8] = [
    "model.name=resnet18",
    "model.width=16",
    "data.train_samples=320",
    "data.test_samples=40",
    "train.batch_per_rank=16",
    "train.test_batch=40",
    "launch.threads=1",
    "checkpoint.every_epochs=1",
];

fn train(ranks: usize, out: &Path, settings: &[&str]) -> Mpirun {
    let settings = SMALL.iter().chain(settings).flat_map(|setting| ["--set", setting]);
    Mpirun::ranks(ranks).args(["train", "--out", text(out)]).args(settings)
}

fn has_avx2() -> bool {
    let has = std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("avx2") && text.contains("fma"));
    if !has {
        eprintln!("left out: no AVX2 here");
    }
    has
}

#[test]
fn the_methods_are_in_the_run_file_and_a_resumed_training_keeps_them() {
    if !has_avx2() {
        return;
    }
    let folder = folder();
    let (whole, pieces) = (folder.path().join("whole.h5"), folder.path().join("pieces.h5"));
    // Pinned, since two trials need not agree.
    let pinned = "model.convolution=winograd";
    train(2, &whole, &["train.epochs=2", pinned]).run().succeeded();
    train(2, &pieces, &["train.epochs=1", pinned]).run().succeeded();
    train(2, &pieces, &["train.epochs=2", pinned]).args(["--resume", "auto"]).run().succeeded();
    assert!(parameters(&whole) == parameters(&pieces));
    assert_eq!(column(&whole, "convolutions/inputs"), [16.0, 32.0, 64.0, 128.0]);
    assert_eq!(column(&whole, "convolutions/height"), [32.0, 16.0, 8.0, 4.0]);
    assert!(texts(&whole, "convolutions/method").iter().all(|method| method == "winograd"));

    let tried = folder.path().join("tried.h5");
    train(2, &tried, &["train.epochs=1"]).run().succeeded();
    let times = |name: &str| column(&tried, &format!("convolutions/{name}_seconds"));
    let [direct, winograd] = ["direct", "winograd"].map(times);
    let methods = texts(&tried, "convolutions/method");
    for (method, (direct, winograd)) in methods.iter().zip(direct.iter().zip(&winograd)) {
        assert_eq!(method == "direct", *winograd > 1.15 * direct, "{direct} {winograd}");
    }
    train(2, &tried, &["train.epochs=2"]).args(["--resume", "auto"]).run().succeeded();
    // A new trial would have other times.
    assert_eq!((times("direct"), times("winograd")), (direct, winograd));
    assert_eq!(texts(&tried, "convolutions/method"), methods);
}

#[test]
fn direct_convolutions_are_not_tried_and_differ_by_rounding() {
    if !has_avx2() {
        return;
    }
    let folder = folder();
    let [direct, winograd] = ["direct", "winograd"].map(|method| {
        let out = folder.path().join(method);
        train(1, &out, &["train.max_steps=3", "train.lr=0.001", &format!("model.convolution={method}")])
            .run()
            .succeeded();
        out
    });
    assert!(!has(&direct, "convolutions/method") && has(&winograd, "convolutions/method"));
    let loss = |file: &Path| column(file, "epochs/train_loss")[0];
    let apart = (loss(&direct) - loss(&winograd)).abs();
    // 2^-24 times a few thousand, as initial values that differ by rounding make in three steps.
    assert!(apart > 0.0 && apart < 1e-3, "{apart}");
}

#[test]
fn winograd_is_refused_where_it_computes_nothing() {
    let folder = folder();
    let out = folder.path().join("refused.h5");
    for (setting, mend) in
        [("model.channels_last=false", "model.channels_last = true"), ("model.precision=bf16", "float32")]
    {
        let run = train(1, &out, &["model.convolution=winograd", setting]).run();
        crate::common::assert_refused(&run, &["model.convolution", mend]);
    }
    let run = train(1, &out, &["model.name=vit", "model.width=192", "model.convolution=direct"]).run();
    crate::common::assert_refused(&run, &["model.convolution"]);
}

#[test]
fn a_sweep_chooses_once_for_each_shape_and_batch() {
    if !has_avx2() {
        return;
    }
    let folder = folder();
    let out = folder.path().join("sweep.h5");
    let sweep = || {
        let settings = [
            "model.name=resnet18",
            "model.width=16",
            "data.train_samples=320",
            "data.test_samples=40",
            "launch.threads=1",
            "sweep.ranks=[1,2]",
            "sweep.batch_per_rank=[8,16]",
            "sweep.timing=overlap",
            "sweep.rounds=2",
            "sweep.seconds=0.2",
        ];
        let settings = settings.into_iter().flat_map(|setting| ["--set", setting]);
        Mpirun::ranks(2).args(["sweep", "--out", text(&out)]).args(settings)
    };
    let running = sweep().spawn().until("choice", || has(&out, "convolutions/images"));
    running.rank_pids(2).into_iter().for_each(|pid| kill("KILL", pid));
    assert!(!running.wait().status.success());
    let times = |name: &str| column(&out, &format!("convolutions/{name}"));
    let first = times("winograd_seconds");
    sweep().arg("--resume").run().succeeded();
    assert_eq!(times("winograd_seconds")[..first.len()], first);
    // Two rounds on one and on two ranks, but a row per shape and batch.
    let mut rows: Vec<(f64, f64)> = times("images").into_iter().zip(times("inputs")).collect();
    rows.sort_by(|one, other| one.partial_cmp(other).unwrap());
    let expected = [8.0, 16.0].iter().flat_map(|images| [16.0, 32.0, 64.0, 128.0].map(|inputs| (*images, inputs)));
    assert_eq!(rows, expected.collect::<Vec<_>>());
    let report = Mpirun::alone().args(["report", text(&out)]).run().succeeded();
    assert!(report.stdout.contains("3x3 convolutions by shape"), "{}", report.stdout);
}
