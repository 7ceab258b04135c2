//! `hpml sweep` and the commands that use its file, under the real launcher.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::common::{Finished, Mpirun, assert_parts_add_up, assert_refused, column, folder, kill, text, texts};

fn sweep(ranks: usize, out: &Path, more: &[&str]) -> Mpirun {
    let short = ["sweep.seconds=0.4", "sweep.rounds=2", "sweep.batch_per_rank=[8, 16]", "data.train_samples=2000"];
    let short = short.iter().chain(&["launch.threads=1", "metrics.warmup_steps=2"]).flat_map(|set| ["--set", set]);
    Mpirun::ranks(ranks).args(["sweep", "--out", text(out)]).args(short).args(more).timeout(Duration::from_secs(300))
}

/// Row numbers of `/scaling` that match all of these values.
fn rows(file: &Path, timing: &str, ranks: usize) -> Vec<usize> {
    let (timings, of) = (texts(file, "scaling/timing"), column(file, "scaling/ranks"));
    (0..of.len()).filter(|&row| timings[row] == timing && of[row] == ranks as f64).collect()
}

fn hpml(args: &[&str]) -> Finished {
    Mpirun::command(Command::new(env!("CARGO_BIN_EXE_hpml"))).args(args).run()
}

#[test]
fn every_case_is_measured_in_both_timings_and_its_parts_add_up() {
    let folder = folder();
    let out = folder.path().join("scaling.h5");
    sweep(2, &out, &[]).run().succeeded();
    assert_eq!(texts(&out, "scaling/status"), ["ok"; 8]); // 2 batches x 2 rank counts x 2 timings
    let get = |name: &str| column(&out, &format!("scaling/{name}"));
    let (step, images, batch, ranks) = (get("step"), get("images_per_second"), get("batch_per_rank"), get("ranks"));
    for timing in ["profile", "overlap"] {
        let (one, two) = (rows(&out, timing, 1), rows(&out, timing, 2));
        assert_eq!((one.len(), two.len()), (2, 2));
        for (&one, &two) in one.iter().zip(&two) {
            assert!((get("speedup")[two] - images[two] / images[one]).abs() < 1e-9);
            assert!((get("efficiency")[two] - get("speedup")[two] / 2.0).abs() < 1e-9);
            let busbw = get("gradient_bytes")[two] / get("comm")[two] / 1e9; // 2 (n-1) / n is 1
            assert!((get("busbw")[two] / busbw - 1.0).abs() < 1e-6 && get("busbw")[one].is_nan());
            assert_eq!(get("volume")[two], 247_080.0);
        }
    }
    for row in 0..8 {
        assert!((images[row] - ranks[row] * batch[row] / step[row]).abs() < 1e-6 * images[row]);
        assert!(get("step_low")[row] <= get("step_p50")[row] && get("step_p50")[row] <= get("step_high")[row]);
        assert!(get("steps")[row] >= 6.0 && get("peak_memory")[row] > 1e7);
    }
    // The raw steps are stored, and agree.
    let of_case = column(&out, "steps/case");
    let counted = |case: usize| (0..of_case.len()).filter(|&row| of_case[row] == case as f64).collect::<Vec<_>>();
    let expected: Vec<f64> = get("steps").iter().zip(&ranks).map(|(steps, ranks)| steps * ranks).collect();
    assert_eq!((0..8).map(|case| counted(case).len() as f64).collect::<Vec<_>>(), expected);
    for case in rows(&out, "profile", 1).into_iter().chain(rows(&out, "profile", 2)) {
        assert_parts_add_up(&out, &counted(case));
    }

    // A finished sweep has nothing left to measure; the command without --resume must not touch its file.
    let again = sweep(2, &out, &["--resume"]).run().succeeded();
    assert!(!again.stderr.contains("round "), "{}", again.stderr);
    let refused = sweep(2, &out, &[]).run();
    assert!(!refused.status.success() && refused.messages().len() == 1, "{}", refused.stderr);

    let predicted = hpml(&["predict", text(&out), "--ranks", "2..64", "--save"]).succeeded();
    assert!(predicted.stdout.contains("Leave-one-out"), "{}", predicted.stdout);
    assert_eq!(column(&out, "prediction/ranks"), [2.0, 4.0, 8.0, 16.0, 32.0, 64.0]);
    let efficiency = column(&out, "prediction/efficiency");
    assert!(efficiency.windows(2).all(|pair| pair[0] >= pair[1]), "{efficiency:?}");
    assert_eq!(texts(&out, "scaling/status").len(), 8, "what was there stays");

    // Another machine: its file, and what is none.
    assert_eq!(column(&out, "buckets/ready").last(), Some(&1.0));
    let machine = folder.path().join("machine.toml");
    let level = "[[levels]]\nname = 'fabric'\nlatency_us = 5.0\nbandwidth_gbs = 12.5\n";
    std::fs::write(&machine, level).unwrap();
    let on = ["predict", text(&out), "--ranks", "2..64", "--machine", text(&machine)];
    let predicted = hpml(&on).succeeded();
    assert!(predicted.stdout.contains("machine.toml") && predicted.stdout.contains("tree"), "{}", predicted.stdout);
    std::fs::write(&machine, level.replace("12.5", "0")).unwrap();
    assert_refused(&hpml(&on), &["machine.toml: levels[0].bandwidth_gbs = 0: must be"]);
}

