//! The networks. In: the `[model]` section, the form of the samples and a seed. Out: a [`Model`] whose parameters have
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

mod cnn;
mod layers;
mod resnet;

use tch::Tensor;

use crate::config::{self, ModelName};
use crate::data::Form;
use crate::error::{Error, Result};
use crate::sys::seeded;

/// Function that standardizes an input `[n, c, h, w]`, given batch norm's epsilon.
pub type Standardize<'a> = &'a dyn Fn(&Tensor, f64) -> Standardized;

/// Source of batch norm's statistics: the batch, which also updates the running statistics, or the running statistics.
#[derive(Clone, Copy)]
pub enum Mode<'a> {
    /// Training: `running = (1 - momentum) running + momentum batch`.
    Train {
        /// Share of the batch in the running statistics, 0 to 1.
        momentum: f64,
        /// Standardization over more than this batch, for example over all ranks; `None` for the batch alone.
        standardize: Option<Standardize<'a>>,
    },
    /// Test: the running statistics.
    Eval,
}

impl Mode<'_> {
    /// Training with PyTorch's default momentum and each batch's own statistics.
    pub const TRAIN: Mode<'static> = Mode::Train { momentum: MOMENTUM, standardize: None };
}

/// Batch norm's share of a batch in the running statistics: PyTorch's default.
pub const MOMENTUM: f64 = 0.1;

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

/// The computation of a network, which reads the entries of its [`Model`]'s state.
pub trait Network {
    /// Logits in float32: `[n, classes]` of images, `[n, t, vocabulary]` of tokens.
    fn forward(&self, inputs: &Tensor, mode: Mode) -> Tensor;
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
    /// The network cannot be built for this form.
    pub fn new(config: &config::Model, form: Form, seed: u64) -> Result<Model> {
        if form != Form::CIFAR10 {
            return Err(Error::ConfigValue {
                place: "data".into(),
                key: "model.name".into(),
                value: config.name.as_str().into(),
                expected: "is for images [3, 32, 32] of 10 classes".into(),
            });
        }
        Ok(seeded(seed, || match config.name {
            ModelName::Net => cnn::net(config),
            ModelName::Resnet18 => resnet::resnet18(config),
        }))
    }

    /// Logits in float32: `[n, classes]` of images `[n, c, h, w]`, `[n, t, vocabulary]` of tokens `[n, t]`.
    pub fn forward(&self, inputs: &Tensor, mode: Mode) -> Tensor {
        self.network.forward(inputs, mode)
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
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn model(edit: impl Fn(&mut config::Model)) -> Model {
        let mut config = config::Model::default();
        edit(&mut config);
        Model::new(&config, Form::CIFAR10, 0).unwrap()
    }

    #[test]
    fn the_networks_have_the_published_number_of_parameters() {
        assert_eq!(model(|_| ()).parameter_count(), 61_770);
        assert_eq!(model(|config| config.bias = true).parameter_count(), 61_780);
        assert_eq!(model(|config| config.name = ModelName::Resnet18).parameter_count(), 11_173_962);
    }

    #[test]
    fn names_and_order_are_those_of_pytorchs_state_dict() {
        let net = model(|config| config.bias = true);
        let names: Vec<&str> = net.state.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, ["conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight", "fc3.weight", "fc3.bias"]);
        let resnet = model(|config| config.name = ModelName::Resnet18);
        assert_eq!(resnet.state.len(), 122); // len(ResNet18().state_dict())
        assert_eq!(resnet.state[0].name, "conv1.weight");
        assert_eq!(resnet.state[5].name, "bn1.num_batches_tracked");
        assert!(resnet.state.iter().any(|entry| entry.name == "layer2.0.shortcut.1.running_var"));
        assert_eq!(resnet.state[121].name, "linear.bias");
    }

    #[test]
    fn every_precision_and_layout_gives_ten_logits_in_float32() {
        let images = Tensor::zeros([2, 3, 32, 32], (Kind::Float, Device::Cpu));
        for name in [ModelName::Net, ModelName::Resnet18] {
            for precision in [config::Precision::Float32, config::Precision::Bf16] {
                for channels_last in [false, true] {
                    let model = model(|config| {
                        (config.name, config.precision, config.channels_last) = (name, precision, channels_last);
                        config.width = 16;
                    });
                    let logits = model.forward(&images, Mode::TRAIN);
                    assert_eq!((logits.size(), logits.kind()), (vec![2, 10], Kind::Float));
                }
            }
        }
    }
}
