//! How buckets of gradients and batch-norm statistics come to the other ranks: while the backward pass goes on or after it,
//! out of the host's memory or a device's.

use std::sync::Arc;
use std::time::Instant;

use tch::Tensor;

use super::worker::Worker;
use super::{Bucket, Flat, FlatState, LocalSteps, Reducer};
use crate::collective::{AllReduce, Communicator, DeviceCollectives, Finished, Region, Span, WaitPolicy};
use crate::config::{Compression, Plan, Timing};
use crate::device::{Clock, StepRecorder, Target};
use crate::error::Result;
use crate::metrics::{Kind, Part};
use crate::model::Model;

/// Either way. All ranks call its methods together.
pub(super) enum Exchange {
    Host(HostExchange),
    Device(Box<DeviceExchange>),
}

impl Exchange {
    /// For the gradients of `model`, and the memory that they are to be in.
    pub fn new(
        model: &Model,
        target: Target,
        communicator: &Arc<Communicator>,
        plan: &Plan,
    ) -> Result<(Exchange, Flat)> {
        let elements = model.parameter_count();
        if let Some(device) = target.own_memory() {
            let exchange = DeviceExchange::new(elements, target, communicator.clone(), plan)?;
            return Ok((Exchange::Device(Box::new(exchange)), Flat::zeros(elements, Some(device))));
        }
        let all_reduce = Arc::new(AllReduce::new(communicator.clone(), plan.parallel.all_reduce)?);
        let gradients = Flat::Host(all_reduce.buffer(elements)?);
        let reducer = Arc::new(Reducer::new(all_reduce.clone(), model, &plan.parallel, plan.run.seed)?);
        let local = LocalSteps::new(all_reduce, plan.parallel.local_steps);
        Ok((
            Exchange::Host(HostExchange { communicator: communicator.clone(), reducer, local, worker: None }),
            gradients,
        ))
    }

    /// Local steps, if ranks train on their own for some.
    pub fn local(&mut self) -> Option<&mut LocalSteps> {
        match self {
            Exchange::Host(host) => host.local.as_mut(),
            Exchange::Device(_) => None,
        }
    }

    /// Whether gradients stay on their rank.
    pub fn is_local(&self) -> bool {
        matches!(self, Exchange::Host(HostExchange { local: Some(_), .. }))
    }

    /// What the ledger counts for these buckets.
    pub fn bytes(&self, buckets: &[Bucket]) -> u64 {
        match self {
            Exchange::Host(HostExchange { local: Some(_), .. }) => 0,
            Exchange::Host(host) => buckets.iter().map(|bucket| host.reducer.bytes(&bucket.elements)).sum(),
            Exchange::Device(device) => buckets.iter().map(|bucket| device.bytes(bucket)).sum(),
        }
    }

    /// Lets collectives go on beside the backward pass. A device's do without being asked.
    ///
    /// # Errors
    /// MPI does not allow a second thread to call it.
    pub fn overlap(&mut self) -> Result<()> {
        if let Exchange::Host(host) = self {
            host.communicator.may_change_threads()?;
            // Patient: a collective that spins for a slower rank would take half of the core from the backward pass that this
            // rank still computes.
            let reducer = host.reducer.clone();
            host.worker = Some(Worker::start(move |region: &mut Region| reducer.reduce(region, WaitPolicy::Sleep)));
        }
        Ok(())
    }

    /// Whether a bucket's collective goes on while the caller computes.
    pub fn overlaps(&self) -> bool {
        match self {
            Exchange::Host(host) => host.worker.is_some(),
            Exchange::Device(device) => device.overlaps && !device.collectives.is_through_host(),
        }
    }

    /// What compression carries from step to step, by name.
    pub fn state(&self) -> Vec<(String, Vec<f32>)> {
        match self {
            Exchange::Host(host) => host.reducer.state(),
            Exchange::Device(_) => Vec::new(),
        }
    }

    /// Takes back what [`state`](Self::state) gave after so many `steps`. Error: what is wrong with it.
    pub fn restore(&self, saved: &[(String, Vec<f32>)], steps: usize) -> Result<(), String> {
        match self {
            Exchange::Host(host) => {
                host.reducer.steps_done(steps);
                host.reducer.restore(saved)
            }
            Exchange::Device(_) if saved.is_empty() => Ok(()),
            Exchange::Device(_) => Err("compression state, expected none".into()),
        }
    }

