//! The collectives, the bytes that their ranks send each other, and their bus bandwidth.

use crate::metrics::algbw;
use crate::units::{Bytes, Second};

/// Pattern of a collective's messages. `hpml collectives` measures those that have a name on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Collective {
    /// Synchronization without data.
    #[value(skip)]
    Barrier,
    /// Sum of all ranks' buffers, on every rank.
    AllReduce,
    /// All ranks' parts, one after the other, on every rank.
    AllGather,
    /// Sum of all ranks' buffers, a part of it on each rank.
    ReduceScatter,
    /// Rank 0's buffer, on every rank.
    Broadcast,
    /// A part of every rank's buffer from each rank to each other.
    AllToAll,
    /// All ranks' buffers, on one rank.
    #[value(skip)]
    Gather,
}

impl Collective {
    /// Name on the command line and in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Collective::Barrier => "barrier",
            Collective::AllReduce => "all_reduce",
            Collective::AllGather => "all_gather",
            Collective::ReduceScatter => "reduce_scatter",
            Collective::Broadcast => "broadcast",
            Collective::AllToAll => "all_to_all",
            Collective::Gather => "gather",
        }
    }

    /// Bus bandwidth on `ranks` ranks in bytes per second: the algorithm bandwidth `bytes / time`, times the share of the buffer
    /// that each rank must send and receive over its link. NaN for one rank.
    ///
    /// `bytes` is the size of the larger of a rank's two buffers: of the result of an all-gather, of the input of a
    /// reduce-scatter. Source: nccl-tests, doc/PERFORMANCE.md, "Bus bandwidth": AllReduce `2 (n-1)/n`; ReduceScatter and
    /// AllGather `(n-1)/n`; Broadcast 1. For AlltoAll `(n-1)/n`, as in its src/alltoall.cu.
    ///
    /// ```
    /// use hpml::collective::Collective;
    /// // 100 MB in 50 ms on 4 ranks.
    /// assert_eq!(Collective::AllReduce.busbw(100_000_000, 0.05, 4), 3e9);
    /// assert_eq!(Collective::AllGather.busbw(100_000_000, 0.05, 4), 1.5e9);
    /// ```
    pub fn busbw(self, bytes: Bytes, time: Second, ranks: usize) -> f64 {
        let n = ranks as f64;
        let share = match self {
            Collective::AllReduce => 2.0 * (n - 1.0) / n,
            Collective::AllGather | Collective::ReduceScatter | Collective::AllToAll | Collective::Gather => {
                (n - 1.0) / n
            }
            Collective::Broadcast => 1.0,
            Collective::Barrier => f64::NAN,
        };
        if ranks > 1 { algbw(bytes, time) * share } else { f64::NAN }
    }

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
            Collective::Broadcast | Collective::Gather | Collective::ReduceScatter | Collective::AllToAll => ranks - 1,
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
        assert_eq!(Collective::ReduceScatter.sent(4, 100), 300);
        assert_eq!(Collective::AllToAll.sent(4, 100), 300);
        assert_eq!(Collective::Barrier.sent(4, 0), 0);
    }

    #[test]
    fn an_all_reduce_has_twice_the_bus_bandwidth_of_its_halves() {
        use crate::metrics::all_reduce_busbw;
        let busbw = |collective: Collective| collective.busbw(1_000, 0.5, 4);
        assert_eq!(busbw(Collective::AllReduce), all_reduce_busbw(1_000, 0.5, 4));
        assert_eq!(busbw(Collective::ReduceScatter) + busbw(Collective::AllGather), busbw(Collective::AllReduce));
        assert_eq!([busbw(Collective::AllToAll), busbw(Collective::Broadcast)], [1_500.0, 2_000.0]);
        assert!(Collective::Broadcast.busbw(1_000, 0.5, 1).is_nan());
    }
}
