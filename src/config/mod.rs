//! Configuration: a TOML file, typed by serde, then `--set section.key=value`, then one check of every value.
//!
//! In: a path or nothing (built-in defaults), overrides. Out: a [`Config`] whose values are all in range, as written; a [`Plan`],
//! which is read-only, as a job of some ranks uses it; and the text that goes into the run file. Knows nothing of devices;
//! `launch` compares the hash over the ranks. A key is a field of its section's struct: the field's doc comment is its help in
//! `hpml config`, `defaults` holds its default, `validate` its range.

mod data;
mod defaults;
mod effective;
mod experiments;
mod help;
mod load;
mod nearest;
mod parallel;
mod plan;
mod sections;
mod trace_steps;
mod unread;
mod validate;

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};

pub use data::{Data, Layout, SYNTHETIC, Shares};
pub use experiments::{Study, Sweep, Variant, repeated};
pub use help::documented_defaults;
pub use nearest::keys_like;
pub use parallel::{Algorithm, BufferSync, Compression, Parallel};
pub use plan::Plan;
pub use sections::{
    Anneal, Checkpoint, Convolution, Decay, Device, Launch, Metrics, Model, ModelName, Optim, OptimName, Precision,
    Quantize, RangeFrom, Run, Scaling, Schedule, Stem, Timing, Train,
};
pub use trace_steps::TraceSteps;
pub use unread::Reader;

/// The whole configuration, defaults filled in. Sections as in the TOML file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Seed and output of a run.
    pub run: Run,
    /// Devices, threads and time-outs of the ranks.
    pub launch: Launch,
    /// The data set, its preparation and its distribution over the ranks.
    pub data: Data,
    /// The network and its number format.
    pub model: Model,
    /// Length, batch size and learning rate of a training.
    pub train: Train,
    /// The optimizer.
    pub optim: Optim,
    /// The learning rate over the optimizer steps.
    pub schedule: Schedule,
    /// Communication between the ranks.
    pub parallel: Parallel,
    /// Checkpoints, which `hpml train --resume` continues from.
    pub checkpoint: Checkpoint,
    /// Timing of the steps and divergence of the ranks.
    pub metrics: Metrics,
    /// Quantization to int8 by `hpml quantize`, or by `hpml train` if enabled.
    pub quantize: Quantize,
    /// Cases and duration of `hpml sweep`.
    pub sweep: Sweep,
    /// Trainings that `hpml study` compares.
    pub study: Study,
}

impl Config {
    /// Hash of the parts that all ranks must share. Equal configurations, equal hash, on every machine.
    pub fn hash(&self) -> u64 {
        let digest = blake3::hash(self.to_toml().as_bytes());
        u64::from_le_bytes(digest.as_bytes()[..8].try_into().expect("a blake3 hash has 32 bytes"))
    }
}
