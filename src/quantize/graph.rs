//! The trained network as quantization reads it: a list of nodes, batch norm folded into the convolution before it.
//!
//! Every layer is a convolution. A fully connected layer on `[c, k, k]` is one with kernel `k` and output 1x1: its weight
//! `[out, c * k * k]` has the memory layout of `[out, c, k, k]`.

use crate::config::ModelName;
use crate::error::{Error, Result};
use crate::store::{NamedTensor, TensorValues};

/// Side of an image in pixels.
pub const IMAGE_SIDE: usize = 32;
/// Bytes of an image: three planes.
pub const IMAGE_BYTES: usize = 3 * IMAGE_SIDE * IMAGE_SIDE;
/// Number of classes: the channels of the last layer.
pub const CLASSES: usize = 10;

/// Geometry of a convolution on square images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Input channels.
    pub inputs: usize,
    /// Output channels.
    pub outputs: usize,
    /// Side of the kernel.
    pub kernel: usize,
    /// Step between two outputs, in input pixels.
    pub stride: usize,
    /// Zero pixels on each side of the input.
    pub padding: usize,
    /// Side of the input.
    pub side: usize,
}

impl Geometry {
    /// Side of the output, before pooling.
    pub fn out_side(&self) -> usize {
        (self.side + 2 * self.padding - self.kernel) / self.stride + 1
    }

    /// Products summed in one output.
    pub fn taps(&self) -> usize {
        self.inputs * self.kernel * self.kernel
    }

    /// Multiply-accumulates for one image.
    pub fn macs(&self) -> usize {
        self.taps() * self.outputs * self.out_side() * self.out_side()
    }
}

/// One operation of the network. Tensors are numbered: 0 is the image, node `i` makes tensor `i + 1`.
#[derive(Debug, Clone, PartialEq)]
pub struct Node<L> {
    /// PyTorch's module name, for example `layer1.0.conv1`.
    pub name: String,
    /// Number of the tensor that the node reads.
    pub input: usize,
    /// Operation of the node.
    pub operation: Operation<L>,
}

/// Operations of a network; `L` is the type of a layer's numbers, float or integer.
#[derive(Debug, Clone, PartialEq)]
pub enum Operation<L> {
    /// Convolution, then residual, ReLU and 2x2 max-pool, if the layer has them.
    Convolution(Layer<L>),
    /// Mean over the whole image: `[c, side, side]` to `[c, 1, 1]`.
    AveragePool {
        /// Channels.
        channels: usize,
        /// Side of the input.
        side: usize,
        /// Numbers of the pool: its requantization, if integer.
        numbers: L,
    },
}

/// A convolution and the operations fused to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer<L> {
    /// Shape of the convolution.
    pub geometry: Geometry,
    /// Tensor added to the output, if any.
    pub residual: Option<usize>,
    /// Whether negative outputs become 0: true for all but the last layer.
    pub relu: bool,
    /// Whether a 2x2 max-pool follows.
    pub max_pool: bool,
    /// Weights, biases and scales.
    pub numbers: L,
}

impl<L> Node<L> {
    /// (channels, side) of the tensor that the layer makes.
    pub fn shape(&self) -> (usize, usize) {
        match &self.operation {
            Operation::Convolution(layer) => {
                let side = layer.geometry.out_side();
                (layer.geometry.outputs, if layer.max_pool { side / 2 } else { side })
            }
            Operation::AveragePool { channels, .. } => (*channels, 1),
        }
    }

    /// Copies the node with other numbers.
    ///
    /// # Errors
    /// `numbers` failed.
    pub fn with_numbers<M>(&self, numbers: impl FnOnce(&Node<L>) -> Result<M>) -> Result<Node<M>> {
        let numbers = numbers(self)?;
        let operation = match &self.operation {
            Operation::Convolution(layer) => {
                let Layer { geometry, residual, relu, max_pool, .. } = *layer;
                Operation::Convolution(Layer { geometry, residual, relu, max_pool, numbers })
            }
            Operation::AveragePool { channels, side, .. } => {
                Operation::AveragePool { channels: *channels, side: *side, numbers }
            }
        };
        Ok(Node { name: self.name.clone(), input: self.input, operation })
    }

    /// Numbers of the node.
    pub fn numbers(&self) -> &L {
        match &self.operation {
            Operation::Convolution(layer) => &layer.numbers,
            Operation::AveragePool { numbers, .. } => numbers,
        }
    }

    /// Layer of the node; `None` for the average pool.
    pub fn layer(&self) -> Option<&Layer<L>> {
        match &self.operation {
            Operation::Convolution(layer) => Some(layer),
            Operation::AveragePool { .. } => None,
        }
    }
}

