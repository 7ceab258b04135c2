//! Quantization to int8 with the real binary: accuracy, agreement over any number of ranks, and bad input.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{Finished, Mpirun, column, folder, text, texts};

fn hpml(args: &[&str]) -> Finished {
    Mpirun::command(Command::new(env!("CARGO_BIN_EXE_hpml"))).args(args).run()
}

/// A short training of a network with a bias; returns its run file.
fn trained(folder: &Path, more: &[&str]) -> PathBuf {
    let out = folder.join("run.h5");
    let sets = ["model.bias=true", "data.train_samples=3000", "data.test_samples=300", "train.epochs=1"];
    let run = Mpirun::ranks(2).args(["train", "--out", text(&out)]);
    run.args(sets.iter().flat_map(|set| ["--set", set])).args(more).run().succeeded();
    out
}

/// Bytes of the values of every dataset of a checkpoint, by name.
fn checkpoint(file: &Path) -> Vec<(String, Vec<i64>)> {
    let file = hdf5::File::open(file).unwrap();
    let mut tensors = file.group("checkpoint").unwrap().datasets().unwrap();
    tensors.sort_by_key(|tensor| tensor.name());
    let values = |tensor: &hdf5::Dataset| tensor.read_raw::<i64>().unwrap();
    tensors.iter().map(|tensor| (tensor.name(), values(tensor))).collect()
}

#[test]
fn training_ends_in_int8_that_eval_and_export_take() {
    let folder = folder();
    let run = trained(folder.path(), &["--set", "quantize.enabled=true"]);
    let int8 = folder.path().join("run-int8.h5");
    let cases = ["float32", "weights", "weights, bias unscaled", "weights+activations+bias"];
    assert_eq!(texts(&int8, "quantization/case"), cases);
    let accuracy = column(&int8, "quantization/accuracy");
    assert!((accuracy[0] - accuracy[3]).abs() <= 2.0 && accuracy[0] > 20.0, "{accuracy:?}");
    assert_eq!(accuracy[0], *column(&run, "epochs/test_accuracy").last().unwrap());
    let (values, bins) = (column(&int8, "histograms/values"), column(&int8, "histograms/bins"));
    for (values, bins) in values.iter().zip(bins.chunks(100)) {
        assert_eq!(bins.iter().sum::<f64>(), *values, "every value is in a bin");
    }

    let evaluated = hpml(&["eval", text(&int8), "--set", "data.test_samples=200"]).succeeded();
    for told in ["float32", "simulated", "int8"] {
        assert!(evaluated.stdout.contains(told), "{}", evaluated.stdout);
    }
    let onnx = folder.path().join("net.onnx");
    hpml(&["export", text(&int8), "--onnx", text(&onnx)]).succeeded();
    assert!(std::fs::metadata(&onnx).unwrap().len() > 60_000);
    // A file without an int8 network is refused, with the mend.
    for command in [&["eval", text(&run)][..], &["export", text(&run), "--onnx", text(&folder.path().join("no.onnx"))]]
    {
        crate::common::assert_refused(&hpml(command), &[text(&run), "float32", "hpml quantize", text(&int8)]);
    }
    let again = hpml(&["export", text(&int8), "--onnx", text(&onnx)]);
    assert!(!again.status.success() && again.messages()[0].contains("--force"), "{}", again.stderr);
}

/// Batch norm's statistics are each rank's own between two broadcasts, but there is one network to quantize.
#[test]
fn what_a_training_quantizes_is_what_it_saves() {
    for buffers in ["broadcast", "local"] {
        let folder = folder();
        let (run, again) = (folder.path().join("run.h5"), folder.path().join("again.h5"));
        let sets = [
            "model.name=resnet18".into(),
            "model.width=8".into(),
            "train.max_steps=8".into(),
            "data.test_samples=200".into(),
            "quantize.enabled=true".into(),
            "quantize.calibration_images=64".into(),
            format!("parallel.buffers={buffers}"),
        ];
        let train = Mpirun::ranks(2).args(["train", "--out", text(&run)]);
        train.args(sets.iter().flat_map(|set| ["--set", set])).run().succeeded();
        Mpirun::ranks(2).args(["quantize", text(&run), "--out", text(&again)]).run().succeeded();
        let first = folder.path().join("run-int8.h5");
        assert_eq!(checkpoint(&first), checkpoint(&again), "{buffers}");
        assert_eq!(column(&first, "quantization/accuracy"), column(&again, "quantization/accuracy"), "{buffers}");
        if buffers == "broadcast" {
            let tested = *column(&run, "epochs/test_accuracy").last().unwrap();
            assert_eq!(column(&first, "quantization/accuracy")[0], tested);
        }
    }
}

