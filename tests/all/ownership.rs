//! No result is ever lost unless the user forces it, and no file claims what was not done: commands that are repeated, resumed,
//! renamed, killed and started twice. `HPML_OWNERSHIP_CASES` and `HPML_OWNERSHIP_TRIES` set the number of random tries.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use crate::common::{Finished, Mpirun, assert_refused, checkpoint_folder, checkpoints, folder, kill, text, texts};

const SOON: Duration = Duration::from_secs(90);
/// Settings with which an epoch takes some ten milliseconds.
const SMALL: [&str; 6] = [
    "data.train_samples=96",
    "data.test_samples=32",
    "checkpoint.every_epochs=1",
    "launch.threads=1",
    "metrics.warmup_steps=0",
    "launch.device=cpu",
];

fn set<'a>(settings: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    settings.into_iter().flat_map(|setting| ["--set".to_owned(), setting.to_owned()]).collect()
}

/// Prepares one rank, without a launcher.
fn train(out: &Path, settings: &[&str]) -> Mpirun {
    Mpirun::alone()
        .args(["train", "--out", text(out)])
        .args(set(SMALL))
        .args(set(settings.iter().copied()))
        .timeout(SOON)
}

fn asked(name: &str, or: usize) -> usize {
    std::env::var(name).ok().and_then(|count| count.parse().ok()).unwrap_or(or)
}

/// Every file below a folder with its bytes, except marks of owners.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        match entry.path() {
            path if path.is_dir() => files.extend(contents(&path)),
            path if entry.file_name().to_string_lossy().starts_with(".hpml-") => drop(path),
            path => drop(files.insert(path.clone(), std::fs::read(path).unwrap())),
        }
    }
    files
}

fn attribute(file: &Path, name: &str) -> String {
    let file = hdf5::File::open(file).unwrap();
    file.attr(name).unwrap().read_scalar::<hdf5::types::VarLenUnicode>().unwrap().as_str().to_owned()
}

fn checksums(file: &Path) -> Vec<String> {
    texts(file, "epochs/parameter_checksum")
}

#[test]
fn fewer_epochs_than_are_done_are_refused_and_nothing_goes() {
    let folder = folder();
    let out = folder.path().join("run.h5");
    train(&out, &["train.epochs=3"]).run().succeeded();
    let before = contents(folder.path());
    let auto = |settings: &[&str]| train(&out, settings).args(["--resume", "auto"]).run();
    assert_refused(&auto(&["train.epochs=2"]), &["train.epochs = 2", "3 already", "--out"]);
    assert_refused(&auto(&["train.epochs=9", "train.max_steps=5"]), &["train.max_steps is 5"]);
    assert!(auto(&["train.epochs=3"]).succeeded().stdout.contains("finished: nothing to do"));
    assert_eq!(contents(folder.path()), before);
    auto(&["train.epochs=4"]).succeeded();
    assert_eq!(checksums(&out).len(), 4);
}

#[test]
fn a_checkpoint_goes_on_in_its_own_runs_place_only() {
    let folder = folder();
    let [a, b, words] = ["a.h5", "b.h5", "words.h5"].map(|name| folder.path().join(name));
    train(&a, &["train.epochs=2"]).run().succeeded();
    train(&b, &["train.epochs=2", "run.seed=1"]).run().succeeded();
    std::fs::write(&words, "precious").unwrap();
    let newest = checkpoints(&a).pop().unwrap();
    let before = contents(folder.path());
    let resume = |out: &Path| train(out, &["train.epochs=3"]).args(["--resume", text(&newest)]);
    for out in [&b, &words] {
        assert_refused(&resume(out).run(), &[text(out), "exists already", "--force"]);
    }
    // Checkpoints without their run file belong to a run, too.
    std::fs::remove_file(&b).unwrap();
    assert_refused(&resume(&b).run(), &["b.h5.checkpoints", "exists already"]);
    let older = checkpoints(&a).remove(0);
    let back = train(&a, &["train.epochs=3"]).args(["--resume", text(&older)]).run();
    assert_refused(&back, &["step 12", "step 24", "--resume auto"]);
    for (file, bytes) in before.iter().filter(|(file, _)| **file != b) {
        assert!(std::fs::read(file).unwrap() == *bytes, "{}", file.display());
    }

    let fork = folder.path().join("fork.h5");
    resume(&fork).run().succeeded();
    assert_ne!(attribute(&fork, "run_id"), attribute(&a, "run_id"));
    resume(&a).run().succeeded();
    assert_eq!(checksums(&fork), checksums(&a));
    resume(&words).arg("--force").run().succeeded();
    assert_eq!(checksums(&words), checksums(&a));
}

