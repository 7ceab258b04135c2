//! Rows of `/steps`, `/epochs` and `/comm`, and their columns.

use crate::data::Form;
use crate::metrics::{Conditions, Entry, Kind, Part, RankStep, algbw, all_reduce_busbw, definitions};
use crate::parallel::StepResult;
use crate::table::Schema;
use crate::units::{Second, gigabytes_per_second};

/// Mean loss and accuracy over the targets of some samples.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Score {
    /// Mean loss.
    pub loss: f64,
    /// Share of correct predictions, in percent.
    pub accuracy: f64,
    /// Number of samples.
    pub samples: usize,
}

impl Score {
    /// The means of `result`, which is of samples of this `form`.
    pub fn new(StepResult { loss_sum, correct, samples }: StepResult, form: Form) -> Score {
        let count = (samples * form.targets()).max(1) as f64;
        Score { loss: loss_sum / count, accuracy: 100.0 * correct as f64 / count, samples }
    }
}

/// One epoch over all ranks.
#[derive(Debug, Clone, Default)]
pub struct EpochRow {
    /// Number of the epoch, from 0.
    pub epoch: usize,
    /// Number of ranks at the epoch's end.
    pub world_size: usize,
    /// Mean over the training samples of the epoch, each with the parameters of its step.
    pub train: Score,
    /// Mean over the test set with the parameters at the epoch's end.
    pub test: Score,
    /// Wall time of the training, without the test.
    pub seconds: Second,
    /// Wall time of the test.
    pub test_seconds: Second,
    /// Wall time of the epoch's beginning and end besides training and test.
    pub gather_seconds: Second,
    /// Wall time of writing the run file after the epoch; NaN until it is written.
    pub write_seconds: Second,
    /// Wall time that the checkpoint after the epoch took of the training; NaN until that is known.
    pub checkpoint_seconds: Second,
    /// Training images of all ranks per second of `seconds`; NaN if the number of ranks changed during the epoch.
    pub images_per_second: f64,
    /// Multiplications and additions per second of all ranks, see [`metrics::flops`](crate::metrics::flops); NaN as
    /// `images_per_second`, and if they are not counted.
    pub flops: f64,
    /// Share of the peak that `flops` are, in percent; NaN if it was not measured.
    pub peak_share: f64,
    /// Learning rate of the epoch's last step.
    pub lr: f64,
    /// Scale of the loss after the epoch's last step; NaN without one.
    pub loss_scale: f64,
    /// Optimizer steps left out since the start of the training; NaN without a loss scale.
    pub skipped_steps: f64,
    /// Checksum of the parameters, equal on all ranks.
    pub checksum: u64,
}

/// Columns of `/epochs`, which has one row per epoch.
pub fn epochs() -> Schema<EpochRow> {
    Schema::new("epochs", "epoch")
        .count(&definitions::EPOCH, |row: &EpochRow| row.epoch)
        .put(|row, value| row.epoch = value as usize)
        .count(("world_size", "1", "ranks at the epoch's end"), |row| row.world_size)
        .put(|row, value| row.world_size = value as usize)
        .float(&definitions::TRAIN_LOSS, |row| row.train.loss)
        .put(|row, value| row.train.loss = value)
        .float(&definitions::TRAIN_ACCURACY, |row| row.train.accuracy)
        .put(|row, value| row.train.accuracy = value)
        .float(&definitions::TEST_LOSS, |row| row.test.loss)
        .put(|row, value| row.test.loss = value)
        .float(&definitions::TEST_ACCURACY, |row| row.test.accuracy)
        .put(|row, value| row.test.accuracy = value)
        .count(("train_samples", "1", "training samples over all ranks"), |row| row.train.samples)
        .put(|row, value| row.train.samples = value as usize)
        .count(("test_samples", "1", "test samples over all ranks"), |row| row.test.samples)
        .put(|row, value| row.test.samples = value as usize)
        .float(&definitions::TRAIN_SECONDS, |row| row.seconds)
        .put(|row, value| row.seconds = value)
        .float(&definitions::TEST_SECONDS, |row| row.test_seconds)
        .put(|row, value| row.test_seconds = value)
        .float(&definitions::GATHER_SECONDS, |row| row.gather_seconds)
        .put(|row, value| row.gather_seconds = value)
        .float(&definitions::WRITE_SECONDS, |row| row.write_seconds)
        .put(|row, value| row.write_seconds = value)
        .float(&definitions::CHECKPOINT_SECONDS, |row| row.checkpoint_seconds)
        .put(|row, value| row.checkpoint_seconds = value)
        .float(&definitions::IMAGES_PER_SECOND, |row| row.images_per_second)
        .put(|row, value| row.images_per_second = value)
        .float(&definitions::FLOPS, |row| row.flops)
        .put(|row, value| row.flops = value)
        .float(&definitions::PEAK_SHARE, |row| row.peak_share)
        .put(|row, value| row.peak_share = value)
        .float(&definitions::EPOCH_LR, |row| row.lr)
        .put(|row, value| row.lr = value)
        .float(&definitions::LOSS_SCALE, |row| row.loss_scale)
        .put(|row, value| row.loss_scale = value)
        .float(&definitions::SKIPPED_STEPS, |row| row.skipped_steps)
        .put(|row, value| row.skipped_steps = value)
        .text(("parameter_checksum", "1", "blake3 (64 bits) of the parameters, equal on all ranks"), |row| {
            format!("{:016x}", row.checksum)
        })
        .put_text(|row, text| row.checksum = u64::from_str_radix(text, 16).unwrap_or_default())
}

