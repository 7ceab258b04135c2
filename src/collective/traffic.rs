//! Bytes that the ranks of a collective send each other.

use crate::units::Bytes;

/// Pattern of a collective's messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Collective {
    /// Synchronization without data.
    Barrier,
    /// Sum of all ranks' buffers, on every rank.
    AllReduce,
    /// One rank's buffer, on every rank.
    Broadcast,
    /// All ranks' buffers, on one rank.
    Gather,
    /// All ranks' buffers, on every rank.
    AllGather,
}

impl Collective {
    /// Bytes that `ranks` ranks send in all when each brings a buffer of `bytes`.
    ///
    /// This is the lower bound for point-to-point messages, which trees, rings and pipelines all meet for one-to-all and
    /// all-to-all; MPI sends more where a small all-reduce uses recursive doubling (`ranks log2(ranks)` buffers) or a small
    /// gather a tree. Source: Thakur, Rabenseifner, Gropp, Optimization of Collective Communication Operations in
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