#[test]
fn another_configuration_is_refused_by_name_whatever_is_left_of_the_run() {
    let folder = folder();
    let out = folder.path().join("run.h5");
    let global = ["train.epochs=2", "train.global_batch=16"];
    train(&out, &global).run().succeeded();
    let auto = |settings: &[&str]| train(&out, &[&global[..], settings].concat()).args(["--resume", "auto"]).run();
    for _ in 0..2 {
        let before = contents(folder.path());
        for (setting, named) in [
            ("train.lr=0.02", "train.lr"),
            ("run.seed=7", "run.seed"),
            ("model.name=resnet18", "model.name"),
            ("train.global_batch=8", "train.global_batch"),
            ("train.accumulate=3", "train.accumulate"),
            ("data.train_samples=64", "data.train_samples"),
            ("metrics.timing=profile", "metrics.timing"),
            ("quantize.enabled=true", "quantize.enabled"),
        ] {
            // A number of ranks that does not divide the batch is refused as such.
            let batch = if named == "train.accumulate" { "train.global_batch=24" } else { "run.out=ignored" };
            assert_refused(&auto(&[batch, setting]), &[if batch.starts_with("run") { named } else { "train." }]);
        }
        let other = auto(&["data.dir=nowhere"]);
        assert!(!other.status.success());
        assert_eq!(contents(folder.path()), before);
        // Once more, now with only the run file.
        let _ = std::fs::remove_dir_all(checkpoint_folder(&out));
    }
    assert_refused(&auto(&["train.epochs=5"]), &["2 epochs", "no checkpoint", "--force"]);
    // Other samples in the same place.
    let [data, run] = ["data", "cifar.h5"].map(|name| folder.path().join(name));
    std::fs::create_dir(&data).unwrap();
    crate::common::write_fake_cifar10(&data);
    let of = |epochs: &str| train(&run, &[epochs]).args(["--data", text(&data), "--resume", "auto"]);
    of("train.epochs=1").run().succeeded();
    let mut records = std::fs::read(data.join("data_batch_1.bin")).unwrap();
    records[0] = 9;
    std::fs::write(data.join("data_batch_1.bin"), records).unwrap();
    for epochs in ["train.epochs=1", "train.epochs=2"] {
        assert_refused(&of(epochs).run(), &["training data", "other samples"]);
    }
}

/// A training killed before a checkpoint begins again under its own id, and its earlier results stay until it has caught up.
#[test]
fn a_killed_run_without_checkpoints_begins_again_and_loses_nothing() {
    let folder = folder();
    let out = folder.path().join("run.h5");
    let settings = ["train.epochs=400", "checkpoint.every_epochs=0"];
    let run = train(&out, &settings).spawn().until("three epochs", || out.exists() && checksums(&out).len() >= 3);
    kill("KILL", run.child.id());
    assert!(!run.wait().status.success());
    let (epochs, id) = (checksums(&out), attribute(&out, "run_id"));
    let before = std::fs::read(&out).unwrap();
    // Stopped in between, it has a checkpoint, and the run file is still that of the first job.
    let again = train(&out, &settings).args(["--set", "checkpoint.every_epochs=1", "--resume", "auto"]).spawn();
    let run = again.until("checkpoint", || !checkpoints(&out).is_empty());
    kill("USR1", run.child.id());
    let stopped = run.wait();
    assert_eq!(stopped.status.code(), Some(75), "{}", stopped.stderr);
    let now = checksums(&out);
    assert!(now.len() >= epochs.len() && now[..epochs.len()] == epochs, "an epoch is lost");
    // It is replaced by a job that has done as many epochs, or more.
    let done = checkpoints(&out).iter().map(|checkpoint| checksums(checkpoint).len()).max();
    assert!(done >= Some(epochs.len()) || std::fs::read(&out).unwrap() == before);
    assert_eq!(attribute(&out, "run_id"), id);
    assert_eq!(attribute(&checkpoints(&out)[0], "run_id"), id);
}

