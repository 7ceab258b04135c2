//! The moving average of the weights with batch norm: against PyTorch, in every buffer mode, and after a resume.

use std::path::Path;
use std::time::Duration;

use crate::common::{Mpirun, folder, parameters, text};

/// Expected values, made by `tests/fixtures/average.py` with DistributedDataParallel, AveragedModel and update_bn.
const EXPECTED: &str = include_str!("../fixtures/average.txt");

const RESNET: [&str; 4] = ["model.name=resnet18", "model.width=4", "optim.ema=0.9", "launch.threads=1"];

fn train(ranks: usize, out: &Path, settings: &[&str]) -> Mpirun {
    let settings = settings.iter().flat_map(|setting| ["--set", setting]);
    let run = Mpirun::ranks(ranks).args(["train", "--out", text(out)]).args(settings);
    run.timeout(Duration::from_secs(180))
}

/// Data files whose images are noise, identical to the script's.
fn write_noise(folder: &Path) {
    let mut records = Vec::with_capacity(10_000 * 3073);
    for index in 0..10_000u64 {
        records.push((index % 10) as u8);
        records.extend((index * 3072..(index + 1) * 3072).map(|byte| {
            let x = byte * 2_654_435_761 % (1 << 32);
            let x = (x ^ x >> 15) * 2_246_822_519 % (1 << 32);
            (x ^ x >> 13) as u8
        }));
    }
    for name in (1..=5).map(|i| format!("data_batch_{i}.bin")).chain(["test_batch.bin".into()]) {
        std::fs::write(folder.join(name), &records).unwrap();
    }
}

/// Norm of a tensor of `/checkpoint`, and its product with the script's vector; for a count, the count twice.
fn norm_and_product(file: &hdf5::File, name: &str) -> (f64, f64) {
    let tensor = file.dataset(&format!("checkpoint/{name}")).unwrap_or_else(|error| panic!("{name}: {error}"));
    let values = tensor.read_raw::<f64>().unwrap();
    if name.ends_with("num_batches_tracked") {
        return (values[0], values[0]);
    }
    let fixed = (0..values.len()).map(|i| (i * 7 % 32) as f64 / 16.0 - 1.0);
    let product = values.iter().zip(fixed).map(|(value, fixed)| value * fixed).sum();
    (values.iter().map(|value| value * value).sum::<f64>().sqrt(), product)
}

#[test]
fn trained_and_averaged_networks_have_pytorchs_weights_statistics_and_counts() {
    let (data, out) = (folder(), folder());
    write_noise(data.path());
    let dir = format!("data.dir={}", data.path().display());
    // NCHW, as in PyTorch. The bound is that of rounding: NCHW and NHWC differ by 2e-4 here.
    let common = [&dir, "data.shuffle=false", "data.train_samples=192", "data.test_samples=10", "model.name=resnet18"];
    let common = [&common[..], &["model.width=4", "model.channels_last=false", "launch.threads=1"]].concat();
    let common = [&common[..], &["train.batch_per_rank=16", "train.epochs=2", "train.lr=0.001"]].concat();
    for (ranks, accumulate) in [(1, 3), (2, 1), (2, 2)] {
        for (network, ema, device) in [("trained", "0", "cpu"), ("average", "0.9", "cpu"), ("average", "0.9", "cuda")] {
            let file = out.path().join("run.h5");
            let own = [format!("optim.ema={ema}"), format!("train.accumulate={accumulate}")];
            let device = format!("launch.device={device}");
            let own = [&own[0], &own[1], &device].map(String::as_str);
            train(ranks, &file, &[&common[..], &own].concat())
                .arg("--force")
                .env("HPML_EMULATE_GPU", "1")
                .run()
                .succeeded();
            let file = hdf5::File::open(&file).unwrap();
            let case = format!("{ranks} {accumulate} {network} ");
            let lines: Vec<&str> = EXPECTED.lines().filter_map(|line| line.strip_prefix(&case)).collect();
            assert_eq!(lines.len(), 122, "{case}: as many as ResNet18().state_dict() has");
            for line in lines {
                let [name, norm, product] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
                let (norm, product): (f64, f64) = (norm.parse().unwrap(), product.parse().unwrap());
                let found = norm_and_product(&file, name);
                let apart = (found.0 - norm).abs().max((found.1 - product).abs());
                assert!(
                    apart <= 1e-3 * norm.max(1.0),
                    "{case}{device} {name}: {found:?}, PyTorch has {norm} {product}"
                );
            }
        }
    }
}

