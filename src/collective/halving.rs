//! Recursive halving and doubling: an all-reduce in `2 log2(n)` rounds, for small and medium buffers of ranks with a network
//! between them.
//!
//! A reduce-scatter by halving: in round `k` a rank exchanges with its partner at distance `2^k` half of the elements that it
//! still sums, and adds what comes to the half that it keeps. Then an all-gather by doubling: the same exchanges in reverse
//! order, of finished sums. The longest messages go to the nearest partner. Each rank sends `2 (n-1)/n` of the buffer, as in a
//! ring. If `n` is no power of two, each of the first ranks in excess of one sends its whole buffer to its neighbor before, and
//! receives the sums after: two rounds more, and up to three times the traffic of a ring.
//! Source: Thakur, Rabenseifner, Gropp, Optimization of Collective Communication Operations in MPICH, 2005, section 4.5.

use std::ops::Range;

use super::backoff::WaitPolicy;
use super::segments::{self, Message, Plan, SEGMENT_BYTES};
use super::{Communicator, Element};
use crate::error::Result;

/// Replaces every rank's `values` by their sum, bit-identical on all ranks: one rank adds each element's last summand.
pub(super) fn all_reduce<T: Element>(ranks: &Communicator, values: &mut [T], policy: WaitPolicy) -> Result<()> {
    let plan = Rounds::halving(ranks.rank(), ranks.size(), values.len(), SEGMENT_BYTES / size_of::<T>());
    segments::run(ranks, &plan, values, policy)
}

/// Exchanges of one rank, in which it sends to one peer and receives from one.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    sends: Messages,
    receives: Messages,
    /// Number of messages received that are summands; they come before all others.
    summands: usize,
    /// Elements of a message at most.
    most: usize,
}

/// Messages in one direction.
#[derive(Debug, Default)]
struct Messages {
    /// In their order, each with the number of messages in the other direction that must be complete before it.
    list: Vec<(Message, usize)>,
    /// Elements and first message of every exchange.
    exchanges: Vec<(Range<usize>, usize)>,
}

impl Messages {
    /// Adds an exchange of `elements`, cut into messages of `most` elements; each waits for the messages of `other` that carry some
    /// of its elements.
    fn add(&mut self, peer: usize, elements: Range<usize>, most: usize, other: &Messages) {
        if elements.is_empty() {
            return;
        }
        self.exchanges.push((elements.clone(), self.list.len()));
        for start in elements.clone().step_by(most) {
            let elements = start..start.saturating_add(most).min(elements.end);
            let after = other.complete_with(&elements, most);
            self.list.push((Message { peer, elements }, after));
        }
    }

    /// Number of messages until the last one that carries any of `elements`.
    fn complete_with(&self, elements: &Range<usize>, most: usize) -> usize {
        let overlaps = |of: &Range<usize>| of.start < elements.end && elements.start < of.end;
        let last = self.exchanges.iter().rev().find(|(exchanged, _)| overlaps(exchanged));
        last.map_or(0, |(exchanged, first)| {
            let last_element = elements.end.min(exchanged.end) - 1;
            first + (last_element - exchanged.start) / most + 1
        })
    }
}

impl Rounds {
    /// The all-reduce of `elements` over `ranks`, by `rank`, in messages of `most` elements.
    pub(super) fn halving(rank: usize, ranks: usize, elements: usize, most: usize) -> Rounds {
        let mut rounds = Rounds { most, ..Rounds::default() };
        let (levels, excess) = (ranks.ilog2(), ranks - (1 << ranks.ilog2()));
        let folded = rank < 2 * excess;
        if folded && rank.is_multiple_of(2) {
            rounds.send(rank + 1, 0..elements);
            rounds.receive(rank + 1, 0..elements);
            return rounds;
        }
        if folded {
            rounds.receive(rank - 1, 0..elements);
        }
        // Number among the ranks that go on, and the rank of such a number.
        let number = if folded { rank / 2 } else { rank - excess };
        let rank_of = |number: usize| if number < excess { 2 * number + 1 } else { number + excess };
        let mut exchanges = Vec::new(); // partner, part kept, part sent
        let mut own = 0..elements;
        for level in 0..levels {
            let middle = own.start + own.len() / 2;
            let (lower, upper) = (own.start..middle, middle..own.end);
            let (kept, sent) = if (number >> level) & 1 == 0 { (lower, upper) } else { (upper, lower) };
            exchanges.push((rank_of(number ^ (1 << level)), kept.clone(), sent));
            own = kept;
        }
        for (partner, kept, sent) in &exchanges {
            rounds.exchange(*partner, sent.clone(), *partner, kept.clone());
        }
        rounds.summands = rounds.receives.list.len();
        for (partner, kept, received) in exchanges.into_iter().rev() {
            // What was kept is whole again: the sums of all later exchanges have come.
            rounds.exchange(partner, kept, partner, received);
        }
        if folded {
            rounds.send(rank - 1, 0..elements);
        }
        rounds
    }

