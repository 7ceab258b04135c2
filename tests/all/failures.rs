//! Mistakes of a user: each ends in one message that names it and a non-zero status, soon, and nothing is lost.

use std::path::Path;
use std::time::Duration;

use crate::common::{Finished, Mpirun, Running, assert_refused, folder, kill, text};

/// Time-out of a bad start, which is reported within seconds; a busy test machine gets some more.
const SOON: Duration = Duration::from_secs(30);

fn train(args: &[&str]) -> Finished {
    Mpirun::ranks(2).args(["train"]).args(args).timeout(SOON).run()
}

/// A training of far more epochs than a test waits for, each a fraction of a second.
fn endless(ranks: usize, out: &Path, args: &[&str]) -> Running {
    Mpirun::ranks(ranks)
        .args(["train", "--out", text(out), "--set", "train.epochs=1000", "--set", "data.train_samples=400"])
        .args(["--set", "data.test_samples=100"])
        .args(args)
        .timeout(Duration::from_secs(90))
        .spawn()
}

#[test]
fn an_unknown_key_is_refused() {
    let folder = folder();
    let config = folder.path().join("mine.toml");
    std::fs::write(&config, "[train]\nepochs = 1\nlearning_rate = 0.1\n").unwrap();
    assert_refused(&train(&[text(&config)]), &["mine.toml", "line 3", "learning_rate"]);
}

#[test]
fn a_wrong_type_is_refused() {
    assert_refused(&train(&["--set", "train.epochs=many"]), &["train.epochs=many"]);
}

#[test]
fn a_value_out_of_range_is_refused() {
    assert_refused(&train(&["--set", "train.batch_per_rank=0"]), &["train.batch_per_rank = 0", "at least 1"]);
}

#[test]
fn a_missing_configuration_is_refused() {
    assert_refused(&train(&["configs/none.toml"]), &["configs/none.toml"]);
}

#[test]
fn a_missing_data_folder_is_refused() {
    assert_refused(&train(&["--data", "/no/such/folder"]), &["/no/such/folder"]);
}

#[test]
fn a_truncated_data_file_is_refused() {
    let data = folder();
    crate::common::write_fake_cifar10(data.path());
    let broken = data.path().join("data_batch_3.bin");
    std::fs::OpenOptions::new().write(true).open(&broken).unwrap().set_len(21_045_248).unwrap();
    let run = train(&["--data", text(data.path())]);
    assert_refused(&run, &["data_batch_3.bin", "21045248", "30730000"]);
}

#[test]
fn a_label_of_200_is_refused() {
    let data = folder();
    crate::common::write_fake_cifar10(data.path());
    let broken = data.path().join("test_batch.bin");
    let mut bytes = std::fs::read(&broken).unwrap();
    bytes[3073 * 17] = 200;
    std::fs::write(&broken, bytes).unwrap();
    assert_refused(&train(&["--data", text(data.path())]), &["test_batch.bin", "record 17", "200"]);
}

#[test]
fn an_output_that_cannot_be_written_is_refused_before_any_work() {
    let folder = folder();
    let file = folder.path().join("a-file");
    std::fs::write(&file, "in the way").unwrap();
    let run = train(&["--out", text(&file.join("run.h5"))]);
    assert_refused(&run, &["run.h5"]);
    assert!(!run.stdout.contains("epoch"), "{}", run.stdout);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "in the way");
}

#[test]
fn an_existing_output_is_kept_without_force_and_replaced_with_it() {
    let folder = folder();
    let out = folder.path().join("run.h5");
    std::fs::write(&out, "an earlier result").unwrap();
    let args = ["--out", text(&out), "--set", "train.max_steps=3", "--set", "data.test_samples=100"];
    assert_refused(&train(&args), &["run.h5", "--force"]);
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "an earlier result");
    train(&[&args[..], &["--force"]].concat()).succeeded();
    assert_eq!(crate::common::column(&out, "epochs/epoch"), [0.0]);
}

#[test]
fn ranks_with_different_configurations_are_refused() {
    // Each rank runs its own shell, which passes its rank as the seed.
    let (hpml, rank) = (env!("CARGO_BIN_EXE_hpml"), "${OMPI_COMM_WORLD_RANK:-$PMI_RANK}");
    let script = format!("exec {hpml} train --set run.seed={rank}");
    let run = Mpirun::program(2, ["sh", "-c", &script]).timeout(SOON).run();
    assert_refused(&run, &["rank 1", "another configuration"]);
}

