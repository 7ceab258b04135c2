//! The folded network in float32 on libtorch, for calibration and the float rows of the accuracy table.

use tch::{Device, Kind, Tensor};

use super::graph::{FloatNet, Floats, Geometry, Node, Operation, Spec, Window};

/// A layer's weight `[outputs, inputs, rows, columns]` and bias `[outputs]`; empty for a pool.
pub(super) type Tensors = (Tensor, Option<Tensor>);

/// The float network with its weights as tensors.
pub struct FloatTorch {
    spec: Spec,
    mean: Tensor,
    std: Tensor,
    nodes: Vec<Node<Tensors>>,
}

impl FloatTorch {
    /// Copies the weights to host memory.
    pub fn new(net: &FloatNet) -> FloatTorch {
        FloatTorch::on(net, Device::Cpu)
    }

    /// Copies the weights to `device`, on which the network then computes.
    pub fn on(net: &FloatNet, device: Device) -> FloatTorch {
        let channels = |values: &[f32]| Tensor::from_slice(values).view([1, -1, 1, 1]).to_device(device);
        let (mean, std) = (channels(&net.spec.mean), channels(&net.spec.std));
        FloatTorch { spec: net.spec.clone(), mean, std, nodes: tensor_nodes(net, device) }
    }

    /// Network, images and classes.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Names of the tensors that a layer reads: `input`, then every layer but the last.
    pub fn tensor_names(&self) -> Vec<String> {
        let layers = self.nodes[..self.nodes.len() - 1].iter().map(|node| node.name.clone());
        std::iter::once("input".to_owned()).chain(layers).collect()
    }

    /// Computes every tensor that a layer reads, in the order of [`Self::tensor_names`], `[n, channels, height, width]`.
    pub fn tensors(&self, pixels: &[u8]) -> Vec<Tensor> {
        let mut tensors = self.forward(pixels, Keep::All);
        tensors.pop();
        tensors
    }

    /// Computes the logits `[n, classes]`.
    pub fn logits(&self, pixels: &[u8]) -> Tensor {
        self.forward(pixels, Keep::Last).pop().expect("a network has layers").flatten(1, -1)
    }

    fn forward(&self, pixels: &[u8], keep: Keep) -> Vec<Tensor> {
        let _guard = tch::no_grad_guard();
        let images = self.spec.pixel_tensor(pixels).to_device(self.mean.device()).to_kind(Kind::Float) / 255.0;
        forward(&self.nodes, (images - &self.mean) / &self.std, keep, |_, values| values)
    }
}

/// The network's nodes with their numbers as tensors on `device`.
pub(super) fn tensor_nodes(net: &FloatNet, device: Device) -> Vec<Node<Tensors>> {
    let numbers = |node: &Node<Floats>| match node.layer() {
        Some(layer) => {
            let (weight, bias) = tensors(layer.geometry, &layer.numbers);
            Ok((weight.to_device(device), bias.map(|bias| bias.to_device(device))))
        }
        None => Ok((Tensor::new(), None)),
    };
    net.nodes.iter().map(|node| node.with_numbers(numbers).expect("copying cannot fail")).collect()
}

/// Tensors that a forward pass leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// All tensors.
    All,
    /// Tensors that a node still reads: in the end the logits. The others are empty.
    Last,
}

/// Computes every tensor from the normalized `images` to the logits; `made(index, tensor)` may change each before it is read.
pub(super) fn forward(
    nodes: &[Node<Tensors>],
    images: Tensor,
    keep: Keep,
    made: impl Fn(usize, Tensor) -> Tensor,
) -> Vec<Tensor> {
    let last_reads = last_reads(nodes);
    let mut tensors = vec![made(0, images)];
    for (index, node) in nodes.iter().enumerate() {
        let input = &tensors[node.input];
        let output = match &node.operation {
            Operation::AveragePool { .. } => input.mean_dim([2i64, 3].as_slice(), true, Kind::Float),
            Operation::MaxPool { window, .. } => max_pool(input, *window),
            Operation::Convolution(layer) => {
                let (weight, bias) = &layer.numbers;
                let mut output = convolve(input, weight, bias.as_ref(), layer.geometry);
                if let Some(residual) = layer.residual {
                    output += &tensors[residual];
                }
                if layer.relu {
                    output = output.relu_();
                }
                if layer.max_pool { max_pool(&output, Window::HALVING) } else { output }
            }
        };
        tensors.push(made(index + 1, output));
        if keep == Keep::Last {
            forget(&mut tensors, &last_reads, index);
        }
    }
    tensors
}

/// Number of the last node that reads each tensor, by tensor.
pub(super) fn last_reads<L>(nodes: &[Node<L>]) -> Vec<usize> {
    let mut last = vec![0; nodes.len() + 1];
    for (index, node) in nodes.iter().enumerate() {
        last[node.input] = index;
        if let Some(residual) = node.layer().and_then(|layer| layer.residual) {
            last[residual] = index;
        }
    }
    last
}

/// Empties the tensors that node `index` was the last to read.
pub(super) fn forget(tensors: &mut [Tensor], last_reads: &[usize], index: usize) {
    let made = tensors.len() - 1;
    let read = tensors[..made].iter_mut().zip(last_reads).filter(|(_, last)| **last == index);
    read.for_each(|(tensor, _)| *tensor = Tensor::new());
}

fn tensors(geometry: Geometry, floats: &Floats) -> (Tensor, Option<Tensor>) {
    let weight = Tensor::from_slice(&floats.weight).view(geometry.weight_shape().map(|extent| extent as i64));
    (weight, floats.bias.as_ref().map(|bias| Tensor::from_slice(bias)))
}

/// Max-pool of `[n, channels, height, width]`.
pub(super) fn max_pool(input: &Tensor, window: Window) -> Tensor {
    let [kernel, stride, padding] = [window.kernel, window.stride, window.padding].map(|extent| [extent as i64; 2]);
    input.max_pool2d(kernel, stride, padding, [1, 1], false)
}

/// Convolution with the geometry's stride and zero padding.
pub(super) fn convolve(input: &Tensor, weight: &Tensor, bias: Option<&Tensor>, geometry: Geometry) -> Tensor {
    let (stride, padding) = ([geometry.stride as i64; 2], [geometry.padding as i64; 2]);
    input.conv2d(weight, bias, stride, padding, [1, 1], 1)
}

/// Index of the greatest logit of each image.
pub fn predictions(logits: &Tensor) -> Vec<usize> {
    let classes: Vec<i64> = logits.argmax(1, false).try_into().expect("argmax gives a vector of integers");
    classes.into_iter().map(|class| class as usize).collect()
}
