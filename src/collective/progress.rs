//! How far this rank has come and what it waits for, in memory that the other ranks of its host see too: what a watchdog
//! needs to say who is missing when nobody can say it any more through MPI.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::metrics::Kind;

/// Progress counters of one rank, in memory that all ranks of its host map.
#[repr(C)]
pub(super) struct Marks {
    /// Collectives it has entered. All ranks enter the same ones, so who has entered fewer is behind.
    entered: AtomicU64,
    /// Collectives it has left.
    left: AtomicU64,
    /// [`Kind`] of the last one it entered.
    kind: AtomicU64,
    /// Its bytes.
    bytes: AtomicU64,
    /// Optimiser steps it has done.
    step: AtomicU64,
    /// Grows as long as its process runs at all.
    beats: AtomicU64,
    /// Not 0 once it has told why the job ends.
    told: AtomicU64,
}

/// One process is one rank. Here until the ranks share their marks.
static ALONE: Marks = Marks {
    entered: AtomicU64::new(0),
    left: AtomicU64::new(0),
    kind: AtomicU64::new(0),
    bytes: AtomicU64::new(0),
    step: AtomicU64::new(0),
    beats: AtomicU64::new(0),
    told: AtomicU64::new(0),
};

/// Marks of all ranks of this host by rank, and this rank's number there. Global since a watchdog reads it while every other
/// object of the process may be in use.
static SHARED: OnceLock<(Vec<&'static Marks>, usize)> = OnceLock::new();

/// What a rank is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Collectives it has entered.
    pub entered: u64,
    /// What the collective is for that it is in, and its bytes; `None` between two.
    pub waits_for: Option<(Kind, u64)>,
    /// Optimiser steps it has done.
    pub step: u64,
    /// Grows by [`beat`] as long as its process runs at all.
    pub beats: u64,
    /// Whether it has told why the job ends.
    pub told: bool,
}

/// Makes `marks`, one per rank of this host, the place of every rank's progress; `rank` is this one's number there.
pub(super) fn share(rank: usize, marks: Vec<&'static Marks>) {
    let _ = SHARED.set((marks, rank)); // a second call would share nothing new
}

/// Tells that so many optimiser steps are done.
pub fn set_step(step: usize) {
    own().step.store(step as u64, Ordering::Relaxed);
}

/// A sign of life.
pub fn beat() {
    own().beats.fetch_add(1, Ordering::Relaxed);
}

/// Tells the others that this rank has said why the job ends.
pub fn set_told() {
    own().told.store(1, Ordering::Release);
}

/// Of every rank of this host, in the order of local ranks; before [`share`] of this one alone.
pub fn of_host() -> Vec<Progress> {
    match SHARED.get() {
        Some((marks, _)) => marks.iter().map(|marks| marks.read()).collect(),
        None => vec![ALONE.read()],
    }
}

/// Of this rank.
pub(super) fn here() -> Progress {
    own().read()
}

/// In a collective until it is dropped.
pub(super) struct Inside;

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
