//! Local SGD: every rank trains on its own for some steps, then all ranks average parameters and momentum.
//!
//! Source: Stich, Local SGD Converges Fast and Communicates Little, 2019, algorithm 1; momentum averaged too, as in Yu, Jin,
//! Yang, On the Linear Speedup Analysis of Communication Efficient Momentum SGD, 2019, algorithm 1.

use std::sync::Arc;

use super::FlatState;
use crate::collective::{AllReduce, Finished, WaitPolicy};
use crate::error::Result;
use crate::metrics::Kind;

/// Counter of the updates that a rank made on its own.
pub struct LocalSteps {
    all_reduce: Arc<AllReduce>,
    every: usize,
    /// Updates since the ranks were equal.
    since: usize,
}

impl LocalSteps {
    /// Averages after every `every` updates. `None` for 1, where gradients are summed instead, and for one rank.
    pub fn new(all_reduce: Arc<AllReduce>, every: usize) -> Option<LocalSteps> {
        (every > 1 && all_reduce.communicator().size() > 1).then_some(LocalSteps { all_reduce, every, since: 0 })
    }

    /// Counts an update; returns whether [`average`](Self::average) is due.
    pub fn updated(&mut self) -> bool {
        self.since += 1;
        self.since == self.every
    }

    /// Updates since the ranks were equal.
    pub fn since(&self) -> usize {
        self.since
    }

    /// Sets the updates since the ranks were equal, on resuming.
    pub fn set_since(&mut self, since: usize) {
        self.since = since;
    }

    /// Whether an update came after the last average.
    pub fn apart(&self) -> bool {
        self.since > 0
    }

    /// Averages parameters and `moments` (of the optimizer, in the parameters' order, or empty) over the ranks, bit-identical on
    /// all. Overwrites the gradients, whose memory it uses.
    ///
    /// # Errors
    /// The all-reduce failed.
    pub fn average(&mut self, state: &mut FlatState, moments: [&mut [f32]; 2]) -> Result<Finished> {
        self.since = 0;
        let ranks = self.all_reduce.communicator().size() as f32;
        let [first, second] = moments;
        Finished::of(|waits| {
            for values in [state.parameters.host_mut().as_mut_slice(), first, second] {
                if values.is_empty() {
                    continue;
                }
                // The gradients' memory suits the all-reduce, and the next step zeroes it anyway.
                let mut sums = state.gradients.host_mut().region(0..values.len());
                sums.as_mut_slice().copy_from_slice(values);
                waits.extend(&self.all_reduce.reduce(Kind::Parameters, &mut sums, WaitPolicy::Spin)?.waits);
                values.iter_mut().zip(sums.as_slice()).for_each(|(value, sum)| *value = sum / ranks);
            }
            Ok(())
        })
    }
}
