//! Layers with PyTorch's initial values, and the builder that collects their state.

use std::ffi::CString;

use tch::{Device, Kind, Tensor};

use super::{EPSILON, Entry, Forward, MOMENTUM, Mode, Model, Role, Stage};
use crate::config::{self, Precision};
use crate::sys;

/// Collects entries and stages in the order of the forward pass.
pub(super) struct Builder {
    state: Vec<Entry>,
    stages: Vec<Stage>,
    precision: Precision,
    fused_batch_norm: bool,
}

impl Builder {
    pub(super) fn new(config: &config::Model) -> Builder {
        let &config::Model { precision, fused_batch_norm, .. } = config;
        Builder { state: Vec::new(), stages: Vec::new(), precision, fused_batch_norm }
    }

    /// Ends a stage: it owns every entry made since the last one.
    pub(super) fn stage(&mut self, name: &str, forward: Forward) {
        let start = self.stages.last().map_or(0, |stage| stage.entries.end);
        let name = CString::new(name).expect("names are words");
        self.stages.push(Stage { name, entries: start..self.state.len(), forward });
    }

    pub(super) fn finish(self, channels_last: bool) -> Model {
        assert_eq!(
            self.stages.last().map(|stage| stage.entries.end),
            Some(self.state.len()),
            "a layer without a stage"
        );
        Model { state: self.state, stages: self.stages, channels_last }
    }

    /// A convolution with `weight` `[outputs, inputs, kernel, kernel]` and no bias.
    pub(super) fn conv(&mut self, name: &str, [inputs, outputs, kernel]: [i64; 3], stride: i64, padding: i64) -> Conv {
        let shape = [outputs, inputs, kernel, kernel];
        let weight = self.uniform(&format!("{name}.weight"), &shape, inputs * kernel * kernel);
        Conv { weight, stride, padding, precision: self.precision }
    }

    /// A linear layer with `weight` `[outputs, inputs]` and, with `bias`, a bias `[outputs]`.
    pub(super) fn linear(&mut self, name: &str, inputs: i64, outputs: i64, bias: bool) -> Linear {
        let weight = self.uniform(&format!("{name}.weight"), &[outputs, inputs], inputs);
        let bias = bias.then(|| self.uniform(&format!("{name}.bias"), &[outputs], inputs));
        Linear { weight, bias, precision: self.precision }
    }

    /// Batch norm over `channels`: weight 1, bias 0, running mean 0, running variance 1.
    pub(super) fn batch_norm(&mut self, name: &str, channels: i64) -> BatchNorm {
        let float = (Kind::Float, Device::Cpu);
        let mut entry = |suffix: &str, role, tensor| self.entry(format!("{name}.{suffix}"), role, tensor);
        let weight = entry("weight", Role::Parameter, Tensor::ones([channels], float));
        let bias = entry("bias", Role::Parameter, Tensor::zeros([channels], float));
        let mean = entry("running_mean", Role::Buffer, Tensor::zeros([channels], float));
        let variance = entry("running_var", Role::Buffer, Tensor::ones([channels], float));
        let _ = entry("num_batches_tracked", Role::Counter, Tensor::new());
        BatchNorm { weight, bias, mean, variance, fused: self.fused_batch_norm }
    }

    /// PyTorch's initial values of convolutions and linear layers: `kaiming_uniform_(a = sqrt(5))`, that is uniform in
    /// ±1/sqrt(fan_in), computed in PyTorch's order of operations so that the numbers are equal to the last bit.
    /// Source: torch/nn/modules/conv.py, linear.py (`reset_parameters`), torch/nn/init.py.
    fn uniform(&mut self, name: &str, shape: &[i64], fan_in: i64) -> Tensor {
        let fan_in = fan_in as f64;
        let bound = if shape.len() == 1 {
            1.0 / fan_in.sqrt()
        } else {
            let gain = (2.0 / (1.0 + 5f64.sqrt().powi(2))).sqrt();
            3f64.sqrt() * (gain / fan_in.sqrt())
        };
        let mut tensor = Tensor::empty(shape, (Kind::Float, Device::Cpu));
        let _ = tensor.uniform_(-bound, bound);
        self.entry(name.into(), Role::Parameter, tensor)
    }

    fn entry(&mut self, name: String, role: Role, tensor: Tensor) -> Tensor {
        let tensor = if role == Role::Parameter { tensor.set_requires_grad(true) } else { tensor };
        let shared = tensor.shallow_clone();
        self.state.push(Entry { name, role, tensor });
        shared
    }
}

/// Casts an operand of a convolution or linear layer to bfloat16 in bf16 mode; other layers follow their inputs. This is
/// autocast's rule, written out since tch's `autocast` is for CUDA alone.
fn cast(tensor: &Tensor, precision: Precision) -> Tensor {
    match precision {
        Precision::Float32 | Precision::Tf32 => tensor.shallow_clone(),
        Precision::Bf16 => tensor.to_kind(Kind::BFloat16),
    }
}

/// Whether `input` has so few images and channels that oneDNN's set-up costs more than the convolution. Whole steps of `Net` on
/// one thread, images/s, medians of four interleaved runs: batch 2 1878 -> 2267, 4 2300 -> 3178, 8 3386 -> 3952; at batch 16
/// both are equal, from 32 on oneDNN is up to five times faster.
fn is_small(input: &Tensor) -> bool {
    let [images, channels, ..] = input.size()[..] else { return false };
    images <= 8 && channels <= 8 && input.device() == Device::Cpu
}

