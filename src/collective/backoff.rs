//! How a thread waits for another rank: often enough to be quick, politely enough to leave the core to whoever computes.

use std::time::Duration;

/// What this process has to do while it waits for another rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitPolicy {
    /// Nothing: polls without a break at first, then yields the core, then sleeps between two polls.
    Spin,
    /// Another thread computes: sleeps between two polls almost from the start.
    Sleep,
    /// Other ranks of this host compute, and are measured doing so: sleeps long between two polls.
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
    /// Pauses while waiting for a rank of this host: a microsecond or two of spinning, as long as a rank that is on time takes; then
    /// about a millisecond of yielding the core (with more ranks than cores: to the rank that is waited for); then sleep.
    pub(super) fn within_host(policy: WaitPolicy) -> Backoff {
        let (spins, yields) = match policy {
            WaitPolicy::Spin => (100, 2000),
            WaitPolicy::Sleep | WaitPolicy::Idle => (20, 0),
        };
        Backoff { spins, yields, sleep: sleep(policy), polls: 0 }
    }

    /// Pauses while waiting for a message between hosts: sleep soon. A thread that yields on a busy machine runs again after all
    /// others have had their turn, when the network has long run dry; a thread that wakes from sleep runs first.
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

    /// One pause between two polls.
    pub(super) fn pause(&mut self) {
        self.polls = self.polls.saturating_add(1);
        match self.polls {
            polls if polls <= self.spins => std::hint::spin_loop(),
            polls if polls <= self.spins + self.yields => std::thread::yield_now(),
            _ => std::thread::sleep(self.sleep),
        }
    }
}

/// Time asleep between two polls. A poll of MPI's progress costs some microseconds: every 50 of them is up to a tenth of a core.
fn sleep(policy: WaitPolicy) -> Duration {
    match policy {
        WaitPolicy::Spin | WaitPolicy::Sleep => Duration::from_micros(50),
        WaitPolicy::Idle => Duration::from_millis(5),
    }
}
