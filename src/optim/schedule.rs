//! The learning rate of each step: scaled with the batch, warmed up, then annealed.

use crate::config::{self, Anneal, Scaling};

/// The learning rates of a whole training, equal on every rank.
///
/// ```
/// let config = hpml::config::Config::default();
/// let schedule = hpml::optim::Schedule::new(&config.schedule, config.train.lr, 1000, 100, 256);
/// println!("first step {}, last step {}", schedule.lr(0), schedule.lr(999));
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    peak: f64,
    anneal: Anneal,
    warmup: f64,
    start: f64,
    least: f64,
    milestones: Vec<f64>,
    gamma: f64,
    total: f64,
}

impl Schedule {
    /// The schedule of a training of `total` steps, `per_epoch` steps per epoch and `global_batch` samples per step, whose
    /// learning rate is `lr` at the base batch.
    ///
    /// Sources: linear scaling and gradual warm-up: Goyal et al., Accurate, Large Minibatch SGD, 2017. Square-root scaling:
    /// Krizhevsky, One weird trick, 2014. Warm-up, cosine and steps as PyTorch's LinearLR, CosineAnnealingLR and
    /// MultiStepLR one after the other; one cycle as OneCycleLR (`pct_start` the warm-up's share, cosine).
    pub fn new(schedule: &config::Schedule, lr: f64, total: usize, per_epoch: usize, global_batch: usize) -> Schedule {
        let ratio = global_batch as f64 / schedule.base_batch.max(1) as f64;
        let scale = match schedule.scaling {
            Scaling::None => 1.0,
            Scaling::Linear => ratio,
            Scaling::Sqrt => ratio.sqrt(),
        };
        Schedule {
            peak: lr * scale,
            anneal: schedule.anneal,
            warmup: (schedule.warmup_epochs * per_epoch as f64).round(),
            start: schedule.warmup_start,
            least: schedule.least,
            milestones: schedule.milestones.iter().map(|epoch| (epoch * per_epoch as f64).round()).collect(),
            gamma: schedule.gamma,
            total: total as f64,
        }
    }

    /// Learning rate of optimizer step `step`, from 0.
    pub fn lr(&self, step: usize) -> f64 {
        let step = step as f64;
        if step < self.warmup {
            let done = step / self.warmup;
            return match self.anneal {
                // OneCycleLR reaches the peak at the last step of the rise.
                Anneal::OneCycle => self.cosine(self.start * self.peak, self.peak, step / (self.warmup - 1.0).max(1.0)),
                _ => self.peak * (self.start + (1.0 - self.start) * done),
            };
        }
        match self.anneal {
            Anneal::Constant => self.peak,
            Anneal::Cosine => {
                let done = (step - self.warmup) / (self.total - self.warmup).max(1.0);
                self.cosine(self.peak, self.least * self.peak, done)
            }
            Anneal::Step => {
                let passed = self.milestones.iter().filter(|&&milestone| milestone <= step).count();
                self.peak * self.gamma.powi(passed as i32)
            }
            Anneal::OneCycle => {
                let top = (self.warmup - 1.0).max(0.0);
                let done = (step - top) / (self.total - 1.0 - top).max(1.0);
                self.cosine(self.peak, self.least * self.peak, done)
            }
        }
    }

    fn cosine(&self, from: f64, to: f64, done: f64) -> f64 {
        to + (from - to) * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos()) / 2.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `tests/fixtures/schedules.py` with PyTorch's schedulers.
    const EXPECTED: &str = include_str!("../../tests/fixtures/schedules.txt");

    #[test]
    fn twenty_steps_of_every_schedule_equal_pytorchs() {
        let mut cases = 0;
        for line in EXPECTED.lines() {
            let (settings, rates) = line.split_once(" : ").unwrap();
            let settings: Vec<String> = settings.split_whitespace().map(str::to_owned).collect();
            let config = config::Config::load(None, &settings).unwrap();
            let schedule = Schedule::new(&config.schedule, config.train.lr, 20, 5, 256);
            for (step, expected) in rates.split_whitespace().enumerate() {
                let expected: f64 = expected.parse().unwrap();
                let found = schedule.lr(step);
                assert!((found / expected - 1.0).abs() < 1e-9, "{settings:?} step {step}: {found} {expected}");
            }
            cases += 1;
        }
        assert_eq!(cases, 6);
    }
}
