//! The hosts of a communicator's ranks: who shares memory, who speaks for a host, and how fast the network between hosts is.

use std::time::Instant;

use super::backoff::WaitPolicy;
use super::cost::{Link, MPI_MEASURED, Network, RackNetwork};
use super::halving::{self, Rounds};
use super::racks::{self, Racks};
use super::segments::{self, SEGMENT_BYTES};
use super::{Combine, Communicator};
use crate::error::Result;
use crate::metrics::{Kind, median_of};
use crate::units::{Bytes, Second};

/// Ranks by host.
pub(super) struct Hosts {
    /// Ranks of this host.
    pub(super) here: Communicator,
    /// First rank of every host, ordered by rack; `None` on all other ranks.
    pub(super) leaders: Option<Communicator>,
    /// Number of hosts.
    pub(super) count: usize,
    /// Racks of the hosts; `None` where they are not known or make no difference.
    pub(super) racks: Option<Racks>,
}

/// Bytes of a short hop and all-reduce.
const SHORT: usize = 8;
/// Bytes of a long hop: several segments, and more than a network card or a shaper takes at once in all hops.
const LONG_HOP: usize = 4 * SEGMENT_BYTES;
/// Bytes of a long all-reduce.
const LONG: usize = 1 << 20;
/// Calls with each size that are timed, after one that is not: it may have to connect first.
const SHORT_TIMES: usize = 9;
const LONG_TIMES: usize = 3;
const TIMES: usize = SHORT_TIMES + LONG_TIMES;

impl Hosts {
    /// The hosts of the ranks of `communicator`. A collective.
    ///
    /// # Errors
    /// Returns [`Error::Rack`](crate::error::Error::Rack) on all ranks if the racks contradict each other, and
    /// [`Error::Mpi`](crate::error::Error::Mpi) if MPI reports a failure.
    pub(super) fn of(communicator: &Communicator) -> Result<Hosts> {
        let here = communicator.split_by_host()?;
        let mut leaders = communicator.split((here.rank() == 0).then_some(0))?;
        let mut numbers = [f64::from(u8::from(here.rank() == 0))];
        communicator.all_reduce(Kind::Control, Combine::Sum, &mut numbers)?;
        let racks = match racks::agreed(communicator, &here)? {
            Some(rack) => Racks::of(&here, &mut leaders, rack)?,
            None => None,
        };
        Ok(Hosts { here, leaders, count: numbers[0] as usize, racks })
    }

    /// Whether the hosts stand in racks of equal size, so that a hierarchical all-reduce has slices to exchange between them.
    pub(super) fn have_equal_racks(&self) -> bool {
        self.racks.as_ref().is_some_and(Racks::are_equal)
    }

