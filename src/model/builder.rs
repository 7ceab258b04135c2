//! The builder of a [`Graph`]: operations in the order of the forward pass, the tensors that they need, and the draws of the
//! initial values in PyTorch's order.

use super::Role;
use super::graph::{Graph, Node, Op, Slot};
use super::initial::{Draw, Values};
use crate::data::Form;
use crate::error::{Error, Result};

/// A network and how its initial values are drawn.
pub(super) struct Description {
    pub graph: Graph,
    /// Draws in the order in which PyTorch makes them; later ones overwrite earlier ones.
    pub draws: Vec<Draw>,
}

/// Index of a node.
pub(super) type Place = usize;

/// Collects nodes. A method that adds a node takes its name and the nodes that it reads, and returns its place.
pub(super) struct Builder {
    graph: Graph,
    draws: Vec<Draw>,
    /// Part of the network that is being listed.
    part: String,
    /// The first operation that does not fit its input.
    failure: Option<String>,
}

/// Extents of a convolution beside its channels.
#[derive(Clone, Copy)]
pub(super) struct Window {
    pub kernel: usize,
    pub stride: usize,
    pub padding: usize,
}

impl Builder {
    /// A network that so far is its input.
    pub fn new(form: Form) -> Builder {
        let shape = match form {
            Form::Images { shape, .. } => shape.to_vec(),
            Form::Tokens { length, .. } => vec![length],
        };
        let (name, part) = ("input".to_owned(), "input".to_owned());
        let input = Node { name, part, op: Op::Input, inputs: Vec::new(), shape, slots: Vec::new() };
        Builder {
            graph: Graph { form, nodes: vec![input], state: Vec::new() },
            draws: Vec::new(),
            part: String::new(),
            failure: None,
        }
    }

    /// Begins a part of the network, to which the nodes added from now on belong.
    pub fn part(&mut self, name: &str) {
        self.part = name.into();
    }

    /// Place of the input.
    pub const INPUT: Place = 0;

    /// Shape of the node at `place` for one sample.
    pub fn shape(&self, place: Place) -> &[usize] {
        &self.graph.nodes[place].shape
    }

    /// The finished network, named `name` in the error.
    ///
    /// # Errors
    /// [`Error::ConfigValue`] if an operation does not fit its input.
    pub fn finish(self, name: &str) -> Result<Description> {
        match self.failure {
            Some(expected) => {
                let (place, key, value) = ("model".into(), "model.name".into(), format!("{name:?}"));
                Err(Error::ConfigValue { place, key, value, expected })
            }
            None => Ok(Description { graph: self.graph, draws: self.draws }),
        }
    }

    /// Convolution to `outputs` channels.
    pub fn conv(&mut self, name: &str, input: Place, outputs: usize, window: Window, bias: bool) -> Place {
        let Window { kernel, stride, padding } = window;
        let [inputs, height, width] = self.image(input);
        let mut extent = |side: usize| {
            self.fit(kernel <= side + 2 * padding, || {
                format!("its {name} has a kernel of {kernel} pixels, its input {height}x{width}")
            });
            (side + 2 * padding).saturating_sub(kernel) / stride + 1
        };
        let shape = vec![outputs, extent(height), extent(width)];
        let op = Op::Conv2d { inputs, outputs, kernel, stride, padding, groups: 1, bias };
        let mut slots = vec![self.weight(&format!("{name}.weight"), &[outputs, inputs, kernel, kernel])];
        if bias {
            slots.push(self.bias(&format!("{name}.bias"), outputs, inputs * kernel * kernel));
        }
        self.node(name, op, &[input], shape, slots)
    }

    /// Linear layer to `outputs` values.
    pub fn linear(&mut self, name: &str, input: Place, outputs: usize, bias: bool) -> Place {
        self.linear_of(name, &format!("{name}."), input, outputs, bias)
    }

    /// Linear layer whose tensors are named `prefix` with `weight` and `bias`.
    pub fn linear_of(&mut self, name: &str, prefix: &str, input: Place, outputs: usize, bias: bool) -> Place {
        let inputs = self.last_extent(input);
        let mut slots = vec![self.weight(&format!("{prefix}weight"), &[outputs, inputs])];
        if bias {
            slots.push(self.bias(&format!("{prefix}bias"), outputs, inputs));
        }
        self.product(name, input, [inputs, outputs], slots)
    }

    /// Linear layer without bias whose weight `[outputs, inputs]` is the tensor `weight` of another node.
    pub fn tied_linear(&mut self, name: &str, input: Place, weight: &str) -> Place {
        let slot = self.named(weight);
        let extents = [self.last_extent(input), self.graph.state[slot].shape[0]];
        // PyTorch's module draws a weight of its own before it is tied.
        self.draws.push(Draw { slot, values: Values::kaiming_uniform(extents[0]) });
        self.product(name, input, extents, vec![slot])
    }