#[test]
fn a_training_without_a_step_is_refused() {
    let out = folder();
    let run = train(&[
        "--set",
        "data.train_samples=1",
        "--set",
        "data.drop_last=true",
        "--out",
        text(&out.path().join("run.h5")),
    ]);
    assert_refused(&run, &["data.drop_last", "1 samples on 2 ranks"]);
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0);
}

#[test]
fn a_loss_that_is_no_number_ends_the_job() {
    let run = train(&["--set", "train.lr=1e30", "--out", text(&folder().path().join("run.h5"))]);
    assert!(!run.status.success());
    assert!(run.stderr.contains("loss is") && run.stderr.contains("train.lr"), "{}", run.stderr);
}

#[test]
fn a_killed_rank_ends_the_job_and_leaves_the_last_epoch_readable() {
    for killed in [0, 1] {
        let folder = folder();
        let out = folder.path().join("run.h5");
        let run = endless(2, &out, &[]).until("epoch", || crate::common::has(&out, "epochs/epoch"));
        std::thread::sleep(Duration::from_millis(300)); // into a later epoch
        let pids = run.rank_pids(2);
        let killed_at = std::time::Instant::now();
        kill("KILL", pids[killed]);
        let run = run.wait();
        assert!(killed_at.elapsed() < Duration::from_secs(10), "{:?}", killed_at.elapsed());
        assert!(!run.status.success());
        let launcher_says = format!("{}{}", run.stdout, run.stderr).to_lowercase();
        assert!(launcher_says.contains("signal 9") || launcher_says.contains("signal: 9"), "{launcher_says}");
        let epochs = crate::common::column(&out, "epochs/epoch");
        assert!(!epochs.is_empty());
        assert_eq!(crate::common::column(&out, "epochs/test_accuracy").len(), epochs.len());
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
        // Beside it the mark of its dead owner, and at most one temporary: the kill may have met a flush.
        let temporaries = left.iter().filter(|name| text(Path::new(name)).ends_with(".part")).count();
        assert!(temporaries <= 1 && left.len() <= 2 + temporaries, "{left:?}");
    }
}

#[test]
fn a_stopped_rank_ends_the_job_with_a_message_that_names_it() {
    let folder = folder();
    let out = folder.path().join("run.h5");
    let run = endless(3, &out, &["--set", "launch.comm_timeout_s=3"]).until("epoch", || out.exists());
    kill("STOP", run.rank_pids(3)[1]);
    let run = run.wait();
    assert_eq!(run.status.code(), Some(69), "{}", run.stderr);
    let messages = run.messages();
    assert_eq!(messages.len(), 1, "{}", run.stderr);
    for words in ["rank 1 of this host is stopped", "after step", "launch.comm_timeout_s"] {
        assert!(messages[0].contains(words), "{}", messages[0]);
    }
    assert!(!crate::common::column(&out, "epochs/epoch").is_empty());
}

#[test]
fn a_rank_stopped_before_the_ranks_have_met_ends_the_job() {
    let folder = folder();
    let out = folder.path().join("run.h5");
    let run = endless(2, &out, &["--set", "launch.comm_timeout_s=3"]);
    kill("STOP", run.rank_pids(2)[1]);
    let run = run.wait();
    // Intel's launcher has a status of its own for jobs that end before MPI has started.
    let code = run.status.code();
    assert!(code == Some(69) || code == Some(255) && crate::common::is_intel_mpi(), "{code:?}: {}", run.stderr);
    // The rank's progress decides which of the two messages appears.
    let said = |words: &str| run.messages().iter().any(|message| message.contains(words));
    assert!(said("the ranks have not met") || said("rank 1"), "{}", run.stderr);
}

/// The images are read once, at the start.
#[test]
fn a_data_file_that_changes_meanwhile_changes_nothing() {
    let (data, out) = (folder(), folder());
    crate::common::write_fake_cifar10(data.path());
    let (plain, changed) = (out.path().join("plain.h5"), out.path().join("changed.h5"));
    let start = |out: &Path| {
        let small = ["data.train_samples=1000", "data.test_samples=100", "train.epochs=5"];
        let small = small.iter().flat_map(|setting| ["--set", setting]);
        let args = ["train", "--data", text(data.path()), "--out", text(out)];
        Mpirun::ranks(2).args(args).args(small).timeout(Duration::from_secs(90)).spawn()
    };
    start(&plain).wait().succeeded();
    let run = start(&changed).until("epoch", || changed.exists());
    std::fs::write(data.path().join("data_batch_1.bin"), b"other bytes").unwrap();
    run.wait().succeeded();
    let checksums = |file: &Path| crate::common::texts(file, "epochs/parameter_checksum");
    assert_eq!(checksums(&plain), checksums(&changed));
}