#[test]
fn a_short_training_wins_back_what_too_narrow_ranges_lose() {
    let folder = folder();
    let run = trained(folder.path(), &[]);
    let narrow = ["quantize.weight_range=percentile", "quantize.activation_range=percentile", "quantize.percentile=90"];
    let narrow: Vec<&str> = narrow.iter().flat_map(|set| ["--set", set]).collect();
    for ranks in [1, 2] {
        let out = folder.path().join(format!("finetuned{ranks}.h5"));
        let run = Mpirun::ranks(ranks).args(["quantize", text(&run), "--out", text(&out)]).args(&narrow);
        run.args(["--set", "quantize.finetune_epochs=0.5", "--set", "data.train_samples=3000"]).run().succeeded();
        let (cases, accuracy) = (texts(&out, "quantization/case"), column(&out, "quantization/accuracy"));
        assert_eq!(cases[3..], ["weights+activations+bias", "finetuned"]);
        let (lost, left) = (accuracy[0] - accuracy[3], accuracy[0] - accuracy[4]);
        assert!(lost > 2.0 && left < 0.5 * lost, "{accuracy:?}");
        let evaluated = hpml(&["eval", text(&out)]).succeeded();
        let row = evaluated.stdout.lines().find(|line| line.trim_start().starts_with("true int8")).unwrap();
        assert_eq!(row.split_whitespace().nth(2), Some(format!("{:.2}", accuracy[4]).as_str()), "{}", evaluated.stdout);
    }
    let out = folder.path().join("unneeded.h5");
    let run = Mpirun::ranks(2).args(["quantize", text(&run), "--out", text(&out)]);
    run.args(["--set", "quantize.finetune_epochs=0.5", "--set", "quantize.max_drop=100"]).run().succeeded();
    assert_eq!(texts(&out, "quantization/case").len(), 4, "int8 did not lose too much");
}

#[test]
fn any_number_of_ranks_finds_the_same_integers() {
    let folder = folder();
    let run = trained(folder.path(), &[]);
    let of = |ranks: usize| {
        let out = folder.path().join(format!("int8-{ranks}.h5"));
        Mpirun::ranks(ranks).args(["quantize", text(&run), "--out", text(&out)]).run().succeeded();
        (checkpoint(&out), column(&out, "quantization/accuracy"))
    };
    let one = of(1);
    assert!(one.0.iter().any(|(name, values)| name.ends_with("fc3.weight") && values.iter().all(|v| v.abs() <= 127)));
    assert_eq!(one, of(3));
}

