//! The folded network in float32 on libtorch, for calibration and the float rows of the accuracy table.

use tch::{Device, Kind, Tensor};

use super::graph::{FloatNet, Floats, Geometry, Node, Operation};
use super::integer::image_count;

/// A layer's weight `[outputs, inputs, kernel, kernel]` and bias `[outputs]`; empty for the average pool.
pub(super) type Tensors = (Tensor, Option<Tensor>);

/// The float network with its weights as tensors.
pub struct FloatTorch {
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
        let channels = |values: &[f32; 3]| Tensor::from_slice(values).view([1, 3, 1, 1]).to_device(device);
        FloatTorch { mean: channels(&net.mean), std: channels(&net.std), nodes: tensor_nodes(net, device) }
    }

    /// Names of the tensors that a layer reads: `input`, then every layer but the last.
    pub fn tensor_names(&self) -> Vec<String> {
        let layers = self.nodes[..self.nodes.len() - 1].iter().map(|node| node.name.clone());
        std::iter::once("input".to_owned()).chain(layers).collect()
    }

    /// Computes every tensor that a layer reads, in the order of [`Self::tensor_names`], `[n, channels, side, side]`.
    pub fn tensors(&self, pixels: &[u8]) -> Vec<Tensor> {
        let mut tensors = self.forward(pixels);
        tensors.pop();
        tensors
    }

    /// Computes the logits `[n, 10]`.
    pub fn logits(&self, pixels: &[u8]) -> Tensor {
        self.forward(pixels).pop().expect("a network has layers").flatten(1, -1)
    }

    fn forward(&self, pixels: &[u8]) -> Vec<Tensor> {
        let _guard = tch::no_grad_guard();
        let images = pixel_tensor(pixels).to_device(self.mean.device()).to_kind(Kind::Float) / 255.0;
        forward(&self.nodes, (images - &self.mean) / &self.std, |_, values| values)
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

/// Computes every tensor from the normalized `images` to the logits; `made(index, tensor)` may change each before it is read.
pub(super) fn forward(nodes: &[Node<Tensors>], images: Tensor, made: impl Fn(usize, Tensor) -> Tensor) -> Vec<Tensor> {
    let mut tensors = vec![made(0, images)];
    for (index, node) in nodes.iter().enumerate() {
        let input = &tensors[node.input];
        let output = match &node.operation {
            Operation::AveragePool { .. } => input.mean_dim([2i64, 3].as_slice(), true, Kind::Float),
            Operation::Convolution(layer) => {
                let (weight, bias) = &layer.numbers;
                let mut output = convolve(input, weight, bias.as_ref(), layer.geometry);
                if let Some(residual) = layer.residual {
                    output += &tensors[residual];
                }
                if layer.relu {
                    output = output.relu_();
                }
                if layer.max_pool { max_pool(&output) } else { output }
            }
        };
        tensors.push(made(index + 1, output));
    }
    tensors
}

fn tensors(geometry: Geometry, floats: &Floats) -> (Tensor, Option<Tensor>) {
    let [outputs, inputs, kernel] = [geometry.outputs, geometry.inputs, geometry.kernel].map(|extent| extent as i64);
    let weight = Tensor::from_slice(&floats.weight).view([outputs, inputs, kernel, kernel]);
    (weight, floats.bias.as_ref().map(|bias| Tensor::from_slice(bias)))
}

/// Wraps pixels as a tensor `[n, 3, 32, 32]` u8.
pub(super) fn pixel_tensor(pixels: &[u8]) -> Tensor {
    Tensor::from_slice(pixels).view([image_count(pixels) as i64, 3, 32, 32])
}

/// Max-pool, 2x2 with stride 2.
pub(super) fn max_pool(input: &Tensor) -> Tensor {
    input.max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], false)
}

/// Convolution with the geometry's stride and zero padding.
pub(super) fn convolve(input: &Tensor, weight: &Tensor, bias: Option<&Tensor>, geometry: Geometry) -> Tensor {
    let (stride, padding) = ([geometry.stride as i64; 2], [geometry.padding as i64; 2]);
    input.conv2d(weight, bias, stride, padding, [1, 1], 1)
}

/// Index of the greatest logit of each image.
pub fn predictions(logits: &Tensor) -> Vec<u8> {
    let classes: Vec<i64> = logits.argmax(1, false).try_into().expect("argmax gives a vector of integers");
    classes.into_iter().map(|class| class as u8).collect()
}