/// One step of one rank.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StepRow {
    pub(super) epoch: i64,
    pub(super) of_rank: RankStep,
}

/// Columns of `/steps`, which has one row per step and rank.
pub fn steps() -> Schema<StepRow> {
    let schema = Schema::new("steps", "row")
        .integer(("global_step", "1", "optimizer step, from 0"), |row: &StepRow| row.of_rank.step)
        .put(|row, value| row.of_rank.step = value as i64)
        .integer(&definitions::EPOCH, |row| row.epoch)
        .put(|row, value| row.epoch = value as i64)
        .integer(&definitions::RANK, |row| row.of_rank.rank)
        .put(|row, value| row.of_rank.rank = value as i64)
        .count(&definitions::WORLD_SIZE, |row| row.of_rank.conditions.world_size)
        .put(|row, value| row.of_rank.conditions.world_size = value as usize)
        .integer(&definitions::PROFILE, |row| i64::from(row.of_rank.conditions.is_profile))
        .put(|row, value| row.of_rank.conditions.is_profile = value != 0.0)
        .integer(&definitions::WARMUP, |row| i64::from(row.of_rank.is_warmup))
        .put(|row, value| row.of_rank.is_warmup = value != 0.0);
    Part::ALL.into_iter().fold(schema, |schema, part| {
        schema
            .single(part.definition(), move |row| row.of_rank.times.get(part))
            .put(move |row, value| row.of_rank.times.set(part, value))
    })
}

/// The messages of one kind under the same conditions.
pub struct CommRow {
    pub(super) kind: Kind,
    pub(super) conditions: Conditions,
    pub(super) steps: usize,
    pub(super) entry: Entry,
}

impl Default for CommRow {
    fn default() -> CommRow {
        CommRow { kind: Kind::Control, conditions: Conditions::default(), steps: 0, entry: Entry::default() }
    }
}

impl CommRow {
    /// `value`, in bytes per second, as GB/s; NaN for a kind with other collectives than all-reduces.
    fn bandwidth(&self, value: f64) -> f64 {
        if self.kind == Kind::Gradients { gigabytes_per_second(value) } else { f64::NAN }
    }
}

/// Columns of `/comm`, which has one row per kind of message, number of ranks and timing.
pub fn comm() -> Schema<CommRow> {
    Schema::new("comm", "kind")
        .text(("kind", "1", "purpose of the messages"), |row: &CommRow| row.kind.as_str())
        .put_text(|row, text| row.kind = Kind::ALL.into_iter().find(|kind| kind.as_str() == text).unwrap_or(row.kind))
        .count(&definitions::WORLD_SIZE, |row| row.conditions.world_size)
        .put(|row, value| row.conditions.world_size = value as usize)
        .integer(&definitions::PROFILE, |row| i64::from(row.conditions.is_profile))
        .put(|row, value| row.conditions.is_profile = value != 0.0)
        .count(&definitions::LEDGER_STEPS, |row| row.steps)
        .put(|row, value| row.steps = value as usize)
        .integer(&definitions::MESSAGES, |row| row.entry.messages as i64)
        .put(|row, value| row.entry.messages = value as u64)
        .integer(&definitions::BYTES, |row| row.entry.bytes as i64)
        .put(|row, value| row.entry.bytes = value as u64)
        .integer(&definitions::SENT_BYTES, |row| row.entry.sent as i64)
        .put(|row, value| row.entry.sent = value as u64)
        .float(&definitions::SECONDS, |row| row.entry.seconds)
        .put(|row, value| row.entry.seconds = value)
        .float(&definitions::ALGBW, |row| row.bandwidth(algbw(row.entry.bytes, row.entry.seconds)))
        .float(&definitions::BUSBW, |row| {
            row.bandwidth(all_reduce_busbw(row.entry.bytes, row.entry.seconds, row.conditions.world_size))
        })
}
