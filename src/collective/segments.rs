//! The messages of an all-reduce over point-to-point messages, carried out in the order that a [`Plan`] gives.
//!
//! Buffers travel in segments, several at a time, so that both directions of the link stay busy and a segment is added while the
//! next ones arrive. MPI makes progress only inside its calls, so the thread polls, and pauses as its [`WaitPolicy`] says: MPI's
//! own collectives spin instead.

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

/// One message: the rank at its other end, and the elements of the buffer that it carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) peer: usize,
    pub(super) elements: Range<usize>,
}

/// The messages of one rank in an algorithm, in their order, and what must be complete before each of them.
///
/// What a rank sends to a peer is what that peer receives from it, message for message. Every rank's messages of one round wait
/// for messages of earlier rounds only, so that no order of arrival can end in a deadlock.
pub(super) trait Plan {
    /// Number of messages to send.
    fn sends(&self) -> usize;
    /// Number of messages to receive.
    fn receives(&self) -> usize;
    /// The `index`-th message to send.
    fn sent(&self, index: usize) -> Message;
    /// The `index`-th message to receive.
    fn received(&self, index: usize) -> Message;
    /// Whether the `index`-th message received is a summand, not a finished sum.
    fn adds(&self, index: usize) -> bool;
    /// Whether the `index`-th message can be sent once `received` messages have arrived.
    fn may_send(&self, index: usize, received: usize) -> bool;
    /// Whether the `index`-th message may arrive once `sent` messages are sent: it may replace what one of them carried.
    fn may_receive(&self, index: usize, sent: usize) -> bool;
}

/// Sends, receives and adds what `plan` says in `values`.
///
/// # Errors
/// Returns [`Error::Mpi`](crate::error::Error::Mpi) if MPI reports a failure.
pub(super) fn run<T: Element>(
    ranks: &Communicator,
    plan: &impl Plan,
    values: &mut [T],
    policy: WaitPolicy,
) -> Result<()> {
    let summands = (0..plan.receives()).filter(|&index| plan.adds(index));
    let longest = summands.map(|index| plan.received(index).elements.len()).max().unwrap_or(0);
    // Summands that have arrived. Leaked if this function returns an error: MPI may still write to them.
    let mut arrivals = ManuallyDrop::new(vec![T::default(); longest * DEPTH]);
    let (base, length) = (values.as_mut_ptr(), values.len());
    let place = |elements: &Range<usize>| {
        assert!(elements.start <= elements.end && elements.end <= length, "a message lies inside the buffer");
        base.wrapping_add(elements.start)
    };

    let mut sends = VecDeque::with_capacity(DEPTH);
    let mut receives = VecDeque::with_capacity(DEPTH);
    let (mut sent, mut received) = (0, 0); // completed messages; the queues hold those in flight
    let mut backoff = Backoff::between_hosts(policy);
    while sent < plan.sends() || received < plan.receives() {
        let before = (sent, received, sends.len(), receives.len());
        while receives.len() < DEPTH
            && received + receives.len() < plan.receives()
            && plan.may_receive(received + receives.len(), sent)
        {
            let index = received + receives.len();
            let Message { peer, elements } = plan.received(index);
            // SAFETY: a summand goes to its own slot of `arrivals`: DEPTH at most are under way. A finished sum goes to its
            // place in `values`, which no message under way reads (`may_receive`). Both outlive the message: this function
            // returns early only with an error, which ends the job.
            receives.push_back(unsafe {
                let target = match plan.adds(index) {
                    true => arrivals.as_mut_ptr().add(index % DEPTH * longest),
                    false => place(&elements),
                };
                start(ranks, Direction::From(peer as c_int), target, elements.len())?
            });
        }
        while sends.len() < DEPTH && sent + sends.len() < plan.sends() && plan.may_send(sent + sends.len(), received) {
            let Message { peer, elements } = plan.sent(sent + sends.len());
            // SAFETY: inside `values`, and nothing writes there until the message has ended: what replaces its elements waits
            // for this message (`may_receive`), and what is added to them came before it (`may_send`).
            sends.push_back(unsafe { start(ranks, Direction::To(peer as c_int), place(&elements), elements.len())? });
        }
        while let Some(request) = receives.front_mut() {
            if !ranks.is_done(request)? {
                break;
            }
            if plan.adds(received) {
                let elements = plan.received(received).elements;
                // SAFETY: the message has ended, so its slot is ours; the segment is neither sent nor received now.
                unsafe {
                    let own = place(&elements);
                    let arrived = arrivals.as_ptr().add(received % DEPTH * longest);
                    sum_into(&[arrived, own.cast_const()], &[own], elements.len());
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Plays the plans of all ranks of an all-reduce of `elements` on one thread, and checks every sum. In each round every rank
    /// sends all that it may, then receives all that has come. Returns the number of rounds.
    ///
    /// # Panics
    /// Panics if a sum is wrong, a message has another length than its receiver expects, or nothing can go on.
    pub fn play<P: Plan>(plans: &[P], elements: usize) -> usize {
        let ranks = plans.len();
        let mut values: Vec<Vec<usize>> =
            (0..ranks).map(|rank| (0..elements).map(|index| (rank + 1) * (index + 1)).collect()).collect();
        // Messages under way into each rank: (source, values).
        let mut links: Vec<Vec<(usize, Vec<usize>)>> = vec![Vec::new(); ranks];
        let (mut sent, mut received) = (vec![0; ranks], vec![0; ranks]);
        let mut rounds = 0;
        while (0..ranks).any(|rank| (sent[rank], received[rank]) != (plans[rank].sends(), plans[rank].receives())) {
            let before = (sent.clone(), received.clone());
            for (rank, plan) in plans.iter().enumerate() {
                while sent[rank] < plan.sends() && plan.may_send(sent[rank], received[rank]) {
                    let Message { peer, elements } = plan.sent(sent[rank]);
                    links[peer].push((rank, values[rank][elements].to_vec()));
                    sent[rank] += 1;
                }
            }
            for (rank, plan) in plans.iter().enumerate() {
                while received[rank] < plan.receives() && plan.may_receive(received[rank], sent[rank]) {
                    let Message { peer, elements } = plan.received(received[rank]);
                    let Some(first) = links[rank].iter().position(|(source, _)| *source == peer) else { break };
                    let (_, arrived) = links[rank].remove(first);
                    let (adds, place) = (plan.adds(received[rank]), &mut values[rank][elements]);
                    assert_eq!(place.len(), arrived.len());
                    place.iter_mut().zip(arrived).for_each(|(own, new)| *own = if adds { *own + new } else { new });
                    received[rank] += 1;
                }
            }
            assert!(
                before != (sent.clone(), received.clone()),
                "{ranks} ranks, {elements} elements: nothing can go on"
            );
            rounds += 1;
        }
        for own in values {
            let expected = (0..elements).map(|index| (index + 1) * ranks * (ranks + 1) / 2);
            assert!(own.into_iter().eq(expected), "{ranks} ranks, {elements} elements");
        }
        rounds
    }
}
