//! The parts of a step and their statistics.

use crate::units::Second;

/// A part of a step's time, in the order of the tables. Definitions: README, "Reading the numbers".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Waiting for the next batch.
    Data,
    /// The forward pass and the loss.
    Forward,
    /// The backward pass, without waiting for collectives.
    Backward,
    /// Collectives from the moment every rank had come to their end, hidden or not; with compressed gradients also compressing
    /// and restoring them.
    Comm,
    /// Waiting for slower ranks before a collective could start.
    CommWait,
    /// The time of the step during which this rank did nothing but wait for collectives.
    CommExposed,
    /// The optimiser's update.
    Optimizer,
    /// The whole step.
    Step,
}

impl Part {
    /// All parts.
    pub const ALL: [Part; 8] = [
        Part::Data,
        Part::Forward,
        Part::Backward,
        Part::Comm,
        Part::CommWait,
        Part::CommExposed,
        Part::Optimizer,
        Part::Step,
    ];

    /// Its column in files.
    pub fn as_str(self) -> &'static str {
        match self {
            Part::Data => "data",
            Part::Forward => "forward",
            Part::Backward => "backward",
            Part::Comm => "comm",
            Part::CommWait => "comm_wait",
            Part::CommExposed => "comm_exposed",
            Part::Optimizer => "optimizer",
            Part::Step => "step",
        }
    }

    /// What it means, for the run file.
    pub fn long_name(self) -> &'static str {
        match self {
            Part::Data => "waiting for the next batch",
            Part::Forward => "forward pass and loss",
            Part::Backward => "backward pass without waiting for collectives",
            Part::Comm => "collectives, from the arrival of the last rank to their end, hidden or not",
            Part::CommWait => "waiting for slower ranks before a collective, hidden or not",
            Part::CommExposed => "waiting for collectives with nothing else to do",
            Part::Optimizer => "optimiser update",
            Part::Step => "whole step",
        }
    }
}

/// Seconds of one step on one rank, by part.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StepTimes {
    seconds: [f32; Part::ALL.len()],
}

impl StepTimes {
    /// Number of parts, the length of [`as_array`](Self::as_array).
    pub const PARTS: usize = Part::ALL.len();

    /// From [`as_array`](Self::as_array)'s numbers, as another rank sent them. Panics if they are not `PARTS`.
    pub fn from_slice(seconds: &[f32]) -> StepTimes {
        StepTimes { seconds: seconds.try_into().expect("as many numbers as parts") }
    }

    /// The seconds of one part.
    pub fn get(&self, part: Part) -> f32 {
        self.seconds[part as usize]
    }

    /// Adds to one part.
    pub fn add(&mut self, part: Part, seconds: Second) {
        self.seconds[part as usize] += seconds as f32;
    }

    /// All parts in the order of [`Part::ALL`].
    pub fn as_array(&self) -> &[f32; Self::PARTS] {
        &self.seconds
    }
}

/// Mean and percentiles of a set of times.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Summary {
    /// Arithmetic mean.
    pub mean: Second,
    /// Median.
    pub p50: Second,
    /// 99th percentile (nearest rank).
    pub p99: Second,
}

impl Summary {
    /// Of `values`, in any order; zeros of nothing.
    pub fn of(values: impl IntoIterator<Item = f32>) -> Summary {
        let mut sorted: Vec<f32> = values.into_iter().collect();
        if sorted.is_empty() {
            return Summary::default();
        }
        sorted.sort_by(f32::total_cmp);
        let percentile = |p: f64| sorted[((p * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len()) - 1] as f64;
        let mean = sorted.iter().map(|&value| value as f64).sum::<f64>() / sorted.len() as f64;
        Summary { mean, p50: percentile(0.50), p99: percentile(0.99) }
    }
}

/// One part of the steps of all ranks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PartSummary {
    /// Which.
    pub part: Part,
    /// Over all steps and ranks.
    pub all: Summary,
    /// Mean of the rank whose mean is the greatest.
    pub slowest_rank: Second,
    /// Mean over the mean of the whole step; 0 without steps.
    pub share: f64,
}

/// What a step consists of, part by part, from the counted steps of each rank.
pub fn anatomy(ranks: &[&[StepTimes]]) -> Vec<PartSummary> {
    let times = |part: Part| ranks.iter().map(move |times| times.iter().map(move |time| time.get(part)));
    let whole = Summary::of(times(Part::Step).flatten()).mean;
    let summary = |part| {
        let all = Summary::of(times(part).flatten());
        let slowest_rank = times(part).map(|times| Summary::of(times).mean).fold(0.0, f64::max);
        PartSummary { part, all, slowest_rank, share: if whole > 0.0 { all.mean / whole } else { 0.0 } }
    };
    Part::ALL.map(summary).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_anatomy_names_the_slowest_rank_and_the_share() {
        let steps = |data: f32, step: f32| {
            let mut times = StepTimes::default();
            times.add(Part::Data, f64::from(data));
            times.add(Part::Step, f64::from(step));
            [times; 2]
        };
        let parts = anatomy(&[&steps(1.0, 4.0), &steps(3.0, 4.0)]);
        let data = PartSummary {
            part: Part::Data,
            all: Summary { mean: 2.0, p50: 1.0, p99: 3.0 },
            slowest_rank: 3.0,
            share: 0.5,
        };
        assert_eq!((parts[0], parts.len()), (data, Part::ALL.len()));
        assert!(anatomy(&[]).iter().all(|part| part.share == 0.0));
    }

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let summary = Summary::of((1..=200).rev().map(|value| value as f32));
        assert_eq!(summary, Summary { mean: 100.5, p50: 100.0, p99: 198.0 });
        assert_eq!(Summary::of([]), Summary::default());
        assert_eq!(Summary::of([3.0]).p99, 3.0);
    }
}
