//! Local SGD: every rank trains on its own for some steps, then all take the mean of what they have.
//!
//! Source: Stich, Local SGD Converges Fast and Communicates Little, 2019, algorithm 1; momentum averaged too, as in Yu, Jin,
//! Yang, On the Linear Speedup Analysis of Communication Efficient Momentum SGD, 2019, algorithm 1.

use std::sync::Arc;
use std::time::Instant;

use super::FlatState;
use crate::collective::{AllReduce, Finished, WaitPolicy};
use crate::error::Result;
use crate::metrics::Kind;

/// Counts a rank's steps on its own.
pub struct LocalSteps {
    all_reduce: Arc<AllReduce>,
    every: usize,
    /// Updates since the ranks were equal.
    since: usize,
}

impl LocalSteps {
    /// Means are taken after each `every` updates. `None` for 1, where gradients are summed instead, and for one rank.
    pub fn new(all_reduce: Arc<AllReduce>, every: usize) -> Option<LocalSteps> {
        (every > 1 && all_reduce.communicator().size() > 1).then_some(LocalSteps { all_reduce, every, since: 0 })
    }

    /// Called after an update. Whether it is time for [`average`](Self::average).
    pub fn updated(&mut self) -> bool {
        self.since += 1;
        self.since == self.every
    }

    /// Updates since the ranks were equal.
    pub fn since(&self) -> usize {
        self.since
    }

    /// Goes on where [`since`](Self::since) was so many.
    pub fn set_since(&mut self, since: usize) {
        self.since = since;
    }

    /// Whether an update came after the last mean.
    pub fn apart(&self) -> bool {
        self.since > 0
    }

    /// Parameters and `moments` (of the optimiser, in the parameters' order, or empty) become their means over the ranks,
    /// bit-identical on all. Takes the memory of the gradients for it.
    pub fn average(&mut self, state: &mut FlatState, moments: [&mut [f32]; 2]) -> Result<Finished> {
        let started = Instant::now();
        self.since = 0;
        let ranks = self.all_reduce.communicator().size() as f32;
        let mut wait = 0.0;
        let [first, second] = moments;
        for values in [state.parameters.host_mut().as_mut_slice(), first, second] {
            if values.is_empty() {
                continue;
            }
            // Memory that suits the all-reduce; the next step sets it to zero anyway.
            let mut sums = state.gradients.host_mut().region(0..values.len());
            sums.as_mut_slice().copy_from_slice(values);
            wait += self.all_reduce.reduce(Kind::Parameters, &mut sums, WaitPolicy::Spin)?.wait;
            values.iter_mut().zip(sums.as_slice()).for_each(|(value, sum)| *value = sum / ranks);
        }
        Ok(Finished { wait, transfer: started.elapsed().as_secs_f64() - wait })
    }
}
