//! Transport of gradient buckets and batch-norm statistics between ranks: during the backward pass or after it, from host or
//! from device memory.

mod device;
mod host;

use std::sync::Arc;

use super::{Bucket, Flat, FlatState, LocalSteps};
use crate::collective::Communicator;
use crate::config::Plan;
use crate::device::{StepRecorder, Target};
use crate::error::Result;
use crate::model::Model;
use device::DeviceExchange;
use host::HostExchange;

/// The exchange of a replica, by the memory its gradients are in. All ranks call its methods together.
pub(super) enum Exchange {
    Host(HostExchange),
    Device(Box<DeviceExchange>),
}

impl Exchange {
    /// Creates the exchange for the gradients of `model`, and the flat gradient buffer in the memory it reduces from.
    ///
    /// # Errors
    /// The buffers cannot be allocated or the collectives cannot be set up.
    pub fn new(
        model: &Model,
        target: Target,
        communicator: &Arc<Communicator>,
        plan: &Plan,
    ) -> Result<(Exchange, Flat)> {
        let Some(device) = target.own_memory() else {
            let (exchange, gradients) = HostExchange::new(model, communicator.clone(), plan)?;
            return Ok((Exchange::Host(exchange), gradients));
        };
        let elements = model.parameter_count();
        let exchange = DeviceExchange::new(elements, target, communicator.clone(), plan)?;
        Ok((Exchange::Device(Box::new(exchange)), Flat::zeros(elements, Some(device))))
    }

    /// The local-SGD state, with `parallel.local_steps` above 1.
    pub fn local(&mut self) -> Option<&mut LocalSteps> {
        match self {
            Exchange::Host(host) => host.local(),
            Exchange::Device(_) => None,
        }
    }

    /// Whether gradients stay on their rank (local SGD).
    pub fn is_local(&self) -> bool {
        matches!(self, Exchange::Host(host) if host.is_local())
    }

    /// Bytes that the ledger counts for all-reducing `buckets`.
    pub fn bytes(&self, buckets: &[Bucket]) -> u64 {
        match self {
            Exchange::Host(host) => buckets.iter().map(|bucket| host.bytes(bucket)).sum(),
            Exchange::Device(device) => buckets.iter().map(|bucket| device.bytes(bucket)).sum(),
        }
    }

    /// Starts the communication thread, so that collectives overlap the backward pass. Device collectives need none.
    ///
    /// # Errors
    /// The MPI library does not let a second thread call it.
    pub fn overlap(&mut self) -> Result<()> {
        match self {
            Exchange::Host(host) => host.overlap(),
            Exchange::Device(_) => Ok(()),
        }
    }

    /// Whether a bucket's collective progresses while the caller computes.
    pub fn overlaps(&self) -> bool {
        match self {
            Exchange::Host(host) => host.overlaps(),
            Exchange::Device(device) => device.overlaps(),
        }
    }

    /// Compression state carried from step to step, by name.
    pub fn state(&self) -> Vec<(String, Vec<f32>)> {
        match self {
            Exchange::Host(host) => host.state(),
            Exchange::Device(_) => Vec::new(),
        }
    }

    /// Restores what [`state`](Self::state) returned after `steps` steps.
    ///
    /// # Errors
    /// `saved` does not fit the configured compression; the text says how.
    pub fn restore(&self, saved: &[(String, Vec<f32>)], steps: usize) -> Result<(), String> {
        match self {
            Exchange::Host(host) => host.restore(saved, steps),
            Exchange::Device(_) if saved.is_empty() => Ok(()),
            Exchange::Device(_) => Err("compression state, expected none".into()),
        }
    }

    /// Hands over a bucket whose gradients are complete while the backward pass goes on; the pass need not wait for anything.
    ///
    /// # Errors
    /// The device has failed.
    pub fn enqueue(&mut self, bucket: &Bucket, state: &mut FlatState, times: &mut StepRecorder) -> Result<()> {
        match self {
            Exchange::Host(host) => {
                times.ready(bucket.number, None);
                host.enqueue(bucket, state);
                Ok(())
            }
            Exchange::Device(device) => device.enqueue(bucket, state, times),
        }
    }

    /// Hands over a bucket after the backward pass; `last`: it is the last one of the step.
    pub fn ready(
        &mut self,
        bucket: &Bucket,
        last: bool,
        state: &mut FlatState,
        times: &mut StepRecorder,
    ) -> Result<()> {
        match self {
            Exchange::Host(host) => host.ready(bucket, last, state, times),
            Exchange::Device(device) => device.ready(bucket, state, times),
        }
    }

    /// Reduces the buckets left for after the backward pass, and waits for the collectives in flight.
    pub fn finish(&mut self, buckets: &[Bucket], state: &mut FlatState, times: &mut StepRecorder) -> Result<()> {
        match self {
            Exchange::Host(host) => host.finish(buckets, state, times),
            Exchange::Device(device) => device.finish(buckets, state, times),
        }
    }

    /// Broadcasts rank 0's batch-norm statistics; a `barrier` before separates waiting for late ranks from the transfer.
    pub fn broadcast_buffers(&mut self, barrier: bool, state: &mut FlatState, times: &mut StepRecorder) -> Result<()> {
        match self {
            Exchange::Host(host) => host.broadcast(barrier, &mut state.buffers, times),
            Exchange::Device(device) => device.broadcast(barrier, &state.buffers, times),
        }
    }

    /// Returns when no collective is in flight.
    ///
    /// # Errors
    /// A peer is gone.
    pub fn settle(&mut self) -> Result<()> {
        match self {
            Exchange::Host(_) => Ok(()),
            Exchange::Device(device) => device.settle(),
        }
    }
}
