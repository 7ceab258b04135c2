//! The scale of the loss in fp16.

use crate::config::Precision;

/// Scale of a training's first loss.
const FIRST: f32 = 65_536.0;
/// Steps without a gradient that is NaN or infinite after which the scale is doubled.
const GROWTH_INTERVAL: u32 = 2000;

/// Least scale of use: gradients that exceed fp16's range, 65504, at a smaller one exceed 4e9 themselves.
const LEAST: f32 = 1.0 / FIRST;

/// A factor of the loss, and so of every gradient in the backward pass, that keeps small gradients above fp16's least number,
/// 6e-8. The optimizer divides by it again.
///
/// A gradient that is NaN or infinite means that the scale was too large: the step is left out and the scale halved; after 2000
/// steps without one it is doubled. Source: PyTorch, torch.amp.GradScaler with its defaults.
///
/// ```
/// let mut scale = hpml::optim::LossScale::default();
/// scale.update(false);
/// assert_eq!((scale.factor(), scale.skipped()), (32_768.0, 1));
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossScale {
    factor: f32,
    /// Steps since the last change.
    steady: u32,
    skipped: usize,
}

impl Default for LossScale {
    fn default() -> LossScale {
        LossScale { factor: FIRST, steady: 0, skipped: 0 }
    }
}

impl LossScale {
    /// Scale at the start of a training in `precision`; `None` where none is needed.
    pub fn of(precision: Precision) -> Option<LossScale> {
        (precision == Precision::Fp16).then(LossScale::default)
    }

    /// The scale with these values, as [`factor`](Self::factor), [`steady`](Self::steady) and [`skipped`](Self::skipped) returned
    /// them.
    pub fn new(factor: f32, steady: u32, skipped: usize) -> LossScale {
        LossScale { factor, steady, skipped }
    }

    /// Factor of the next loss.
    pub fn factor(&self) -> f32 {
        self.factor
    }

    /// Steps since the factor's last change.
    pub fn steady(&self) -> u32 {
        self.steady
    }

    /// Steps left out since the start of the training.
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// Whether no scale helps: gradients are NaN or infinite although they were made far smaller. The training has diverged.
    pub fn is_lost(&self) -> bool {
        self.factor < LEAST
    }

    /// Adapts the scale after a backward pass; `finite`: no gradient was NaN or infinite.
    pub fn update(&mut self, finite: bool) {
        if !finite {
            *self = LossScale { factor: 0.5 * self.factor, steady: 0, skipped: self.skipped + 1 };
            return;
        }
        self.steady += 1;
        if self.steady == GROWTH_INTERVAL {
            self.steady = 0;
            self.factor = Some(2.0 * self.factor).filter(|grown| grown.is_finite()).unwrap_or(self.factor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `tests/fixtures/loss_scale.py` with torch.amp.GradScaler: first scale, whether finite, steps, scale after them.
    const EXPECTED: &str = include_str!("../../tests/fixtures/loss_scale.txt");

    #[test]
    fn the_scale_is_grad_scalers() {
        let (mut scale, mut first, mut skipped) = (LossScale::default(), FIRST, 0);
        for line in EXPECTED.lines() {
            let [init, finite, steps, expected] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            if init.parse() != Ok(first) {
                first = init.parse().unwrap();
                (scale, skipped) = (LossScale::new(first, 0, 0), 0);
            }
            for _ in 0..steps.parse::<usize>().unwrap() {
                scale.update(finite == "True");
                skipped += usize::from(finite != "True");
            }
            assert_eq!((scale.factor(), scale.skipped()), (expected.parse().unwrap(), skipped), "{line}");
        }
    }

    #[test]
    fn it_is_lost_when_no_factor_helps() {
        let mut scale = LossScale::default();
        let skipped = std::iter::repeat_with(|| scale.update(false)).take(31).count();
        assert!(!scale.is_lost(), "{skipped}");
        scale.update(false);
        assert!(!scale.is_lost());
        scale.update(false);
        assert!(scale.is_lost());
    }
}
