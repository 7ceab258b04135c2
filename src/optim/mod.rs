//! The update of parameters by gradients: optimizers, learning-rate schedules and the average of the weights. In: flat buffers
//! of parameters and gradients, equal on all ranks. Out: the updated parameters. Sends no message and knows no epoch.

mod average;
mod device;
mod host;
mod schedule;

use std::borrow::Cow;

use crate::config::{self, OptimName};
use crate::error::Result;
use crate::parallel::{Flat, FlatState, FlatTensor};
pub use average::Average;
pub use schedule::Schedule;

/// Constant added to the norm that clipping divides by, as in PyTorch.
const CLIP_EPSILON: f64 = 1e-6;

/// Name and values of a moment, one value per parameter.
pub type Moment<'a> = (&'static str, Cow<'a, [f32]>);

/// Updates parameters by gradients, both `[elements]`, in the same order at every call.
///
/// Sources: SGD: PyTorch, torch/optim/sgd.py, no dampening. LARS: You, Gitman, Ginsburg, Large Batch Training of
/// Convolutional Networks, 2017, algorithm 1. LAMB: You et al., Large Batch Optimization for Deep Learning: Training BERT in
/// 76 minutes, 2019, algorithm 2. LARS and LAMB leave biases and batch norm's scales and shifts out of both weight decay
/// and trust ratio. On a GPU these formulas are calls on its tensors.
///
/// ```no_run
/// use hpml::optim::Optimizer;
/// use hpml::parallel::FlatState;
///
/// /// One epoch; `gradients` fills `state.gradients`.
/// fn epoch(state: &mut FlatState, gradients: impl Fn(&mut FlatState, usize)) -> hpml::error::Result<()> {
///     let mut optimizer = Optimizer::new(state, &hpml::config::Optim::default());
///     for step in 0..100 {
///         gradients(state, step);
///         optimizer.step(state, 0.1)?;
///     }
///     Ok(())
/// }
/// ```
pub struct Optimizer {
    config: config::Optim,
    tensors: Vec<FlatTensor>,
    /// Velocity of SGD and LARS, first moment of LAMB; zero before the first step.
    first: Flat,
    /// Second moment of LAMB.
    second: Flat,
    /// Direction of LAMB's update, kept so that no step allocates.
    direction: Vec<f32>,
    steps: i32,
}

/// Settings of one step of an optimizer, for the formulas in `host` and `device`.
struct Step<'a> {
    config: &'a config::Optim,
    tensors: &'a [FlatTensor],
    /// Number of the step, from 1.
    number: i32,
    lr: f64,
}

impl Optimizer {
    /// An optimizer for the parameters of `state`, with moments of zero in the memory (host or device) of the parameters.
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

    /// Number of steps done, and the moments with their names; [`restore`](Self::restore) sets them.
    pub fn state(&self) -> (i64, [Moment<'_>; 2]) {
        (i64::from(self.steps), [("first_moment", self.first.read()), ("second_moment", self.second.read())])
    }

    /// Sets the number of steps done, and returns the moments, to be overwritten in the order of [`state`](Self::state).
    pub fn restore(&mut self, steps: i64) -> [&mut Flat; 2] {
        self.steps = steps as i32;
        [&mut self.first, &mut self.second]
    }

    /// Updates the parameters of `state` once by its gradients, with the learning rate `lr`.
    ///
    /// # Errors
    /// Returns [`Error::Gpu`](crate::error::Error::Gpu) if the GPU has failed.
    pub fn step(&mut self, state: &mut FlatState, lr: f64) -> Result<()> {
        self.steps += 1;
        let step = Step { config: &self.config, tensors: &self.tensors, number: self.steps, lr };
        match (&mut state.parameters, &state.gradients, &mut self.first, &mut self.second) {
            (Flat::Host(parameters), Flat::Host(gradients), Flat::Host(first), Flat::Host(second)) => {
                let moments = [first.as_mut_slice(), second.as_mut_slice()];
                host::step(&step, parameters.as_mut_slice(), gradients.as_slice(), moments, &mut self.direction);
                Ok(())
            }
            (Flat::Device(parameters), Flat::Device(gradients), Flat::Device(first), Flat::Device(second)) => {
                device::step(&step, parameters, gradients, [first, second])
            }
            _ => unreachable!("parameters, gradients and moments share a memory"),
        }
    }

    /// First and second moment in host memory, in the order of the parameters; empty if the optimizer has no such moment or keeps
    /// it on a device.
    pub fn moments(&mut self) -> [&mut [f32]; 2] {
        let carried = self.config.momentum > 0.0 || self.config.name == OptimName::Lamb;
        match (&mut self.first, &mut self.second) {
            (Flat::Host(first), Flat::Host(second)) => {
                [if carried { first.as_mut_slice() } else { &mut [] }, second.as_mut_slice()]
            }
            _ => [&mut [], &mut []],
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
                batches_tracked: 0,
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