/// All ranks share one network, whatever `parallel.buffers` makes of the training's statistics.
#[test]
fn what_is_tested_and_saved_is_the_average_with_statistics_of_its_own() {
    let folder = folder();
    let settings = [&RESNET[..], &["train.max_steps=12", "data.test_samples=100", "metrics.spread_steps=100"]].concat();
    let mut saved = Vec::new();
    for buffers in ["broadcast", "average", "local", "sync"] {
        let out = folder.path().join(format!("{buffers}.h5"));
        train(2, &out, &[&settings[..], &[&format!("parallel.buffers={buffers}")]].concat()).run().succeeded();
        // Each rank's own network on the whole test set.
        let own = crate::common::column(&out, "ranks/test_loss");
        assert_eq!(own.len(), 2);
        assert_eq!(own[0] == own[1], buffers != "local", "{buffers}: {own:?}");
        if buffers != "local" {
            let tested = crate::common::column(&out, "epochs/test_loss")[0];
            assert!((tested / own[0] - 1.0).abs() < 1e-5, "{buffers}: {tested} {own:?}");
        }
        saved.push(parameters(&out));
    }
    // The training itself does not use the running statistics: only `sync`, which joins the batches, changes it.
    assert_eq!(saved[0], saved[1]);
    let weights = |of: &crate::common::Parameters| -> Vec<_> {
        of.iter().filter(|(name, _)| !name.contains("running")).cloned().collect()
    };
    assert_eq!(weights(&saved[0]), weights(&saved[2]));
    assert_ne!(saved[0], saved[2]);
}

/// Fewer steps than the average is long: it averages the steps there were. With a single one it is the training's own network.
#[test]
fn after_one_step_the_average_is_that_steps_weights() {
    let folder = folder();
    let of = |ema: &str, steps: usize| {
        let out = folder.path().join("run.h5");
        let settings = ["model.name=net", ema, &format!("train.max_steps={steps}"), "data.test_samples=20"];
        train(2, &out, &settings).arg("--force").run().succeeded();
        let bits = parameters(&out).into_iter().flat_map(|(_, bits)| bits);
        bits.map(|bits| f64::from(f32::from_bits(bits))).collect::<Vec<_>>()
    };
    assert_eq!(of("optim.ema=0.999", 1), of("optim.ema=0", 1));
    // After two steps almost their mean: w1 counts 0.999 and w2 counts 1.
    let (one, two, average) = (of("optim.ema=0", 1), of("optim.ema=0", 2), of("optim.ema=0.999", 2));
    for ((one, two), average) in one.iter().zip(&two).zip(&average) {
        assert!((average - (0.999 * one + two) / 1.999).abs() < 1e-6, "{one} {two} {average}");
    }
}

#[test]
fn a_resumed_training_has_the_same_average_and_statistics() {
    for device in ["cpu", "cuda"] {
        let folder = folder();
        let (whole, pieces) = (folder.path().join("whole.h5"), folder.path().join("pieces.h5"));
        let more = ["data.train_samples=96", "data.test_samples=50", "train.accumulate=2", "data.augment=true"];
        let device = format!("launch.device={device}");
        let settings = [&RESNET[..], &more, &[&device, "checkpoint.every_epochs=1", "checkpoint.keep=9"]].concat();
        let epochs = |epochs: &'static str| [&settings[..], &[epochs]].concat();
        let start = |out: &Path, epochs: &[&str]| train(2, out, epochs).env("HPML_EMULATE_GPU", "1");
        start(&whole, &epochs("train.epochs=3")).run().succeeded();
        start(&pieces, &epochs("train.epochs=2")).run().succeeded();
        start(&pieces, &epochs("train.epochs=3")).args(["--resume", "auto"]).run().succeeded();
        assert_eq!(parameters(&whole), parameters(&pieces), "{device}");
        for column in ["epochs/test_loss", "epochs/test_accuracy"] {
            assert_eq!(
                crate::common::column(&whole, column),
                crate::common::column(&pieces, column),
                "{device} {column}"
            );
        }
        // The training is complete: what is written again is what was tested.
        start(&pieces, &epochs("train.epochs=3")).args(["--resume", "auto"]).run().succeeded();
        assert_eq!(parameters(&whole), parameters(&pieces), "{device}");
    }
}

#[test]
fn int8_is_made_of_the_average_with_its_statistics() {
    let folder = folder();
    let out = folder.path().join("run.h5");
    let more =
        ["train.max_steps=20", "data.test_samples=200", "quantize.enabled=true", "quantize.calibration_images=64"];
    train(2, &out, &[&RESNET[..], &more].concat()).run().succeeded();
    let accuracy = crate::common::column(&folder.path().join("run-int8.h5"), "quantization/accuracy");
    assert_eq!(accuracy[0], crate::common::column(&out, "epochs/test_accuracy")[0]);
}
