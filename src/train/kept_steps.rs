//! Which steps keep a row per rank where a training has too many for all of them, and the summaries of the others.

use crate::collective::{Combine, Communicator};
use crate::error::Result;
use crate::metrics::{Conditions, Kind, Moments, PartMoments, RankSummary, StepTimes, Summaries, TimeHistogram};

/// Greatest number of slowest steps kept of an epoch.
const MOST_SLOWEST: usize = 8;

/// Rule by which steps keep a row per rank: half of the rows go to steps at equal distances, half to the slowest of each epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptSteps {
    /// Distance of the steps that are kept whatever their time; 1: all are kept.
    stride: usize,
    /// Slowest steps kept of each stretch between two calls of [`choose`](Self::choose), at most.
    slowest: usize,
}

impl KeptSteps {
    /// The rule for a training of `steps` steps and `epochs` epochs on `ranks` ranks, with about `rows` rows at most.
    pub fn new(rows: usize, ranks: usize, steps: usize, epochs: usize) -> KeptSteps {
        let all = steps.saturating_mul(ranks);
        if all <= rows {
            return KeptSteps { stride: 1, slowest: 0 };
        }
        let steps_of_half = (rows / 2 / ranks).max(1);
        let slowest = (steps_of_half / epochs.max(1)).min(MOST_SLOWEST);
        KeptSteps { stride: steps.div_ceil(steps_of_half).max(2), slowest }
    }

    /// Whether every step is kept.
    pub fn all(&self) -> bool {
        self.stride == 1
    }

    /// The steps kept of those from `first` on, which took `slowest_rank` seconds on the slowest rank; ascending, counted from
    /// `first`.
    pub fn choose(&self, first: usize, slowest_rank: &[f64]) -> Vec<usize> {
        let mut by_time: Vec<usize> = (0..slowest_rank.len()).collect();
        by_time.sort_by(|&a, &b| slowest_rank[b].total_cmp(&slowest_rank[a]).then(a.cmp(&b)));
        let slowest = &by_time[..self.slowest.min(by_time.len())];
        let is_kept = |step: &usize| (first + step).is_multiple_of(self.stride) || slowest.contains(step);
        (0..slowest_rank.len()).filter(is_kept).collect()
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
            let kept = KeptSteps::new(rows, ranks, steps, epochs);
            assert!(!kept.all());
            let seconds: Vec<f64> = (0..steps / epochs).map(|step| ((step * 31) % 17) as f64).collect();
            let of_epoch = |epoch: usize| kept.choose(epoch * seconds.len(), &seconds).len();
            let found = ranks * (0..epochs).map(of_epoch).sum::<usize>();
            assert!(found <= rows.max(2 * ranks) + epochs * ranks && found > 0, "{found} of {rows} rows");
        }
    }

    #[test]
    fn the_slowest_steps_are_kept_beside_those_at_equal_distances() {
        let kept = KeptSteps { stride: 10, slowest: 2 };
        let mut seconds = vec![1.0; 20];
        (seconds[3], seconds[17]) = (9.0, 5.0);
        assert_eq!(kept.choose(5, &seconds), [3, 5, 15, 17]);
        assert!(kept.choose(0, &[]).is_empty());
    }
}
