//! `hpml workload`: the counts of a training are PyTorch's, and the command needs no ranks.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::common::{Mpirun, column, folder, text};
use hpml::config::{Config, Plan};
use hpml::data::Form;
use hpml::workload::Workload;

/// Made by `tests/fixtures/workload.py`: settings | form : parameters, operations forward, and in all, bytes kept per sample.
const EXPECTED: &str = include_str!("../fixtures/workload.txt");

fn plan(settings: &str, ranks: usize) -> Plan {
    let set: Vec<String> = settings.split_whitespace().map(str::to_owned).collect();
    Plan::new(Config::load(None, &set).unwrap(), ranks).unwrap()
}

/// `3x32x32 10`: images and classes; `64 1000`: length and vocabulary.
fn form(text: &str) -> Form {
    let (shape, outputs) = text.trim().split_once(' ').unwrap();
    let shape: Vec<usize> = shape.split('x').map(|extent| extent.parse().unwrap()).collect();
    let outputs = outputs.parse().unwrap();
    match shape[..] {
        [length] => Form::Tokens { length, vocabulary: outputs },
        [channels, height, width] => Form::Images { shape: [channels, height, width], classes: outputs },
        _ => panic!("{text}"),
    }
}

#[test]
fn parameters_operations_and_activations_are_pytorchs() {
    for line in EXPECTED.lines() {
        let (what, numbers) = line.split_once(" : ").unwrap();
        let (settings, of) = what.split_once(" | ").unwrap();
        let numbers: Vec<u64> = numbers.split(' ').map(|number| number.parse().unwrap()).collect();
        let workload = Workload::new(&plan(settings, 1), form(of)).unwrap();
        assert_eq!(workload.parameters() as u64, numbers[0], "{line}");
        let near = |found: u64, expected: u64, bound: f64| (found as f64 / expected as f64 - 1.0).abs() <= bound;
        for (found, expected) in workload.operations().unwrap().into_iter().zip(&numbers[1..3]) {
            assert!(near(found, *expected, 0.01), "{found}: {line}");
        }
        // PyTorch also keeps some values per channel.
        assert!(
            near(workload.activations().unwrap().kept, numbers[3], 0.01),
            "{}: {line}",
            workload.activations().unwrap().kept
        );
        assert!(workload.activations().unwrap().peak >= workload.activations().unwrap().kept);
    }
}

/// Operations that hpml counts in the file at `path`.
fn operations_of(path: &Path, form: Form) -> Option<[u64; 2]> {
    let settings = format!("model.name=file model.channels_last=false model.file={}", path.display());
    Workload::new(&plan(&settings, 1), form).unwrap().operations()
}

/// Form of the samples of a file of tests/fixtures/operations.py.
fn form_of(name: &str) -> Form {
    match name.starts_with("decoder") || name.starts_with("lstm") {
        true => Form::Tokens { length: 16, vocabulary: 29 },
        false => Form::CIFAR10,
    }
}

/// Holds hpml's count of each file that a line of `lines` names against PyTorch's; the files are in `folder` or beside the script.
fn hold(lines: &str, folder: &Path, fixtures: &Path) {
    for line in lines.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let own = folder.join(fields[0]);
        let path = if own.exists() { own } else { fixtures.join(fields[0]) };
        let found = operations_of(&path, form_of(fields[0]));
        for (number, expected) in fields[1..].iter().enumerate() {
            let found = found.map(|found| found[number]);
            match expected.parse::<u64>() {
                Ok(expected) => assert_eq!(found, Some(expected), "{line}"),
                Err(_) => assert_eq!(found.is_none(), fields[1] == "-", "{line}: {found:?}"),
            }
        }
    }
}

#[test]
fn operations_of_model_files_are_pytorchs() {
    let test = "operations_of_model_files_are_pytorchs";
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    hold(include_str!("../fixtures/operations.txt"), &fixtures, &fixtures);
    let Some(python) = std::env::var_os("HPML_PYTHON") else {
        eprintln!("{test}: PyTorch is left out: set HPML_PYTHON to a Python with torch");
        return;
    };
    let folder = folder();
    let mut made = Command::new(python);
    made.args(["-W", "ignore"]).arg(fixtures.join("operations.py")).arg(folder.path());
    let made = made.output().unwrap();
    let errors = String::from_utf8_lossy(&made.stderr);
    if errors.contains("No module named 'torch'") {
        eprintln!("{test}: PyTorch is left out: HPML_PYTHON has no torch");
        return;
    }
    assert!(made.status.success(), "{errors}");
    let lines = String::from_utf8(made.stdout).unwrap();
    hold(&lines, folder.path(), &fixtures);
    // hpml's own networks, by their list of nodes.
    for name in ["net", "resnet18"] {
        let own = Workload::new(&plan(&format!("model.name={name}"), 1), Form::CIFAR10).unwrap().operations();
        assert_eq!(own, operations_of(&folder.path().join(format!("{name}.pt")), Form::CIFAR10), "{name}");
    }
    unknown_operations_are_named(folder.path());
}