    fn product(&mut self, name: &str, input: Place, [inputs, outputs]: [usize; 2], slots: Vec<usize>) -> Place {
        let mut shape = self.shape(input).to_vec();
        *shape.last_mut().expect("an input has extents") = outputs;
        self.node(name, Op::Linear { inputs, outputs, bias: slots.len() == 2 }, &[input], shape, slots)
    }

    /// Batch norm: weight 1, bias 0, running mean 0, running variance 1.
    pub fn batch_norm(&mut self, name: &str, input: Place) -> Place {
        let channels = self.shape(input)[0];
        let mut slot =
            |suffix: &str, role, shape: &[usize], value| self.constant(&format!("{name}.{suffix}"), role, shape, value);
        let slots = vec![
            slot("weight", Role::Parameter, &[channels], 1.0),
            slot("bias", Role::Parameter, &[channels], 0.0),
            slot("running_mean", Role::Buffer, &[channels], 0.0),
            slot("running_var", Role::Buffer, &[channels], 1.0),
            slot("num_batches_tracked", Role::Counter, &[], 0.0),
        ];
        self.same(name, Op::BatchNorm, input, slots)
    }

    /// Layer norm: weight 1, bias 0.
    pub fn layer_norm(&mut self, name: &str, input: Place, epsilon: f64) -> Place {
        let width = self.last_extent(input);
        let slots = vec![
            self.constant(&format!("{name}.weight"), Role::Parameter, &[width], 1.0),
            self.constant(&format!("{name}.bias"), Role::Parameter, &[width], 0.0),
        ];
        self.same(name, Op::LayerNorm { epsilon }, input, slots)
    }

    /// ReLU.
    pub fn relu(&mut self, name: &str, input: Place) -> Place {
        self.same(name, Op::Relu, input, Vec::new())
    }

    /// GELU, exact or with tanh.
    pub fn gelu(&mut self, name: &str, input: Place, tanh: bool) -> Place {
        self.same(name, Op::Gelu { tanh }, input, Vec::new())
    }

    /// Dropout; the input itself if `rate` is 0.
    pub fn dropout(&mut self, name: &str, input: Place, rate: f64) -> Place {
        if rate == 0.0 { input } else { self.same(name, Op::Dropout { rate }, input, Vec::new()) }
    }

    /// Max-pool.
    pub fn max_pool(&mut self, name: &str, input: Place, window: Window) -> Place {
        let Window { kernel, stride, padding } = window;
        let [channels, height, width] = self.image(input);
        let mut extent = |side: usize| {
            self.fit(kernel <= side + 2 * padding, || {
                format!("its {name} covers {kernel} pixels, its input is {height}x{width}")
            });
            (side + 2 * padding).saturating_sub(kernel) / stride + 1
        };
        let shape = vec![channels, extent(height), extent(width)];
        self.node(name, Op::MaxPool { kernel, stride, padding }, &[input], shape, Vec::new())
    }

    /// Mean over the whole image.
    pub fn average_pool(&mut self, name: &str, input: Place) -> Place {
        let [channels, ..] = self.image(input);
        self.node(name, Op::AveragePool, &[input], vec![channels, 1, 1], Vec::new())
    }

    /// Sum.
    pub fn add(&mut self, name: &str, inputs: [Place; 2]) -> Place {
        let shape = self.shape(inputs[0]).to_vec();
        debug_assert_eq!(shape, self.shape(inputs[1]), "{name}");
        self.node(name, Op::Add, &inputs, shape, Vec::new())
    }

    /// All extents as one.
    pub fn flatten(&mut self, name: &str, input: Place) -> Place {
        let shape = vec![self.shape(input).iter().product()];
        self.node(name, Op::Flatten, &[input], shape, Vec::new())
    }

    /// Learned tensor of `shape` for one sample, kept in the state as `name` in the shape `stored`, 0 at first.
    pub fn parameter(&mut self, name: &str, shape: &[usize], stored: &[usize]) -> Place {
        let slot = self.constant(name, Role::Parameter, stored, 0.0);
        self.node(name, Op::Parameter, &[], shape.to_vec(), vec![slot])
    }

    /// Sequences one after the other.
    pub fn concat(&mut self, name: &str, inputs: [Place; 2]) -> Place {
        let mut shape = self.shape(inputs[0]).to_vec();
        shape[0] += self.shape(inputs[1])[0];
        self.node(name, Op::Concat, &inputs, shape, Vec::new())
    }

    /// Pixels as a sequence.
    pub fn sequence(&mut self, name: &str, input: Place) -> Place {
        let [channels, height, width] = self.image(input);
        self.node(name, Op::Sequence, &[input], vec![height * width, channels], Vec::new())
    }