    /// `hops` hops of a ring without sums: what came from `previous` goes on to `next`, `length` elements each time, in a buffer
    /// of twice as many.
    pub(super) fn chain(previous: usize, next: usize, length: usize, hops: usize, most: usize) -> Rounds {
        let mut rounds = Rounds { most, ..Rounds::default() };
        let halves = [0..length, length..2 * length];
        for hop in 0..hops {
            rounds.exchange(next, halves[hop % 2].clone(), previous, halves[(hop + 1) % 2].clone());
        }
        rounds
    }

    /// Adds an exchange in which both directions run at once.
    fn exchange(&mut self, to: usize, sent: Range<usize>, from: usize, received: Range<usize>) {
        self.send(to, sent);
        self.receive(from, received);
    }

    fn send(&mut self, to: usize, elements: Range<usize>) {
        self.sends.add(to, elements, self.most, &self.receives);
    }

    fn receive(&mut self, from: usize, elements: Range<usize>) {
        self.receives.add(from, elements, self.most, &self.sends);
    }
}

impl Plan for Rounds {
    fn sends(&self) -> usize {
        self.sends.list.len()
    }

    fn receives(&self) -> usize {
        self.receives.list.len()
    }

    fn sent(&self, index: usize) -> Message {
        self.sends.list[index].0.clone()
    }

    fn received(&self, index: usize) -> Message {
        self.receives.list[index].0.clone()
    }

    fn adds(&self, index: usize) -> bool {
        index < self.summands
    }

    fn may_send(&self, index: usize, received: usize) -> bool {
        self.sends.list[index].1 <= received
    }

    fn may_receive(&self, index: usize, sent: usize) -> bool {
        self.receives.list[index].1 <= sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::segments::tests::play;

    fn plans(ranks: usize, elements: usize, most: usize) -> Vec<Rounds> {
        (0..ranks).map(|rank| Rounds::halving(rank, ranks, elements, most)).collect()
    }

    #[test]
    fn every_rank_ends_with_every_sum_after_twice_log2_rounds() {
        let counts = (1..=40).chain([63, 64, 65, 127, 255, 256, 511, 513, 1000, 1023, 1024]);
        for ranks in counts {
            let rounds = play(&plans(ranks, 2 * ranks + 1, usize::MAX), 2 * ranks + 1);
            let fold = if ranks.is_power_of_two() { 0 } else { 2 };
            assert_eq!(rounds, 2 * ranks.ilog2() as usize + fold, "{ranks} ranks");
        }
        for (ranks, elements, most) in
            [(2, 10, 3), (3, 10, 2), (4, 3, 5), (4, 1000, 7), (5, 1, 1), (6, 100, 9), (2, 0, 4)]
        {
            play(&plans(ranks, elements, most), elements);
        }
    }

    #[test]
    fn a_power_of_two_of_ranks_sends_no_more_than_a_ring() {
        for ranks in [2, 8, 64] {
            for plan in plans(ranks, 6400, 100) {
                let sent: usize = (0..plan.sends()).map(|index| plan.sent(index).elements.len()).sum();
                assert_eq!(sent, 2 * 6400 * (ranks - 1) / ranks);
            }
        }
    }
}
