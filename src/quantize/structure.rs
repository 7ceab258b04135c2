//! The structure of a network for int8, read from its list of nodes: batch norm, ReLU, sum and 2x2 max-pool become part of the
//! convolution before them.

use super::graph::{Geometry, Layer, Node, Norm, Operation, Source, Window};
use crate::config::{self, ModelName};
use crate::data::Form;
use crate::error::{Error, Result};
use crate::model::EPSILON;
use crate::model::graph::{self, Graph, Op};

/// Structure of the network that `model` names, for samples of `form`.
///
/// # Errors
/// The network does not take such samples, or int8 cannot express one of its nodes; the error names it.
pub fn structure(model: &config::Model, form: Form) -> Result<Vec<Node<Source>>> {
    if model.name == ModelName::File {
        let expected =
            "int8 cannot express a TorchScript module, whose nodes it does not know: quantize net or a ResNet";
        let (place, key, value) = ("model".into(), "model.file".into(), model.file.clone());
        return Err(Error::ConfigValue { place, key, value, expected: expected.into() });
    }
    of(&Graph::new(model, form)?)
}

/// Structure of a network.
///
/// # Errors
/// int8 cannot express a node; the error names it.
fn of(graph: &Graph) -> Result<Vec<Node<Source>>> {
    for node in &graph.nodes {
        let known = match node.op {
            Op::Conv2d { groups, .. } => groups == 1,
            Op::Input | Op::BatchNorm | Op::Relu | Op::MaxPool { .. } | Op::AveragePool => true,
            Op::Add | Op::Flatten | Op::Linear { .. } => true,
            _ => false,
        };
        if !known {
            return Err(refuse(
                node,
                "int8 knows convolutions, batch norm, ReLU, sums, pools and linear layers, those of net and the ResNets",
            ));
        }
    }
    let mut readers = vec![0; graph.nodes.len()];
    graph.nodes.iter().flat_map(|node| &node.inputs).for_each(|&input| readers[input] += 1);
    let mut fold =
        Fold { graph, readers, nodes: Vec::new(), is_relu: vec![false], tensors: vec![None; graph.nodes.len()] };
    let last = graph.nodes.len() - 1;
    fold.tensor(last)?;
    let logits = fold.nodes.last().and_then(Node::layer);
    let gives_logits = |layer: &Layer<Source>| layer.geometry.out_size() == [1, 1] && !layer.relu && !layer.max_pool;
    match logits.is_some_and(|layer| gives_logits(layer) && layer.residual.is_none()) {
        true => Ok(fold.nodes),
        false => Err(refuse(&graph.nodes[last], "the logits must be those of a linear layer")),
    }
}

fn refuse(node: &graph::Node, problem: &str) -> Error {
    Error::QuantizeNode { name: node.name.clone(), kind: kind(node.op), problem: problem.into() }
}

/// Name of an operation in messages.
fn kind(op: Op) -> &'static str {
    match op {
        Op::Input => "input",
        Op::Conv2d { groups: 1, .. } => "convolution",
        Op::Conv2d { .. } => "grouped convolution",
        Op::BatchNorm => "batch norm",
        Op::LayerNorm { .. } => "layer norm",
        Op::Relu => "ReLU",
        Op::Gelu { .. } => "GELU",
        Op::MaxPool { .. } => "max-pool",
        Op::AveragePool => "average pool",
        Op::Add => "sum",
        Op::Flatten => "flatten",
        Op::Linear { .. } => "linear",
        Op::Parameter => "parameter",
        Op::Concat => "concatenation",
        Op::Sequence => "sequence",
        Op::Embedding { .. } => "embedding",
        Op::Attention { .. } => "attention",
        Op::Dropout { .. } => "dropout",
        Op::Select { .. } => "selection",
    }
}

/// The structure as far as it is made.
struct Fold<'a> {
    graph: &'a Graph,
    /// Number of nodes that read each node of `graph`.
    readers: Vec<usize>,
    nodes: Vec<Node<Source>>,
    /// Whether no value of a tensor is negative, by tensor.
    is_relu: Vec<bool>,
    /// Number of the tensor that holds a node's output, by node of `graph`.
    tensors: Vec<Option<usize>>,
}

