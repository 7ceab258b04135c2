//! Comparison of a study's variants over seeds with its first variant.

use super::anatomy::mean;

/// Accuracy counted for a training that diverged, percent: guessing one of ten classes.
const GUESSING: f64 = 10.0;

/// Result of one variant after its last epoch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Variant {
    /// Number of trainings, one per seed.
    pub seeds: usize,
    /// Number of trainings whose loss became NaN or infinite.
    pub diverged: usize,
    /// Mean test accuracy, percent.
    pub mean: f64,
    /// Least test accuracy of a seed, percent.
    pub least: f64,
    /// Greatest test accuracy of a seed, percent.
    pub most: f64,
    /// Mean minus that of the first variant, percentage points.
    pub against_first: f64,
    /// Share recovered of the second variant's drop against the first; NaN if there is none.
    pub won_back: f64,
}

/// Summarizes the last test accuracies of each variant's seeds, NaN for a training that diverged.
pub fn variants(accuracies: &[Vec<f64>]) -> Vec<Variant> {
    let mut all: Vec<Variant> = accuracies.iter().map(|seeds| Variant::of(seeds)).collect();
    let (first, second) = (all.first().copied(), all.get(1).copied());
    for (index, variant) in all.iter_mut().enumerate() {
        let Some(first) = first else { break };
        variant.against_first = variant.mean - first.mean;
        // A drop within the spread of seeds is none, and beyond the first variant there is nothing left to recover.
        let second = second.filter(|second| second.seeds > 1 && second.most < first.least);
        if let Some(second) = second.filter(|_| index > 1 && variant.against_first <= 0.0) {
            variant.won_back = (variant.mean - second.mean) / (first.mean - second.mean);
        }
    }
    all
}

impl Variant {
    fn of(accuracies: &[f64]) -> Variant {
        let counted = || accuracies.iter().map(|accuracy| if accuracy.is_finite() { *accuracy } else { GUESSING });
        Variant {
            seeds: accuracies.len(),
            diverged: accuracies.iter().filter(|accuracy| !accuracy.is_finite()).count(),
            mean: mean(counted()),
            least: counted().reduce(f64::min).unwrap_or(f64::NAN),
            most: counted().reduce(f64::max).unwrap_or(f64::NAN),
            against_first: f64::NAN,
            won_back: f64::NAN,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn won_back(accuracies: &[&[f64]]) -> Vec<f64> {
        let accuracies: Vec<Vec<f64>> = accuracies.iter().map(|seeds| seeds.to_vec()).collect();
        variants(&accuracies).iter().map(|variant| variant.won_back).collect()
    }

    #[test]
    fn a_variant_wins_back_a_share_of_what_the_second_lost() {
        let back = won_back(&[&[60.0, 62.0], &[40.0, 42.0], &[50.0, 52.0], &[30.0, 32.0], &[61.0, 61.0]]);
        assert!(back[0].is_nan() && back[1].is_nan());
        assert_eq!(back[2..], [0.5, -0.5, 1.0]);
    }

    #[test]
    fn nothing_is_won_back_of_a_loss_that_seeds_explain_or_beyond_the_first() {
        // 0.1 points between the first two, 1.3 to recover: 1,300 % of nothing.
        assert!(won_back(&[&[60.0, 60.4], &[59.9, 60.3], &[61.2, 61.6]])[2].is_nan());
        assert!(won_back(&[&[60.0], &[40.0], &[50.0]])[2].is_nan(), "one seed does not tell");
        assert!(won_back(&[&[60.0, 62.0], &[40.0, 42.0], &[62.0, 63.0]])[2].is_nan(), "ahead of the first");
        assert!(won_back(&[&[60.0, 62.0], &[70.0, 72.0], &[65.0, 65.0]])[2].is_nan(), "the second lost nothing");
    }

    #[test]
    fn a_training_that_diverged_counts_as_guessing_and_is_counted() {
        let all = variants(&[vec![50.0, 70.0], vec![30.0, f64::NAN]]);
        assert_eq!((all[1].seeds, all[1].diverged, all[1].mean, all[1].least, all[1].most), (2, 1, 20.0, 10.0, 30.0));
        assert_eq!((all[0].against_first, all[1].against_first), (0.0, -40.0));
        assert!(variants(&[]).is_empty());
    }
}