#[test]
fn every_run_has_checkpoints_of_its_own() {
    let folder = folder();
    let outs = ["batch.4", "batch.16", "two.h5", "two.hdf5"].map(|name| folder.path().join(name));
    for (seed, out) in outs.iter().enumerate() {
        train(out, &["train.epochs=1", &format!("run.seed={seed}")]).run().succeeded();
    }
    for out in &outs {
        assert_eq!(attribute(&checkpoints(out)[0], "run_id"), attribute(out, "run_id"));
    }
}

#[test]
fn jobs_that_start_in_the_same_second_have_names_of_their_own() {
    let folder = folder();
    let start = |run: Mpirun| {
        let settings = set(SMALL.into_iter().chain(["train.epochs=1"]));
        run.args(["train"]).args(settings).folder(folder.path()).timeout(SOON).spawn()
    };
    let in_slurm = || Mpirun::alone().env("SLURM_JOB_ID", "4711");
    let jobs = [in_slurm(), in_slurm(), in_slurm(), Mpirun::ranks(2), Mpirun::ranks(2)].map(start);
    jobs.into_iter().for_each(|job| drop(job.wait().succeeded()));
    let files: Vec<PathBuf> = contents(&folder.path().join("runs")).into_keys().collect();
    let runs = || files.iter().filter(|file| !text(file).contains(".checkpoints/"));
    assert_eq!(runs().count(), 5, "{files:?}");
    assert_eq!(runs().filter(|file| text(file).contains("-slurm4711-")).count(), 3, "{files:?}");
}

#[test]
fn what_is_in_the_way_at_the_end_is_told_before_the_first_step() {
    let folder = folder();
    let [out, int8, classes, onnx] =
        ["run.h5", "run-int8.h5", "classes.txt", "net.onnx"].map(|name| folder.path().join(name));
    for file in [&int8, &classes, &onnx] {
        std::fs::write(file, "precious").unwrap();
    }
    let quantize = ["train.epochs=1", "quantize.enabled=true", "quantize.calibration_images=32"];
    let refused = train(&out, &quantize).run();
    assert_refused(&refused, &["run-int8.h5", "exists already", "--force"]);
    assert!(!out.exists() && !refused.stdout.contains("epoch"), "{}", refused.stdout);
    train(&out, &quantize).arg("--force").run().succeeded();
    let hpml = |args: &[&str]| Mpirun::alone().args(args).timeout(SOON).run();
    // The int8 network of the same run is replaced, that of another is not.
    let small = ["--set", "quantize.calibration_images=32"];
    hpml(&[&["quantize", text(&out)][..], &small].concat()).succeeded();
    let other = folder.path().join("other.h5");
    train(&other, &["train.epochs=1", "run.seed=5"]).run().succeeded();
    let over = hpml(&[&["quantize", text(&other), "--out", text(&int8)][..], &small].concat());
    assert_refused(&over, &["run-int8.h5", "exists already"]);
    for (args, named) in [
        (["eval", text(&int8), "--predictions", text(&classes)], "classes.txt"),
        (["export", text(&int8), "--onnx", text(&onnx)], "net.onnx"),
        (["report", text(&out), "--html", text(&classes)], "classes.txt"),
    ] {
        assert_refused(&hpml(&args), &[named, "exists already", "--force"]);
    }
    for file in [&classes, &onnx] {
        assert_eq!(std::fs::read(file).unwrap(), b"precious");
    }
    // No command writes over its input, with --force or without.
    for args in [
        &["quantize", text(&out), "--out", text(&out), "--force"][..],
        &["export", text(&int8), "--onnx", text(&int8), "--force"],
        &["report", text(&out), "--html", text(&out), "--force"],
        &["eval", text(&int8), "--predictions", text(&int8), "--force"],
    ] {
        assert_refused(&hpml(args), &["it is the file that is read"]);
    }
    hpml(&["eval", text(&int8), "--predictions", text(&classes), "--force"]).succeeded();
    assert_eq!(std::fs::read_to_string(&classes).unwrap().lines().count(), 32);
}

