//! The forward pass over a [`Graph`], for training and test. Nodes that libtorch or hpml's kernels compute together are one
//! step; a value is freed after the last step that reads it.

use std::ffi::CString;

use tch::{Kind, Tensor};

use super::graph::{Graph, Node, Op};
use super::layers::{self, BatchNorm, Conv, Linear};
use super::{Entry, Mode, Network};
use crate::config::{self, Precision};
use crate::convolution::Shape;
use crate::sys::Winograd;
use crate::sys::gpu::range;

/// A network that computes its list of nodes one after the other.
pub(super) struct Interpreter {
    parts: Vec<Part>,
    /// Number of nodes.
    nodes: usize,
}

/// Steps of a part of the network.
struct Part {
    name: CString,
    steps: Vec<Step>,
}

/// Computation of one node, with the nodes before it that are fused to it.
struct Step {
    /// Node whose output the step makes.
    node: usize,
    inputs: Vec<usize>,
    operation: Operation,
    /// Nodes whose outputs no later step reads.
    done: Vec<usize>,
}

enum Operation {
    Conv(Conv),
    Linear(Linear),
    /// Reads the input of the batch norm and, if there is one, the shortcut.
    BatchNorm(BatchNorm),
    LayerNorm {
        weight: Tensor,
        bias: Tensor,
        epsilon: f64,
    },
    /// In place if no other step needs the input.
    Relu {
        in_place: bool,
    },
    Gelu {
        approximate: &'static str,
    },
    MaxPool {
        kernel: i64,
        stride: i64,
        padding: i64,
    },
    AveragePool,
    /// Onto the first input if no other step needs it.
    Add {
        in_place: bool,
    },
    Flatten,
    /// The tensor, and its shape as a batch of one sample.
    Parameter(Tensor, Vec<i64>),
    Concat,
    Sequence,
    Embedding(Tensor),
    Attention {
        heads: i64,
        causal: bool,
        dropout: f64,
    },
    Dropout {
        rate: f64,
    },
    Select {
        index: i64,
    },
}

impl Interpreter {
    /// Prepares the forward pass over `graph`, whose tensors are those of `state`.
    pub fn new(graph: &Graph, state: &[Entry], config: &config::Model) -> Interpreter {
        let mut parts: Vec<Part> = Vec::new();
        for (step, part) in steps(graph, state, config) {
            match parts.last_mut().filter(|last| last.name.as_bytes() == part.as_bytes()) {
                Some(last) => last.steps.push(step),
                None => {
                    let name = CString::new(part).expect("names are words");
                    parts.push(Part { name, steps: vec![step] });
                }
            }
        }
        let mut interpreter = Interpreter { parts, nodes: graph.nodes.len() };
        interpreter.free_after_last_use();
        interpreter
    }

    fn free_after_last_use(&mut self) {
        let mut seen = vec![false; self.nodes];
        for step in self.parts.iter_mut().rev().flat_map(|part| part.steps.iter_mut().rev()) {
            for &input in &step.inputs {
                if !std::mem::replace(&mut seen[input], true) {
                    step.done.push(input);
                }
            }
        }
    }
}

impl Interpreter {
    fn convolutions_mut(&mut self) -> impl Iterator<Item = &mut Conv> {
        self.parts.iter_mut().flat_map(|part| &mut part.steps).filter_map(|step| match &mut step.operation {
            Operation::Conv(conv) => Some(conv),
            _ => None,
        })
    }
}

impl Network for Interpreter {
    fn convolutions(&self) -> Vec<Shape> {
        let steps = self.parts.iter().flat_map(|part| &part.steps);
        let mut shapes = Vec::new();
        for step in steps {
            if let Operation::Conv(Conv { shape: Some(shape), .. }) = &step.operation
                && !shapes.contains(shape)
            {
                shapes.push(*shape);
            }
        }
        shapes
    }

    fn use_winograd(&mut self, winograd: Winograd, shapes: &[Shape]) {
        for conv in self.convolutions_mut() {
            conv.winograd = conv.shape.filter(|shape| shapes.contains(shape)).map(|_| winograd);
        }
    }

    fn draws(&self) -> bool {
        self.parts.iter().flat_map(|part| &part.steps).any(|step| match step.operation {
            Operation::Attention { dropout: rate, .. } | Operation::Dropout { rate } => rate > 0.0,
            _ => false,
        })
    }

