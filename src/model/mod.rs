//! The networks, each a list of nodes ([`graph`]) that one interpreter computes. In: the `[model]` section, the form of the samples and a seed. Out: a [`Model`] whose parameters have
//! PyTorch's names, order and initial values (those of `torch.manual_seed(seed)` and the same modules, bit for bit).
//! Knows nothing of ranks, gradients' reduction or optimizers.
//!
//! Logits of two random images:
//! ```
//! use hpml::config;
//! use hpml::data::Form;
//! use hpml::model::{Mode, Model};
//! use tch::{Device, Kind, Tensor};
//!
//! let model = Model::new(&config::Model::default(), Form::CIFAR10, 0)?;
//! let images = Tensor::randn([2, 3, 32, 32], (Kind::Float, Device::Cpu));
//! assert_eq!(model.forward(&images, Mode::Eval).size(), [2, 10]);
//! # Ok::<(), hpml::error::Error>(())
//! ```

mod builder;
mod file;
pub mod graph;
mod initial;
mod interpreter;
mod layers;
mod networks;

use tch::Tensor;

use self::builder::Description;
pub use self::file::check as check_file;
use self::interpreter::Interpreter;
use crate::config::{self, ModelName};
use crate::convolution::Shape;
use crate::data::Form;
use crate::error::Result;
use crate::sys::{Winograd, seeded};

/// Function that standardizes an input `[n, c, h, w]`, given batch norm's epsilon.
pub type Standardize<'a> = &'a dyn Fn(&Tensor, f64) -> Standardized;

/// Source of batch norm's statistics: the batch, which also updates the running statistics, or the running statistics.
#[derive(Clone, Copy)]
pub enum Mode<'a> {
    /// Training: `running = (1 - momentum) running + momentum batch`.
    Train {
        /// Share of the batch in the running statistics, 0 to 1; `None`: each layer's own, PyTorch's default if built in.
        momentum: Option<f64>,
        /// Standardization over more than this batch, for example over all ranks; `None` for the batch alone.
        standardize: Option<Standardize<'a>>,
    },
    /// Test: the running statistics.
    Eval,
}

impl Mode<'_> {
    /// Training with each layer's own momentum and each batch's own statistics.
    pub const TRAIN: Mode<'static> = Mode::Train { momentum: None, standardize: None };
}

/// Batch norm's share of a batch in the running statistics: PyTorch's default.
pub const MOMENTUM: f64 = 0.1;

/// Constant that batch norm adds to the variance: PyTorch's default.
pub const EPSILON: f64 = 1e-5;

/// A batch norm's input with mean 0 and variance 1 per channel, before scale and shift.
pub struct Standardized {
    /// Standardized input, `[n, c, h, w]` float32.
    pub values: Tensor,
    /// Mean, `[c]`, for the running statistics.
    pub mean: Tensor,
    /// Unbiased variance, `[c]`, for the running statistics.
    pub unbiased_variance: Tensor,
}

/// Role of an entry of the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Trained parameter.
    Parameter,
    /// Parameter that is not trained.
    Frozen,
    /// Another name of a tensor before it, as with tied weights.
    Tied,
    /// Buffer that belongs to no `state_dict`: not persistent, and not saved.
    Constant,
    /// Batch norm's running statistics.
    Buffer,
    /// Batch norm's `num_batches_tracked`, which hpml counts without a tensor, or an integer buffer of a model from a file.
    Counter,
}

/// One entry of the state, named as in PyTorch's `state_dict`.
pub struct Entry {
    /// Name in the `state_dict`, for example `layer1.0.conv1.weight`.
    pub name: String,
    /// Role in training.
    pub role: Role,
    /// Values, float32 on the host, in PyTorch's shape; empty for a counter.
    pub tensor: Tensor,
}

/// Other name of a ResNet's tensor: PyTorch's CIFAR scripts have `shortcut` and `linear` where torchvision has `downsample` and
/// `fc`. `None` if both name it alike.
pub fn other_name(name: &str) -> Option<String> {
    [("shortcut", "downsample"), ("linear", "fc")]
        .into_iter()
        .flat_map(|(one, other)| [(one, other), (other, one)])
        .find_map(|(from, to)| {
            let parts: Vec<&str> = name.split('.').map(|part| if part == from { to } else { part }).collect();
            let other = parts.join(".");
            (other != name).then_some(other)
        })
}