#[test]
fn what_cannot_be_quantized_is_refused_and_leaves_nothing() {
    let folder = folder();
    let run = trained(folder.path(), &[]);
    let edit = |name: &str, change: &dyn Fn(&hdf5::Group)| {
        let file = folder.path().join(format!("{name}.h5"));
        std::fs::copy(&run, &file).unwrap();
        change(&hdf5::File::open_rw(&file).unwrap().group("checkpoint").unwrap());
        file
    };
    let fill = |tensor: &str, value: f32| {
        let tensor = tensor.to_owned();
        move |group: &hdf5::Group| {
            let dataset = group.dataset(&tensor).unwrap();
            dataset.write_raw(&vec![value; dataset.size()]).unwrap();
        }
    };
    let damaged = folder.path().join("damaged.h5");
    let mut bytes = std::fs::read(&run).unwrap();
    let values: Vec<f32> =
        hdf5::File::open(&run).unwrap().dataset("checkpoint/fc1.weight").unwrap().read_raw().unwrap();
    let needle: Vec<u8> = values[..4].iter().flat_map(|value| value.to_le_bytes()).collect();
    let at = bytes.windows(needle.len()).position(|window| window == needle).unwrap();
    bytes[at + 5] ^= 0x10;
    std::fs::write(&damaged, bytes).unwrap();

    for (file, more, named) in [
        (edit("nan", &fill("fc1.weight", f32::NAN)), None, "fc1.weight"),
        (edit("dead", &fill("conv2.weight", 0.0)), None, "conv2"),
        (edit("other", &|group| group.relink("fc2.weight", "fc9.weight").unwrap()), None, "fc9.weight"),
        (damaged, None, "fc1.weight"),
        (run.clone(), Some("quantize.calibration_images=0"), "quantize.calibration_images"),
        (folder.path().join("none.h5"), None, "none.h5"),
    ] {
        let out = folder.path().join("int8.h5");
        let set: Vec<&str> = more.iter().flat_map(|set| ["--set", set]).collect();
        let run = Mpirun::ranks(2).args(["quantize", text(&file), "--out", text(&out)]).args(set).run();
        assert!(!run.status.success(), "{named}: {}", run.stdout);
        assert_eq!(run.messages().len(), 1, "{named}: {}", run.stderr);
        assert!(run.messages()[0].contains(named), "{named}: {}", run.stderr);
        if named == "fc9.weight" {
            assert!(run.messages()[0].contains(text(&file)), "{}", run.stderr);
        }
        assert!(!out.exists());
    }
}

#[test]
fn a_network_is_not_quantized_or_tested_with_data_of_another_kind() {
    let (folder, data) = (folder(), folder());
    crate::common::write_fake_cifar10(data.path());
    let run = trained(folder.path(), &["--set", "quantize.enabled=true"]);
    let int8 = folder.path().join("run-int8.h5");
    let good = std::fs::read(&int8).unwrap();
    let cifar = format!("data.dir={}", data.path().display());
    let refused = |command: &[&str], named: &[&str]| {
        let run = hpml(command);
        crate::common::assert_refused(&run, named);
        assert!(run.stdout.is_empty() && std::fs::read(&int8).unwrap() == good, "{}", run.stdout);
    };
    let quantize = ["quantize", text(&run), "--force"];
    for more in [["--data", text(data.path())], ["--set", &cifar]] {
        refused(&[&quantize[..], &more].concat(), &["run.h5", "data.dir", "synthetic set", "leave out --data"]);
        refused(&[&["eval", text(&int8)], &more[..]].concat(), &["run-int8.h5", "data.dir", "synthetic set"]);
    }
    for key in ["data.mean", "data.std"] {
        let other = format!("{key}=[0.4, 0.4, 0.4]");
        refused(&[&quantize[..], &["--set", &other]].concat(), &["run.h5", key, "[0.5, 0.5, 0.5]"]);
        refused(&["eval", text(&int8), "--set", &other], &["run-int8.h5", key, "[0.5, 0.5, 0.5]"]);
    }
    // The reverse: synthetic images in place of files.
    let real = folder.path().join("real.h5");
    let few = ["--set", "train.max_steps=2", "--set", "data.test_samples=10"];
    let train = ["train", "--out", text(&real), "--data", text(data.path())];
    hpml(&[&train[..], &few].concat()).succeeded();
    let synthetic = ["quantize", text(&real), "--data", "synthetic"];
    crate::common::assert_refused(&hpml(&synthetic), &["real.h5", "data.dir", text(data.path()), "--data"]);
    assert!(!folder.path().join("real-int8.h5").exists());
}

