//! Every figure that a training, a sweep and a study report, recomputed from the raw rows by a program that shares no code.
//!
//! `HPML_PYTHON=/path/to/python cargo test --release --test all figures::`; without that variable the files are made and the shown
//! figures are checked, but nothing is recomputed.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::common::{Finished, Mpirun, column, folder, text, unwrapped};

/// Recomputes the figures of `file`, a run file of this kind.
fn recompute(kind: &str, file: &Path, more: &[&str]) {
    let Some(python) = std::env::var_os("HPML_PYTHON") else {
        eprintln!("not recomputed: set HPML_PYTHON to a Python with h5py and numpy");
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/figures.py");
    let mut command = Command::new(python);
    command.arg(script).args([env!("CARGO_BIN_EXE_hpml"), kind, text(file)]).args(more);
    let run = Mpirun::command(command).run().succeeded();
    let figures: usize = run.stdout.split(' ').next().unwrap().parse().unwrap();
    assert!(figures > 30, "{}", run.stdout);
}

fn sets<'a>(settings: &[&'a str]) -> Vec<&'a str> {
    settings.iter().flat_map(|setting| ["--set", setting]).collect()
}

fn report(file: &Path) -> String {
    unwrapped(&Mpirun::alone().args(["report", text(file)]).run().succeeded().stdout)
}

const SMALL: [&str; 4] =
    ["data.train_samples=256", "data.test_samples=40", "metrics.warmup_steps=2", "checkpoint.every_epochs=1"];

#[test]
fn a_training_that_changed_its_ranks_pools_only_what_belongs_together() {
    let folder = folder();
    let out = folder.path().join("run.h5");
    let train = |ranks: usize, settings: &[&str], more: &[&str]| {
        let run = Mpirun::ranks(ranks).args(["train", "--out", text(&out)]).args(sets(&SMALL));
        run.args(sets(settings)).args(more).run().succeeded()
    };
    let first = train(4, &["train.epochs=1"], &[]);
    assert!(unwrapped(&first.stdout).contains("6 steps x 4 ranks, 2 of warm-up left out"), "{}", first.stdout);
    let resumed = train(2, &["train.epochs=2"], &["--resume", "auto"]);
    for part in ["6 steps x 4 ranks, 2 of warm-up left out", "6 steps x 2 ranks, 2 of warm-up left out"] {
        assert!(unwrapped(&resumed.stdout).contains(part), "{part}\n{}", resumed.stdout);
        assert!(report(&out).contains(part), "{part}\n{}", report(&out));
    }
    // Another timing is not pooled either; one rank has no bandwidth.
    train(2, &["train.epochs=3", "metrics.timing=profile"], &["--resume", "auto"]);
    train(1, &["train.epochs=4"], &["--resume", "auto"]);
    assert_eq!(column(&out, "comm/world_size"), [[4.0; 5], [2.0; 5], [2.0; 5], [1.0; 5]].concat());
    assert!(column(&out, "comm/busbw")[16].is_nan());
    assert!(report(&out).contains("- in algbw, busbw") || report(&out).contains("- in busbw"), "{}", report(&out));
    let inspected = Mpirun::alone().args(["inspect", text(&out)]).run().succeeded().stdout;
    for part in ["24 rows along row, on 4 ranks, 8 of warm-up left out", "on 2 ranks, profile timing"] {
        assert!(inspected.contains(part), "{part}\n{inspected}");
    }
    recompute("run", &out, &[]);
}