/// The computation of a network, which reads the entries of its [`Model`]'s state.
pub trait Network {
    /// Logits in float32: `[n, classes]` of images, `[n, t, vocabulary]` of tokens.
    fn forward(&self, inputs: &Tensor, mode: Mode) -> Tensor;

    /// Whether the forward pass in training draws random numbers from libtorch's generators, as dropout does; true where that is
    /// not known.
    fn draws(&self) -> bool {
        true
    }

    /// Multiplications and additions per sample, forward, and forward and backward, where a file has counted them; otherwise the reason
    /// why they are not known. Those of a network with nodes are counted from the nodes.
    fn operations_in_file(&self) -> Result<[u64; 2], String> {
        Err("counted from the nodes".into())
    }

    /// Distinct convolutions of one image that Winograd can compute, if images lie as NHWC on CPU cores.
    fn convolutions(&self) -> Vec<Shape> {
        Vec::new()
    }

    /// Computes the convolutions of these `shapes` by Winograd from now on, the others directly.
    fn use_winograd(&mut self, _winograd: Winograd, _shapes: &[Shape]) {}

    /// Whether a GPU can capture its passes: neither of them waits for the GPU or copies a value from it.
    fn can_be_captured(&self) -> bool {
        true
    }
}

/// A network and its state.
pub struct Model {
    /// Parameters and buffers in `state_dict` order.
    pub state: Vec<Entry>,
    /// Whether images and weights lie as NHWC in memory.
    pub channels_last: bool,
    network: Box<dyn Network>,
}

impl Model {
    /// Builds the network for samples of this `form`, with the initial values that PyTorch gives it after
    /// `torch.manual_seed(seed)`.
    ///
    /// # Errors
    /// [`Error::ConfigValue`](crate::error::Error::ConfigValue) if the network takes no samples of this form, or a key of
    /// `[model]` does not fit another.
    pub fn new(config: &config::Model, form: Form, seed: u64) -> Result<Model> {
        if config.name == ModelName::File {
            return file::open(config, form, seed);
        }
        let Description { graph, draws } = networks::describe(config, form)?;
        let state = seeded(seed, || initial::state(&graph, &draws));
        let network = Box::new(Interpreter::new(&graph, &state, config));
        // net's convolutions are so thin (3 and 6 channels in) that NHWC brings them nothing.
        Ok(Model { state, channels_last: config.channels_last && config.name.is_resnet(), network })
    }

    /// Model of a `network` that reads the tensors of `state`.
    pub fn with_network(state: Vec<Entry>, channels_last: bool, network: Box<dyn Network>) -> Model {
        Model { state, channels_last, network }
    }

    /// Logits in float32: `[n, classes]` of images `[n, c, h, w]`, `[n, t, vocabulary]` of tokens `[n, t]`.
    pub fn forward(&self, inputs: &Tensor, mode: Mode) -> Tensor {
        self.network.forward(inputs, mode)
    }

    /// Whether the forward pass in training draws random numbers, see [`Network::draws`].
    pub fn draws(&self) -> bool {
        self.network.draws()
    }

    /// Distinct convolutions of one image that Winograd can compute on CPU cores.
    pub fn convolutions(&self) -> Vec<Shape> {
        if self.channels_last { self.network.convolutions() } else { Vec::new() }
    }

    /// Computes the convolutions of these `shapes`, which are among [`convolutions`](Self::convolutions), by Winograd from now on
    /// and the others directly, as a new model computes all.
    pub fn use_winograd(&mut self, winograd: Winograd, shapes: &[Shape]) {
        self.network.use_winograd(winograd, shapes);
    }

    /// Operations that came with the network, see [`Network::operations_in_file`].
    ///
    /// # Errors
    /// Returns why they are not known.
    pub fn operations_in_file(&self) -> Result<[u64; 2], String> {
        self.network.operations_in_file()
    }

    /// Whether a GPU can capture the network's passes.
    pub fn can_be_captured(&self) -> bool {
        self.network.can_be_captured()
    }

    /// The entries that are trained.
    pub fn parameters(&self) -> impl Iterator<Item = &Entry> {
        self.state.iter().filter(|entry| entry.role == Role::Parameter)
    }

    /// Number of trained values in all parameters.
    pub fn parameter_count(&self) -> usize {
        self.parameters().map(|entry| entry.tensor.numel()).sum()
    }
}

#[cfg(test)]
mod tests;
