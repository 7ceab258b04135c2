//! A network as a list of nodes in the order of the forward pass: what the forward pass, the folding for int8, ONNX and the
//! counts of work and memory all read. It holds no values: [`Slot`]s name the tensors of the state.
//!
//! ```
//! use hpml::config;
//! use hpml::data::Form;
//! use hpml::model::graph::{Graph, Op};
//!
//! let form = Form::Images { shape: [3, 32, 32], classes: 10 };
//! let graph = Graph::new(&config::Model::default(), form)?;
//! let node = &graph.nodes[1];
//! assert_eq!((node.name.as_str(), &node.shape[..]), ("conv1", &[6, 28, 28][..]));
//! assert!(matches!(node.op, Op::Conv2d { kernel: 5, .. }));
//! assert_eq!(graph.multiplications(), 651_720);
//! # Ok::<(), hpml::error::Error>(())
//! ```

use super::Role;
use super::networks;
use crate::config;
use crate::data::Form;
use crate::error::Result;

/// A network without its numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    /// Samples that the network takes.
    pub form: Form,
    /// Nodes, each after those that it reads. The first is [`Op::Input`], the last gives the logits.
    pub nodes: Vec<Node>,
    /// Tensors of the state, in the order of PyTorch's `state_dict`.
    pub state: Vec<Slot>,
}

/// One operation of a network.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// PyTorch's name of the module, for example `layer1.0.conv1`; operations that are no module there have a name in the same
    /// manner (`layer1.0.add`). Every node of a graph has another name.
    pub name: String,
    /// Part of the network that the node belongs to, for example `layer1.0`: the name of a range in Nsight.
    pub part: String,
    /// Operation.
    pub op: Op,
    /// Indices of the nodes whose outputs the operation reads.
    pub inputs: Vec<usize>,
    /// Shape of the output for one sample, without the batch's extent.
    pub shape: Vec<usize>,
    /// Indices of the operation's tensors in [`Graph::state`], in the order that the operation's documentation gives. Two
    /// nodes with a slot in common have tied weights.
    pub slots: Vec<usize>,
}

/// Operation of a node. Shapes are those of one sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Op {
    /// Samples of the batch: images `[c, h, w]` or token ids `[t]`.
    Input,
    /// Convolution of `[inputs, h, w]`. Slots: weight `[outputs, inputs / groups, kernel, kernel]`; with `bias` a bias
    /// `[outputs]`.
    Conv2d {
        /// Input channels.
        inputs: usize,
        /// Output channels.
        outputs: usize,
        /// Side of the kernel.
        kernel: usize,
        /// Step between two outputs, in input pixels.
        stride: usize,
        /// Zero pixels on each side of the input.
        padding: usize,
        /// Groups of channels that are convolved on their own; 1: all channels together.
        groups: usize,
        /// Whether there is a bias.
        bias: bool,
    },
    /// Batch norm over the first extent of the input, with [`EPSILON`](super::EPSILON). Slots: weight, bias, running mean,
    /// running variance, counter of batches.
    BatchNorm,
    /// Layer norm over the last extent of the input. Slots: weight, bias.
    LayerNorm {
        /// Constant added to the variance.
        epsilon: f64,
    },
    /// max(x, 0).
    Relu,
    /// Gaussian error linear unit: x times the normal distribution's cumulative function of x.
    Gelu {
        /// Whether that function is approximated with tanh.
        tanh: bool,
    },
    /// Maximum over squares of an image `[c, h, w]`.
    MaxPool {
        /// Side of the squares.
        kernel: usize,
        /// Step between two outputs, in input pixels.
        stride: usize,
        /// Pixels on each side of the input that are left out of the maximum.
        padding: usize,
    },
    /// Mean over the whole image: `[c, h, w]` to `[c, 1, 1]`.
    AveragePool,
    /// Sum of two inputs of one shape.
    Add,
    /// All extents as one.
    Flatten,
    /// Matrix product over the last extent, `inputs` to `outputs`. Slots: weight `[outputs, inputs]`; with `bias` a bias
    /// `[outputs]`.
    Linear {
        /// Extent of the input.
        inputs: usize,
        /// Extent of the output.
        outputs: usize,
        /// Whether there is a bias.
        bias: bool,
    },
    /// Learned tensor, the same for every sample; reads no node. Slot: the tensor, with or without first extents of 1.
    Parameter,
    /// The inputs one after the other along the first extent.
    Concat,
    /// Pixels of an image as a sequence, row by row: `[c, h, w]` to `[h * w, c]`.
    Sequence,
    /// Row of a table for each token: `[t]` to `[t, width]`. Slot: weight `[vocabulary, width]`.
    Embedding {
        /// Number of different tokens.
        vocabulary: usize,
        /// Length of a row.
        width: usize,
    },
    /// Scaled dot-product attention of `[t, 3 * width]`, which holds queries, keys and values beside each other, to `[t, width]`.
    Attention {
        /// Number of heads, each with its part of the width.
        heads: usize,
        /// Whether a place sees only itself and those before it.
        causal: bool,
        /// Share of the attention weights that become 0 in training.
        dropout: f64,
    },
    /// Sets values to 0 and scales the others by `1 / (1 - rate)`, in training only.
    Dropout {
        /// Share of the values that become 0.
        rate: f64,
    },
    /// One place of a sequence: `[t, width]` to `[width]`.
    Select {
        /// The place, from 0.
        index: usize,
    },
}