/// Settings with which the rate rises in the last step, and in no other, so far that its update ends in infinities.
const LAST_UPDATE: [&str; 10] = [
    "--set",
    "schedule.anneal=step",
    "--set",
    "schedule.milestones=[0.9]",
    "--set",
    "data.train_samples=160",
    "--set",
    "data.test_samples=40",
    "--set",
    "train.epochs=1",
];

/// Content of every file in a folder, by name.
fn contents(folder: &Path) -> Vec<(std::ffi::OsString, Vec<u8>)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries
        .flat_map(|entry| match entry.path().is_dir() {
            true => contents(&entry.path()),
            false => vec![(entry.file_name(), std::fs::read(entry.path()).unwrap())],
        })
        .collect();
    files.sort();
    files
}

#[test]
fn a_last_update_that_leaves_no_numbers_replaces_nothing() {
    let cases: [(&str, &[&str]); 5] = [
        ("[0] is", &["schedule.gamma=1e42"]),
        // Finite parameters, from which no finite loss follows.
        ("loss is", &["schedule.gamma=1e36"]),
        ("[0] is", &["schedule.gamma=1e42", "optim.ema=0.9"]),
        ("[0] is", &["schedule.gamma=1e42", "parallel.local_steps=3"]),
        ("[0] is", &["schedule.gamma=1e42", "launch.device=cuda"]),
    ];
    for (named, settings) in cases {
        let folder = folder();
        let out = folder.path().join("run.h5");
        let good = ["--out", text(&out), "--set", "quantize.enabled=true", "--set", "checkpoint.every_epochs=1"];
        let small = ["--set", "quantize.calibration_images=40", "--set", "launch.device=cpu"];
        let good = [&good[..], &small, &LAST_UPDATE, &["--force"]].concat();
        train(&[&good[..], &["--set", "schedule.gamma=1"]].concat()).succeeded();
        let before = contents(folder.path());
        assert_eq!(before.len(), 3, "run file, checkpoint, int8");
        let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
        let run = Mpirun::ranks(2).args(["train"]).args(&good).args(settings).env("HPML_EMULATE_GPU", "1");
        let run = run.timeout(Duration::from_secs(90)).run();
        assert_refused(&run, &[named, "epoch 0, step 9", "nothing of it is saved", "train.lr"]);
        assert!(contents(folder.path()) == before, "{named}: something was replaced");
    }
}

#[test]
fn a_checkpoint_in_the_middle_is_not_written_of_what_are_no_numbers() {
    for more in [&[][..], &["parallel.local_steps=100"], &["launch.device=cuda"]] {
        let folder = folder();
        let out = folder.path().join("run.h5");
        let settings = ["train.lr=1e39", "checkpoint.every_minutes=1e-9", "data.test_samples=40"];
        let settings = [&settings[..], &["launch.device=cpu"]].concat();
        let settings = settings.iter().chain(more).flat_map(|setting| ["--set", setting]);
        let run = Mpirun::ranks(2).args(["train", "--out", text(&out)]).args(settings).env("HPML_EMULATE_GPU", "1");
        // After the first step all ranks want a checkpoint; the second step's loss is looked at later.
        assert_refused(&run.timeout(Duration::from_secs(90)).run(), &["step 0", "[0] is", "train.lr"]);
        assert!(contents(folder.path()).is_empty());
    }
}

#[test]
fn an_empty_data_folder_is_refused_and_the_synthetic_set_has_a_word() {
    let (folder, file) = (folder(), "[data]\ndir = \"\"\n");
    let config = folder.path().join("mine.toml");
    std::fs::write(&config, file).unwrap();
    for given in [&["--set", "data.dir="][..], &["--set", "data.dir=\"\""], &[text(&config)]] {
        assert_refused(&train(given), &["data.dir = \"\"", "synthetic"]);
    }
    let run = train(&["--data", ""]);
    assert!(!run.status.success() && run.stderr.contains("--data <DIR>"), "{}", run.stderr);
    let out = folder.path().join("run.h5");
    let few = ["--out", text(&out), "--set", "train.max_steps=2", "--set", "data.test_samples=10"];
    std::fs::write(&config, "[data]\ndir = \"nowhere\"\n").unwrap();
    let run = train(&[&[text(&config), "--data", "synthetic"], &few[..]].concat()).succeeded();
    assert!(run.stdout.contains("synthetic (embedded)"), "{}", run.stdout);
}
