//! Exchange of a replica whose gradients are in device memory: by NCCL, or through host memory.

use std::sync::Arc;

use tch::Tensor;

use crate::collective::{Communicator, DeviceCollectives, Finished, Span};
use crate::config::{Compression, Plan, Timing};
use crate::device::{Clock, Message, Moment, StepRecorder, Target};
use crate::error::Result;
use crate::metrics::{Kind, Part};
use crate::parallel::{Bucket, Flat, FlatState};
use crate::sys::gpu::Event;
use crate::units::Bytes;

/// Exchange from device memory.
pub struct DeviceExchange {
    collectives: DeviceCollectives,
    clock: Clock,
    /// Whether each bucket is sent as soon as it is complete.
    overlaps: bool,
    /// Type that gradients are rounded to for the collectives.
    rounded: Option<tch::Kind>,
    /// Buckets that the backward pass under way has completed, in the order of their all-reduces.
    completed: Vec<Complete>,
    /// Gradients whose rounded sums are in flight: (destination, sums).
    under_way: Vec<(Tensor, Tensor)>,
}

/// A bucket whose gradients are enqueued.
struct Complete {
    message: Message,
    /// Gradients, contiguous.
    values: Tensor,
    /// Gradients rounded for the collective, if they are.
    sums: Option<Tensor>,
    /// Moment in the order of the device's work when they are complete; `None` where the host waits for them.
    at: Option<Event>,
}

impl DeviceExchange {
    /// Creates the exchange for `elements` gradients in the memory of `target`.
    pub fn new(
        elements: usize,
        target: Target,
        communicator: Arc<Communicator>,
        plan: &Plan,
    ) -> Result<DeviceExchange> {
        let timing = plan.metrics.timing;
        let (parallel, limit) = (&plan.parallel, plan.launch.comm_timeout());
        let collectives = DeviceCollectives::new(communicator, target, parallel, elements, limit)?;
        let rounded = match plan.parallel.compression {
            _ if collectives.communicator().size() == 1 => None,
            Compression::Bf16 => Some(tch::Kind::BFloat16),
            Compression::Fp16 => Some(tch::Kind::Half),
            Compression::None | Compression::Int8 | Compression::PowerSgd => None, // refused by Config::check_for_gpu
        };
        let overlaps = timing == Timing::Overlap && collectives.communicator().size() > 1;
        let clock = Clock::of(target, timing)?;
        Ok(DeviceExchange { collectives, clock, overlaps, rounded, completed: Vec::new(), under_way: Vec::new() })
    }

    /// Whether collectives progress while the caller computes.
    pub fn overlaps(&self) -> bool {
        self.overlaps && !self.collectives.is_through_host()
    }

    /// Bytes that the ledger counts for all-reducing `bucket`.
    pub fn bytes(&self, bucket: &Bucket) -> u64 {
        let element = self.rounded.map_or(size_of::<f32>(), tch::Kind::elt_size_in_bytes);
        (bucket.elements.len() * element) as u64
    }

    /// Marks a bucket as complete at this place of the backward pass, whose host part goes on: [`ready`](Self::ready) enqueues the
    /// all-reduce, which starts as soon as the device has come here.
    pub fn enqueue(&mut self, bucket: &Bucket, state: &FlatState, times: &mut StepRecorder) -> Result<()> {
        if self.overlaps {
            let complete = self.complete(bucket, state, times)?;
            self.completed.push(complete);
        }
        Ok(())
    }

    /// Enqueues the all-reduces of the marked buckets, then that of `bucket`, after the backward pass.
    pub fn ready(&mut self, bucket: &Bucket, state: &FlatState, times: &mut StepRecorder) -> Result<()> {
        if !self.overlaps {
            return Ok(());
        }
        for complete in std::mem::take(&mut self.completed) {
            self.reduce(complete, times)?;
        }
        let complete = self.complete(bucket, state, times)?;
        self.reduce(complete, times)
    }

    fn complete(&self, bucket: &Bucket, state: &FlatState, times: &mut StepRecorder) -> Result<Complete> {
        let Flat::Device(gradients) = &state.gradients else { unreachable!("one memory for all") };
        let values = gradients.narrow(0, bucket.elements.start as i64, bucket.elements.len() as i64);
        let sums = self.rounded.map(|kind| tch::no_grad(|| values.to_kind(kind)));
        let at = self.collectives.moment()?;
        times.ready(bucket.number, at.clone().map(Moment::Gpu));
        let message = Message { bucket: Some(bucket.number), bytes: self.bytes(bucket) };
        Ok(Complete { message, values, sums, at })
    }

    /// Enqueues the all-reduce of a bucket.
    fn reduce(&mut self, complete: Complete, times: &mut StepRecorder) -> Result<()> {
        let Complete { message, values, sums, at } = complete;
        let span = self.collectives.all_reduce_after(at.as_ref(), Kind::Gradients, sums.as_ref().unwrap_or(&values))?;
        if let Some(sums) = sums {
            self.under_way.push((values, sums));
        }
        // In profile mode the caller times the exposed part with the work before.
        add_span(times, span, message, self.overlaps);
        Ok(())
    }

    /// Reduces the buckets left for after the backward pass, and waits for the collectives in flight.
    pub fn finish(&mut self, buckets: &[Bucket], state: &FlatState, times: &mut StepRecorder) -> Result<()> {
        if self.collectives.communicator().size() == 1 {
            return Ok(());
        }
        if !self.overlaps {
            for bucket in buckets {
                self.barrier(times)?;
                let exposed = times.begin(Part::CommExposed)?;
                let complete = self.complete(bucket, state, times)?;
                self.reduce(complete, times)?;
                self.collectives.join()?;
                times.end(exposed)?;
            }
        } else {
            let exposed = times.begin(Part::CommExposed)?;
            self.collectives.join()?;
            times.end(exposed)?;
        }
        tch::no_grad(|| self.under_way.drain(..).for_each(|(mut values, sums)| values.copy_(&sums)));
        Ok(())
    }

    /// Waits until every rank is here and its device has completed all enqueued work.
    fn barrier(&mut self, times: &mut StepRecorder) -> Result<()> {
        self.clock.now()?; // profile mode: waits for the device
        let finished = Finished::of(|waits| waits.time(|| self.collectives.communicator().barrier()).map(drop))?;
        times.collective(&finished, Message::default(), true);
        Ok(())
    }

    /// Broadcasts rank 0's batch-norm statistics; a `barrier` before separates waiting for late ranks from the transfer.
    pub fn broadcast(&mut self, barrier: bool, buffers: &Flat, times: &mut StepRecorder) -> Result<()> {
        let Flat::Device(buffers) = buffers else { unreachable!("one memory for all") };
        if self.collectives.communicator().size() == 1 {
            return Ok(());
        }
        if barrier {
            self.barrier(times)?;
        }
        let exposed = times.begin(Part::CommExposed)?;
        let span = self.collectives.broadcast(Kind::Buffers, buffers)?;
        self.collectives.join()?;
        times.end(exposed)?;
        let message = Message { bucket: None, bytes: (buffers.numel() * size_of::<f32>()) as Bytes };
        add_span(times, span, message, false);
        Ok(())
    }

    /// Returns when no collective is in flight.
    pub fn settle(&mut self) -> Result<()> {
        self.collectives.finish()
    }
}

/// Adds a collective to `times`; `exposed`: the caller waited for it, if it went through host memory.
fn add_span(times: &mut StepRecorder, span: Span, message: Message, exposed: bool) {
    match span {
        Span::Host(finished) => times.collective(&finished, message, exposed),
        Span::Device(from, to) => times.transfer(from, to, message),
    }
}