/// A training of lstm.pt in `folder`, whose fused kernel is not counted.
fn unknown_operations_are_named(folder: &Path) {
    let data = hdf5::File::create(folder.join("tokens.h5")).unwrap();
    let ids: Vec<i64> = (0..8 * 17).map(|index| index * 7 % 29).collect();
    for name in ["images", "test_images"] {
        data.new_dataset::<i64>().shape([8, 17]).create(name).unwrap().write_raw(&ids).unwrap();
    }
    data.close().unwrap();
    let (data, out, file) = (folder.join("tokens.h5"), folder.join("run.h5"), folder.join("lstm.pt"));
    let file = format!("model.file={}", file.display());
    let settings = ["model.name=file", &file, "data.classes=29", "train.batch_per_rank=8", "train.epochs=1"];
    let run = Mpirun::ranks(1)
        .args(["train", "--data", text(&data), "--out", text(&out)])
        .args(settings.iter().flat_map(|setting| ["--set", setting]))
        .timeout(Duration::from_secs(240))
        .run()
        .succeeded();
    assert!(run.stderr.contains("FLOP/s are unknown"), "{}", run.stderr);
    assert!(column(&out, "epochs/flops")[0].is_nan() && !run.stdout.contains("flops"), "{}", run.stdout);
    let environment = hdf5::File::open(&out).unwrap().group("environment").unwrap();
    let name: hdf5::types::VarLenUnicode = environment.attr("operations_unknown").unwrap().read_scalar().unwrap();
    assert!(name.as_str().contains("rnn"), "{name}");
    assert!(environment.attr("operations_forward").is_err());
}

#[test]
fn memory_and_buckets_follow_the_configuration() {
    let part = |workload: &Workload, name: &str| {
        workload.memory().parts.iter().find(|(part, ..)| *part == name).map(|(.., bytes)| *bytes).unwrap()
    };
    let small = "model.name=resnet18 model.width=16 train.batch_per_rank=4 parallel.bucket_mb=1";
    let one = Workload::new(&plan(small, 1), Form::CIFAR10).unwrap();
    assert_eq!((one.buckets().len(), part(&one, "gradients")), (1, 4 * one.parameters() as u64));
    assert_eq!((part(&one, "optimizer"), part(&one, "average")), (part(&one, "gradients"), 0));
    assert_eq!(part(&one, "activations"), 4 * one.activations().unwrap().kept);
    assert_eq!(part(&one, "cast_weights"), 0);

    let other = format!("{small} optim.name=adamw optim.ema=0.9 model.precision=bf16 train.batch_per_rank=8");
    let two = Workload::new(&plan(&other, 2), Form::CIFAR10).unwrap();
    let sizes: Vec<usize> = two.buckets().iter().map(|bucket| 4 * bucket.elements.len()).collect();
    assert!(sizes.len() > 1 && sizes[..sizes.len() - 1].iter().all(|bytes| *bytes >= 1_000_000), "{sizes:?}");
    assert_eq!(sizes.iter().sum::<usize>(), 4 * two.parameters());
    assert_eq!(part(&two, "optimizer"), 2 * part(&one, "gradients"));
    assert!(part(&two, "average") > part(&one, "gradients"));
    let weights = part(&two, "cast_weights");
    assert!(weights > 0 && weights < part(&one, "gradients"), "half of the convolutions' bytes: {weights}");
    assert!(part(&two, "activations") < 2 * part(&one, "activations"), "bf16 keeps less");
}

#[test]
fn the_command_prints_its_tables_without_ranks() {
    let args = ["workload", "--ranks", "4", "--set", "model.name=resnet18", "--set", "optim.name=adamw"];
    let run = Mpirun::alone().args(args).run().succeeded();
    for told in
        ["Workload of resnet18", "11173962", "layer4.1", "Buckets of gradients", "linear.bias", "Memory of a rank"]
    {
        assert!(run.stdout.contains(told), "{told} is missing in\n{}", run.stdout);
    }
    assert_eq!(run.stderr, "");
}

#[test]
fn what_cannot_be_counted_is_refused_in_one_message() {
    for (args, named) in [
        (&["--set", "model.name=gpt2"][..], "model.name"),
        (&["--set", "sweep.rounds=3"], "belongs to hpml sweep"),
        (&["--ranks", "3", "--set", "train.global_batch=64"], "multiple of 3 ranks"),
        (&["none.toml"], "none.toml"),
    ] {
        let run = Mpirun::alone().arg("workload").args(args).run();
        assert!(!run.status.success(), "{}", run.stdout);
        assert_eq!(run.stderr.trim().lines().count(), 1, "{}", run.stderr);
        assert!(run.stderr.contains(named), "{named}: {}", run.stderr);
    }
}