    fn forward(&self, inputs: &Tensor, mode: Mode) -> Tensor {
        let mut values: Vec<Option<Tensor>> = (0..self.nodes).map(|_| None).collect();
        values[0] = Some(inputs.shallow_clone());
        for part in &self.parts {
            let _range = range(&part.name);
            for step in &part.steps {
                let output = step.compute(&values, mode);
                step.done.iter().for_each(|&node| values[node] = None);
                values[step.node] = Some(output);
            }
        }
        values.pop().flatten().expect("the last node has been computed").to_kind(Kind::Float)
    }
}

/// The steps in the order of the forward pass, each with the name of its part.
fn steps<'a>(graph: &'a Graph, state: &[Entry], config: &config::Model) -> Vec<(Step, &'a str)> {
    let readers = graph.readers();
    let fusion = Fusion { graph, readers: &readers };
    let fused: Vec<usize> =
        (0..graph.nodes.len()).filter_map(|index| fusion.of(index)).flat_map(|f| f.within).collect();
    let computed = (1..graph.nodes.len()).filter(|index| !fused.contains(index));
    let step = |node: usize| {
        let (operation, inputs) = match fusion.of(node) {
            Some(Fused { main, inputs, .. }) => (operation(&fusion, main, state, config, true), inputs),
            None => (operation(&fusion, node, state, config, false), graph.nodes[node].inputs.clone()),
        };
        (Step { node, inputs, operation, done: Vec::new() }, graph.nodes[node].part.as_str())
    };
    computed.map(step).collect()
}

/// Rules for what is computed together or in place.
struct Fusion<'a> {
    graph: &'a Graph,
    /// Number of nodes that read each node.
    readers: &'a [usize],
}

/// A convolution or a batch norm with what follows it: the addition of a shortcut (batch norm alone), then a ReLU.
struct Fused {
    main: usize,
    /// Nodes that are not computed on their own.
    within: Vec<usize>,
    inputs: Vec<usize>,
}

impl Fusion<'_> {
    /// What ends in the node `last`; `None` if nothing is fused there.
    fn of(&self, last: usize) -> Option<Fused> {
        let node = |index: usize| &self.graph.nodes[index];
        let only = |index: usize| self.readers[index] == 1;
        let is_norm = |index: usize| node(index).op == Op::BatchNorm && only(index);
        match node(last).op {
            Op::Relu => {
                let before = node(last).inputs[0];
                if is_norm(before) || matches!(node(before).op, Op::Conv2d { .. }) && only(before) {
                    let inputs = node(before).inputs.clone();
                    return Some(Fused { main: before, within: vec![before], inputs });
                }
                let add = before;
                if node(add).op != Op::Add || !only(add) {
                    return None;
                }
                let &[main, shortcut] = &node(add).inputs[..] else { return None };
                is_norm(main).then(|| Fused {
                    main,
                    within: vec![main, add],
                    inputs: vec![node(main).inputs[0], shortcut],
                })
            }
            _ => None,
        }
    }
}

fn batch_norm(node: &Node, state: &[Entry], config: &config::Model, relu: bool) -> Operation {
    let [weight, bias, mean, variance] = [0, 1, 2, 3].map(|slot: usize| state[node.slots[slot]].tensor.shallow_clone());
    Operation::BatchNorm(BatchNorm { weight, bias, mean, variance, relu, fused: config.fused_batch_norm })
}