#[test]
fn warm_up_that_is_counted_is_not_said_to_be_left_out_and_one_rank_has_no_collectives() {
    let folder = folder();
    let out = folder.path().join("run.h5");
    let run = Mpirun::ranks(2).args(["train", "--out", text(&out)]).args(sets(&SMALL));
    let run = run.args(sets(&["train.max_steps=2", "train.epochs=1"])).run().succeeded();
    for shown in [unwrapped(&run.stdout), report(&out)] {
        assert!(shown.contains("2 steps x 2 ranks, all of them warm-up, since there are no others"), "{shown}");
        assert!(!shown.contains("left out"), "{shown}");
    }
    recompute("run", &out, &[]);
    // data.augment is off.
    let page = folder.path().join("page.html");
    Mpirun::alone().args(["report", text(&out), "--html", text(&page)]).run().succeeded();
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("parameters of each step. Test") && !page.contains("augmented"));

    let alone = Mpirun::alone().args(["allreduce", "--max", "64", "--iters", "5"]).run().succeeded().stdout;
    assert!(alone.contains("- in busbw: one rank, which sends nothing"), "{alone}");
    let row = alone.lines().find(|line| line.contains("float32")).unwrap();
    assert_eq!(row.split_whitespace().filter(|cell| *cell == "-").count(), 1, "{row}");
}

fn sweep(out: &Path, settings: &[&str]) -> Finished {
    let short = ["sweep.seconds=0.4", "sweep.rounds=2", "sweep.batch_per_rank=[4, 8]", "metrics.warmup_steps=2"];
    let short = [&short[..], &["data.train_samples=2000", "launch.threads=1"]].concat();
    let run = Mpirun::ranks(2).args(["sweep", "--out", text(out)]).args(sets(&short)).args(sets(settings));
    run.timeout(Duration::from_secs(300)).run().succeeded()
}

#[test]
fn a_sweeps_figures_follow_from_its_steps() {
    let folder = folder();
    let out = folder.path().join("several.h5");
    // Net's gradients in several buckets, so that there is something to overlap.
    sweep(&out, &["parallel.bucket_mb=0.05"]);
    let overlap = column(&out, "scaling/overlap");
    assert_eq!(overlap.iter().filter(|value| value.is_finite()).count(), 2, "{overlap:?}"); // 2 ranks, overlap, 2 batches
    recompute("sweep", &out, &["2000"]);
}

#[test]
fn with_one_bucket_there_is_no_overlap_and_the_table_says_why() {
    let folder = folder();
    let out = folder.path().join("one.h5");
    let run = sweep(&out, &["sweep.batch_per_rank=4", "sweep.timing=overlap", "sweep.seconds=0.1"]);
    assert!(column(&out, "scaling/overlap").iter().all(|value| value.is_nan()));
    // The live line and the table name what they show as the file does, two quantities by two names.
    let live = run.stderr.lines().find(|line| line.contains("round 1/2")).unwrap();
    assert!(live.contains("step_p50") && !live.contains(" step "), "{live}");
    for shown in [unwrapped(&run.stdout), report(&out)] {
        assert!(
            shown.contains("- in overlap: nothing can overlap") || shown.contains(", overlap: nothing can"),
            "{shown}"
        );
        assert!(shown.contains("step_mean") && shown.contains("trimmed mean"), "{shown}");
    }
    recompute("sweep", &out, &["2000"]);
}

const STUDY: &str = r#"
[data]
train_samples = 640
test_samples = 100
[train]
epochs = 2
lr = 0.02
global_batch = 32
[study]
seeds = [3, 4]
[[study.variants]]
name = "plain"
[[study.variants]]
name = "nothing learnt"
set = ["train.lr=1e-9"]
[[study.variants]]
name = "slower"
set = ["train.lr=0.01"]
[[study.variants]]
name = "too fast"
set = ["train.lr=1e18"]
"#;

#[test]
fn a_studys_figures_follow_from_its_rows() {
    let folder = folder();
    let (config, out) = (folder.path().join("study.toml"), folder.path().join("study.h5"));
    std::fs::write(&config, STUDY).unwrap();
    let run = Mpirun::ranks(2).args(["study", text(&config), "--out", text(&out)]).run().succeeded();
    let said = unwrapped(&run.stdout);
    assert!(said.contains("won_back: (test_accuracy - that of the second"), "{said}");
    assert!(said.contains("a training that diverged counts as 10 %"), "{said}");
    let shown = report(&out);
    assert!(shown.contains("- in won_back: the first two variants"), "{shown}");
    recompute("study", &out, &[]);
}