pub(super) struct Conv {
    weight: Tensor,
    stride: i64,
    padding: i64,
    precision: Precision,
}

impl Conv {
    /// Whether oneDNN, with a stride, would write past its workspace in the gradient of the weight, and crash: 1x1, channels
    /// last, fewer channels than lanes (8 or 16). Source: oneDNN's issue 6035; seen with libtorch 2.11 and AVX2.
    fn is_narrow(&self) -> bool {
        matches!(self.weight.size()[..], [_, inputs, 1, 1] if inputs < 16)
    }

    pub(super) fn forward(&self, input: &Tensor) -> Tensor {
        if self.precision != Precision::Bf16 && is_small(input) {
            return sys::im2col_conv2d(input, &self.weight, self.stride, self.padding);
        }
        let (mut input, weight) = (cast(input, self.precision), cast(&self.weight, self.precision));
        let mut stride = self.stride;
        if stride > 1 && self.is_narrow() {
            input = input.slice(2, None, None, stride).slice(3, None, None, stride);
            stride = 1;
        }
        input.conv2d(&weight, None::<&Tensor>, [stride; 2], [self.padding; 2], [1, 1], 1)
    }
}

pub(super) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    precision: Precision,
}

impl Linear {
    pub(super) fn forward(&self, input: &Tensor) -> Tensor {
        let (input, weight) = (cast(input, self.precision), cast(&self.weight, self.precision));
        let bias = self.bias.as_ref().map(|bias| cast(bias, self.precision));
        input.linear(&weight, bias.as_ref())
    }
}

pub(super) struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    /// Whether to use hpml's fused kernels where they can compute.
    fused: bool,
}

impl BatchNorm {
    /// ReLU of the normalized `input`, plus `shortcut` if there is one.
    pub(super) fn forward_relu(&self, input: &Tensor, shortcut: Option<&Tensor>, mode: Mode) -> Tensor {
        self.fused(input, shortcut, true, mode).unwrap_or_else(|| {
            let mut output = self.unfused(input, mode);
            match shortcut {
                Some(shortcut) => output.g_add_(shortcut).relu_(),
                None => output.relu_(),
            }
        })
    }

    pub(super) fn forward(&self, input: &Tensor, mode: Mode) -> Tensor {
        self.fused(input, None, false, mode).unwrap_or_else(|| self.unfused(input, mode))
    }

    /// The output by hpml's fused kernels; `None` where they are disabled or cannot compute it.
    fn fused(&self, input: &Tensor, shortcut: Option<&Tensor>, rectified: bool, mode: Mode) -> Option<Tensor> {
        let BatchNorm { weight, bias, mean: running_mean, variance: running_variance, fused: true } = self else {
            return None;
        };
        let Mode::Train { momentum, standardize: None } = mode else { return None };
        let norm = sys::BatchNorm { weight, bias, running_mean, running_variance, momentum, epsilon: EPSILON };
        norm.apply(input, shortcut, rectified)
    }

    /// The normalized input by libtorch's operations, one pass over memory each.
    fn unfused(&self, input: &Tensor, mode: Mode) -> Tensor {
        let (train, momentum) = match mode {
            Mode::Train { momentum, standardize: Some(standardize) } => {
                let standardized = standardize(input, EPSILON);
                tch::no_grad(|| {
                    let update = |mut running: Tensor, new: &Tensor| {
                        running.copy_(&(&running * (1.0 - momentum) + new * momentum));
                    };
                    update(self.mean.shallow_clone(), &standardized.mean);
                    update(self.variance.shallow_clone(), &standardized.unbiased_variance);
                });
                let across = |channels: &Tensor| channels.view([1, -1, 1, 1]);
                let output = across(&self.bias).addcmul(&standardized.values, &across(&self.weight));
                return output.to_kind(input.kind());
            }
            Mode::Train { momentum, standardize: None } => (true, momentum),
            Mode::Eval => (false, MOMENTUM), // not used
        };
        let (weight, bias) = (Some(&self.weight), Some(&self.bias));
        input.batch_norm(weight, bias, Some(&self.mean), Some(&self.variance), train, momentum, EPSILON, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::sys::seeded;

    #[test]
    fn a_narrow_shortcut_has_its_gradient() {
        let mut build =
            Builder::new(&config::Model { precision: Precision::Float32, ..config::Config::default().model });
        for inputs in [4, 12, 24] {
            let random = |shape: [i64; 4]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
            let (conv, input, gradient) = seeded(1, || {
                let conv = build.conv("shortcut", [inputs, 8, 1], 2, 0);
                (conv, random([32, 16, 16, inputs]).permute([0, 3, 1, 2]), random([32, 8, 8, 8]))
            });
            let output = conv.forward(&input);
            (&output * &gradient).sum(Kind::Float).backward();
            let seen = input.slice(2, None, None, 2).slice(3, None, None, 2).to_kind(Kind::Double);
            let expected = Tensor::einsum("bohw,bihw->oi", &[gradient.to_kind(Kind::Double), seen], None::<&[i64]>);
            let apart = (conv.weight.grad().view([8, inputs]).to_kind(Kind::Double) - &expected).abs().max();
            assert!(apart.double_value(&[]) < 1e-5 * expected.abs().max().double_value(&[]), "{inputs}: {apart:?}");
        }
    }
}