#[test]
fn a_file_of_another_command_is_never_gone_on_with() {
    let folder = folder();
    let [sweep, run] = ["sweep.h5", "run.h5"].map(|name| folder.path().join(name));
    let settings = ["sweep.batch_per_rank=4", "sweep.seconds=0.1", "sweep.rounds=1", "sweep.timing=overlap"];
    let resume = |out: &Path| {
        let run = Mpirun::alone().args(["sweep", "--resume", "--out", text(out)]).timeout(SOON);
        run.args(set(["data.train_samples=96", "launch.threads=1"])).args(set(settings)).run()
    };
    resume(&sweep).succeeded();
    assert_eq!(attribute(&sweep, "status"), "finished");
    train(&run, &["train.epochs=1"]).run().succeeded();
    let before = contents(folder.path());
    assert_refused(&resume(&run), &["run.h5", "training", "--out"]);
    assert_refused(&train(&sweep, &[]).args(["--resume", "auto"]).run(), &["sweep.h5", "sweep", "--out"]);
    assert_eq!(contents(folder.path()), before);
}

/// Starts two endless jobs at once on one output: one works until it is stopped by `signal`, the other is refused and names the
/// owner.
fn two_jobs(out: &Path, signal: &str, mut job: impl FnMut(usize) -> Mpirun) {
    let mut jobs = Vec::from([0, 1].map(|number| job(number).spawn()));
    let started = Instant::now();
    let refused = loop {
        if let Some(ended) = jobs.iter_mut().position(|job| job.child.try_wait().unwrap().is_some()) {
            break jobs.remove(ended).wait();
        }
        assert!(started.elapsed() < SOON, "both work on {}", out.display());
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_refused(&refused, &[text(out), "is being written by process", "--force"]);
    let works = jobs.remove(0).until("epoch", || out.exists());
    kill(signal, works.child.id());
    let works = works.wait();
    assert!(signal == "KILL" || works.status.code() == Some(75), "{}", works.stderr);
    assert_eq!(works.messages().len(), usize::from(signal != "KILL"), "{}", works.stderr);
    assert!(!checksums(out).is_empty());
}

#[test]
fn of_two_living_jobs_on_one_output_one_is_refused_by_name() {
    for number in 0..asked("HPML_OWNERSHIP_TRIES", 3) {
        let folder = folder();
        let out = folder.path().join("run.h5");
        // --resume auto must not take it over either.
        let job = |job: usize| {
            let run =
                Mpirun::ranks(1 + number % 2).args(["train", "--out", text(&out), "--set", "train.epochs=100000"]);
            run.args(set(SMALL)).args(&["--resume", "auto"][..if job == 0 { 0 } else { 2 }]).timeout(SOON)
        };
        two_jobs(&out, "USR1", job);
    }
}

/// Hosts do not see each other's processes, but have a file system in common.
#[test]
fn a_job_on_another_host_is_recognised_while_it_lives() {
    let test = "a_job_on_another_host_is_recognised_while_it_lives";
    let on_host = |host: usize| {
        let mut command = Command::new("unshare");
        let name = format!("hostname host{host}; exec \"$@\"");
        command.args(["--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", &name, "sh"]);
        command
    };
    if !on_host(0).arg("true").output().is_ok_and(|output| output.status.success()) {
        return eprintln!("{test}: left out: it needs root for process namespaces");
    }
    let job = |host: usize, out: &Path, epochs: &str| {
        let mut command = on_host(host);
        command.arg(env!("CARGO_BIN_EXE_hpml"));
        let run = Mpirun::command(command).args(["train", "--out", text(out), "--set", epochs]);
        run.args(set(SMALL)).timeout(SOON)
    };
    for _ in 0..asked("HPML_OWNERSHIP_TRIES", 1) {
        let folder = folder();
        let out = folder.path().join("run.h5");
        two_jobs(&out, "KILL", |host| job(host, &out, "train.epochs=100000"));
    }
    // A killed job blocks for half a minute at most, and no mark has to be removed by hand.
    let folder = folder();
    let out = folder.path().join("run.h5");
    let run = job(0, &out, "train.epochs=100000").spawn().until("epoch", || out.exists());
    kill("KILL", run.child.id());
    assert!(!run.wait().status.success());
    let next = job(1, &out, "train.epochs=1").arg("--force").run().succeeded();
    assert!(!next.stderr.contains("waiting until it is clear"), "{}", next.stderr);
    let other = folder.path().join("other.h5");
    let run = job(0, &other, "train.epochs=100000").spawn().until("mark", || mark(&other).exists());
    kill("KILL", run.child.id());
    drop(run.wait());
    let _ = std::fs::remove_file(&other);
    let _ = std::fs::remove_dir_all(checkpoint_folder(&other));
    let waited = job(1, &other, "train.epochs=1").run().succeeded();
    assert!(waited.stderr.contains("waiting until it is clear whether"), "{}", waited.stderr);
}

fn mark(out: &Path) -> PathBuf {
    out.with_file_name(format!(".hpml-{}.owner", text(Path::new(out.file_name().unwrap()))))
}

/// One action of a user.
#[derive(Debug, Clone)]
enum Act {
    /// `hpml train`, with or without `--resume auto` or `--force`.
    Train { out: usize, seed: usize, epochs: usize, auto: bool, force: bool, keeps: bool },
    /// `hpml train --resume CHECKPOINT`, the newest or the oldest of a run.
    From { of: usize, oldest: bool, out: usize, seed: usize, epochs: usize, force: bool },
    /// A training that is killed (or stopped) once it has written something.
    Cut { out: usize, seed: usize, auto: bool, signal: &'static str, launcher: bool },
    /// A second job while another trains.
    Second { out: usize, seed: usize },
    /// The run file gets another name, with or without its checkpoints.
    Rename { from: usize, to: usize, with_checkpoints: bool },
    /// A file that hpml did not write appears.
    Text { out: usize },
}

const NAMES: [&str; 4] = ["a.h5", "b.h5", "b.4", "c.hdf5"];

fn act() -> impl Strategy<Value = Act> {
    let (name, seed, epochs) = (0..NAMES.len(), 0..2usize, 1..4usize);
    prop_oneof![
        8 => (name.clone(), seed.clone(), epochs.clone(), any::<bool>(), prop::bool::weighted(0.2), any::<bool>())
            .prop_map(|(out, seed, epochs, auto, force, keeps)| Act::Train { out, seed, epochs, auto, force, keeps }),
        4 => (name.clone(), any::<bool>(), name.clone(), seed.clone(), epochs, prop::bool::weighted(0.2))
            .prop_map(|(of, oldest, out, seed, epochs, force)| Act::From { of, oldest, out, seed, epochs, force }),
        3 => (name.clone(), seed.clone(), any::<bool>(), prop::sample::select(vec!["KILL", "USR1", "TERM"]), any::<bool>())
            // A killed mpirun would leave its ranks behind.
            .prop_map(|(out, seed, auto, signal, launcher)| {
                Act::Cut { out, seed, auto, signal, launcher: launcher && signal != "KILL" }
            }),
        1 => (name.clone(), seed).prop_map(|(out, seed)| Act::Second { out, seed }),
        3 => (name.clone(), name.clone(), any::<bool>())
            .prop_map(|(from, to, with_checkpoints)| Act::Rename { from, to, with_checkpoints }),
        1 => name.prop_map(|out| Act::Text { out }),
    ]
}

/// A run file as the model knows it.
#[derive(Debug, Clone, PartialEq)]
struct Run {
    id: String,
    seed: i64,
    epochs: Vec<String>,
    finished: bool,
}

fn run_of(file: &Path) -> Option<Run> {
    let open = hdf5::File::open(file).ok()?;
    let config = open.group("config").ok()?;
    let seed = config.attr("run.seed").ok()?.read_scalar::<i64>().ok()?;
    // Checkpoints have no status.
    let finished = open.attr("status").is_ok() && attribute(file, "status") == "finished";
    Some(Run { id: attribute(file, "run_id"), seed, epochs: checksums(file), finished })
}

/// Parameters after each epoch of an undisturbed training, by seed.
struct Truth(RefCell<BTreeMap<(i64, usize), Vec<String>>>);

impl Truth {
    fn of(&self, seed: i64, epochs: usize) -> Vec<String> {
        let train = || {
            let folder = folder();
            let out = folder.path().join("truth.h5");
            train(&out, &[&format!("train.epochs={epochs}"), &format!("run.seed={seed}")]).run().succeeded();
            checksums(&out)
        };
        self.0.borrow_mut().entry((seed, epochs)).or_insert_with(train).clone()
    }
}

/// Does `act` in `folder` and checks that nothing is lost and no claim is false.
fn check(folder: &Path, act: &Act, truth: &Truth) -> Result<(), TestCaseError> {
    let out_of = |name: usize| folder.join(NAMES[name]);
    let before = contents(folder);
    let runs_before: BTreeMap<&PathBuf, Run> = before.keys().filter_map(|file| Some((file, run_of(file)?))).collect();
    let settings =
        |seed: &usize, epochs: usize| set([&*format!("run.seed={seed}"), &*format!("train.epochs={epochs}")]);
    // Always one rank: with another number the batch stays and rounding differs.
    let start = |launcher: bool, out: &Path, seed: &usize, epochs: usize| {
        let run = if launcher { Mpirun::ranks(1) } else { Mpirun::alone() };
        run.args(["train", "--out", text(out)]).args(set(SMALL)).args(settings(seed, epochs)).timeout(SOON)
    };
    let flags = |auto: bool, force: bool| {
        [("--resume", auto), ("auto", auto), ("--force", force)].into_iter().filter(|(_, is)| *is).map(|(flag, _)| flag)
    };
    // Output, seed and epochs requested, whether it was forced, and how it ended (`None`: cut).
    let (out, seed, epochs, forced, end): (PathBuf, usize, usize, bool, Option<Finished>) = match act {
        Act::Train { out, seed, epochs, auto, force, keeps } => {
            let keep = if *keeps { "checkpoint.every_epochs=1" } else { "checkpoint.every_epochs=0" };
            let out = out_of(*out);
            let run = start(false, &out, seed, *epochs).args(flags(*auto, *force)).args(["--set", keep]);
            (out, *seed, *epochs, *force, Some(run.run()))
        }
        Act::From { of, oldest, out, seed, epochs, force } => {
            let mut found = checkpoints(&out_of(*of));
            let Some(checkpoint) = (if *oldest { found.first().cloned() } else { found.pop() }) else { return Ok(()) };
            let out = out_of(*out);
            let run =
                start(false, &out, seed, *epochs).args(["--resume", text(&checkpoint)]).args(flags(false, *force));
            (out, *seed, *epochs, *force, Some(run.run()))
        }
        Act::Cut { out, seed, auto, signal, launcher } => {
            let out = out_of(*out);
            let mut run = start(*launcher, &out, seed, 3).args(flags(*auto, false)).spawn();
            let started = Instant::now();
            while run.child.try_wait().unwrap().is_none()
                && contents(folder) == before
                && started.elapsed() < Duration::from_secs(20)
            {
                std::thread::sleep(Duration::from_millis(2));
            }
            kill(signal, run.child.id());
            drop(run.wait());
            (out, *seed, 3, false, None)
        }
        Act::Second { out, seed } => {
            let out = out_of(*out);
            // A killed job may have left its mark.
            let (read, dead) = (|| std::fs::read(mark(&out)).ok(), std::fs::read(mark(&out)).ok());
            let first = start(false, &out, seed, 1000).arg("--force").spawn();
            let first = first.until("mark", || read().is_some_and(|mark| Some(mark) != dead));
            let second = start(false, &out, seed, 1000).args(flags(true, false)).run();
            prop_assert!(!second.status.success() && second.stderr.contains("is being written"), "{}", second.stderr);
            kill("KILL", first.child.id());
            drop(first.wait());
            (out, *seed, 1000, true, None)
        }
        Act::Rename { from, to, with_checkpoints } => {
            let (from, to) = (out_of(*from), out_of(*to));
            // A careful user, who replaces nothing.
            if from.exists() && !to.exists() && !checkpoint_folder(&to).exists() {
                std::fs::rename(&from, &to).unwrap();
                if *with_checkpoints && checkpoint_folder(&from).exists() {
                    std::fs::rename(checkpoint_folder(&from), checkpoint_folder(&to)).unwrap();
                }
            }
            return Ok(());
        }
        Act::Text { out } => {
            if !out_of(*out).exists() {
                std::fs::write(out_of(*out), "precious").unwrap();
            }
            return Ok(());
        }
    };

    let after = contents(folder);
    let now = run_of(&out);
    for (file, bytes) in &before {
        let stays = after.get(file).is_some_and(|now| now == bytes);
        let own_folder = file.starts_with(checkpoint_folder(&out));
        if stays || forced && (*file == out || own_folder) {
            continue;
        }
        let was = runs_before.get(file);
        // Only the same run may replace its own run file, with more epochs, and its own checkpoints.
        let goes_on = match (was, &now) {
            (Some(was), Some(now)) if *file == out => {
                was.id == now.id && now.epochs.starts_with(&was.epochs) && !(was.finished && was.epochs == now.epochs)
            }
            (Some(was), _) if own_folder => {
                checkpoints(&out).iter().any(|new| attribute(new, "run_id") == was.id)
                    || now.as_ref().is_some_and(|now| now.id == was.id)
            }
            _ => false,
        };
        prop_assert!(goes_on, "{} is lost: {was:?}\nnow {now:?}", file.display());
    }
    let Some(end) = end else { return Ok(()) };
    if !end.status.success() {
        prop_assert_eq!(end.status.code(), Some(1));
        prop_assert_eq!(end.messages().len(), 1, "{}", end.stderr);
        prop_assert!(after == before, "refused, but something changed: {}", end.stderr);
        // Actions that must succeed.
        let free = !before.keys().any(|file| *file == out || file.starts_with(checkpoint_folder(&out)));
        let possible =
            matches!(act, Act::Train { auto: false, force: true, .. }) || matches!(act, Act::Train { .. }) && free;
        prop_assert!(!possible, "{}", end.stderr);
        return Ok(());
    }
    // Every claim of a file is true.
    let Some(now) = now else { return Err(TestCaseError::fail("no run file")) };
    prop_assert_eq!((now.seed, now.finished, now.epochs.len()), (seed as i64, true, epochs));
    prop_assert_eq!(now.epochs, truth.of(seed as i64, epochs));
    prop_assert!(!mark(&out).exists(), "the mark stayed");
    Ok(())
}

/// Random sequences of commands. Runs are deterministic, so a claimed result can be compared with the true one.
#[test]
fn no_sequence_of_commands_loses_or_claims_anything() {
    let started = Instant::now();
    let limit = Duration::from_secs(asked("HPML_OWNERSHIP_SECONDS", 60) as u64);
    let config = Config {
        cases: asked("HPML_OWNERSHIP_CASES", 12) as u32,
        max_shrink_iters: 30,
        failure_persistence: None,
        ..Config::default()
    };
    let (truth, sequences, acts) = (Truth(RefCell::default()), RefCell::new(0), RefCell::new(0));
    let mut runner = TestRunner::new(config);
    let result = runner.run(&prop::collection::vec(act(), 4..12), |sequence| {
        if started.elapsed() > limit {
            return Ok(());
        }
        let folder = folder();
        for (number, act) in sequence.iter().enumerate() {
            check(folder.path(), act, &truth)
                .map_err(|error| TestCaseError::fail(format!("act {number}, {act:?}: {error}")))?;
            *acts.borrow_mut() += 1;
        }
        *sequences.borrow_mut() += 1;
        Ok(())
    });
    println!(
        "{} sequences of {} commands in {:.0} s",
        sequences.borrow(),
        acts.borrow(),
        started.elapsed().as_secs_f64()
    );
    result.unwrap_or_else(|error| panic!("{error}"));
}