    /// Called when a bucket's gradients are complete, in the order of the buckets; `last`: nothing is left to compute.
    pub fn ready(
        &mut self,
        bucket: &Bucket,
        last: bool,
        state: &mut FlatState,
        times: &mut StepRecorder,
    ) -> Result<()> {
        match self {
            Exchange::Host(host) if host.reduces() => host.ready(bucket, last, state, times),
            Exchange::Device(device) if device.overlaps => device.reduce(bucket, state, times),
            _ => Ok(()),
        }
    }

    /// Called after the backward pass: reduces what was left for then, and ends what is under way.
    pub fn finish(&mut self, buckets: &[Bucket], state: &mut FlatState, times: &mut StepRecorder) -> Result<()> {
        match self {
            Exchange::Host(host) => {
                if host.reduces() && host.worker.is_none() {
                    host.reduce_all(buckets, state, times)?;
                }
                host.reducer.steps_done(1);
                Ok(())
            }
            Exchange::Device(device) => device.finish(buckets, state, times),
        }
    }

    /// Gives every rank rank 0's statistics; with a `barrier` before, so that who arrives late is told apart.
    pub fn broadcast_buffers(&mut self, barrier: bool, state: &mut FlatState, times: &mut StepRecorder) -> Result<()> {
        match (self, &mut state.buffers) {
            (Exchange::Host(host), buffers) => {
                let wait = if barrier { host.communicator.barrier()? } else { 0.0 };
                let buffers = buffers.host_mut().as_mut_slice();
                let transfer = host.communicator.broadcast(Kind::Buffers, buffers)?;
                add_collective(times, Finished { wait, transfer }, true);
                Ok(())
            }
            (Exchange::Device(device), Flat::Device(buffers)) => device.broadcast(barrier, buffers, times),
            (Exchange::Device(_), Flat::Host(_)) => unreachable!("one memory for all"),
        }
    }

    /// Returns when nothing is under way any more. Error: a peer is gone.
    pub fn settle(&mut self) -> Result<()> {
        match self {
            Exchange::Host(_) => Ok(()),
            Exchange::Device(device) => device.collectives.finish(),
        }
    }
}

/// Through the host's memory.
pub(super) struct HostExchange {
    communicator: Arc<Communicator>,
    reducer: Arc<Reducer>,
    /// With `parallel.local_steps`; then gradients stay on their rank.
    local: Option<LocalSteps>,
    worker: Option<Worker>,
}

impl HostExchange {
    /// Whether gradients are summed over the ranks.
    fn reduces(&self) -> bool {
        self.communicator.size() > 1 && self.local.is_none()
    }

    fn ready(&mut self, bucket: &Bucket, last: bool, state: &mut FlatState, times: &mut StepRecorder) -> Result<()> {
        let mut region = || state.gradients.host_mut().region(bucket.elements.clone());
        match &mut self.worker {
            Some(worker) if !last => worker.all_reduce(region()),
            // The last bucket is reduced by the caller: nothing is left to compute that could hide it. So a model of one bucket
            // needs no thread, and its all-reduce no hand-over.
            Some(worker) => {
                let (finished, waited) = worker.wait()?;
                times.add(Part::CommExposed, waited);
                for one in finished {
                    add_collective(times, one, false);
                }
                add_collective(times, self.reducer.reduce(&mut region(), WaitPolicy::Spin)?, true);
            }
            None => {} // profile mode, or one bucket: `reduce_all` does it when the backward pass is over
        }
        Ok(())
    }

    fn reduce_all(&self, buckets: &[Bucket], state: &mut FlatState, times: &mut StepRecorder) -> Result<()> {
        for bucket in buckets {
            let mut region = state.gradients.host_mut().region(bucket.elements.clone());
            add_collective(times, self.reducer.reduce(&mut region, WaitPolicy::Spin)?, true);
        }
        Ok(())
    }
}

/// Out of a device's memory.
pub(super) struct DeviceExchange {
    collectives: DeviceCollectives,
    clock: Clock,
    /// Whether buckets are sent as soon as they are complete.
    overlaps: bool,
    /// What gradients are rounded to on the collectives.
    rounded: Option<tch::Kind>,
    /// Gradients whose rounded sums are under way: where they belong, and the sums.
    under_way: Vec<(Tensor, Tensor)>,
}

