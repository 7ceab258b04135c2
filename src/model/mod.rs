//! The networks as sequences of stages. In: the `[model]` section and a seed. Out: a [`Model`] whose parameters have
//! PyTorch's names, order and initial values (those of `torch.manual_seed(seed)` and the same modules, bit for bit).
//! Knows nothing of ranks, gradients' reduction or optimizers.
//!
//! Logits of two random images:
//! ```
//! use hpml::config;
//! use hpml::model::{Mode, Model};
//! use tch::{Device, Kind, Tensor};
//!
//! let model = Model::new(&config::Model::default(), 0);
//! let images = Tensor::randn([2, 3, 32, 32], (Kind::Float, Device::Cpu));
//! assert_eq!(model.forward(&images, Mode::Eval).size(), [2, 10]);
//! ```

mod builder;
mod cnn;
pub mod graph;
mod initial;
mod layers;
mod networks;
mod resnet;

use std::ffi::CString;
use std::ops::Range;

use tch::Tensor;

use crate::config::{self, ModelName};
use crate::sys::gpu::range;
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
    /// Batch norm's running statistics.
    Buffer,
    /// Batch norm's `num_batches_tracked`, which hpml counts without a tensor.
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

/// Forward pass of a stage: its input to its output.
type Forward = Box<dyn Fn(&Tensor, Mode) -> Tensor>;

/// A piece of the network between two points where the backward pass can be cut.
pub struct Stage {
    /// Name, for example `layer1.0`; in Nsight the name of the stage's forward pass.
    pub name: CString,
    /// Range of the stage's entries in [`Model::state`].
    pub entries: Range<usize>,
    forward: Forward,
}

impl Stage {
    /// Output of the stage for `input`. The first stage takes images `[n, 3, 32, 32]`, the last gives logits `[n, 10]`.
    pub fn forward(&self, input: &Tensor, mode: Mode) -> Tensor {
        let _range = range(&self.name);
        (self.forward)(input, mode)
    }
}

/// A network.
pub struct Model {
    /// Parameters and buffers in `state_dict` order, which is the order of the forward pass.
    pub state: Vec<Entry>,
    /// Stages in the order of the forward pass; together they own all of `state`.
    pub stages: Vec<Stage>,
    /// Whether images and weights lie as NHWC in memory.
    pub channels_last: bool,
}

impl Model {
    /// Builds the network with the initial values that PyTorch gives it after `torch.manual_seed(seed)`.
    pub fn new(config: &config::Model, seed: u64) -> Model {
        seeded(seed, || match config.name {
            ModelName::Net => cnn::net(config),
            _ => resnet::resnet18(config),
        })
    }

    /// Logits `[n, 10]`, float32, of images `[n, 3, 32, 32]`.
    pub fn forward(&self, images: &Tensor, mode: Mode) -> Tensor {
        let (first, rest) = self.stages.split_first().expect("a network has stages");
        rest.iter().fold(first.forward(images, mode), |hidden, stage| stage.forward(&hidden, mode))
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
        Model::new(&config, 0)
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
    fn the_node_list_has_the_state_of_the_model() {
        for name in [ModelName::Net, ModelName::Resnet18] {
            let config = config::Model { name, ..config::Model::default() };
            let form = crate::data::Form::Images { shape: [3, 32, 32], classes: 10 };
            let graph = graph::Graph::new(&config, form).unwrap();
            let model = Model::new(&config, 0);
            assert_eq!(graph.state.len(), model.state.len());
            for (slot, entry) in graph.state.iter().zip(&model.state) {
                assert_eq!((&slot.name, slot.role), (&entry.name, entry.role));
                let shape: Vec<i64> = slot.shape.iter().map(|&extent| extent as i64).collect();
                assert!(slot.role == Role::Counter || shape == entry.tensor.size(), "{}", slot.name);
            }
        }
    }

    #[test]
    fn stages_cover_the_state_without_gaps() {
        for model in [model(|_| ()), model(|config| config.name = ModelName::Resnet18)] {
            let mut next = 0;
            for stage in &model.stages {
                assert_eq!(stage.entries.start, next);
                next = stage.entries.end;
            }
            assert_eq!(next, model.state.len());
        }
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
