//! The all-reduce of large buffers: the choice of an algorithm, and the memory that its buffers need.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::backoff::WaitPolicy;
use super::cost::{self, Crossovers, Network};
use super::hosts::Hosts;
use super::sum::sum_into;
use super::traffic::Collective;
use super::window::{SharedBarrier, Window};
use super::{Communicator, Element, Finished, HostBuffer, Region, halving, hierarchical, ring};
use crate::config::{Algorithm, Parallel};
use crate::error::Result;
use crate::metrics::Kind;
use crate::units::Second;

/// Seconds of an all-reduce on one rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Taken {
    /// The whole all-reduce.
    pub seconds: Second,
    /// The part between hosts, 0 on a rank that does not take part in it; `None` if the algorithm has no such part.
    pub between_hosts: Option<Second>,
    /// The part of it between racks, 0 on a rank that does not take part in it; `None` if the algorithm has no such part.
    pub between_racks: Option<Second>,
}

/// Seconds of this rank between hosts, and the part of them between racks.
#[derive(Default)]
struct Between {
    hosts: Second,
    racks: Second,
}

/// Sums buffers over the ranks of a communicator. Every call is a collective, and counted in the communicator's ledger
/// as what entered it: a barrier, and one message of the buffer's size, whichever algorithm carried it.
pub struct AllReduce {
    communicator: Arc<Communicator>,
    algorithm: Algorithm,
    /// Sizes at which `auto` changes the algorithm; `None` if it need not choose.
    crossovers: Option<Crossovers>,
    hosts: Hosts,
    /// Barrier of this host's ranks; `None` unless several of them reduce through shared memory.
    barrier: Option<SharedBarrier>,
}

impl AllReduce {
    /// An all-reduce over all ranks of `communicator` by `parallel.all_reduce`. Between several hosts `auto` measures the network
    /// first, unless `parallel.crossovers` says what it would decide. A collective.
    ///
    /// # Errors
    /// Returns [`Error::Mpi`](crate::error::Error::Mpi) if MPI reports a failure.
    pub fn new(communicator: Arc<Communicator>, parallel: &Parallel) -> Result<AllReduce> {
        let (algorithm, hosts) = (parallel.all_reduce, Hosts::of(&communicator)?);
        let barrier = match algorithm.shares_memory() && hosts.here.size() > 1 {
            true => Some(SharedBarrier::new(&hosts.here)?),
            false => None,
        };
        let crossovers = match Crossovers::configured(&parallel.crossovers) {
            _ if algorithm != Algorithm::Auto || hosts.count == 1 => None,
            None => hosts.measure(&communicator)?.as_ref().map(Network::crossovers),
            configured => configured,
        };
        Ok(AllReduce { communicator, algorithm, crossovers, hosts, barrier })
    }

    /// A buffer of `elements` zeros, equally long on all ranks, in memory that suits the algorithm. A collective.
    ///
    /// # Errors
    /// Returns [`Error::SharedMemory`](crate::error::Error::SharedMemory) on all ranks of a host without room, and
    /// [`Error::Mpi`](crate::error::Error::Mpi) if MPI cannot allocate shared memory.
    pub fn buffer<T: Element>(&self, elements: usize) -> Result<HostBuffer<T>> {
        match self.barrier {
            Some(_) => {
                Ok(HostBuffer::in_window(Window::allocate(&self.hosts.here, elements * size_of::<T>())?, elements))
            }
            None => Ok(HostBuffer::zeros(elements)),
        }
    }

    /// The algorithm that reduces a buffer of `bytes` bytes.
    pub fn algorithm_for(&self, bytes: usize) -> Algorithm {
        cost::choose(self.algorithm, self.crossovers, self.hosts.count, self.hosts.have_equal_racks(), bytes)
    }

    /// Replaces every rank's `values` by their sum over the ranks, bit-identical on all of them.
    ///
    /// All ranks pass the same part of a buffer that [`buffer`](Self::buffer) made, in the same order. The sum of given
    /// values depends on the number of ranks, the algorithm and the order of the hosts, never on timing.
    ///
    /// # Errors
    /// Returns [`Error::Mpi`](crate::error::Error::Mpi) if MPI reports a failure.
    pub fn reduce<T: Element>(&self, kind: Kind, values: &mut Region<T>, policy: WaitPolicy) -> Result<Finished> {
        Finished::of(|waits| {
            waits.time(|| self.wait_for_all(values.bytes(), policy))?;
            self.transfer(kind, None, values, policy).map(drop)
        })
    }

