//! One visit to one case: a fresh replica on the case's ranks, a warm-up, and timed steps until the time is used.

use std::sync::Arc;
use std::time::Instant;

use super::{Case, Group, memory};
use crate::collective::{Combine, Communicator};
use crate::config::{self, Config, ModelName, Plan};
use crate::data::{BatchPlan, Dataset, Feed, Form, Sampler};
use crate::device::{GpuMonitor, Reading, StepRecorder, Target};
use crate::error::Result;
use crate::launch::Job;
use crate::live::Live;
use crate::metrics::{Kind, StepTimes};
use crate::model::Model;
use crate::optim::{LossScale, Optimizer};
use crate::parallel::Replica;
use crate::sys;
use crate::train::{Convolutions, loader_options, timed_step};
use crate::units::{Bytes, Second};
use crate::workload::Workload;

/// Greatest number of steps per visit: enough for any interval, and few enough to keep all of them.
const MOST_STEPS: usize = 200;
/// Least number of steps per visit, unless a single step takes longer than the visit may.
const LEAST_STEPS: usize = 3;

/// Result of a visit, identical on all ranks of the case except for the times.
pub(super) struct Outcome {
    /// Step times `[ranks][steps]`, on rank 0; empty if the memory did not suffice.
    pub times: Vec<Vec<StepTimes>>,
    /// Greatest resident bytes of a rank; 0 if the case was not tried.
    pub peak_memory: Bytes,
    /// Whether a rank ran out of memory, or would have.
    pub out_of_memory: bool,
    /// Bytes of gradients that a step all-reduces.
    pub gradient_bytes: Bytes,
    /// Whether collectives can overlap the backward pass.
    pub overlaps: bool,
    /// Use of the GPUs in the counted steps, if there are any.
    pub gpu: Option<GpuUse>,
}

/// Use of a case's GPUs.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct GpuUse {
    /// Share of time in which a GPU computed anything, percent, mean over the GPUs.
    pub utilization: f64,
    /// Greatest bytes in use on one GPU.
    pub memory: Bytes,
    /// Energy of all GPUs per image.
    pub joules_per_image: f64,
}

impl GpuUse {
    /// Combines each rank's reading over steps of `images` images in all. A collective.
    fn of(own: Option<Reading>, images: usize, group: &Communicator) -> Result<Option<GpuUse>> {
        let reading = own.unwrap_or_default();
        let mut sums = [own.is_some() as u8 as f64, reading.utilization, reading.joules];
        let mut memory = [reading.memory as f64];
        group.all_reduce(Kind::Metrics, Combine::Sum, &mut sums)?;
        group.all_reduce(Kind::Metrics, Combine::Max, &mut memory)?;
        let [gpus, utilization, joules] = sums;
        Ok((gpus > 0.0).then(|| GpuUse {
            utilization: utilization / gpus,
            memory: memory[0] as Bytes,
            joules_per_image: joules / images as f64,
        }))
    }
}

/// Bytes that a rank takes at least for `case`, by its workload: known before any smaller batch was measured. 0 on GPUs, where
/// little of it is the host's.
fn at_least(plan: &Plan, case: &Case, job: &Job, dataset: &Dataset) -> Result<Bytes> {
    if job.target.is_gpu() {
        return Ok(0);
    }
    let plan = plan.adapted(|config| {
        (config.train.global_batch, config.train.batch_per_rank) = (0, case.batch_per_rank);
    })?;
    Ok(Workload::new(&plan, dataset.form())?.memory().total())
}

/// What all visits of a sweep share.
pub(super) struct Visits<'a> {
    pub job: &'a Job,
    pub dataset: &'a Arc<Dataset>,
    /// Choices for the convolutions of the visits so far, on rank 0.
    pub convolutions: Convolutions,
    /// View of the sweep, whose parts are the visits.
    pub live: Live,
}