/// Name, role and shape of a tensor of the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Name in the `state_dict`, for example `layer1.0.conv1.weight`.
    pub name: String,
    /// Role in training.
    pub role: Role,
    /// Shape in PyTorch; empty for a counter.
    pub shape: Vec<usize>,
}

impl Slot {
    /// Number of values.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

impl Graph {
    /// The network that `config` names, for samples of `form`.
    ///
    /// # Errors
    /// [`Error::ConfigValue`](crate::error::Error::ConfigValue): the network takes no such samples, for example images that
    /// are too small for it, or a key of `[model]` does not fit another.
    pub fn new(config: &config::Model, form: Form) -> Result<Graph> {
        Ok(networks::describe(config, form)?.graph)
    }

    /// The state's tensors that `node` reads, in the order of its slots.
    pub fn slots<'a>(&'a self, node: &'a Node) -> impl Iterator<Item = &'a Slot> {
        node.slots.iter().map(|&slot| &self.state[slot])
    }

    /// Number of trained values.
    pub fn parameters(&self) -> usize {
        self.state.iter().filter(|slot| slot.role == Role::Parameter).map(Slot::elements).sum()
    }

    /// Multiplications of the forward pass of one sample in `node`: those of convolutions, matrix products and attention; 0 for
    /// other operations, which do a few per value.
    pub fn multiplications_of(&self, node: &Node) -> u64 {
        let outputs: usize = node.shape.iter().product();
        let products = match node.op {
            Op::Conv2d { inputs, kernel, groups, .. } => outputs * (inputs / groups) * kernel * kernel,
            Op::Linear { inputs, .. } => outputs * inputs,
            // Queries times keys, and weights times values; libtorch computes the masked half of a causal attention, too.
            Op::Attention { .. } => 2 * outputs * node.shape[0],
            _ => 0,
        };
        products as u64
    }

    /// Multiplications of the forward pass of one sample.
    pub fn multiplications(&self) -> u64 {
        self.nodes.iter().map(|node| self.multiplications_of(node)).sum()
    }

    /// For each node the number of nodes that read its output.
    pub fn readers(&self) -> Vec<usize> {
        let mut readers = vec![0; self.nodes.len()];
        self.nodes.iter().flat_map(|node| &node.inputs).for_each(|&input| readers[input] += 1);
        readers
    }

    /// Whether the output of `producer` may be overwritten by its reader: no other node reads it, and the gradient of the
    /// operation that made it does not need it. `readers` are those of [`readers`](Self::readers).
    pub fn may_overwrite(&self, producer: usize, readers: &[usize]) -> bool {
        let node = &self.nodes[producer];
        readers[producer] == 1
            && match node.op {
                Op::Conv2d { .. } | Op::Linear { .. } | Op::BatchNorm | Op::Add => true,
                Op::Dropout { .. } => self.may_overwrite(node.inputs[0], readers), // in a test its output is its input
                _ => false,
            }
    }

    /// For each node the index of the last node that reads its output; its own for the last node, which is the result.
    pub fn last_uses(&self) -> Vec<usize> {
        let mut last: Vec<usize> = (0..self.nodes.len()).collect();
        for (index, node) in self.nodes.iter().enumerate() {
            node.inputs.iter().for_each(|&input| last[input] = index);
        }
        last
    }
}
