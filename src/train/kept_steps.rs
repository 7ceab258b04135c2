//! Which steps keep a row per rank where a training has too many for all of them, and the summaries of the others.

use crate::collective::{Combine, Communicator};
use crate::error::Result;
use crate::metrics::{Conditions, Kind, Moments, PartMoments, RankSummary, StepTimes, Summaries, TimeHistogram};

/// Greatest number of slowest steps kept of an epoch.
const MOST_SLOWEST: usize = 8;

/// Steps that keep a row per rank: half of the rows go to steps at equal distances, half to the slowest of each epoch.
#[derive(Debug, Clone, PartialEq)]
pub struct KeptSteps {
    /// Distance of the steps that are kept whatever their time; 1: all are kept.
    stride: usize,
    /// Greatest number of slowest steps kept of an epoch.
    most_slowest: usize,
    /// The epoch under way.
    epoch: usize,
    /// Slowest steps of that epoch until now, with their seconds, the slowest first.
    slowest: Vec<(f64, usize)>,
}

/// Choice among the steps of a stretch.
#[derive(Debug, PartialEq, Eq)]
pub struct Choice {
    /// Steps of the stretch that are kept, ascending.
    pub kept: Vec<usize>,
    /// Steps of earlier stretches of the epoch that are kept no longer, since there are slower ones.
    pub dropped: Vec<usize>,
}

impl KeptSteps {
    /// The rule for a training of `steps` steps and `epochs` epochs on `ranks` ranks, with about `rows` rows at most.
    pub fn new(rows: usize, ranks: usize, steps: usize, epochs: usize) -> KeptSteps {
        let none = KeptSteps { stride: 1, most_slowest: 0, epoch: 0, slowest: Vec::new() };
        if steps.saturating_mul(ranks) <= rows {
            return none;
        }
        let steps_of_half = (rows / 2 / ranks).max(1);
        let most_slowest = (steps_of_half / epochs.max(1)).min(MOST_SLOWEST);
        KeptSteps { stride: steps.div_ceil(steps_of_half).max(2), most_slowest, ..none }
    }

    /// Whether every step is kept.
    pub fn all(&self) -> bool {
        self.stride == 1
    }

    /// Chooses among the steps from `first` on, a stretch of `epoch` that took `slowest_rank` seconds on the slowest rank. An epoch
    /// has as many stretches as its steps are gathered in, one more for each checkpoint.
    pub fn choose(&mut self, epoch: usize, first: usize, slowest_rank: &[f64]) -> Choice {
        if self.epoch != epoch {
            (self.epoch, self.slowest) = (epoch, Vec::new());
        }
        let before: Vec<usize> = self.slowest.iter().map(|(_, step)| *step).collect();
        self.slowest.extend(slowest_rank.iter().copied().zip(first..));
        self.slowest.sort_by(|(a, first), (b, other)| b.total_cmp(a).then(first.cmp(other)));
        self.slowest.truncate(self.most_slowest);
        let is_kept =
            |step: &usize| step.is_multiple_of(self.stride) || self.slowest.iter().any(|(_, slow)| slow == step);
        let mut dropped = before;
        dropped.retain(|step| !is_kept(step));
        Choice { kept: (first..first + slowest_rank.len()).filter(is_kept).collect(), dropped }
    }
}

/// Adds these steps of every rank to the `summaries` of rank 0: a gather of a few numbers per rank, and one sum of the histograms,
/// whatever the number of steps. A collective.
///
/// # Errors
/// A rank is gone.
pub fn gather_summaries(
    communicator: &Communicator,
    summaries: &mut Summaries,
    conditions: Conditions,
    steps: &[StepTimes],
) -> Result<()> {
    let RankSummary { moments, histograms } = RankSummary::of(steps);
    let own: Vec<f64> = moments.iter().flat_map(Moments::to_array).collect();
    let all = communicator.gather(Kind::Metrics, &own)?;
    let mut counts: Vec<f64> = histograms.iter().flat_map(|histogram| histogram.counts()).copied().collect();
    communicator.all_reduce(Kind::Metrics, Combine::Sum, &mut counts)?;
    if communicator.rank() == 0 {
        let of_rank = |numbers: &[f64]| -> PartMoments {
            std::array::from_fn(|part| {
                Moments::from_array(std::array::from_fn(|at| numbers[Moments::NUMBERS * part + at]))
            })
        };
        let ranks = all.chunks_exact(own.len()).map(of_rank).enumerate().map(|(rank, moments)| (rank as i64, moments));
        let histograms: Vec<_> = counts.chunks_exact(TimeHistogram::bins()).map(TimeHistogram::from_counts).collect();
        summaries.add(conditions, ranks, &histograms);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_training_keeps_every_step_and_a_large_one_about_as_many_rows_as_it_may() {
        assert!(KeptSteps::new(1000, 4, 250, 10).all());
        for (rows, ranks, steps, epochs) in [(1000, 4, 251, 1), (500_000, 4096, 100_000, 90), (10, 64, 1000, 3)] {
            let mut kept = KeptSteps::new(rows, ranks, steps, epochs);
            assert!(!kept.all());
            let seconds: Vec<f64> = (0..steps / epochs).map(|step| ((step * 31) % 17) as f64).collect();
            // Gathered as a whole, and in stretches of ten steps, as if a checkpoint was written after each.
            for stretch in [seconds.len(), 10] {
                let mut steps = 0;
                for epoch in 0..epochs {
                    for (index, seconds_of) in seconds.chunks(stretch).enumerate() {
                        let Choice { kept, dropped } =
                            kept.choose(epoch, epoch * seconds.len() + index * stretch, seconds_of);
                        steps = steps + kept.len() - dropped.len();
                    }
                }
                let found = ranks * steps;
                assert!(found <= rows.max(2 * ranks) + epochs * ranks && found > 0, "{found} of {rows} rows");
                kept.choose(epochs, 0, &[]);
            }
        }
    }

    #[test]
    fn the_slowest_steps_are_kept_beside_those_at_equal_distances() {
        let mut kept = KeptSteps { stride: 10, most_slowest: 2, epoch: 0, slowest: Vec::new() };
        let mut seconds = vec![1.0; 20];
        (seconds[3], seconds[17]) = (9.0, 5.0);
        assert_eq!(kept.choose(0, 5, &seconds), Choice { kept: vec![8, 10, 20, 22], dropped: vec![] });
        // A slower one of the same epoch takes the place of the least slow one; another epoch begins anew.
        assert_eq!(kept.choose(0, 25, &[2.0, 7.0]), Choice { kept: vec![26], dropped: vec![22] });
        assert_eq!(kept.choose(1, 27, &[3.0]), Choice { kept: vec![27], dropped: vec![] });
        assert_eq!(kept.choose(1, 28, &[]), Choice { kept: vec![], dropped: vec![] });
    }
}
