//! Values between the layers that the backward pass needs, from the list of nodes: which outputs libtorch's operations keep for
//! their gradients, which share memory, and how many gradients there are at once.

use crate::config::Precision;
use crate::data::Form;
use crate::model::Role;
use crate::model::graph::{Graph, Node, Op};
use crate::units::Bytes;

/// Bytes per value of float32, of token ids and of max-pool's indices.
const FLOAT: usize = size_of::<f32>();
const INDEX: usize = size_of::<i64>();

/// Bytes of the values between the layers in training.
///
/// Counted is what libtorch keeps: a convolution or a linear layer its input (cast to its format), a norm and GELU their input, ReLU
/// its output, dropout its mask, max-pool the places of the maxima, attention its input and output, the loss the logarithms of the
/// probabilities. Where several operations need one value it is counted once. Workspaces of the convolutions are not known here.
#[derive(Debug, Clone, PartialEq)]
pub struct Activations {
    /// Bytes per sample between the forward and the backward pass.
    pub kept: Bytes,
    /// Greatest bytes per sample in the backward pass: values that are left, and gradients of outputs.
    pub peak: Bytes,
    /// Bytes of weights that are cast to bf16 or fp16, whatever the number of samples.
    pub cast_weights: Bytes,
    /// Bytes per sample that each node's gradient needs and no node before it does; `kept` is their sum, with those of the loss.
    pub of_nodes: Vec<Bytes>,
}

/// Memory that outputs share, if they are views of one another or computed in place.
struct Storage {
    bytes: usize,
    /// First node whose gradient needs it.
    needed_by: Option<usize>,
}

impl Activations {
    /// Activations of `graph`, of which `differentiated` nodes have a gradient, on CPU cores or on a GPU.
    pub(super) fn new(graph: &Graph, differentiated: &[bool], precision: Precision, gpu: bool) -> Activations {
        let mut walk = Walk::new(graph, precision);
        let mut extra = vec![0; graph.nodes.len()];
        let mut cast_weights = 0;
        for (index, node) in graph.nodes.iter().enumerate().filter(|(index, _)| differentiated[*index]) {
            let needs = walk.needs(index, node, gpu);
            needs.storages.iter().for_each(|&storage| {
                walk.storages[storage].needed_by.get_or_insert(index);
            });
            extra[index] = needs.extra;
            if walk.low.is_some() && matches!(node.op, Op::Conv2d { .. } | Op::Linear { .. }) {
                cast_weights +=
                    graph.slots(node).map(|slot| walk.low.unwrap_or(FLOAT) * slot.elements()).sum::<usize>();
            }
        }
        let last = graph.nodes.len() - 1;
        let values = graph.form.targets() * graph.form.outputs();
        let log_probabilities = FLOAT * values;
        // The logits in float32 are part of the result, and stay until the step has ended.
        let logits = FLOAT * values;
        let targets = INDEX * graph.form.targets();
        let mut of_nodes: Vec<usize> = extra;
        walk.storages.iter().for_each(|storage| {
            if let Some(node) = storage.needed_by {
                of_nodes[node] += storage.bytes;
            }
        });
        // The batch stays, whether the first operation needs it or not.
        let input = walk.storages[walk.storage_of[0]].bytes;
        if walk.storages[walk.storage_of[0]].needed_by.is_none() {
            of_nodes[0] += input;
        }
        let is_kept = walk.storages[walk.storage_of[last]].needed_by.is_some();
        let result = targets + if is_kept && walk.bytes_of[last] == FLOAT { 0 } else { logits };
        let kept = of_nodes.iter().sum::<usize>() + log_probabilities + result;
        let of_nodes: Vec<Bytes> = of_nodes.into_iter().map(|bytes| bytes as Bytes).collect();
        let peak = walk.peak(differentiated, &of_nodes, kept, log_probabilities);
        Activations { kept: kept as Bytes, peak: peak as Bytes, cast_weights: cast_weights as Bytes, of_nodes }
    }
}

/// Needs of one operation's gradient.
#[derive(Default)]
struct Needs {
    storages: Vec<usize>,
    /// Bytes beside the outputs of nodes: masks, indices, casts.
    extra: usize,
}

/// Outputs of the nodes and their memory.
struct Walk<'a> {
    graph: &'a Graph,
    storages: Vec<Storage>,
    /// Storage of each node's output.
    storage_of: Vec<usize>,
    /// Bytes per value of each node's output.
    bytes_of: Vec<usize>,
    /// Bytes per value of convolutions and linear layers, if they do not compute in float32.
    low: Option<usize>,
}

