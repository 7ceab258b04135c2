//! The table `/crossovers`: what the all-reduce between hosts does with buffers of which size, by number of ranks. It is measured
//! once and kept, so that a sweep that goes on sums as it began.

use crate::collective::{Crossovers, Network};
use crate::table::{Schema, Table};
use crate::units::{Second, gigabytes_per_second};

/// What one number of ranks on several hosts does.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Kept {
    ranks: usize,
    hosts: usize,
    crossovers: Crossovers,
    hop_latency: Second,
    hop_bandwidth: f64,
}

impl Kept {
    /// What `ranks` on `hosts` hosts conclude from their `network`.
    pub(super) fn of(ranks: usize, hosts: usize, network: &Network) -> Kept {
        let (hop_latency, hop_bandwidth) = (network.hop.latency, network.hop.bandwidth());
        Kept { ranks, hosts, crossovers: network.crossovers(), hop_latency, hop_bandwidth }
    }
}

/// What `kept` says of `ranks` on `hosts`.
pub(super) fn find(kept: &[Kept], ranks: usize, hosts: usize) -> Option<Crossovers> {
    kept.iter().find(|kept| kept.ranks == ranks && kept.hosts == hosts).map(|kept| kept.crossovers)
}

/// Columns of `/crossovers`.
pub(super) fn schema() -> Schema<Kept> {
    Schema::new("crossovers", "row")
        .count(("ranks", "1", "number of ranks in the all-reduce"), |kept: &Kept| kept.ranks)
        .put(|kept, value| kept.ranks = value as usize)
        .count(("hosts", "1", "hosts of these ranks"), |kept| kept.hosts)
        .put(|kept, value| kept.hosts = value as usize)
        .integer(("mpi_below", "B", "smaller buffers are reduced by MPI_Allreduce"), |kept| kept.crossovers.mpi_below as i64)
        .put(|kept, value| kept.crossovers.mpi_below = value as u64)
        .integer(
            (
                "hierarchical_from",
                "B",
                "buffers from this size on, below ring_from, are reduced rack by rack; without racks: ring_from",
            ),
            |kept| kept.crossovers.hierarchical_from as i64,
        )
        .put(|kept, value| kept.crossovers.hierarchical_from = value as u64)
        .integer(
            (
                "ring_from",
                "B",
                "buffers from this size on go around the ring, those between by halving and doubling, or rack by rack; 2^40: none",
            ),
            |kept| kept.crossovers.ring_from as i64,
        )
        .put(|kept, value| kept.crossovers.ring_from = value as u64)
        .float(("hop_latency", "s", "a hop from host to host without data, all hosts at once"), |kept| kept.hop_latency)
        .put(|kept, value| kept.hop_latency = value)
        .float(("hop_bandwidth", "GB/s", "bytes of a long hop per second, all hosts at once"), |kept| {
            gigabytes_per_second(kept.hop_bandwidth)
        })
        .put(|kept, value| kept.hop_bandwidth = value * 1e9)
}

/// The table `/crossovers`; `None` if nothing was measured.
pub(super) fn table(kept: &[Kept]) -> Option<Table> {
    (!kept.is_empty()).then(|| schema().table(kept))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::Link;

    #[test]
    fn a_table_gives_back_what_was_measured_for_as_many_ranks_and_hosts() {
        let link = Link { latency: 1e-4, per_byte: 1e-8 };
        let network = Network { hosts: 2, hop: link, halving: link, mpi: link, within: 0.0, racks: None };
        let kept = [Kept::of(4, 2, &network)];
        let back = schema().read(&table(&kept).unwrap());
        assert_eq!((back[0].ranks, back[0].hosts, back[0].hop_latency), (4, 2, 1e-4));
        assert!((back[0].hop_bandwidth / 1e8 - 1.0).abs() < 1e-9);
        assert_eq!(find(&back, 4, 2), Some(network.crossovers()));
        assert_eq!((find(&back, 4, 4), find(&back, 2, 2)), (None, None));
        assert!(table(&[]).is_none());
    }
}
