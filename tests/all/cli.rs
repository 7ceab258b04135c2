//! The commands that need no ranks, and the help of every command.

use crate::common::{Mpirun, folder};

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

#[test]
fn a_key_that_is_given_as_an_option_or_misspelt_is_refused_with_the_one_that_was_meant() {
    for (args, hint) in [
        ("train --epochs 3", "did you mean --set train.epochs=3?"),
        ("--epochs 3", "did you mean hpml train --set train.epochs=3?"),
        ("train --batch-size=32", "did you mean --set train.batch_per_rank=32?"),
        ("train --set epochs=3", "did you mean --set train.epochs=3?"),
        ("train --set train.epoch=3", "did you mean train.epochs?"),
        ("sweep --set swep.rounds=3", "did you mean [sweep]?"),
        ("train train.epochs=3", "did you mean --set train.epochs=3?"),
    ] {
        let run = Mpirun::ranks(2).args(args.split(' ')).run();
        assert!(!run.status.success(), "{args}");
        assert_eq!(run.stderr.matches(hint).count(), 1, "{args}: {}", run.stderr);
    }
    let folder = folder();
    std::fs::write(folder.path().join("mine.toml"), "[train]\nlr = 0.1\n\n[model]\nwidht = 3\n").unwrap();
    let run = Mpirun::ranks(2).folder(folder.path()).args(["train", "mine.toml"]).run();
    crate::common::assert_refused(&run, &["mine.toml: line 5: no key model.widht: did you mean model.width?"]);
}

#[test]
fn completions_complete_and_every_command_has_a_man_page() {
    let folder = folder();
    let prefix = folder.path().join("usr");
    Mpirun::ranks(2).args(["generate", crate::common::text(&prefix)]).run().succeeded();
    let share = prefix.join("share");
    for file in ["zsh/site-functions/_hpml", "fish/vendor_completions.d/hpml.fish", "man/man1/hpml.1"] {
        assert!(share.join(file).exists(), "{file}");
    }
    let help = Mpirun::alone().args(["--help"]).run().succeeded().stdout;
    let commands = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names: Vec<&str> = commands.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next()).collect();
    let names: Vec<&str> = names.into_iter().filter(|name| !["", "help"].contains(name)).collect();
    assert!(names.contains(&"train") && !names.contains(&"generate"), "{names:?}");
    for name in &names {
        let page = std::fs::read_to_string(share.join(format!("man/man1/hpml-{name}.1"))).expect(name);
        assert!(page.contains("Two commands that work"), "{name}");
    }
    // As bash does when the user presses the tab key.
    let script = "source \"$1\"; COMP_WORDS=(hpml tr); COMP_CWORD=1; _hpml hpml tr hpml; echo ${COMPREPLY[@]}; \
        COMP_WORDS=(hpml train --res); COMP_CWORD=2; _hpml hpml --res train; echo ${COMPREPLY[@]}";
    let mut bash = std::process::Command::new("bash");
    bash.args(["-c", script, "bash"]).arg(share.join("bash-completion/completions/hpml"));
    assert_eq!(Mpirun::command(bash).run().succeeded().stdout, "train\n--resume\n");
    let run = Mpirun::alone().args(["generate", "/proc/none"]).run();
    crate::common::assert_refused(&run, &["/proc/none", "cannot be written"]);
}
