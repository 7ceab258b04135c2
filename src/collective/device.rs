//! Collectives on a device's memory, in the order in which they are asked for: by NCCL on a stream of its own, or through
//! host memory where there is no NCCL.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tch::Tensor;

use super::nccl::Nccl;
use super::progress::{self, Inside};
use super::traffic::Collective;
use super::{AllReduce, Communicator, HostBuffer, Patience};
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
    /// Begun, and not seen to be over.
    begun: VecDeque<Begun>,
    asked: Instant,
}

enum Way {
    Nccl { nccl: Nccl, compute: Stream, own: Stream },
    Host { all_reduce: Box<AllReduce>, buffer: HostBuffer },
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
            Target::Gpu { index, .. } if ranks.size() > 1 && !Self::go_through_host(target, algorithm) => Way::Nccl {
                nccl: Nccl::start(&ranks, limit)?,
                compute: Stream::of_tensors(index)?,
                own: Stream::urgent(index)?,
            },
            _ => {
                let all_reduce = Box::new(AllReduce::new(ranks.clone(), algorithm)?);
                let buffer = all_reduce.buffer(elements)?;
                Way::Host { all_reduce, buffer }
            }
        };
        Ok(DeviceCollectives { ranks, way, begun: VecDeque::new(), asked: Instant::now() })
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
            Way::Nccl { nccl, compute, own } => {
                let (begun, span) = begin(kind, Collective::AllReduce, source, compute, own, |handle| {
                    let (from, to) = (source.data_ptr(), target.data_ptr());
                    // SAFETY: flat buffers live as long as the training, whose next use of them waits for the stream (`join`).
                    unsafe { nccl.all_reduce(from, to, source.numel(), source.kind(), handle) }
                })?;
                self.begun.push_back(begun);
                Ok(span)
            }
            Way::Host { all_reduce, buffer } => {
                let mut region = buffer.region(0..source.numel());
                source.copy_data(region.as_mut_slice(), source.numel());
                let waiting = Instant::now();
                let wait = all_reduce.reduce(kind, &mut region, Patience::Eager)?.wait;
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
            Way::Nccl { nccl, compute, own } => {
                let (begun, span) = begin(kind, Collective::Broadcast, values, compute, own, |handle| {
                    // SAFETY: as in `all_reduce`.
                    unsafe { nccl.broadcast(values.data_ptr(), values.numel(), values.kind(), handle) }
                })?;
                self.begun.push_back(begun);
                Ok(span)
            }
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
        if let (Way::Nccl { compute, .. }, Some(last)) = (&self.way, self.begun.back()) {
            compute.wait_for(&last.to)?;
        }
        Ok(())
    }

    /// Returns when all that was begun is over. Error: a peer is gone, or the GPU has failed.
    pub fn finish(&mut self) -> Result<()> {
        loop {
            self.watch()?;
            if self.begun.is_empty() {
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Counts what is over, and asks whether all peers are still there. It is called with every collective, so that who
    /// watches this rank sees how far it has come.
    fn watch(&mut self) -> Result<()> {
        while let Some(first) = self.begun.front() {
            if !first.to.has_happened()? {
                break;
            }
            let (bytes, seconds) = (first.bytes, first.to.since(&first.from)?);
            let sent = first.collective.sent(self.ranks.size(), bytes);
            self.ranks.record(first.kind, bytes as Bytes, sent, seconds);
            self.begun.pop_front();
        }
        if let Way::Nccl { nccl, .. } = &mut self.way
            && self.asked.elapsed() > ASK
        {
            self.asked = Instant::now();
            nccl.look()?;
        }
        Ok(())
    }
}

impl Drop for DeviceCollectives {
    fn drop(&mut self) {
        // A communicator is destroyed when nothing is under way on it; a failure has been told by who saw it first.
        let _ = self.finish();
    }
}

/// What `call` asks of the stream `own`, after what was asked of `compute` so far.
fn begin(
    kind: Kind,
    collective: Collective,
    values: &Tensor,
    compute: &Stream,
    own: &Stream,
    call: impl FnOnce(*mut c_void) -> Result<()>,
) -> Result<(Begun, Span)> {
    let bytes = values.numel() * values.kind().elt_size_in_bytes();
    own.wait_for(&compute.event()?)?;
    let inside = progress::enter(kind, bytes);
    let from = own.event()?;
    call(own.handle())?;
    let to = own.event()?;
    let span = Span { wait: 0.0, from: Moment::Gpu(from.clone()), to: Moment::Gpu(to.clone()) };
    Ok((Begun { kind, collective, bytes, from, to, _inside: inside }, span))
}
