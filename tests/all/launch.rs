//! Whether the started processes are the ranks of one job, and the resources of the ranks: reported once, and stored.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::common::{Finished, Mpirun, assert_refused, folder, is_open_mpi, text, texts};

const SOON: Duration = Duration::from_secs(60);
const FEW: [&str; 4] = ["--set", "train.max_steps=2", "--set", "data.test_samples=20"];

/// Names and values of environment variables.
type Variables<'a> = &'a [(&'a str, &'a str)];

/// Prepares `hpml` as a process of a launcher that left these variables.
fn process(variables: Variables, args: &[&str]) -> Finished {
    let run = Mpirun::alone().args(args).timeout(SOON);
    variables.iter().fold(run, |run, (name, value)| run.env(name, value)).run()
}

fn train<'a>(out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    [&["train", "--out", text(out)], &FEW[..], more].concat()
}

#[test]
fn processes_that_mpi_did_not_join_are_refused_by_the_launchers_variable() {
    let folder = folder();
    let out = folder.path().join("run.h5");
    let launchers: [(&str, &str, Variables); 6] = [
        ("SLURM_STEP_NUM_TASKS = 4", "srun", &[("SLURM_STEP_NUM_TASKS", "4"), ("SLURM_PROCID", "0")]),
        ("PMI_SIZE = 4", "PMI", &[("PMI_SIZE", "4"), ("PMI_RANK", "0")]),
        ("PMIX_RANK = 1", "PMIx", &[("PMIX_RANK", "1")]),
        ("OMPI_COMM_WORLD_SIZE = 4", "mpirun", &[("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_RANK", "0")]),
        ("MV2_COMM_WORLD_SIZE = 4", "mpirun", &[("MV2_COMM_WORLD_SIZE", "4"), ("MV2_COMM_WORLD_RANK", "0")]),
        ("WORLD_SIZE = 4", "not with torchrun", &[("WORLD_SIZE", "4"), ("RANK", "0"), ("LOCAL_RANK", "0")]),
    ];
    for (variable, launcher, variables) in launchers {
        // Intel MPI takes PMI's variables for its own launcher's, and waits for that.
        if variable.starts_with("PMI") && !is_open_mpi(variable) {
            continue;
        }
        let refused = process(variables, &train(&out, &[]));
        assert_refused(&refused, &[variable, launcher, "MPI joined none", "srun --mpi=", "launch.allow_singletons"]);
        assert_eq!(refused.status.code(), Some(1), "what a restart would meet again");
        assert!(refused.stdout.is_empty(), "{}", refused.stdout);
        // The other ranks leave the message to the first.
        let rank = variables.last().unwrap().0;
        let other = match rank {
            "LOCAL_RANK" => vec![variables[0], ("RANK", "2"), ("LOCAL_RANK", "2")],
            _ => [&variables[..variables.len() - 1], &[(rank, "2")]].concat(),
        };
        let silent = process(&other, &train(&out, &[]));
        assert!(!silent.status.success() && silent.messages().is_empty(), "{variable}: {}", silent.stderr);
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn an_mpi_library_of_another_family_is_refused_by_both_names_before_it_is_initialized() {
    let folder = folder();
    let (library, out) = (crate::common::preloaded(folder.path(), "other_mpi.c"), folder.path().join("run.h5"));
    let built = hpml::collective::built_for();
    let (other, relative) = match built.starts_with("Open MPI") {
        true => ("MPICH Version: 4.0.2", "Open MPI v5.0.11"),
        false => ("Open MPI v4.1.4", "MPICH Version:\t5.0.2\nMPICH Release date: today"),
    };
    let with =
        |run: Mpirun, version: &str| run.env("LD_PRELOAD", text(&library)).env("OTHER_MPI", version).timeout(SOON);
    for ranks in [1, 2] {
        let refused = with(Mpirun::ranks(ranks), other).args(train(&out, &[])).run();
        assert_refused(&refused, &[&format!("built for {built}"), other, "scripts/setup"]);
        assert_eq!(refused.status.code(), Some(1));
        assert!(!out.exists() && !refused.stdout.contains("epoch"), "{}", refused.stdout);
    }
    let shown = with(Mpirun::alone(), other).arg("devices").run().succeeded().stdout;
    assert!(shown.contains("MPI cannot be used: this hpml was built for"), "{shown}");
    // Libraries of one family take each other's programs. The name is one line without tabs.
    let run = with(Mpirun::ranks(2), relative).args(train(&out, &[])).run().succeeded();
    let name = relative.lines().next().unwrap().replace('\t', " ");
    assert!(run.stdout.lines().next().unwrap().contains(&format!("   {name}   world_size 2")), "{}", run.stdout);
}

/// A socket of datagrams gives what a process wrote write by write.
#[test]
fn a_message_is_one_write_of_whole_lines() {
    let folder = folder();
    let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
    ours.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let long = format!("--set=train.lr={}", "x".repeat(3000));
    let four = [("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_RANK", "0")];
    let cases: [(Vec<&str>, Variables, usize); 5] = [
        (vec!["train", "none.toml"], &[], 1),
        (vec!["train", &long], &[], 1),
        (vec!["allreduce", "--max", "1000"], &four, 1),
        (vec!["allreduce", "--no-such-option"], &[], 1),
        // Warnings of the log.
        (vec!["train", "--out", "run.h5", "--set", "launch.threads=64"], &[("RUST_LOG", "info")], 1),
    ];
    for (args, variables, least) in cases {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hpml"));
        command.args(&args).args(if args[0] == "train" { &FEW[..] } else { &[] }).current_dir(folder.path());
        command.envs(variables.iter().copied()).stdout(std::process::Stdio::null());
        let mut child = command.stderr(std::os::fd::OwnedFd::from(theirs.try_clone().unwrap())).spawn().unwrap();
        let mut writes = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        while child.try_wait().unwrap().is_none() || writes.len() < least {
            writes.extend(
                ours.recv(&mut buffer).ok().map(|bytes| String::from_utf8_lossy(&buffer[..bytes]).into_owned()),
            );
        }
        while let Ok(bytes) = ours.recv(&mut buffer) {
            writes.push(String::from_utf8_lossy(&buffer[..bytes]).into_owned());
        }
        let own = |text: &&String| ["hpml: ", "[rank 0]", "error: "].iter().any(|start| text.starts_with(start));
        assert!(writes.iter().filter(own).count() >= least, "{args:?}: {writes:?}");
        assert!(writes.iter().all(|text| text.ends_with('\n')), "{args:?}: {writes:?}");
    }
}

#[test]
fn a_job_whose_cores_another_job_computes_on_is_warned_unless_its_threads_do_not_spin() {
    let name = "a_job_whose_cores_another_job_computes_on_is_warned_unless_its_threads_do_not_spin";
    if own_cpus().len() < 2 {
        eprintln!("{name}: left out: there is one core");
        return;
    }
    let folder = folder();
    let [first, second, passive] = ["first", "second", "passive"].map(|name| folder.path().join(format!("{name}.h5")));
    let endless = ["--set", "train.epochs=100000", "--set", "data.train_samples=100", "--set", "data.test_samples=20"];
    let endless = Mpirun::alone().args(["train", "--out", text(&first)]).args(endless).spawn();
    let endless = endless.until("epoch", || first.exists());
    let run = Mpirun::alone().without_env("OMP_WAIT_POLICY").args(train(&second, &[])).timeout(SOON).run().succeeded();
    assert_eq!(run.stderr.matches("another hpml job (process ").count(), 1, "{}", run.stderr);
    assert!(warnings(&second)[0].contains("OMP_WAIT_POLICY=passive"));
    Mpirun::alone().args(train(&passive, &[])).timeout(SOON).run().succeeded();
    assert_eq!(warnings(&passive), [""; 0]);
    crate::common::kill("TERM", endless.child.id());
    endless.wait();
}

#[test]
fn every_command_of_ranks_is_refused_and_those_without_ranks_are_not() {
    let folder = folder();
    let out = folder.path().join("run.h5");
    process(&[], &train(&out, &[])).succeeded();
    let study = folder.path().join("study.toml");
    std::fs::write(&study, "[[study.variants]]\nname = \"one\"\n").unwrap();
    let one_of_four = [("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_RANK", "0")];
    const PARITY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/parity.h5");
    let of_ranks: [&[&str]; 5] =
        [&["sweep"], &["study", text(&study)], &["quantize", text(&out)], &["verify", PARITY], &["allreduce"]];
    for args in of_ranks {
        assert_refused(&process(&one_of_four, args), &["OMPI_COMM_WORLD_SIZE = 4"]);
    }
    let without: [&[&str]; 4] = [&["config"], &["devices"], &["inspect", text(&out)], &["report", text(&out)]];
    for args in without {
        process(&one_of_four, args).succeeded();
    }
}

#[test]
fn separate_jobs_that_are_meant_and_one_process_of_a_job_run() {
    let folder = folder();
    let cases: [(Variables, &[&str]); 3] = [
        (&[("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_RANK", "2")], &["--set", "launch.allow_singletons=true"]),
        // A batch script, and variables that a cluster sets for other purposes.
        (&[("SLURM_NTASKS", "4"), ("SLURM_PROCID", "0")], &[]),
        (&[("WORLD_SIZE", "4")], &[]),
    ];
    for (number, (variables, more)) in cases.into_iter().enumerate() {
        let out = folder.path().join(format!("run{number}.h5"));
        process(variables, &train(&out, more)).succeeded();
        assert!(out.exists());
    }
}

/// Warnings stored in the run file.
fn warnings(file: &Path) -> Vec<String> {
    let file = hdf5::File::open(file).unwrap();
    let Ok(warnings) = file.group("environment").unwrap().attr("warnings") else { return Vec::new() };
    let texts = warnings.read_raw::<hdf5::types::VarLenUnicode>().unwrap();
    texts.iter().map(|text| text.as_str().to_owned()).collect()
}

/// CPUs that this test may use.
fn own_cpus() -> Vec<usize> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        first.trim().parse().unwrap()..=last.trim().parse::<usize>().unwrap()
    };
    list.split(',').flat_map(range).collect()
}

