//! One collective by one algorithm, and the buffers that it works on, in host or device memory.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tch::Tensor;

use crate::collective::{
    AllReduce, Collective, Communicator, DeviceCollectives, Element, HostBuffer, Taken, WaitPolicy,
};
use crate::config::{Algorithm, Parallel};
use crate::device::Target;
use crate::error::Result;
use crate::metrics::Kind;

/// Buffers of a collective: one that is overwritten (in place), or two (out of place).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Out,
    In,
}

impl Place {
    /// Name in tables.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Place::Out => "out_of_place",
            Place::In => "in_place",
        }
    }

    /// The places that `collective` has. As in nccl-tests an all-to-all has two buffers; a broadcast has one.
    pub(super) fn of(collective: Collective) -> &'static [Place] {
        match collective {
            Collective::Broadcast => &[Place::In],
            Collective::AllToAll => &[Place::Out],
            _ => &[Place::Out, Place::In],
        }
    }
}

/// A collective with its buffers. In place, the target is also the source.
pub struct Bench<T: Element> {
    pub(super) collective: Collective,
    pub(super) ranks: Arc<Communicator>,
    memory: Memory<T>,
}

/// Memory of the two buffers, and what works on them.
enum Memory<T: Element> {
    Host { way: Way, source: HostBuffer<T>, target: HostBuffer<T> },
    Device { collectives: Box<DeviceCollectives>, source: Tensor, target: Tensor },
}

/// Who carries a collective in host memory.
enum Way {
    AllReduce(Box<AllReduce>),
    /// MPI's own call.
    Mpi,
    /// hpml's exchange with all other ranks at once.
    Pairwise,
}

impl<T: Element> Bench<T> {
    /// Buffers of `elements` on each of `ranks`, in the memory of `target`, and what the algorithm of `parallel` needs. On a GPU,
    /// ranks wait for each other for `limit` at most.
    ///
    /// # Errors
    /// There is no memory, or NCCL cannot be used.
    pub fn new(
        collective: Collective,
        ranks: &Arc<Communicator>,
        target: Target,
        parallel: &Parallel,
        elements: usize,
        limit: Duration,
    ) -> Result<Bench<T>> {
        let memory = if target.is_gpu() {
            let collectives = DeviceCollectives::new(ranks.clone(), target, parallel, elements, limit)?;
            let [source, target] = [(); 2].map(|()| Tensor::zeros([elements as i64], (T::KIND, target.device())));
            Memory::Device { collectives: Box::new(collectives), source, target }
        } else if collective == Collective::AllReduce {
            let all_reduce = Box::new(AllReduce::new(ranks.clone(), parallel)?);
            let (source, target) = (all_reduce.buffer(elements)?, all_reduce.buffer(elements)?);
            Memory::Host { way: Way::AllReduce(all_reduce), source, target }
        } else {
            let has_own = matches!(collective, Collective::AllGather | Collective::AllToAll);
            let way = if has_own && parallel.all_reduce == Algorithm::Auto { Way::Pairwise } else { Way::Mpi };
            Memory::Host { way, source: HostBuffer::zeros(elements), target: HostBuffer::zeros(elements) }
        };
        Ok(Bench { collective, ranks: ranks.clone(), memory })
    }