impl Visits<'_> {
    /// Visits `case` for `seconds` on the ranks of the group (all of them call this). `needed` is the memory a rank probably takes, 0 if
    /// unknown.
    pub fn visit(&mut self, case: &Case, group: &Group, needed: Bytes, seconds: Second) -> Result<Outcome> {
        let &mut Visits { job, dataset, ref mut convolutions, ref mut live } = self;
        let Group { ranks: group, plan } = group;
        let plan = plan.adapted(|config| {
            config.model = model_of(&config.model, case.model);
            config.metrics.timing = case.timing;
        })?;
        let sharing = job.ranks_of_host().iter().filter(|rank| **rank < case.ranks).count();
        // A tenth is left to other processes.
        let room = memory::room(sharing) / 10 * 9;
        let resident = memory::resident();
        let expected = if needed > 0 { needed } else { resident + at_least(&plan, case, job, dataset)? };
        let too_much = expected > resident + room;
        let mut outcome = Outcome {
            times: Vec::new(),
            peak_memory: 0,
            out_of_memory: true,
            gradient_bytes: 0,
            overlaps: false,
            gpu: None,
        };
        if any(group, too_much)? {
            return Ok(outcome);
        }

        let mut model = Model::new(&plan.model, dataset.form(), plan.run.seed)?;
        convolutions.choose(&mut model, &plan, job.target, group, case.batch_per_rank)?;
        sys::give_back_freed_memory();
        memory::forget_peak();
        let plan = job.fitting(&plan, group, model.parameter_count())?;
        let mut replica = Replica::new(model, job.target, group.clone(), &plan)?;
        let feed = Feed::new(dataset.clone(), job.target.own_memory(), plan.data.gpu_mb as Bytes * 1_000_000)?;
        (outcome.gradient_bytes, outcome.overlaps) = (replica.gradient_bytes(), replica.overlaps());
        let warmup = plan.metrics.warmup_steps.max(1);
        let batches = batches(case, &plan, group.rank(), dataset.len(), warmup + MOST_STEPS);
        // One step without communication first, on which no rank waits, so that running out of memory is a result and not a failure.
        // A GPU always reports a lack of memory, and each batch size would have cuDNN try its algorithms.
        let step_by_step = needed == 0 && !matches!(job.target, Target::Gpu { .. });
        let fits =
            fits_alone(&mut replica, &batches.indices[..case.batch_per_rank], &plan.data, &feed, room, step_by_step)?;
        if any(group, !fits)? {
            outcome.peak_memory = memory::peak();
            drop(replica);
            sys::give_back_freed_memory();
            return Ok(outcome);
        }

        let mut optimizer =
            Optimizer::new(replica.state(), &plan.optim).with_loss_scale(LossScale::of(plan.model.precision));
        let mut batches = feed.batches(batches, loader_options(&plan.data, &feed, &replica, None));
        let sizes = [case.batch_per_rank];
        let mut step = |replica: &mut Replica| {
            timed_step(&mut batches, &sizes, replica, &mut optimizer, case.ranks, plan.train.lr, false)
        };
        let started = Instant::now();
        let mut warm = 0.0;
        for done in 1..=warmup {
            step(&mut replica)?;
            replica.take_result()?; // on a device: waits for its collectives
            warm = longest(group, started)? / done as f64;
            live.show(|| format!("warm-up step {done}/{warmup}"));
            if warm > seconds {
                break;
            }
        }
        let mut monitor = GpuMonitor::start(job.target, &job.gpu_uuid);
        let mut times = Vec::new();
        let mut until = if warm > seconds { 1 } else { LEAST_STEPS };
        let started = Instant::now();
        loop {
            // On a device all steps are enqueued before the first is waited for, as in a training.
            let asked: Vec<StepRecorder> = (times.len()..until).map(|_| step(&mut replica)).collect::<Result<_>>()?;
            replica.take_result()?;
            for mut one in asked {
                times.push(one.resolve()?);
            }
            let taken = longest(group, started)?;
            let speed = || (times.len() * case.global_batch()) as f64 / taken;
            live.show(|| format!("{} steps | {:.0} samples/s", times.len(), speed()));
            if taken >= seconds || until == MOST_STEPS {
                break;
            }
            // As many steps as the time allows, but at most doubled before the next look.
            let affordable = (until as f64 * seconds / taken).ceil() as usize;
            until = affordable.clamp(until + 1, 2 * until).min(MOST_STEPS);
        }

        if job.target.is_gpu() {
            let images = times.len() * case.global_batch();
            outcome.gpu = GpuUse::of(monitor.as_mut().map(GpuMonitor::read), images, group)?;
        }
        let own: Vec<f32> = times.iter().flat_map(|time| *time.as_array()).collect();
        let all = group.gather(Kind::Metrics, &own)?;
        let of_rank = |values: &[f32]| values.chunks(StepTimes::PARTS).map(StepTimes::from_slice).collect();
        outcome.times = all.chunks(own.len()).map(of_rank).collect();
        let mut peak = [memory::peak() as f64];
        group.all_reduce(Kind::Metrics, Combine::Max, &mut peak)?;
        (outcome.peak_memory, outcome.out_of_memory) = (peak[0] as Bytes, false);
        drop((batches, replica, optimizer));
        sys::give_back_freed_memory();
        Ok(outcome)
    }
}

