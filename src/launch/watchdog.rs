//! The watchdog, which ends a job that would wait for ever: a rank that is stopped, or whose host is cut off, leaves the others
//! inside a collective that MPI never gives up.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Job;
use super::ancestors::ancestors;
use crate::collective::Communicator;
use crate::collective::progress::{self, Progress};
use crate::error::LOST;
use crate::message;
use crate::units::{few_ranges, format_bytes};

/// Poll interval. The thread counts its polls instead of reading a clock: a process that was itself stopped for an hour has not
/// waited for an hour.
const POLL: Duration = Duration::from_millis(200);
/// Time that MPI_Abort is given: it may itself hang if the network is gone.
const ABORT: Duration = Duration::from_secs(5);

/// Time from the message of a host that misses another host's rank to the end of the job: the other host may name the rank.
const OTHERS: Duration = Duration::from_secs(1);
/// Time between the two signals to the launcher.
const TWICE: Duration = Duration::from_millis(300);

/// Number of polls without a heartbeat after which a process counts as stopped.
const DEAD: u32 = 10;

/// A watchdog that ends the process unless it is dropped within `limit`, saying that the ranks have not `met`. For the start and
/// the end of MPI, when a rank knows nothing of the others. `None` for a limit of zero.
pub(super) fn meeting(met: &'static str, limit: Duration) -> Option<Watchdog> {
    let (stop, stopped) = channel::<()>();
    let watch = move || {
        let mut polls = 0u32;
        while stopped.recv_timeout(POLL) == Err(RecvTimeoutError::Timeout) {
            polls += 1;
            if POLL * polls >= limit {
                message::print(format_args!(
                    "hpml: the ranks have not {met} within {:.1} s: a process is stopped, or a host cannot be reached; \
                     launch.comm_timeout_s sets the limit",
                    limit.as_secs_f64()
                ));
                message::wait_until_read();
                crate::sys::exit_now(LOST.into());
            }
        }
    };
    (!limit.is_zero()).then(|| Watchdog::start(stop, watch))
}

