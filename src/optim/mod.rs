//! The update of parameters by gradients: optimizers, learning-rate schedules and the average of the weights. In: flat buffers
//! of parameters and gradients, equal on all ranks. Out: the updated parameters. Sends no message and knows no epoch.

mod average;
mod device;
mod host;
mod loss_scale;
mod schedule;

use std::borrow::Cow;
use std::ops::Range;

use crate::config::{self, OptimName};
use crate::error::Result;
use crate::parallel::{Flat, FlatState, FlatTensor};
use crate::sys::unscale;
pub use average::Average;
pub use loss_scale::LossScale;
pub use schedule::Schedule;

/// Constant added to the norm that clipping divides by, as in PyTorch.
const CLIP_EPSILON: f64 = 1e-6;

/// Name and values of a moment, one value per parameter.
pub type Moment<'a> = (&'static str, Cow<'a, [f32]>);

/// Updates parameters by gradients, both `[elements]`, in the same order at every call.
///
/// Sources: SGD: PyTorch, torch/optim/sgd.py, no dampening. LARS: You, Gitman, Ginsburg, Large Batch Training of
/// Convolutional Networks, 2017, algorithm 1. Adam: Kingma, Ba, Adam: A Method for Stochastic Optimization, 2015, algorithm 1.
/// AdamW: Loshchilov, Hutter, Decoupled Weight Decay Regularization, 2019, algorithm 2, with the decay in proportion to the
/// learning rate as PyTorch has it. LAMB: You et al., Large Batch Optimization for Deep Learning: Training BERT in
/// 76 minutes, 2019, algorithm 2. LARS and LAMB leave vectors (biases, scales of norms) out of the trust ratio; which parameters
/// decay is `optim.decay`. On a GPU these formulas are calls on its tensors.
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
    groups: Vec<Group>,
    /// Velocity of SGD and LARS, first moment of the others; zero before the first step.
    first: Flat,
    /// Second moment of Adam, AdamW and LAMB.
    second: Flat,
    /// Direction of LAMB's update, kept so that no step allocates.
    direction: Vec<f32>,
    steps: i32,
    /// Scale of the loss that the gradients come from, in fp16.
    loss_scale: Option<LossScale>,
}

/// Settings of one step of an optimizer, for the formulas in `host` and `device`.
struct Step<'a> {
    config: &'a config::Optim,
    tensors: &'a [FlatTensor],
    groups: &'a [Group],
    /// Number of the step, from 1.
    number: i32,
    lr: f64,
}

/// Parameters with the same weight decay.
#[derive(Debug, PartialEq)]
struct Group {
    weight_decay: f64,
    /// Elements in the flat buffers, adjacent tensors as one range.
    elements: Vec<Range<usize>>,
}

impl Group {
    /// The groups of `tensors`, which are in the order of their elements.
    fn all(tensors: &[FlatTensor], config: &config::Optim) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for FlatTensor { elements, matrix } in tensors {
            let weight_decay = config.weight_decay_of(*matrix);
            let Some(group) = groups.iter_mut().find(|group| group.weight_decay == weight_decay) else {
                groups.push(Group { weight_decay, elements: vec![elements.clone()] });
                continue;
            };
            match group.elements.last_mut() {
                Some(last) if last.end == elements.start => last.end = elements.end,
                _ => group.elements.push(elements.clone()),
            }
        }
        groups
    }
}

impl Optimizer {
    /// An optimizer for the parameters of `state`, with moments of zero in the memory (host or device) of the parameters.
    pub fn new(state: &FlatState, config: &config::Optim) -> Optimizer {
        let FlatState { tensors, parameters: memory, .. } = state;
        let elements = tensors.last().map_or(0, |tensor| tensor.elements.end);
        let second = if config.name.is_adaptive() { elements } else { 0 };
        let lamb = if config.name == OptimName::Lamb { elements } else { 0 };
        Optimizer {
            config: config.clone(),
            tensors: tensors.clone(),
            groups: Group::all(tensors, config),
            first: memory.zeros_like(elements),
            second: memory.zeros_like(second),
            direction: vec![0.0; if matches!(memory, Flat::Host(_)) { lamb } else { 0 }],
            steps: 0,
            loss_scale: None,
        }
    }

    /// This optimizer, for gradients of a loss that was multiplied by the factor of `scale`; `None`: of the loss itself. They must
    /// be in device memory.
    pub fn with_loss_scale(self, loss_scale: Option<LossScale>) -> Optimizer {
        Optimizer { loss_scale, ..self }
    }

