//! Networks as a user starts them: every built-in one trains on two ranks, and weights from a file begin a training.

use std::path::Path;

use crate::common::{Mpirun, assert_refused, column, folder, texts};
use hpml::config::Config;
use hpml::data::Form;
use hpml::model::{Model, Role, other_name};

const SMALL: [&str; 5] =
    ["data.train_samples=32", "data.test_samples=16", "train.batch_per_rank=4", "train.max_steps=3", "train.epochs=1"];

fn train(out: &Path, settings: &[&str]) -> Mpirun {
    let settings = SMALL.iter().chain(settings).flat_map(|setting| ["--set", setting]);
    Mpirun::ranks(2).args(["train", "--force", "--out", out.to_str().unwrap()]).args(settings)
}

#[test]
fn every_network_trains_on_two_ranks() {
    let folder = folder();
    let out = folder.path().join("run.h5");
    let tokens = ["data.shape=[16]", "data.classes=50", "model.name=gpt2", "model.width=32", "model.depth=2"];
    let cases: [&[&str]; 6] = [
        &["model.name=net", "data.shape=[1, 28, 28]", "data.classes=7"],
        &["model.name=resnet34", "model.width=4"],
        &["model.name=resnet50", "model.width=4", "data.shape=[3, 96, 64]", "parallel.buffers=sync"],
        &["model.name=vit", "model.width=32", "model.depth=2", "model.heads=2", "model.dropout=0.1"],
        &tokens,
        &["model.name=resnet18", "model.width=4", "model.stem=imagenet", "model.precision=bf16"],
    ];
    for settings in cases {
        train(&out, settings).run().succeeded();
        assert!(column(&out, "epochs/train_loss")[0].is_finite(), "{settings:?}");
    }
}

/// Writes the network's initial values as h5py writes a `state_dict`, with torchvision's names, without `left_out`.
fn write_state_dict(path: &Path, seed: u64, left_out: &str) {
    let settings = ["model.name=resnet18", "model.width=4"].map(String::from);
    let config = Config::load(None, &settings).unwrap();
    let file = hdf5::File::create(path).unwrap();
    for entry in Model::new(&config.model, Form::CIFAR10, seed).unwrap().state {
        let name = other_name(&entry.name).unwrap_or(entry.name);
        if entry.role == Role::Counter || name == left_out {
            continue;
        }
        let values: Vec<f32> = entry.tensor.detach().flatten(0, -1).try_into().unwrap();
        let shape: Vec<usize> = entry.tensor.size().into_iter().map(|extent| extent as usize).collect();
        file.new_dataset::<f32>().shape(shape).create(name.as_str()).unwrap().write_raw(&values).unwrap();
    }
}

#[test]
fn weights_from_a_file_begin_a_training_in_either_naming() {
    let folder = folder();
    let (out, weights) = (folder.path().join("run.h5"), folder.path().join("weights.h5"));
    let chosen = format!("model.weights={}", weights.display());
    let resnet = ["model.name=resnet18", "model.width=4", "launch.threads=1"];
    let trained = |settings: &[&str]| {
        train(&out, &[&resnet[..], settings].concat()).run().succeeded();
        texts(&out, "epochs/parameter_checksum").swap_remove(0)
    };
    let drawn = trained(&["run.seed=7"]);
    write_state_dict(&weights, 7, "");
    assert_eq!(trained(&["run.seed=7", &chosen]), drawn);
    write_state_dict(&weights, 8, "");
    assert_ne!(trained(&["run.seed=7", &chosen]), drawn);

    write_state_dict(&weights, 7, "fc.bias");
    assert_refused(&train(&out, &[&resnet[..], &[&chosen]].concat()).run(), &["weights.h5: linear.bias: missing"]);
    assert_refused(&train(&out, &["model.name=net", "model.weights=none.h5"]).run(), &["none.h5"]);
}

#[test]
fn what_a_network_cannot_take_is_refused() {
    let folder = folder();
    let out = folder.path().join("run.h5");
    for (settings, expected) in [
        (&["data.shape=[3, 12, 12]"][..], "its conv2 has a kernel of 5 pixels, its input 4x4: it needs larger images"),
        (&["model.depth=3"], "model.depth: net does not have it"),
        (&["model.name=vit", "model.patch=5"], "model.patch = 5: must divide the sides of the images, 32x32"),
        (&["model.name=gpt2"], "takes sequences of tokens, but the data are images"),
    ] {
        assert_refused(&train(&out, settings).run(), &[expected]);
    }
}
