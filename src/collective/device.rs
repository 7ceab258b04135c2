//! Collectives on a device's memory, in the order in which they are asked for: by NCCL on a stream of its own, or through
//! host memory where there is no NCCL.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tch::Tensor;

use super::nccl::Nccl;
use super::progress::{self, Inside};
use super::traffic::Collective;
use super::{AllReduce, Communicator, HostBuffer, WaitPolicy};
use crate::config::Algorithm;
use crate::device::{Moment, Target};
use crate::error::Result;
use crate::metrics::Kind;
use crate::sys::gpu::{Event, Stream};
use crate::units::{Bytes, Second};

/// Between two looks at what is not over yet.
const LOOK: Duration = Duration::from_micros(50);
/// Between two questions to NCCL whether a peer is gone.
const ASK: Duration = Duration::from_millis(100);

/// Collectives on tensors of a device. All ranks call its methods in the same order.
pub struct DeviceCollectives {
    ranks: Arc<Communicator>,
    way: Way,
}

enum Way {
    Nccl(NcclStream),
    Host { all_reduce: Box<AllReduce>, buffer: HostBuffer },
}

/// NCCL beside the stream that tensors are computed on.
struct NcclStream {
    nccl: Nccl,
    compute: Stream,
    own: Stream,
    /// Begun, and not seen to be over.
    begun: VecDeque<Begun>,
    /// When NCCL was asked last whether a peer is gone.
    asked: Instant,
}

struct Begun {
    kind: Kind,
    collective: Collective,
    bytes: usize,
    from: Event,
    to: Event,
    _inside: Inside,
}

/// A collective that may not be over: seconds spent waiting for slower ranks, as far as they can be told apart, and when it
/// began and ended.
pub struct Span {
    /// Until every rank had come.
    pub wait: Second,
    /// From then.
    pub from: Moment,
    /// To then.
    pub to: Moment,
}

impl DeviceCollectives {
    /// Over `ranks`, of which this one has `target`; buffers of at most `elements` float32. A GPU of its own and `algorithm`
    /// auto: NCCL, whose ranks must meet within `limit`.
    pub fn new(
        ranks: Arc<Communicator>,
        target: Target,
        algorithm: Algorithm,
        elements: usize,
        limit: Duration,
    ) -> Result<DeviceCollectives> {
        let way = match target {
            Target::Gpu { index, .. } if ranks.size() > 1 && !Self::go_through_host(target, algorithm) => {
                let (compute, own) = (Stream::of_tensors(index)?, Stream::urgent(index)?);
                let nccl = Nccl::start(&ranks, limit)?;
                Way::Nccl(NcclStream { nccl, compute, own, begun: VecDeque::new(), asked: Instant::now() })
            }
            _ => {
                let all_reduce = Box::new(AllReduce::new(ranks.clone(), algorithm)?);
                let buffer = all_reduce.buffer(elements)?;
                Way::Host { all_reduce, buffer }
            }
        };
        Ok(DeviceCollectives { ranks, way })
    }

    /// Whether what ranks with such a `target` send each other goes through the host's memory instead of NCCL.
    pub fn go_through_host(target: Target, algorithm: Algorithm) -> bool {
        match target {
            // NCCL refuses two ranks on one GPU unless they seem to be on different hosts.
            Target::Gpu { shared: true, .. } if std::env::var_os("NCCL_HOSTID").is_none() => true,
            Target::Gpu { .. } => algorithm != Algorithm::Auto,
            Target::Cpu | Target::Emulated => true,
        }
    }

    /// The ranks that it is over.
    pub fn communicator(&self) -> &Communicator {
        &self.ranks
    }

    /// Whether the numbers go through the host's memory, for which each call waits.
    pub fn is_through_host(&self) -> bool {
        matches!(self.way, Way::Host { .. })
    }

    /// Begins to sum `values` (contiguous, on the device) over the ranks, once the device has computed them.
    pub fn all_reduce(&mut self, kind: Kind, values: &Tensor) -> Result<Span> {
        self.all_reduce_into(kind, values, values)
    }