#[test]
fn a_sweep_that_was_killed_goes_on_where_it_stopped() {
    let folder = folder();
    let out = folder.path().join("scaling.h5");
    let running = sweep(2, &out, &["--set", "sweep.timing=overlap", "--set", "sweep.seconds=2"]).spawn();
    let visited = || column(&out, "scaling/steps").iter().filter(|&&steps| steps > 0.0).count();
    let running = running.until("second visit", || crate::common::has(&out, "scaling/steps") && visited() >= 2);
    for pid in running.rank_pids(2) {
        kill("KILL", pid);
    }
    assert!(!running.wait().status.success());
    let before = column(&out, "steps/step");
    let first_case: Vec<f64> = before.iter().copied().take(6).collect();

    let resumed = ["--resume", "--set", "sweep.timing=overlap", "--set", "sweep.seconds=2"];
    let other = sweep(2, &out, &["--resume", "--set", "sweep.timing=overlap", "--set", "sweep.seconds=3"]).run();
    assert!(other.stderr.contains("sweep.seconds = 2.0, now 3.0"), "{}", other.stderr);
    let fewer = sweep(1, &out, &["--set", "sweep.ranks=1", "--resume"]).run();
    assert!(!fewer.status.success());
    sweep(2, &out, &resumed).run().succeeded();
    assert_eq!(texts(&out, "scaling/status"), ["ok"; 4]);
    let after = column(&out, "steps/step");
    assert!(after.len() > before.len());
    assert_eq!(after[..6], first_case[..], "measured steps are kept");
}

#[test]
fn a_case_that_does_not_fit_into_memory_is_recorded_and_the_sweep_goes_on() {
    let folder = folder();
    let out = folder.path().join("scaling.h5");
    // 800 MB of private memory for each rank: enough for a small batch, not for the activations of ResNet-18 at 256.
    let mut command = Command::new("bash");
    let script =
        format!("ulimit -d 800000; exec {} -n 2 \"$@\"", crate::common::launcher().get_program().to_string_lossy());
    command.args(["-c", &script, "bash", env!("CARGO_BIN_EXE_hpml")]);
    let sets = ["model.name=resnet18", "model.width=32", "sweep.batch_per_rank=[8, 256]", "sweep.ranks=2"];
    let more = ["sweep.timing=overlap", "sweep.seconds=0.1", "sweep.rounds=1", "metrics.warmup_steps=1"];
    let more = more.iter().chain(&["data.train_samples=1000", "launch.threads=1"]);
    let run = Mpirun::command(command).args(["sweep", "--out", text(&out)]);
    run.args(sets.iter().chain(more).flat_map(|set| ["--set", set])).run().succeeded();
    assert_eq!(texts(&out, "scaling/status"), ["ok", "out_of_memory"]);
    assert!(column(&out, "scaling/step")[1].is_nan());
}

#[test]
fn no_case_is_left_out_for_lack_of_samples() {
    let folder = folder();
    for samples in [1, 100] {
        let out = folder.path().join(format!("scaling-{samples}.h5"));
        let samples = format!("data.train_samples={samples}");
        let sets = ["sweep.batch_per_rank=[64, 150]", &samples, "sweep.timing=overlap", "sweep.seconds=0.1"];
        let run = Mpirun::ranks(2).args(["sweep", "--out", text(&out)]);
        let sets = sets.into_iter().chain(["sweep.rounds=1", "launch.threads=1"]).flat_map(|set| ["--set", set]);
        let run = run.args(sets).run().succeeded();
        assert_eq!(texts(&out, "scaling/status"), ["ok"; 4]);
        let get = |name: &str| column(&out, &format!("scaling/{name}"));
        assert_eq!(get("batch_per_rank"), [64.0, 64.0, 150.0, 150.0]);
        assert_eq!(get("ranks"), [1.0, 2.0, 1.0, 2.0]);
        for row in 0..4 {
            let images = get("ranks")[row] * get("batch_per_rank")[row] / get("step")[row];
            assert!((get("images_per_second")[row] / images - 1.0).abs() < 1e-6);
        }
        assert!(run.stdout.contains("(up to 300) draw some of them again"), "{}", run.stdout);
    }
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let folder = folder();
    let out = folder.path().join("scaling.h5");
    for (set, named) in [
        ("sweep.ranks=[1, 4]", "the job has 2 ranks"),
        ("sweep.ranks=[2, 2]", "sweep.ranks = 2: is listed twice"),
        ("sweep.timing=['overlap', 'overlap']", "sweep.timing = overlap: is listed twice"),
        ("train.batch_per_rank=4", "train.batch_per_rank: sweep.batch_per_rank are the batches"),
        ("metrics.timing=profile", "metrics.timing: sweep.timing decides it"),
        ("sweep.timing=fast", "fast"),
        ("sweep.rounds=0", "sweep.rounds"),
    ] {
        let run = sweep(2, &out, &["--set", set]).run();
        assert!(!out.exists());
        assert_refused(&run, &[named]);
    }
    let run = hpml(&["predict", text(&out)]);
    assert!(!run.status.success() && run.messages().len() == 1, "{}", run.stderr);
}
