//! All-to-all and all-gather over point-to-point messages: the two halves of an all-reduce, for callers that do the addition
//! in between themselves.
//!
//! A reduce-scatter is an [`all_to_all`](Communicator::all_to_all) and an addition, and with the
//! [`all_gather_slices`](Communicator::all_gather_slices) of the sums it is an all-reduce: each half sends `(n-1)/n` of the
//! buffer from every rank. So each is counted with half of its buffer: for every message in the ledger a rank sends `2
//! (n-1)/n` of the bytes there.

use std::collections::VecDeque;
use std::ffi::c_int;
use std::ops::Range;

use mpi::ffi;

use super::backoff::{Backoff, WaitPolicy};
use super::segments::{DEPTH, Direction, SEGMENT_BYTES, start};
use super::traffic::Collective;
use super::{Communicator, MpiType};
use crate::error::Result;
use crate::metrics::Kind;
use crate::units::Second;

impl Communicator {
    /// Sends `send[slices[r]]` to every rank `r`, and receives rank `r`'s slice for this rank in `received[r]`; this rank's own
    /// slice is copied. Returns the seconds of the exchange.
    ///
    /// `slices` are equal on all ranks; every part of `received` is as long as this rank's own slice.
    ///
    /// # Errors
    /// Returns [`Error::Mpi`](crate::error::Error::Mpi) if MPI reports a failure.
    ///
    /// # Panics
    /// Panics if a part of `received` has another length.
    pub fn all_to_all(
        &self,
        kind: Kind,
        send: &[u8],
        slices: &[Range<usize>],
        received: &mut [Vec<u8>],
        policy: WaitPolicy,
    ) -> Result<Second> {
        let own = slices[self.rank()].clone();
        assert!(received.iter().all(|part| part.len() == own.len()), "room for this rank's slice from every rank");
        self.counted(kind, Collective::AllReduce, send.len() / 2, || {
            received[self.rank()].copy_from_slice(&send[own]);
            let mut sends = Messages::default();
            let mut receives = Messages::default();
            for (to, from) in self.partners() {
                // Nothing is written through the pointers of `sends`.
                sends.add(to, send[slices[to].clone()].as_ptr().cast_mut(), slices[to].len());
                receives.add(from, received[from].as_mut_ptr(), received[from].len());
            }
            // SAFETY: the pieces lie in `send` and `received`, borrowed until the end of the call; the received ones apart
            // from each other. Every rank takes its partners in the same order, with lengths that all know.
            unsafe { exchange(self, sends, receives, policy) }
        })
    }

    /// Sends this rank's `values[slices[rank]]` to all others, and receives theirs at their places in `values`. Returns the
    /// seconds of the exchange.
    ///
    /// # Errors
    /// Returns [`Error::Mpi`](crate::error::Error::Mpi) if MPI reports a failure.
    ///
    /// # Panics
    /// Panics if a slice ends beyond `values`.
    pub fn all_gather_slices<T: MpiType>(
        &self,
        kind: Kind,
        values: &mut [T],
        slices: &[Range<usize>],
        policy: WaitPolicy,
    ) -> Result<Second> {
        let bytes = size_of_val(values);
        self.counted(kind, Collective::AllReduce, bytes - bytes / 2, || {
            let base = values.as_mut_ptr();
            let mut sends = Messages::default();
            let mut receives = Messages::default();
            let part = |rank: usize| {
                assert!(slices[rank].end <= values.len(), "a slice lies inside the values");
                (base.wrapping_add(slices[rank].start).cast::<u8>(), slices[rank].len() * size_of::<T>())
            };
            for (to, from) in self.partners() {
                let ((own, length), (other, other_length)) = (part(self.rank()), part(from));
                sends.add(to, own, length);
                receives.add(from, other, other_length);
            }
            // SAFETY: as in `all_to_all`; what is received lies in other slices than what is sent. Any bytes of a number
            // that MPI can send are such a number.
            unsafe { exchange(self, sends, receives, policy) }
        })
    }

