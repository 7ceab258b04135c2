//! Trainings with too many steps for a row each: what is kept, what is summarized, whether a slow rank is named;
//! and hosts with little shared memory.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::common::{
    Finished, Mpirun, assert_refused, checkpoints, column, folder, has, launcher, may_unshare, text, texts,
};

const SMALL: [&str; 4] =
    ["data.train_samples=640", "data.test_samples=20", "train.batch_per_rank=8", "launch.threads=1"];

fn train(run: Mpirun, out: &Path, args: &[&str], more: &[&str]) -> Finished {
    let sets = SMALL.iter().chain(more).flat_map(|set| ["--set", set]);
    run.args(["train", "--out", text(out)]).args(args).args(sets).run()
}

/// Counted steps and mean of `part` by rank, from `/rank_times`.
fn rank_means(file: &Path, part: &str) -> BTreeMap<i64, (f64, f64)> {
    let of = |name: &str| column(file, &format!("rank_times/{name}"));
    let (ranks, counts, means) = (of("rank"), of("count"), of("mean"));
    let rows = texts(file, "rank_times/part").into_iter().enumerate().filter(|(_, name)| name == part);
    rows.map(|(row, _)| (ranks[row] as i64, (counts[row], means[row]))).collect()
}

#[test]
fn a_training_with_too_many_steps_keeps_moments_histograms_and_some_rows() {
    let folder = folder();
    let out = folder.path().join("run.h5");
    // Every step is traced: its spans are the truth.
    let settings = ["train.epochs=3", "metrics.step_rows=40", "metrics.trace_steps=every 1"];
    let run = train(Mpirun::ranks(2), &out, &[], &settings).succeeded();
    assert!(run.stdout.contains("p50 and p99 from a histogram within 1 %"), "{}", run.stdout);
    let (steps, ranks) = (column(&out, "steps/global_step"), column(&out, "steps/rank"));
    assert!((2..=46).contains(&steps.len()), "{} rows", steps.len());
    assert_eq!(ranks.iter().filter(|rank| **rank == 0.0).count(), steps.len() / 2);

    let (rank, step) = (column(&out, "trace/rank"), column(&out, "trace/step"));
    let (start, end) = (column(&out, "trace/start"), column(&out, "trace/end"));
    let names = texts(&out, "trace/name");
    let warmup = 3.0;
    for (of_rank, (count, mean)) in rank_means(&out, "step") {
        let counted = |row: &usize| names[*row] == "step" && rank[*row] as i64 == of_rank && step[*row] >= warmup;
        let mut seconds: Vec<f64> = (0..rank.len()).filter(counted).map(|row| end[row] - start[row]).collect();
        assert_eq!((seconds.len(), count), (117, 117.0), "rank {of_rank}");
        let expected = seconds.iter().sum::<f64>() / 117.0;
        assert!((mean / expected - 1.0).abs() < 1e-3, "rank {of_rank}: {mean}, traced {expected}");
        seconds.sort_by(f64::total_cmp);
        let rows = texts(&out, "rank_times/part").into_iter().zip(column(&out, "rank_times/rank")).enumerate();
        let row = rows.filter(|(_, (part, rank))| part == "step" && *rank as i64 == of_rank).map(|(row, _)| row).next();
        let most = column(&out, "rank_times/max")[row.unwrap()];
        assert!((most / seconds[116] - 1.0).abs() < 1e-3, "rank {of_rank}: {most}, traced {}", seconds[116]);
    }
    // The slowest step of all is among the rows.
    let traced: Vec<usize> = (0..rank.len()).filter(|row| names[*row] == "step").collect();
    let slowest = traced.into_iter().max_by(|a, b| (end[*a] - start[*a]).total_cmp(&(end[*b] - start[*b]))).unwrap();
    assert!(steps.contains(&step[slowest]), "step {} is not in {steps:?}", step[slowest]);

    // What is kept suffices to predict another machine, not this one, whose all-reduce was not measured.
    let predict = |more: &[&str]| {
        let command = Mpirun::command(Command::new(env!("CARGO_BIN_EXE_hpml")));
        command.args(["predict", text(&out), "--ranks", "2..64"]).args(more).run()
    };
    let machine = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/machines/dgx-h100.toml");
    let predicted = predict(&["--machine", machine]).succeeded();
    assert!(predicted.stdout.contains("growing with a recorded tail"), "{}", predicted.stdout);
    assert_refused(&predict(&[]), &["or give --machine"]);

    let bins: f64 = column(&out, "time_histogram/count").iter().sum();
    assert_eq!(bins, 8.0 * 2.0 * 117.0);
    Mpirun::alone().args(["report", text(&out)]).run().succeeded();
}

