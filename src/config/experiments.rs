//! Sections `[sweep]` and `[study]`, of the commands that train many times.

use documented::DocumentedFields;
use serde::{Deserialize, Serialize};

use super::{ModelName, Timing};

/// Section `[sweep]` of the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Sweep {
    /// Networks to measure; empty: model.name.
    #[serde(deserialize_with = "one_or_many")]
    pub model: Vec<ModelName>,
    /// Batch sizes to measure, which may exceed the data set (samples are then drawn again); empty:
    /// 32, 128, 512, 1024, 2048 and on, times 4, up to the data set's size or until memory is full.
    #[serde(deserialize_with = "one_or_many")]
    pub batch_per_rank: Vec<usize>,
    /// Rank counts to measure; empty: 1, 2, 4, ... and all ranks of the job.
    #[serde(deserialize_with = "one_or_many")]
    pub ranks: Vec<usize>,
    /// Timings to measure: profile, overlap (see metrics.timing) or both.
    #[serde(deserialize_with = "one_or_many")]
    pub timing: Vec<Timing>,
    /// Visits per case, in another order each round; 1 to 100.
    pub rounds: usize,
    /// Training time per case over all its visits, without warm-up, in seconds; a visit has at
    /// least 3 steps.
    pub seconds: f64,
    /// Half-width of the 95 % confidence interval of the median step time, relative to the median,
    /// at which a case needs no further visits; above 0, below 1.
    pub precision: f64,
}

/// Section `[study]` of the configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, DocumentedFields)]
#[serde(default, deny_unknown_fields)]
pub struct Study {
    /// Seeds (run.seed) that every variant is trained with.
    pub seeds: Vec<u64>,
    /// Variants to compare, each a table `[[study.variants]]` with a unique name and a list `set` of
    /// overrides ("section.key=value") of keys that can differ between trainings of one job.
    pub variants: Vec<Variant>,
}

/// Training that a study compares with others.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Variant {
    /// Label in tables and plots.
    pub name: String,
    /// Overrides of this variant, as on the command line: `train.lr=0.1`.
    pub set: Vec<String>,
}

/// First value that occurs in `values` more than once.
pub fn repeated<T: PartialEq>(values: &[T]) -> Option<&T> {
    values.iter().enumerate().find(|(index, value)| values[..*index].contains(value)).map(|(_, value)| value)
}

/// Reads `4` as well as `[4, 8]`.
fn one_or_many<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        Many(Vec<toml::Value>),
        One(toml::Value),
    }
    let values = match OneOrMany::deserialize(deserializer)? {
        OneOrMany::Many(values) => values,
        OneOrMany::One(value) => vec![value],
    };
    let typed = |value: toml::Value| T::deserialize(value).map_err(|error| serde::de::Error::custom(error.message()));
    values.into_iter().map(typed).collect()
}