    /// Sends the r-th part of `source` to rank r, and receives rank r's part for this rank as the r-th of `target`, from all ranks
    /// at once. Returns the seconds of the exchange.
    ///
    /// # Errors
    /// Returns [`Error::Mpi`](crate::error::Error::Mpi) if MPI reports a failure.
    ///
    /// # Panics
    /// Panics if the buffers are not equally long, of one part per rank.
    pub fn all_to_all_parts<T: MpiType>(
        &self,
        kind: Kind,
        source: &[T],
        target: &mut [T],
        policy: WaitPolicy,
    ) -> Result<Second> {
        assert!(source.len() == target.len() && source.len().is_multiple_of(self.size()), "one part per rank");
        let length = source.len() / self.size();
        self.counted(kind, Collective::AllToAll, size_of_val(source), || {
            let own = self.rank() * length..(self.rank() + 1) * length;
            target[own.clone()].copy_from_slice(&source[own]);
            let (from_base, to_base) = (source.as_ptr().cast_mut(), target.as_mut_ptr());
            let part = |base: *mut T, rank: usize| base.wrapping_add(rank * length).cast::<u8>();
            let mut sends = Messages::default();
            let mut receives = Messages::default();
            for (to, from) in self.partners() {
                // Nothing is written through the pointers of `sends`.
                sends.add(to, part(from_base, to), length * size_of::<T>());
                receives.add(from, part(to_base, from), length * size_of::<T>());
            }
            // SAFETY: as in `all_to_all`; the parts of `target` lie apart from each other.
            unsafe { exchange(self, sends, receives, policy) }
        })
    }

    /// Pairs (destination rank, source rank), nearest ranks first.
    fn partners(&self) -> impl Iterator<Item = (usize, usize)> {
        let (rank, size) = (self.rank(), self.size());
        (1..size).map(move |distance| ((rank + distance) % size, (rank + size - distance) % size))
    }
}

/// Pieces of memory to send to or receive from other ranks, in this order.
#[derive(Default)]
struct Messages {
    pieces: Vec<(usize, *mut u8, usize)>,
}

impl Messages {
    /// Adds `bytes` bytes from `data` on, to or from `rank`, cut into segments of [`SEGMENT_BYTES`].
    fn add(&mut self, rank: usize, data: *mut u8, bytes: usize) {
        for first in (0..bytes).step_by(SEGMENT_BYTES) {
            self.pieces.push((rank, data.wrapping_add(first), SEGMENT_BYTES.min(bytes - first)));
        }
    }
}

/// Sends and receives, at most [`DEPTH`] of each at a time.
///
/// All ranks take their partners in the order of distance, so messages of one distance only wait for those of smaller
/// distances: no deadlock.
///
/// # Safety
/// All pieces are valid until this returns, those received apart from all others; the other ranks call it with the
/// matching pieces. It returns early only with an error, which ends the job.
unsafe fn exchange(ranks: &Communicator, sends: Messages, receives: Messages, policy: WaitPolicy) -> Result<()> {
    let mut sends = sends.pieces.into_iter();
    let mut receives = receives.pieces.into_iter();
    let (mut sending, mut receiving) = (VecDeque::with_capacity(DEPTH), VecDeque::with_capacity(DEPTH));
    let mut backoff = Backoff::between_hosts(policy);
    loop {
        // SAFETY: the caller's promise.
        unsafe {
            while receiving.len() < DEPTH
                && let Some((rank, data, bytes)) = receives.next()
            {
                receiving.push_back(start(ranks, Direction::From(rank as c_int), data, bytes)?);
            }
            while sending.len() < DEPTH
                && let Some((rank, data, bytes)) = sends.next()
            {
                sending.push_back(start(ranks, Direction::To(rank as c_int), data, bytes)?);
            }
        }
        if receiving.is_empty() && sending.is_empty() {
            return Ok(());
        }
        if drain(ranks, &mut receiving)? | drain(ranks, &mut sending)? {
            backoff.restart();
        } else {
            backoff.pause();
        }
    }
}

/// Removes completed requests from the front; returns whether there was one.
fn drain(ranks: &Communicator, requests: &mut VecDeque<ffi::MPI_Request>) -> Result<bool> {
    let before = requests.len();
    while let Some(request) = requests.front_mut() {
        if !ranks.is_done(request)? {
            break;
        }
        requests.pop_front();
    }
    Ok(requests.len() < before)
}
