//! Synchronized batch norm (`parallel.buffers = "sync"`): n ranks with b samples each train as one rank with n b samples.
//!
//! Each layer's mean and variance are those of the global batch, so each rank's output and gradient depend on every rank's
//! input. tch cannot define autograd functions: the graph is cut at the standardized values (a leaf), autograd runs back to
//! that leaf, and [`SyncBatchNorm::backward`] carries the gradient across the cut with sums over the ranks.
//! Source: Ioffe and Szegedy, Batch Normalization, 2015, section 3; as torch/nn/modules/_functions.py, SyncBatchNorm.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use tch::{Kind, Tensor};

use crate::collective::{Communicator, Finished};
use crate::config::Timing;
use crate::error::{Error, Result};
use crate::metrics;
use crate::model::Standardized;
use crate::sys::backward_with;

/// Batch norm over all ranks: the graph cuts of the passes in flight and the time their collectives took. All ranks call
/// its methods together.
pub struct SyncBatchNorm {
    communicator: Arc<Communicator>,
    timing: Timing,
    cuts: RefCell<Vec<Cut>>,
    spent: Cell<Finished>,
    /// The first collective that failed; [`take_spent`](Self::take_spent) returns it, since a forward pass returns tensors only.
    failed: RefCell<Option<Error>>,
}

/// The place where one batch norm cut the autograd graph.
pub struct Cut {
    /// `[n, c, h, w]`, the output of the graph before the cut.
    input: Tensor,
    /// `[n, c, h, w]`, the leaf at which the graph after the cut begins.
    standardized: Tensor,
    /// `[1, c, 1, 1]`, 1 / sqrt(variance + epsilon).
    inverse_deviation: Tensor,
    /// Values per channel over all ranks.
    count: f64,
}

impl SyncBatchNorm {
    /// Creates a batch norm over all ranks of `communicator`; in profile mode with a barrier before each collective.
    pub fn new(communicator: Arc<Communicator>, timing: Timing) -> SyncBatchNorm {
        let (cuts, spent, failed) = Default::default();
        SyncBatchNorm { communicator, timing, cuts, spent, failed }
    }

    /// Standardizes `input` `[n, c, h, w]` by the mean and standard deviation of the global batch, and cuts the graph there.
    pub fn standardize(&self, input: &Tensor, epsilon: f64) -> Standardized {
        tch::no_grad(|| {
            let float = input.to_kind(Kind::Float);
            let (mean, variance) = float.batch_norm_update_stats(None::<&Tensor>, None, 0.0); // [c] each, variance biased
            let own = float.numel() as f64 / mean.numel() as f64;
            let (mean, variance, count) = self.combine(&mean, &variance, own);
            let affine = None::<&Tensor>;
            let standardized =
                float.batch_norm(affine, affine, Some(&mean), Some(&variance), false, 0.0, epsilon, true);
            let values = standardized.set_requires_grad(true);
            self.cuts.borrow_mut().push(Cut {
                input: input.shallow_clone(),
                standardized: values.shallow_clone(),
                inverse_deviation: (&variance + epsilon).rsqrt().view([1, -1, 1, 1]),
                count,
            });
            Standardized { values, mean, unbiased_variance: variance * (count / (count - 1.0)) }
        })
    }

    /// Takes the cuts since the last call: those of the segment just computed.
    pub fn take_cuts(&self) -> Vec<Cut> {
        self.cuts.take()
    }

