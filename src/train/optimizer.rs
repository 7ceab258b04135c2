//! Optimisers on flat buffers: SGD, LARS, LAMB, and what is done to a gradient or to the weights around them.

use std::borrow::Cow;
use std::ops::Range;

use super::device_optimizer;
use crate::config::{self, OptimName};
use crate::error::Result;
use crate::parallel::{Flat, FlatState, FlatTensor, norm};

/// What clipping divides by is kept above this, as in PyTorch.
pub(super) const CLIP_EPSILON: f64 = 1e-6;

/// A name, and a number for each parameter.
pub type Moment<'a> = (&'static str, Cow<'a, [f32]>);

/// Updates parameters by gradients, both `[elements]`, in the same order at every call.
///
/// Sources: SGD: PyTorch, torch/optim/sgd.py, no dampening. LARS: You, Gitman, Ginsburg, Large Batch Training of
/// Convolutional Networks, 2017, algorithm 1. LAMB: You et al., Large Batch Optimization for Deep Learning: Training BERT in
/// 76 minutes, 2019, algorithm 2. LARS and LAMB leave biases and batch norm's scales and shifts out of both weight decay
/// and trust ratio. On a device the same formulas are calls on its tensors: `device_optimizer`.
pub struct Optimizer {
    pub(super) config: config::Optim,
    pub(super) tensors: Vec<FlatTensor>,
    /// SGD's and LARS's velocity, LAMB's first moment; zero before the first step.
    pub(super) first: Flat,
    /// LAMB's second moment.
    pub(super) second: Flat,
    /// LAMB's direction, kept so that no step allocates.
    direction: Vec<f32>,
    pub(super) steps: i32,
}

impl Optimizer {
    /// For the parameters of `state`, in the same memory.
    pub fn new(state: &FlatState, config: &config::Optim) -> Optimizer {
        let FlatState { tensors, parameters: memory, .. } = state;
        let elements = tensors.last().map_or(0, |tensor| tensor.elements.end);
        let lamb = if config.name == OptimName::Lamb { elements } else { 0 };
        Optimizer {
            config: config.clone(),
            tensors: tensors.clone(),
            first: memory.zeros_like(elements),
            second: memory.zeros_like(lamb),
            direction: vec![0.0; if matches!(memory, Flat::Host(_)) { lamb } else { 0 }],
            steps: 0,
        }
    }

