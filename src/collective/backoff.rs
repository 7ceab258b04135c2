//! Waiting for another rank: polls often enough to be quick, and leaves the core to threads that compute.

use std::time::Duration;

/// Strategy of a thread that waits for another rank, chosen by what else needs its core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitPolicy {
    /// Polls without a break at first, then yields the core, then sleeps between polls: nothing else needs the core.
    Spin,
    /// Sleeps between polls almost from the start: another thread of this process computes.
    Sleep,
    /// Sleeps long between polls: other ranks of this host compute and are being measured.
    Idle,
}

/// The pauses between the polls of one wait.
pub(super) struct Backoff {
    spins: u32,
    yields: u32,
    sleep: Duration,
    polls: u32,
}

impl Backoff {
    /// Pauses while waiting for a rank of this host: spins for a microsecond or two, as long as a rank that is on time takes;
    /// then yields the core for about a millisecond (with more ranks than cores, to the rank that is waited for); then sleeps.
    pub(super) fn within_host(policy: WaitPolicy) -> Backoff {
        let (spins, yields) = match policy {
            WaitPolicy::Spin => (100, 2000),
            WaitPolicy::Sleep | WaitPolicy::Idle => (20, 0),
        };
        Backoff { spins, yields, sleep: sleep(policy), polls: 0 }
    }

    /// Pauses while waiting for a message between hosts: sleeps soon. A thread that yields on a busy machine runs again after
    /// all others have had their turn, when the network has long been idle; a thread that wakes from sleep runs first.
    pub(super) fn between_hosts(policy: WaitPolicy) -> Backoff {
        let spins = match policy {
            WaitPolicy::Spin => 100,
            WaitPolicy::Sleep | WaitPolicy::Idle => 0,
        };
        Backoff { spins, yields: 0, sleep: sleep(policy), polls: 0 }
    }

    /// Starts over with short pauses, after a poll that found something.
    pub(super) fn restart(&mut self) {
        self.polls = 0;
    }

    /// Pauses once, between two polls.
    pub(super) fn pause(&mut self) {
        self.polls = self.polls.saturating_add(1);
        match self.polls {
            polls if polls <= self.spins => std::hint::spin_loop(),
            polls if polls <= self.spins + self.yields => std::thread::yield_now(),
            _ => std::thread::sleep(self.sleep),
        }
    }
}

/// Length of a sleep between two polls. A poll of MPI's progress costs some microseconds: one every 50 us takes up to a tenth of
/// a core.
fn sleep(policy: WaitPolicy) -> Duration {
    match policy {
        WaitPolicy::Spin | WaitPolicy::Sleep => Duration::from_micros(50),
        WaitPolicy::Idle => Duration::from_millis(5),
    }
}