/// A watchdog thread, which ends when this is dropped.
pub(super) struct Watchdog {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// A watchdog of this rank's collectives: when one takes longer than `limit`, it names the missing rank and ends the job. `None`
/// for a limit of zero, and for one rank.
pub(super) fn start(job: &Job, limit: Duration) -> Option<Watchdog> {
    if limit.is_zero() || job.world_size == 1 {
        return None;
    }
    let (rank, local_rank) = (job.rank, job.local_rank);
    let (here, world_size) = (job.ranks_of_host().to_vec(), job.world_size);
    // Staggered, so that one rank of a host prints its message before the others do.
    let limit = limit + Duration::from_millis(500) * local_rank as u32;
    let (stop, stopped) = channel::<()>();
    let watch = move || {
        let (mut polls, mut entered) = (0u32, 0);
        let mut lives: Vec<Life> = vec![Life::default(); progress::of_host().len()];
        while stopped.recv_timeout(POLL) == Err(RecvTimeoutError::Timeout) {
            progress::beat();
            let host = progress::of_host();
            lives.iter_mut().zip(&host).for_each(|(life, progress)| life.poll(progress));
            let own = host[local_rank];
            polls = if own.waits_for.is_some() && own.entered == entered { polls + 1 } else { 0 };
            entered = own.entered;
            if POLL * polls >= limit {
                std::thread::spawn(|| {
                    std::thread::sleep(ABORT);
                    crate::sys::exit_now(LOST.into());
                });
                if host.iter().any(|other| other.told) {
                    return; // the other rank ends the job
                }
                progress::set_told();
                let missing = Missing::find(local_rank, &here, world_size, &host, &lives);
                message::print(format_args!("hpml: rank {rank}: {}", missing.message(&own, limit)));
                if matches!(missing, Missing::Elsewhere(_)) {
                    std::thread::sleep(OTHERS);
                    end_launcher();
                }
                Communicator::abort(LOST.into());
            }
        }
    };
    Some(Watchdog::start(stop, watch))
}

impl Watchdog {
    fn start(stop: Sender<()>, watch: impl FnOnce() + Send + 'static) -> Watchdog {
        let thread = std::thread::Builder::new().name("hpml-watchdog".into()).spawn(watch);
        Watchdog { stop: Some(stop), thread: Some(thread.expect("a thread can be started")) }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.stop = None; // the thread's wait ends
        // Joined before MPI ends, which unmaps the counters that the thread reads.
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Heartbeats of a process, as seen by the watchdog.
#[derive(Debug, Clone, Copy, Default)]
struct Life {
    beats: u64,
    /// Number of polls since the last heartbeat.
    silent: u32,
}

impl Life {
    fn poll(&mut self, progress: &Progress) {
        self.silent = if progress.beats == self.beats { self.silent + 1 } else { 0 };
        self.beats = progress.beats;
    }
}

/// Ends Open MPI's launcher by two SIGTERMs within 5 s, and with it the daemons that it still reaches. It completes an abort
/// only when the daemons of all hosts have answered: never, if the link to one is gone.
fn end_launcher() {
    let parent = ancestors().into_iter().next();
    if !parent.is_some_and(|parent| ["mpirun", "mpiexec", "orterun", "prterun"].contains(&&*parent.name)) {
        return; // a daemon, or another launcher, which may know better
    }
    for _ in 0..2 {
        crate::sys::terminate_parent();
        std::thread::sleep(TWICE);
    }
}

/// The ranks that a rank waits for, as far as its host can tell. The texts are lists of ranks.
enum Missing {
    /// Ranks of this host whose process is stopped.
    Stopped(String),
    /// Ranks of this host that have entered fewer collectives.
    Behind(String),
    /// Ranks of other hosts, at least one of which is missing.
    Elsewhere(String),
    /// No rank: all have entered, yet the collective does not complete.
    Nobody,
}

impl Missing {
    /// Finds the ranks that the rank `local_rank` of this host waits for. `here` are the host's ranks, `host` and `lives` their progress
    /// in the same order.
    fn find(local_rank: usize, here: &[usize], world_size: usize, host: &[Progress], lives: &[Life]) -> Missing {
        let list = |ranks: Vec<usize>| (!ranks.is_empty()).then(|| few_ranges(&ranks));
        let of = |wanted: &dyn Fn(usize) -> bool| {
            list(here.iter().enumerate().filter(|(local, _)| wanted(*local)).map(|(_, rank)| *rank).collect())
        };
        let stopped = of(&|local| lives[local].silent >= DEAD).map(Missing::Stopped);
        let behind = || of(&|local| host[local].entered < host[local_rank].entered).map(Missing::Behind);
        let others = || list((0..world_size).filter(|rank| here.binary_search(rank).is_err()).collect());
        stopped.or_else(behind).or_else(|| others().map(Missing::Elsewhere)).unwrap_or(Missing::Nobody)
    }

    /// Message of a rank with the progress `own` that has waited for `limit`.
    fn message(&self, own: &Progress, limit: Duration) -> String {
        let (kind, bytes) = own.waits_for.map_or(("nothing", 0), |(kind, bytes)| (kind.as_str(), bytes));
        let who = match self {
            Missing::Stopped(ranks) => {
                format!("rank {ranks} of this host is stopped: end the job or let it go on (SIGCONT)")
            }
            Missing::Behind(ranks) => format!("rank {ranks} of this host has not entered it: it hangs, or is slow"),
            Missing::Elsewhere(ranks) => format!(
                "all ranks of this host have entered it, one of rank {ranks} has not: it is stopped, or its host is cut off"
            ),
            Missing::Nobody => {
                "all ranks have entered it, but it does not complete: check MPI's transport and the network".into()
            }
        };
        format!(
            "waited {:.1} s in a collective ({kind}, {}) after step {}: {who}; launch.comm_timeout_s sets the limit",
            limit.as_secs_f64(),
            format_bytes(bytes),
            own.step
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Kind;

    #[test]
    fn the_missing_rank_is_named_as_far_as_it_can_be_seen() {
        let at =
            |entered| Progress { entered, waits_for: Some((Kind::Gradients, 1000)), step: 7, beats: 1, told: false };
        let limit = Duration::from_secs(3);
        let mut lives = [Life::default(); 2];
        let message =
            |host: &[Progress], lives: &[Life]| Missing::find(0, &[0, 1], 3, host, lives).message(&host[0], limit);
        let late = message(&[at(5), at(4)], &lives);
        assert!(late.contains("rank 1 of this host has not entered it") && late.contains("step 7"), "{late}");
        assert!(late.contains("gradients"), "{late}");
        let other = message(&[at(5), at(5)], &lives);
        assert!(other.contains("one of rank 2 has not"), "{other}");
        for _ in 0..20 {
            lives[1].poll(&at(5));
        }
        let dead = message(&[at(5), at(5)], &lives);
        assert!(dead.contains("rank 1 of this host is stopped"), "{dead}");
    }
}
