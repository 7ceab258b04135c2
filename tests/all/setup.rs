//! scripts/setup checks Rust first: an old one is reported before anything is installed or downloaded. A libtorch that hpml cannot
//! be built with is refused by its version, or replaced where it is hpml's own. What a system lacks that has no apt-get, and a system
//! that is not Linux, is one line, before anything is downloaded.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{Finished, Mpirun, folder, text};

/// Writes a program `name` that runs the shell `script`.
fn program(folder: &Path, name: &str, script: &str) {
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Copies of the script and of what it reads, in a new folder `checkout`.
fn checkout(folder: &Path) -> PathBuf {
    let checkout = folder.join("checkout");
    fs::create_dir_all(checkout.join("scripts")).unwrap();
    for name in ["scripts/setup", "Cargo.toml"] {
        fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join(name), checkout.join(name)).unwrap();
    }
    checkout
}

/// Version of libtorch that the script of `checkout` wants.
fn wanted(checkout: &Path) -> String {
    let script = fs::read_to_string(checkout.join("scripts/setup")).unwrap();
    script.lines().find_map(|line| line.strip_prefix("readonly TORCH=")).unwrap().to_owned()
}

/// Prepares the script of `checkout` with nothing of this user's environment, and `tools` first in the path.
fn setup(checkout: &Path, tools: &Path) -> Command {
    let path = format!("{}:{}", text(tools), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new(checkout.join("scripts/setup"));
    command.env("PATH", path).env("HOME", checkout);
    for variable in ["LIBTORCH", "LIBTORCH_USE_PYTORCH", "LIBTORCH_BYPASS_VERSION_CHECK"] {
        command.env_remove(variable);
    }
    command
}

/// Makes a folder that looks like libtorch `version`.
fn libtorch(folder: &Path, version: &str) {
    let headers = folder.join("include/torch/headeronly");
    fs::create_dir_all(&headers).unwrap();
    fs::create_dir_all(folder.join("lib")).unwrap();
    fs::write(folder.join("lib/libtorch_cpu.so"), "").unwrap();
    let parts = ["MAJOR", "MINOR", "PATCH"].iter().zip(version.split('.'));
    let lines = parts.map(|(part, number)| format!("#define TORCH_VERSION_{part} {number}\n"));
    fs::write(headers.join("version.h"), lines.collect::<String>()).unwrap();
}

#[test]
fn a_cargo_that_cannot_build_is_refused_before_anything_is_done() {
    let needed = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let needed = needed.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap().trim_matches('"');
    let (major, minor) = needed.split_once('.').unwrap();
    let minor: usize = minor.parse().unwrap();
    let folder = folder();
    let checkout = checkout(folder.path());
    let (tools, rustup) = (folder.path().join("tools"), checkout.join(".cargo/bin"));
    for folder in [&tools, &rustup] {
        fs::create_dir_all(folder).unwrap();
    }
    let setup = |checkout: &Path, tools: &Path| -> Finished {
        let mut command = setup(checkout, tools);
        command.env("LIBTORCH", "/opt/libtorch");
        Mpirun::command(command).run()
    };
    let touched = folder.path().join("touched");
    for name in ["apt-get", "sudo", "python3"] {
        program(&tools, name, &format!("touch {}; exit 1", text(&touched)));
    }
    let says = |version: &str| format!("echo 'cargo {version} (0123456789 2026-01-01)'");
    let written = checkout.join(".hpml-env");
    for old in [format!("{major}.{}.9", minor - 1), "1.9.0".into()] {
        program(&tools, "cargo", &says(&old));
        let refused = setup(&checkout, &tools);
        assert!(!refused.status.success() && !written.exists() && !touched.exists(), "{}", refused.stderr);
        let [message] = refused.stderr.lines().collect::<Vec<_>>()[..] else { panic!("{}", refused.stderr) };
        for words in [&format!("Rust {needed} or newer"), &old, "rustup", text(&tools)] {
            assert!(message.contains(words), "{words}: {message}");
        }
    }
    // A rustup without a toolchain.
    program(&tools, "cargo", "exit 1");
    assert!(setup(&checkout, &tools).stderr.contains("cargo --version fails"));

    // New enough, and new enough beside an old one.
    for new in [format!("{needed}.0"), format!("{major}.{}.0-nightly", minor + 100)] {
        program(&tools, "cargo", &says(&new));
        let accepted = setup(&checkout, &tools);
        assert!(!accepted.stderr.contains("hpml needs Rust"), "{}", accepted.stderr);
    }
    program(&tools, "cargo", &says("1.9.0"));
    program(&rustup, "cargo", &says(&format!("{needed}.1")));
    if setup(&checkout, &tools).status.success() {
        assert!(fs::read_to_string(&written).unwrap().contains(".cargo/bin"));
    }
}

#[test]
fn the_crates_that_hold_mpis_header_are_cleaned_once_when_mpi_has_changed() {
    let folder = folder();
    let (checkout, tools) = (checkout(folder.path()), folder.path().join("tools"));
    for folder in [&tools, &checkout.join("target/release/build/mpi-sys-0123456789abcdef")] {
        fs::create_dir_all(folder).unwrap();
    }
    let private = folder.path().join("libtorch");
    libtorch(&private, &format!("{}.0", wanted(&checkout)));
    let cleaned = folder.path().join("cleaned");
    let version = "[ \"$1\" != --version ] || { echo 'cargo 999.0.0'; exit; }";
    program(&tools, "cargo", &format!("{version}\necho \"$*\" >>{}", text(&cleaned)));
    let mpicc = |folder: &str| program(&tools, "mpicc", &format!("echo cc -I{folder}/include -L{folder}/lib -lmpi"));
    let cleanings = || fs::read_to_string(&cleaned).unwrap_or_default().lines().count();
    mpicc("/opt/one");
    let setup = || {
        let mut command = setup(&checkout, &tools);
        command.env("LIBTORCH", &private);
        Mpirun::command(command).run()
    };
    let first = setup();
    if !first.status.success() {
        eprintln!("left out: a dependency is missing here: {}", first.stderr);
        return;
    }
    // A build from before there was anything to remember, in both profiles; then one that is remembered.
    assert_eq!(cleanings(), 2, "{}", first.stderr);
    assert!(setup().status.success());
    assert_eq!(cleanings(), 2);
    mpicc("/opt/two");
    let changed = setup();
    for words in ["/opt/one/include", "/opt/two/include", "built anew"] {
        assert!(changed.stderr.contains(words), "{words}: {}", changed.stderr);
    }
    assert_eq!(cleanings(), 4);
    let commands = fs::read_to_string(&cleaned).unwrap();
    for crates in ["-p mpi ", "-p mpi-sys", "-p build-probe-mpi"] {
        assert!(commands.contains(crates), "{crates}: {commands}");
    }
}

/// A checkout whose machine has all but libtorch, and a python3 without torch, whose pip unpacks `wheel` and leaves `called` behind.
struct Machine {
    folder: tempfile::TempDir,
    wanted: String,
}

impl Machine {
    fn new() -> Machine {
        let folder = folder();
        let wanted = wanted(&checkout(folder.path()));
        let tools = folder.path().join("tools");
        fs::create_dir(&tools).unwrap();
        program(&tools, "cargo", "echo 'cargo 1.999.0 (0123456789 2026-01-01)'");
        program(&tools, "apt-get", &format!("touch {}; exit 1", text(&folder.path().join("called"))));
        for name in ["c++", "mpicc", "mpirun"] {
            program(&tools, name, "echo none");
        }
        let machine = Machine { folder, wanted };
        machine.python(None);
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Gives python3 this version of torch.
    fn python(&self, torch: Option<&str>) {
        let version = torch.map_or("exit 1".into(), |version| format!("echo {version}"));
        let unpack = format!(
            "echo \"$*\" >>{}; for target; do [ \"$before\" != --target ] || break; before=$target; done; mkdir \"$target\" && cp -r {} \"$target/torch\"",
            text(&self.path("called")),
            text(&self.path("wheel"))
        );
        program(
            &self.path("tools"),
            "python3",
            &format!("case $* in *metadata*) {version} ;; *install*) {unpack} ;; esac"),
        );
    }

    /// Takes programs away, those of the machine that the test runs on too.
    fn remove(&self, names: &[&str]) {
        let rest = self.path("rest");
        let _ = fs::remove_dir_all(&rest);
        fs::create_dir(&rest).unwrap();
        for folder in std::env::split_paths(&std::env::var_os("PATH").unwrap()).filter(|folder| folder.is_dir()) {
            for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
                if !names.contains(&text(Path::new(&entry.file_name()))) {
                    // The first of a name is the one that a shell finds.
                    let _ = symlink(entry.path(), rest.join(entry.file_name()));
                }
            }
        }
        for name in names {
            let _ = fs::remove_file(self.path("tools").join(name));
        }
    }

    fn run_with(&self, options: &[&str], variables: &[(&str, &str)]) -> Finished {
        let mut command = setup(&self.path("checkout"), &self.path("tools"));
        if self.path("rest").exists() {
            command.env("PATH", format!("{}:{}", text(&self.path("tools")), text(&self.path("rest"))));
        }
        command.env("HDF5_DIR", "/usr").env("LIBCLANG_PATH", "/usr/lib");
        command.args(options).envs(variables.iter().copied());
        Mpirun::command(command).run()
    }

    fn run(&self, variables: &[(&str, &str)]) -> Finished {
        self.run_with(&[], variables)
    }

    /// Holds a run to have ended with one line that has these words, having installed, downloaded and written nothing.
    fn refuses(&self, refused: &Finished, words: &[&str]) {
        assert!(!refused.status.success() && self.written().is_empty(), "{}", refused.stderr);
        let [message] = refused.stderr.lines().collect::<Vec<_>>()[..] else { panic!("{}", refused.stderr) };
        for words in words {
            assert!(message.contains(words), "{words}: {message}");
        }
        assert!(!self.path("called").exists() && !self.path("checkout/.libtorch").exists());
    }

    /// Arguments of the last call of pip.
    fn called(&self) -> String {
        fs::read_to_string(self.path("called")).unwrap().lines().last().unwrap().to_owned()
    }

    fn written(&self) -> String {
        fs::read_to_string(self.path("checkout/.hpml-env")).unwrap_or_default()
    }
}

#[test]
fn a_libtorch_that_hpml_cannot_be_built_with_is_refused_by_its_version() {
    let machine = Machine::new();
    let elsewhere = machine.path("libtorch");
    let named = ("LIBTORCH", text(&elsewhere));
    let python = ("LIBTORCH_USE_PYTORCH", "1");
    let (right, patch) = (format!("{}.0", machine.wanted), format!("{}.7", machine.wanted));
    for other in ["2.11.0", "2.15.1", &format!("{}0.0", machine.wanted)] {
        libtorch(&elsewhere, other);
        machine.python(Some(&format!("{other}+cu130")));
        for variable in [named, python] {
            let refused = machine.run(&[variable]);
            assert!(!refused.status.success() && machine.written().is_empty(), "{}", refused.stderr);
            let message = refused.stderr.lines().last().unwrap();
            for words in [variable.0, other, &format!("libtorch {} only", machine.wanted), "unset"] {
                assert!(message.contains(words), "{words}: {message}");
            }
        }
    }
    let nothing = machine.run(&[("LIBTORCH", "/nonexistent")]);
    assert!(!nothing.status.success() && nothing.stderr.contains("lib/libtorch_cpu.so"), "{}", nothing.stderr);
    assert!(!machine.path("called").exists());

    for version in [&right, &patch] {
        libtorch(&elsewhere, version);
        machine.run(&[named]).succeeded();
        assert!(machine.written().contains(&format!("LIBTORCH={}\n", text(&elsewhere))), "{}", machine.written());
        // The torch of python3 is taken with LIBTORCH_USE_PYTORCH and without.
        machine.python(Some(version));
        for variables in [&[python][..], &[]] {
            machine.run(variables).succeeded();
            let written = machine.written();
            assert!(written.contains("LIBTORCH_USE_PYTORCH=1"), "{written}");
            assert_eq!(written.contains("LIBTORCH_BYPASS_VERSION_CHECK"), *version == patch, "{written}");
        }
    }
    assert!(!machine.path("called").exists() && !machine.path("checkout/.libtorch").exists());
}

#[test]
fn a_private_libtorch_of_another_version_is_replaced() {
    let machine = Machine::new();
    let private = machine.path("checkout/.libtorch/torch");
    let header = private.join("include/torch/headeronly/version.h");
    libtorch(&private, "2.11.0");
    let old = fs::read_to_string(&header).unwrap();

    // There is no wheel: what is there stays.
    let failed = machine.run(&[]);
    assert!(!failed.status.success() && failed.stderr.contains("not downloaded"), "{}", failed.stderr);
    assert!(machine.written().is_empty() && fs::read_to_string(&header).unwrap() == old);

    libtorch(&machine.path("wheel"), &format!("{}.0", machine.wanted));
    let replaced = machine.run(&[]).succeeded();
    assert!(replaced.stderr.contains("replaces libtorch 2.11.0"), "{}", replaced.stderr);
    assert!(machine.written().contains(".libtorch/torch") && fs::read_to_string(&header).unwrap() != old);

    // One of that version is kept, and pip is not called.
    fs::remove_file(machine.path("called")).unwrap();
    let kept = machine.run(&[]).succeeded();
    assert!(!kept.stderr.contains("download") && !machine.path("called").exists(), "{}", kept.stderr);
}

#[test]
fn an_option_that_setup_does_not_have_is_refused_and_help_names_those_it_has() {
    let machine = Machine::new();
    machine.refuses(&machine.run_with(&["--build"], &[]), &["--build:", "--build-only", "--cuda", "--cpu", "--help"]);
    machine.refuses(&machine.run_with(&["--cuda", "--cpu"], &[]), &["--cuda and --cpu"]);
    let help = machine.run_with(&["--help"], &[]).succeeded();
    for words in ["--build-only ", "--cuda ", "--cpu ", "libtorch", "Rust"] {
        assert!(help.stdout.contains(words), "{words}: {}", help.stdout);
    }
    assert!(help.stderr.is_empty() && !help.stdout.contains("set -e") && machine.written().is_empty());
}

#[test]
fn a_system_that_is_not_linux_is_refused_first() {
    let machine = Machine::new();
    program(&machine.path("tools"), "uname", "echo Darwin");
    program(&machine.path("tools"), "cargo", "exit 1");
    machine.refuses(&machine.run(&[]), &["Linux only", "Darwin", "Debian 12", "packaging/apptainer"]);
}

#[test]
fn a_linux_without_apt_get_is_told_what_to_install() {
    let managers = ["apt-get", "dnf", "zypper"];
    let machine = Machine::new();
    machine.remove(&[&managers[..], &["c++", "mpicc", "mpirun"]].concat());
    let things = ["C++ compiler", "mpicc and mpirun", "modules", "apt-get alone"];
    machine.refuses(&machine.run(&[]), &things);
    for (manager, mpi) in [("dnf", "openmpi-devel"), ("zypper", "openmpi4-devel")] {
        program(&machine.path("tools"), manager, &format!("touch {}", text(&machine.path("called"))));
        let refused = machine.run(&[("HDF5_DIR", "")]);
        machine.refuses(&refused, &[&things[..], &[manager, "install gcc-c++ make", mpi]].concat());
        fs::remove_file(machine.path("tools").join(manager)).unwrap();
    }

    // With nothing missing it needs no apt-get; libtorch's wheel needs pip.
    for name in ["c++", "mpicc", "mpirun"] {
        program(&machine.path("tools"), name, "echo none");
    }
    program(&machine.path("tools"), "python3", "exit 1");
    machine.refuses(&machine.run(&[]), &["missing: pip for python3", "LIBTORCH"]);
    libtorch(&machine.path("libtorch"), &format!("{}.0", machine.wanted));
    machine.run(&[("LIBTORCH", text(&machine.path("libtorch")))]).succeeded();
}

#[test]
fn a_build_node_needs_no_launcher_and_says_what_a_compute_node_needs() {
    let machine = Machine::new();
    machine.remove(&["mpirun", "apt-get"]);
    libtorch(&machine.path("libtorch"), &format!("{}.0", machine.wanted));
    let elsewhere = [("LIBTORCH", text(&machine.path("libtorch")).to_owned())];
    let variables: Vec<(&str, &str)> = elsewhere.iter().map(|(name, value)| (*name, value.as_str())).collect();
    machine.refuses(&machine.run(&variables), &["launcher mpirun", "--build-only"]);
    let built = machine.run_with(&["--build-only"], &variables).succeeded();
    let needs = ["cargo build --release", "release/hpml", &elsewhere[0].1, "mpicc", "srun", "no GPU", "--cuda"];
    for words in needs {
        assert!(built.stderr.contains(words), "{words}: {}", built.stderr);
    }
    assert!(machine.written().contains("LIBTORCH="));
    fs::write(machine.path("libtorch/lib/libtorch_cuda.so"), "").unwrap();
    let built = machine.run_with(&["--build-only"], &variables).succeeded();
    assert!(built.stderr.contains("NVIDIA's driver") && !built.stderr.contains("no GPU"), "{}", built.stderr);
}

#[test]
fn cuda_is_taken_without_a_driver_where_it_is_wanted() {
    let machine = Machine::new();
    let private = machine.path("checkout/.libtorch");
    libtorch(&machine.path("wheel"), &format!("{}.0", machine.wanted));
    fs::write(machine.path("wheel/lib/libtorch_cuda.so"), "").unwrap();

    // First without cuDNN, then with it.
    machine.run_with(&["--cpu"], &[]).succeeded();
    assert!(machine.called().contains("--no-deps"), "{}", machine.called());
    fs::create_dir_all(private.join("nvidia/cu13/lib")).unwrap();
    let replaced = machine.run_with(&["--cuda"], &[]).succeeded();
    assert!(replaced.stderr.contains("CUDA, cuDNN") && replaced.stderr.contains("replaces"), "{}", replaced.stderr);
    let called = machine.called();
    assert!(called.contains(&format!("torch=={}.0", machine.wanted)) && !called.contains("--no-deps"), "{called}");

    // One with cuDNN beside it is kept, by either option.
    fs::create_dir_all(private.join("nvidia/cudnn/lib")).unwrap();
    fs::write(private.join("nvidia/cudnn/lib/libcudnn.so.9"), "").unwrap();
    fs::remove_file(machine.path("called")).unwrap();
    for option in ["--cuda", "--cpu"] {
        machine.run_with(&[option], &[]).succeeded();
    }
    assert!(!machine.path("called").exists());
    fs::remove_dir_all(&private).unwrap();
    fs::remove_file(machine.path("checkout/.hpml-env")).unwrap();

    // What is named and cannot use a GPU is refused; python3's own is passed by.
    libtorch(&machine.path("libtorch"), &format!("{}.0", machine.wanted));
    let refused = |variable: (&str, &str)| {
        let run = machine.run_with(&["--cuda"], &[variable]);
        assert!(!run.status.success() && machine.written().is_empty(), "{}", run.stderr);
        assert!(run.stderr.lines().last().unwrap().contains("CUDA"), "{}", run.stderr);
    };
    refused(("LIBTORCH", text(&machine.path("libtorch"))));
    machine.python(Some(&format!("{}.0+cpu", machine.wanted)));
    refused(("LIBTORCH_USE_PYTORCH", "1"));
    assert!(!machine.path("called").exists());
    machine.run_with(&["--cuda"], &[]).succeeded();
    assert!(machine.written().contains(".libtorch/torch") && !machine.called().contains("--no-deps"));
}

#[test]
fn a_private_libtorch_without_cudas_libraries_is_linked_as_the_cpus_half() {
    let folder = folder();
    let (checkout, tools) = (checkout(folder.path()), folder.path().join("tools"));
    fs::create_dir_all(&tools).unwrap();
    program(&tools, "cargo", "[ \"$1\" != --version ] || echo 'cargo 999.0.0'");
    let private = checkout.join(".libtorch/torch");
    libtorch(&private, &format!("{}.0", wanted(&checkout)));
    let (library, elf) = (private.join("lib/libtorch.so"), b"\x7fELF, of both halves");
    fs::write(&library, elf).unwrap();
    fs::write(private.join("lib/libtorch_cuda.so"), "").unwrap();
    let cudnn = checkout.join(".libtorch/nvidia/cu13/lib/libcudnn.so.9");
    fs::create_dir_all(cudnn.parent().unwrap()).unwrap();
    // With cuDNN it is left as it is, and without, whatever happened before, it is one line.
    fs::write(&cudnn, "").unwrap();
    let run = || Mpirun::command(setup(&checkout, &tools)).run();
    let first = run();
    if !first.status.success() {
        eprintln!("left out: a dependency is missing here: {}", first.stderr);
        return;
    }
    assert_eq!(fs::read(&library).unwrap(), elf);
    fs::remove_file(&cudnn).unwrap();
    for _ in 0..2 {
        run().succeeded();
        assert_eq!(fs::read_to_string(&library).unwrap(), "INPUT(-ltorch_cpu)\n");
    }
}
