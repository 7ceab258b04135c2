//! The network as quantization sees it: a list of nodes, what follows a convolution fused to it.
//!
//! Every layer is a convolution. A fully connected layer on `[c, k, k]` is one with kernel `k` and output 1x1: its weight
//! `[out, c * k * k]` has the memory layout of `[out, c, k, k]`.

use std::ops::Range;

use tch::Tensor;

use crate::config;
use crate::data::Form;
use crate::error::Result;

/// Network, images and classes that the numbers of a float or integer network belong to.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// Network.
    pub model: config::Model,
    /// Shape of an image: channels, height, width.
    pub shape: [usize; 3],
    /// Number of classes: the channels of the last layer.
    pub classes: usize,
    /// Mean per channel; input = (pixel / 255 - mean) / std.
    pub mean: Vec<f32>,
    /// Standard deviation per channel.
    pub std: Vec<f32>,
}

impl Spec {
    /// Form of the images.
    pub fn form(&self) -> Form {
        Form::Images { shape: self.shape, classes: self.classes }
    }

    /// Bytes of an image.
    pub fn image_bytes(&self) -> usize {
        self.shape.iter().product()
    }

    /// Number of images in `pixels`.
    ///
    /// # Panics
    /// `pixels` are not whole images.
    pub fn image_count(&self, pixels: &[u8]) -> usize {
        let bytes = self.image_bytes();
        assert_eq!(pixels.len() % bytes, 0, "whole images of {bytes} bytes");
        pixels.len() / bytes
    }

    /// Number of images to compute together where `most` of 32x32 pixels are: as many as have as many pixels, at least 4.
    pub fn images_together(&self, most: usize) -> usize {
        let [_, height, width] = self.shape;
        (most * 32 * 32 / (height * width)).clamp(most.min(4), most)
    }

    /// Wraps pixels as a tensor `[n, channels, height, width]` u8.
    pub(super) fn pixel_tensor(&self, pixels: &[u8]) -> Tensor {
        let [channels, height, width] = self.shape.map(|extent| extent as i64);
        Tensor::from_slice(pixels).view([self.image_count(pixels) as i64, channels, height, width])
    }
}

/// Geometry of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Input channels.
    pub inputs: usize,
    /// Output channels.
    pub outputs: usize,
    /// Rows and columns of the kernel.
    pub kernel: [usize; 2],
    /// Step between two outputs, in input pixels.
    pub stride: usize,
    /// Zero pixels on each side of the input.
    pub padding: usize,
    /// Height and width of the input.
    pub size: [usize; 2],
}

impl Geometry {
    /// Height and width of the output, before pooling.
    pub fn out_size(&self) -> [usize; 2] {
        [0, 1].map(|axis| (self.size[axis] + 2 * self.padding - self.kernel[axis]) / self.stride + 1)
    }

    /// Products summed in one output.
    pub fn taps(&self) -> usize {
        self.inputs * self.kernel[0] * self.kernel[1]
    }

    /// Multiply-accumulates for one image.
    pub fn macs(&self) -> usize {
        self.taps() * self.outputs * self.out_size().iter().product::<usize>()
    }

    /// Shape of the weight, `[outputs, inputs, rows, columns]`.
    pub fn weight_shape(&self) -> [usize; 4] {
        [self.outputs, self.inputs, self.kernel[0], self.kernel[1]]
    }
}

/// Windows of a max-pool; padding never is the greatest value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Side of a window.
    pub kernel: usize,
    /// Step between two windows, in input pixels.
    pub stride: usize,
    /// Pixels of padding on each side of the input, at most half of the window's side.
    pub padding: usize,
}

impl Window {
    /// Windows of 2x2 pixels side by side, which are fused to the convolution before them.
    pub const HALVING: Window = Window { kernel: 2, stride: 2, padding: 0 };

    /// Height and width of the output for an input of `size`.
    pub fn out_size(&self, size: [usize; 2]) -> [usize; 2] {
        size.map(|side| (side + 2 * self.padding - self.kernel) / self.stride + 1)
    }

