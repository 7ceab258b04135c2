//! Initial values of tensors, equal to PyTorch's to the last bit: the same draws in the same order, bounds computed in the same
//! order of operations. Source: torch/nn/init.py and the modules' `reset_parameters`.

use tch::{Device, Kind, Tensor};

use super::graph::{Graph, Slot};
use super::{Entry, Role};

/// One assignment of initial values.
#[derive(Debug, Clone, Copy)]
pub(super) struct Draw {
    /// Index of the tensor in the state.
    pub slot: usize,
    pub values: Values,
}

/// Distribution of initial values.
#[derive(Debug, Clone, Copy)]
pub(super) enum Values {
    /// One value; draws nothing.
    Constant(f64),
    /// Uniform in plus or minus the bound.
    Uniform(f64),
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    /// Normal with mean 0 and this standard deviation, cut at plus or minus 2.
    TruncatedNormal(f64),
}

impl Values {
    /// `kaiming_uniform_(a = sqrt(5))`, which convolutions and linear layers have: uniform in ±1/sqrt(fan_in).
    pub fn kaiming_uniform(fan_in: usize) -> Values {
        let gain = (2.0 / (1.0 + 5f64.sqrt().powi(2))).sqrt();
        Values::Uniform(3f64.sqrt() * (gain / (fan_in as f64).sqrt()))
    }

    /// `kaiming_normal_(mode = "fan_out", nonlinearity = "relu")` for a fan out of `fan_out`.
    pub fn kaiming_normal(fan_out: usize) -> Values {
        Values::Normal(2f64.sqrt() / (fan_out as f64).sqrt())
    }

    /// `xavier_uniform_` of a matrix.
    pub fn xavier_uniform([outputs, inputs]: [usize; 2]) -> Values {
        let std = (2.0 / (inputs + outputs) as f64).sqrt();
        Values::Uniform(3f64.sqrt() * std)
    }

    /// Overwrites `tensor`, float32 on the host, with libtorch's CPU generator.
    pub fn draw(self, tensor: &mut Tensor) {
        let _ = match self {
            Values::Constant(value) => tensor.fill_(value),
            Values::Uniform(bound) => tensor.uniform_(-bound, bound),
            Values::Normal(std) => tensor.normal_(0.0, std),
            Values::TruncatedNormal(std) => {
                // The cumulative function at the cuts, 2 / std deviations away.
                let cut = 2.0 / std / 2f64.sqrt();
                let cut = Tensor::from_slice(&[cut]).to_kind(Kind::Double).erf().double_value(&[0]);
                let (low, high) = ((1.0 - cut) / 2.0, (1.0 + cut) / 2.0);
                let _ = tensor.uniform_(2.0 * low - 1.0, 2.0 * high - 1.0);
                tensor.erfinv_().g_mul_scalar_(std * 2f64.sqrt()).g_add_scalar_(0.0).clamp_(-2.0, 2.0)
            }
        };
    }
}

/// The state of a network after `draws`, which take libtorch's CPU generator as it is.
pub(super) fn state(graph: &Graph, draws: &[Draw]) -> Vec<Entry> {
    let entry = |slot: &Slot| {
        let shape: Vec<i64> = slot.shape.iter().map(|&extent| extent as i64).collect();
        let tensor = match slot.role {
            Role::Counter => Tensor::new(),
            _ => Tensor::empty(shape, (Kind::Float, Device::Cpu)),
        };
        Entry { name: slot.name.clone(), role: slot.role, tensor }
    };
    let mut state: Vec<Entry> = graph.state.iter().map(entry).collect();
    for draw in draws.iter().filter(|draw| graph.state[draw.slot].role != Role::Counter) {
        draw.values.draw(&mut state[draw.slot].tensor);
    }
    for entry in state.iter_mut().filter(|entry| entry.role == Role::Parameter) {
        entry.tensor = entry.tensor.set_requires_grad(true);
    }
    state
}