    /// The same into `target`, of the same length and kind.
    pub fn all_reduce_into(&mut self, kind: Kind, source: &Tensor, target: &Tensor) -> Result<Span> {
        self.watch()?;
        match &mut self.way {
            Way::Nccl(lane) => lane.begin(kind, Collective::AllReduce, source, target),
            Way::Host { all_reduce, buffer } => {
                let mut region = buffer.region(0..source.numel());
                source.copy_data(region.as_mut_slice(), source.numel());
                let waiting = Instant::now();
                let wait = all_reduce.reduce(kind, &mut region, WaitPolicy::Spin)?.wait;
                tch::no_grad(|| target.shallow_clone().copy_(&Tensor::from_slice(region.as_slice())));
                let from = waiting + Duration::from_secs_f64(wait);
                Ok(Span { wait, from: Moment::Host(from), to: Moment::Host(Instant::now().max(from)) })
            }
        }
    }

    /// Begins to give every rank rank 0's `values`.
    pub fn broadcast(&mut self, kind: Kind, values: &Tensor) -> Result<Span> {
        self.watch()?;
        match &mut self.way {
            Way::Nccl(lane) => lane.begin(kind, Collective::Broadcast, values, values),
            Way::Host { .. } => {
                let mut copy = vec![0f32; values.numel()];
                values.copy_data(&mut copy, values.numel());
                let from = Instant::now();
                self.ranks.broadcast(kind, &mut copy)?;
                tch::no_grad(|| values.shallow_clone().copy_(&Tensor::from_slice(&copy)));
                Ok(Span { wait: 0.0, from: Moment::Host(from), to: Moment::Host(Instant::now()) })
            }
        }
    }

    /// What the device computes from now on waits for all that was begun.
    pub fn join(&mut self) -> Result<()> {
        match &self.way {
            Way::Nccl(NcclStream { compute, begun, .. }) => {
                begun.back().map_or(Ok(()), |last| compute.wait_for(&last.to))
            }
            Way::Host { .. } => Ok(()),
        }
    }

    /// Returns when all that was begun is over. Error: a peer is gone, or the GPU has failed.
    pub fn finish(&mut self) -> Result<()> {
        while self.watch()? {
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Counts what is over, and asks whether all peers are still there; whether anything is left. It is called with every
    /// collective, so that who watches this rank sees how far it has come.
    fn watch(&mut self) -> Result<bool> {
        let Way::Nccl(NcclStream { nccl, begun, asked, .. }) = &mut self.way else { return Ok(false) };
        while let Some(first) = begun.front() {
            if !first.to.has_happened()? {
                break;
            }
            let (bytes, seconds) = (first.bytes, first.to.since(&first.from)?);
            let sent = first.collective.sent(self.ranks.size(), bytes);
            self.ranks.record(first.kind, bytes as Bytes, sent, seconds);
            begun.pop_front();
        }
        if asked.elapsed() > ASK {
            *asked = Instant::now();
            nccl.look()?;
        }
        Ok(!begun.is_empty())
    }
}

impl Drop for DeviceCollectives {
    fn drop(&mut self) {
        // A communicator is destroyed when nothing is under way on it; a failure has been told by who saw it first.
        let _ = self.finish();
    }
}

impl NcclStream {
    /// Begins a collective on NCCL's stream, after what was asked of the tensors' so far.
    fn begin(&mut self, kind: Kind, collective: Collective, source: &Tensor, target: &Tensor) -> Result<Span> {
        let bytes = source.numel() * source.kind().elt_size_in_bytes();
        self.own.wait_for(&self.compute.event()?)?;
        let inside = progress::enter(kind, bytes);
        let from = self.own.event()?;
        // SAFETY: flat buffers live as long as the training, whose next use of them waits for the stream (`join`).
        unsafe { self.nccl.begin(collective, source, target, &self.own) }?;
        let to = self.own.event()?;
        let span = Span { wait: 0.0, from: Moment::Gpu(from.clone()), to: Moment::Gpu(to.clone()) };
        self.begun.push_back(Begun { kind, collective, bytes, from, to, _inside: inside });
        Ok(span)
    }
}
