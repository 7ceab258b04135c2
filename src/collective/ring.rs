//! A segmented ring all-reduce over point-to-point messages, for ranks with a network between them.
//!
//! `n` ranks, the buffer in `n` chunks. In each of `2 (n-1)` rounds a rank sends one chunk to the next rank and receives
//! another from the one before it: the first half of the rounds adds, the second half passes the finished sums on. That
//! is the least traffic possible, `2 (n-1)/n` of the buffer each way. Chunks travel in segments, several at a time, so that
//! both directions of the link stay busy and a segment is added while the next ones arrive. MPI makes progress only inside
//! its calls, so the thread polls, and pauses as its [`WaitPolicy`] says: MPI's own collectives spin instead.

use std::collections::VecDeque;
use std::ffi::{c_int, c_void};
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ops::Range;

use mpi::ffi;

use super::backoff::{Backoff, WaitPolicy};
use super::sum::sum_into;
use super::{Communicator, Element, MpiType};
use crate::error::Result;

/// Bytes of a message. Below 64 KiB, so that Open MPI sends it over TCP at once. Larger messages wait for the receiver's answer
/// first, which queues behind the data that the receiver sends itself: the two directions of a link then take turns instead
/// of running together (44.7 MB, two hosts, 1 Gbit/s: 256 KiB 600 to 710 ms, 60 KiB 374 ms, the link's speed).
pub(super) const SEGMENT_BYTES: usize = 60 << 10;
/// Messages in flight in each direction; 8 to 64 make no difference.
pub(super) const DEPTH: usize = 16;
pub(super) const TAG: c_int = 0x68706d;

/// Replaces every rank's `values` by their sum, bit-identical on all ranks: one rank adds each chunk's last summand.
pub(super) fn all_reduce<T: Element>(ranks: &Communicator, values: &mut [T], policy: WaitPolicy) -> Result<()> {
    let plan = Plan::new(ranks.rank(), ranks.size(), values.len(), SEGMENT_BYTES / size_of::<T>());
    if ranks.size() < 2 {
        return Ok(());
    }
    let longest = (0..plan.messages()).map(|index| plan.received(index).len()).max().unwrap_or(0);
    // Summands that have arrived. Leaked if this function returns an error: MPI may still write to them.
    let mut arrivals = ManuallyDrop::new(vec![T::default(); longest * DEPTH]);
    let base = values.as_mut_ptr();
    let next = ((ranks.rank() + 1) % ranks.size()) as c_int;
    let previous = ((ranks.rank() + ranks.size() - 1) % ranks.size()) as c_int;

    let mut sends = VecDeque::with_capacity(DEPTH);
    let mut receives = VecDeque::with_capacity(DEPTH);
    let (mut sent, mut received) = (0, 0); // completed messages; the queues hold those in flight
    let mut backoff = Backoff::between_hosts(policy);
    while sent < plan.messages() || received < plan.messages() {
        let before = (sent, received, sends.len(), receives.len());
        while receives.len() < DEPTH && plan.may_receive(received + receives.len(), sent) {
            let index = received + receives.len();
            let range = plan.received(index);
            // SAFETY: a summand goes to its own slot of `arrivals`: DEPTH at most are under way. A finished sum goes to its
            // place in `values`, which no message under way reads (`may_receive`). Both outlive the message: this function
            // returns early only with an error, which ends the job.
            receives.push_back(unsafe {
                let target = if plan.adds(index) {
                    arrivals.as_mut_ptr().add(index % DEPTH * longest)
                } else {
                    base.add(range.start)
                };
                start(ranks, Direction::From(previous), target, range.len())?
            });
        }
        while sends.len() < DEPTH && plan.may_send(sent + sends.len(), received) {
            let range = plan.sent(sent + sends.len());
            // SAFETY: inside `values`, and nothing writes there until the message has ended: its segment is received again
            // only n-1 rounds later, which waits for this message (`may_receive`).
            sends.push_back(unsafe { start(ranks, Direction::To(next), base.add(range.start), range.len())? });
        }
        while let Some(request) = receives.front_mut() {
            if !ranks.is_done(request)? {
                break;
            }
            if plan.adds(received) {
                let range = plan.received(received);
                // SAFETY: the message has ended, so its slot is ours; the segment is neither sent nor received now.
                unsafe {
                    let own = base.add(range.start);
                    let arrived = arrivals.as_ptr().add(received % DEPTH * longest);
                    sum_into(&[arrived, own.cast_const()], &[own], range.len());
                }
            }
            receives.pop_front();
            received += 1;
        }
        while let Some(request) = sends.front_mut() {
            if !ranks.is_done(request)? {
                break;
            }
            sends.pop_front();
            sent += 1;
        }
        if before == (sent, received, sends.len(), receives.len()) {
            backoff.pause();
        } else {
            backoff.restart();
        }
    }
    drop(ManuallyDrop::into_inner(arrivals));
    Ok(())
}

/// Destination or source rank of a message.
pub(super) enum Direction {
    To(c_int),
    From(c_int),
}