/// Prepares two unbound ranks on one core.
fn on_one_core(args: &[&str]) -> Mpirun {
    let launcher = crate::common::launcher();
    let mut command = Command::new("taskset");
    command.args(["-c", &own_cpus()[0].to_string()]).arg(launcher.get_program());
    command.args(["--unbound", "-n", "2", env!("CARGO_BIN_EXE_hpml")]).args(args);
    Mpirun::command(command).timeout(SOON)
}

/// Lines of a header that list the ranks' resources.
fn told(run: &Finished) -> Vec<&str> {
    run.stdout.lines().filter(|line| line.starts_with("# rank")).collect()
}

#[test]
fn what_the_ranks_have_is_one_line_and_oversubscription_is_kept() {
    let folder = folder();
    let [run, scaling, study] = ["run", "scaling", "study"].map(|name| folder.path().join(format!("{name}.h5")));
    let variants = folder.path().join("study.toml");
    std::fs::write(&variants, "[study]\nseeds = [0]\n[[study.variants]]\nname = \"one\"\n").unwrap();
    let few = ["--set", "data.train_samples=100", "--set", "data.test_samples=20"];
    let once = ["--set", "train.epochs=1"];
    let short = ["--set", "sweep.seconds=0.1", "--set", "sweep.rounds=1", "--set", "sweep.batch_per_rank=[4]"];
    let commands: [(&Path, Vec<&str>); 3] = [
        (&run, [&["train"], &once[..]].concat()),
        (&scaling, [&["sweep"], &short[..]].concat()),
        (&study, [&["study", text(&variants)], &once[..]].concat()),
    ];
    for (out, args) in commands {
        let finished = on_one_core(&[&args[..], &few, &["--out", text(out)]].concat()).run().succeeded();
        let line = told(&finished);
        assert!(line.len() == 1 && line[0].starts_with("# ranks 0-1 on "), "{}", finished.stdout);
        assert!(
            line[0].contains("may use 1 of ") && line[0].contains("shared by 2 ranks (oversubscribed)"),
            "{line:?}"
        );
        let kept = warnings(out);
        assert!(kept.len() == 1 && kept[0].contains("2 compute threads share 1 cores"), "{kept:?}");
        assert_eq!(finished.stderr.matches(&kept[0]).count(), 1, "{}", finished.stderr);
        for command in ["report", "inspect"] {
            let shown = Mpirun::alone().args([command, text(out)]).run().succeeded();
            assert!(shown.stdout.contains("2 compute threads share 1 cores"), "{command}: {}", shown.stdout);
        }
    }
    assert_eq!(crate::common::column(&run, "environment/cores"), [1.0, 1.0]);
}

