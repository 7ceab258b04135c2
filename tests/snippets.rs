//! The documentation's Python snippets, run unchanged on files of the kind that they name.
//!
//! `HPML_PYTHON=/path/to/python cargo test --release --test snippets`; without that variable it says so and passes.

mod common;

use std::path::Path;
use std::process::Command;

use common::{Mpirun, folder};

/// Fenced Python blocks of a Markdown file.
fn python_blocks(markdown: &str) -> Vec<&str> {
    markdown.split("```python\n").skip(1).filter_map(|rest| rest.split("\n```").next()).collect()
}

#[test]
fn the_python_of_the_documentation_runs() {
    let Some(python) = std::env::var_os("HPML_PYTHON") else {
        eprintln!("left out: set HPML_PYTHON to a Python with h5py, xarray, h5netcdf and pandas");
        return;
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = folder();
    let results = folder.path().join("results");
    std::fs::create_dir(&results).unwrap();
    std::fs::copy(root.join("results/scaling.h5"), results.join("scaling.h5")).unwrap();
    let net = results.join("net.h5");
    let train = Mpirun::ranks(2).args([Path::new("train"), Path::new("--out"), &net]);
    train.args(["--set", "data.train_samples=200", "--set", "data.test_samples=50"]).run().succeeded();

    let mut blocks = 0;
    for file in ["README.md", "results/README.md"] {
        let markdown = std::fs::read_to_string(root.join(file)).unwrap();
        for block in python_blocks(&markdown) {
            let output = Command::new(&python).arg("-c").arg(block).current_dir(folder.path()).output().unwrap();
            assert!(output.status.success(), "{file}:\n{block}\n{}", String::from_utf8_lossy(&output.stderr));
            blocks += 1;
        }
    }
    assert!(blocks >= 4, "{blocks} blocks");
}
