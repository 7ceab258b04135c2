//! Measurement of one size: the timed loop, and the check of the results.

use std::time::Instant;

use super::bench::{Bench, Place};
use crate::collective::{Collective, Combine, Element, Taken};
use crate::error::Result;
use crate::metrics::{Kind, mean, median, percentile};
use crate::units::{Bytes, Second};

/// Duration of the measurement of one size, type, algorithm and place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    /// Approximate duration without the warm-up, in seconds.
    pub seconds: Second,
    /// Number of timed iterations; 0: as many as fit `seconds`.
    pub iterations: usize,
}

/// Measurement of one collective, size, type and algorithm.
#[derive(Debug, Clone)]
pub struct Row {
    /// What was measured.
    pub collective: Collective,
    /// Ranks that took part.
    pub ranks: usize,
    /// Hosts that took part.
    pub hosts: usize,
    /// Size of the larger buffer on one rank.
    pub bytes: Bytes,
    /// Elements of the larger buffer on one rank.
    pub elements: usize,
    /// Type of the elements: `float32` or `bf16`.
    pub element: &'static str,
    /// Algorithm that was used; never `auto`.
    pub algorithm: &'static str,
    /// Times from one buffer into another; `None` if the collective has only one.
    pub out_of_place: Option<Timing>,
    /// Times within one buffer; `None` if the collective needs two.
    pub in_place: Option<Timing>,
}

/// Times over the iterations. An iteration's time is its slowest rank's.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timing {
    /// Mean, as nccl-tests' `time`.
    pub time: Second,
    /// Median.
    pub p50: Second,
    /// 99th percentile (nearest rank).
    pub p99: Second,
    /// Minimum.
    pub min: Second,
    /// Median over the iterations of the slowest minus the fastest rank's time. Needs no common clock, so it holds between hosts.
    pub skew: Second,
    /// Mean of the part between hosts; NaN without one.
    pub between: Second,
    /// Mean of the part of it between racks; NaN without one.
    pub between_racks: Second,
    /// Number of timed iterations.
    pub iterations: usize,
    /// Number of elements that differ from the exact result, over all ranks.
    pub wrong: u64,
}

impl<T: Element> Bench<T> {
    /// Times the collective on `elements` of the larger buffer, one part per rank, and checks the results. The ranks are on `hosts`
    /// hosts, which rank 0 alone need know. A collective.
    ///
    /// # Errors
    /// A rank is gone, or the device has failed.
    pub fn measure(&mut self, hosts: usize, elements: usize, budget: &Budget) -> Result<Row> {
        let bytes = elements * size_of::<T>();
        let mut time = |place: Place| match Place::of(self.collective).contains(&place) {
            true => self.measure_place(place, elements, budget).map(Some),
            false => Ok(None),
        };
        let (out_of_place, in_place) = (time(Place::Out)?, time(Place::In)?);
        Ok(Row {
            collective: self.collective,
            ranks: self.ranks.size(),
            hosts,
            bytes: bytes as Bytes,
            elements,
            element: T::NAME,
            algorithm: self.algorithm(bytes),
            out_of_place,
            in_place,
        })
    }