    /// Name of the algorithm that works on a buffer of `bytes` bytes; never `auto`.
    pub(super) fn algorithm(&self, bytes: usize) -> &'static str {
        match &self.memory {
            Memory::Host { way: Way::AllReduce(all_reduce), .. } => all_reduce.algorithm_for(bytes).as_str(),
            Memory::Host { way: Way::Mpi, .. } => "mpi",
            Memory::Host { way: Way::Pairwise, .. } => "pairwise",
            Memory::Device { collectives, .. } if collectives.is_through_host() => "host",
            Memory::Device { .. } => "nccl",
        }
    }

    /// Elements of the source and of the target, of the `elements` of the larger one. In place one lies in the other.
    fn parts(&self, place: Place, elements: usize) -> [Range<usize>; 2] {
        let part = elements / self.ranks.size();
        let own = self.ranks.rank() * part..(self.ranks.rank() + 1) * part;
        let is_nccl = matches!(self.memory, Memory::Device { .. });
        match (self.collective, place) {
            (Collective::AllGather, Place::Out) => [0..part, 0..elements],
            (Collective::AllGather, Place::In) => [own, 0..elements],
            // MPI writes the sum to the start of the buffer, NCCL to the rank's own part.
            (Collective::ReduceScatter, Place::In) if is_nccl => [0..elements, own],
            (Collective::ReduceScatter, _) => [0..elements, 0..part],
            _ => [0..elements, 0..elements],
        }
    }

    /// Fills the source for `place` with `value(index)`; the larger buffer has `elements`.
    pub(super) fn fill(&mut self, place: Place, elements: usize, value: impl Fn(usize) -> f32) {
        let [range, _] = self.parts(place, elements);
        match &mut self.memory {
            Memory::Host { source, target, .. } => {
                let buffer = if place == Place::In { target } else { source };
                let elements = buffer.as_mut_slice()[range].iter_mut().enumerate();
                elements.for_each(|(index, element)| *element = T::from_f32(value(index)));
            }
            Memory::Device { source, target, .. } => {
                let buffer = if place == Place::In { target } else { source };
                let values: Vec<f32> = (0..range.len()).map(value).collect();
                tch::no_grad(|| narrow(buffer, &range).copy_(&Tensor::from_slice(&values)));
            }
        }
    }

    /// The result.
    pub(super) fn result(&self, place: Place, elements: usize) -> Vec<f32> {
        let [_, range] = self.parts(place, elements);
        match &self.memory {
            Memory::Host { target, .. } => target.as_slice()[range].iter().map(|element| element.to_f32()).collect(),
            Memory::Device { target, .. } => {
                let result = narrow(target, &range).to_kind(tch::Kind::Float);
                let mut values = vec![0.0; range.len()];
                result.copy_data(&mut values, range.len());
                values
            }
        }
    }

    /// Runs the collective once without a barrier before it. Returns this rank's times.
    ///
    /// # Errors
    /// A rank is gone, or the device has failed.
    pub(super) fn once(&mut self, place: Place, elements: usize) -> Result<Taken> {
        let [from, to] = self.parts(place, elements);
        let (kind, policy, ranks) = (Kind::Gradients, WaitPolicy::Spin, &self.ranks);
        match &mut self.memory {
            Memory::Host { way: Way::AllReduce(all_reduce), source, target } => {
                let source = (place == Place::Out).then(|| source.region(from));
                let mut target = target.region(to);
                let started = Instant::now();
                let taken = all_reduce.run(kind, source.as_ref(), &mut target, policy)?;
                Ok(Taken { seconds: started.elapsed().as_secs_f64(), ..taken })
            }
            Memory::Host { way, source, target } => {
                let is_pairwise = matches!(way, Way::Pairwise);
                let source = (place == Place::Out).then(|| &source.as_slice()[from.clone()]);
                let whole = &mut target.as_mut_slice()[..elements];
                let started = Instant::now();
                match (self.collective, source) {
                    (Collective::AllGather, source) if is_pairwise => {
                        let part = elements / ranks.size();
                        let slices: Vec<_> = (0..ranks.size()).map(|rank| rank * part..(rank + 1) * part).collect();
                        if let Some(source) = source {
                            whole[slices[ranks.rank()].clone()].copy_from_slice(source);
                        }
                        ranks.all_gather_slices(kind, whole, &slices, policy)?
                    }
                    (Collective::AllGather, source) => ranks.all_gather_into(kind, source, whole)?,
                    (Collective::ReduceScatter, Some(source)) => {
                        ranks.reduce_scatter_into(kind, Some(source), &mut whole[to])?
                    }
                    (Collective::ReduceScatter, None) => ranks.reduce_scatter_into(kind, None, whole)?,
                    (Collective::AllToAll, Some(source)) if is_pairwise => {
                        ranks.all_to_all_parts(kind, source, whole, policy)?
                    }
                    (Collective::AllToAll, Some(source)) => ranks.all_to_all_by_mpi(kind, source, whole)?,
                    (Collective::Broadcast, _) => ranks.broadcast(kind, whole)?,
                    (other, _) => unreachable!("{} is not measured {}", other.as_str(), place.as_str()),
                };
                Ok(Taken { seconds: started.elapsed().as_secs_f64(), between_hosts: None, between_racks: None })
            }
            Memory::Device { collectives, source, target } => {
                let source = narrow(if place == Place::In { target } else { source }, &from);
                let target = narrow(target, &to);
                let span = match self.collective {
                    Collective::AllReduce => collectives.all_reduce_into(kind, &source, &target)?,
                    other => collectives.enqueue(other, kind, &source, &target)?,
                };
                collectives.join()?;
                collectives.finish()?;
                Ok(Taken { seconds: span.seconds()?, between_hosts: None, between_racks: None })
            }
        }
    }
}

fn narrow(buffer: &Tensor, range: &Range<usize>) -> Tensor {
    buffer.narrow(0, range.start as i64, range.len() as i64)
}
