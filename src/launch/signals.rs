//! Signals that stop a training: those that Slurm sends before a time limit or a preemption, and Ctrl-C.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;

/// Exit status of a second Ctrl-C, as a shell shows it.
const INTERRUPTED: i32 = 128 + SIGINT;

/// Guard that keeps SIGTERM, SIGUSR1 and SIGINT from ending the process, and records them, until it is dropped. A second SIGINT
/// ends the process at once.
pub struct Signals {
    received: Arc<AtomicUsize>,
    dropped: Arc<AtomicBool>,
}

impl Signals {
    /// Registers the handlers.
    ///
    /// # Errors
    /// Returns the system's error if a handler cannot be registered.
    pub fn listen() -> io::Result<Signals> {
        let signals = Signals { received: Arc::default(), dropped: Arc::default() };
        let interrupted = Arc::new(AtomicBool::new(false));
        // The order matters: the first SIGINT finds the flag unset, and sets it.
        flag::register_conditional_shutdown(SIGINT, INTERRUPTED, interrupted.clone())?;
        flag::register(SIGINT, interrupted)?;
        for signal in [SIGTERM, SIGUSR1, SIGINT] {
            // After the drop the signals have their default effect.
            flag::register_conditional_default(signal, signals.dropped.clone())?;
            flag::register_usize(signal, signals.received.clone(), signal as usize)?;
        }
        Ok(signals)
    }

    /// Number of the last signal received; 0 if there was none.
    pub fn received(&self) -> usize {
        self.received.load(Ordering::Relaxed)
    }

    /// Keeps the signals from ending the process for the rest of its life: for a process that is about to end by itself. The
    /// first rank that ends makes the launcher send SIGTERM to the others, whose status would then be that of the signal.
    pub fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.dropped.store(true, Ordering::Relaxed);
    }
}

/// Name of a signal by its number: `SIGTERM` for 15.
pub fn signal_name(signal: usize) -> &'static str {
    signal_hook::low_level::signal_name(signal as i32).unwrap_or("a signal")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_remembered_instead_of_ending_the_process() {
        let signals = Signals::listen().unwrap();
        assert_eq!(signals.received(), 0);
        signal_hook::low_level::raise(SIGUSR1).unwrap();
        assert_eq!(signal_name(signals.received()), "SIGUSR1");
    }
}
