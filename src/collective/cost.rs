//! The cost of an all-reduce between hosts by each algorithm, and the sizes from which each is the fastest. Pure arithmetic on
//! the network's measured latencies and bandwidths, so that all ranks that have the same numbers decide alike.

use crate::config::Algorithm;
use crate::units::Second;

/// Sizes at which an all-reduce between hosts changes its algorithm: `parallel.crossovers`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crossovers {
    /// Buffers of fewer bytes are reduced by MPI_Allreduce.
    pub mpi_below: u64,
    /// Buffers of at least as many bytes, and of at least `mpi_below`, go around the ring; those between by halving and doubling.
    pub ring_from: u64,
}

impl From<Crossovers> for Vec<u64> {
    fn from(crossovers: Crossovers) -> Vec<u64> {
        vec![crossovers.mpi_below, crossovers.ring_from]
    }
}

impl Crossovers {
    /// A `ring_from` that no buffer reaches.
    pub const NEVER: u64 = 1 << 40;

    /// The crossovers that are configured; `None` if they are to be measured.
    pub fn configured(sizes: &[u64]) -> Option<Crossovers> {
        match *sizes {
            [mpi_below, ring_from] => Some(Crossovers { mpi_below, ring_from }),
            _ => None,
        }
    }

    /// Algorithm of a buffer of `bytes` bytes.
    pub fn algorithm(&self, bytes: usize) -> Algorithm {
        match bytes as u64 {
            bytes if bytes < self.mpi_below => Algorithm::Mpi,
            bytes if bytes < self.ring_from => Algorithm::Halving,
            _ => Algorithm::Shared,
        }
    }
}

/// Hockney's model of a pattern of messages, or of a collective: `latency + bytes * per_byte` seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Link {
    /// Seconds without data.
    pub latency: Second,
    /// Seconds per byte.
    pub per_byte: Second,
}

impl Link {
    /// The line through the seconds of a `small` and of a `large` message, each with its bytes.
    pub(super) fn through(small: (usize, Second), large: (usize, Second)) -> Link {
        let per_byte = ((large.1 - small.1) / (large.0 - small.0) as f64).max(0.0);
        Link { latency: (small.1 - per_byte * small.0 as f64).max(0.0), per_byte }
    }

    /// Bytes per second beside the latency; NaN if the time did not grow with the bytes.
    pub fn bandwidth(&self) -> f64 {
        if self.per_byte > 0.0 { 1.0 / self.per_byte } else { f64::NAN }
    }

    /// Seconds for `bytes` bytes.
    pub fn seconds(&self, bytes: f64) -> Second {
        self.latency + self.per_byte * bytes
    }
}

/// What the all-reduce between the hosts of a job takes, as measured at its start with all hosts sending at once.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    /// Number of hosts.
    pub hosts: usize,
    /// One hop of a ring: every host sends to the next one and receives from the one before.
    pub hop: Link,
    /// A whole all-reduce by halving and doubling among one rank per host.
    pub halving: Link,
    /// MPI_Allreduce over all ranks.
    pub mpi: Link,
    /// Seconds in which the ranks of each host wait for each other during one all-reduce through shared memory.
    pub within: Second,
}

/// Bytes up to which MPI_Allreduce is measured: beyond, MPI may use another algorithm, and the line is not prolonged.
pub(super) const MPI_MEASURED: usize = 64 << 10;

impl Network {
    /// All-reduce by a ring of one rank per host: `2 (n-1)` hops of `bytes / n`. Not measured as a whole, which would take a time
    /// that grows with `n`.
    ///
    /// Source: Thakur, Rabenseifner, Gropp, Optimization of Collective Communication Operations in MPICH, 2005, section 4.
    fn ring(&self) -> Link {
        let n = self.hosts as f64;
        let hops = 2.0 * (n - 1.0);
        Link { latency: self.within + hops * self.hop.latency, per_byte: hops / n * self.hop.per_byte }
    }

    /// The sizes from which each algorithm is the fastest, rounded to powers of two, so that small differences between two
    /// measurements change nothing.
    pub fn crossovers(&self) -> Crossovers {
        let (ring, mut halving, mpi) = (self.ring(), self.halving, self.mpi);
        halving.latency += self.within;
        let own = |bytes: u64| ring.seconds(bytes as f64).min(halving.seconds(bytes as f64));
        let sizes = std::iter::successors(Some(1), |bytes: &u64| Some(bytes * 2));
        let wins = |bytes: &u64| mpi.seconds(*bytes as f64) < own(*bytes);
        let mpi_below = sizes.take_while(|bytes| *bytes <= MPI_MEASURED as u64).take_while(wins).last().unwrap_or(0);
        Crossovers { mpi_below, ring_from: below(&halving, &ring).max(mpi_below) }
    }
}

