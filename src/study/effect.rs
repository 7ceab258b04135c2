//! Test whether two configurations describe one training: keys that neither reads are set aside before the comparison. In:
//! checked configurations. Out: their normal forms; equal forms train alike, unequal ones may still do so.

use crate::config::{Config, Parallel, Precision, Scaling, Shares};
use crate::device::Target;
use crate::train::GlobalBatch;

/// Ranks, samples and device that a variant trains on.
#[derive(Debug, Clone, Copy)]
pub struct Ground {
    /// Number of ranks of the job.
    pub ranks: usize,
    /// Number of samples of the training set.
    pub samples: usize,
    /// Device type of this rank, equal on all ranks: CPU cores or GPUs.
    pub target: Target,
}

/// Normal form of `config`: every key that its training does not read at its default, and batches no larger than an epoch.
/// `batch` is that of `config` on `ground`.
pub fn effect(config: &Config, ground: Ground, batch: &GlobalBatch) -> Config {
    let (mut own, default) = (config.clone(), Config::default());
    steps(&mut own, batch);
    own = own.effective();
    if ground.ranks == 1 {
        // A single rank on a GPU still uses the path that all_reduce selects, as far as there is one.
        let all_reduce = if ground.target.is_gpu() { own.parallel.all_reduce } else { default.parallel.all_reduce };
        own.parallel = Parallel { all_reduce, ..default.parallel.clone() };
    }
    if !ground.target.is_gpu() {
        own.launch.cuda_graphs = default.launch.cuda_graphs;
        if own.model.precision == Precision::Tf32 {
            own.model.precision = Precision::Float32;
        }
    }
    let in_full = matches!(own.model.precision, Precision::Float32 | Precision::Tf32);
    if ground.target.is_gpu() || !own.model.channels_last || !in_full {
        own.model.convolution = default.model.convolution;
    }
    if ground.samples.is_multiple_of(ground.ranks) {
        own.data.drop_last = default.data.drop_last;
    }
    if ground.ranks == 1 || !own.data.shuffle && own.data.shares == Shares::OwnOrder {
        own.data.shares = Shares::Disjoint;
    }
    if !own.data.shuffle {
        own.data.set_epoch = default.data.set_epoch; // augmentation takes the epoch from elsewhere
    }
    own
}

/// Normalizes the number of steps and their samples.
fn steps(own: &mut Config, batch: &GlobalBatch) {
    let train = &mut own.train;
    train.global_batch = 0; // batch_per_rank has it
    train.batch_per_rank = train.batch_per_rank.min(batch.epoch_per_rank);
    train.accumulate = train.accumulate.min(batch.epoch_per_rank.div_ceil(train.batch_per_rank));
    let most = if train.max_steps == 0 { usize::MAX } else { train.max_steps };
    let total = most.min(train.epochs * batch.steps_per_epoch);
    train.epochs = total.div_ceil(batch.steps_per_epoch);
    train.max_steps = if total.is_multiple_of(batch.steps_per_epoch) { 0 } else { total };
    if batch.samples == own.schedule.base_batch {
        own.schedule.scaling = Scaling::None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Plan;

    /// Normal forms of the default configuration with these keys set, on 2 CPU ranks and 100 samples.
    fn forms(sets: &[&[&str]]) -> Vec<Config> {
        let ground = Ground { ranks: 2, samples: 100, target: Target::Cpu };
        let form = |set: &&[&str]| {
            let set: Vec<String> = set.iter().map(|text| text.to_string()).collect();
            let plan = Plan::new(Config::load(None, &set).unwrap(), ground.ranks).unwrap();
            effect(&plan, ground, &GlobalBatch::new(&plan, ground.samples).unwrap())
        };
        sets.iter().map(form).collect()
    }

    #[test]
    fn what_is_not_read_makes_no_difference() {
        let powersgd: &[&str] = &["parallel.compression=powersgd"];
        for (one, other) in [
            (&[][..], &["optim.beta2=0.9", "optim.trust=0.1", "schedule.gamma=0.5", "parallel.compression_rank=8"][..]),
            (&[], &["train.global_batch=16"]),
            (&[], &["model.precision=tf32", "parallel.buffers=sync", "data.drop_last=true", "train.max_steps=14"]),
            (&["train.batch_per_rank=50"], &["train.batch_per_rank=4096", "train.accumulate=3"]),
            (
                &["optim.name=adamw", "optim.weight_decay=0.1"],
                &["optim.name=adamw", "optim.weight_decay=0.1", "optim.decay=all"],
            ),
            (&[], &["optim.decay=matrices"]),
            (&["train.max_steps=7"], &["train.max_steps=7", "train.epochs=1"]),
            (&[], &["schedule.scaling=linear", "schedule.base_batch=16"]),
            (powersgd, &["parallel.compression=powersgd", "parallel.compression_block=64"]),
        ] {
            let forms = forms(&[one, other]);
            assert_eq!(forms[0].differences(&forms[1]), [], "{one:?} {other:?}");
        }
    }

    #[test]
    fn what_is_read_makes_one() {
        for set in [
            &["train.lr=0.02"][..],
            &["optim.name=lamb"],
            &["optim.nesterov=true"],
            &["train.batch_per_rank=4"],
            &["train.accumulate=2"],
            &["train.max_steps=13"],
            &["schedule.scaling=linear"],
            &["schedule.anneal=step"],
            &["parallel.bucket_mb=1"],
            &["model.name=resnet18", "parallel.buffers=sync"],
            &["parallel.compression=bf16"],
            &["data.shares=same"],
            &["data.set_epoch=false"],
            &["model.bias=true"],
            &["metrics.timing=profile"],
        ] {
            let forms = forms(&[&[], set]);
            assert_ne!(forms[0], forms[1], "{set:?}");
        }
    }
}
