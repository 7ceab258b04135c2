//! State of a training into a checkpoint and out of one: its counters here, its components by [`Saving`] and [`Restoring`].

use std::time::{Duration, Instant};

use super::Training;
use crate::error::Result;
use crate::parallel::Replica;
use crate::store::{Attribute, Resumable};
use crate::train::partial_epoch::PartialEpoch;
use crate::train::resume::{self, Restoring, Resume, Saving};

impl Training<'_> {
    /// Whether each rank has parameters of its own, between two steps.
    fn ranks_are_apart(&self) -> bool {
        !self.plan.parallel.keeps_ranks_equal() || self.plan.parallel.local_steps > 1
    }

    /// Copies everything that [`restore`](Self::restore) needs, to rank 0. Returns the copy and how long it took. A collective
    /// between two steps.
    ///
    /// # Errors
    /// A value is NaN or infinite, unless that is tolerated.
    pub(super) fn capture(&mut self) -> Result<(Option<Resumable>, Duration)> {
        let started = Instant::now();
        let was_averaged = self.averaged;
        self.exchange_average(false);
        if !self.replica.result_is_ready() && self.steps_done > 0 {
            self.take_result(self.steps_done - 1, self.plan.train.lr)?; // waits for the device
        }
        self.gather_times()?;
        let result = Replica::sum_over_ranks(&self.job.communicator, self.epoch.result())?;
        let mut saving = Saving::new(self.job, self.ranks_are_apart());
        saving.optimizer(&self.optimizer)?;
        saving.average(self.average.as_ref())?;
        saving.replica(&mut self.replica)?;
        saving.draws(&self.draws)?;
        self.epoch.capture(result, &mut saving);
        for (name, count) in [
            ("steps", self.steps_done),
            ("epochs", self.epochs_done),
            ("world_size", self.job.world_size),
            ("global_batch", self.global_batch.samples),
        ] {
            saving.attribute(name, Attribute::Int(count as i64));
        }
        saving.attribute("resumed_at_steps", Attribute::Ints(self.resumed_at.clone()));
        let content = self.job.is_root().then(|| Resumable {
            tables: self.tables(),
            model: self.checkpoint(),
            state: saving.end(),
        });
        self.agree_on_finite(content.as_ref().and_then(resume::not_finite))?;
        self.exchange_average(was_averaged);
        Ok((content, started.elapsed()))
    }

    /// Restores everything but the model, which was loaded before. `resume` is there on rank 0. A collective.
    pub(super) fn restore(&mut self, resume: Option<&Resume>) -> Result<()> {
        let from = Restoring::new(self.job, resume, self.ranks_are_apart())?;
        from.check_ranks(&self.replica)?;
        (self.steps_done, self.epochs_done) = (from.number("steps") as usize, from.number("epochs") as usize);
        self.epoch = PartialEpoch::restored(&from);
        from.optimizer(&mut self.optimizer)?;
        from.average(self.average.as_mut())?;
        from.replica(&mut self.replica)?;
        from.draws(&self.draws)?;
        let tables = resume.map_or(&[][..], |resume| &resume.content.tables);
        self.record.resume(&self.job.communicator, self.steps_done, self.epoch.seconds(), tables)?;
        self.divergence.resume(tables);
        self.trace.resume(self.job, tables)?;
        self.gpus.resume(tables);
        self.reads.resume(tables);
        if let Some(resume) = resume {
            self.resumed_at = resume.resumed_at();
            self.draw_again();
        }
        // Between two epochs the model holds what was tested, and what a run file without another epoch would hold.
        self.exchange_average(self.epoch.steps() == 0);
        Ok(())
    }

    /// Repeats the sampling of the epochs that are done, so that `/sampling` has those before a resume.
    fn draw_again(&mut self) {
        for epoch in 0..self.epochs_done {
            self.sampling.draw(&self.plan, self.job.world_size, epoch, self.global_batch.steps_per_epoch);
        }
    }
}
