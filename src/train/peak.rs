//! The fastest matrix product of libtorch on each rank's cores or GPU, against which a training's operations per second are held
//! (`metrics.peak`). In: the job. Out: operations per second of each rank. Called after the last step: no timed part contains it.

use std::time::Instant;

use tch::{Kind, TchError, Tensor};

use crate::config::{Precision, Timing};
use crate::device::{Clock, Target, seconds_between};
use crate::error::Result;
use crate::launch::Job;
use crate::metrics;
use crate::units::Second;

/// Time in which products are tried.
const SECONDS: Second = 0.2;
/// Time of a product that is long enough: far above the call's own, and far below `SECONDS`.
const LONG: Second = 0.01;
/// Sides of the square matrices, each twice the one before, until a product takes `LONG`.
const SIDES: [i64; 6] = [512, 1024, 2048, 4096, 8192, 16384];

/// Multiplications and additions per second of each rank's fastest matrix product in `precision`. All ranks multiply at the same
/// time, as they train: those of one host share its memory and its clock frequency. `None`, with a warning, if there is no memory
/// for any matrices. A collective.
///
/// # Errors
/// A rank or the device fails.
pub fn measure(job: &Job, precision: Precision) -> Result<Option<Vec<f64>>> {
    job.communicator.barrier()?;
    let own = job.agree(fastest(job.target, precision))?;
    let (rate, failure) = match own {
        Ok(rate) => (rate, String::new()),
        Err(error) => (f64::NAN, error.to_string()),
    };
    let ranks = job.communicator.all_gather(metrics::Kind::Metrics, &[rate])?;
    if ranks.iter().any(|rate| rate.is_nan()) {
        let reason = failure.lines().next().unwrap_or("another rank could not multiply").to_owned();
        job.warn(format!("peak_share is unknown: matrices could not be multiplied after the last step: {reason}"));
        return Ok(None);
    }
    Ok(Some(ranks))
}

/// Operations per second of the fastest product of square matrices; libtorch's error if one fails.
fn fastest(target: Target, precision: Precision) -> Result<std::result::Result<f64, TchError>> {
    let kind = match precision {
        Precision::Float32 | Precision::Tf32 => Kind::Float,
        Precision::Bf16 => Kind::BFloat16,
        Precision::Fp16 => Kind::Half,
    };
    let clock = Clock::of(target, Timing::Profile)?;
    let started = Instant::now();
    let mut most: f64 = 0.0;
    for (index, side) in SIDES.into_iter().enumerate() {
        let matrices = match Matrices::new(side, kind, target.device()) {
            Ok(matrices) => matrices,
            // No memory for these: the smaller ones are known.
            Err(_) if most > 0.0 => return Ok(Ok(most)),
            Err(error) => return Ok(Err(error)),
        };
        for number in 0.. {
            let from = clock.now()?;
            if let Err(error) = matrices.multiply() {
                return Ok(Err(error));
            }
            let seconds = seconds_between(&from, &clock.now()?)?;
            let is_over = started.elapsed().as_secs_f64() >= SECONDS;
            // The first has its kernel to choose, and one that ends after the time may have had the cores of a rank that is done.
            if most == 0.0 || number > 0 && !is_over {
                most = most.max(2.0 * (side as f64).powi(3) / seconds);
            }
            if is_over {
                return Ok(Ok(most));
            }
            if number > 0 && seconds < LONG && index + 1 < SIDES.len() {
                break;
            }
        }
    }
    Ok(Ok(most))
}

/// Two matrices and the place of their product.
struct Matrices([Tensor; 3]);

impl Matrices {
    /// Varied numbers, since a GPU clocks higher on constant ones; none drawn, since what follows the training draws too.
    fn new(side: i64, kind: Kind, device: tch::Device) -> std::result::Result<Matrices, TchError> {
        let values = |scale: f64| {
            let numbers = Tensor::f_arange(side * side, (Kind::Float, device))?;
            numbers.f_mul_scalar(scale)?.f_sin()?.f_view([side, side])?.f_to_kind(kind)
        };
        Ok(Matrices([values(0.7)?, values(1.3)?, Tensor::f_zeros([side, side], (kind, device))?]))
    }

    fn multiply(&self) -> std::result::Result<(), TchError> {
        let [one, other, product] = &self.0;
        one.f_matmul_out(product, other).map(|_| ())
    }
}