    /// Sums like [`reduce`](Self::reduce), without measuring the wait for slower ranks, and returns the seconds of the
    /// collective alone. Reads from `source`, part of a buffer that [`buffer`](Self::buffer) made, or from `target` if it is
    /// `None`.
    ///
    /// # Errors
    /// Returns [`Error::Mpi`](crate::error::Error::Mpi) if MPI reports a failure.
    pub fn run<T: Element>(
        &self,
        kind: Kind,
        source: Option<&Region<T>>,
        target: &mut Region<T>,
        policy: WaitPolicy,
    ) -> Result<Taken> {
        match &self.barrier {
            // It reads the other ranks' memory, so all of them must have written theirs.
            Some(barrier) if self.algorithm_for(target.bytes()).shares_memory() => {
                let start = Instant::now();
                barrier.wait(policy);
                let taken = self.transfer(kind, source, target, policy)?;
                Ok(Taken { seconds: start.elapsed().as_secs_f64(), ..taken })
            }
            _ => self.transfer(kind, source, target, policy),
        }
    }

    /// The communicator whose ranks are summed over.
    pub fn communicator(&self) -> &Communicator {
        &self.communicator
    }

    /// Barrier before the all-reduce of a buffer of `bytes` bytes; what each rank wrote before it is visible to all after it.
    /// Returns the seconds waited.
    ///
    /// # Errors
    /// Returns [`Error::Mpi`](crate::error::Error::Mpi) if MPI reports a failure.
    pub fn wait_for_all(&self, bytes: usize, policy: WaitPolicy) -> Result<Second> {
        match (&self.barrier, policy) {
            (Some(barrier), _) if self.hosts.count == 1 => {
                self.communicator.counted(Kind::Control, Collective::Barrier, 0, || {
                    barrier.wait(policy);
                    Ok(())
                })
            }
            (_, WaitPolicy::Spin) if self.algorithm_for(bytes) == Algorithm::Mpi => self.communicator.barrier(),
            _ => self.communicator.patient_barrier(policy),
        }
    }

    fn transfer<T: Element>(
        &self,
        kind: Kind,
        source: Option<&Region<T>>,
        target: &mut Region<T>,
        policy: WaitPolicy,
    ) -> Result<Taken> {
        let (bytes, mut between_hosts, mut between_racks) = (target.bytes(), None, None);
        let seconds = match (self.algorithm_for(bytes), source) {
            (Algorithm::Mpi, Some(source)) => {
                self.communicator.all_reduce_sum_into(kind, source.as_slice(), target.as_mut_slice())
            }
            (Algorithm::Mpi, None) => self.communicator.all_reduce_sum(kind, target.as_mut_slice()),
            (Algorithm::Ring, _) => self.communicator.counted(kind, Collective::AllReduce, bytes, || {
                if let Some(source) = source {
                    target.as_mut_slice().copy_from_slice(source.as_slice());
                }
                ring::all_reduce(&self.communicator, target.as_mut_slice(), policy)
            }),
            (algorithm, _) => {
                // A copy through shared memory is no message: one rank per host sends.
                let sent = Collective::AllReduce.sent(self.hosts.count, bytes);
                self.communicator.counted_as(kind, bytes, sent, || {
                    let between = self.shared(algorithm, source, target, policy)?;
                    between_hosts = (self.hosts.count > 1).then_some(between.hosts);
                    between_racks = (algorithm == Algorithm::Hierarchical).then_some(between.racks);
                    Ok(())
                })
            }
        }?;
        Ok(Taken { seconds, between_hosts, between_racks })
    }

