//! One timed optimizer step, as trainings and sweeps take it.

use crate::config;
use crate::data::{AugmentSeed, Batches, Feed, LoaderOptions};
use crate::device::StepRecorder;
use crate::error::Result;
use crate::metrics::Part;
use crate::optim::Optimizer;
use crate::parallel::Replica;

/// Takes one optimizer step on the next batches, one per entry of `sizes` (samples of this rank), on each of `ranks` ranks.
/// Returns how long each part of the step takes on this rank; a `traced` step's record keeps each span.
///
/// # Errors
/// A sample cannot be read or trained on, the device has failed, or a rank is gone.
pub fn timed_step(
    batches: &mut Batches,
    sizes: &[usize],
    replica: &mut Replica,
    optimizer: &mut Optimizer,
    ranks: usize,
    lr: f64,
    traced: bool,
) -> Result<StepRecorder> {
    let mut time = StepRecorder::new(replica.clock(), traced)?;
    let step = time.begin(Part::Step)?;
    // The sampler pads, so every rank has as many samples as this one.
    let global_batch = sizes.iter().sum::<usize>() * ranks;
    if let Some(scale) = optimizer.loss_scale() {
        replica.set_loss_scale(scale.factor());
    }
    for number in 1..=sizes.len() {
        let waiting = time.begin(Part::Data)?;
        let batch = batches.next().expect("every batch of the plan comes")?;
        time.end(waiting)?;
        if number < sizes.len() {
            replica.accumulate(&batch, global_batch, &mut time)?;
        } else {
            replica.step(&batch, global_batch, &mut time)?;
        }
    }
    let update = time.begin(Part::Optimizer)?;
    optimizer.step(replica.state_mut(), lr)?;
    time.end(update)?;
    replica.updated(optimizer.moments(), &mut time)?;
    time.end(step)?;
    Ok(time)
}

/// Options of a loader that prepares batches of `feed` in the layout of the replica's model, augmented if `augment` has a seed.
pub fn loader_options(
    data: &config::Data,
    feed: &Feed,
    replica: &Replica,
    augment: Option<AugmentSeed>,
) -> LoaderOptions {
    let [mean, std] = feed.dataset().normalization(data);
    LoaderOptions {
        mean,
        std,
        augment,
        channels_last: replica.model().channels_last,
        prefetch: data.prefetch,
        threads: data.threads,
    }
}
