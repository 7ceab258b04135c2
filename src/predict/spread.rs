//! How far the slowest of n ranks lags behind their mean: extreme values of the recorded spread. Pure arithmetic.

use crate::metrics;

/// Values from this share on are the tail.
const TAIL: f64 = 0.9;
/// Least number of values that a tail is fitted to.
const LEAST_TAIL: usize = 10;
/// Values below the tail are thinned to this many.
const BODY: usize = 200;

/// Spread of the ranks' own work relative to its mean.
///
/// The recorded deviations give the shape: their own distribution up to the 90th percentile, and above it an exponential one with
/// their mean excess. From too few deviations comes a normal distribution. Along the exponential part the expected maximum of n ranks
/// grows with the logarithm of n.
///
/// Source of the tail: Coles, An Introduction to Statistical Modeling of Extreme Values, 2001, chapter 4 (peaks over a threshold,
/// generalized Pareto distribution of shape 0).
#[derive(Debug, Clone, PartialEq)]
pub struct Spread {
    shape: Shape,
    /// Factor on the shape, by which it meets the measured lag.
    scale: f64,
}

#[derive(Debug, Clone, PartialEq)]
enum Shape {
    /// Standard normal distribution.
    Normal,
    /// Values below the threshold, ascending and equally likely; threshold; mean excess above it.
    Recorded { body: Vec<f64>, threshold: f64, excess: f64 },
}

impl Spread {
    /// A normal distribution with this standard `deviation`, as a share of the mean.
    pub fn normal(deviation: f64) -> Spread {
        Spread { shape: Shape::Normal, scale: deviation }
    }

    /// The distribution of `deviations` of single ranks from the mean of all, as shares of it.
    pub fn of(deviations: &[f64]) -> Spread {
        let mut sorted: Vec<f64> = deviations.iter().copied().filter(|value| value.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let cut = (TAIL * sorted.len() as f64) as usize;
        let (body, tail) = sorted.split_at(cut.min(sorted.len()));
        if tail.len() < LEAST_TAIL {
            return Spread::normal(1.0);
        }
        let threshold = tail[0];
        let excess = metrics::mean(tail.iter().map(|value| value - threshold));
        if !(excess > 0.0 && excess.is_finite()) {
            return Spread::normal(1.0);
        }
        let step = body.len().div_ceil(BODY);
        let body = body.chunks(step).map(|values| metrics::mean(values.iter().copied())).collect();
        Spread { shape: Shape::Recorded { body, threshold, excess }, scale: 1.0 }
    }

    /// Scales the shape by the median of measured `lags`: (ranks, lag / mean).
    pub fn fitted(self, lags: &[(usize, f64)]) -> Spread {
        let unscaled = Spread { scale: 1.0, ..self.clone() };
        let ratios = lags.iter().map(|(ranks, lag)| lag / unscaled.lag(*ranks));
        let scale = metrics::median_of(ratios.filter(|ratio| ratio.is_finite())).max(0.0); // 0 without any
        Spread { scale, ..self }
    }

    /// Expected lag of the slowest of `ranks` ranks behind their mean, as a share of the mean; 0 for one rank.
    pub fn lag(&self, ranks: usize) -> f64 {
        if ranks <= 1 { 0.0 } else { self.scale * self.expected_maximum(ranks) }
    }

    /// Whether the shape is a recorded one.
    pub fn is_recorded(&self) -> bool {
        matches!(self.shape, Shape::Recorded { .. })
    }

    fn expected_maximum(&self, ranks: usize) -> f64 {
        let n = ranks as f64;
        let Shape::Recorded { body, threshold, excess } = &self.shape else {
            // Blom, Statistical Estimates and Transformed Beta-Variables, 1958: the quantile of (n - 0.375)/(n + 0.25), within 2 %.
            return normal_quantile((n - 0.375) / (n + 0.25));
        };
        // The maximum is below x with probability F(x)^n.
        let reached = |number: usize| (TAIL * number as f64 / body.len() as f64).powf(n);
        let below = body.iter().enumerate().map(|(number, value)| value * (reached(number + 1) - reached(number)));
        let above = (1.0 - TAIL.powf(n)) * threshold + excess * exceedances(ranks);
        below.sum::<f64>() + above
    }
}

/// Expected excess of the maximum of n values over a threshold that each exceeds with probability 1 - `TAIL`, in means of the excess,
/// which is exponential: the sum of `(1 - TAIL^k) / k` for k from 1 to n.
fn exceedances(n: usize) -> f64 {
    // From here on TAIL^k does not count, and the sum of 1/k is a logarithm.
    const MANY: usize = 1000;
    let sum: f64 = (1..=n.min(MANY)).map(|k| (1.0 - TAIL.powf(k as f64)) / k as f64).sum();
    sum + (n as f64 / MANY as f64).ln().max(0.0)
}

/// Quantile of the standard normal distribution for p above 0.5, within 4.5e-4.
///
/// Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.2.23.
fn normal_quantile(p: f64) -> f64 {
    let t = (-2.0 * (1.0 - p).ln()).sqrt();
    let above = 2.515517 + t * (0.802853 + t * 0.010328);
    let below = 1.0 + t * (1.432788 + t * (0.189269 + t * 0.001308));
    t - above / below
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_of_many_lags_as_tables_of_order_statistics_say() {
        // Harter, Expected Values of Normal Order Statistics, Biometrika 1961.
        for (n, expected) in [(2, 0.5642), (4, 1.0294), (10, 1.5388), (100, 2.5076), (400, 2.9682)] {
            let found = Spread::normal(1.0).lag(n);
            assert!((found / expected - 1.0).abs() < 0.05, "{n}: {found}, {expected}");
        }
        assert_eq!(Spread::normal(1.0).lag(1), 0.0);
    }

    #[test]
    fn an_exponential_spread_grows_with_the_harmonic_numbers() {
        // Quantiles of the exponential distribution less its mean; the expected maximum of n is H(n) - 1.
        let values: Vec<f64> = (0..20_000).map(|i| -(1.0 - (i as f64 + 0.5) / 20_000.0).ln() - 1.0).collect();
        let spread = Spread::of(&values);
        assert!(spread.is_recorded());
        for n in [2, 8, 64, 512, 4096, 100_000] {
            let expected: f64 = (1..=n).map(|k| 1.0 / k as f64).sum::<f64>() - 1.0;
            let found = spread.lag(n);
            assert!((found / expected - 1.0).abs() < 0.02, "{n}: {found}, {expected}");
        }
    }

    #[test]
    fn the_scale_is_that_of_the_measured_lags_and_few_values_have_no_tail() {
        let spread = Spread::of(&[0.1, -0.1, 0.2]).fitted(&[(2, 0.05), (4, f64::NAN)]);
        assert!(!spread.is_recorded() && (spread.lag(2) - 0.05).abs() < 1e-12);
        assert!(spread.lag(1024) > 0.2);
        assert_eq!(Spread::of(&[]).fitted(&[]).lag(64), 0.0);
        assert!(!Spread::of(&[1.0; 500]).is_recorded());
    }
}