/// Numbers of a float layer; both fields are empty for the average pool.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Floats {
    /// `[outputs, inputs, kernel, kernel]`.
    pub weight: Vec<f32>,
    /// `[outputs]`.
    pub bias: Option<Vec<f32>>,
}

/// Structure of a network without any numbers; `width` is the number of channels in ResNet-18's first stage.
pub fn structure(name: ModelName, width: usize) -> Vec<Node<()>> {
    match name {
        ModelName::Net => net_structure(),
        ModelName::File => Vec::new(), // refused before
        _ => resnet18_structure(width),
    }
}

/// The float network.
#[derive(Debug, Clone, PartialEq)]
pub struct FloatNet {
    /// Name of the network.
    pub name: ModelName,
    /// Mean per channel; input = (pixel / 255 - mean) / std.
    pub mean: [f32; 3],
    /// Standard deviation per channel.
    pub std: [f32; 3],
    /// Nodes in the order of the forward pass.
    pub nodes: Vec<Node<Floats>>,
}

impl FloatNet {
    /// Reads a network from a `state_dict`. Name, width and whether `fc3` has a bias follow from the tensors' names and shapes.
    ///
    /// # Errors
    /// A tensor is missing, has another shape, or holds a NaN or infinity; the error names it.
    pub fn from_state(state: &[NamedTensor], mean: [f32; 3], std: [f32; 3]) -> Result<FloatNet> {
        let state = State(state);
        let name = if state.has("fc3.weight") { ModelName::Net } else { ModelName::Resnet18 };
        let width = *state.shape("conv1.weight")?.first().unwrap_or(&0);
        let structure = structure(name, width);
        let nodes = structure.iter().map(|node| {
            node.with_numbers(|node| match node.layer() {
                Some(layer) => state.layer(&node.name, layer.geometry),
                None => Ok(Floats::default()),
            })
        });
        Ok(FloatNet { name, mean, std, nodes: nodes.collect::<Result<_>>()? })
    }

    /// Whether any layer has a bias (its own, or that of the folded batch norm).
    pub fn has_bias(&self) -> bool {
        self.nodes.iter().filter_map(Node::layer).any(|layer| layer.numbers.bias.is_some())
    }

    /// Bytes of weights and biases in float32.
    pub fn bytes(&self) -> usize {
        let layers = self.nodes.iter().filter_map(Node::layer);
        layers.map(|layer| 4 * (layer.numbers.weight.len() + layer.numbers.bias.as_ref().map_or(0, Vec::len))).sum()
    }
}

struct State<'a>(&'a [NamedTensor]);

impl State<'_> {
    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|tensor| tensor.name == name)
    }

    fn shape(&self, name: &str) -> Result<&[usize]> {
        let tensor = self.0.iter().find(|tensor| tensor.name == name);
        let tensor = tensor.ok_or_else(|| Error::QuantizeModel { name: name.into(), problem: "missing".into() })?;
        Ok(&tensor.shape)
    }

    fn floats(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>> {
        let refuse = |problem: String| Error::QuantizeModel { name: name.into(), problem };
        let shape = self.shape(name)?;
        if shape != expected {
            return Err(refuse(format!("shape {shape:?}, expected {expected:?}")));
        }
        let tensor = self.0.iter().find(|tensor| tensor.name == name).expect("its shape was found");
        let TensorValues::F32(values) = &tensor.values else { return Err(refuse("not float32".into())) };
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return Err(Error::QuantizeNotFinite { name: name.into(), index, value: values[index] });
        }
        Ok(values.clone())
    }

    /// Reads a layer's numbers by its PyTorch name: `fc3` and `linear` directly, `layer1.0.conv2` folded with `layer1.0.bn2`.
    fn layer(&self, name: &str, geometry: Geometry) -> Result<Floats> {
        if name.starts_with("fc") || name == "linear" {
            return self.linear(name, geometry, self.has(&format!("{name}.bias")));
        }
        let norm = match name.strip_suffix("shortcut.0") {
            Some(block) => format!("{block}shortcut.1"),
            None => name.replace("conv", "bn"),
        };
        if self.has(&format!("{norm}.weight")) {
            self.folded(name, &norm, geometry)
        } else {
            self.convolution(name, geometry)
        }
    }

    fn convolution(&self, name: &str, geometry: Geometry) -> Result<Floats> {
        let Geometry { inputs, outputs, kernel, .. } = geometry;
        let weight = self.floats(&format!("{name}.weight"), &[outputs, inputs, kernel, kernel])?;
        Ok(Floats { weight, bias: None })
    }

    fn linear(&self, name: &str, geometry: Geometry, bias: bool) -> Result<Floats> {
        let weight = self.floats(&format!("{name}.weight"), &[geometry.outputs, geometry.taps()])?;
        let bias = bias.then(|| self.floats(&format!("{name}.bias"), &[geometry.outputs])).transpose()?;
        Ok(Floats { weight, bias })
    }

    /// Folds a batch norm into its convolution. In evaluation it is `x * gain + offset` per channel: the gain goes into the
    /// weights, the offset becomes the bias.
    fn folded(&self, convolution: &str, norm: &str, geometry: Geometry) -> Result<Floats> {
        const EPSILON: f64 = 1e-5; // PyTorch's default, as in `model::layers`
        let mut floats = self.convolution(convolution, geometry)?;
        let of = |suffix: &str| self.floats(&format!("{norm}.{suffix}"), &[geometry.outputs]);
        let (weight, bias, mean, variance) = (of("weight")?, of("bias")?, of("running_mean")?, of("running_var")?);
        let mut offsets = Vec::with_capacity(geometry.outputs);
        for (channel, taps) in floats.weight.chunks_mut(geometry.taps()).enumerate() {
            let gain = weight[channel] as f64 / (variance[channel] as f64 + EPSILON).sqrt();
            taps.iter_mut().for_each(|tap| *tap = (*tap as f64 * gain) as f32);
            offsets.push((bias[channel] as f64 - mean[channel] as f64 * gain) as f32);
        }
        if let Some(index) = floats.weight.iter().chain(&offsets).position(|value| !value.is_finite()) {
            let name = format!("{norm}.running_var");
            return Err(Error::QuantizeNotFinite { name, index: index / geometry.taps(), value: f32::NAN });
        }
        floats.bias = Some(offsets);
        Ok(floats)
    }
}

