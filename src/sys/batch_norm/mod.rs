//! hpml's kernels for batch norm with the shortcut and ReLU that follow it, which pass over memory half as often as libtorch's
//! operations: on CPU cores ([`kernels`], called by [`cpu`]) and on GPUs (kernels.cu, called by [`gpu`]).

mod cpu;
mod gpu;
mod kernels;
mod layout;

use tch::{Device, Tensor};

/// Batch norm, in training with the statistics of the batch.
pub struct BatchNorm<'a> {
    /// Scale, `[c]` float32.
    pub weight: &'a Tensor,
    /// Shift, `[c]` float32.
    pub bias: &'a Tensor,
    /// Running mean, `[c]` float32, updated in place.
    pub running_mean: &'a Tensor,
    /// Running variance, `[c]` float32, updated in place.
    pub running_variance: &'a Tensor,
    /// Share of the batch's statistics in the running ones, 0 to 1.
    pub momentum: f64,
    /// Constant added to the variance.
    pub epsilon: f64,
}

impl BatchNorm<'_> {
    /// Normalizes `input` `[n, c, h, w]` by its own statistics, adds `shortcut` of equal shape and kind, and applies ReLU if
    /// `rectified`. Autograd differentiates it once.
    ///
    /// Returns `None` for tensors that the kernels are not written for: they take bf16 or float32, channels last; on a GPU, which
    /// needs NVRTC, with 8, 16, 32 or a multiple of 64 channels.
    ///
    /// # Panics
    /// Panics with libtorch's message if a launch fails.
    pub fn apply(&self, input: &Tensor, shortcut: Option<&Tensor>, rectified: bool) -> Option<Tensor> {
        if shortcut.is_some_and(|other| other.size() != input.size() || other.kind() != input.kind()) {
            return None;
        }
        match input.device() {
            Device::Cuda(index) => gpu::apply(self, input, shortcut, rectified, index),
            _ => cpu::apply(self, input, shortcut, rectified, true),
        }
    }

    /// Normalizes `input` `[n, c, h, w]` by the running statistics; the rest as [`BatchNorm::apply`], but without a gradient.
    ///
    /// Returns `None` where autograd records, on GPUs, and for tensors that the kernels are not written for.
    pub fn evaluate(&self, input: &Tensor, shortcut: Option<&Tensor>, rectified: bool) -> Option<Tensor> {
        if shortcut.is_some_and(|other| other.size() != input.size() || other.kind() != input.kind()) {
            return None;
        }
        cpu::apply(self, input, shortcut, rectified, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{gpu as device, seeded};
    use tch::Kind;

    const EPSILON: f64 = 1e-5;
    const MOMENTUM: f64 = 0.1;

    /// Output, gradients of input, weight and bias, running mean and variance, and the shortcut's gradient.
    type Results = Vec<Tensor>;

    /// Operands of a batch norm, the input with the first mean and standard deviation, and the output's gradient.
    struct Case {
        x: Tensor,
        shortcut: Option<Tensor>,
        given: Tensor,
        weight: Tensor,
        bias: Tensor,
        rectified: bool,
    }

    impl Case {
        fn new(
            shape: [i64; 4],
            [mean, deviation]: [f64; 2],
            shortcut: bool,
            rectified: bool,
            (kind, device): (Kind, Device),
        ) -> Case {
            seeded(1, || {
                let random = |mean: f64, deviation: f64| {
                    let values = Tensor::randn(shape, (Kind::Float, device)) * deviation + mean;
                    values.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]).to_kind(kind)
                };
                let channels = |from: f64| Tensor::rand([shape[1]], (Kind::Float, device)) + from;
                let shortcut = shortcut.then(|| random(0.5, 1.0));
                let (x, given) = (random(mean, deviation), random(0.1, 1.0));
                Case { x, shortcut, given, weight: channels(0.5), bias: channels(-0.5), rectified }
            })
        }

        /// Forward and backward pass by hpml's kernels, or by libtorch's in the `kind` given.
        fn run(&self, libtorch: Option<Kind>) -> Results {
            let leaf = |tensor: &Tensor| {
                let kind = libtorch.unwrap_or_else(|| tensor.kind());
                tensor.to_kind(kind).detach().copy().set_requires_grad(true)
            };
            let (x, weight, bias) = (leaf(&self.x), leaf(&self.weight), leaf(&self.bias));
            let shortcut = self.shortcut.as_ref().map(leaf);
            let [mean, variance] = [0.0, 1.0].map(|value| weight.detach().full_like(value));
            let momentum = MOMENTUM;
            let y = match libtorch {
                None => {
                    let (running_mean, running_variance, epsilon) = (&mean, &variance, EPSILON);
                    let (weight, bias) = (&weight, &bias);
                    let norm = BatchNorm { weight, bias, running_mean, running_variance, momentum, epsilon };
                    norm.apply(&x, shortcut.as_ref(), self.rectified).expect("the kernels take the tensors")
                }
                Some(_) => {
                    let (w, b, m, v) = (Some(&weight), Some(&bias), Some(&mean), Some(&variance));
                    let mut y = x.batch_norm(w, b, m, v, true, momentum, EPSILON, false);
                    if let Some(shortcut) = &shortcut {
                        y += shortcut;
                    }
                    if self.rectified { y.relu() } else { y }
                }
            };
            (&y * self.given.to_kind(y.kind())).sum(y.kind()).backward();
            let mut all = vec![y.detach(), x.grad(), weight.grad(), bias.grad(), mean, variance];
            all.extend(shortcut.map(|shortcut| shortcut.grad()));
            all
        }

        /// Distances of `results` from libtorch's in float64, each relative to its norm; that of the running mean to the input's,
        /// and that of the input's gradient at least to the output's, since both are differences of large numbers.
        fn errors(&self, results: &Results) -> Vec<f64> {
            let expected = self.run(Some(Kind::Double));
            let apart = |(index, (own, expected)): (usize, (&Tensor, &Tensor))| {
                let norm = match index {
                    // With two values per channel all but the epsilon cancels, whatever the values.
                    1 => {
                        let deviation = self.x.to_kind(Kind::Double).var_dim(&[0, 2, 3][..], false, true).sqrt();
                        let scale = self.weight.to_kind(Kind::Double).view([1, -1, 1, 1]) / (deviation + EPSILON);
                        expected.norm().maximum(&(self.given.to_kind(Kind::Double) * scale).norm())
                    }
                    4 => self.x.to_kind(Kind::Double).norm() * MOMENTUM / (self.x.numel() as f64).sqrt(),
                    _ => expected.norm(),
                };
                ((own.to_kind(Kind::Double) - expected).norm() / norm).double_value(&[])
            };
            results.iter().zip(&expected).enumerate().map(apart).collect()
        }
    }

    #[test]
    fn values_and_gradients_are_libtorchs() {
        let mut devices = vec![Device::Cpu];
        if device::gpus().is_ok() && device::open_libtorch_cuda().is_ok() {
            devices.push(Device::Cuda(0));
        }
        for device in devices {
            for (kind, bound) in [(Kind::Float, 1e-5), (Kind::BFloat16, 1e-2)] {
                for (shape, shortcut, rectified) in [
                    ([64, 64, 32, 32], false, true),
                    ([32, 64, 9, 7], true, true),
                    ([5, 512, 4, 4], true, true),
                    ([33, 128, 8, 8], false, false),
                    ([3, 16, 5, 5], true, true),
                    ([3, 8, 1, 2], false, true),
                    ([2, 16, 3, 3], true, false),
                ] {
                    let case = Case::new(shape, [3.0, 1.0], shortcut, rectified, (kind, device));
                    for (index, error) in case.errors(&case.run(None)).into_iter().enumerate() {
                        let setting = format!("{device:?} {kind:?} {shape:?} {shortcut} {rectified}");
                        assert!(error < bound, "{setting}, result {index}: {error}");
                    }
                }
            }
        }
    }

    #[test]
    fn on_cpu_cores_any_shape_is_as_exact_as_libtorchs_float32() {
        let shapes = [
            [2, 1, 1, 1],
            [1, 3, 2, 1],
            [7, 5, 3, 3],
            [2, 24, 17, 13],
            [3, 257, 5, 7],
            [1, 1000, 3, 1],
            [9, 33, 20, 20],
        ];
        for shape in shapes {
            for statistics in [[0.0, 1.0], [1000.0, 0.5], [-3.0, 1e-4]] {
                for (shortcut, rectified) in [(false, false), (false, true), (true, false), (true, true)] {
                    // Whether a value is positive must not depend on its rounding: no ReLU where the mean hides the values.
                    let rectified = rectified && statistics[0] == 0.0;
                    let case = Case::new(shape, statistics, shortcut, rectified, (Kind::Float, Device::Cpu));
                    let (own, libtorchs) = (case.errors(&case.run(None)), case.errors(&case.run(Some(Kind::Float))));
                    for (index, (own, libtorchs)) in own.into_iter().zip(libtorchs).enumerate() {
                        let setting = format!("{shape:?} {statistics:?} {shortcut} {rectified}, result {index}");
                        assert!(own < 1e-6 || own < 2.0 * libtorchs, "{setting}: {own}, libtorch {libtorchs}");
                    }
                }
            }
        }
    }
}
