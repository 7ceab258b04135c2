//! Optimizers on flat buffers in host memory: the formulas of [`Optimizer`](super::Optimizer) as passes over memory.

use super::{CLIP_EPSILON, Step};
use crate::config::OptimName;
use crate::parallel::{FlatTensor, norm};

/// Updates `parameters` by `gradients`, both `[elements]`, and the moments, in place. `direction` is LAMB's work space,
/// `[elements]`.
pub fn step(
    step: &Step,
    parameters: &mut [f32],
    gradients: &[f32],
    [first, second]: [&mut [f32]; 2],
    direction: &mut [f32],
) {
    let clip = step.clip_factor(gradients);
    if step.config.name == OptimName::Sgd {
        let rule = Sgd { lr: step.lr as f32, weight_decay: step.config.weight_decay as f32, ..Sgd::new(step, clip) };
        // One pass over memory, all tensors alike.
        return rule.step(parameters, gradients, first);
    }
    for tensor in step.tensors {
        let elements = tensor.elements.clone();
        let (parameters, gradients) = (&mut parameters[elements.clone()], &gradients[elements.clone()]);
        let first = &mut first[elements.clone()];
        match step.config.name {
            OptimName::Lars => {
                let weight_decay = if tensor.matrix { step.config.weight_decay } else { 0.0 };
                let trust = if tensor.matrix { step.lars_trust(parameters, gradients, clip) } else { 1.0 };
                let scale = (step.lr * trust) as f32;
                let rule = Sgd { weight_decay: weight_decay as f32, scale, ..Sgd::new(step, clip) };
                rule.step(parameters, gradients, first);
            }
            _ => {
                let moments = [first, &mut second[elements.clone()]];
                step.lamb(tensor, parameters, gradients, moments, &mut direction[elements], clip);
            }
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
    fn lars_trust(&self, parameters: &[f32], gradients: &[f32], clip: f32) -> f64 {
        let (weights, gradient) = (norm(parameters), f64::from(clip) * norm(gradients));
        if weights > 0.0 && gradient > 0.0 {
            self.config.trust * weights / (gradient + self.config.weight_decay * weights)
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
        let (beta1, beta2) = (self.config.momentum as f32, self.config.beta2 as f32);
        // The correction takes the betas rounded to float32, as in the sums: 1 - 0.999 in float32 is off by 5e-5.
        let rest = |beta: f32, power: i32| (1.0 - f64::from(beta).powi(power)) as f32;
        let (new1, new2) = (rest(beta1, 1), rest(beta2, 1));
        let (corrected1, corrected2) = (1.0 / rest(beta1, self.number), 1.0 / rest(beta2, self.number));
        let epsilon = self.config.epsilon as f32;
        let weight_decay = if tensor.matrix { self.config.weight_decay as f32 } else { 0.0 };
        let moments = first.iter_mut().zip(second);
        let rows = parameters.iter().zip(gradients).zip(moments).zip(&mut *direction);
        for (((&parameter, &gradient), (first, second)), direction) in rows {
            let gradient = clip * gradient;
            *first = beta1 * *first + new1 * gradient;
            *second = beta2 * *second + new2 * gradient * gradient;
            let adam = *first * corrected1 / ((*second * corrected2).sqrt() + epsilon);
            *direction = adam + weight_decay * parameter;
        }
        let (weights, length) = (norm(parameters), norm(direction));
        let trust = if tensor.matrix && weights > 0.0 && length > 0.0 { weights / length } else { 1.0 };
        let rate = (self.lr * trust) as f32;
        for (parameter, direction) in parameters.iter_mut().zip(direction) {
            *parameter -= rate * *direction;
        }
    }
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
        let Sgd { lr, scale, weight_decay, momentum, nesterov, clip } = *self;
        // One pass over memory; the zip lets the compiler vectorize it.
        for ((parameter, &gradient), velocity) in parameters.iter_mut().zip(gradients).zip(velocity) {
            let gradient = scale * (clip * gradient + weight_decay * *parameter);
            *velocity = momentum * *velocity + gradient;
            let step = if nesterov { gradient + momentum * *velocity } else { *velocity };
            *parameter -= lr * step;
        }
    }
}
