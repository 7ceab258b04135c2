//! Collectives on a device's memory, in the order in which they are enqueued: by NCCL on a stream of its own, or through
//! host memory where there is no NCCL.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tch::Tensor;

use super::nccl::Nccl;
use super::progress::{self, Inside};
use super::traffic::Collective;
use super::{AllReduce, Communicator, Finished, HostBuffer, WaitPolicy};
use crate::config::{Algorithm, Parallel};
use crate::device::{Moment, Target, seconds_between};
use crate::error::Result;
use crate::metrics::Kind;
use crate::sys::gpu::{Event, Stream};
use crate::units::{Bytes, Second};

/// Poll interval while collectives are in flight.
const POLL: Duration = Duration::from_micros(50);
/// Interval between two queries of NCCL for asynchronous errors, such as a lost peer.
const ERROR_POLL: Duration = Duration::from_millis(100);

/// Collectives on tensors of a device. All ranks call its methods in the same order.
pub struct DeviceCollectives {
    ranks: Arc<Communicator>,
    way: Way,
}

enum Way {
    Nccl(NcclStream),
    Host { all_reduce: Box<AllReduce>, buffer: HostBuffer },
}

/// NCCL on a stream beside the one that tensors are computed on.
struct NcclStream {
    nccl: Nccl,
    compute: Stream,
    own: Stream,
    /// Collectives that are enqueued and not known to be complete, oldest first.
    in_flight: VecDeque<InFlight>,
    /// Time of the last query for asynchronous errors.
    errors_polled: Instant,
}

struct InFlight {
    kind: Kind,
    collective: Collective,
    bytes: usize,
    from: Event,
    to: Event,
    _inside: Inside,
}

/// Times of a collective that may still be in flight.
pub enum Span {
    /// Complete, through host memory; with the copies between it and the device.
    Host(Finished),
    /// From its start on the device, which contains the wait for slower ranks, to its end.
    Device(Moment, Moment),
}

impl Span {
    /// Seconds of the collective with the wait for slower ranks, without the copies to host memory before it. Waits for its end.
    ///
    /// # Errors
    /// Returns [`Error::Gpu`](crate::error::Error::Gpu) if the GPU has failed.
    pub fn seconds(&self) -> Result<Second> {
        match self {
            Span::Host(finished) => Ok(finished.seconds()),
            Span::Device(from, to) => seconds_between(from, to),
        }
    }
}

impl DeviceCollectives {
    /// Collectives over `ranks`, of which this one computes on `target`, for buffers of at most `elements` float32. NCCL carries
    /// them if every rank has a GPU of its own and `parallel.all_reduce` is `auto`. A collective.
    ///
    /// # Errors
    /// Returns an error if NCCL is missing or fails, if the ranks have not met within `limit`, or if MPI reports a failure.
    pub fn new(
        ranks: Arc<Communicator>,
        target: Target,
        parallel: &Parallel,
        elements: usize,
        limit: Duration,
    ) -> Result<DeviceCollectives> {
        let way = match target {
            Target::Gpu { index, .. } if ranks.size() > 1 && !Self::go_through_host(target, parallel.all_reduce) => {
                let (compute, own) = (Stream::of_tensors(index)?, Stream::urgent(index)?);
                let nccl = Nccl::start(&ranks, limit)?;
                let (in_flight, errors_polled) = (VecDeque::new(), Instant::now());
                Way::Nccl(NcclStream { nccl, compute, own, in_flight, errors_polled })
            }
            _ => {
                let all_reduce = Box::new(AllReduce::new(ranks.clone(), parallel)?);
                let buffer = all_reduce.buffer(elements)?;
                Way::Host { all_reduce, buffer }
            }
        };
        Ok(DeviceCollectives { ranks, way })
    }

    /// Whether ranks with this `target` communicate through host memory instead of NCCL.
    pub fn go_through_host(target: Target, algorithm: Algorithm) -> bool {
        match target {
            // NCCL refuses two ranks on one GPU unless they seem to be on different hosts.
            Target::Gpu { shared: true, .. } if std::env::var_os("NCCL_HOSTID").is_none() => true,
            Target::Gpu { .. } => algorithm != Algorithm::Auto,
            Target::Cpu | Target::Emulated => true,
        }
    }

    /// The communicator whose ranks take part.
    pub fn communicator(&self) -> &Communicator {
        &self.ranks
    }

    /// Whether every call copies through host memory, and returns only when the collective is complete.
    pub fn is_through_host(&self) -> bool {
        matches!(self.way, Way::Host { .. })
    }

    /// Enqueues the sum of `values` (contiguous, on the device) over the ranks, after the work that computes them.
    ///
    /// # Errors
    /// Returns an error if a peer is lost or the GPU has failed.
    pub fn all_reduce(&mut self, kind: Kind, values: &Tensor) -> Result<Span> {
        self.all_reduce_into(kind, values, values)
    }

    /// The present moment in the order of the device's work, for [`all_reduce_after`](Self::all_reduce_after); `None` where every
    /// call waits for the device.
    ///
    /// # Errors
    /// Returns [`Error::Gpu`](crate::error::Error::Gpu) if the GPU has failed.
    pub fn moment(&self) -> Result<Option<Event>> {
        match &self.way {
            Way::Nccl(stream) => stream.compute.event().map(Some),
            Way::Host { .. } => Ok(None),
        }
    }