/// The operation of a node; `relu`: whether a ReLU is fused to it.
fn operation(fusion: &Fusion, index: usize, state: &[Entry], config: &config::Model, relu: bool) -> Operation {
    let node = &fusion.graph.nodes[index];
    let precision = config.precision;
    let tensor = |slot: usize| state[node.slots[slot]].tensor.shallow_clone();
    let integer = |extent: usize| extent as i64;
    match node.op {
        Op::Input => unreachable!("the input is given"),
        Op::Conv2d { inputs, outputs, kernel, stride, padding, groups, bias } => {
            let [_, height, width] = node.shape[..] else { unreachable!("an image has three extents") };
            let is_plain = (kernel, stride, padding, groups, bias) == (3, 1, 1, 1, false);
            let shape = Shape { images: 1, height, width, inputs, outputs };
            let is_full = matches!(precision, Precision::Float32 | Precision::Tf32);
            let [stride, padding, groups] = [stride, padding, groups].map(integer);
            Operation::Conv(Conv {
                weight: tensor(0),
                bias: bias.then(|| tensor(1)),
                stride,
                padding,
                groups,
                precision,
                relu,
                is_direct: config.convolution == config::Convolution::Direct,
                shape: Some(shape).filter(|shape| is_plain && is_full && shape.fits()),
                winograd: None,
            })
        }
        Op::Linear { bias, .. } => {
            Operation::Linear(Linear { weight: tensor(0), bias: bias.then(|| tensor(1)), precision })
        }
        Op::BatchNorm => batch_norm(node, state, config, relu),
        Op::LayerNorm { epsilon } => Operation::LayerNorm { weight: tensor(0), bias: tensor(1), epsilon },
        Op::Relu => Operation::Relu { in_place: fusion.graph.may_overwrite(node.inputs[0], fusion.readers) },
        Op::Gelu { tanh } => Operation::Gelu { approximate: if tanh { "tanh" } else { "none" } },
        Op::MaxPool { kernel, stride, padding } => {
            let [kernel, stride, padding] = [kernel, stride, padding].map(integer);
            Operation::MaxPool { kernel, stride, padding }
        }
        Op::AveragePool => Operation::AveragePool,
        Op::Add => Operation::Add { in_place: fusion.graph.may_overwrite(node.inputs[0], fusion.readers) },
        Op::Flatten => Operation::Flatten,
        Op::Parameter => {
            let shape: Vec<i64> = std::iter::once(1).chain(node.shape.iter().copied().map(integer)).collect();
            Operation::Parameter(tensor(0), shape)
        }
        Op::Concat => Operation::Concat,
        Op::Sequence => Operation::Sequence,
        Op::Embedding { .. } => Operation::Embedding(tensor(0)),
        Op::Attention { heads, causal, dropout } => Operation::Attention { heads: integer(heads), causal, dropout },
        Op::Dropout { rate } => Operation::Dropout { rate },
        Op::Select { index } => Operation::Select { index: integer(index) },
    }
}

impl Step {
    fn compute(&self, values: &[Option<Tensor>], mode: Mode) -> Tensor {
        let input = |number: usize| values[self.inputs[number]].as_ref().expect("computed before, and not yet freed");
        let train = matches!(mode, Mode::Train { .. });
        match &self.operation {
            Operation::Conv(conv) => conv.forward(input(0)),
            Operation::Linear(linear) => linear.forward(input(0)),
            Operation::BatchNorm(norm) => {
                let shortcut = (self.inputs.len() == 2).then(|| input(1));
                norm.forward(input(0), shortcut, mode)
            }
            Operation::LayerNorm { weight, bias, epsilon } => {
                input(0).layer_norm(weight.size(), Some(weight), Some(bias), *epsilon, true)
            }
            Operation::Relu { in_place: true } => input(0).shallow_clone().relu_(),
            Operation::Relu { in_place: false } => input(0).relu(),
            Operation::Gelu { approximate } => input(0).gelu(approximate),
            &Operation::MaxPool { kernel, stride, padding } => layers::max_pool(input(0), kernel, stride, padding),
            Operation::AveragePool => {
                let [.., height, width] = input(0).size()[..] else { unreachable!("an image has four extents") };
                input(0).avg_pool2d([height, width], [1, 1], [0, 0], false, true, None::<i64>)
            }
            Operation::Add { in_place } => {
                let (one, other) = (input(0), input(1));
                if *in_place && one.kind() == other.kind() && one.size() == other.size() {
                    one.shallow_clone().g_add_(other)
                } else {
                    one + other
                }
            }
            Operation::Flatten => input(0).flatten(1, -1),
            Operation::Parameter(tensor, shape) => tensor.view(&shape[..]),
            Operation::Concat => {
                let samples = input(0).size()[0].max(input(1).size()[0]);
                let [one, other] = [input(0), input(1)].map(|tensor| {
                    let mut shape = tensor.size();
                    shape[0] = samples;
                    tensor.expand(shape, false)
                });
                Tensor::cat(&[one, other], 1)
            }
            Operation::Sequence => input(0).flatten(2, -1).transpose(1, 2),
            Operation::Embedding(weight) => Tensor::embedding(weight, input(0), -1, false, false),
            &Operation::Attention { heads, causal, dropout } => {
                layers::attention(input(0), heads, causal, if train { dropout } else { 0.0 })
            }
            &Operation::Dropout { rate } => input(0).dropout(rate, train),
            &Operation::Select { index } => input(0).select(1, index),
        }
    }
}
