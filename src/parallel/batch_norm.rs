//! Synchronized batch norm (`parallel.buffers = "sync"`): n ranks with b samples each train as one rank with n b samples.
//!
//! Each layer's mean and variance are those of the global batch, so each rank's output and gradient depend on every rank's
//! input: both passes sum over the ranks.
//! Source: Ioffe and Szegedy, Batch Normalization, 2015, section 3; as torch/nn/modules/_functions.py, SyncBatchNorm.

use std::sync::{Arc, Mutex, MutexGuard};

use tch::{Kind, Tensor};

use crate::collective::{Communicator, Finished};
use crate::config::Timing;
use crate::device::Message;
use crate::error::{Error, Result};
use crate::metrics;
use crate::model::Standardized;
use crate::sys::differentiable;
use crate::units::Bytes;

/// Batch norm over all ranks, and the time its collectives took. All ranks call its methods together.
#[derive(Clone)]
pub struct SyncBatchNorm {
    communicator: Arc<Communicator>,
    timing: Timing,
    spent: Arc<Mutex<Spent>>,
}

/// Collectives since they were taken, or the first collective that failed: forward and backward pass return tensors
/// only.
#[derive(Default)]
struct Spent {
    finished: Vec<(Finished, Message)>,
    failed: Option<Error>,
}

impl SyncBatchNorm {
    /// Creates a batch norm over all ranks of `communicator`; in profile mode with a barrier before each collective.
    pub fn new(communicator: Arc<Communicator>, timing: Timing) -> SyncBatchNorm {
        SyncBatchNorm { communicator, timing, spent: Arc::default() }
    }

    /// Standardizes `input` `[n, c, h, w]` by the mean and standard deviation of the global batch; differentiable.
    pub fn standardize(&self, input: &Tensor, epsilon: f64) -> Standardized {
        let (values, mean, variance, count) = tch::no_grad(|| {
            let float = input.to_kind(Kind::Float);
            let (mean, variance) = float.batch_norm_update_stats(None::<&Tensor>, None, 0.0); // [c] each, variance biased
            let own = float.numel() as f64 / mean.numel() as f64;
            let (mean, variance, count) = self.combine(&mean, &variance, own);
            let affine = None::<&Tensor>;
            let values = float.batch_norm(affine, affine, Some(&mean), Some(&variance), false, 0.0, epsilon, true);
            (values, mean, variance, count)
        });
        let unbiased_variance = tch::no_grad(|| &variance * (count / (count - 1.0)));
        let (norm, saved) = (self.clone(), values.detach());
        let inverse_deviation = (variance + epsilon).rsqrt().view([1, -1, 1, 1]);
        let gradient = move |given: &Tensor| norm.gradient(given, &saved, &inverse_deviation, count);
        Standardized { values: differentiable(input, &values, gradient), mean, unbiased_variance }
    }

    /// d loss / d input of one batch norm, given that of its `standardized` values, `inverse_deviation` `[1, c, 1, 1]`, which is
    /// 1 / sqrt(variance + epsilon), and the values per channel over all ranks.
    ///
    /// With x^ the standardized values, g their gradient and N the `count`:
    /// `dx = (g - sum(g)/N - x^ sum(g x^)/N) / deviation`. The sums run over all ranks, since every rank's output went through
    /// the mean and variance to which this x contributed. Each rank's loss is already scaled by its share of the global batch.
    fn gradient(&self, gradient: &Tensor, standardized: &Tensor, inverse_deviation: &Tensor, count: f64) -> Tensor {
        tch::no_grad(|| {
            let channels = gradient.size()[1];
            let over = [0i64, 2, 3];
            let sum = gradient.sum_dim_intlist(&over[..], false, Kind::Float);
            let product = (gradient * standardized).sum_dim_intlist(&over[..], false, Kind::Float);
            let means = self.sum(&Tensor::cat(&[sum, product], 0)) / count; // [2 c]
            let of = |part: i64| means.narrow(0, part * channels, channels).view([1, -1, 1, 1]);
            (gradient - of(0) - standardized * of(1)) * inverse_deviation
        })
    }

    /// Takes the collectives since the last call.
    ///
    /// # Errors
    /// One of the collectives failed.
    pub fn take_spent(&self) -> Result<Vec<(Finished, Message)>> {
        let Spent { finished, failed } = std::mem::take(&mut *self.spent());
        failed.map_or(Ok(finished), Err)
    }

    fn spent(&self) -> MutexGuard<'_, Spent> {
        self.spent.lock().expect("nothing panics while it is locked")
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
        let all =
            self.collective(size_of_val(&*own), |ranks| ranks.all_gather(metrics::Kind::Buffers, &own)).unwrap_or(own);
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
        let bytes = size_of_val(&*sums);
        let _ = self.collective(bytes, |ranks| ranks.all_reduce_sum(metrics::Kind::Buffers, &mut sums));
        Tensor::from_slice(&sums)
    }

    /// Runs one collective of `bytes` and adds its time to `spent`; skips it after an earlier failure, because the job ends with that
    /// error.
    fn collective<T>(&self, bytes: usize, call: impl FnOnce(&Communicator) -> Result<T>) -> Option<T> {
        if self.spent().failed.is_some() {
            return None;
        }
        let mut result = None;
        let done = Finished::of(|waits| {
            if self.timing == Timing::Profile {
                waits.time(|| self.communicator.barrier())?;
            }
            result = Some(call(&self.communicator)?);
            Ok(())
        });
        let mut spent = self.spent();
        match done {
            Ok(finished) => spent.finished.push((finished, Message { bucket: None, bytes: bytes as Bytes })),
            Err(error) => spent.failed = Some(error),
        }
        result
    }
}
