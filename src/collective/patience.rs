//! How a thread waits for another rank: often enough to be quick, politely enough to leave the core to whoever computes.

use std::time::Duration;

/// What this process has to do while it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Nothing: look all the time at first. Lets other processes run in between, and sleeps when it takes long.
    Eager,
    /// Another thread computes: sleep between two looks almost from the start.
    Patient,
    /// Other ranks of this host compute, and are measured doing so: sleep long between two looks.
    Idle,
}

/// The pauses of one wait.
pub(super) struct Pauses {
    spins: u32,
    yields: u32,
    sleep: Duration,
    looks: u32,
}

impl Pauses {
    /// For a rank of the same host: a microsecond or two, as long as one that is on time takes; then about a millisecond of
    /// giving the core to whoever wants it (with more ranks than cores: the one that is waited for); then sleep.
    pub(super) fn within_host(patience: Patience) -> Pauses {
        let (spins, yields) = match patience {
            Patience::Eager => (100, 2000),
            Patience::Patient | Patience::Idle => (20, 0),
        };
        Pauses { spins, yields, sleep: sleep(patience), looks: 0 }
    }

    /// For a message: sleep soon. Who yields on a busy machine comes back when all others have had their turn, and the
    /// network has long run dry by then; who wakes comes first.
    pub(super) fn between_hosts(patience: Patience) -> Pauses {
        let spins = match patience {
            Patience::Eager => 100,
            Patience::Patient | Patience::Idle => 0,
        };
        Pauses { spins, yields: 0, sleep: sleep(patience), looks: 0 }
    }

    /// Something happened: look often again.
    pub(super) fn restart(&mut self) {
        self.looks = 0;
    }

    /// Between two looks.
    pub(super) fn pause(&mut self) {
        self.looks = self.looks.saturating_add(1);
        match self.looks {
            looks if looks <= self.spins => std::hint::spin_loop(),
            looks if looks <= self.spins + self.yields => std::thread::yield_now(),
            _ => std::thread::sleep(self.sleep),
        }
    }
}

/// A look at MPI's progress costs some microseconds: every 50 of them is up to a tenth of a core.
fn sleep(patience: Patience) -> Duration {
    match patience {
        Patience::Eager | Patience::Patient => Duration::from_micros(50),
        Patience::Idle => Duration::from_millis(5),
    }
}
