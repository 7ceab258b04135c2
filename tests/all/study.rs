//! `hpml study`: variants of a training over seeds, one of which diverges.

use std::path::Path;
use std::process::Command;

use crate::common::{Finished, Mpirun, assert_refused, column, folder, texts};

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
name = "too fast"
set = ["train.lr=1e18"]

[[study.variants]]
name = "too fast at the end"
set = ["schedule.anneal=step", "schedule.milestones=[1.95]", "schedule.gamma=1e42"]

[[study.variants]]
name = "LARS, 128 in two parts"
set = ["optim.name=lars", "train.global_batch=128", "train.accumulate=2", "schedule.warmup_epochs=1"]
"#;

fn study(folder: &Path, out: &Path, more: &[&str]) -> Finished {
    let config = folder.join("study.toml");
    std::fs::write(&config, STUDY).unwrap();
    let run = Mpirun::ranks(2).args([Path::new("study"), &config, Path::new("--out"), out]);
    run.args(more).run()
}

#[test]
fn every_variant_is_trained_with_every_seed_and_one_that_diverges_stops_nothing() {
    let folder = folder();
    let out = folder.path().join("study.h5");
    let run = study(folder.path(), &out, &[]).succeeded();
    assert!(run.stdout.contains("diverged") && run.stdout.contains("won_back"), "{}", run.stdout);

    let (variants, seeds) = (texts(&out, "study/variant"), column(&out, "study/seed"));
    let of =
        |name: &str, seed: f64| (0..seeds.len()).filter(|&row| variants[row] == name && seeds[row] == seed).collect();
    let loss = column(&out, "study/train_loss");
    let messages = column(&out, "study/gradient_messages");
    for seed in [3.0, 4.0] {
        let plain: Vec<usize> = of("plain", seed);
        assert_eq!(plain.len(), 2);
        assert!(loss[plain[1]] < loss[plain[0]], "{loss:?}");
        assert!(plain.iter().all(|&row| messages[row] == 20.0), "{messages:?}"); // 640 / 32
        let fast: Vec<usize> = of("too fast", seed);
        assert!(fast.last().is_some_and(|&row| loss[row].is_nan()), "{loss:?}");
        let last: Vec<usize> = of("too fast at the end", seed);
        assert!(loss[last[0]].is_finite() && loss[last[1]].is_nan(), "{loss:?}");
        let lars: Vec<usize> = of("LARS, 128 in two parts", seed);
        assert!(lars.len() == 2 && lars.iter().all(|&row| messages[row] == 5.0), "{messages:?}"); // 640 / 128
    }

    // A variant without changes is the training that `hpml train` does.
    let alone = folder.path().join("train.h5");
    let config = folder.path().join("study.toml");
    let train = Mpirun::ranks(2).args([Path::new("train"), &config, Path::new("--out"), &alone]);
    train.args(["--set", "run.seed=4"]).run().succeeded();
    let rows: Vec<usize> = of("plain", 4.0);
    assert_eq!(column(&alone, "epochs/train_loss"), [loss[rows[0]], loss[rows[1]]]);

    let mut report = Command::new(env!("CARGO_BIN_EXE_hpml"));
    report.arg("report").arg(&out);
    let report = Mpirun::command(report).run().succeeded();
    assert!(report.stdout.contains("too fast") && report.stdout.contains("against_first"), "{}", report.stdout);
}

#[test]
fn a_study_that_cannot_be_run_is_refused() {
    let folder = folder();
    let out = folder.path().join("study.h5");
    for (set, named) in [
        ("study.variants=[]", "study.variants"),
        ("study.seeds=[]", "study.seeds"),
        ("train.global_batch=31", "train.global_batch"),
        ("optim.name=adagrad", "adagrad"),
        ("study.seeds=[3, 4, 3]", "3 is listed twice"),
        ("run.seed=5", "study.seeds are the seeds"),
        ("train.batch_per_rank=4", "train.global_batch decides it"),
        ("quantize.enabled=true", "quantize.enabled"),
        ("data.train_samples=100", "train.global_batch = 128: there are 100 training samples"),
        ("study.variants=[{name = 'a'}, {name = 'b', set = ['data.drop_last=true', 'train.lr=0']}]", "train.lr = 0"),
    ] {
        let run = study(folder.path(), &out, &["--set", set]);
        assert!(!out.exists());
        assert_refused(&run, &[named]);
    }
}

#[test]
fn variants_that_would_lose_one_another_are_refused_in_one_message() {
    let folder = folder();
    let out = folder.path().join("study.h5");
    let variants = "study.variants=[{name = 'a'}, {name = 'a ', set = ['run.seed=9']}, {set = ['checkpoint.keep=7']}, \
                    {name = 'four', set = ['data . train_samples=10', 'train.lr=1', 'train.lr = 2']}]";
    let run = study(folder.path(), &out, &["--set", variants]);
    let named = [
        "variants 1 and 2 are both named \"a\"",
        "variant 3 has no name",
        "run.seed=9",
        "checkpoint.keep=7",
        "variant \"four\"",
        "the same data",
        "train.lr is set twice",
    ];
    assert_refused(&run, &named);
    assert!(!run.stdout.contains("seed") && !out.exists(), "{}", run.stdout);
}

#[test]
fn a_variant_that_changes_nothing_says_so() {
    let folder = folder();
    let out = folder.path().join("study.h5");
    let variants = "study.variants=[{name = 'plain'}, {name = 'other beta2', set = ['optim.beta2=0.9']}, \
                    {name = 'fast', set = ['train.lr=0.1']}, {name = 'as fast', set = ['train.lr=1e-1']}, \
                    {name = 'in parts', set = ['train.accumulate=2', 'schedule.scaling=linear', 'schedule.base_batch=16']}]";
    let small = ["data.train_samples=64", "train.epochs=1", "study.seeds=[3]"].into_iter().chain([variants]);
    let args: Vec<&str> = small.flat_map(|set| ["--set", set]).collect();
    let run = study(folder.path(), &out, &args).succeeded();
    let notes = ["-", "changes nothing: the same training as \"plain\"", "-", "the same training as \"fast\"", "-"];
    assert_eq!(texts(&out, "variants/note"), notes);
    assert_eq!(texts(&out, "variants/variant"), ["plain", "other beta2", "fast", "as fast", "in parts"]);
    assert_eq!(column(&out, "variants/global_batch"), [32.0; 5]);
    assert_eq!(column(&out, "variants/batch_per_rank"), [16.0, 16.0, 16.0, 16.0, 8.0]);
    let loss = column(&out, "study/train_loss");
    assert!(loss[0] == loss[1] && loss[2] == loss[3] && loss[0] != loss[2], "{loss:?}");
    assert_eq!(column(&out, "study/lr")[4], 2.0 * column(&out, "study/lr")[0]);
    assert!(run.stdout.contains("WARNING: changes nothing"), "{}", run.stdout);
    let report = Mpirun::alone().args([Path::new("report"), &out]).run().succeeded();
    assert!(report.stdout.contains("changes nothing"), "{}", report.stdout);
}
