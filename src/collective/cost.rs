//! The cost of an all-reduce between hosts by each algorithm, and the sizes from which each is the fastest. Pure arithmetic on
//! the network's measured latencies and bandwidths, so that all ranks that have the same numbers decide alike.

use super::hierarchical::halves;
use crate::config::Algorithm;
use crate::units::Second;

/// Sizes at which an all-reduce between hosts changes its algorithm: `parallel.crossovers`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Crossovers {
    /// Buffers of fewer bytes are reduced by MPI_Allreduce.
    pub mpi_below: u64,
    /// Buffers of at least as many bytes, and of fewer than `ring_from`, are reduced level by level, hosts and racks; without
    /// racks it is `ring_from`. Those from `mpi_below` on go by halving and doubling.
    pub hierarchical_from: u64,
    /// Buffers of at least as many bytes go around the ring.
    pub ring_from: u64,
}

impl From<Crossovers> for Vec<u64> {
    fn from(crossovers: Crossovers) -> Vec<u64> {
        let Crossovers { mpi_below, hierarchical_from, ring_from } = crossovers;
        match hierarchical_from < ring_from {
            true => vec![mpi_below, hierarchical_from, ring_from],
            false => vec![mpi_below, ring_from],
        }
    }
}

impl Crossovers {
    /// A `ring_from` that no buffer reaches.
    pub const NEVER: u64 = 1 << 40;

    /// The crossovers that are configured; `None` if they are to be measured.
    pub fn configured(sizes: &[u64]) -> Option<Crossovers> {
        match *sizes {
            [mpi_below, ring_from] => Some(Crossovers { mpi_below, hierarchical_from: ring_from, ring_from }),
            [mpi_below, hierarchical_from, ring_from] => Some(Crossovers { mpi_below, hierarchical_from, ring_from }),
            _ => None,
        }
    }

    /// Algorithm of a buffer of `bytes` bytes.
    pub fn algorithm(&self, bytes: usize) -> Algorithm {
        match bytes as u64 {
            bytes if bytes < self.mpi_below => Algorithm::Mpi,
            bytes if bytes < self.hierarchical_from => Algorithm::Halving,
            bytes if bytes < self.ring_from => Algorithm::Hierarchical,
            _ => Algorithm::Shared,
        }
    }
}