impl<'a> Walk<'a> {
    fn new(graph: &'a Graph, precision: Precision) -> Walk<'a> {
        let low = matches!(precision, Precision::Bf16 | Precision::Fp16).then_some(FLOAT / 2);
        let count = graph.nodes.len();
        let mut walk =
            Walk { graph, storages: Vec::new(), storage_of: Vec::with_capacity(count), bytes_of: Vec::new(), low };
        let readers = graph.readers();
        for node in &graph.nodes {
            let widest = node.inputs.iter().map(|&input| walk.bytes_of[input]).max();
            let bytes = match node.op {
                Op::Input if matches!(graph.form, Form::Tokens { .. }) => INDEX,
                Op::Input | Op::Parameter | Op::Embedding { .. } => FLOAT,
                Op::Conv2d { .. } | Op::Linear { .. } => low.unwrap_or(FLOAT),
                _ => widest.unwrap_or(FLOAT),
            };
            walk.bytes_of.push(bytes);
            let shared = match node.op {
                Op::Flatten | Op::Sequence | Op::Select { .. } => Some(walk.storage_of[node.inputs[0]]),
                Op::Dropout { rate: 0.0 } => Some(walk.storage_of[node.inputs[0]]),
                Op::Relu | Op::Add
                    if graph.may_overwrite(node.inputs[0], &readers) && walk.bytes_of[node.inputs[0]] == bytes =>
                {
                    Some(walk.storage_of[node.inputs[0]])
                }
                _ => None,
            };
            let storage = shared.unwrap_or_else(|| {
                let samples = usize::from(node.op != Op::Parameter); // one for the whole batch, and counted there
                walk.storages.push(Storage { bytes: samples * bytes * elements(node), needed_by: None });
                walk.storages.len() - 1
            });
            walk.storage_of.push(storage);
        }
        walk
    }

    /// Values that the gradient of `node` needs.
    fn needs(&self, index: usize, node: &Node, gpu: bool) -> Needs {
        let input = |number: usize| self.storage_of[node.inputs[number]];
        let values = elements(node);
        let bytes = self.bytes_of[index];
        let of = |storages: Vec<usize>| Needs { storages, extra: 0 };
        match node.op {
            Op::Conv2d { .. } | Op::Linear { .. } => {
                if !self.graph.slots(node).any(|slot| slot.role == Role::Parameter) {
                    return Needs::default();
                }
                let (from, low) = (self.bytes_of[node.inputs[0]], self.low.unwrap_or(FLOAT));
                if from == low {
                    return of(vec![input(0)]);
                }
                let inputs = &self.graph.nodes[node.inputs[0]];
                Needs { storages: Vec::new(), extra: low * elements(inputs) }
            }
            Op::BatchNorm | Op::Gelu { .. } | Op::AveragePool | Op::Embedding { .. } => of(vec![input(0)]),
            Op::LayerNorm { .. } => {
                let rows = values / node.shape.last().copied().unwrap_or(1);
                Needs { storages: vec![input(0)], extra: 2 * FLOAT * rows }
            }
            Op::Relu => of(vec![self.storage_of[index]]),
            Op::MaxPool { .. } => Needs { storages: vec![input(0)], extra: INDEX * values },
            Op::Attention { heads, dropout, .. } => {
                let length = node.shape[0];
                if gpu || dropout == 0.0 {
                    // In one kernel, which keeps the logarithm of each row's sum.
                    let storages = vec![input(0), self.storage_of[index]];
                    return Needs { storages, extra: FLOAT * heads * length };
                }
                // In single operations: queries, keys and values on their own, the weights, their mask, and both multiplied.
                Needs { storages: Vec::new(), extra: FLOAT * (3 * values + 3 * heads * length * length) }
            }
            Op::Dropout { rate } if rate > 0.0 => {
                Needs { storages: Vec::new(), extra: values * if gpu { 1 } else { bytes } }
            }
            Op::Dropout { .. }
            | Op::Input
            | Op::Add
            | Op::Flatten
            | Op::Parameter
            | Op::Concat
            | Op::Sequence
            | Op::Select { .. } => Needs::default(),
        }
    }

    /// Greatest bytes in the backward pass, which begins with `kept` and frees what each node needs after it.
    fn peak(&self, differentiated: &[bool], of_nodes: &[Bytes], kept: usize, log_probabilities: usize) -> usize {
        let nodes = &self.graph.nodes;
        let last = nodes.len() - 1;
        // Gradient of each node's output, as far as it is known; that of the logits has the size of the probabilities.
        let mut gradients = vec![0; nodes.len()];
        gradients[last] = log_probabilities;
        let (mut left, mut most) = (kept, kept + log_probabilities);
        left -= log_probabilities;
        for (index, node) in nodes.iter().enumerate().rev().filter(|(index, _)| differentiated[*index]) {
            let own = std::mem::take(&mut gradients[index]);
            let mut made = 0;
            for (number, &input) in node.inputs.iter().enumerate().filter(|(_, input)| differentiated[**input]) {
                let bytes = self.bytes_of[input] * elements(&nodes[input]);
                match node.op {
                    // The gradient itself, which the last reader keeps.
                    Op::Add | Op::Flatten | Op::Sequence if number + 1 < node.inputs.len() => {}
                    Op::Add | Op::Flatten | Op::Sequence => gradients[input] = gradients[input].max(own),
                    _ => {
                        made += bytes;
                        gradients[input] = bytes;
                    }
                }
            }
            let others = gradients.iter().sum::<usize>() - made.min(gradients.iter().sum());
            most = most.max(left + own + others + made);
            left -= (of_nodes[index] as usize).min(left);
        }
        most
    }
}

/// Values of a node's output for one sample.
fn elements(node: &Node) -> usize {
    node.shape.iter().product()
}
