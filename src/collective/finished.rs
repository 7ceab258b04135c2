//! What a completed collective reports: when this rank entered, when all had arrived, when it was done.

use std::time::Instant;

use crate::error::Result;
use crate::units::Second;

/// A completed collective on this rank, or several in turn that reduce one buffer. By the host clock.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Moment when this rank began.
    pub entered: Instant,
    /// Waiting for slower ranks, one span per collective.
    pub waits: Waits,
    /// Moment when the result was there.
    pub done: Instant,
}

impl Finished {
    /// Runs `call`, which adds its waits to what it is given.
    ///
    /// # Errors
    /// Those of `call`.
    pub fn of(call: impl FnOnce(&mut Waits) -> Result<()>) -> Result<Finished> {
        let (mut waits, entered) = (Waits::default(), Instant::now());
        call(&mut waits)?;
        Ok(Finished { entered, waits, done: Instant::now() })
    }

    /// Seconds until every rank had entered.
    pub fn wait(&self) -> Second {
        self.waits.seconds()
    }

    /// Seconds of everything else, from the arrival of the last rank to the end.
    pub fn transfer(&self) -> Second {
        (self.seconds() - self.wait()).max(0.0)
    }

    /// Seconds from the beginning to the end.
    pub fn seconds(&self) -> Second {
        self.done.duration_since(self.entered).as_secs_f64()
    }
}

/// Spans of waiting for slower ranks: of entering, and of all ranks' arrival.
#[derive(Debug, Clone, Default)]
pub struct Waits {
    first: Option<(Instant, Instant)>,
    /// Kept apart, since most collectives wait once and need no allocation.
    more: Vec<(Instant, Instant)>,
}

impl Waits {
    /// Runs `wait`, which returns once all ranks have arrived, and adds its span.
    ///
    /// # Errors
    /// Those of `wait`.
    pub fn time<T>(&mut self, wait: impl FnOnce() -> Result<T>) -> Result<T> {
        let entered = Instant::now();
        let result = wait()?;
        self.push((entered, Instant::now()));
        Ok(result)
    }

    /// Adds the waits of another collective.
    pub fn extend(&mut self, other: &Waits) {
        other.spans().for_each(|span| self.push(span));
    }

    /// The spans, in order: this rank entered, all had arrived.
    pub fn spans(&self) -> impl Iterator<Item = (Instant, Instant)> + '_ {
        self.first.iter().chain(&self.more).copied()
    }

    fn push(&mut self, span: (Instant, Instant)) {
        match self.first {
            None => self.first = Some(span),
            Some(_) => self.more.push(span),
        }
    }

    fn seconds(&self) -> Second {
        self.spans().map(|(entered, arrived)| arrived.duration_since(entered).as_secs_f64()).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn waits_and_transfer_make_up_the_whole() {
        let finished = Finished::of(|waits| {
            let pause = |milliseconds| std::thread::sleep(Duration::from_millis(milliseconds));
            waits.time(|| {
                pause(2);
                Ok(())
            })?;
            pause(1);
            let mut inner = Waits::default();
            inner.time(|| Ok(()))?;
            waits.extend(&inner);
            Ok(())
        })
        .unwrap();
        assert_eq!(finished.waits.spans().count(), 2);
        assert!(finished.wait() >= 2e-3 && finished.transfer() >= 1e-3);
        assert!((finished.wait() + finished.transfer() - finished.seconds()).abs() < 1e-12);
    }
}