    /// Scale of the next loss; `None` without one.
    pub fn loss_scale(&self) -> Option<LossScale> {
        self.loss_scale
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

    /// Sets the loss scale, as [`loss_scale`](Self::loss_scale) returned it.
    pub fn set_loss_scale(&mut self, scale: LossScale) {
        self.loss_scale = Some(scale);
    }

    /// Updates the parameters of `state` once by its gradients, with the learning rate `lr`. With a loss scale, gradients that are
    /// NaN or infinite change nothing but the scale: they are the sum over the ranks, so all ranks leave out the same steps.
    ///
    /// # Errors
    /// Returns [`Error::Gpu`](crate::error::Error::Gpu) if the GPU has failed.
    pub fn step(&mut self, state: &mut FlatState, lr: f64) -> Result<()> {
        if let Some(scale) = &mut self.loss_scale {
            let Flat::Device(gradients) = &state.gradients else { unreachable!("fp16 is refused on CPU cores") };
            let finite = unscale(gradients, 1.0 / f64::from(scale.factor()))?;
            scale.update(finite);
            if !finite {
                return Ok(());
            }
        }
        self.steps += 1;
        let step = Step { config: &self.config, tensors: &self.tensors, groups: &self.groups, number: self.steps, lr };
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
        let carried = self.config.momentum > 0.0 || self.config.name.is_adaptive();
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
        assert_eq!(cases, 15);
    }

    #[test]
    fn a_moment_without_gradients_ends_at_zero() {
        for settings in
            ["name=sgd momentum=0.9", "name=lars momentum=0.9", "name=adamw momentum=0.9", "name=lamb momentum=0.9"]
        {
            let flat = |values: &[f32]| {
                let mut flat = Flat::zeros(values.len(), None);
                flat.write(values);
                flat
            };
            let mut state = FlatState {
                parameters: flat(&[1.0; 8]),
                gradients: flat(&[0.25; 8]),
                buffers: flat(&[]),
                batches_tracked: 0,
                tensors: vec![FlatTensor { elements: 0..8, matrix: true }],
            };
            let mut optimizer = Optimizer::new(&state, &config(settings));
            optimizer.step(&mut state, 0.1).unwrap();
            state.gradients.write(&[0.0; 8]);
            // 0.9^1000 is 1e-46, less than any float32.
            (0..1000).for_each(|_| optimizer.step(&mut state, 0.1).unwrap());
            assert_eq!(optimizer.moments()[0], [0.0; 8], "{settings}");
        }
    }

    #[test]
    fn a_step_with_an_infinite_gradient_is_left_out_and_not_counted() {
        let device = Some(tch::Device::Cpu);
        let flat = |values: &[f32]| {
            let mut flat = Flat::zeros(values.len(), device);
            flat.write(values);
            flat
        };
        let state = || FlatState {
            parameters: flat(&[1.0, 2.0]),
            gradients: flat(&[0.0; 2]),
            buffers: flat(&[]),
            batches_tracked: 0,
            tensors: vec![FlatTensor { elements: 0..2, matrix: true }],
        };
        let config = config("name=adamw clip_norm=0.5 weight_decay=0.1");
        let (mut scaled, mut plain) = (state(), state());
        let mut optimizer = Optimizer::new(&scaled, &config).with_loss_scale(Some(LossScale::default()));
        let mut reference = Optimizer::new(&plain, &config);
        for (step, gradients) in
            [[0.5, -0.25], [f32::INFINITY, 0.0], [1.0, 3.0], [f32::NAN, 1.0], [-2.0, 0.5]].iter().enumerate()
        {
            let factor = optimizer.loss_scale().unwrap().factor();
            scaled.gradients.write(&gradients.map(|gradient| gradient * factor));
            optimizer.step(&mut scaled, 0.1).unwrap();
            if gradients.iter().all(|gradient| gradient.is_finite()) {
                plain.gradients.write(gradients);
                reference.step(&mut plain, 0.1).unwrap();
            }
            // The scale is a power of two: nothing is rounded.
            assert_eq!(scaled.parameters.read(), plain.parameters.read(), "{step}");
        }
        assert_eq!(optimizer.state().0, 3);
        assert_eq!(optimizer.loss_scale(), Some(LossScale::new(16_384.0, 1, 2)));
    }

    #[test]
    fn groups_join_neighbours_of_equal_decay() {
        let tensor = |elements: Range<usize>, matrix| FlatTensor { elements, matrix };
        let tensors = [tensor(0..6, true), tensor(6..8, false), tensor(8..9, false), tensor(9..13, true)];
        // Weight decay, and (start, end) of each range of elements.
        let groups = |line: &str| -> Vec<(f64, Vec<(usize, usize)>)> {
            let ends = |group: &Group| group.elements.iter().map(|range| (range.start, range.end)).collect();
            Group::all(&tensors, &config(line)).iter().map(|group| (group.weight_decay, ends(group))).collect()
        };
        assert_eq!(groups("name=sgd weight_decay=0.5"), [(0.5, vec![(0, 13)])]);
        assert_eq!(groups("name=lamb"), [(0.0, vec![(0, 13)])]);
        let apart = [(0.5, vec![(0, 6), (9, 13)]), (0.0, vec![(6, 9)])];
        assert_eq!(groups("name=adamw weight_decay=0.5 decay=matrices"), apart);
        assert_eq!(groups("name=lars weight_decay=0.5"), apart);
        assert_eq!(groups("name=lars weight_decay=0.5 decay=all"), [(0.5, vec![(0, 13)])]);
    }
}