/// Bytes of a usual bucket of gradients.
const BUCKET: f64 = 1e6;

/// Bytes below which `first` is faster than `second`: 0 if it never is; a power of two, at most [`Crossovers::NEVER`].
fn below(first: &Link, second: &Link) -> u64 {
    let (ahead, gained) = (second.latency - first.latency, first.per_byte - second.per_byte);
    match (ahead > 0.0, gained > 0.0) {
        (false, true) => 0,
        (true, true) => 2f64.powf((ahead / gained).log2().round()).clamp(1.0, Crossovers::NEVER as f64) as u64,
        (true, false) => Crossovers::NEVER,
        // Behind at first and gaining with every byte, which two sizes cannot say: what is faster for a bucket goes for all.
        (false, false) if first.seconds(BUCKET) < second.seconds(BUCKET) => Crossovers::NEVER,
        (false, false) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `hosts` with links of one `latency` and `bandwidth`, in bytes per second, and halving in which a rank sends `buffers`
    /// buffers in all.
    fn network(hosts: usize, latency: Second, bandwidth: f64, buffers: f64) -> Network {
        let hop = Link { latency, per_byte: 1.0 / bandwidth };
        let rounds = 2 * hosts.ilog2() + if hosts.is_power_of_two() { 0 } else { 2 };
        let halving = Link { latency: f64::from(rounds) * latency, per_byte: buffers / bandwidth };
        let mpi = Link { latency: 10.0 * latency, per_byte: 2.0 * (hosts as f64).log2() / bandwidth };
        Network { hosts, hop, halving, mpi, within: 0.0 }
    }

    #[test]
    fn a_ring_costs_what_the_textbook_says() {
        let cost = |hosts| network(hosts, 1e-4, 1e8, 1.0).ring().seconds(1e6);
        assert!((cost(4) - (6e-4 + 1.5 * 0.01)).abs() < 1e-12);
        assert!((cost(5) - (8e-4 + 1.6 * 0.01)).abs() < 1e-12);
    }

    #[test]
    fn the_ring_takes_over_where_its_lower_traffic_outweighs_its_rounds() {
        // A power of two of hosts sends as little by halving, in fewer rounds.
        assert_eq!(network(4, 1e-4, 1e8, 1.5).crossovers().ring_from, Crossovers::NEVER);
        // 5 hosts: 2 latencies less, 1.9 buffers more: 10.5 kB, which is nearest to 8 KiB.
        assert_eq!(network(5, 1e-4, 1e8, 3.5).crossovers().ring_from, 8192);
        // Halving over far links that are slower: 2026 hops less, 2 buffers more.
        let ring_from = network(1024, 20e-6, 1e9, 4.0).crossovers().ring_from;
        assert_eq!(ring_from, 1 << 24);
        // Never faster, whatever the noise.
        let mut two = network(2, 1e-4, 1e8, 1.1);
        two.halving.latency *= 1.1;
        assert_eq!(two.crossovers().ring_from, 0);
    }

    #[test]
    fn mpi_is_chosen_for_what_it_was_measured_with_and_faster() {
        let mut four = network(4, 1e-4, 1e8, 1.5);
        assert_eq!(four.crossovers().mpi_below, 0);
        four.mpi.latency = 1e-4;
        // 0.1 ms + 40 ns/B against 0.4 ms + 15 ns/B: up to 12 kB.
        assert_eq!(four.crossovers().mpi_below, 8192);
        four.mpi.per_byte = 0.0;
        assert_eq!(four.crossovers().mpi_below, MPI_MEASURED as u64);
        four.halving.latency = 1.0; // slower than the ring from the start, which begins where MPI ends
        assert_eq!(four.crossovers(), Crossovers { mpi_below: MPI_MEASURED as u64, ring_from: MPI_MEASURED as u64 });
        let chosen = |bytes| Crossovers { mpi_below: 8192, ring_from: 1 << 20 }.algorithm(bytes);
        assert_eq!(
            [chosen(8191), chosen(8192), chosen(1 << 20)],
            [Algorithm::Mpi, Algorithm::Halving, Algorithm::Shared]
        );
    }

    #[test]
    fn a_line_goes_through_what_was_measured() {
        let link = Link::through((8, 1e-4), (1_000_008, 1.1e-3));
        assert!((link.per_byte - 1e-9).abs() < 1e-18 && (link.seconds(8.0) - 1e-4).abs() < 1e-12);
        assert_eq!(Link::through((8, 1e-3), (1008, 1e-4)), Link { latency: 1e-3, per_byte: 0.0 });
    }
}
