//! Count, mean, variance and extremes of a stream of values, which can be merged.

/// Moments of a set of values. The empty set has the mean 0, a minimum of infinity and a maximum of minus infinity.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moments {
    /// Number of values.
    pub count: u64,
    /// Arithmetic mean.
    pub mean: f64,
    /// Sum of the squared distances from the mean.
    squares: f64,
    /// Least value.
    pub min: f64,
    /// Greatest value.
    pub max: f64,
}

impl Default for Moments {
    fn default() -> Moments {
        Moments { count: 0, mean: 0.0, squares: 0.0, min: f64::INFINITY, max: f64::NEG_INFINITY }
    }
}

impl Moments {
    /// Number of values of [`to_array`](Self::to_array).
    pub const NUMBERS: usize = 5;

    /// Adds one value (Welford's recurrence).
    pub fn add(&mut self, value: f64) {
        self.merge(&Moments { count: 1, mean: value, squares: 0.0, min: value, max: value });
    }

    /// Adds the values of `other`.
    ///
    /// Source: Chan, Golub, LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979.
    pub fn merge(&mut self, other: &Moments) {
        let count = self.count + other.count;
        if other.count == 0 {
            return;
        }
        let (distance, share) = (other.mean - self.mean, other.count as f64 / count as f64);
        self.squares += other.squares + distance * distance * self.count as f64 * share;
        self.mean += distance * share;
        self.count = count;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// Standard deviation of the sample; NaN for fewer than two values.
    pub fn deviation(&self) -> f64 {
        if self.count < 2 { f64::NAN } else { (self.squares / (self.count - 1) as f64).sqrt() }
    }

    /// The moments with this `count`, `mean`, standard `deviation` of the sample and extremes.
    pub fn from_summary(count: u64, mean: f64, deviation: f64, [min, max]: [f64; 2]) -> Moments {
        if count == 0 {
            return Moments::default();
        }
        let squares = if count < 2 { 0.0 } else { deviation * deviation * (count - 1) as f64 };
        Moments { count, mean, squares, min, max }
    }

    /// All numbers, as [`from_array`](Self::from_array) takes them.
    pub fn to_array(&self) -> [f64; Self::NUMBERS] {
        [self.count as f64, self.mean, self.squares, self.min, self.max]
    }

    /// The moments that another rank sent.
    pub fn from_array([count, mean, squares, min, max]: [f64; Self::NUMBERS]) -> Moments {
        Moments { count: count as u64, mean, squares, min, max }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f64]) -> Moments {
        let mut moments = Moments::default();
        values.iter().for_each(|value| moments.add(*value));
        moments
    }

    #[test]
    fn parts_merge_to_the_moments_of_the_whole() {
        // NumPy: np.std([1, 2, 4, 8, 16], ddof=1) = 6.099180272790763
        let whole = of(&[1.0, 2.0, 4.0, 8.0, 16.0]);
        assert_eq!((whole.count, whole.min, whole.max), (5, 1.0, 16.0));
        assert!((whole.mean - 6.2).abs() < 1e-12 && (whole.deviation() - 6.099180272790763).abs() < 1e-12);
        for cut in 0..=5 {
            let values = [1.0, 2.0, 4.0, 8.0, 16.0];
            let mut merged = of(&values[..cut]);
            merged.merge(&Moments::from_array(of(&values[cut..]).to_array()));
            assert_eq!(merged.count, 5);
            assert!((merged.mean - whole.mean).abs() < 1e-12 && (merged.deviation() - whole.deviation()).abs() < 1e-12);
            let Moments { count, mean, min, max, .. } = merged;
            let again = Moments::from_summary(count, mean, merged.deviation(), [min, max]);
            assert!((again.deviation() - whole.deviation()).abs() < 1e-12);
        }
    }

    #[test]
    fn one_value_has_no_deviation_and_none_has_no_extremes() {
        assert!(of(&[3.0]).deviation().is_nan());
        let mut none = Moments::default();
        none.merge(&Moments::default());
        assert_eq!(none, Moments::default());
    }
}
