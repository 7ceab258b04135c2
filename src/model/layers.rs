//! The operations with parameters, as one call of libtorch each or as a faster equivalent.

use tch::{Device, Kind, Tensor};

use super::{EPSILON, MOMENTUM, Mode};
use crate::config::Precision;
use crate::convolution::Shape;
use crate::sys::{self, Winograd};

/// Casts an operand of a convolution or linear layer to bfloat16 in bf16 mode; other layers follow their inputs. This is
/// autocast's rule, written out since tch's `autocast` is for CUDA alone.
fn cast(tensor: &Tensor, precision: Precision) -> Tensor {
    match precision {
        Precision::Float32 | Precision::Tf32 => tensor.shallow_clone(),
        Precision::Bf16 => tensor.to_kind(Kind::BFloat16),
        Precision::Fp16 => tensor.to_kind(Kind::Half),
    }
}

/// Whether `input` has so few images and channels that oneDNN's set-up costs more than the convolution. Whole steps of `Net` on
/// one thread, images/s, medians of four interleaved runs: batch 2 1878 -> 2267, 4 2300 -> 3178, 8 3386 -> 3952; at batch 16
/// both are equal, from 32 on oneDNN is up to five times faster. On images of 96x96 and more it is twice as fast at any batch.
fn is_small(input: &Tensor) -> bool {
    let [images, channels, height, width] = input.size()[..] else { return false };
    images <= 8 && channels <= 8 && height * width <= 32 * 32 && input.device() == Device::Cpu
}

/// Convolution.
pub(super) struct Conv {
    pub weight: Tensor,
    pub bias: Option<Tensor>,
    pub stride: i64,
    pub padding: i64,
    pub groups: i64,
    pub precision: Precision,
    /// Whether a ReLU follows.
    pub relu: bool,
    /// Whether to leave all to libtorch.
    pub is_direct: bool,
    /// The convolution of one image, if Winograd can compute it.
    pub shape: Option<Shape>,
    /// Winograd's convolutions, if this one is to be computed by them.
    pub winograd: Option<Winograd>,
}

impl Conv {
    /// Whether oneDNN, with a stride, would write past its workspace in the gradient of the weight, and crash: 1x1, channels
    /// last, fewer channels than lanes (8 or 16). Source: oneDNN's issue 6035; seen with libtorch 2.11 and AVX2.
    fn is_narrow(&self) -> bool {
        matches!(self.weight.size()[..], [_, inputs, 1, 1] if inputs < 16)
    }

    pub fn forward(&self, input: &Tensor) -> Tensor {
        let (weight, bias) = (&self.weight, self.bias.as_ref());
        if self.precision == Precision::Float32
            && !self.is_direct
            && self.groups == 1
            && self.stride == 1
            && let Some(output) = sys::small::convolution(input, weight, bias, self.padding, self.relu)
        {
            return output;
        }
        let mut output = self.unfused(input);
        if self.relu { output.relu_() } else { output }
    }

    /// The convolution by Winograd or libtorch.
    fn unfused(&self, input: &Tensor) -> Tensor {
        if let Some(output) = self.winograd.and_then(|winograd| winograd.conv2d(input, &self.weight)) {
            return output;
        }
        let is_full = matches!(self.precision, Precision::Float32 | Precision::Tf32);
        if is_full && self.groups == 1 && self.bias.is_none() && is_small(input) {
            return sys::im2col_conv2d(input, &self.weight, self.stride, self.padding);
        }
        let (mut input, weight) = (cast(input, self.precision), cast(&self.weight, self.precision));
        let bias = self.bias.as_ref().map(|bias| cast(bias, self.precision));
        let mut stride = self.stride;
        if stride > 1 && self.is_narrow() {
            input = input.slice(2, None, None, stride).slice(3, None, None, stride);
            stride = 1;
        }
        input.conv2d(&weight, bias.as_ref(), [stride; 2], [self.padding; 2], [1, 1], self.groups)
    }
}

/// Linear layer.
pub(super) struct Linear {
    pub weight: Tensor,
    pub bias: Option<Tensor>,
    pub precision: Precision,
}

impl Linear {
    pub fn forward(&self, input: &Tensor) -> Tensor {
        let (input, weight) = (cast(input, self.precision), cast(&self.weight, self.precision));
        let bias = self.bias.as_ref().map(|bias| cast(bias, self.precision));
        input.linear(&weight, bias.as_ref())
    }
}

/// Max-pooling.
pub(super) fn max_pool(input: &Tensor, kernel: i64, stride: i64, padding: i64) -> Tensor {
    let own = if (kernel, stride, padding) == (2, 2, 0) { sys::small::max_pool_2x2(input) } else { None };
    own.unwrap_or_else(|| input.max_pool2d([kernel; 2], [stride; 2], [padding; 2], [1, 1], false))
}