    /// Measures the network between the hosts of `communicator`, in `O(log n)` time for `n` hosts: some hops of a ring and some
    /// all-reduces by halving among the leaders, some hops within and between racks, and some calls of MPI_Allreduce. `None` with one
    /// host, where nothing is sent. All ranks get the same numbers. A collective.
    ///
    /// # Errors
    /// Returns [`Error::Mpi`](crate::error::Error::Mpi) if MPI reports a failure.
    pub(super) fn measure(&self, communicator: &Communicator) -> Result<Option<Network>> {
        if self.count < 2 {
            return Ok(None);
        }
        // Seconds of hops, of halving, of MPI, of hops within and between racks and of the barriers within hosts.
        let mut seconds = vec![0.0; 5 * TIMES + SHORT_TIMES];
        let (hops, rest) = seconds.split_at_mut(TIMES);
        let (halvings, rest) = rest.split_at_mut(TIMES);
        let (mpi, rest) = rest.split_at_mut(TIMES);
        let (in_racks, rest) = rest.split_at_mut(TIMES);
        let (between_racks, within) = rest.split_at_mut(TIMES);
        let of_racks = self.racks.as_ref().map_or([0; 2], |racks| [racks.hosts[1], racks.count]);
        let counts = [self.count, of_racks[0], of_racks[1]].map(hop_count);
        let sent = (self.count * (LONG_TIMES + 1) * (2 * LONG + counts.iter().sum::<usize>() * LONG_HOP)) as Bytes;
        communicator.counted_as(Kind::Control, LONG, sent, || {
            let Some(leaders) = &self.leaders else { return Ok(()) };
            time_halving(leaders, halvings)?;
            time_hops(leaders, Some(leaders), counts[0], hops)?;
            if let Some(peers) = self.racks.as_ref().and_then(|racks| racks.peers.as_ref()) {
                time_hops(leaders, Some(&peers.within), counts[1], in_racks)?;
                time_hops(leaders, peers.between.as_ref(), counts[2], between_racks)?;
            }
            Ok(())
        })?;
        communicator.patient_barrier(WaitPolicy::Sleep)?; // other ranks than leaders have waited
        let mut values = vec![0.0; MPI_MEASURED / size_of::<f64>()];
        each_size(mpi, |is_long| {
            communicator.barrier()?;
            let length = if is_long { values.len() } else { 1 };
            communicator.all_reduce(Kind::Control, Combine::Max, &mut values[..length])
        })?;
        if self.here.size() > 1 {
            for seconds in within {
                *seconds = self.here.barrier()? + self.here.barrier()? + self.here.barrier()?;
            }
        }
        // A call takes as long as on its slowest rank.
        communicator.all_reduce(Kind::Control, Combine::Max, &mut seconds)?;
        let line = |seconds: &[Second], sizes: [usize; 2]| {
            let (short, long) = seconds.split_at(SHORT_TIMES);
            Link::through((sizes[0], median_of(short.iter().copied())), (sizes[1], median_of(long.iter().copied())))
        };
        Ok(Some(Network {
            hosts: self.count,
            hop: line(&seconds[..TIMES], [SHORT, LONG_HOP]),
            halving: line(&seconds[TIMES..2 * TIMES], [SHORT, LONG]),
            mpi: line(&seconds[2 * TIMES..3 * TIMES], [SHORT, MPI_MEASURED]),
            within: median_of(seconds[5 * TIMES..].iter().copied()),
            racks: self.racks.as_ref().map(|racks| RackNetwork {
                count: racks.count,
                hosts: racks.hosts,
                within: line(&seconds[3 * TIMES..4 * TIMES], [SHORT, LONG_HOP]),
                between: line(&seconds[4 * TIMES..5 * TIMES], [SHORT, LONG_HOP]),
            }),
        }))
    }
}

/// Times all-reduces by halving among the `leaders`.
fn time_halving(leaders: &Communicator, halvings: &mut [Second]) -> Result<()> {
    let (policy, mut values) = (WaitPolicy::Spin, vec![0f32; LONG / size_of::<f32>()]);
    each_size(halvings, |is_long| {
        halving::all_reduce(leaders, &mut values[..1], policy)?; // so that all begin at once
        let started = Instant::now();
        let bytes = if is_long { LONG } else { SHORT };
        halving::all_reduce(leaders, &mut values[..bytes / size_of::<f32>()], policy)?;
        Ok(started.elapsed().as_secs_f64())
    })
}

/// Times `count` hops of a ring of this leader's `peers`, while all other `leaders` do so with theirs; 0 without peers.
fn time_hops(leaders: &Communicator, peers: Option<&Communicator>, count: usize, hops: &mut [Second]) -> Result<()> {
    let (policy, mut values) = (WaitPolicy::Spin, vec![0f32; 2 * LONG_HOP / size_of::<f32>()]);
    each_size(hops, |is_long| {
        halving::all_reduce(leaders, &mut values[..1], policy)?;
        let Some(peers) = peers.filter(|peers| peers.size() > 1) else { return Ok(0.0) };
        let (rank, size) = (peers.rank(), peers.size());
        let started = Instant::now();
        let length = if is_long { LONG_HOP } else { SHORT } / size_of::<f32>();
        let most = SEGMENT_BYTES / size_of::<f32>();
        let plan = Rounds::chain((rank + size - 1) % size, (rank + 1) % size, length, count, most);
        segments::run(peers, &plan, &mut values, policy)?;
        Ok(started.elapsed().as_secs_f64() / count as f64)
    })
}

/// Fills `seconds` with those of calls with short messages, then of calls with long ones; the first of each kind is not counted.
fn each_size(seconds: &mut [Second], mut call: impl FnMut(bool) -> Result<Second>) -> Result<()> {
    let (short, long) = seconds.split_at_mut(SHORT_TIMES);
    for (seconds, is_long) in [(short, false), (long, true)] {
        call(is_long)?;
        for seconds in seconds {
            *seconds = call(is_long)?;
        }
    }
    Ok(())
}

/// Hops that are timed in a row, for a ring of `hosts` hosts; 0 if there is none.
fn hop_count(hosts: usize) -> usize {
    hosts.checked_ilog2().map_or(0, |rounds| 2 * (rounds as usize + 1))
}