impl DeviceExchange {
    fn new(elements: usize, target: Target, communicator: Arc<Communicator>, plan: &Plan) -> Result<DeviceExchange> {
        let timing = plan.metrics.timing;
        let (algorithm, limit) = (plan.parallel.all_reduce, plan.launch.comm_timeout());
        let collectives = DeviceCollectives::new(communicator, target, algorithm, elements, limit)?;
        let rounded = match plan.parallel.compression {
            _ if collectives.communicator().size() == 1 => None,
            Compression::Bf16 => Some(tch::Kind::BFloat16),
            Compression::Fp16 => Some(tch::Kind::Half),
            Compression::None | Compression::Int8 | Compression::PowerSgd => None, // refused by Config::check_for_gpu
        };
        let overlaps = timing == Timing::Overlap && collectives.communicator().size() > 1;
        let clock = Clock::of(target, timing)?;
        Ok(DeviceExchange { collectives, clock, overlaps, rounded, under_way: Vec::new() })
    }

    fn bytes(&self, bucket: &Bucket) -> u64 {
        let element = self.rounded.map_or(size_of::<f32>(), tch::Kind::elt_size_in_bytes);
        (bucket.elements.len() * element) as u64
    }

    /// Begins to reduce a bucket.
    fn reduce(&mut self, bucket: &Bucket, state: &FlatState, times: &mut StepRecorder) -> Result<()> {
        let Flat::Device(gradients) = &state.gradients else { unreachable!("one memory for all") };
        let values = gradients.narrow(0, bucket.elements.start as i64, bucket.elements.len() as i64);
        let started = Instant::now();
        let span = match self.rounded {
            None => self.collectives.all_reduce(Kind::Gradients, &values)?,
            Some(kind) => {
                let sums = tch::no_grad(|| values.to_kind(kind));
                let span = self.collectives.all_reduce(Kind::Gradients, &sums)?;
                self.under_way.push((values, sums));
                span
            }
        };
        if self.collectives.is_through_host() && self.overlaps {
            times.add(Part::CommExposed, started.elapsed().as_secs_f64()); // it was waited for
        }
        add_span(times, span);
        Ok(())
    }

    fn finish(&mut self, buckets: &[Bucket], state: &FlatState, times: &mut StepRecorder) -> Result<()> {
        if self.collectives.communicator().size() == 1 {
            return Ok(());
        }
        if !self.overlaps {
            for bucket in buckets {
                self.barrier(times)?;
                let from = self.clock.now()?;
                self.reduce(bucket, state, times)?;
                self.collectives.join()?;
                times.since(Part::CommExposed, from, &self.clock)?;
            }
        } else {
            let from = self.clock.now()?;
            self.collectives.join()?;
            times.since(Part::CommExposed, from, &self.clock)?;
        }
        tch::no_grad(|| self.under_way.drain(..).for_each(|(mut values, sums)| values.copy_(&sums)));
        Ok(())
    }

    /// Until every rank has come and its device has done all that it was asked to.
    fn barrier(&mut self, times: &mut StepRecorder) -> Result<()> {
        self.clock.now()?; // profile mode: waits for the device
        let wait = self.collectives.communicator().barrier()?;
        times.add(Part::CommWait, wait);
        times.add(Part::CommExposed, wait);
        Ok(())
    }

    fn broadcast(&mut self, barrier: bool, buffers: &Tensor, times: &mut StepRecorder) -> Result<()> {
        if self.collectives.communicator().size() == 1 {
            return Ok(());
        }
        if barrier {
            self.barrier(times)?;
        }
        let from = self.clock.now()?;
        let span = self.collectives.broadcast(Kind::Buffers, buffers)?;
        self.collectives.join()?;
        times.since(Part::CommExposed, from, &self.clock)?;
        add_span(times, span);
        Ok(())
    }
}

/// Adds a collective of the host; `exposed`: nothing else was done meanwhile.
pub(super) fn add_collective(times: &mut StepRecorder, finished: Finished, exposed: bool) {
    times.add(Part::CommWait, finished.wait);
    times.add(Part::Comm, finished.transfer);
    if exposed {
        times.add(Part::CommExposed, finished.wait + finished.transfer);
    }
}

fn add_span(times: &mut StepRecorder, span: Span) {
    times.add(Part::CommWait, span.wait);
    times.span(Part::Comm, span.from, span.to);
}