#[test]
fn a_resumed_training_goes_on_with_the_summaries_of_before() {
    let folder = folder();
    let out = folder.path().join("run.h5");
    let at_first = ["train.epochs=1", "checkpoint.every_epochs=1"];
    train(Mpirun::ranks(2), &out, &[], &at_first).succeeded();
    assert!(!has(&out, "rank_times/mean"), "40 steps have a row each");
    let before = column(&out, "steps/step");
    // Summarized from here on, then on other ranks, and with rows for more steps than there are.
    let resumed = ["train.epochs=2", "checkpoint.every_epochs=1", "metrics.step_rows=100"];
    train(Mpirun::ranks(2), &out, &["--resume", "auto"], &resumed).succeeded();
    assert!(column(&out, "steps/step").starts_with(&before));
    let of_two = |file: &Path| -> Vec<f64> { rank_means(file, "forward").values().map(|(count, _)| *count).collect() };
    assert_eq!(of_two(&out), [37.0 + 37.0; 2]);
    let resumed = ["train.epochs=3", "checkpoint.every_epochs=1", "train.batch_per_rank=16"];
    train(Mpirun::ranks(1), &out, &["--resume", "auto"], &resumed).succeeded();
    let sizes = column(&out, "rank_times/world_size");
    assert_eq!(sizes.iter().filter(|size| **size == 1.0).count(), 8);
    assert_eq!(sizes.iter().filter(|size| **size == 2.0).count(), 16);
    assert_eq!(column(&out, "comm/steps").iter().fold(0.0_f64, |most, steps| most.max(*steps)), 80.0);
    let again = train(Mpirun::ranks(1), &out, &["--resume", "auto"], &resumed).succeeded();
    assert!(again.stdout.contains("nothing to do"), "{}", again.stdout);
    assert!(!checkpoints(&out).is_empty());
}

#[test]
fn a_rank_with_a_fifth_of_a_core_is_named_with_its_host() {
    let folder = folder();
    let script = "if [ \"${OMPI_COMM_WORLD_RANK:-$PMI_RANK}\" != 1 ]; then exec \"$@\"; fi; \
                  \"$@\" & pid=$!; \
                  (while kill -STOP $pid 2>/dev/null; do sleep 0.04; kill -CONT $pid; sleep 0.01; done) & wait $pid";
    for rows in ["metrics.step_rows=500000", "metrics.step_rows=30"] {
        let out = folder.path().join("run.h5");
        let slowed = Mpirun::program(3, ["bash", "-c", script, "bash", env!("CARGO_BIN_EXE_hpml")]);
        let settings = ["model.name=resnet18", "model.width=8", "train.epochs=1", "data.train_samples=480", rows];
        let run = train(slowed, &out, &["--force"], &settings).succeeded();
        let report = Mpirun::alone().args(["report", text(&out)]).run().succeeded();
        let inspected = Mpirun::alone().args(["inspect", text(&out)]).run().succeeded();
        for shown in [&run.stdout, &report.stdout, &inspected.stdout] {
            assert!(shown.contains("Slow ranks"), "{rows}: {shown}");
        }
        let csv = Mpirun::alone().args(["report", text(&out), "--csv", "--table", "slow-ranks"]).run().succeeded();
        let first = csv.stdout.lines().nth(1).unwrap_or_default().to_owned();
        assert!(first.starts_with("3,overlap,1,"), "{rows}: {}", csv.stdout);
        assert!(!first.split(',').nth(3).unwrap().is_empty(), "{first}");
    }
}

#[test]
fn too_little_shared_memory_is_found_before_the_first_step() {
    let name = "too_little_shared_memory_is_found_before_the_first_step";
    if !may_unshare("-m", name) {
        return;
    }
    let folder = folder();
    let out = folder.path().join("run.h5");
    // The 64 MB that containers give; the gradients of two ranks take 89 MB.
    let small = || {
        let mounted = "mount -t tmpfs -o size=64m tmpfs /dev/shm && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", mounted, "sh"]);
        command.arg(launcher().get_program()).args(["-n", "2", env!("CARGO_BIN_EXE_hpml")]);
        Mpirun::command(command).timeout(Duration::from_secs(240))
    };
    let train = |settings: &[&str]| {
        let more = [&["model.name=resnet18", "train.max_steps=1", "train.batch_per_rank=1"], settings].concat();
        train(small(), &out, &["--force"], &more)
    };
    let run = train(&[]).succeeded();
    assert_eq!(run.stderr.matches("gradients are reduced by the ring").count(), 1, "{}", run.stderr);
    let inspected = Mpirun::alone().args(["inspect", text(&out)]).run().succeeded();
    assert!(inspected.stdout.contains("--shm-size"), "{}", inspected.stdout);
    assert_refused(&train(&["parallel.all_reduce=shared"]), &["/dev/shm", "parallel.all_reduce", "are free"]);
    let bench =
        |algorithm: &str| small().args(["allreduce", "--max", "64M", "--iters", "1", "--algorithm", algorithm]).run();
    assert_refused(&bench("auto"), &["/dev/shm", "are free", "--max"]);
    bench("ring").succeeded();
}
