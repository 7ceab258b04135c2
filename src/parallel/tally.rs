//! Sums of losses and correct predictions, counted where the logits are.

use tch::Tensor;

use crate::device::Target;

/// Loss and correct predictions over some samples.
#[derive(Debug, Clone, Copy, Default)]
pub struct StepResult {
    /// Sum of the cross-entropy over the targets.
    pub loss_sum: f64,
    /// Targets that have the greatest logit.
    pub correct: usize,
    /// Number of samples.
    pub samples: usize,
}

impl StepResult {
    /// Adds the result of another batch.
    pub fn add(&mut self, other: StepResult) {
        self.loss_sum += other.loss_sum;
        self.correct += other.correct;
        self.samples += other.samples;
    }
}

/// Running sums of loss and correct predictions.
pub(super) enum Tally {
    /// Counted on the host within the call. `logits` and `targets` are kept so that no step allocates.
    Host { result: StepResult, logits: Vec<f32>, targets: Vec<i64> },
    /// `[2]` float64 on the device, sums of losses and correct predictions: reading them would synchronize every step.
    Device { sums: Tensor, samples: usize },
}

impl Tally {
    /// Empty sums in the memory of `target`.
    pub fn new(target: Target) -> Tally {
        if target.is_gpu() {
            return Tally::Device { sums: Tensor::zeros([2], (tch::Kind::Double, target.device())), samples: 0 };
        }
        Tally::Host { result: StepResult::default(), logits: Vec::new(), targets: Vec::new() }
    }

    /// Whether the sums are known when [`add`](Self::add) returns.
    pub fn result_is_ready(&self) -> bool {
        matches!(self, Tally::Host { .. })
    }

    /// Adds the loss and correct predictions of `samples` samples with these `logits` `[.., classes]` and `targets` `[..]`.
    pub fn add(&mut self, logits: &Tensor, targets: &Tensor, mean_loss: &Tensor, samples: usize) {
        let n = targets.numel();
        match self {
            // Copies once and counts here: at batch 4, libtorch's three calls for it would be 2 % of the step.
            Tally::Host { result, logits: scores, targets: wanted } => {
                let classes = logits.numel() / n;
                scores.resize(logits.numel(), 0.0);
                wanted.resize(n, 0);
                logits.copy_data(scores, n * classes);
                targets.copy_data(wanted, n);
                let is_correct = |(row, &target): (&[f32], &i64)| {
                    let best = (1..classes).fold(0, |best, class| if row[class] > row[best] { class } else { best });
                    best as i64 == target
                };
                let correct = scores.chunks(classes).zip(&*wanted).filter(|pair| is_correct(*pair)).count();
                let loss_sum = mean_loss.double_value(&[]) * n as f64;
                result.add(StepResult { loss_sum, correct, samples });
            }
            Tally::Device { sums, samples: seen } => tch::no_grad(|| {
                let correct = logits.argmax(-1, false).eq_tensor(targets).sum(tch::Kind::Double);
                let loss = mean_loss.to_kind(tch::Kind::Double) * n as f64;
                let _ = sums.g_add_(&Tensor::stack(&[loss, correct], 0));
                *seen += samples;
            }),
        }
    }

    /// Takes the sums since the last call.
    pub fn take(&mut self) -> StepResult {
        match self {
            Tally::Host { result, .. } => std::mem::take(result),
            Tally::Device { sums, samples } => {
                let mut values = [0f64; 2];
                sums.copy_data(&mut values, 2);
                let _ = sums.zero_();
                let [loss_sum, correct] = values;
                StepResult { loss_sum, correct: correct as usize, samples: std::mem::take(samples) }
            }
        }
    }
}
