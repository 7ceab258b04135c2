//! What the documentation shows, held against the program and the repository: its Python runs, its commands are ones that hpml
//! takes, its configurations are right, its links lead somewhere.
//!
//! The Python needs `HPML_PYTHON=/path/to/python` (h5py, xarray, h5netcdf, pandas); without that variable it is left out, and
//! where that Python has no torch, what imports torch.

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Parser;
use clap::error::ErrorKind;
use hpml::cli::Cli;
use hpml::config::{Config, Reader};
use hpml::predict::Machine;

use crate::common::{Mpirun, folder};

/// A run file that is kept, of a sweep.
const SWEEP: &str = "results/2026-11-25-2xZen3-scaling/scaling.h5";

/// Appended to what loads a state: it is the file's, or within half a step of int8 of it.
const LOADED: &str = r#"
with h5py.File("runs/net.h5") as run, h5py.File("runs/net-int8.h5") as quantized:
    assert len(model.state_dict()) == len(run["checkpoint"]) > 0
    for name, tensor in model.state_dict().items():
        saved = run["checkpoint"][name][()]
        assert tensor.dtype == torch.float32 and abs(saved).max() < 5, name
        step = quantized["checkpoint"][name].attrs["scale"].max() if "floats" in globals() else 0
        assert abs(tensor.numpy() - saved).max() <= step / 2 * (1 + 1e-5), name
"#;

/// Folders of the repository that commands name files of.
const OURS: [&str; 6] = ["configs/", "scripts/", "slurm/", "tests/", "benches/", "packaging/"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Path and text of the Markdown files of these folders, sorted.
fn documents(folders: &[&str]) -> Vec<(PathBuf, String)> {
    let files = folders.iter().flat_map(|folder| std::fs::read_dir(root().join(folder)).unwrap());
    let mut paths: Vec<PathBuf> = files.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

/// The fenced blocks of a Markdown text in this language.
fn blocks<'a>(markdown: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    let mut blocks = Vec::new();
    let mut rest = markdown;
    while let Some((_, after)) = rest.split_once(&fence) {
        let (block, next) = after.split_once("```").expect("a block ends");
        blocks.push(block);
        rest = next;
    }
    blocks
}

/// The words of a shell's line up to a comment, quotes taken off; `|`, `>`, `;` and `&&` are words of their own.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quote) = (String::new(), None);
    for character in line.chars().chain([' ']) {
        match (quote, character) {
            (Some(open), _) if character == open => quote = None,
            (Some(_), _) => word.push(character),
            (None, '\'' | '"') => quote = Some(character),
            (None, '#') if word.is_empty() => break,
            (None, ' ' | ';') => {
                words.extend((!word.is_empty()).then(|| std::mem::take(&mut word)));
                words.extend((character == ';').then(|| ";".to_owned()));
            }
            (None, _) => word.push(character),
        }
    }
    words
}

/// The arguments of each hpml that a line starts.
fn calls(line: &str) -> Vec<Vec<String>> {
    let words = words(line);
    let ends = |word: &str| ["|", ">", ";", "&&"].contains(&word);
    let arguments = |from: usize| words[from..].iter().take_while(|word| !ends(word)).cloned().collect();
    let starts = words.iter().enumerate().filter_map(|(index, word)| match word.as_str() {
        "hpml" | "scripts/run" => Some(index + 1),
        "DIR/run" => Some(index + 2), // of the pack: RUN RANKS ARGS...
        _ => None,
    });
    starts.map(arguments).collect()
}

/// Holds the configuration of a call to be one that its command takes.
fn check_configuration(arguments: &[String], place: &str) {
    let reader = match arguments.first().map(String::as_str) {
        Some("train") => Reader::Train,
        Some("sweep") => Reader::Sweep,
        Some("study") => Reader::Study,
        _ => return,
    };
    let pairs = arguments.windows(2).filter(|pair| pair[0] == "--set");
    let set: Vec<String> = pairs.map(|pair| pair[1].clone()).collect();
    let file = arguments.get(1).filter(|word| word.starts_with("configs/")).map(|file| root().join(file));
    let config = Config::load(file.as_deref(), &set).unwrap_or_else(|error| panic!("{place}: {error}"));
    reader.refuse_unread(&set, &config).unwrap_or_else(|error| panic!("{place}: {error}"));
}