    /// Sums within the host through the window, and between hosts by one rank per host, as `algorithm` says. Call once all ranks
    /// have arrived.
    fn shared<T: Element>(
        &self,
        algorithm: Algorithm,
        source: Option<&Region<T>>,
        target: &mut Region<T>,
        policy: WaitPolicy,
    ) -> Result<Between> {
        let Some(barrier) = &self.barrier else {
            // The only rank of its host.
            if let Some(source) = source {
                target.as_mut_slice().copy_from_slice(source.as_slice());
            }
            return self.between_hosts(algorithm, target, policy);
        };
        let window = self.window_of(target);
        let from = source.unwrap_or(target);
        let (source_window, ranks) = (self.window_of(from), window.ranks());
        let elements = target.bytes() / size_of::<T>();
        let own = slice_of_rank::<T>(window.rank(), ranks, elements);
        // With several hosts the leader alone needs the sums, to send them on.
        let written = if self.hosts.count == 1 { ranks } else { 1 };
        let sources: Vec<_> =
            (0..ranks).map(|r| from.in_part_of(&source_window, r).wrapping_add(own.start).cast_const()).collect();
        let targets: Vec<_> = (0..written).map(|r| target.in_part_of(&window, r).wrapping_add(own.start)).collect();
        // SAFETY: every rank has arrived with the same part of its buffer and is in here, so nobody else reads or writes these
        // elements: of each rank's part, this rank alone touches the slice `own`. A target lies where its source does, or
        // in another buffer.
        unsafe { sum_into(&sources, &targets, own.len()) };
        barrier.wait(policy); // all slices are summed
        if self.hosts.count == 1 {
            return Ok(Between::default());
        }
        let between = self.between_hosts(algorithm, target, policy)?;
        barrier.wait(policy); // the leader has the sum of all hosts
        if window.rank() > 0 {
            // SAFETY: the leader does not touch its part until the barrier below; our part is ours again.
            let sum = unsafe { std::slice::from_raw_parts(target.in_part_of(&window, 0).cast_const(), elements) };
            target.as_mut_slice().copy_from_slice(sum);
        }
        barrier.wait(policy); // all ranks have read it
        Ok(between)
    }

    /// The window, shared by all ranks of the host, that `region` lies in.
    ///
    /// # Panics
    /// The region's buffer was not made by [`buffer`](Self::buffer): the other ranks could not reach it.
    fn window_of<T: Element>(&self, region: &Region<T>) -> Arc<Window> {
        let window = region.window().filter(|window| window.ranks() == self.hosts.here.size());
        window.expect("a buffer reduced through shared memory is made by AllReduce::buffer")
    }

    fn between_hosts<T: Element>(
        &self,
        algorithm: Algorithm,
        values: &mut Region<T>,
        policy: WaitPolicy,
    ) -> Result<Between> {
        let Some(leaders) = &self.hosts.leaders else { return Ok(Between::default()) };
        let (started, values, mut racks) = (Instant::now(), values.as_mut_slice(), 0.0);
        match (algorithm, self.hosts.racks.as_ref().and_then(|racks| racks.peers.as_ref())) {
            (Algorithm::Hierarchical, Some(peers)) => racks = hierarchical::all_reduce(peers, values, policy)?,
            (Algorithm::Halving, _) => halving::all_reduce(leaders, values, policy)?,
            _ => ring::all_reduce(leaders, values, policy)?,
        }
        Ok(Between { hosts: started.elapsed().as_secs_f64(), racks })
    }
}

/// Measures the network between the hosts of `communicator`; `None` with one host. All ranks get the same numbers. A collective.
///
/// # Errors
/// Returns [`Error::Mpi`](crate::error::Error::Mpi) if MPI reports a failure.
pub fn measure_network(communicator: &Communicator) -> Result<Option<Network>> {
    Hosts::of(communicator)?.measure(communicator)
}

/// The range of elements that `rank` sums: whole cache lines, so that two ranks never write to one cache line.
fn slice_of_rank<T>(rank: usize, ranks: usize, elements: usize) -> Range<usize> {
    let line = 64 / size_of::<T>();
    let cut = |rank: usize| (elements.div_ceil(line) * rank / ranks * line).min(elements);
    cut(rank)..cut(rank + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slices_of_the_ranks_cover_every_element_once() {
        for (ranks, elements) in [(1, 5), (2, 61_770), (3, 61_770), (4, 1), (4, 0), (7, 100), (3, 48)] {
            let slices: Vec<Range<usize>> =
                (0..ranks).map(|rank| slice_of_rank::<f32>(rank, ranks, elements)).collect();
            assert_eq!((slices[0].start, slices[ranks - 1].end), (0, elements));
            assert!(slices.windows(2).all(|pair| pair[0].end == pair[1].start), "{slices:?}");
        }
    }
}