    /// Continues the backward pass where autograd stopped: across each of `cuts` and through the graph before it, last cut first.
    ///
    /// With x^ the standardized values, g their gradient and N the values per channel over all ranks:
    /// `dx = (g - sum(g)/N - x^ sum(g x^)/N) / deviation`. The sums run over all ranks, since every rank's output went through
    /// the mean and variance to which this x contributed. Each rank's loss is already scaled by its share of the global batch.
    pub fn backward(&self, cuts: Vec<Cut>) {
        for cut in cuts.into_iter().rev() {
            let gradient = tch::no_grad(|| {
                let gradient = cut.standardized.grad();
                let channels = gradient.size()[1];
                let over = [0i64, 2, 3];
                let sum = gradient.sum_dim_intlist(&over[..], false, Kind::Float);
                let product = (&gradient * &cut.standardized).sum_dim_intlist(&over[..], false, Kind::Float);
                let means = self.sum(&Tensor::cat(&[sum, product], 0)) / cut.count; // [2 c]
                let of = |part: i64| means.narrow(0, part * channels, channels).view([1, -1, 1, 1]);
                (gradient - of(0) - &cut.standardized * of(1)) * &cut.inverse_deviation
            });
            backward_with(&cut.input, &gradient);
        }
    }

    /// Takes the seconds spent in collectives since the last call.
    ///
    /// # Errors
    /// One of the collectives failed.
    pub fn take_spent(&self) -> Result<Finished> {
        match self.failed.take() {
            Some(error) => Err(error),
            None => Ok(self.spent.take()),
        }
    }

    /// Combines every rank's mean and biased variance `[c]` and count into those of the global batch, bit-identical on all ranks.
    ///
    /// Source: Chan, Golub, LeVeque, Updating formulae and a pairwise algorithm for computing sample variances, 1979.
    fn combine(&self, mean: &Tensor, variance: &Tensor, count: f64) -> (Tensor, Tensor, f64) {
        let channels = mean.numel();
        let mut own = vec![0f32; 2 * channels + 1];
        mean.copy_data(&mut own[..channels], channels);
        variance.copy_data(&mut own[channels..2 * channels], channels);
        own[2 * channels] = count as f32; // at most batch x 32 x 32: exact below 2^24, relative error 1e-7 beyond
        let all = self.collective(|ranks| ranks.all_gather(metrics::Kind::Buffers, &own)).unwrap_or(own);
        let of_ranks = || all.chunks(2 * channels + 1).map(|rank| (rank, f64::from(rank[2 * channels])));
        let count: f64 = of_ranks().map(|(_, count)| count).sum();
        let moments = (0..channels).map(|channel| {
            let mean = of_ranks().map(|(rank, n)| n * f64::from(rank[channel])).sum::<f64>() / count;
            let squares = of_ranks().map(|(rank, n)| {
                let (own_mean, own_variance) = (f64::from(rank[channel]), f64::from(rank[channels + channel]));
                n * (own_variance + (own_mean - mean).powi(2))
            });
            (mean as f32, (squares.sum::<f64>() / count) as f32)
        });
        let (means, variances): (Vec<f32>, Vec<f32>) = moments.unzip();
        (Tensor::from_slice(&means), Tensor::from_slice(&variances), count)
    }

    /// Sums `values` `[n]` float32 over the ranks.
    fn sum(&self, values: &Tensor) -> Tensor {
        let mut sums = vec![0f32; values.numel()];
        values.copy_data(&mut sums, values.numel());
        let _ = self.collective(|ranks| ranks.all_reduce_sum(metrics::Kind::Buffers, &mut sums));
        Tensor::from_slice(&sums)
    }

    /// Runs one collective and adds its time to `spent`; skips it after an earlier failure, because the job ends with that error.
    fn collective<T>(&self, call: impl FnOnce(&Communicator) -> Result<T>) -> Option<T> {
        if self.failed.borrow().is_some() {
            return None;
        }
        let timed = || {
            let wait = if self.timing == Timing::Profile { self.communicator.barrier()? } else { 0.0 };
            let start = std::time::Instant::now();
            let result = call(&self.communicator)?;
            Ok((result, wait, start.elapsed().as_secs_f64()))
        };
        match timed() {
            Ok((result, wait, transfer)) => {
                let spent = self.spent.get();
                self.spent.set(Finished { wait: spent.wait + wait, transfer: spent.transfer + transfer });
                Some(result)
            }
            Err(error) => {
                *self.failed.borrow_mut() = Some(error);
                None
            }
        }
    }
}
