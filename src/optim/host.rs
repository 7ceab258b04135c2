//! Optimizers on flat buffers in host memory: the formulas of [`Optimizer`](super::Optimizer) as passes over memory.

use super::{CLIP_EPSILON, Step};
use crate::config::OptimName;
use crate::convolution::InstructionSet;
use crate::parallel::{FlatTensor, norm};
use crate::sys::simd::{self, Pass};

/// Updates `parameters` by `gradients`, both `[elements]`, and the moments, in place. `direction` is LAMB's work space,
/// `[elements]`.
pub fn step(step: &Step, parameters: &mut [f32], gradients: &[f32], moments: [&mut [f32]; 2], direction: &mut [f32]) {
    let clip = step.clip_factor(gradients);
    match step.config.name {
        OptimName::Lars | OptimName::Lamb => by_tensor(step, parameters, gradients, moments, direction, clip),
        _ => by_group(step, parameters, gradients, moments, clip),
    }
}

/// Updates the parameters of each group in one pass over memory, by SGD, Adam or AdamW.
fn by_group(step: &Step, parameters: &mut [f32], gradients: &[f32], [first, second]: [&mut [f32]; 2], clip: f32) {
    for group in step.groups {
        for elements in &group.elements {
            let (parameters, gradients) = (&mut parameters[elements.clone()], &gradients[elements.clone()]);
            let first = &mut first[elements.clone()];
            match step.config.name {
                OptimName::Sgd => {
                    let weight_decay = group.weight_decay as f32;
                    let rule = Sgd { lr: step.lr as f32, weight_decay, ..Sgd::new(step, clip) };
                    rule.step(parameters, gradients, first);
                }
                name => {
                    let decays = [name == OptimName::Adam, name == OptimName::AdamW];
                    let [in_gradient, beside] = decays.map(|is| if is { group.weight_decay } else { 0.0 });
                    let moments = [first, &mut second[elements.clone()]];
                    let rest = (1.0 - step.lr * beside) as f32;
                    Adam::new(step, clip).step(
                        parameters,
                        gradients,
                        moments,
                        in_gradient as f32,
                        rest,
                        step.lr as f32,
                    );
                }
            }
        }
    }
}

/// Updates one tensor after the other by LARS or LAMB, whose rates follow from a tensor's norms.
fn by_tensor(
    step: &Step,
    parameters: &mut [f32],
    gradients: &[f32],
    [first, second]: [&mut [f32]; 2],
    direction: &mut [f32],
    clip: f32,
) {
    for tensor in step.tensors {
        let elements = tensor.elements.clone();
        let (parameters, gradients) = (&mut parameters[elements.clone()], &gradients[elements.clone()]);
        let first = &mut first[elements.clone()];
        let weight_decay = step.config.weight_decay_of(tensor.matrix);
        if step.config.name == OptimName::Lars {
            let trust = if tensor.matrix { step.lars_trust(parameters, gradients, clip, weight_decay) } else { 1.0 };
            let scale = (step.lr * trust) as f32;
            let rule = Sgd { weight_decay: weight_decay as f32, scale, ..Sgd::new(step, clip) };
            rule.step(parameters, gradients, first);
        } else {
            let moments = [first, &mut second[elements.clone()]];
            step.lamb(tensor, parameters, gradients, moments, &mut direction[elements], clip);
        }
    }
}

impl Step<'_> {
    /// The factor of the gradient that bounds its norm over all parameters by `optim.clip_norm`. The gradient is the mean over
    /// all ranks, so every rank computes the same factor.
    ///
    /// Source: PyTorch, torch/nn/utils/clip_grad.py.
    fn clip_factor(&self, gradients: &[f32]) -> f32 {
        match self.config.clip_norm {
            0.0 => 1.0,
            most => (most / (norm(gradients) + CLIP_EPSILON)).min(1.0) as f32,
        }
    }

    /// LARS's trust ratio, `trust |w| / (|g| + weight_decay |w|)`; 1 where one of the norms is 0.
    fn lars_trust(&self, parameters: &[f32], gradients: &[f32], clip: f32, weight_decay: f64) -> f64 {
        let (weights, gradient) = (norm(parameters), f64::from(clip) * norm(gradients));
        if weights > 0.0 && gradient > 0.0 {
            self.config.trust * weights / (gradient + weight_decay * weights)
        } else {
            1.0
        }
    }

    /// Updates one tensor by LAMB.
    fn lamb(
        &self,
        tensor: &FlatTensor,
        parameters: &mut [f32],
        gradients: &[f32],
        [first, second]: [&mut [f32]; 2],
        direction: &mut [f32],
        clip: f32,
    ) {
        let (adam, weight_decay) = (Adam::new(self, clip), self.config.weight_decay_of(tensor.matrix) as f32);
        let moments = first.iter_mut().zip(second);
        let rows = parameters.iter().zip(gradients).zip(moments).zip(&mut *direction);
        for (((&parameter, &gradient), (first, second)), direction) in rows {
            *direction = adam.direction(clip * gradient, first, second) + weight_decay * parameter;
        }
        let (weights, length) = (norm(parameters), norm(direction));
        let trust = if tensor.matrix && weights > 0.0 && length > 0.0 { weights / length } else { 1.0 };
        let rate = (self.lr * trust) as f32;
        for (parameter, direction) in parameters.iter_mut().zip(direction) {
            *parameter -= rate * *direction;
        }
    }
}

