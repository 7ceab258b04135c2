//! Tests of the networks: sizes as published, and names, initial values and losses as PyTorch's.

use tch::{Device, Kind, Tensor};

use super::graph::Graph;
use super::*;
use crate::config::{Config, Precision};
use crate::error::Error;

const IMAGENET: Form = Form::Images { shape: [3, 224, 224], classes: 1000 };

/// The `[model]` section with these keys set.
fn section(keys: &str) -> config::Model {
    let keys: Vec<String> = keys.split_whitespace().map(|key| format!("model.{key}")).collect();
    Config::load(None, &keys).unwrap().model
}

fn graph(keys: &str, form: Form) -> Graph {
    Graph::new(&section(keys), form).unwrap()
}

#[test]
fn the_networks_have_the_published_number_of_parameters() {
    let cases = [
        ("name=net", Form::CIFAR10, 61_770),
        ("name=net bias=true", Form::CIFAR10, 61_780),
        ("name=resnet18", Form::CIFAR10, 11_173_962),
        // Source: torchvision's documentation of the models' weights.
        ("name=resnet18", IMAGENET, 11_689_512),
        ("name=resnet34", IMAGENET, 21_797_672),
        ("name=resnet50", IMAGENET, 25_557_032),
        ("name=resnet101", IMAGENET, 44_549_160),
        ("name=vit", IMAGENET, 86_567_656),
        // Source: nanoGPT's README and transformers' GPT2Model.
        ("name=gpt2", Form::Tokens { length: 1024, vocabulary: 50_257 }, 124_439_808),
    ];
    for (keys, form, parameters) in cases {
        assert_eq!(graph(keys, form).parameters(), parameters, "{keys}");
    }
}

/// Source: GFLOPS in torchvision's documentation, where a multiplication with its addition counts once.
#[test]
fn the_networks_do_the_published_work() {
    for (name, published) in
        [("resnet18", 1.81), ("resnet34", 3.66), ("resnet50", 4.09), ("resnet101", 7.80), ("vit", 17.56)]
    {
        let found = graph(&format!("name={name}"), IMAGENET).multiplications() as f64 / 1e9;
        assert!((found - published).abs() < 0.0051, "{name}: {found}");
    }
}

#[test]
fn shapes_follow_the_data() {
    let net = graph("name=net", Form::Images { shape: [1, 28, 20], classes: 47 });
    let fc1 = net.nodes.iter().find(|node| node.name == "fc1").unwrap();
    assert_eq!(net.slots(fc1).next().unwrap().shape, [120, 16 * 4 * 2]);
    assert_eq!(net.nodes.last().unwrap().shape, [47]);
    let vit = graph("name=vit width=64 depth=1", Form::Images { shape: [3, 32, 48], classes: 5 });
    let position = vit.state.iter().find(|slot| slot.name == "encoder.pos_embedding").unwrap();
    assert_eq!(position.shape, [1, 1 + 8 * 12, 64]);
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let images = |side| Form::Images { shape: [3, side, side], classes: 10 };
    let tokens = Form::Tokens { length: 8, vocabulary: 100 };
    for (keys, form, expected) in [
        ("name=net", images(12), "model: model.name = \"net\": its conv2 has a kernel of 5 pixels, its input 4x4"),
        ("name=resnet50", tokens, "model.name = \"resnet50\": takes images"),
        ("name=gpt2", images(32), "model.name = \"gpt2\": takes sequences of tokens"),
        ("name=vit patch=5", images(32), "model.patch = 5: must divide the sides of the images, 32x32"),
        ("name=gpt2 width=100 heads=3", tokens, "model.heads = 3: must divide model.width, here 100"),
    ] {
        let error = Graph::new(&section(keys), form).unwrap_err();
        assert!(matches!(error, Error::ConfigValue { .. }) && error.to_string().contains(expected), "{error}");
    }
    assert!(Graph::new(&section("name=net"), images(16)).is_ok());
}

#[test]
fn every_precision_and_layout_gives_logits_in_float32() {
    let images = Tensor::zeros([2, 3, 32, 32], (Kind::Float, Device::Cpu));
    let tokens = Tensor::zeros([2, 8], (Kind::Int64, Device::Cpu));
    let cases = [
        ("name=net", Form::CIFAR10, &images, vec![2, 10]),
        ("name=resnet18 width=16", Form::CIFAR10, &images, vec![2, 10]),
        ("name=resnet50 width=8 stem=imagenet", Form::CIFAR10, &images, vec![2, 10]),
        ("name=vit width=32 heads=2 depth=2 dropout=0.1", Form::CIFAR10, &images, vec![2, 10]),
        (
            "name=gpt2 width=32 heads=2 depth=2 dropout=0.1",
            Form::Tokens { length: 8, vocabulary: 50 },
            &tokens,
            vec![2, 8, 50],
        ),
    ];
    for (keys, form, inputs, shape) in cases {
        for precision in [Precision::Float32, Precision::Bf16] {
            for channels_last in [false, true] {
                let config = config::Model { precision, channels_last, ..section(keys) };
                let model = Model::new(&config, form, 0).unwrap();
                for mode in [Mode::TRAIN, Mode::Eval] {
                    let logits = model.forward(inputs, mode);
                    assert_eq!((logits.size(), logits.kind()), (shape.clone(), Kind::Float), "{keys} {precision:?}");
                    assert!(logits.isfinite().all().int64_value(&[]) == 1, "{keys}");
                }
            }
        }
    }
}

#[test]
fn dropout_draws_from_the_generator_in_training_only() {
    let tokens = Tensor::arange(16, (Kind::Int64, Device::Cpu)).view([2, 8]);
    let form = Form::Tokens { length: 8, vocabulary: 50 };
    let model = Model::new(&section("name=gpt2 width=32 heads=2 depth=1 dropout=0.5"), form, 0).unwrap();
    let logits = |seed, mode: Mode| seeded(seed, || model.forward(&tokens, mode));
    assert!(logits(1, Mode::TRAIN).equal(&logits(1, Mode::TRAIN)));
    assert!(!logits(1, Mode::TRAIN).equal(&logits(2, Mode::TRAIN)));
    assert!(logits(1, Mode::Eval).equal(&logits(2, Mode::Eval)));
}

#[test]
fn every_node_reads_earlier_ones_and_has_a_name_of_its_own() {
    for (keys, form) in [
        ("name=net", Form::CIFAR10),
        ("name=resnet101", IMAGENET),
        ("name=vit dropout=0.1", IMAGENET),
        ("name=gpt2 dropout=0.1", Form::Tokens { length: 64, vocabulary: 100 }),
    ] {
        let graph = graph(keys, form);
        let mut names: Vec<&str> = graph.nodes.iter().map(|node| node.name.as_str()).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{keys}");
        for (index, node) in graph.nodes.iter().enumerate() {
            assert!(node.inputs.iter().all(|&input| input < index), "{keys}: {}", node.name);
        }
        assert!(graph.nodes.iter().enumerate().all(|(index, _)| graph.last_uses()[index] >= index));
        assert_eq!(graph.nodes.last().unwrap().shape.last(), Some(&form.outputs()));
    }
}