/// A job whose ranks are bound by `policy`, under Open MPI 4 and under 5, whose launcher has variables of its own.
fn binding(run: Mpirun, policy: &str) -> Mpirun {
    run.env("OMPI_MCA_hwloc_base_binding_policy", policy).env("PRTE_MCA_hwloc_default_binding_policy", policy)
}

#[test]
fn a_launcher_that_leaves_cores_idle_is_named_with_the_mend() {
    let name = "a_launcher_that_leaves_cores_idle_is_named_with_the_mend";
    if !is_open_mpi(name) {
        return;
    }
    if own_cpus().len() < 2 {
        eprintln!("{name}: left out: there is one core");
        return;
    }
    let folder = folder();
    let (bound, unbound) = (folder.path().join("bound.h5"), folder.path().join("unbound.h5"));
    let run = |policy: &str, out: &Path| {
        binding(Mpirun::ranks(1), policy).args(train(out, &[])).timeout(SOON).run().succeeded()
    };
    let finished = run("core", &bound);
    let line = told(&finished);
    assert!(line.len() == 1 && line[0].ends_with("bound by mpirun"), "{}", finished.stdout);
    let kept = warnings(&bound);
    assert!(kept.len() == 1 && kept[0].contains("mpirun --bind-to none"), "{kept:?}");
    assert_eq!(texts(&bound, "environment/bound_by"), ["mpirun"]);
    run("none", &unbound);
    assert_eq!(warnings(&unbound), [""; 0]);
    // An explicit thread count is the user's own choice of cores.
    let chosen = folder.path().join("chosen.h5");
    let run = binding(Mpirun::ranks(1), "core");
    run.args(train(&chosen, &["--set", "launch.threads=1"])).timeout(SOON).run().succeeded();
    assert_eq!(warnings(&chosen), [""; 0]);
}