/// Whether forward and backward pass of the batch `indices` fit in `room` more bytes.
///
/// `step_by_step`: nothing is known of the memory yet. Then batches of 8, 32, 128, ... come first, and the line through the
/// last two decides whether the next is tried at all, since libtorch reports most failed allocations, but not all.
fn fits_alone(
    replica: &mut Replica,
    indices: &[u32],
    data: &config::Data,
    feed: &Feed,
    room: Bytes,
    step_by_step: bool,
) -> Result<bool> {
    let most = memory::resident() + room;
    let smaller = std::iter::successors(Some(8), |size| Some(size * 4)).take_while(|&size| size < indices.len());
    let mut known = Vec::new();
    for size in smaller.filter(|_| step_by_step).chain([indices.len()]) {
        if memory::extrapolated(&known, size) > most {
            return Ok(false);
        }
        let plan = BatchPlan { indices: indices[..size].to_vec(), sizes: vec![size] };
        let batch = feed.batches(plan, loader_options(data, feed, replica, None)).next();
        let batch = batch.expect("a plan of one batch")?;
        sys::give_back_freed_memory();
        memory::forget_peak();
        let left = most.saturating_sub(memory::resident());
        if !memory::survives(|| sys::with_memory_limit(left, || replica.compute_alone(&batch))) {
            return Ok(false);
        }
        known.push((size, memory::peak()));
    }
    Ok(true)
}

/// The network of a case, with PyTorch's initial values.
pub(super) fn new_model(model: &config::Model, name: ModelName, form: Form, seed: u64) -> Result<Model> {
    Model::new(&model_of(model, name), form, seed)
}

/// The `[model]` section of a case whose network is `name`.
fn model_of(model: &config::Model, name: ModelName) -> config::Model {
    config::Model { name, bias: model.bias && name == ModelName::Net, ..model.clone() }
}

/// Plans full batches over consecutive epochs: a batch may span the end of one epoch and the start of the next or, for a small
/// data set, several whole epochs.
fn batches(case: &Case, config: &Config, rank: usize, samples: usize, steps: usize) -> BatchPlan {
    let mut sampler = Sampler::new(samples, case.ranks, rank, config.data.shuffle, false, config.run.seed);
    let mut indices = Vec::new();
    for epoch in 0.. {
        sampler.set_epoch(epoch);
        indices.extend(sampler.indices());
        if indices.len() >= steps * case.batch_per_rank {
            break;
        }
    }
    indices.truncate(steps * case.batch_per_rank);
    BatchPlan::even(indices, case.batch_per_rank)
}

/// Whether `here` is true on any rank.
fn any(group: &Communicator, here: bool) -> Result<bool> {
    let mut flag = [here as u8 as f64];
    group.all_reduce(Kind::Control, Combine::Max, &mut flag)?;
    Ok(flag[0] > 0.0)
}

/// Seconds since `started` on the slowest rank: one number on all ranks, so that all decide alike.
fn longest(group: &Communicator, started: Instant) -> Result<Second> {
    let mut seconds = [started.elapsed().as_secs_f64()];
    group.all_reduce(Kind::Control, Combine::Max, &mut seconds)?;
    Ok(seconds[0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Timing;

    #[test]
    fn a_plan_has_full_batches_over_as_many_epochs_as_it_takes() {
        let case = Case { model: ModelName::Net, ranks: 2, batch_per_rank: 4, timing: Timing::Overlap };
        for samples in [21, 5, 1] {
            let plan = batches(&case, &Config::default(), 1, samples, 5);
            assert_eq!(plan.sizes, [4; 5]);
            assert!(plan.indices.iter().all(|&index| (index as usize) < samples));
        }
    }
}