#[test]
fn the_commands_of_the_documentation_are_hpmls() {
    let mut commands = 0;
    for (path, markdown) in documents(&["", "docs", "slurm"]) {
        for line in blocks(&markdown, "sh").into_iter().flat_map(str::lines) {
            let place = format!("{}: {line}", path.display());
            for arguments in calls(line) {
                match Cli::try_parse_from(std::iter::once("hpml").chain(arguments.iter().map(String::as_str))) {
                    Err(error) if error.kind() != ErrorKind::DisplayHelp => panic!("{place}\n{error}"),
                    _ => check_configuration(&arguments, &place),
                }
                commands += 1;
            }
            for word in words(line) {
                let file = word.strip_prefix("DIR/").unwrap_or(&word);
                let is_ours = OURS.iter().any(|folder| file.starts_with(folder));
                assert!(!is_ours || root().join(file).exists(), "{place}: no {file}");
            }
        }
    }
    assert!(commands >= 40, "{commands} commands");
}

#[test]
fn the_configurations_of_the_documentation_are_right() {
    let folder = folder();
    let file = folder.path().join("shown.toml");
    for (path, markdown) in documents(&["", "docs", "slurm"]) {
        for block in blocks(&markdown, "toml") {
            std::fs::write(&file, block).unwrap();
            let read = match block.contains("[[levels]]") {
                true => Machine::load(&file).map(drop),
                false => Config::load(Some(&file), &[]).map(drop),
            };
            read.unwrap_or_else(|error| panic!("{}: {error}\n{block}", path.display()));
        }
    }
}

#[test]
fn the_links_of_the_documentation_lead_to_files_of_the_repository() {
    let entries = std::fs::read_dir(root().join("results")).unwrap().map(|entry| entry.unwrap());
    let measurements = entries.filter(|entry| entry.path().is_dir()).map(|entry| entry.file_name());
    let measurements: Vec<String> = measurements.map(|name| format!("results/{}", name.display())).collect();
    let mut folders = vec!["", "docs", "slurm", "results", "findings"];
    folders.extend(measurements.iter().map(String::as_str));
    for (path, markdown) in documents(&folders) {
        for after in markdown.split("](").skip(1) {
            let target = after.split([')', '#']).next().unwrap_or_default();
            let elsewhere = target.is_empty() || target.contains("://");
            assert!(elsewhere || path.with_file_name(target).exists(), "{}: no {target}", path.display());
        }
    }
    let summary = std::fs::read_to_string(root().join("docs/SUMMARY.md")).unwrap();
    for (path, _) in documents(&["docs"]) {
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(name == "SUMMARY.md" || summary.contains(&format!("({name})")), "docs/SUMMARY.md: no {name}");
    }
}

#[test]
fn the_python_of_the_documentation_runs() {
    let Some(python) = std::env::var_os("HPML_PYTHON") else {
        eprintln!("left out: set HPML_PYTHON to a Python with h5py, xarray, h5netcdf and pandas");
        return;
    };
    let folder = folder();
    let runs = folder.path().join("runs");
    std::fs::create_dir(&runs).unwrap();
    std::fs::copy(root().join(SWEEP), runs.join("scaling.h5")).unwrap();
    let net = runs.join("net.h5");
    let train = Mpirun::ranks(2).args([Path::new("train"), Path::new("--out"), &net]);
    let train = train.args(["--set", "data.train_samples=200", "--set", "data.test_samples=50"]);
    train.args(["--set", &format!("metrics.log={}", runs.join("my.jsonl").display())]).run().succeeded();
    Mpirun::alone().args(["quantize", net.to_str().unwrap()]).run().succeeded();
    let json = Mpirun::alone().args(["report", net.to_str().unwrap(), "--json"]).run().succeeded().stdout;
    std::fs::write(runs.join("net.json"), json).unwrap();
    let allreduce = runs.join("allreduce.h5");
    let args = [Path::new("allreduce"), Path::new("--max"), Path::new("256K"), Path::new("--out"), &allreduce];
    Mpirun::ranks(2).args(args).run().succeeded();

    let torch = Command::new(&python).args(["-c", "import torch"]).output().unwrap().status.success();
    let mut count = 0;
    for (path, markdown) in documents(&["", "docs"]) {
        for block in blocks(&markdown, "python") {
            if block.contains("torch") && !torch {
                eprintln!("{}: left out: HPML_PYTHON has no torch\n{block}", path.display());
                continue;
            }
            let shown = if block.contains("load_state_dict") { format!("{block}{LOADED}") } else { block.to_owned() };
            let mut run = Command::new(&python);
            run.args(["-W", "ignore", "-c", &shown]).current_dir(folder.path());
            let output = run.env("PYTHONPATH", root().join("scripts")).output().unwrap();
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}:\n{block}\n{error}", path.display());
            count += 1;
        }
    }
    assert!(count >= 5, "{count} blocks");
}
