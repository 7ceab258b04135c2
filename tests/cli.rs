//! The commands that need no ranks, and the help of every command.

mod common;

use common::{Mpirun, folder};

#[test]
fn the_printed_configuration_is_one_that_train_takes() {
    let folder = folder();
    let printed = Mpirun::alone().args(["config"]).run().succeeded().stdout;
    for key in [
        "[launch]",
        "device = \"auto\"",
        "batch_per_rank = ",
        "[model]",
        "bias = false",
        "dir = \"synthetic\"",
        "seed = 0",
    ] {
        assert!(printed.contains(key), "{key} is missing in\n{printed}");
    }
    let config = folder.path().join("mine.toml");
    std::fs::write(&config, printed).unwrap();
    let run = Mpirun::alone()
        .folder(folder.path())
        .args([
            "train",
            "mine.toml",
            "--set",
            "train.max_steps=2",
            "--set",
            "data.test_samples=50",
            "--out",
            "a/b/run.h5",
        ])
        .run()
        .succeeded();
    assert!(run.stdout.contains("a/b/run.h5"), "{}", run.stdout);
}

#[test]
fn every_command_has_help_that_ends_with_two_commands() {
    for command in [&[][..], &["train"], &["config"], &["inspect"], &["verify"]] {
        let help = Mpirun::alone().args(command).args(["--help"]).run().succeeded().stdout;
        let examples = help.split("Two commands that work:").nth(1).unwrap_or_else(|| panic!("{help}"));
        // Long commands are wrapped: count their beginnings.
        let starts = |line: &&str| line.starts_with("  hpml ") || line.starts_with("  mpirun ");
        assert_eq!(examples.lines().filter(starts).count(), 2, "{help}");
    }
}

#[test]
fn an_unknown_command_is_refused() {
    let run = Mpirun::alone().args(["trian"]).run();
    assert!(!run.status.success() && run.stderr.contains("train"), "{}", run.stderr);
    let run = Mpirun::ranks(3).args(["trian"]).run();
    assert!(!run.status.success(), "{}", run.stdout);
    assert_eq!(run.stderr.matches("unrecognized subcommand").count(), 1, "{}", run.stderr);
}

#[test]
fn a_command_without_ranks_acts_once_under_a_launcher() {
    let workload = Mpirun::ranks(2).args(["workload"]).run().succeeded().stdout;
    assert_eq!(workload.matches("Memory of a rank").count(), 1, "{workload}");
    let missing = Mpirun::ranks(2).args(["inspect", "missing.h5"]).run();
    assert!(!missing.status.success(), "{}", missing.stdout);
    assert_eq!(missing.stderr.matches("hpml: missing.h5").count(), 1, "{}", missing.stderr);
}

#[test]
fn inspect_shows_a_run_file_and_refuses_what_is_none() {
    let folder = folder();
    let out = folder.path().join("run.h5");
    let out = out.to_str().unwrap();
    Mpirun::alone()
        .args(["train", "--out", out, "--set", "train.max_steps=3", "--set", "data.test_samples=50"])
        .run()
        .succeeded();
    let shown = Mpirun::alone().args(["inspect", out]).run().succeeded().stdout;
    for told in ["epochs", "test_accuracy", "comm", "conv1.weight", "libtorch", "batch_per_rank"] {
        assert!(shown.contains(told), "{told} is missing in\n{shown}");
    }
    let other = folder.path().join("other.h5");
    std::fs::write(&other, "no HDF5").unwrap();
    let run = Mpirun::alone().args(["inspect", other.to_str().unwrap()]).run();
    assert!(!run.status.success());
    assert_eq!(run.stderr.trim().lines().count(), 1, "{}", run.stderr);
    assert!(run.stderr.starts_with("hpml: ") && run.stderr.contains("other.h5"), "{}", run.stderr);
}