/// `value`, or 0 where it is denormal. A moment that meets no gradient any more (of a unit that is never active, of a token that is
/// rare) shrinks to a few times the least denormal, where rounding keeps it for ever, and a product with a denormal takes some
/// hundred cycles: the step of `net` on CIFAR-10 becomes ten times as slow. A parameter does not change by it, unless it is as small.
#[inline(always)]
fn without_denormals(value: f32) -> f32 {
    if value.abs() < f32::MIN_POSITIVE { 0.0 } else { value }
}

/// The rule `g = clip g + weight_decay p; v = momentum v + scale g; p -= lr v` (with Nesterov `p -= lr (scale g + momentum v)`).
///
/// PyTorch's SGD has `scale` 1 and the learning rate outside of v, LARS has it inside.
struct Sgd {
    lr: f32,
    scale: f32,
    weight_decay: f32,
    momentum: f32,
    nesterov: bool,
    clip: f32,
}

impl Sgd {
    fn new(step: &Step, clip: f32) -> Sgd {
        let (momentum, nesterov) = (step.config.momentum as f32, step.config.nesterov);
        Sgd { lr: 1.0, scale: 1.0, weight_decay: 0.0, momentum, nesterov, clip }
    }

    fn step(&self, parameters: &mut [f32], gradients: &[f32], velocity: &mut [f32]) {
        simd::once(InstructionSet::fastest(), SgdPass { rule: self, parameters, gradients, velocity });
    }
}

/// One pass over memory. Multiplications and additions are rounded each, with any instructions.
struct SgdPass<'a> {
    rule: &'a Sgd,
    parameters: &'a mut [f32],
    gradients: &'a [f32],
    velocity: &'a mut [f32],
}

impl Pass for SgdPass<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Sgd { lr, scale, weight_decay, momentum, nesterov, clip } = *self.rule;
        for ((parameter, &gradient), velocity) in self.parameters.iter_mut().zip(self.gradients).zip(self.velocity) {
            let gradient = scale * (clip * gradient + weight_decay * *parameter);
            *velocity = without_denormals(momentum * *velocity + gradient);
            let step = if nesterov { gradient + momentum * *velocity } else { *velocity };
            *parameter -= lr * step;
        }
    }
}

/// Adam's moments and the direction that follows from them, `m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon)`.
struct Adam {
    beta1: f32,
    beta2: f32,
    /// Shares of the new gradient in the moments, `1 - beta`.
    new1: f32,
    new2: f32,
    /// Corrections of the moments, which begin at 0.
    corrected1: f32,
    corrected2: f32,
    epsilon: f32,
    clip: f32,
}

impl Adam {
    fn new(step: &Step, clip: f32) -> Adam {
        let (beta1, beta2) = (step.config.momentum as f32, step.config.beta2 as f32);
        // The correction takes the betas rounded to float32, as in the sums: 1 - 0.999 in float32 is off by 5e-5.
        let rest = |beta: f32, power: i32| (1.0 - f64::from(beta).powi(power)) as f32;
        let (new1, new2) = (rest(beta1, 1), rest(beta2, 1));
        let (corrected1, corrected2) = (1.0 / rest(beta1, step.number), 1.0 / rest(beta2, step.number));
        Adam { beta1, beta2, new1, new2, corrected1, corrected2, epsilon: step.config.epsilon as f32, clip }
    }

    /// Takes a gradient into the moments, and returns the direction.
    #[inline(always)]
    fn direction(&self, gradient: f32, first: &mut f32, second: &mut f32) -> f32 {
        *first = without_denormals(self.beta1 * *first + self.new1 * gradient);
        *second = self.beta2 * *second + self.new2 * gradient * gradient;
        *first * self.corrected1 / ((*second * self.corrected2).sqrt() + self.epsilon)
    }

    /// Updates the parameters, `p = rest p - lr direction`, with `weight_decay p` as a part of the gradient.
    fn step(
        &self,
        parameters: &mut [f32],
        gradients: &[f32],
        [first, second]: [&mut [f32]; 2],
        weight_decay: f32,
        rest: f32,
        lr: f32,
    ) {
        let pass = AdamPass { rule: self, parameters, gradients, first, second, weight_decay, rest, lr };
        simd::once(InstructionSet::fastest(), pass);
    }
}

/// One pass over memory, rounded as [`SgdPass`].
struct AdamPass<'a> {
    rule: &'a Adam,
    parameters: &'a mut [f32],
    gradients: &'a [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
    weight_decay: f32,
    rest: f32,
    lr: f32,
}

impl Pass for AdamPass<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let AdamPass { rule, parameters, gradients, first, second, weight_decay, rest, lr } = self;
        let moments = first.iter_mut().zip(second);
        for ((parameter, &gradient), (first, second)) in parameters.iter_mut().zip(gradients).zip(moments) {
            let gradient = rule.clip * gradient + weight_decay * *parameter;
            *parameter = rest * *parameter - lr * rule.direction(gradient, first, second);
        }
    }
}
