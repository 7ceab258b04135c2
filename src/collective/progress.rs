//! Progress of the ranks of a host, in shared memory: which collective each one is in, and whether its process runs at all. A
//! watchdog reads it to name the missing rank when MPI can no longer carry a message.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::metrics::Kind;

/// Progress counters of one rank, in memory that all ranks of its host map.
#[repr(C)]
pub(super) struct Marks {
    /// Number of collectives entered. All ranks enter the same ones, so a rank with fewer is behind.
    entered: AtomicU64,
    /// Number of collectives left.
    left: AtomicU64,
    /// [`Kind`] of the collective entered last.
    kind: AtomicU64,
    /// Bytes of the collective entered last.
    bytes: AtomicU64,
    /// Optimizer steps done.
    step: AtomicU64,
    /// Heartbeat: grows as long as the process runs at all.
    beats: AtomicU64,
    /// Not 0 once the rank has printed why the job ends.
    told: AtomicU64,
}

/// Counters of this process's rank until [`share`] has replaced them.
static ALONE: Marks = Marks {
    entered: AtomicU64::new(0),
    left: AtomicU64::new(0),
    kind: AtomicU64::new(0),
    bytes: AtomicU64::new(0),
    step: AtomicU64::new(0),
    beats: AtomicU64::new(0),
    told: AtomicU64::new(0),
};

/// Counters of all ranks of this host, in the order of local ranks, and this rank's local rank. Global since a watchdog reads it
/// while every other object of the process may be in use.
static SHARED: OnceLock<(Vec<&'static Marks>, usize)> = OnceLock::new();

/// Progress of one rank, as read at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Number of collectives entered.
    pub entered: u64,
    /// Kind and bytes of the collective that the rank is in; `None` between two collectives.
    pub waits_for: Option<(Kind, u64)>,
    /// Optimizer steps done.
    pub step: u64,
    /// Heartbeats, see [`beat`].
    pub beats: u64,
    /// Whether the rank has printed why the job ends.
    pub told: bool,
}

/// Makes `marks`, one per rank of this host, the counters of these ranks; `rank` is this process's local rank.
pub(super) fn share(rank: usize, marks: Vec<&'static Marks>) {
    let _ = SHARED.set((marks, rank)); // a second call would share nothing new
}

/// Publishes that `step` optimizer steps are done.
pub fn set_step(step: usize) {
    own().step.store(step as u64, Ordering::Relaxed);
}

/// Publishes a heartbeat: this process runs.
pub fn beat() {
    own().beats.fetch_add(1, Ordering::Relaxed);
}

/// Publishes that this rank has printed why the job ends.
pub fn set_told() {
    own().told.store(1, Ordering::Release);
}

/// Progress of every rank of this host, in the order of local ranks; of this rank alone before
/// [`share_progress`](super::share_progress).
pub fn of_host() -> Vec<Progress> {
    match SHARED.get() {
        Some((marks, _)) => marks.iter().map(|marks| marks.read()).collect(),
        None => vec![ALONE.read()],
    }
}

/// Progress of this rank.
pub(super) fn here() -> Progress {
    own().read()
}

/// Guard of a collective: the rank has left it when this is dropped.
pub(super) struct Inside;

/// Publishes that this rank enters a collective.
pub(super) fn enter(kind: Kind, bytes: usize) -> Inside {
    let own = own();
    own.kind.store(kind as u64, Ordering::Relaxed);
    own.bytes.store(bytes as u64, Ordering::Relaxed);
    own.entered.fetch_add(1, Ordering::Release);
    Inside
}

impl Drop for Inside {
    fn drop(&mut self) {
        own().left.fetch_add(1, Ordering::Release);
    }
}

impl Marks {
    fn read(&self) -> Progress {
        let (left, entered) = (self.left.load(Ordering::Acquire), self.entered.load(Ordering::Acquire));
        let kind = Kind::ALL[self.kind.load(Ordering::Relaxed) as usize % Kind::ALL.len()];
        let bytes = self.bytes.load(Ordering::Relaxed);
        let waits_for = (entered > left).then_some((kind, bytes));
        Progress {
            entered,
            waits_for,
            step: self.step.load(Ordering::Relaxed),
            beats: self.beats.load(Ordering::Relaxed),
            told: self.told.load(Ordering::Acquire) != 0,
        }
    }
}

fn own() -> &'static Marks {
    match SHARED.get() {
        Some((marks, rank)) => marks[*rank],
        None => &ALONE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_waits_from_entering_to_leaving() {
        let before = of_host()[0];
        let inside = enter(Kind::Gradients, 100);
        let now = of_host()[0];
        assert_eq!(now.waits_for, Some((Kind::Gradients, 100)));
        assert!(now.entered > before.entered);
        drop(inside);
    }
}
