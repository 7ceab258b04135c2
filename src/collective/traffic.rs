//! What a collective makes its ranks send each other.

use crate::units::Bytes;

/// A collective, by where its numbers must go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Collective {
    /// Nothing but the news that everybody is there.
    Barrier,
    /// The sum of all to all.
    AllReduce,
    /// From one to all.
    Broadcast,
    /// From all to one.
    Gather,
    /// From all to all.
    AllGather,
}

impl Collective {
    /// Bytes that `ranks` ranks send in all when each brings a buffer of `bytes`.
    ///
    /// The least that messages between two ranks can do it with, which trees, rings and pipelines all meet for one-to-all
    /// and all-to-all; MPI sends more where a small all-reduce goes by recursive doubling (`ranks log2(ranks)` buffers) or a
    /// small gather up a tree. Source: Thakur, Rabenseifner, Gropp, Optimization of Collective Communication Operations in
    /// MPICH, 2005, sections 4 to 6. The test `the_ledger_tells_what_mpi_sent` holds it against Open MPI's own count.
    pub(super) fn sent(self, ranks: usize, bytes: usize) -> Bytes {
        let buffers = match self {
            Collective::Barrier => 0,
            Collective::AllReduce => 2 * (ranks - 1),
            Collective::Broadcast | Collective::Gather => ranks - 1,
            Collective::AllGather => ranks * (ranks - 1),
        };
        (buffers * bytes) as Bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ranks_together_send_an_all_reduces_buffer_twice_but_for_their_own() {
        assert_eq!(Collective::AllReduce.sent(1, 100), 0);
        assert_eq!(Collective::AllReduce.sent(4, 100), 600); // a ring: 2 (n-1)/n of it each
        assert_eq!(Collective::Broadcast.sent(4, 100), 300);
        assert_eq!(Collective::Gather.sent(4, 100), 300);
        assert_eq!(Collective::AllGather.sent(4, 100), 1200);
        assert_eq!(Collective::Barrier.sent(4, 0), 0);
    }
}