impl Fold<'_> {
    /// Number of the tensor that holds the output of node `place`. What it needs is made before it, a residual first.
    fn tensor(&mut self, place: usize) -> Result<usize> {
        if let Some(tensor) = self.tensors[place] {
            return Ok(tensor);
        }
        let node = &self.graph.nodes[place];
        let tensor = match node.op {
            Op::Input => 0,
            Op::Flatten => self.tensor(node.inputs[0])?,
            Op::AveragePool => {
                let input = self.tensor(node.inputs[0])?;
                if !self.is_relu[input] {
                    return Err(refuse(node, "its input can be negative"));
                }
                let (channels, size) = self.shape(input);
                let numbers = Source::default();
                self.push(&node.name, input, true, Operation::AveragePool { channels, size, numbers })
            }
            Op::MaxPool { kernel, stride, padding } => match self.layer(place)? {
                Some(tensor) => tensor,
                None => {
                    let input = self.tensor(node.inputs[0])?;
                    let ((channels, size), window) = (self.shape(input), Window { kernel, stride, padding });
                    let operation = Operation::MaxPool { channels, size, window, numbers: Source::default() };
                    self.push(&node.name, input, self.is_relu[input], operation)
                }
            },
            _ => self.layer(place)?.ok_or_else(|| refuse(node, "it does not follow a convolution or linear layer"))?,
        };
        self.tensors[place] = Some(tensor);
        Ok(tensor)
    }

    /// Makes the layer that ends with node `place`: convolution, batch norm, sum, ReLU, max-pool, of which all but the first may
    /// be missing. `None` if the nodes before `place` are none.
    fn layer(&mut self, place: usize) -> Result<Option<usize>> {
        let mut at = place;
        let max_pool = self.op(at) == Op::MaxPool { kernel: 2, stride: 2, padding: 0 };
        if max_pool {
            at = self.graph.nodes[at].inputs[0];
        }
        let relu = self.op(at) == Op::Relu;
        if relu {
            at = self.graph.nodes[at].inputs[0];
        }
        let mut residual = None;
        if self.op(at) == Op::Add {
            let operands = &self.graph.nodes[at].inputs;
            let Some(main) = operands.iter().position(|&operand| self.convolution(operand).is_some()) else {
                return Ok(None);
            };
            (at, residual) = (operands[main], Some(operands[1 - main]));
        }
        let Some((convolution, norm)) = self.convolution(at) else { return Ok(None) };
        // The sum comes before the maximum, which a kernel takes of accumulators.
        if max_pool && residual.is_some() || !self.is_chain(place, convolution) {
            return Ok(None);
        }
        let residual = residual.map(|place| self.tensor(place)).transpose()?;
        let node = &self.graph.nodes[convolution];
        let input = self.tensor(node.inputs[0])?;
        let (inputs, size) = self.shape(input);
        let (geometry, linear, bias) = match node.op {
            Op::Conv2d { outputs, kernel, stride, padding, bias, .. } => {
                (Geometry { inputs, outputs, kernel: [kernel; 2], stride, padding, size }, false, bias)
            }
            Op::Linear { outputs, bias, .. } if self.graph.nodes[node.inputs[0]].shape.len() == 1 => {
                (Geometry { inputs, outputs, kernel: size, stride: 1, padding: 0, size }, true, bias)
            }
            _ => return Err(refuse(node, "its input is no vector")),
        };
        let norm = norm.map(|norm| Norm { name: self.graph.nodes[norm].name.clone(), epsilon: EPSILON });
        let numbers = Source { norm, bias };
        let layer = Layer { geometry, residual, relu, max_pool, linear, numbers };
        Ok(Some(self.push(&node.name, input, relu, Operation::Convolution(layer))))
    }

    /// The convolution (or linear layer) that makes the output of node `place`, with the batch norm after it, if `place` is one
    /// or the other.
    fn convolution(&self, place: usize) -> Option<(usize, Option<usize>)> {
        match self.op(place) {
            Op::Conv2d { .. } | Op::Linear { .. } => Some((place, None)),
            Op::BatchNorm => {
                let before = self.graph.nodes[place].inputs[0];
                matches!(self.op(before), Op::Conv2d { .. }).then_some((before, Some(place)))
            }
            _ => None,
        }
    }

    /// Whether each node from `first` on is read by the next alone, up to `last`.
    fn is_chain(&self, last: usize, first: usize) -> bool {
        let mut at = first;
        while at != last {
            let next = self.graph.nodes.iter().position(|node| node.inputs.contains(&at));
            match next {
                Some(next) if self.readers[at] == 1 => at = next,
                _ => return false,
            }
        }
        true
    }

    fn op(&self, place: usize) -> Op {
        self.graph.nodes[place].op
    }

    fn shape(&self, tensor: usize) -> (usize, [usize; 2]) {
        match (tensor, &self.graph.nodes[0].shape[..]) {
            (0, &[channels, height, width]) => (channels, [height, width]),
            (0, _) => unreachable!("no known node reads tokens"),
            _ => self.nodes[tensor - 1].shape(),
        }
    }

    fn push(&mut self, name: &str, input: usize, is_relu: bool, operation: Operation<Source>) -> usize {
        self.nodes.push(Node { name: name.into(), input, operation });
        self.is_relu.push(is_relu);
        self.nodes.len()
    }
}