    /// The moments under their names, and how many steps made them; [`restore`](Self::restore) takes them back.
    pub fn state(&self) -> (i64, [Moment<'_>; 2]) {
        (i64::from(self.steps), [("first_moment", self.first.read()), ("second_moment", self.second.read())])
    }

    /// The moments, to be overwritten in the order of [`state`](Self::state).
    pub fn restore(&mut self, steps: i64) -> [&mut Flat; 2] {
        self.steps = steps as i32;
        [&mut self.first, &mut self.second]
    }

    /// One update of `state`'s parameters by its gradients. Error: the device has failed.
    pub fn step(&mut self, state: &mut FlatState, lr: f64) -> Result<()> {
        match (&mut state.parameters, &state.gradients) {
            (Flat::Host(parameters), Flat::Host(gradients)) => {
                self.step_on_host(parameters.as_mut_slice(), gradients.as_slice(), lr);
                Ok(())
            }
            (Flat::Device(parameters), Flat::Device(gradients)) => {
                device_optimizer::step(self, parameters, gradients, lr)
            }
            _ => unreachable!("parameters and gradients share a memory"),
        }
    }

    fn step_on_host(&mut self, parameters: &mut [f32], gradients: &[f32], lr: f64) {
        self.steps += 1;
        let clip = self.clip_factor(gradients);
        if self.config.name == OptimName::Sgd {
            let rule = Sgd { lr: lr as f32, weight_decay: self.config.weight_decay as f32, ..self.rule(clip) };
            // One pass over memory, all tensors alike.
            return rule.step(parameters, gradients, self.first.host_mut().as_mut_slice());
        }
        for index in 0..self.tensors.len() {
            let FlatTensor { elements, matrix } = self.tensors[index].clone();
            let (parameters, gradients) = (&mut parameters[elements.clone()], &gradients[elements.clone()]);
            match self.config.name {
                OptimName::Lars => {
                    let weight_decay = if matrix { self.config.weight_decay } else { 0.0 };
                    let trust = if matrix { self.lars_trust(parameters, gradients, clip) } else { 1.0 };
                    let rule = Sgd { weight_decay: weight_decay as f32, scale: (lr * trust) as f32, ..self.rule(clip) };
                    rule.step(parameters, gradients, &mut self.first.host_mut().as_mut_slice()[elements]);
                }
                _ => self.lamb(elements, matrix, parameters, gradients, lr, clip),
            }
        }
    }

    /// What it carries from step to step in the host's memory: the first and the second moment, in the parameters' order, or
    /// nothing.
    pub fn moments(&mut self) -> [&mut [f32]; 2] {
        let carried = self.config.momentum > 0.0 || self.config.name == OptimName::Lamb;
        match (&mut self.first, &mut self.second) {
            (Flat::Host(first), Flat::Host(second)) => {
                [if carried { first.as_mut_slice() } else { &mut [] }, second.as_mut_slice()]
            }
            _ => [&mut [], &mut []],
        }
    }

    fn rule(&self, clip: f32) -> Sgd {
        let (momentum, nesterov) = (self.config.momentum as f32, self.config.nesterov);
        Sgd { lr: 1.0, scale: 1.0, weight_decay: 0.0, momentum, nesterov, clip }
    }

    /// What the gradient is multiplied by, so that its norm over all parameters is at most `optim.clip_norm`. The gradient is the
    /// mean over all ranks, so every rank finds the same.
    ///
    /// Source: PyTorch, torch/nn/utils/clip_grad.py.
    fn clip_factor(&self, gradients: &[f32]) -> f32 {
        match self.config.clip_norm {
            0.0 => 1.0,
            most => (most / (norm(gradients) + CLIP_EPSILON)).min(1.0) as f32,
        }
    }

    /// `trust |w| / (|g| + weight_decay |w|)`; 1 where one of the norms is 0.
    fn lars_trust(&self, parameters: &[f32], gradients: &[f32], clip: f32) -> f64 {
        let (weights, gradient) = (norm(parameters), f64::from(clip) * norm(gradients));
        if weights > 0.0 && gradient > 0.0 {
            self.config.trust * weights / (gradient + self.config.weight_decay * weights)
        } else {
            1.0
        }
    }

    fn lamb(
        &mut self,
        elements: Range<usize>,
        matrix: bool,
        parameters: &mut [f32],
        gradients: &[f32],
        lr: f64,
        clip: f32,
    ) {
        let (beta1, beta2) = (self.config.momentum as f32, self.config.beta2 as f32);
        // Of the rounded betas: 1 - 0.999 in float32 is off by 5e-5, and the correction must be that of what was summed.
        let rest = |beta: f32, power: i32| (1.0 - f64::from(beta).powi(power)) as f32;
        let (new1, new2) = (rest(beta1, 1), rest(beta2, 1));
        let (corrected1, corrected2) = (1.0 / rest(beta1, self.steps), 1.0 / rest(beta2, self.steps));
        let epsilon = self.config.epsilon as f32;
        let weight_decay = if matrix { self.config.weight_decay as f32 } else { 0.0 };
        let first = &mut self.first.host_mut().as_mut_slice()[elements.clone()];
        let moments = first.iter_mut().zip(&mut self.second.host_mut().as_mut_slice()[elements.clone()]);
        let rows = parameters.iter().zip(gradients).zip(moments).zip(&mut self.direction[elements.clone()]);
        for (((&parameter, &gradient), (first, second)), direction) in rows {
            let gradient = clip * gradient;
            *first = beta1 * *first + new1 * gradient;
            *second = beta2 * *second + new2 * gradient * gradient;
            let adam = *first * corrected1 / ((*second * corrected2).sqrt() + epsilon);
            *direction = adam + weight_decay * parameter;
        }
        let direction = &self.direction[elements];
        let (weights, length) = (norm(parameters), norm(direction));
        let trust = if matrix && weights > 0.0 && length > 0.0 { weights / length } else { 1.0 };
        let rate = (lr * trust) as f32;
        for (parameter, direction) in parameters.iter_mut().zip(direction) {
            *parameter -= rate * direction;
        }
    }
}

/// `g = clip g + weight_decay p; v = momentum v + scale g; p -= lr v` (with Nesterov: `lr (scale g + momentum v)`).
///
/// PyTorch's SGD has `scale` 1 and the rate outside of v, LARS has it inside.
struct Sgd {
    lr: f32,
    scale: f32,
    weight_decay: f32,
    momentum: f32,
    nesterov: bool,
    clip: f32,
}

impl Sgd {
    fn step(&self, parameters: &mut [f32], gradients: &[f32], velocity: &mut [f32]) {
        let Sgd { lr, scale, weight_decay, momentum, nesterov, clip } = *self;
        // One pass over memory; the zip lets the compiler vectorise it.
        for ((parameter, &gradient), velocity) in parameters.iter_mut().zip(gradients).zip(velocity) {
            let gradient = scale * (clip * gradient + weight_decay * *parameter);
            *velocity = momentum * *velocity + gradient;
            let step = if nesterov { gradient + momentum * *velocity } else { *velocity };
            *parameter -= lr * step;
        }
    }
}

/// The exponential moving average of the weights, and batch norm's statistics of the averaged weights.
///
/// After t updates the average is `sum decay^(t - i) weights_i / sum decay^(t - i)`, i from 1 to t: of the updates there were, with
/// nothing of a start. As a recursion `average += rate (weights - average)`, `rate = (1 - decay) / (1 - decay^t)`, which is 1 at
/// the first update and falls to `1 - decay`, PyTorch's constant one.
/// Sources: PyTorch, torch/optim/swa_utils.py, `get_ema_multi_avg_fn`; Kingma, Ba, Adam: A Method for Stochastic Optimization,
/// 2015, section 3 (the correction by `1 - decay^t`).
pub struct Average {
    decay: f64,
    /// In the order of the parameters.
    pub(super) weights: Flat,
    /// In the order of the model's buffers, as measured at the last epoch's end; those of the training while the model holds the
    /// average.
    pub(super) buffers: Flat,
    /// Batches that `buffers` have seen.
    pub(super) batches_tracked: i64,
}

impl Average {
    /// The average of no update yet, in the memory of `state`; `None` for a decay of 0.
    pub fn new(decay: f64, state: &FlatState) -> Option<Average> {
        let zeros = |like: &Flat| like.zeros_like(like.len());
        let (weights, buffers) = (zeros(&state.parameters), zeros(&state.buffers));
        (decay > 0.0).then_some(Average { decay, weights, buffers, batches_tracked: 0 })
    }

