//! Parity with PyTorch: equal losses and updates from equal initial values and samples, on real images; and only those.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::common::{Finished, Mpirun};

/// Parity file, made by `scripts/parity.py --no-weights` from the images that the continuous integration has. The initial values
/// come from the seed, so that this also tests that they are `torch.manual_seed`'s.
const PARITY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/parity.h5");

/// Prepares `hpml verify FILE` on `ranks` ranks.
fn verify(ranks: usize, file: &Path, data: &Path, settings: &[&str]) -> Mpirun {
    let settings = settings.iter().flat_map(|setting| ["--set", setting]);
    Mpirun::ranks(ranks)
        .args([Path::new("verify"), file, Path::new("--data"), data])
        .args(settings)
        .timeout(Duration::from_secs(900))
}

/// Last line on stdout of a run that computed; `None`, with a message, if the images are of another edition (labels or pixels
/// differ).
fn verdict(run: &Finished) -> Option<&str> {
    if run.stderr.contains("made from other") {
        eprintln!("left out: the parity file was made from another edition of CIFAR-10");
        return None;
    }
    Some(run.stdout.lines().last().unwrap_or_default())
}

fn passes(run: Finished) {
    let Some(verdict) = verdict(&run) else { return };
    assert!(run.status.success() && verdict.starts_with("PASSED: "), "{}\n{}", run.stdout, run.stderr);
}

/// Asserts that the run fails for this reason. With images other than the file's it fails for another one, which is no news.
fn fails(run: &Finished, expected: &str) {
    let last = run.stdout.lines().last().unwrap_or_default();
    assert!(!run.status.success(), "{expected}\n{}", run.stdout);
    if !last.contains(expected) && verdict(run).is_none() {
        return;
    }
    assert!(last.starts_with("FAILED: ") && last.contains(expected), "{expected}\n{}\n{}", run.stdout, run.stderr);
    assert_eq!(run.messages().len(), 1, "{}", run.stderr);
}

#[test]
fn one_rank_repeats_pytorch_with_one_thread_and_with_two() {
    let Some(data) = crate::common::cifar10("one_rank_repeats_pytorch_with_one_thread_and_with_two") else { return };
    for settings in
        [["launch.threads=1", "model.channels_last=false"], ["launch.threads=2", "model.channels_last=true"]]
    {
        let run = verify(1, Path::new(PARITY), &data, &settings).run();
        assert!(run.stdout.contains("# net: lr 0.1") && run.stdout.contains("# resnet18: lr 0.0003"), "{}", run.stdout);
        passes(run);
    }
}

/// Made by `scripts/parity.py --no-weights --ranks 1 2`: resnet50, resnet18 with the stem for ImageNet, vit and gpt2, in small.
const NETWORKS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/parity-networks.h5");

#[test]
fn the_other_networks_repeat_pytorch_on_one_and_two_ranks() {
    let Some(data) = crate::common::cifar10("the_other_networks_repeat_pytorch_on_one_and_two_ranks") else { return };
    for ranks in [1, 2] {
        let run = verify(ranks, Path::new(NETWORKS), &data, &["launch.threads=1"]).run();
        for name in ["gpt2", "resnet18_imagenet", "resnet50", "vit"] {
            assert!(run.stdout.contains(&format!("# {name}: lr")), "{}\n{}", run.stdout, run.stderr);
        }
        passes(run);
    }
}

#[test]
fn ranks_repeat_ddp_however_they_sum_the_gradients() {
    let Some(data) = crate::common::cifar10("ranks_repeat_ddp_however_they_sum_the_gradients") else { return };
    let cases: [(usize, &[&str]); 3] = [
        (2, &["launch.threads=1", "metrics.timing=profile"]),
        (2, &["launch.threads=1", "parallel.bucket_mb=1", "parallel.all_reduce=mpi", "model.channels_last=false"]),
        // Batch norm over all ranks equals that of one process, on three ranks with 5, 5 and 6 samples too.
        (3, &["launch.threads=1", "parallel.buffers=sync"]),
    ];
    for (ranks, settings) in cases {
        passes(verify(ranks, Path::new(PARITY), &data, settings).run());
    }
}

/// Instruction sets of other processors: the kernels of ATen and oneDNN for AVX2, and for none.
#[test]
fn other_instruction_sets_are_healthy_too() {
    let Some(data) = crate::common::cifar10("other_instruction_sets_are_healthy_too") else { return };
    for (aten, onednn) in [("avx2", "AVX2"), ("default", "SSE41")] {
        let run = verify(1, Path::new(PARITY), &data, &["launch.threads=1"]);
        passes(run.env("ATEN_CPU_CAPABILITY", aten).env("ONEDNN_MAX_CPU_ISA", onednn).run());
    }
}

/// Copies the parity file with one `model` alone and changes one thing in it, which the program that reads it must take for a
/// fault of its own.
fn changed(folder: &Path, model: &str, change: impl Fn(&hdf5::Group)) -> PathBuf {
    let path = folder.join("changed.h5");
    std::fs::copy(PARITY, &path).unwrap();
    let file = hdf5::File::open_rw(&path).unwrap();
    let others = file.member_names().unwrap().into_iter().filter(|name| name != model);
    others.for_each(|name| file.unlink(&name).unwrap());
    change(&file.group(model).unwrap());
    path
}

fn scale_attribute(group: &hdf5::Group, name: &str, factor: f64) {
    let attribute = group.attr(name).unwrap();
    let value: f64 = attribute.read_scalar().unwrap();
    attribute.write_scalar(&(value * factor)).unwrap();
}