#[test]
fn a_resnet_on_images_of_any_shape_goes_to_int8() {
    let folder = folder();
    let (run, int8, onnx) =
        (folder.path().join("run.h5"), folder.path().join("int8.h5"), folder.path().join("net.onnx"));
    let sets = [
        "model.name=resnet50",
        "model.width=4",
        "model.stem=imagenet",
        "data.shape=[1,41,36]",
        "data.classes=300",
        "data.train_samples=64",
        "data.test_samples=24",
        "train.max_steps=2",
        "train.batch_per_rank=8",
        "quantize.calibration_images=16",
    ];
    let train = Mpirun::ranks(2).args(["train", "--out", text(&run)]);
    train.args(sets.iter().flat_map(|set| ["--set", set])).run().succeeded();
    Mpirun::ranks(2).args(["quantize", text(&run), "--out", text(&int8)]).run().succeeded();
    let cases = ["float32", "weights", "weights, bias unscaled", "weights+activations+bias"];
    assert_eq!(texts(&int8, "quantization/case"), cases);
    assert!(texts(&int8, "histograms/name").contains(&"layer1.0.downsample.0".to_owned()));
    hpml(&["eval", text(&int8)]).succeeded();
    let exported = hpml(&["export", text(&int8), "--onnx", text(&onnx)]).succeeded();
    assert!(exported.stdout.contains("[n, 1, 41, 36] to logits [n, 300]"), "{}", exported.stdout);
    let other = hpml(&["eval", text(&int8), "--set", "data.shape=[1,40,36]"]);
    crate::common::assert_refused(&other, &["int8.h5", "[1, 41, 36]"]);
}

#[test]
fn a_network_that_int8_cannot_express_is_refused_by_its_node_before_it_is_trained() {
    let folder = folder();
    let run = folder.path().join("run.h5");
    let vit = ["model.name=vit", "model.width=16", "model.depth=1", "model.heads=2", "train.max_steps=1"];
    let vit: Vec<&str> = vit.iter().flat_map(|set| ["--set", set]).collect();
    let train = |more: &[&str]| Mpirun::ranks(2).args(["train", "--out", text(&run)]).args(&vit).args(more).run();
    let node = ["int8 cannot express node class_token (parameter)", "ResNets"];
    crate::common::assert_refused(&train(&["--set", "quantize.enabled=true"]), &node);
    assert!(!folder.path().join("run-int8.h5").exists());
    train(&["--force"]).succeeded();
    crate::common::assert_refused(&Mpirun::ranks(2).args(["quantize", text(&run)]).run(), &node);
    assert!(!folder.path().join("run-int8.h5").exists());
}

#[test]
fn float32_images_are_refused_with_the_mend() {
    let folder = folder();
    let (data, run) = (folder.path().join("data.h5"), folder.path().join("run.h5"));
    {
        let file = hdf5::File::create(&data).unwrap();
        for (images, labels, n) in [("train/images", "train/labels", 40), ("test/images", "test/labels", 20)] {
            let values = vec![0.25f32; n * 3 * 16 * 16];
            let dataset = file.new_dataset::<f32>().shape([n, 3, 16, 16]).create(images).unwrap();
            dataset.write_raw(&values).unwrap();
            let classes: Vec<u8> = (0..n).map(|index| (index % 4) as u8).collect();
            file.new_dataset::<u8>().shape([n]).create(labels).unwrap().write_raw(&classes).unwrap();
        }
    }
    let names = [
        "data.images=train/images",
        "data.labels=train/labels",
        "data.test_images=test/images",
        "data.test_labels=test/labels",
        "train.max_steps=1",
        "train.batch_per_rank=8",
        "quantize.calibration_images=16",
    ];
    let names: Vec<&str> = names.iter().flat_map(|set| ["--set", set]).collect();
    let train = ["train", "--out", text(&run), "--data", text(&data)];
    hpml(&[&train[..], &names].concat()).succeeded();
    crate::common::assert_refused(&hpml(&["quantize", text(&run)]), &[text(&data), "float32 images", "uint8"]);
    let enabled = ["--force", "--set", "quantize.enabled=true"];
    crate::common::assert_refused(
        &hpml(&[&train[..], &names, &enabled].concat()),
        &[text(&data), "float32 images", "uint8"],
    );
    assert!(!folder.path().join("run-int8.h5").exists());
}