    /// Takes in the `parameters` that update number `update`, from 1, has left.
    pub fn update(&mut self, parameters: &Flat, update: usize) {
        let power = self.decay.powi(i32::try_from(update).unwrap_or(i32::MAX));
        let rate = (1.0 - self.decay) / (1.0 - power);
        match (&mut self.weights, parameters) {
            (Flat::Host(average), Flat::Host(parameters)) => {
                let rate = rate as f32;
                for (average, &parameter) in average.as_mut_slice().iter_mut().zip(parameters.as_slice()) {
                    *average += rate * (parameter - *average);
                }
            }
            (Flat::Device(average), Flat::Device(parameters)) => tch::no_grad(|| _ = average.lerp_(parameters, rate)),
            _ => unreachable!("parameters and their average share a memory"),
        }
    }

    /// Exchanges the average and its statistics with the model's: once before a test, once after it.
    pub fn swap(&mut self, state: &mut FlatState) {
        self.weights.swap(&mut state.parameters);
        self.buffers.swap(&mut state.buffers);
        std::mem::swap(&mut self.batches_tracked, &mut state.batches_tracked);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `tests/fixtures/optimizers.py`: NumPy in float64 after the papers' formulas, and torch.optim.SGD.
    const EXPECTED: &str = include_str!("../../tests/fixtures/optimizers.txt");

    /// The gradient of element `i` at step `t`: any function that both sides can compute exactly.
    fn gradient(t: usize, i: usize) -> f32 {
        ((t * 7 + i * 13) % 32) as f32 / 16.0 - 1.0
    }

    fn config(line: &str) -> config::Optim {
        let settings: Vec<String> = line.split_whitespace().map(|pair| format!("optim.{pair}")).collect();
        crate::config::Config::load(None, &settings).unwrap().optim
    }

    #[test]
    fn twenty_steps_of_every_optimiser_equal_the_reference() {
        twenty_steps(None, 1e-6);
    }

    #[test]
    fn and_so_do_those_of_a_device() {
        twenty_steps(Some(tch::Device::Cpu), 2e-6);
    }

    fn twenty_steps(device: Option<tch::Device>, bound: f64) {
        // A matrix of 24 elements, a bias of 8, as in the script.
        let tensors = [FlatTensor { elements: 0..24, matrix: true }, FlatTensor { elements: 24..32, matrix: false }];
        let flat = |values: &[f32]| {
            let mut flat = Flat::zeros(values.len(), device);
            flat.write(values);
            flat
        };
        let mut cases = 0;
        for line in EXPECTED.lines() {
            let (settings, values) = line.split_once(" : ").unwrap();
            let (settings, ema) = settings.split_once(" | ").unwrap();
            let parameters: Vec<f32> = (0..32).map(|i| ((i * 5) % 32) as f32 / 32.0 - 0.25).collect();
            let mut state = FlatState {
                parameters: flat(&parameters),
                gradients: flat(&[0.0; 32]),
                buffers: flat(&[]),
                batches_tracked: 0,
                stage_elements: Vec::new(),
                tensors: tensors.to_vec(),
            };
            let mut optimizer = Optimizer::new(&state, &config(settings));
            let mut average = Average::new(ema.parse().unwrap(), &state);
            for t in 0..20 {
                let gradients: Vec<f32> = (0..32).map(|i| gradient(t, i)).collect();
                state.gradients.write(&gradients);
                optimizer.step(&mut state, 0.05 * (1.0 + t as f64 / 20.0)).unwrap();
                if let Some(average) = &mut average {
                    average.update(&state.parameters, t + 1);
                }
            }
            if let Some(average) = &mut average {
                average.swap(&mut state);
            }
            let parameters = state.parameters.read();
            let expected: Vec<f64> = values.split_whitespace().map(|value| value.parse().unwrap()).collect();
            let size = (expected.iter().map(|value| value * value).sum::<f64>() / 32.0).sqrt();
            for (found, expected) in parameters.iter().zip(&expected) {
                assert!((f64::from(*found) - expected).abs() < bound * size.max(1.0), "{settings}: {found} {expected}");
            }
            cases += 1;
        }
        assert_eq!(cases, 9);
    }
}
