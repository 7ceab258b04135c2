//! Structure.

use super::graph::{Geometry, Layer, Node, Norm, Operation, Source, Spec};
use crate::config::ModelName;
use crate::error::Result;

pub fn structure(spec: &Spec) -> Result<Vec<Node<Source>>> {
    Ok(match spec.model.name {
        ModelName::Net => net_structure(spec),
        ModelName::Resnet18 => resnet18_structure(spec),
    })
}

fn layer(geometry: Geometry) -> Layer<Source> {
    Layer { geometry, residual: None, relu: true, max_pool: false, linear: false, numbers: Source::default() }
}

fn net_structure(spec: &Spec) -> Vec<Node<Source>> {
    let layers = [
        ("conv1", Geometry { inputs: 3, outputs: 6, kernel: [5, 5], stride: 1, padding: 0, size: [32, 32] }),
        ("conv2", Geometry { inputs: 6, outputs: 16, kernel: [5, 5], stride: 1, padding: 0, size: [14, 14] }),
        ("fc1", Geometry { inputs: 16, outputs: 120, kernel: [5, 5], stride: 1, padding: 0, size: [5, 5] }),
        ("fc2", Geometry { inputs: 120, outputs: 84, kernel: [1, 1], stride: 1, padding: 0, size: [1, 1] }),
        ("fc3", Geometry { inputs: 84, outputs: spec.classes, kernel: [1, 1], stride: 1, padding: 0, size: [1, 1] }),
    ];
    let node = |(input, (name, geometry)): (usize, (&str, Geometry))| {
        let bias = name == "fc3" && spec.model.bias;
        let layer = Layer {
            max_pool: name.starts_with("conv"),
            linear: name.starts_with("fc"),
            relu: name != "fc3",
            numbers: Source { norm: None, bias },
            ..layer(geometry)
        };
        Node { name: name.into(), input, operation: Operation::Convolution(layer) }
    };
    layers.into_iter().enumerate().map(node).collect()
}

fn resnet18_structure(spec: &Spec) -> Vec<Node<Source>> {
    let mut nodes: Vec<Node<Source>> = Vec::new();
    let mut push = |name: String, input: usize, mut operation| {
        if let Operation::Convolution(layer) = &mut operation
            && !layer.linear
        {
            let norm = match name.strip_suffix("shortcut.0") {
                Some(block) => format!("{block}shortcut.1"),
                None => name.replace("conv", "bn"),
            };
            layer.numbers.norm = Some(Norm { name: norm, epsilon: 1e-5 });
        }
        nodes.push(Node { name, input, operation });
        nodes.len() // number of the tensor that the new node makes
    };
    let size = [spec.shape[1], spec.shape[2]];
    let stem = Geometry { inputs: 3, outputs: spec.model.width, kernel: [3, 3], stride: 1, padding: 1, size };
    let mut tensor = push("conv1".into(), 0, Operation::Convolution(layer(stem)));

    let (mut inputs, mut size) = (spec.model.width, size);
    for (stage, first_stride) in [(1, 1), (2, 2), (3, 2), (4, 2)] {
        let outputs = spec.model.width << (stage - 1);
        for index in 0..2 {
            let block = format!("layer{stage}.{index}");
            let stride = if index == 0 { first_stride } else { 1 };
            let first = Geometry { inputs, outputs, kernel: [3, 3], stride, padding: 1, size };
            let second = Geometry { inputs: outputs, stride: 1, size: first.out_size(), ..first };
            let mut skip = tensor;
            if stride != 1 || inputs != outputs {
                let shortcut = Layer { relu: false, ..layer(Geometry { kernel: [1, 1], padding: 0, ..first }) };
                skip = push(format!("{block}.shortcut.0"), tensor, Operation::Convolution(shortcut));
            }
            let hidden = push(format!("{block}.conv1"), tensor, Operation::Convolution(layer(first)));
            let second_layer = Layer { residual: Some(skip), ..layer(second) };
            tensor = push(format!("{block}.conv2"), hidden, Operation::Convolution(second_layer));
            (inputs, size) = (outputs, second.size);
        }
    }
    tensor = push(
        "avgpool".into(),
        tensor,
        Operation::AveragePool { channels: inputs, size, numbers: Source::default() },
    );
    let geometry =
        Geometry { inputs, outputs: spec.classes, kernel: [1, 1], stride: 1, padding: 0, size: [1, 1] };
    let mut linear = Layer { relu: false, linear: true, ..layer(geometry) };
    linear.numbers.bias = true;
    push("linear".into(), tensor, Operation::Convolution(linear));
    nodes
}
