//! A histogram of times on a logarithmic scale, from which quantiles follow within [`TimeHistogram::ERROR`]. All have the same
//! bins, so that those of many ranks are merged by one sum.

use crate::units::Second;

/// Counts of times by bins whose borders grow by the factor (1 + error) / (1 - error).
///
/// Source of the bins and of the error: Masson, Rim, Lee, DDSketch: A Fast and Fully-Mergeable Quantile Sketch with
/// Relative-Error Guarantees, VLDB 2019. There the bins are as many as the values need; here they are fixed, from
/// [`LEAST`](Self::LEAST) to [`MOST`](Self::MOST), since ranks then merge by an all-reduce, in a number of messages that is
/// logarithmic in the ranks.
#[derive(Debug, Clone, PartialEq)]
pub struct TimeHistogram {
    /// Values in each bin; the first is that of all times up to [`LEAST`](Self::LEAST).
    counts: Vec<f64>,
}

impl TimeHistogram {
    /// Greatest relative error of a quantile from `LEAST` to `MOST`.
    pub const ERROR: f64 = 0.01;
    /// Times up to this one count as 0.
    pub const LEAST: Second = 1e-8;
    /// Longer times count as this one.
    pub const MOST: Second = 1e5;

    /// Logarithm of the factor from one border to the next.
    fn width() -> f64 {
        ((1.0 + Self::ERROR) / (1.0 - Self::ERROR)).ln()
    }

    /// Number of bins.
    pub fn bins() -> usize {
        1 + ((Self::MOST / Self::LEAST).ln() / Self::width()).ceil() as usize
    }

    /// A histogram without a value.
    pub fn new() -> TimeHistogram {
        TimeHistogram { counts: vec![0.0; Self::bins()] }
    }

    /// The histogram with these `counts` of its bins.
    ///
    /// # Panics
    /// There are not as many counts as bins.
    pub fn from_counts(counts: &[f64]) -> TimeHistogram {
        assert_eq!(counts.len(), Self::bins(), "a count for each bin");
        TimeHistogram { counts: counts.to_vec() }
    }

    /// The counts of all bins, float64 as they are summed over ranks (exact up to 2^53).
    pub fn counts(&self) -> &[f64] {
        &self.counts
    }

    /// Adds `count` values to `bin`, if there is such a bin.
    pub fn add_to_bin(&mut self, bin: usize, count: f64) {
        if let Some(bin) = self.counts.get_mut(bin) {
            *bin += count;
        }
    }

    /// Adds one time; NaN counts as 0.
    pub fn add(&mut self, seconds: Second) {
        let bin =
            if seconds > Self::LEAST { ((seconds / Self::LEAST).ln() / Self::width()).ceil() as usize } else { 0 };
        self.counts[bin.min(Self::bins() - 1)] += 1.0;
    }

    /// Adds the values of `other`.
    pub fn merge(&mut self, other: &TimeHistogram) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(own, other)| *own += other);
    }

    /// Upper border of `bin`, in seconds.
    pub fn border(bin: usize) -> Second {
        Self::LEAST * (bin as f64 * Self::width()).exp()
    }

    /// The value of nearest rank at `share` (0 to 1), within [`ERROR`](Self::ERROR); NaN without values.
    pub fn quantile(&self, share: f64) -> Second {
        let all: f64 = self.counts.iter().sum();
        let rank = (share * all).ceil().max(1.0);
        let mut below = 0.0;
        for (bin, count) in self.counts.iter().enumerate() {
            below += count;
            if below >= rank && all > 0.0 {
                // The point of the bin whose relative distance from both borders is the same.
                return if bin == 0 { 0.0 } else { Self::border(bin) * (1.0 - Self::ERROR) };
            }
        }
        f64::NAN
    }
}

impl Default for TimeHistogram {
    fn default() -> TimeHistogram {
        TimeHistogram::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::percentile;

    #[test]
    fn quantiles_are_within_the_stated_error_and_merging_is_adding() {
        // Times over nine decades, by a formula that has no pattern in the bins.
        let times: Vec<f64> =
            (0..5000u64).map(|i| 1e-7 * 10f64.powf(9.0 * ((i * 7919) % 5000) as f64 / 5000.0)).collect();
        let mut ranks = vec![TimeHistogram::new(); 3];
        times.iter().enumerate().for_each(|(i, time)| ranks[i % 3].add(*time));
        let mut all = TimeHistogram::from_counts(ranks[0].counts());
        ranks[1..].iter().for_each(|rank| all.merge(rank));
        let mut sorted = times.clone();
        sorted.sort_by(f64::total_cmp);
        for share in [0.0, 0.01, 0.25, 0.5, 0.9, 0.99, 1.0] {
            let (found, exact) = (all.quantile(share), percentile(&sorted, share));
            assert!((found / exact - 1.0).abs() <= TimeHistogram::ERROR * (1.0 + 1e-9), "{share}: {found}, {exact}");
        }
    }

    #[test]
    fn extremes_have_bins_too_and_nothing_has_no_quantile() {
        let mut histogram = TimeHistogram::new();
        assert!(histogram.quantile(0.5).is_nan());
        [0.0, -1.0, f64::NAN].into_iter().for_each(|time| histogram.add(time));
        assert_eq!(histogram.quantile(0.5), 0.0);
        (0..9).for_each(|_| histogram.add(1e9));
        assert!((histogram.quantile(0.9) / TimeHistogram::MOST - 1.0).abs() < 0.03);
        assert_eq!(histogram.counts().iter().sum::<f64>(), 12.0);
    }
}
