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

/// The exponential moving average of the weights: `average = decay average + (1 - decay) weights` after every update.
///
/// Source: PyTorch, torch/optim/swa_utils.py, `get_ema_multi_avg_fn`; the first update copies the weights.
pub struct Average {
    decay: f32,
    /// `None` before the first update.
    weights: Option<Flat>,
}

impl Average {
    /// None for a decay of 0.
    pub fn new(decay: f64) -> Option<Average> {
        (decay > 0.0).then_some(Average { decay: decay as f32, weights: None })
    }

    /// The average so far, in the order of the parameters.
    pub fn weights(&self) -> Option<Cow<'_, [f32]>> {
        self.weights.as_ref().map(Flat::read)
    }

    /// Goes on with what [`weights`](Self::weights) gave, in the memory of `parameters`.
    pub fn restore(&mut self, weights: &[f32], parameters: &Flat) {
        let mut own = parameters.zeros_like(weights.len());
        own.write(weights);
        self.weights = Some(own);
    }

    /// Takes the weights of one more update in.
    pub fn update(&mut self, parameters: &Flat) {
        let keep = self.decay;
        match (&mut self.weights, parameters) {
            (None, _) => {
                let mut own = parameters.zeros_like(parameters.len());
                own.write(&parameters.read());
                self.weights = Some(own);
            }
            (Some(Flat::Host(average)), Flat::Host(parameters)) => {
                for (average, &parameter) in average.as_mut_slice().iter_mut().zip(parameters.as_slice()) {
                    *average = keep * *average + (1.0 - keep) * parameter;
                }
            }
            (Some(Flat::Device(average)), Flat::Device(parameters)) => {
                tch::no_grad(|| _ = average.lerp_(parameters, 1.0 - f64::from(keep)));
            }
            _ => unreachable!("parameters and their average share a memory"),
        }
    }

    /// Exchanges average and weights: once before a test, once after it.
    pub fn swap(&mut self, parameters: &mut Flat) {
        match (&mut self.weights, parameters) {
            (None, _) => {}
            (Some(Flat::Host(average)), Flat::Host(parameters)) => {
                average.as_mut_slice().swap_with_slice(parameters.as_mut_slice());
            }
            (Some(Flat::Device(average)), Flat::Device(parameters)) => tch::no_grad(|| {
                let kept = average.copy();
                average.copy_(parameters);
                parameters.copy_(&kept);
            }),
            _ => unreachable!("parameters and their average share a memory"),
        }
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
                stage_elements: Vec::new(),
                tensors: tensors.to_vec(),
            };
            let mut optimizer = Optimizer::new(&state, &config(settings));
            let mut average = Average::new(ema.parse().unwrap());
            for t in 0..20 {
                let gradients: Vec<f32> = (0..32).map(|i| gradient(t, i)).collect();
                state.gradients.write(&gradients);
                optimizer.step(&mut state, 0.05 * (1.0 + t as f64 / 20.0)).unwrap();
                if let Some(average) = &mut average {
                    average.update(&state.parameters);
                }
            }
            if let Some(average) = &mut average {
                average.swap(&mut state.parameters);
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
