//! A packed hpml runs with nothing of this machine's Rust, MPI and HDF5.

mod common;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{Mpirun, column, folder, text};

/// A shell command in an environment that has only libtorch.
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

    // Elsewhere and under another name than where it was made.
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
    let refused = bare("moved/run two train", folder.path()).run();
    assert!(!refused.status.success() && refused.stderr.contains("usage"), "{}", refused.stderr);
}