    fn measure_place(&mut self, place: Place, elements: usize, budget: &Budget) -> Result<Timing> {
        let communicator = &self.ranks.clone();
        const WARM_UP: usize = 3;
        const LEAST: usize = 5;
        const MOST: usize = 20_000;
        // Zeros stay zeros, however often they are summed in place.
        self.fill(place, elements, |_| 0.0);
        let warm_up = Instant::now();
        for _ in 0..WARM_UP {
            self.after_all(place, elements)?;
        }
        // The longest time over the ranks: the same number on all, so that all decide alike.
        let longest = |since: Instant| -> Result<Second> {
            let mut seconds = [since.elapsed().as_secs_f64()];
            communicator.all_reduce(Kind::Control, Combine::Max, &mut seconds)?;
            Ok(seconds[0])
        };
        let iterations = match budget.iterations {
            0 => ((budget.seconds * WARM_UP as f64 / longest(warm_up)?) as usize).clamp(LEAST, MOST),
            given => given,
        };
        let started = Instant::now();
        let mut slowest = Vec::with_capacity(iterations);
        let (mut between, mut between_racks) = (Vec::new(), Vec::new());
        while slowest.len() < iterations {
            let until = (2 * slowest.len()).max(LEAST).min(iterations);
            while slowest.len() < until {
                let taken = self.after_all(place, elements)?;
                slowest.push(taken.seconds);
                between.extend(taken.between_hosts);
                between_racks.extend(taken.between_racks);
            }
            // A host that became busy after the warm-up would take many times `budget.seconds`.
            if budget.iterations == 0 && longest(started)? >= budget.seconds {
                break;
            }
        }
        let mut fastest = slowest.clone();
        communicator.all_reduce(Kind::Metrics, Combine::Max, &mut slowest)?;
        communicator.all_reduce(Kind::Metrics, Combine::Min, &mut fastest)?;
        communicator.all_reduce(Kind::Metrics, Combine::Max, &mut between)?;
        communicator.all_reduce(Kind::Metrics, Combine::Max, &mut between_racks)?;
        let wrong = self.wrong(place, elements)?;
        Ok(Timing {
            between: mean(between),
            between_racks: mean(between_racks),
            ..Timing::of(&slowest, &fastest, wrong)
        })
    }

    /// Runs one iteration: a barrier, then the collective. Returns this rank's times of the collective.
    fn after_all(&mut self, place: Place, elements: usize) -> Result<Taken> {
        self.ranks.barrier()?;
        self.once(place, elements)
    }

    /// Runs the collective on small integers, whose sum is exact in any order. Returns the number of wrong results over all ranks.
    fn wrong(&mut self, place: Place, elements: usize) -> Result<u64> {
        let (ranks, rank) = (self.ranks.size(), self.ranks.rank());
        // bf16 holds integers up to 256; ranks beyond that many would need another check.
        let period = (256 / ranks).clamp(2, 8);
        let value = |rank: usize, index: usize| ((rank + index) % period) as f32;
        let is_overwritten = self.collective == Collective::Broadcast && rank > 0;
        self.fill(place, elements, |index| if is_overwritten { -1.0 } else { value(rank, index) });
        self.after_all(place, elements)?;
        let sums: Vec<f32> = (0..period).map(|index| (0..ranks).map(|rank| value(rank, index)).sum()).collect();
        let part = elements / ranks;
        let expected = |index: usize| match self.collective {
            Collective::AllGather => value(index / part, index % part),
            Collective::ReduceScatter => sums[(rank * part + index) % period],
            Collective::Broadcast => value(0, index),
            Collective::AllToAll => value(index / part, rank * part + index % part),
            _ => sums[index % period],
        };
        let result = self.result(place, elements);
        let wrong = result.iter().enumerate().filter(|(index, element)| **element != expected(*index)).count();
        let mut total = [wrong as f64];
        self.ranks.all_reduce(Kind::Metrics, Combine::Sum, &mut total)?;
        Ok(total[0] as u64)
    }
}

impl Timing {
    /// Statistics over the iterations, from the time of each one's slowest and fastest rank.
    fn of(slowest: &[Second], fastest: &[Second], wrong: u64) -> Timing {
        let mut times = slowest.to_vec();
        times.sort_by(f64::total_cmp);
        let mut skews: Vec<Second> = slowest.iter().zip(fastest).map(|(slow, fast)| slow - fast).collect();
        skews.sort_by(f64::total_cmp);
        Timing {
            time: mean(times.iter().copied()),
            p50: median(&times),
            p99: percentile(&times, 0.99),
            min: percentile(&times, 0.0),
            skew: median(&skews),
            between: f64::NAN,
            between_racks: f64::NAN,
            iterations: times.len(),
            wrong,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_iteration_takes_as_long_as_its_slowest_rank() {
        let timing = Timing::of(&[4.0, 2.0, 3.0, 7.0], &[3.0, 2.0, 1.0, 1.0], 0);
        assert_eq!((timing.time, timing.p50, timing.p99, timing.min), (4.0, 3.5, 7.0, 2.0));
        assert_eq!((timing.skew, timing.iterations), (1.5, 4));
        assert!(Timing::of(&[], &[], 0).p50.is_nan());
    }
}
