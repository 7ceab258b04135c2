//! A packed hpml runs without this machine's Rust, MPI and HDF5.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::common::{Mpirun, column, folder, text};

/// Prepares a shell command in an environment that has only libtorch.
fn bare(script: &str, folder: &Path) -> Mpirun {
    let mut command = Command::new("bash");
    command.args(["-c", script]).current_dir(folder).env_clear();
    for name in ["PATH", "LIBTORCH", "PYTHON"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    Mpirun::command(command).timeout(Duration::from_secs(120))
}

#[test]
fn a_pack_trains_and_reports_with_its_own_mpi_and_hdf5() {
    if !Command::new("orterun").arg("--version").output().is_ok_and(|output| output.status.success()) {
        eprintln!("a_pack_trains_and_reports_with_its_own_mpi_and_hdf5: left out: only Open MPI 4 can be packed");
        return;
    }
    let folder = folder();
    let pack = folder.path().join("pack");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/pack");
    let mut command = Command::new(&script);
    command.arg(&pack).env("HPML_PACK_BUILT", "1");
    Mpirun::command(command).run().succeeded();

    // With man pages and completions.
    for path in ["share/man/man1/hpml-train.1", "share/bash-completion/completions/hpml"] {
        assert!(pack.join(path).exists(), "{path}");
    }

    // With the licences of all that it holds.
    let notices = std::fs::read_to_string(pack.join("THIRD-PARTY.md")).unwrap();
    let (compiled, libraries) = notices.split_once("## Libraries").expect("two tables");
    for part in ["libtorch's headers", "Rust's standard library", "| tch-", "| mpi-", "| hdf5-metno-"] {
        assert!(compiled.contains(part), "{part} is not in\n{compiled}");
    }
    for part in ["mpi", "hdf5"] {
        assert!(libraries.contains(part), "{part} is not in\n{libraries}");
    }
    let links: Vec<&str> = notices.split("](").skip(1).filter_map(|text| text.split(')').next()).collect();
    for link in links {
        assert!(pack.join(link).exists(), "{link} is not in the pack\n{notices}");
    }

    // In another place and under another name than where it was made.
    let moved = folder.path().join("moved");
    std::fs::rename(&pack, &moved).unwrap();
    let run = "moved/run 2 train moved/configs/quickstart.toml --out run.h5 --set train.max_steps=20 --set data.test_samples=100";
    bare(run, folder.path()).run().succeeded();
    assert_eq!(*column(&folder.path().join("run.h5"), "steps/global_step").last().unwrap(), 19.0);
    let libraries = bare("source moved/env.sh && ldd moved/bin/hpml", folder.path()).run().succeeded().stdout;
    for library in ["libmpi", "libhdf5"] {
        let line = libraries.lines().find(|line| line.contains(library)).expect(library);
        assert!(line.contains(text(&moved)), "{line}");
    }

    // A libtorch without PyTorch's folder of NVIDIA's libraries beside it; a folder that is none; a libtorch that lacks a part.
    let torch = folder.path().join("alone/torch");
    let libraries = torch.join("lib");
    std::fs::create_dir_all(&libraries).unwrap();
    let elsewhere =
        bare("source moved/env.sh && echo $hpml_torch/lib:$hpml_nvidia", folder.path()).run().succeeded().stdout;
    let folders = elsewhere.trim().split(':').filter(|folder| !folder.is_empty());
    let found = folders.flat_map(|folder| std::fs::read_dir(folder).unwrap()).flatten();
    for library in found.filter(|entry| entry.file_name().to_string_lossy().contains(".so")) {
        std::os::unix::fs::symlink(library.path(), libraries.join(library.file_name())).unwrap();
    }
    let few = "train --set train.max_steps=2 --set data.test_samples=20 --out";
    let with = |torch: &str, out: &str| {
        bare(&format!("export LIBTORCH={torch}; moved/run 1 {few} {out}"), folder.path()).run()
    };
    with(text(&torch), "alone.h5").succeeded();
    crate::common::assert_refused(
        &with("/no/such/torch", "none.h5"),
        &["/no/such/torch", "libtorch_cpu.so", "LIBTORCH"],
    );
    // Files that PyTorch's wheel has in that folder.
    let of_nvidia = std::fs::read_dir(&libraries).unwrap().flatten().map(|entry| entry.path());
    let runtime: Vec<_> = of_nvidia.filter(|path| text(path).contains("/libcudart.so")).collect();
    if !runtime.is_empty() {
        runtime.iter().for_each(|path| std::fs::remove_file(path).unwrap());
        let lacking = with(text(&torch), "lacking.h5");
        crate::common::assert_refused(&lacking, &["not found", "libcudart.so", text(&torch)]);
    }

    let refused = bare("moved/run two train", folder.path()).run();
    assert!(!refused.status.success() && refused.stderr.contains("usage"), "{}", refused.stderr);
}
