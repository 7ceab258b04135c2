//! The exponential moving average of the weights.

use crate::parallel::{Flat, FlatState};

/// The exponential moving average of the weights, and batch norm's statistics of the averaged weights.
///
/// After t updates the average is `sum decay^(t - i) weights_i / sum decay^(t - i)`, i from 1 to t, without a share of any
/// initial value. As a recursion it is `average += rate (weights - average)`, `rate = (1 - decay) / (1 - decay^t)`, which is 1
/// at the first update and falls to `1 - decay`, PyTorch's constant rate. Sources: PyTorch, torch/optim/swa_utils.py,
/// `get_ema_multi_avg_fn`; Kingma, Ba, Adam: A Method for Stochastic Optimization, 2015, section 3 (the correction by `1 -
/// decay^t`).
pub struct Average {
    decay: f64,
    /// Averaged weights, in the order of the parameters.
    pub weights: Flat,
    /// Batch norm's statistics of the averaged weights at the last epoch's end, in the order of the model's buffers. While the
    /// model holds the average, these are the statistics of the training.
    pub buffers: Flat,
    /// Number of batches in the statistics of `buffers`.
    pub batches_tracked: i64,
}

impl Average {
    /// An average without updates, in the memory (host or device) of `state`; `None` for a decay of 0.
    pub fn new(decay: f64, state: &FlatState) -> Option<Average> {
        let zeros = |like: &Flat| like.zeros_like(like.len());
        let (weights, mut buffers) = (zeros(&state.parameters), zeros(&state.buffers));
        if decay > 0.0 {
            buffers.write(&state.buffers.read()); // those of a model file that are no statistics are not measured
        }
        (decay > 0.0).then_some(Average { decay, weights, buffers, batches_tracked: 0 })
    }

    /// Adds the `parameters` after update number `update`, from 1, to the average.
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

    /// Swaps the average and its statistics with the model's: once before a test, once after it.
    pub fn swap(&mut self, state: &mut FlatState) {
        self.weights.swap(&mut state.parameters);
        self.buffers.swap(&mut state.buffers);
        std::mem::swap(&mut self.batches_tracked, &mut state.batches_tracked);
    }
}
