//! Networks from files: trained as in PyTorch on any number of ranks, saved so that PyTorch loads them, resumed bit for bit, and
//! refused in one message if they cannot be trained. The files and PyTorch's losses are made by tests/fixtures/model_file.py.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::common::{Finished, Mpirun, assert_refused, column, folder, parameters, text};

const LOSSES: &str = include_str!("../fixtures/model_file_ranks.txt");

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Writes 8 samples, each for training and test, to `images.h5` and `tokens.h5` in `folder`.
fn write_samples(folder: &Path) {
    let file = hdf5::File::create(folder.join("images.h5")).unwrap();
    let pixel = |place: usize| (place / 3072 * 25 + place % 3072 % 7 + place / 3072 % 5) as u8;
    let pixels: Vec<u8> = (0..8 * 3072).map(pixel).collect();
    let labels: Vec<u8> = (0..8).collect();
    for (images, targets) in [("images", "labels"), ("test_images", "test_labels")] {
        let images = file.new_dataset::<u8>().shape([8, 3, 32, 32]).create(images).unwrap();
        images.write_raw(&pixels).unwrap();
        file.new_dataset::<u8>().shape([8]).create(targets).unwrap().write_raw(&labels).unwrap();
    }
    let file = hdf5::File::create(folder.join("tokens.h5")).unwrap();
    let mut ids: Vec<i64> = (0..8 * 17).map(|index| i64::from(hashed(index) % 29)).collect();
    for row in ids.chunks_mut(17) {
        for place in (1..17).step_by(2) {
            row[place] = (row[place - 1] * 3 + 1) % 29;
        }
    }
    for name in ["images", "test_images"] {
        file.new_dataset::<i64>().shape([8, 17]).create(name).unwrap().write_raw(&ids).unwrap();
    }
}

/// Hash of 32 bits. Source: `hashed` in scripts/export.py.
fn hashed(mut x: u32) -> u32 {
    for (shift, factor) in [(16, 0x7feb_352d), (15, 0x846c_a68b)] {
        x = (x ^ (x >> shift)).wrapping_mul(factor);
    }
    x ^ (x >> 16)
}

/// A training on the 8 samples in `folder`, a step per epoch, in which every step has all of them.
fn train(ranks: usize, name: &str, folder: &Path, out: &Path, args: &[&str]) -> Finished {
    let (data, classes) = match name.starts_with("decoder") {
        true => ("tokens.h5", "data.classes=29"),
        false => ("images.h5", "data.classes=10"),
    };
    let file = format!("model.file={}", fixtures().join(format!("{name}.pt")).display());
    let batch = format!("train.batch_per_rank={}", 8 / ranks);
    let settings = [
        "model.name=file",
        &file,
        &batch,
        "model.channels_last=false",
        classes,
        "data.shuffle=false",
        "train.epochs=6",
        "train.lr=0.05",
        "optim.momentum=0.9",
        "launch.threads=1",
    ];
    Mpirun::ranks(ranks)
        .args(["train", "--data", text(&folder.join(data)), "--out", text(out)])
        .args(settings.iter().flat_map(|setting| ["--set", setting]))
        .args(args)
        .timeout(Duration::from_secs(240))
        .run()
}