/// Attention of `[n, t, 3 width]`, which holds queries, keys and values beside each other, to `[n, t, width]`.
pub(super) fn attention(input: &Tensor, heads: i64, causal: bool, dropout: f64) -> Tensor {
    let [samples, length, width] = input.size()[..] else { unreachable!("a sequence has three extents") };
    let parts = input.view([samples, length, 3, heads, width / (3 * heads)]).permute([2, 0, 3, 1, 4]);
    let [query, key, value] = [0, 1, 2].map(|part| parts.get(part)); // [n, heads, t, width / heads]
    let mixed =
        Tensor::scaled_dot_product_attention(&query, &key, &value, None::<&Tensor>, dropout, causal, None, false);
    mixed.transpose(1, 2).reshape([samples, length, width / 3])
}

/// Batch norm and what is fused to it.
pub(super) struct BatchNorm {
    pub weight: Tensor,
    pub bias: Tensor,
    pub mean: Tensor,
    pub variance: Tensor,
    /// Whether a ReLU follows.
    pub relu: bool,
    /// Whether to use hpml's fused kernels where they can compute.
    pub fused: bool,
}

impl BatchNorm {
    /// The normalized `input`, plus `shortcut` if there is one, then ReLU if one follows. Addition and ReLU work in place, which
    /// saves memory traffic and changes no value: batch norm needs its input for its gradient, not its output.
    pub fn forward(&self, input: &Tensor, shortcut: Option<&Tensor>, mode: Mode) -> Tensor {
        self.fused(input, shortcut, mode).unwrap_or_else(|| {
            let mut output = self.unfused(input, mode);
            if let Some(shortcut) = shortcut {
                output = output.g_add_(shortcut);
            }
            if self.relu { output.relu_() } else { output }
        })
    }

    /// The output by hpml's fused kernels; `None` where they are disabled or cannot compute it.
    fn fused(&self, input: &Tensor, shortcut: Option<&Tensor>, mode: Mode) -> Option<Tensor> {
        let BatchNorm { weight, bias, mean: running_mean, variance: running_variance, relu, fused: true } = self else {
            return None;
        };
        let (train, momentum) = match mode {
            Mode::Train { standardize: Some(_), .. } => return None,
            Mode::Train { momentum, standardize: None } => (true, momentum.unwrap_or(MOMENTUM)),
            Mode::Eval => (false, MOMENTUM), // not used
        };
        let norm = sys::BatchNorm { weight, bias, running_mean, running_variance, momentum, epsilon: EPSILON };
        if train { norm.apply(input, shortcut, *relu) } else { norm.evaluate(input, shortcut, *relu) }
    }

    /// The normalized input by libtorch's operations, one pass over memory each.
    fn unfused(&self, input: &Tensor, mode: Mode) -> Tensor {
        let (train, momentum) = match mode {
            Mode::Train { momentum, standardize: Some(standardize) } => {
                let momentum = momentum.unwrap_or(MOMENTUM);
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
            Mode::Train { momentum, standardize: None } => (true, momentum.unwrap_or(MOMENTUM)),
            Mode::Eval => (false, MOMENTUM), // not used
        };
        let (weight, bias) = (Some(&self.weight), Some(&self.bias));
        input.batch_norm(weight, bias, Some(&self.mean), Some(&self.variance), train, momentum, EPSILON, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::seeded;

    #[test]
    fn a_narrow_shortcut_has_its_gradient() {
        for inputs in [4, 12, 24] {
            let random = |shape: [i64; 4]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
            let (weight, input, gradient) = seeded(1, || {
                let weight = random([8, inputs, 1, 1]).set_requires_grad(true);
                (weight, random([32, 16, 16, inputs]).permute([0, 3, 1, 2]), random([32, 8, 8, 8]))
            });
            let (stride, padding, groups, precision) = (2, 0, 1, Precision::Float32);
            let (shape, winograd) = (None, None);
            let conv = Conv {
                weight,
                bias: None,
                stride,
                padding,
                groups,
                precision,
                relu: false,
                is_direct: true,
                shape,
                winograd,
            };
            let output = conv.forward(&input);
            (&output * &gradient).sum(Kind::Float).backward();
            let seen = input.slice(2, None, None, 2).slice(3, None, None, 2).to_kind(Kind::Double);
            let expected = Tensor::einsum("bohw,bihw->oi", &[gradient.to_kind(Kind::Double), seen], None::<&[i64]>);
            let apart = (conv.weight.grad().view([8, inputs]).to_kind(Kind::Double) - &expected).abs().max();
            assert!(apart.double_value(&[]) < 1e-5 * expected.abs().max().double_value(&[]), "{inputs}: {apart:?}");
        }
    }
}