/// Changes the rows of `dataset`, each the values of one step.
fn change_steps(group: &hdf5::Group, dataset: &str, change: impl Fn(&mut Vec<Vec<f64>>)) {
    let dataset = group.dataset(dataset).unwrap();
    let values: Vec<f64> = dataset.read_raw().unwrap();
    let mut steps: Vec<Vec<f64>> = values.chunks(values.len() / dataset.shape()[0]).map(<[f64]>::to_vec).collect();
    change(&mut steps);
    let values = steps.concat();
    if dataset.dtype().unwrap().is::<f64>() {
        dataset.write_raw(&values).unwrap();
    } else if dataset.dtype().unwrap().is::<u8>() {
        dataset.write_raw(&values.iter().map(|value| *value as u8).collect::<Vec<_>>()).unwrap();
    } else {
        dataset.write_raw(&values.iter().map(|value| *value as i32).collect::<Vec<_>>()).unwrap();
    }
}

fn change_samples(group: &hdf5::Group, change: impl Fn(&mut Vec<Vec<f64>>)) {
    ["indices", "labels"].iter().for_each(|name| change_steps(group, name, &change));
}

/// Initial weights from the seed, except for the first convolution's, which are too large by `factor`.
fn scale_first_weights(group: &hdf5::Group, factor: f32) {
    let seed: i64 = group.attr("seed").unwrap().read_scalar().unwrap();
    let config = hpml::config::Config::load(None, &[]).unwrap();
    for entry in hpml::model::Model::new(&config.model, hpml::data::Form::CIFAR10, seed as u64).unwrap().state {
        let mut values: Vec<f32> = entry.tensor.flatten(0, -1).try_into().unwrap();
        if entry.name == "conv1.weight" {
            values.iter_mut().for_each(|value| *value *= factor);
        }
        let shape: Vec<usize> = entry.tensor.size().into_iter().map(|extent| extent as usize).collect();
        let name = format!("init/{}", entry.name);
        group.new_dataset::<f32>().shape(shape).create(name.as_str()).unwrap().write_raw(&values).unwrap();
    }
}

#[test]
fn a_fault_fails() {
    let Some(data) = crate::common::cifar10("a_fault_fails") else { return };
    type Change = fn(&hdf5::Group);
    let faults: [(&str, usize, Change, &str); 7] = [
        ("a rate too large by 1 %", 1, |net| scale_attribute(net, "lr", 1.01), "movement of all parameters in step 0"),
        ("a rate too small by 1 %", 2, |net| scale_attribute(net, "lr", 0.99), "movement of all parameters in step 0"),
        (
            "momentum 0.89 for 0.9",
            1,
            |net| scale_attribute(net, "momentum", 0.89 / 0.9),
            "movement of all parameters in step 1",
        ),
        (
            "two batches in each other's place",
            1,
            |net| {
                change_samples(net, |steps| steps.swap(3, 4));
                change_steps(net, "input_sum", |steps| steps.swap(3, 4));
            },
            "loss in step 3",
        ),
        (
            "the gradient of one rank's samples, counted as the average over both",
            2,
            |net| change_samples(net, |steps| steps.iter_mut().for_each(|step| step.copy_within(..32, 32))),
            "movement of all parameters in step 0",
        ),
        ("weights too large by 1 %", 1, |net| scale_first_weights(net, 1.01), "movement of all parameters in step 0"),
        (
            "a loss that is not the reference's",
            1,
            |net| change_steps(net, "ranks_1/loss", |steps| steps[7][0] *= 1.0 + 3e-4),
            "loss in step 7",
        ),
    ];
    let folder = crate::common::folder();
    for (fault, ranks, change, expected) in faults {
        eprintln!("{fault}");
        let file = changed(folder.path(), "net", change);
        fails(&verify(ranks, &file, &data, &["launch.threads=1"]).run(), expected);
    }
    // Copying alone causes no failure.
    let file = changed(folder.path(), "net", |net| scale_first_weights(net, 1.0));
    passes(verify(1, &file, &data, &["launch.threads=1"]).run());
}

/// With batch norm it matters which samples of a step a rank draws.
#[test]
fn samples_of_the_wrong_rank_fail() {
    let Some(data) = crate::common::cifar10("samples_of_the_wrong_rank_fail") else { return };
    let folder = crate::common::folder();
    let exchange = |steps: &mut Vec<Vec<f64>>| steps.iter_mut().for_each(|step| step.swap(0, 8));
    let file = changed(folder.path(), "resnet18", |model| change_samples(model, exchange));
    fails(&verify(2, &file, &data, &["launch.threads=1"]).run(), "resnet18: loss in step 0");
}

#[test]
fn batch_norm_over_other_groups_than_the_files_fails() {
    let Some(data) = crate::common::cifar10("batch_norm_over_other_groups_than_the_files_fails") else { return };
    let folder = crate::common::folder();
    let file = changed(folder.path(), "resnet18", |_| ());
    fails(&verify(3, &file, &data, &["launch.threads=1"]).run(), "scripts/parity.py --ranks 3");
}

#[test]
fn what_keeps_it_from_judging_fails() {
    let folder = crate::common::folder();
    let run = |file: &str, settings: &[&str]| {
        verify(2, Path::new(file), folder.path(), settings).timeout(Duration::from_secs(120)).run()
    };
    fails(&run("none.h5", &[]), "none.h5");
    fails(&run(PARITY, &[]), "no data here");
    fails(&run(PARITY, &["data.dir=", "optim.momentum=0.89"]), "optim.momentum = 0.89: the parity file decides that");
    fails(&run(PARITY, &["train.rate=0.1"]), "rate");
}
