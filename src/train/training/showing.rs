//! The view of a training under way, of what rank 0 knows without a collective: its own loss, its own times, and the samples of all
//! ranks, which take the same steps.

use super::Training;
use crate::error::Result;
use crate::live::{Live, Place};
use crate::train::Score;

impl Training<'_> {
    /// Begins the view of the epoch under way, which has `steps` left.
    pub(super) fn begin_epoch_of(&self, live: &mut Live, steps: usize) {
        let (samples, left) = (self.global_batch.samples as f64, self.steps_of_all() - self.steps_done);
        live.set_left(left as f64 * samples, samples);
        live.begin(&self.name_of_epoch("step"), self.epoch.steps(), self.epoch.steps() + steps);
    }

    /// Begins the view of a test of `batches` batches on this rank.
    pub(super) fn begin_test_of(&self, live: &mut Live, batches: usize) {
        live.begin(&self.name_of_epoch("test batch"), 0, batches);
    }

    /// Shows and logs the interval that ends here; `lr` is the learning rate of the last step. With `rest` it ends the epoch.
    ///
    /// # Errors
    /// The loss on this rank is NaN or infinite, unless that is tolerated; the device has failed.
    pub(super) fn show(&mut self, live: &mut Live, lr: f64, rest: bool) -> Result<()> {
        if !self.replica.result_is_ready() {
            self.take_result(self.steps_done - 1, lr)?; // waits for the device, so that it is done once an interval only
        }
        let (mut measured, result) = self.epoch.take_measured()?;
        let score = Score::new(result, self.train_feed.dataset().form());
        measured.samples = score.samples * self.job.world_size;
        (measured.loss_sum, measured.loss_samples) = (score.loss * score.samples as f64, score.samples);
        let (epoch, step, steps) = (self.epochs_done, self.steps_done, self.steps_of_all());
        let place = Place { epoch, step, steps, lr, ranks: self.job.world_size };
        live.interval(&place, measured, rest);
        Ok(())
    }

    /// Steps of the whole training.
    pub(in crate::train) fn steps_of_all(&self) -> usize {
        self.global_batch.steps_of(&self.plan.train)
    }

    fn name_of_epoch(&self, unit: &str) -> String {
        format!("epoch {}/{}, {unit}", self.epochs_done + 1, self.plan.train.epochs)
    }
}