/// Starts one message of `elements` elements of T by MPI_Isend or MPI_Irecv.
///
/// # Safety
/// `elements` from `data` on stay valid, and untouched as MPI demands, until the request is complete.
pub(super) unsafe fn start<T: MpiType>(
    ranks: &Communicator,
    direction: Direction,
    data: *mut T,
    elements: usize,
) -> Result<ffi::MPI_Request> {
    let data: *mut c_void = data.cast();
    let mut request = MaybeUninit::uninit();
    let (count, kind, raw) = (elements as c_int, T::mpi_type(), ranks.raw());
    // SAFETY: the caller's promise; MPI writes the request.
    unsafe {
        let (call, code) = match direction {
            Direction::To(rank) => {
                ("MPI_Isend", ffi::MPI_Isend(data, count, kind, rank, TAG, raw, request.as_mut_ptr()))
            }
            Direction::From(rank) => {
                ("MPI_Irecv", ffi::MPI_Irecv(data, count, kind, rank, TAG, raw, request.as_mut_ptr()))
            }
        };
        ranks.check(call, code)?;
        Ok(request.assume_init())
    }
}

/// Maps a rank's n-th message to its segment, and says what must be complete before it.
struct Plan {
    rank: usize,
    ranks: usize,
    elements: usize,
    segments: usize, // per chunk
}

impl Plan {
    fn new(rank: usize, ranks: usize, elements: usize, most: usize) -> Plan {
        let chunk = elements.div_ceil(ranks);
        Plan { rank, ranks, elements, segments: chunk.div_ceil(most).max(1) }
    }

    /// Number of messages that a rank sends, which it also receives.
    fn messages(&self) -> usize {
        2 * (self.ranks - 1) * self.segments
    }

    /// Elements of the `index`-th message to the next rank.
    fn sent(&self, index: usize) -> Range<usize> {
        self.segment(self.rank + 2 * self.ranks - index / self.segments, index % self.segments)
    }

    /// Elements of the `index`-th message from the previous rank.
    fn received(&self, index: usize) -> Range<usize> {
        self.segment(self.rank + 2 * self.ranks - index / self.segments - 1, index % self.segments)
    }

    /// Whether the `index`-th message received is a summand, not a finished sum.
    fn adds(&self, index: usize) -> bool {
        index < (self.ranks - 1) * self.segments
    }

    /// Whether the `index`-th message can be sent once `received` messages have arrived: its segment came a round earlier.
    fn may_send(&self, index: usize, received: usize) -> bool {
        index < self.messages() && index < received + self.segments
    }

    /// Whether the `index`-th message may arrive once `sent` messages are sent: a finished sum replaces the segment sent n-1
    /// rounds earlier.
    fn may_receive(&self, index: usize, sent: usize) -> bool {
        index < self.messages() && (self.adds(index) || index < sent + (self.ranks - 1) * self.segments)
    }

    fn segment(&self, chunk: usize, segment: usize) -> Range<usize> {
        let cut = |part: usize, parts: usize, elements: usize| part * elements / parts;
        let chunk = chunk % self.ranks;
        let (start, end) = (cut(chunk, self.ranks, self.elements), cut(chunk + 1, self.ranks, self.elements));
        let inside = |part| start + cut(part, self.segments, end - start);
        inside(segment)..inside(segment + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays the plan of all ranks on one thread, each rank as far ahead as it may be.
    #[test]
    fn every_rank_ends_with_every_sum() {
        for (ranks, elements, most) in [(2, 10, 3), (3, 10, 2), (4, 3, 5), (4, 1000, 7), (5, 1, 1), (2, 0, 4)] {
            let plans: Vec<Plan> = (0..ranks).map(|rank| Plan::new(rank, ranks, elements, most)).collect();
            let mut values: Vec<Vec<usize>> =
                (0..ranks).map(|rank| (0..elements).map(|index| (rank + 1) * (index + 1)).collect()).collect();
            let mut links: Vec<VecDeque<Vec<usize>>> = vec![VecDeque::new(); ranks]; // into each rank
            let (mut sent, mut received) = (vec![0; ranks], vec![0; ranks]);
            while received.iter().any(|&count| count < plans[0].messages()) {
                let before = received.clone();
                for rank in 0..ranks {
                    let plan = &plans[rank];
                    while plan.may_send(sent[rank], received[rank]) {
                        links[(rank + 1) % ranks].push_back(values[rank][plan.sent(sent[rank])].to_vec());
                        sent[rank] += 1;
                    }
                    while plan.may_receive(received[rank], sent[rank]) {
                        let Some(arrived) = links[rank].pop_front() else { break };
                        let place = &mut values[rank][plan.received(received[rank])];
                        assert_eq!(place.len(), arrived.len());
                        let adds = plan.adds(received[rank]);
                        place.iter_mut().zip(arrived).for_each(|(own, new)| *own = if adds { *own + new } else { new });
                        received[rank] += 1;
                    }
                }
                assert_ne!(before, received, "{ranks} ranks, {elements} elements: nothing can go on");
            }
            for own in values {
                let expected = (0..elements).map(|index| (index + 1) * ranks * (ranks + 1) / 2);
                assert!(own.into_iter().eq(expected), "{ranks} ranks, {elements} elements");
            }
        }
    }
}