/// Runs a function of the fixtures' script; `None`, with a message, without a Python.
fn python(test: &str, call: &str) -> Option<String> {
    let Some(python) = std::env::var_os("HPML_PYTHON") else {
        eprintln!("{test}: PyTorch is left out: set HPML_PYTHON to a Python with torch and h5py");
        return None;
    };
    let script = format!("import model_file\nmodel_file.{call}");
    let output = Command::new(python).args(["-W", "ignore", "-c", &script]).current_dir(fixtures()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    if errors.contains("No module named 'torch'") {
        eprintln!("{test}: PyTorch is left out: HPML_PYTHON has no torch");
        return None;
    }
    assert!(output.status.success(), "{errors}");
    Some(String::from_utf8(output.stdout).unwrap())
}

fn numbers(line: &str) -> Vec<f64> {
    line.split_whitespace().map(|number| number.parse().unwrap()).collect()
}

#[test]
fn on_one_two_and_four_ranks_losses_are_pytorchs_with_dropout_on_each_rank() {
    let test = "on_one_two_and_four_ranks_losses_are_pytorchs_with_dropout_on_each_rank";
    let folder = folder();
    write_samples(folder.path());
    for line in LOSSES.lines() {
        let (case, expected) = line.split_once(" : ").unwrap();
        let (name, ranks) = case.split_once(' ').unwrap();
        let (ranks, out) = (ranks.parse().unwrap(), folder.path().join(format!("{name}-{ranks}.h5")));
        // Every epoch compares a checksum of the parameters over the ranks; a difference would end the job.
        let run = train(ranks, name, folder.path(), &out, &[]).succeeded();
        assert!(run.stderr.contains("losses as in PyTorch"), "{}", run.stderr);
        let found = column(&out, "epochs/train_loss");
        let expected = numbers(expected);
        assert_eq!(found.len(), expected.len());
        for (step, (found, expected)) in found.iter().zip(&expected).enumerate() {
            // Rounding that differs between processors and orders of summation, and grows with each step.
            let bound = 1e-5 * 2f64.powi(step as i32);
            assert!((found / expected - 1.0).abs() < bound, "{case}, step {step}: {found} {expected}");
        }
        // The PyTorch of this machine. hpml's gradients lie elsewhere in memory, where kernels round in another order.
        if ranks == 1
            && let Some(own) = python(test, &format!("print_ranks('{name}', 1)"))
        {
            let apart =
                found.iter().zip(numbers(&own)).map(|(found, own)| (found / own - 1.0).abs()).fold(0.0, f64::max);
            assert!(apart < 5e-6, "{case}: {apart} {found:?}");
        }
    }
}

#[test]
fn a_checkpoint_loads_strictly_and_a_resumed_training_has_the_same_bits() {
    let test = "a_checkpoint_loads_strictly_and_a_resumed_training_has_the_same_bits";
    let folder = folder();
    write_samples(folder.path());
    for (name, ranks) in [("mobile", 1), ("mobile", 2), ("decoder", 2)] {
        let [whole, parts] = ["whole", "parts"].map(|part| folder.path().join(format!("{name}-{part}{ranks}.h5")));
        train(ranks, name, folder.path(), &whole, &[]).succeeded();
        let three = ["--set", "train.epochs=3", "--set", "checkpoint.every_epochs=3"];
        train(ranks, name, folder.path(), &parts, &three).succeeded();
        train(ranks, name, folder.path(), &parts, &["--resume", "auto"]).succeeded();
        assert_eq!(column(&whole, "epochs/train_loss"), column(&parts, "epochs/train_loss"));
        assert!(all_tensors(&whole) == all_tensors(&parts), "{ranks} ranks");
        if (name, ranks) == ("mobile", 2) {
            // Another network whose tensors have equal names and shapes: it has no dropout.
            let more = ["--resume", "auto", "--set", "train.epochs=9"];
            let other = train(ranks, "mobile_plain", folder.path(), &parts, &more);
            assert_refused(&other, &["model.file", "mobile_plain.pt", "fingerprint"]);
            let moved = folder.path().join("moved.pt");
            std::fs::copy(fixtures().join("mobile.pt"), &moved).unwrap();
            let moved = format!("model.file={}", moved.display());
            train(ranks, name, folder.path(), &parts, &[&more[..], &["--set", &moved]].concat()).succeeded();
        }
        if let Some(told) = python(test, &format!("check({:?}, {name:?})", text(&whole))) {
            let tensors = all_tensors(&whole).len();
            let frozen = usize::from(name == "decoder"); // the positions
            assert_eq!(told.trim(), format!("{tensors} tensors, {} changed", tensors - frozen));
        }
    }
}

/// Bits of the float tensors of a run file, and the counts of its batch norms.
fn all_tensors(file: &Path) -> Vec<(String, Vec<u32>)> {
    parameters(file)
}

#[test]
fn every_knob_of_training_takes_a_model_file() {
    let folder = folder();
    write_samples(folder.path());
    for (number, args) in [
        &["--set", "model.precision=bf16", "--set", "parallel.bucket_mb=0.002"][..],
        &["--set", "parallel.buffers=sync"],
        &["--set", "optim.ema=0.9", "--set", "optim.name=lamb"],
        &["--set", "parallel.compression=powersgd", "--set", "model.channels_last=true"],
        &["--set", "train.batch_per_rank=2", "--set", "train.accumulate=2", "--set", "metrics.timing=profile"],
    ]
    .iter()
    .enumerate()
    {
        let out = folder.path().join(format!("{number}.h5"));
        train(2, "mobile", folder.path(), &out, args).succeeded();
        let losses = column(&out, "epochs/train_loss");
        assert!(losses.len() == 6 && losses[5] < losses[0], "{args:?}: {losses:?}");
    }
}

#[test]
fn what_is_no_model_for_these_samples_ends_two_ranks_with_one_message() {
    let folder = folder();
    write_samples(folder.path());
    let cut = folder.path().join("cut.pt");
    let whole = std::fs::read(fixtures().join("mobile.pt")).unwrap();
    std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let cut = format!("model.file={}", cut.display());
    let decoder = format!("model.file={}", fixtures().join("decoder.pt").display());
    let out = folder.path().join("run.h5");
    for (name, args, named) in [
        ("refused_state", &[][..], &["refused_state.pt", "only weights", "scripts/export.py"][..]),
        ("refused_map", &[], &["refused_map.pt", "[n, classes]"]),
        ("refused_traced_in_eval", &[], &["traced in eval mode", "--trace"]),
        ("refused_check", &[], &["training step 1", "found 2.390000", "PyTorch 2.13"]),
        ("mobile", &["--set", &decoder], &["decoder.pt", "16 tokens", "--input 3 32 32"]),
        ("mobile", &["--set", "data.classes=12"], &["mobile.pt", "10 classes", "12 classes"]),
        ("mobile", &["--set", &cut], &["cut.pt", "cut short"]),
        ("mobile", &["--set", "model.file="], &["model.file"]),
        ("mobile", &["--set", "quantize.enabled=true"], &["quantize.enabled", "model.name = \"file\""]),
    ] {
        let run = train(2, name, folder.path(), &out, args);
        assert_refused(&run, named);
        assert!(!out.exists());
    }
    train(2, "mobile", folder.path(), &out, &[]).succeeded();
    let run = Mpirun::ranks(2).args(["quantize", text(&out)]).run();
    assert_refused(&run, &["run.h5", "model.name = file", "int8"]);
}
