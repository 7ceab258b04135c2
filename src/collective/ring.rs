//! A segmented ring all-reduce, for large buffers of ranks with a network between them.
//!
//! `n` ranks, the buffer in `n` chunks. In each of `2 (n-1)` rounds a rank sends one chunk to the next rank and receives
//! another from the one before it: the first half of the rounds adds, the second half passes the finished sums on. That
//! is the least traffic possible, `2 (n-1)/n` of the buffer each way, for any `n`, and between neighbors only.

use std::ops::Range;

use super::backoff::WaitPolicy;
use super::segments::{self, Message, Plan, SEGMENT_BYTES};
use super::{Communicator, Element};
use crate::error::Result;

/// Replaces every rank's `values` by their sum, bit-identical on all ranks: one rank adds each chunk's last summand.
pub(super) fn all_reduce<T: Element>(ranks: &Communicator, values: &mut [T], policy: WaitPolicy) -> Result<()> {
    if ranks.size() < 2 {
        return Ok(());
    }
    let plan = Ring::new(ranks.rank(), ranks.size(), values.len(), SEGMENT_BYTES / size_of::<T>());
    segments::run(ranks, &plan, values, policy)
}

/// Sums one chunk of every rank's `values` on each rank: the first half of an all-reduce. Returns the elements of this rank's chunk;
/// the others are left as they came.
pub(super) fn reduce_scatter<T: Element>(
    ranks: &Communicator,
    values: &mut [T],
    policy: WaitPolicy,
) -> Result<Range<usize>> {
    let (rank, size) = (ranks.rank(), ranks.size());
    let plan = Ring::new(rank, size, values.len(), SEGMENT_BYTES / size_of::<T>()).in_rounds(0..size - 1);
    segments::run(ranks, &plan, values, policy)?;
    Ok(plan.chunk(rank + 1))
}

/// Copies the chunk of every rank to all others: the second half of an all-reduce.
pub(super) fn all_gather<T: Element>(ranks: &Communicator, values: &mut [T], policy: WaitPolicy) -> Result<()> {
    let (rank, size) = (ranks.rank(), ranks.size());
    let plan = Ring::new(rank, size, values.len(), SEGMENT_BYTES / size_of::<T>());
    segments::run(ranks, &plan.in_rounds(size - 1..2 * (size - 1)), values, policy)
}

/// Maps a rank's n-th message to its segment, and says what must be complete before it.
struct Ring {
    rank: usize,
    ranks: usize,
    elements: usize,
    segments: usize, // per chunk
    rounds: Range<usize>,
}

impl Ring {
    fn new(rank: usize, ranks: usize, elements: usize, most: usize) -> Ring {
        let chunk = elements.div_ceil(ranks);
        Ring { rank, ranks, elements, segments: chunk.div_ceil(most).max(1), rounds: 0..2 * (ranks - 1) }
    }

    /// Part of the all-reduce: its `rounds` alone.
    fn in_rounds(self, rounds: Range<usize>) -> Ring {
        Ring { rounds, ..self }
    }

    /// Number of messages that a rank sends, which it also receives.
    fn messages(&self) -> usize {
        self.rounds.len() * self.segments
    }

    /// Round and segment of a rank's `index`-th message.
    fn round(&self, index: usize) -> (usize, usize) {
        (self.rounds.start + index / self.segments, index % self.segments)
    }

    fn chunk(&self, chunk: usize) -> Range<usize> {
        let cut = |chunk: usize| chunk * self.elements / self.ranks;
        cut(chunk % self.ranks)..cut(chunk % self.ranks + 1)
    }

    fn segment(&self, chunk: usize, segment: usize) -> Range<usize> {
        let cut = |part: usize, parts: usize, elements: usize| part * elements / parts;
        let Range { start, end } = self.chunk(chunk);
        let inside = |part| start + cut(part, self.segments, end - start);
        inside(segment)..inside(segment + 1)
    }
}

impl Plan for Ring {
    fn sends(&self) -> usize {
        self.messages()
    }

    fn receives(&self) -> usize {
        self.messages()
    }

    fn sent(&self, index: usize) -> Message {
        let (round, segment) = self.round(index);
        let elements = self.segment(self.rank + 2 * self.ranks - round, segment);
        Message { peer: (self.rank + 1) % self.ranks, elements }
    }

    fn received(&self, index: usize) -> Message {
        let (round, segment) = self.round(index);
        let elements = self.segment(self.rank + 2 * self.ranks - round - 1, segment);
        Message { peer: (self.rank + self.ranks - 1) % self.ranks, elements }
    }

    fn adds(&self, index: usize) -> bool {
        self.round(index).0 < self.ranks - 1
    }

    /// A segment came a round earlier.
    fn may_send(&self, index: usize, received: usize) -> bool {
        index < received + self.segments
    }

    /// A finished sum replaces the segment sent n-1 rounds earlier.
    fn may_receive(&self, index: usize, sent: usize) -> bool {
        self.adds(index) || index < sent + (self.ranks - 1) * self.segments
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::segments::tests::play;

    #[test]
    fn every_rank_ends_with_every_sum() {
        for (ranks, elements, most) in [(2, 10, 3), (3, 10, 2), (4, 3, 5), (4, 1000, 7), (5, 1, 1), (2, 0, 4)] {
            let plans: Vec<Ring> = (0..ranks).map(|rank| Ring::new(rank, ranks, elements, most)).collect();
            assert_eq!(play(&plans, elements), 2 * (ranks - 1));
        }
    }
}
