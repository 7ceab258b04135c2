//! scripts/setup checks Rust first: an old one is reported before anything is installed or downloaded.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use common::{Finished, Mpirun, folder, text};

/// Writes a program `name` that runs the shell `script`.
fn program(folder: &Path, name: &str, script: &str) {
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Copies the script to `checkout` and prepares it with nothing of this user's environment, and `tools` first in the path.
fn setup(checkout: &Path, tools: &Path) -> Finished {
    let path = format!("{}:{}", text(tools), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new(checkout.join("scripts/setup"));
    command.env("PATH", path).env("HOME", checkout).env("LIBTORCH", "/opt/libtorch");
    Mpirun::command(command).run()
}

#[test]
fn a_cargo_that_cannot_build_is_refused_before_anything_is_done() {
    let needed = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let needed = needed.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap().trim_matches('"');
    let (major, minor) = needed.split_once('.').unwrap();
    let minor: usize = minor.parse().unwrap();
    let folder = folder();
    let (checkout, tools, rustup) =
        (folder.path().join("checkout"), folder.path().join("tools"), folder.path().join("checkout/.cargo/bin"));
    for folder in [&checkout.join("scripts"), &tools, &rustup] {
        fs::create_dir_all(folder).unwrap();
    }
    for name in ["scripts/setup", "Cargo.toml"] {
        fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join(name), checkout.join(name)).unwrap();
    }
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
    let (checkout, tools) = (folder.path().join("checkout"), folder.path().join("tools"));
    let build = checkout.join("target/release/build/mpi-sys-0123456789abcdef");
    for folder in [&checkout.join("scripts"), &tools, &build] {
        fs::create_dir_all(folder).unwrap();
    }
    for name in ["scripts/setup", "Cargo.toml"] {
        fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join(name), checkout.join(name)).unwrap();
    }
    let cleaned = folder.path().join("cleaned");
    let version = "[ \"$1\" != --version ] || { echo 'cargo 999.0.0'; exit; }";
    program(&tools, "cargo", &format!("{version}\necho \"$*\" >>{}", text(&cleaned)));
    let mpicc = |folder: &str| program(&tools, "mpicc", &format!("echo cc -I{folder}/include -L{folder}/lib -lmpi"));
    let cleanings = || fs::read_to_string(&cleaned).unwrap_or_default().lines().count();
    mpicc("/opt/one");
    let first = setup(&checkout, &tools);
    if !first.status.success() {
        eprintln!("left out: a dependency is missing here: {}", first.stderr);
        return;
    }
    // A build from before there was anything to remember, in both profiles; then one that is remembered.
    assert_eq!(cleanings(), 2, "{}", first.stderr);
    assert!(setup(&checkout, &tools).status.success());
    assert_eq!(cleanings(), 2);
    mpicc("/opt/two");
    let changed = setup(&checkout, &tools);
    for words in ["/opt/one/include", "/opt/two/include", "built anew"] {
        assert!(changed.stderr.contains(words), "{words}: {}", changed.stderr);
    }
    assert_eq!(cleanings(), 4);
    let commands = fs::read_to_string(&cleaned).unwrap();
    for crates in ["-p mpi ", "-p mpi-sys", "-p build-probe-mpi"] {
        assert!(commands.contains(crates), "{crates}: {commands}");
    }
}