/// The algorithm that reduces a buffer of `bytes` bytes on `hosts` hosts, which stand in racks of equal size if `has_slices`, where
/// `wanted` is configured.
pub(super) fn choose(
    wanted: Algorithm,
    crossovers: Option<Crossovers>,
    hosts: usize,
    has_slices: bool,
    bytes: usize,
) -> Algorithm {
    let wanted = match wanted {
        Algorithm::Auto => crossovers.map_or(Algorithm::Shared, |crossovers| crossovers.algorithm(bytes)),
        given => given,
    };
    match wanted {
        // There is nothing between hosts, or there are no slices to exchange between racks.
        Algorithm::Halving if hosts == 1 => Algorithm::Shared,
        Algorithm::Hierarchical if !has_slices => Algorithm::Shared,
        possible => possible,
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
    /// The levels of racks; `None` if it is not known which hosts are in one rack, or makes no difference.
    pub racks: Option<RackNetwork>,
}

/// The network of racks of hosts, each level measured with all its hosts sending at once.
#[derive(Debug, Clone, PartialEq)]
pub struct RackNetwork {
    /// Number of racks.
    pub count: usize,
    /// Hosts of the smallest rack, and of the largest.
    pub hosts: [usize; 2],
    /// One hop of a ring within each rack.
    pub within: Link,
    /// One hop from each host to its peer in the next rack.
    pub between: Link,
}

impl RackNetwork {
    /// Hierarchical all-reduce without the part within hosts; `None` if the racks are not equal in size. `2 (m-1)` hops of
    /// `bytes / m` within racks of `m` hosts, and of each slice an all-reduce between the racks.
    fn hierarchical(&self) -> Option<Link> {
        let [m, largest] = self.hosts;
        let (hosts, racks) = (m as f64, self.count as f64);
        let hops = 2.0 * (hosts - 1.0);
        let rounds = if halves(self.count) { 2.0 * racks.log2() } else { 2.0 * (racks - 1.0) };
        let sent = 2.0 * (racks - 1.0) / racks / hosts;
        (m == largest).then(|| Link {
            latency: hops * self.within.latency + rounds * self.between.latency,
            per_byte: hops / hosts * self.within.per_byte + sent * self.between.per_byte,
        })
    }
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
        let mut hierarchical = self.racks.as_ref().and_then(RackNetwork::hierarchical);
        hierarchical.iter_mut().for_each(|link| link.latency += self.within);
        let own = |bytes: u64| {
            let links = [Some(&ring), Some(&halving), hierarchical.as_ref()].into_iter().flatten();
            links.map(|link| link.seconds(bytes as f64)).fold(f64::INFINITY, f64::min)
        };
        let sizes = std::iter::successors(Some(1), |bytes: &u64| Some(bytes * 2));
        let wins = |bytes: &u64| mpi.seconds(*bytes as f64) < own(*bytes);
        let mpi_below = sizes.take_while(|bytes| *bytes <= MPI_MEASURED as u64).take_while(wins).last().unwrap_or(0);
        let without = below(&halving, &ring);
        let [hierarchical_from, ring_from] = hierarchical
            .map(|link| [below(&halving, &link), below(&link, &ring)])
            .filter(|[from, to]| from < to)
            .unwrap_or([without, without])
            .map(|bytes| bytes.max(mpi_below));
        Crossovers { mpi_below, hierarchical_from, ring_from }
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
        Network { hosts, hop, halving, mpi, within: 0.0, racks: None }
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
        assert_eq!(Vec::from(four.crossovers()), [MPI_MEASURED as u64; 2]);
        let chosen = |bytes| Crossovers::configured(&[8192, 1 << 20]).unwrap().algorithm(bytes);
        assert_eq!(
            [chosen(8191), chosen(8192), chosen(1 << 20)],
            [Algorithm::Mpi, Algorithm::Halving, Algorithm::Shared]
        );
    }

    #[test]
    fn racks_behind_slow_uplinks_are_reduced_level_by_level() {
        // 2 racks of 3 hosts, an uplink of a fifth of a host's link: the ring's 5/3 buffers cross it, halving's 3 and more.
        let mut six = network(6, 1e-4, 1e8 / 5.0, 3.5);
        let link = |bandwidth: f64| Link { latency: 1e-4, per_byte: 1.0 / bandwidth };
        let [within, between] = [link(1e8), link(1e8 / 5.0 / 3.0)];
        six.racks = Some(RackNetwork { count: 2, hosts: [3, 3], within, between });
        let hierarchical = six.racks.as_ref().unwrap().hierarchical().unwrap();
        assert!((hierarchical.seconds(1e6) - (6e-4 + (4.0 / 3.0 + 5.0) * 0.01)).abs() < 1e-12);
        let Crossovers { hierarchical_from, ring_from, .. } = six.crossovers();
        assert!(hierarchical_from < 1024 && ring_from == Crossovers::NEVER, "{:?}", six.crossovers());
        let chosen = Crossovers::configured(&Vec::from(six.crossovers())).unwrap();
        assert_eq!((chosen, chosen.algorithm(1 << 20)), (six.crossovers(), Algorithm::Hierarchical));
        // Unequal racks have no such slices.
        six.racks.as_mut().unwrap().hosts = [2, 4];
        assert_eq!(Vec::from(six.crossovers()).len(), 2);
    }

    #[test]
    fn a_line_goes_through_what_was_measured() {
        let link = Link::through((8, 1e-4), (1_000_008, 1.1e-3));
        assert!((link.per_byte - 1e-9).abs() < 1e-18 && (link.seconds(8.0) - 1e-4).abs() < 1e-12);
        assert_eq!(Link::through((8, 1e-3), (1008, 1e-4)), Link { latency: 1e-3, per_byte: 0.0 });
    }
}
