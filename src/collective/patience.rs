//! How a thread waits for another rank: often enough to be quick, politely enough to leave the core to whoever computes.

use std::time::Duration;

/// What this process has to do while it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Nothing: look all the time at first. Lets other processes run in between, and sleeps when it takes long.
    Eager,
    /// Another thread computes: sleep between two looks almost from the start.
    Patient,
}

/// The pauses of one wait.
pub(super) struct Pauses {
    patience: Patience,
    looks: u32,
}

impl Pauses {
    pub(super) fn new(patience: Patience) -> Pauses {
        Pauses { patience, looks: 0 }
    }

    /// Something happened: look often again.
    pub(super) fn restart(&mut self) {
        self.looks = 0;
    }

    /// Between two looks.
    pub(super) fn pause(&mut self) {
        // A microsecond or two, as long as a rank that is on time takes; then about a millisecond of giving the core to
        // whoever wants it (with more ranks than cores: the one that is waited for); then sleep.
        let (spins, yields) = match self.patience {
            Patience::Eager => (100, 2000),
            Patience::Patient => (20, 0),
        };
        const SLEEP: Duration = Duration::from_micros(50);
        self.looks = self.looks.saturating_add(1);
        match self.looks {
            looks if looks <= spins => std::hint::spin_loop(),
            looks if looks <= spins + yields => std::thread::yield_now(),
            _ => std::thread::sleep(SLEEP),
        }
    }
}