    /// Row of a table for each token.
    pub fn embedding(&mut self, name: &str, input: Place, vocabulary: usize, width: usize) -> Place {
        let slot = self.slot(&format!("{name}.weight"), Role::Parameter, &[vocabulary, width]);
        self.draws.push(Draw { slot, values: Values::Normal(1.0) });
        let shape = vec![self.shape(input)[0], width];
        self.node(name, Op::Embedding { vocabulary, width }, &[input], shape, vec![slot])
    }

    /// Attention of queries, keys and values that lie beside each other.
    pub fn attention(&mut self, name: &str, input: Place, heads: usize, causal: bool, dropout: f64) -> Place {
        let mut shape = self.shape(input).to_vec();
        shape[1] /= 3;
        self.node(name, Op::Attention { heads, causal, dropout }, &[input], shape, Vec::new())
    }

    /// One place of a sequence.
    pub fn select(&mut self, name: &str, input: Place, index: usize) -> Place {
        let shape = self.shape(input)[1..].to_vec();
        self.node(name, Op::Select { index }, &[input], shape, Vec::new())
    }

    /// Forgets the draws of the modules' own initial values; constants stay.
    pub fn forget_draws(&mut self) {
        self.draws.retain(|draw| matches!(draw.values, Values::Constant(_)));
    }

    /// Draws the tensor `name` again, as a network's own initialization does after that of its modules.
    pub fn redraw(&mut self, name: &str, values: Values) {
        let slot = self.named(name);
        self.draws.push(Draw { slot, values });
    }

    /// Draws weight and bias of the convolution or linear layer `name` as PyTorch's module does when it is made.
    pub fn draw_module(&mut self, name: &str) {
        let slot = self.named(&format!("{name}.weight"));
        self.draw_weight(slot);
        let fan_in = self.graph.state[slot].shape[1..].iter().product();
        self.draw_bias(self.named(&format!("{name}.bias")), fan_in);
    }

    fn named(&self, name: &str) -> usize {
        self.graph.state.iter().position(|slot| slot.name == name).expect("a tensor of the network")
    }

    /// The tensor `name`.
    pub fn slot_named(&self, name: &str) -> &Slot {
        &self.graph.state[self.named(name)]
    }

    /// Slots of the state, in order.
    pub fn state(&self) -> &[Slot] {
        &self.graph.state
    }

    /// Weight with the initial values of PyTorch's convolutions and linear layers.
    fn weight(&mut self, name: &str, shape: &[usize]) -> usize {
        let slot = self.slot(name, Role::Parameter, shape);
        self.draw_weight(slot);
        slot
    }

    /// Bias with the initial values of PyTorch's convolutions and linear layers, each output of which sums `fan_in` products.
    fn bias(&mut self, name: &str, outputs: usize, fan_in: usize) -> usize {
        let slot = self.slot(name, Role::Parameter, &[outputs]);
        self.draw_bias(slot, fan_in);
        slot
    }

    fn draw_weight(&mut self, slot: usize) {
        let fan_in = self.graph.state[slot].shape[1..].iter().product();
        self.draws.push(Draw { slot, values: Values::kaiming_uniform(fan_in) });
    }

    fn draw_bias(&mut self, slot: usize, fan_in: usize) {
        self.draws.push(Draw { slot, values: Values::Uniform(1.0 / (fan_in as f64).sqrt()) });
    }

    fn constant(&mut self, name: &str, role: Role, shape: &[usize], value: f64) -> usize {
        let slot = self.slot(name, role, shape);
        self.draws.push(Draw { slot, values: Values::Constant(value) });
        slot
    }

    fn slot(&mut self, name: &str, role: Role, shape: &[usize]) -> usize {
        self.graph.state.push(Slot { name: name.into(), role, shape: shape.to_vec() });
        self.graph.state.len() - 1
    }

    /// Node whose output has the shape of its input.
    fn same(&mut self, name: &str, op: Op, input: Place, slots: Vec<usize>) -> Place {
        let shape = self.shape(input).to_vec();
        self.node(name, op, &[input], shape, slots)
    }

    fn node(&mut self, name: &str, op: Op, inputs: &[Place], shape: Vec<usize>, slots: Vec<usize>) -> Place {
        debug_assert!(self.graph.nodes.iter().all(|node| node.name != name), "two nodes named {name}");
        let part = self.part.clone();
        self.graph.nodes.push(Node { name: name.into(), part, op, inputs: inputs.to_vec(), shape, slots });
        self.graph.nodes.len() - 1
    }

    fn image(&self, place: Place) -> [usize; 3] {
        self.shape(place).try_into().expect("an image has three extents")
    }

    fn last_extent(&self, place: Place) -> usize {
        *self.shape(place).last().expect("an input has extents")
    }

    /// Keeps the first problem.
    fn fit(&mut self, fits: bool, problem: impl FnOnce() -> String) {
        if !fits && self.failure.is_none() {
            self.failure = Some(format!("{}: it needs larger images", problem()));
        }
    }
}