fn layer(geometry: Geometry) -> Layer<()> {
    Layer { geometry, residual: None, relu: true, max_pool: false, numbers: () }
}

fn net_structure() -> Vec<Node<()>> {
    let layers = [
        ("conv1", Geometry { inputs: 3, outputs: 6, kernel: 5, stride: 1, padding: 0, side: 32 }),
        ("conv2", Geometry { inputs: 6, outputs: 16, kernel: 5, stride: 1, padding: 0, side: 14 }),
        ("fc1", Geometry { inputs: 16, outputs: 120, kernel: 5, stride: 1, padding: 0, side: 5 }),
        ("fc2", Geometry { inputs: 120, outputs: 84, kernel: 1, stride: 1, padding: 0, side: 1 }),
        ("fc3", Geometry { inputs: 84, outputs: CLASSES, kernel: 1, stride: 1, padding: 0, side: 1 }),
    ];
    let node = |(input, (name, geometry)): (usize, (&str, Geometry))| {
        let layer = Layer { max_pool: name.starts_with("conv"), relu: name != "fc3", ..layer(geometry) };
        Node { name: name.into(), input, operation: Operation::Convolution(layer) }
    };
    layers.into_iter().enumerate().map(node).collect()
}

fn resnet18_structure(width: usize) -> Vec<Node<()>> {
    let mut nodes: Vec<Node<()>> = Vec::new();
    let mut push = |name: String, input: usize, operation| {
        nodes.push(Node { name, input, operation });
        nodes.len() // number of the tensor that the new node makes
    };
    let stem = Geometry { inputs: 3, outputs: width, kernel: 3, stride: 1, padding: 1, side: IMAGE_SIDE };
    let mut tensor = push("conv1".into(), 0, Operation::Convolution(layer(stem)));

    let (mut inputs, mut side) = (width, IMAGE_SIDE);
    for (stage, first_stride) in [(1, 1), (2, 2), (3, 2), (4, 2)] {
        let outputs = width << (stage - 1);
        for index in 0..2 {
            let block = format!("layer{stage}.{index}");
            let stride = if index == 0 { first_stride } else { 1 };
            let first = Geometry { inputs, outputs, kernel: 3, stride, padding: 1, side };
            let second = Geometry { inputs: outputs, stride: 1, side: first.out_side(), ..first };
            let mut skip = tensor;
            if stride != 1 || inputs != outputs {
                let shortcut = Layer { relu: false, ..layer(Geometry { kernel: 1, padding: 0, ..first }) };
                skip = push(format!("{block}.shortcut.0"), tensor, Operation::Convolution(shortcut));
            }
            let hidden = push(format!("{block}.conv1"), tensor, Operation::Convolution(layer(first)));
            let second_layer = Layer { residual: Some(skip), ..layer(second) };
            tensor = push(format!("{block}.conv2"), hidden, Operation::Convolution(second_layer));
            (inputs, side) = (outputs, second.side);
        }
    }
    tensor = push("avgpool".into(), tensor, Operation::AveragePool { channels: inputs, side, numbers: () });
    let geometry = Geometry { inputs, outputs: CLASSES, kernel: 1, stride: 1, padding: 0, side: 1 };
    push("linear".into(), tensor, Operation::Convolution(Layer { relu: false, ..layer(geometry) }));
    nodes
}