    /// Input rows (or columns) of window `at` that are not padding, where the input has `side`.
    pub fn inside(&self, at: usize, side: usize) -> Range<usize> {
        let first = at * self.stride;
        first.saturating_sub(self.padding)..(first + self.kernel - self.padding).min(side)
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
    /// Greatest value of each window, at the scale of the input.
    MaxPool {
        /// Channels.
        channels: usize,
        /// Height and width of the input.
        size: [usize; 2],
        /// Windows.
        window: Window,
        /// Numbers of the pool: those of its output, if integer.
        numbers: L,
    },
    /// Mean over the whole image: `[c, h, w]` to `[c, 1, 1]`; no input is negative.
    AveragePool {
        /// Channels.
        channels: usize,
        /// Height and width of the input.
        size: [usize; 2],
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
    /// Whether a 2x2 max-pool follows, [`Window::HALVING`].
    pub max_pool: bool,
    /// Whether PyTorch's module is a linear layer, whose weight has two dimensions.
    pub linear: bool,
    /// Weights, biases and scales.
    pub numbers: L,
}

impl<L> Layer<L> {
    /// Shape of the weight in the `state_dict`.
    pub fn state_shape(&self) -> Vec<usize> {
        match self.linear {
            true => vec![self.geometry.outputs, self.geometry.taps()],
            false => self.geometry.weight_shape().to_vec(),
        }
    }
}

impl<L> Node<L> {
    /// (channels, height and width) of the tensor that the node makes.
    pub fn shape(&self) -> (usize, [usize; 2]) {
        match &self.operation {
            Operation::Convolution(layer) => {
                let size = layer.geometry.out_size();
                (layer.geometry.outputs, if layer.max_pool { Window::HALVING.out_size(size) } else { size })
            }
            Operation::MaxPool { channels, size, window, .. } => (*channels, window.out_size(*size)),
            Operation::AveragePool { channels, .. } => (*channels, [1, 1]),
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
                let Layer { geometry, residual, relu, max_pool, linear, .. } = *layer;
                Operation::Convolution(Layer { geometry, residual, relu, max_pool, linear, numbers })
            }
            &Operation::MaxPool { channels, size, window, .. } => {
                Operation::MaxPool { channels, size, window, numbers }
            }
            &Operation::AveragePool { channels, size, .. } => Operation::AveragePool { channels, size, numbers },
        };
        Ok(Node { name: self.name.clone(), input: self.input, operation })
    }

    /// Numbers of the node.
    pub fn numbers(&self) -> &L {
        match &self.operation {
            Operation::Convolution(layer) => &layer.numbers,
            Operation::MaxPool { numbers, .. } | Operation::AveragePool { numbers, .. } => numbers,
        }
    }

    /// Numbers of the node, to be changed.
    pub fn numbers_mut(&mut self) -> &mut L {
        match &mut self.operation {
            Operation::Convolution(layer) => &mut layer.numbers,
            Operation::MaxPool { numbers, .. } | Operation::AveragePool { numbers, .. } => numbers,
        }
    }

    /// Layer of the node; `None` for a pool.
    pub fn layer(&self) -> Option<&Layer<L>> {
        match &self.operation {
            Operation::Convolution(layer) => Some(layer),
            Operation::MaxPool { .. } | Operation::AveragePool { .. } => None,
        }
    }
}

/// Numbers of a float layer; both fields are empty for a pool.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Floats {
    /// `[outputs, inputs, rows, columns]`.
    pub weight: Vec<f32>,
    /// `[outputs]`.
    pub bias: Option<Vec<f32>>,
}

/// What a layer's numbers are made of, as tensors of a `state_dict`; empty for a pool.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Source {
    /// Batch norm that is folded into the convolution.
    pub norm: Option<Norm>,
    /// Whether the layer has a bias of its own.
    pub bias: bool,
}

/// A batch norm to be folded.
#[derive(Debug, Clone, PartialEq)]
pub struct Norm {
    /// PyTorch's module name, for example `layer1.0.bn1`.
    pub name: String,
    /// Term added to the variance.
    pub epsilon: f64,
}

/// The float network.
#[derive(Debug, Clone, PartialEq)]
pub struct FloatNet {
    /// Network, images and classes.
    pub spec: Spec,
    /// Nodes in the order of the forward pass.
    pub nodes: Vec<Node<Floats>>,
}

impl FloatNet {
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
