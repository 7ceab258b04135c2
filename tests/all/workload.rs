//! `hpml workload`: the counts of a training are PyTorch's, and the command needs no ranks.

use std::path::Path;

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

/// Settings of a network from the fixture `name`.
fn of_file(name: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    format!("model.name=file model.channels_last=false model.file={}", file.display())
}

/// Multiplications and additions of a convolution: outputs, inputs of an output, side of the filter, side of the output.
fn convolution([outputs, inputs, filter, side]: [u64; 4]) -> u64 {
    2 * outputs * inputs * filter.pow(2) * side.pow(2)
}

#[test]
fn operations_of_a_model_file_are_those_of_its_layers() {
    // The layers of `Mobile` and `Decoder` in tests/fixtures/model_file.py.
    let blocks = [[8, 8, 16, 16], [8, 16, 16, 8], [16, 16, 8, 8]].map(|[inputs, outputs, before, after]| {
        let hidden = 2 * inputs;
        let (expand, depthwise) = ([hidden, inputs, 1, before], [hidden, 1, 3, after]);
        [expand, depthwise, [outputs, hidden, 1, after]].map(convolution).iter().sum::<u64>()
    });
    let stem = convolution([8, 3, 3, 16]);
    let mobile = stem + blocks.iter().sum::<u64>() + 2 * 16 * 10;
    let (tokens, width, vocabulary) = (16, 16, 29);
    let linear = 2 * tokens * width * (3 * width + width + 2 * 4 * width + vocabulary);
    let decoder = linear + 2 * 2 * tokens * tokens * width;
    let form = Form::Tokens { length: 16, vocabulary: 29 };
    // The images need no gradient.
    for (name, form, expected) in [
        ("mobile.pt", Form::CIFAR10, [mobile, 3 * mobile - stem]),
        ("mobile_traced.pt", Form::CIFAR10, [mobile, 3 * mobile - stem]),
        ("decoder.pt", form, [decoder, 3 * decoder]),
    ] {
        let workload = Workload::new(&plan(&of_file(name), 1), form).unwrap();
        assert_eq!(workload.operations(), Ok(expected), "{name}");
    }
    let longer = Form::Tokens { length: 12, vocabulary: 29 };
    let workload = Workload::new(&plan(&of_file("decoder.pt"), 1), longer).unwrap();
    assert!(workload.operations().unwrap_err().contains("--tokens 12"));
}

#[test]
fn a_training_of_a_model_file_shows_flops_if_the_file_has_their_count() {
    let folder = folder();
    let small = ["train.max_steps=4", "data.train_samples=64", "data.test_samples=20"];
    let train = |name: &str| {
        let (out, settings) = (folder.path().join("run.h5"), of_file(name));
        let settings = settings.split(' ').chain(small).flat_map(|set| ["--set", set]);
        let train = Mpirun::ranks(1).args(["train", "--force", "--out", text(&out)]).args(settings).run().succeeded();
        let inspected = Mpirun::alone().args(["inspect", text(&out)]).run().succeeded().stdout;
        (train, inspected, column(&out, "epochs/flops")[0], column(&out, "epochs/images_per_second")[0])
    };
    let (run, inspected, flops, images_per_second) = train("mobile.pt");
    assert!((flops / (3.0 * 600_384.0 * images_per_second) - 1.0).abs() < 1e-9, "{flops}");
    assert!(run.stdout.contains("flops") && inspected.contains("operations_forward"), "{}", run.stdout);

    let (run, inspected, flops, _) = train("undescribed.pt");
    assert!(flops.is_nan() && run.stderr.contains("FLOP/s are unknown"), "{}", run.stderr);
    let unknown = inspected.lines().find(|line| line.contains("operations_unknown"));
    assert!(unknown.is_some_and(|line| line.contains("scripts/export.py")), "{inspected}");
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
