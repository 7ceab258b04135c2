//! Exchange of a replica whose gradients are in host memory: through MPI or shared memory, on a thread of its own or by the
//! caller.

use std::sync::Arc;

use super::add_collective;
use crate::collective::{AllReduce, Communicator, Finished, Region, WaitPolicy};
use crate::config::Plan;
use crate::device::StepRecorder;
use crate::error::Result;
use crate::metrics::{Kind, Part};
use crate::model::Model;
use crate::parallel::worker::Worker;
use crate::parallel::{Bucket, Flat, FlatState, LocalSteps, Reducer};

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
        let all_reduce = Arc::new(AllReduce::new(communicator.clone(), plan.parallel.all_reduce)?);
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

    /// Has the communication thread reduce a bucket whose gradients are complete.
    pub fn enqueue(&mut self, bucket: &Bucket, state: &mut FlatState) -> Result<()> {
        if self.reduces()
            && let Some(worker) = &mut self.worker
        {
            worker.all_reduce(state.gradients.host_mut().region(bucket.elements.clone()));
        }
        Ok(())
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
        if !last {
            return self.enqueue(bucket, state);
        }
        let Some(worker) = &mut self.worker else {
            return Ok(()); // profile mode, or one bucket: `finish` does it after the backward pass
        };
        // The caller reduces the last bucket: no computation is left to hide it. So a model of one bucket needs no thread, and
        // its all-reduce no hand-over.
        let (finished, waited) = worker.wait()?;
        times.add(Part::CommExposed, waited);
        for one in finished {
            add_collective(times, one, false);
        }
        let mut region = state.gradients.host_mut().region(bucket.elements.clone());
        add_collective(times, self.reducer.reduce(&mut region, WaitPolicy::Spin)?, true);
        Ok(())
    }

    /// Reduces the buckets left for after the backward pass.
    pub fn finish(&self, buckets: &[Bucket], state: &mut FlatState, times: &mut StepRecorder) -> Result<()> {
        let left = if self.reduces() && self.worker.is_none() { buckets } else { &[] };
        for bucket in left {
            let mut region = state.gradients.host_mut().region(bucket.elements.clone());
            add_collective(times, self.reducer.reduce(&mut region, WaitPolicy::Spin)?, true);
        }
        self.reducer.steps_done(1);
        Ok(())
    }

    /// Broadcasts rank 0's batch-norm statistics; a `barrier` before separates waiting for late ranks from the transfer.
    pub fn broadcast(&self, barrier: bool, buffers: &mut Flat, times: &mut StepRecorder) -> Result<()> {
        let wait = if barrier { self.communicator.barrier()? } else { 0.0 };
        let transfer = self.communicator.broadcast(Kind::Buffers, buffers.host_mut().as_mut_slice())?;
        add_collective(times, Finished { wait, transfer }, true);
        Ok(())
    }
}
