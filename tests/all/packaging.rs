//! The recipes of `packaging/` name the versions that `Cargo.toml` and `scripts/setup` have, and are what their tools can parse.

use std::path::{Path, PathBuf};
use std::process::Command;

fn read(name: impl AsRef<Path>) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What stands between `before` and `after` in `text`, the first time.
fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let (_, rest) = text.split_once(before).unwrap_or_else(|| panic!("no {before} in\n{text}"));
    rest.split_once(after).unwrap_or_else(|| panic!("no {after} behind {before}")).0
}

/// Files below `folder` whose names end in `ending`, with paths from the root of the repository.
fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap() {
        let name = format!("{folder}/{}", entry.as_ref().unwrap().file_name().display());
        if entry.unwrap().path().is_dir() {
            found.extend(files(&name, ending));
        } else if name.ends_with(ending) {
            found.push(name.into());
        }
    }
    found
}

#[test]
fn recipes_name_the_versions_that_hpml_has_and_needs() {
    let (cargo, setup) = (read("Cargo.toml"), read("scripts/setup"));
    let version = between(&cargo, "\nversion = \"", "\"");
    let rust = between(&cargo, "\nrust-version = \"", "\"");
    let torch = between(&setup, "\nreadonly TORCH=", "\n");

    let spack = read("packaging/spack/spack_repo/hpml/packages/hpml/package.py");
    for words in [format!("\"rust@{rust}:\""), format!("\"libtorch@{torch}\"")] {
        assert!(spack.contains(&words), "hpml/package.py: no {words}");
    }
    let libtorch = "packaging/spack/spack_repo/hpml/packages/libtorch";
    assert_eq!(between(&read(format!("{libtorch}/package.py")), "version(\"", "\")"), format!("{torch}.0"));
    for wheels in ["cpu.txt", "cuda.txt"] {
        assert_eq!(between(&read(format!("{libtorch}/{wheels}")), "torch==", " "), format!("{torch}.0"), "{wheels}");
    }

    let easyconfig = read(format!("packaging/easybuild/hpml-{version}-gompi-2025b.eb"));
    assert_eq!(between(&easyconfig, "\nversion = '", "'"), version);
    assert_eq!(between(&easyconfig, "('libtorch', '", "'"), format!("{torch}.0"));
    let minor = |version: &str| version.split('.').nth(1).unwrap().parse::<usize>().unwrap();
    assert!(minor(between(&easyconfig, "('Rust', '", "'")) >= minor(rust));
    for suffix in ["", "-CUDA-13.0"] {
        let easyconfig = read(format!("packaging/easybuild/libtorch-{torch}.0{suffix}.eb"));
        assert_eq!(between(&easyconfig, "('torch', '", "'"), format!("{torch}.0"));
    }
    read(format!("packaging/modulefiles/hpml/{version}.lua"));
}

#[test]
fn recipes_are_python() {
    let mut recipes = files("packaging", ".py");
    recipes.extend(files("packaging", ".eb"));
    assert!(recipes.len() >= 5, "{recipes:?}");
    let parse = "import ast, sys\nfor name in sys.argv[1:]: ast.parse(open(name).read(), name)";
    let mut python = Command::new("python3");
    python.args(["-c", parse]).args(&recipes).current_dir(env!("CARGO_MANIFEST_DIR"));
    let Ok(output) = python.output() else {
        eprintln!("left out: no python3");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
