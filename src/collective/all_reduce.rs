//! The all-reduce of large buffers: the choice of an algorithm, and the memory that its buffers need.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::backoff::WaitPolicy;
use super::sum::sum_into;
use super::traffic::Collective;
use super::window::{SharedBarrier, Window};
use super::{Combine, Communicator, Element, Finished, HostBuffer, Region, ring};
use crate::config::Algorithm;
use crate::error::Result;
use crate::metrics::Kind;
use crate::units::Second;

/// Buffer size, in bytes, from which hosts use the ring; smaller buffers take MPI_Allreduce, which needs fewer messages. On 2
/// and 4 hosts at 1 Gbit/s the ring is faster from 16 and 128 KiB on.
const RING_BYTES: usize = 64 << 10;

/// Sums buffers over the ranks of a communicator. Every call is a collective, and counted in the communicator's ledger
/// as what entered it: a barrier, and one message of the buffer's size, whichever algorithm carried it.
pub struct AllReduce {
    communicator: Arc<Communicator>,
    algorithm: Algorithm,
    host: Communicator,
    hosts: usize,
    /// Barrier of this host's ranks; `None` unless several of them reduce through shared memory.
    barrier: Option<SharedBarrier>,
    /// Communicator over the first rank of every host; `None` on all other ranks.
    leaders: Option<Communicator>,
}

impl AllReduce {
    /// An all-reduce over all ranks of `communicator`. A collective.
    ///
    /// # Errors
    /// Returns [`Error::Mpi`](crate::error::Error::Mpi) if MPI reports a failure.
    pub fn new(communicator: Arc<Communicator>, algorithm: Algorithm) -> Result<AllReduce> {
        let host = communicator.split_by_host()?;
        let leaders = communicator.split((host.rank() == 0).then_some(0))?;
        let mut numbers = [(host.rank() == 0) as u8 as f64];
        communicator.all_reduce(Kind::Control, Combine::Sum, &mut numbers)?;
        let shares = matches!(algorithm, Algorithm::Auto | Algorithm::Shared) && host.size() > 1;
        let barrier = if shares { Some(SharedBarrier::new(&host)?) } else { None };
        Ok(AllReduce { communicator, algorithm, host, hosts: numbers[0] as usize, barrier, leaders })
    }

    /// A buffer of `elements` zeros, equally long on all ranks, in memory that suits the algorithm. A collective.
    ///
    /// # Errors
    /// Returns [`Error::SharedMemory`](crate::error::Error::SharedMemory) on all ranks of a host without room, and
    /// [`Error::Mpi`](crate::error::Error::Mpi) if MPI cannot allocate shared memory.
    pub fn buffer<T: Element>(&self, elements: usize) -> Result<HostBuffer<T>> {
        match self.barrier {
            Some(_) => Ok(HostBuffer::in_window(Window::allocate(&self.host, elements * size_of::<T>())?, elements)),
            None => Ok(HostBuffer::zeros(elements)),
        }
    }

    /// The algorithm that reduces a buffer of `bytes` bytes.
    pub fn algorithm_for(&self, bytes: usize) -> Algorithm {
        match self.algorithm {
            Algorithm::Auto if self.hosts > 1 && bytes < RING_BYTES => Algorithm::Mpi,
            Algorithm::Auto => Algorithm::Shared,
            given => given,
        }
    }

    /// Replaces every rank's `values` by their sum over the ranks, bit-identical on all of them.
    ///
    /// All ranks pass the same part of a buffer that [`buffer`](Self::buffer) made, in the same order. The sum of given
    /// values depends on the number of ranks and the algorithm, never on timing.
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
    ) -> Result<Second> {
        match &self.barrier {
            // It reads the other ranks' memory, so all of them must have written theirs.
            Some(barrier) if self.algorithm_for(target.bytes()) == Algorithm::Shared => {
                let start = Instant::now();
                barrier.wait(policy);
                self.transfer(kind, source, target, policy)?;
                Ok(start.elapsed().as_secs_f64())
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
            (Some(barrier), _) if self.hosts == 1 => {
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
    ) -> Result<Second> {
        let bytes = target.bytes();
        match (self.algorithm_for(bytes), source) {
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
            (Algorithm::Auto | Algorithm::Shared, _) => {
                // A copy through shared memory is no message: one rank per host sends.
                let sent = Collective::AllReduce.sent(self.hosts, bytes);
                self.communicator.counted_as(kind, bytes, sent, || self.shared(source, target, policy))
            }
        }
    }

    /// Sums within the host through the window, and between hosts by a ring of one rank per host. Call once all ranks have
    /// arrived.
    fn shared<T: Element>(&self, source: Option<&Region<T>>, target: &mut Region<T>, policy: WaitPolicy) -> Result<()> {
        let Some(barrier) = &self.barrier else {
            // The only rank of its host.
            if let Some(source) = source {
                target.as_mut_slice().copy_from_slice(source.as_slice());
            }
            return self.between_hosts(target, policy);
        };
        let window = self.window_of(target);
        let from = source.unwrap_or(target);
        let (source_window, ranks) = (self.window_of(from), window.ranks());
        let elements = target.bytes() / size_of::<T>();
        let own = slice_of_rank::<T>(window.rank(), ranks, elements);
        // With several hosts the leader alone needs the sums, to send them on.
        let written = if self.hosts == 1 { ranks } else { 1 };
        let sources: Vec<_> =
            (0..ranks).map(|r| from.in_part_of(&source_window, r).wrapping_add(own.start).cast_const()).collect();
        let targets: Vec<_> = (0..written).map(|r| target.in_part_of(&window, r).wrapping_add(own.start)).collect();
        // SAFETY: every rank has arrived with the same part of its buffer and is in here, so nobody else reads or writes these
        // elements: of each rank's part, this rank alone touches the slice `own`. A target lies where its source does, or
        // in another buffer.
        unsafe { sum_into(&sources, &targets, own.len()) };
        barrier.wait(policy); // all slices are summed
        if self.hosts == 1 {
            return Ok(());
        }
        self.between_hosts(target, policy)?;
        barrier.wait(policy); // the leader has the sum of all hosts
        if window.rank() > 0 {
            // SAFETY: the leader does not touch its part until the barrier below; our part is ours again.
            let sum = unsafe { std::slice::from_raw_parts(target.in_part_of(&window, 0).cast_const(), elements) };
            target.as_mut_slice().copy_from_slice(sum);
        }
        barrier.wait(policy); // all ranks have read it
        Ok(())
    }

    /// The window, shared by all ranks of the host, that `region` lies in.
    ///
    /// # Panics
    /// The region's buffer was not made by [`buffer`](Self::buffer): the other ranks could not reach it.
    fn window_of<T: Element>(&self, region: &Region<T>) -> Arc<Window> {
        let window = region.window().filter(|window| window.ranks() == self.host.size());
        window.expect("a buffer reduced through shared memory is made by AllReduce::buffer")
    }

    fn between_hosts<T: Element>(&self, values: &mut Region<T>, policy: WaitPolicy) -> Result<()> {
        match &self.leaders {
            Some(leaders) => ring::all_reduce(leaders, values.as_mut_slice(), policy),
            None => Ok(()),
        }
    }
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