    /// Enqueues the sum of `values` (contiguous, on the device) over the ranks, after the work before `moment`.
    ///
    /// # Errors
    /// Returns an error if a peer is lost or the GPU has failed.
    pub fn all_reduce_after(&mut self, moment: Option<&Event>, kind: Kind, values: &Tensor) -> Result<Span> {
        let (Way::Nccl(stream), Some(moment)) = (&mut self.way, moment) else {
            return self.all_reduce(kind, values);
        };
        stream.enqueue(kind, Collective::AllReduce, values, values, moment)
    }

    /// Enqueues the sum of `source` over the ranks into `target`, of equal length and kind; both are contiguous, on the device.
    ///
    /// # Errors
    /// Returns an error if a peer is lost or the GPU has failed.
    pub fn all_reduce_into(&mut self, kind: Kind, source: &Tensor, target: &Tensor) -> Result<Span> {
        match &mut self.way {
            Way::Nccl(_) => self.enqueue(Collective::AllReduce, kind, source, target),
            Way::Host { all_reduce, buffer } => {
                let mut region = buffer.region(0..source.numel());
                source.copy_data(region.as_mut_slice(), source.numel());
                let mut finished = all_reduce.reduce(kind, &mut region, WaitPolicy::Spin)?;
                tch::no_grad(|| target.shallow_clone().copy_(&Tensor::from_slice(region.as_slice())));
                finished.done = Instant::now();
                Ok(Span::Host(finished))
            }
        }
    }

    /// Enqueues a `collective` of `source` into `target`, contiguous on the device, by NCCL: the source of an all-gather and the
    /// target of a reduce-scatter are one part of the other, everything else is equally long.
    ///
    /// # Errors
    /// Returns an error if a peer is lost or the GPU has failed.
    ///
    /// # Panics
    /// Panics if the collectives [go through host memory](Self::is_through_host).
    pub fn enqueue(&mut self, collective: Collective, kind: Kind, source: &Tensor, target: &Tensor) -> Result<Span> {
        self.poll()?;
        let Way::Nccl(stream) = &mut self.way else { panic!("{} through host memory", collective.as_str()) };
        let now = stream.compute.event()?;
        stream.enqueue(kind, collective, source, target, &now)
    }

    /// Enqueues the broadcast of rank 0's `values` to every rank.
    ///
    /// # Errors
    /// Returns an error if a peer is lost or the GPU has failed.
    pub fn broadcast(&mut self, kind: Kind, values: &Tensor) -> Result<Span> {
        match &mut self.way {
            Way::Nccl(_) => self.enqueue(Collective::Broadcast, kind, values, values),
            Way::Host { .. } => {
                let mut copy = vec![0f32; values.numel()];
                values.copy_data(&mut copy, values.numel());
                let finished = Finished::of(|_| {
                    self.ranks.broadcast(kind, &mut copy)?;
                    tch::no_grad(|| values.shallow_clone().copy_(&Tensor::from_slice(&copy)));
                    Ok(())
                })?;
                Ok(Span::Host(finished))
            }
        }
    }

    /// Makes all later work of the compute stream wait for the collectives in flight; the host does not wait.
    ///
    /// # Errors
    /// Returns [`Error::Gpu`](crate::error::Error::Gpu) if the GPU has failed.
    pub fn join(&mut self) -> Result<()> {
        match &self.way {
            Way::Nccl(NcclStream { compute, in_flight, .. }) => {
                in_flight.back().map_or(Ok(()), |last| compute.wait_for(&last.to))
            }
            Way::Host { .. } => Ok(()),
        }
    }

    /// Waits until all collectives in flight are complete.
    ///
    /// # Errors
    /// Returns an error if a peer is lost or the GPU has failed.
    pub fn finish(&mut self) -> Result<()> {
        while self.poll()? {
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Counts completed collectives, and checks that no peer is lost; returns whether any collective is still in flight. Called
    /// with every collective, so that the watchdog sees this rank's progress.
    fn poll(&mut self) -> Result<bool> {
        let Way::Nccl(NcclStream { nccl, in_flight, errors_polled, .. }) = &mut self.way else { return Ok(false) };
        while let Some(first) = in_flight.front() {
            if !first.to.is_complete()? {
                break;
            }
            let (bytes, seconds) = (first.bytes, first.to.since(&first.from)?);
            let sent = first.collective.sent(self.ranks.size(), bytes);
            self.ranks.record(first.kind, bytes as Bytes, sent, seconds);
            in_flight.pop_front();
        }
        if errors_polled.elapsed() > ERROR_POLL {
            *errors_polled = Instant::now();
            nccl.check_peers()?;
        }
        Ok(!in_flight.is_empty())
    }
}

impl Drop for DeviceCollectives {
    fn drop(&mut self) {
        // NCCL's communicator may only be destroyed when nothing is in flight on it; a failure was reported where it was seen.
        let _ = self.finish();
    }
}

impl NcclStream {
    /// Enqueues a collective on NCCL's stream, after the work of the compute stream before the event `after`.
    fn enqueue(
        &mut self,
        kind: Kind,
        collective: Collective,
        source: &Tensor,
        target: &Tensor,
        after: &Event,
    ) -> Result<Span> {
        let bytes = source.numel() * source.kind().elt_size_in_bytes();
        self.own.wait_for(after)?;
        let inside = progress::enter(kind, bytes);
        let from = self.own.event()?;
        // SAFETY: flat buffers live as long as the training, whose next use of them waits for the stream (`join`).
        unsafe { self.nccl.enqueue(collective, source, target, &self.own) }?;
        let to = self.own.event()?;
        let span = Span::Device(Moment::Gpu(from.clone()), Moment::Gpu(to.clone()));
        self.in_flight.push_back(InFlight { kind, collective, bytes, from, to, _inside: inside });
        Ok(span)
    }
}
