//! Samples of an optimizer step, computed in this one place for the header, the schedule, checkpoints, studies and the run file.
//! In: the plan, the size of the training set. Out: a [`GlobalBatch`].

use crate::config::{Plan, Train};
use crate::data::samples_per_rank;
use crate::error::{Error, Result};
use crate::units::counted;

/// Division of an epoch into optimizer steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GlobalBatch {
    /// Samples of a full step over all ranks, as drawn: with the sampler's padding, and at most an epoch.
    pub samples: usize,
    /// `train.batch_per_rank` x `train.accumulate` x ranks; `samples` is less if the data have fewer.
    pub configured: usize,
    /// Optimizer steps per epoch; the last one may have fewer samples.
    pub steps_per_epoch: usize,
    /// Samples that each rank draws per epoch.
    pub epoch_per_rank: usize,
    data: usize,
    ranks: usize,
}

impl GlobalBatch {
    /// The steps of `plan`'s ranks on `data` training samples.
    ///
    /// # Errors
    /// [`Error::ConfigValue`] if `train.global_batch` is more than the training set, or `data.drop_last` leaves no sample.
    pub fn new(plan: &Plan, data: usize) -> Result<GlobalBatch> {
        let ranks = plan.world_size();
        let refuse = |key: &str, value: String, expected: String| {
            Err(Error::ConfigValue { place: "data".into(), key: key.into(), value, expected })
        };
        let epoch_per_rank = samples_per_rank(data, ranks, plan.data.drop_last);
        if epoch_per_rank == 0 {
            // drop_last with fewer samples than ranks: PyTorch would train no step and say nothing.
            let expected = format!("{data} samples on {ranks} ranks leave none: use fewer ranks");
            return refuse("data.drop_last", "true".into(), expected);
        }
        if plan.train.global_batch > data {
            let expected = format!("there are {data} training samples: lower it, or take more (data.train_samples)");
            return refuse("train.global_batch", plan.train.global_batch.to_string(), expected);
        }
        let per_rank = plan.train.batch_per_rank * plan.train.accumulate;
        Ok(GlobalBatch {
            samples: per_rank.min(epoch_per_rank) * ranks,
            configured: per_rank * ranks,
            steps_per_epoch: epoch_per_rank.div_ceil(per_rank),
            epoch_per_rank,
            data,
            ranks,
        })
    }

    /// Optimizer steps of a whole training.
    pub fn steps_of(&self, train: &Train) -> usize {
        let most = if train.max_steps == 0 { usize::MAX } else { train.max_steps };
        (train.epochs * self.steps_per_epoch).min(most)
    }

    /// Whether one step takes a whole epoch.
    pub fn is_whole_epoch(&self) -> bool {
        self.steps_per_epoch == 1
    }

    /// Message for the user if the data have fewer samples than a configured step, or a step has samples twice.
    pub fn note(&self) -> Option<String> {
        let GlobalBatch { samples, configured, data, ranks, epoch_per_rank, .. } = self;
        let again = match samples.saturating_sub(*data) {
            0 => String::new(),
            again => format!(", {again} of them drawn again within the step"),
        };
        if configured > samples {
            return Some(format!(
                "global batch {samples}, not {configured}: an epoch of {data} samples gives each of {} \
                 {epoch_per_rank}{again}; lower train.batch_per_rank, or take more samples",
                counted(*ranks, "rank")
            ));
        }
        (!again.is_empty()).then(|| format!("global batch {samples} of {data} samples on {ranks} ranks{again}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::data::{BatchPlan, Sampler};

    fn of(set: &[&str], data: usize, ranks: usize) -> Result<GlobalBatch> {
        let set: Vec<String> = set.iter().map(|text| text.to_string()).collect();
        GlobalBatch::new(&Plan::new(Config::load(None, &set).unwrap(), ranks)?, data)
    }

    #[test]
    fn it_is_the_largest_step_that_the_ranks_draw() {
        for (data, ranks, drop_last) in
            [(10_000, 16, false), (100, 3, false), (100, 3, true), (3, 4, false), (7, 1, true)]
        {
            for (batch, accumulate) in [(1024, 1), (8, 4), (5, 3), (1, 1), (25, 2)] {
                let set = [
                    format!("train.batch_per_rank={batch}"),
                    format!("train.accumulate={accumulate}"),
                    format!("data.drop_last={drop_last}"),
                ];
                let found = of(&[&set[0], &set[1], &set[2]], data, ranks).unwrap();
                let steps = |rank| {
                    let plan = BatchPlan::even(Sampler::new(data, ranks, rank, true, drop_last, 0).indices(), batch);
                    plan.sizes.chunks(accumulate).map(|sizes| sizes.iter().sum()).collect::<Vec<usize>>()
                };
                let first: usize = (0..ranks).map(|rank| steps(rank)[0]).sum();
                assert_eq!((found.samples, found.steps_per_epoch), (first, steps(0).len()), "{set:?} {data} {ranks}");
                assert!(found.samples <= found.configured);
                assert_eq!(found.note().is_some(), found.samples < found.configured || found.samples > data);
            }
        }
    }

    #[test]
    fn what_the_data_cannot_give_is_told_or_refused() {
        let note = |set: &[&str], data, ranks| of(set, data, ranks).unwrap().note().unwrap();
        let told = note(&["train.batch_per_rank=1024"], 10_000, 16);
        assert!(told.contains("global batch 10000, not 16384") && told.contains("each of 16 ranks 625"), "{told}");
        assert!(note(&["train.batch_per_rank=1"], 3, 4).contains("1 of them drawn again"));
        let refused = |set: &[&str], data, ranks| of(set, data, ranks).unwrap_err().to_string();
        assert!(refused(&["train.global_batch=128"], 100, 2).contains("train.global_batch = 128: there are 100"));
        assert!(refused(&["data.drop_last=true"], 3, 4).contains("use fewer ranks"));
        assert_eq!(of(&["train.global_batch=100"], 100, 2).unwrap().samples, 100);
    }
}
