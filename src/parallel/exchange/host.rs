//! Exchange of a replica whose gradients are in host memory: through MPI or shared memory, on a thread of its own or by the
//! caller.

use std::sync::Arc;

use crate::collective::{AllReduce, Communicator, Finished, Region, WaitPolicy};
use crate::config::Plan;
use crate::device::{Message, StepRecorder};
use crate::error::Result;
use crate::metrics::{Kind, Part};
use crate::model::Model;
use crate::parallel::worker::Worker;
use crate::parallel::{Bucket, Flat, FlatState, LocalSteps, Reducer};
use crate::units::Bytes;

/// Exchange through host memory.
pub struct HostExchange {
    communicator: Arc<Communicator>,
    reducer: Arc<Reducer>,
    /// Set with `parallel.local_steps` above 1; gradients then stay on their rank.
    local: Option<LocalSteps>,
    worker: Option<Worker>,
}

impl HostExchange {
    /// Creates the exchange for the gradients of `model`, and the flat gradient buffer.
    pub fn new(model: &Model, communicator: Arc<Communicator>, plan: &Plan) -> Result<(HostExchange, Flat)> {
        let all_reduce = Arc::new(AllReduce::new(communicator.clone(), &plan.parallel)?);
        let gradients = Flat::Host(all_reduce.buffer(model.parameter_count())?);
        let reducer = Arc::new(Reducer::new(all_reduce.clone(), model, &plan.parallel, plan.run.seed)?);
        let local = LocalSteps::new(all_reduce, plan.parallel.local_steps);
        Ok((HostExchange { communicator, reducer, local, worker: None }, gradients))
    }

    /// The local-SGD state, with `parallel.local_steps` above 1.
    pub fn local(&mut self) -> Option<&mut LocalSteps> {
        self.local.as_mut()
    }

    /// Whether gradients stay on their rank (local SGD).
    pub fn is_local(&self) -> bool {
        self.local.is_some()
    }

    /// Bytes that the ledger counts for all-reducing `bucket`.
    pub fn bytes(&self, bucket: &Bucket) -> u64 {
        if self.is_local() { 0 } else { self.reducer.bytes(&bucket.elements) }
    }

    /// Starts the communication thread.
    pub fn overlap(&mut self) -> Result<()> {
        self.communicator.may_change_threads()?;
        // `Sleep`: a collective that spins for a slower rank would take half of the core from the backward pass that this rank
        // still computes.
        let reducer = self.reducer.clone();
        self.worker = Some(Worker::start(move |region: &mut Region| reducer.reduce(region, WaitPolicy::Sleep)));
        Ok(())
    }

    /// Whether the communication thread runs.
    pub fn overlaps(&self) -> bool {
        self.worker.is_some()
    }

    /// Compression state carried from step to step, by name.
    pub fn state(&self) -> Vec<(String, Vec<f32>)> {
        self.reducer.state()
    }

    /// Restores what [`state`](Self::state) returned after `steps` steps.
    pub fn restore(&self, saved: &[(String, Vec<f32>)], steps: usize) -> Result<(), String> {
        self.reducer.steps_done(steps);
        self.reducer.restore(saved)
    }

    /// Whether gradients are summed over the ranks.
    fn reduces(&self) -> bool {
        self.communicator.size() > 1 && self.local.is_none()
    }

    /// Reduces `bucket` here and now.
    fn reduce(&self, bucket: &Bucket, state: &mut FlatState, times: &mut StepRecorder) -> Result<()> {
        let mut region = state.gradients.host_mut().region(bucket.elements.clone());
        let (finished, bytes) = self.reducer.reduce(&mut region, WaitPolicy::Spin)?;
        times.collective(&finished, Message { bucket: Some(bucket.number), bytes }, true);
        Ok(())
    }

    /// Has the communication thread reduce a bucket whose gradients are complete.
    pub fn enqueue(&mut self, bucket: &Bucket, state: &mut FlatState) {
        if self.reduces()
            && let Some(worker) = &mut self.worker
        {
            worker.all_reduce(state.gradients.host_mut().region(bucket.elements.clone()), bucket.number);
        }
    }

    /// Reduces a bucket after the backward pass; `last`: it is the last one of the step.
    pub fn ready(
        &mut self,
        bucket: &Bucket,
        last: bool,
        state: &mut FlatState,
        times: &mut StepRecorder,
    ) -> Result<()> {
        if !self.reduces() {
            return Ok(());
        }
        times.ready(bucket.number, None);
        if !last {
            self.enqueue(bucket, state);
            return Ok(());
        }
        let Some(worker) = &mut self.worker else {
            return Ok(()); // profile mode, or one bucket: `finish` does it after the backward pass
        };
        // The caller reduces the last bucket: no computation is left to hide it. So a model of one bucket needs no thread, and
        // its all-reduce no hand-over.
        if !worker.is_idle() {
            let waiting = times.begin(Part::CommExposed)?;
            let finished = worker.wait()?;
            times.end(waiting)?;
            finished.iter().for_each(|(finished, message)| times.collective(finished, *message, false));
        }
        self.reduce(bucket, state, times)
    }

    /// Reduces the buckets left for after the backward pass.
    pub fn finish(&self, buckets: &[Bucket], state: &mut FlatState, times: &mut StepRecorder) -> Result<()> {
        let left = if self.reduces() && self.worker.is_none() { buckets } else { &[] };
        for bucket in left {
            self.reduce(bucket, state, times)?;
        }
        self.reducer.steps_done(1);
        Ok(())
    }

    /// Broadcasts rank 0's batch-norm statistics; a `barrier` before separates waiting for late ranks from the transfer.
    pub fn broadcast(&self, barrier: bool, buffers: &mut Flat, times: &mut StepRecorder) -> Result<()> {
        if self.communicator.size() == 1 {
            return Ok(());
        }
        let buffers = buffers.host_mut().as_mut_slice();
        let message = Message { bucket: None, bytes: size_of_val(buffers) as Bytes };
        let finished = Finished::of(|waits| {
            if barrier {
                waits.time(|| self.communicator.barrier())?;
            }
            self.communicator.broadcast(Kind::Buffers, buffers).map(drop)
        })?;
        times.collective(&finished, message, true);
        Ok(())
    }
}
