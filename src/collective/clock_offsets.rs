//! Offsets of the ranks' clocks to rank 0's, by ping-pong.

use std::ffi::c_int;

use mpi::ffi;

use super::Communicator;
use super::backoff::{Backoff, WaitPolicy};
use super::segments::{Direction, TAG, start};
use super::traffic::Collective;
use crate::error::Result;
use crate::metrics::Kind;
use crate::units::Second;

/// Ping-pongs per rank. The least round trip counts, so a few that were not interrupted suffice.
const PINGS: usize = 64;

/// How far a rank's clock lies ahead of rank 0's.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ClockOffset {
    /// Seconds that this clock shows when rank 0's shows 0.
    pub offset: Second,
    /// Greatest error of `offset`: half of the least round trip.
    pub uncertainty: Second,
}

impl ClockOffset {
    /// From one ping-pong: rank 0's clock at its begin and end, and the other clock in between.
    ///
    /// Source: Cristian, Probabilistic clock synchronization, 1989.
    fn of(begin: Second, other: Second, end: Second) -> ClockOffset {
        ClockOffset { offset: other - (begin + end) / 2.0, uncertainty: (end - begin) / 2.0 }
    }
}

impl Communicator {
    /// Offsets of the ranks' clocks, which `now` reads, in the order of the ranks on rank 0; empty on the others. A collective.
    ///
    /// # Errors
    /// Returns [`Error::Mpi`](crate::error::Error::Mpi) if MPI reports a failure.
    pub fn clock_offsets(&self, now: impl Fn() -> Second) -> Result<Vec<ClockOffset>> {
        let mut offsets = Vec::new();
        self.counted(Kind::Control, Collective::Barrier, 0, || {
            if self.rank() > 0 {
                return self.answer(&now);
            }
            offsets.push(ClockOffset::default());
            for rank in 1..self.size() {
                offsets.push(self.ask(rank as c_int, &now)?);
            }
            Ok(())
        })?;
        Ok(offsets)
    }

    /// Measures the clock of `rank`, which is in [`answer`](Self::answer).
    fn ask(&self, rank: c_int, now: &impl Fn() -> Second) -> Result<ClockOffset> {
        let mut least: Option<ClockOffset> = None;
        for ping in 0..=PINGS {
            let begin = now();
            self.send(begin, rank)?;
            let other = self.receive(rank)?;
            let found = ClockOffset::of(begin, other, now());
            // The first one wakes the other rank.
            if ping > 0 && least.is_none_or(|least| found.uncertainty < least.uncertainty) {
                least = Some(found);
            }
        }
        Ok(least.unwrap_or_default())
    }

    /// Answers each ping of rank 0 with this rank's clock.
    fn answer(&self, now: &impl Fn() -> Second) -> Result<()> {
        // Rank 0 asks one rank after the other; the others leave it the cores.
        let mut first = [0.0];
        // SAFETY: one f64, which nobody touches until the message has come; rank 0 sends one (`ask`).
        unsafe {
            let mut request = start(self, Direction::From(0), first.as_mut_ptr(), 1)?;
            let mut backoff = Backoff::between_hosts(WaitPolicy::Sleep);
            while !self.is_done(&mut request)? {
                backoff.pause();
            }
        }
        self.send(now(), 0)?;
        for _ in 0..PINGS {
            self.receive(0)?;
            self.send(now(), 0)?;
        }
        Ok(())
    }

    fn send(&self, value: f64, rank: c_int) -> Result<()> {
        // SAFETY: one f64, which MPI reads before it returns.
        let code = unsafe { ffi::MPI_Send((&raw const value).cast(), 1, ffi::RSMPI_DOUBLE, rank, TAG, self.raw()) };
        self.check("MPI_Send", code)
    }

    fn receive(&self, rank: c_int) -> Result<f64> {
        let mut value = 0.0f64;
        // SAFETY: room for one f64, which MPI writes before it returns.
        let code = unsafe {
            let buffer = (&raw mut value).cast();
            ffi::MPI_Recv(buffer, 1, ffi::RSMPI_DOUBLE, rank, TAG, self.raw(), ffi::RSMPI_STATUS_IGNORE)
        };
        self.check("MPI_Recv", code)?;
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_is_measured_from_the_middle_of_the_round_trip() {
        let found = ClockOffset::of(10.0, 60.25, 10.5);
        assert_eq!(found, ClockOffset { offset: 50.0, uncertainty: 0.25 });
    }
}
