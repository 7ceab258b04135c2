//! Sections of the commands that train many times.

use serde::{Deserialize, Serialize};

use super::{ModelName, Timing};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Sweep {
    #[serde(deserialize_with = "one_or_many")]
    pub model: Vec<ModelName>,
    #[serde(deserialize_with = "one_or_many")]
    pub batch_per_rank: Vec<usize>,
    #[serde(deserialize_with = "one_or_many")]
    pub ranks: Vec<usize>,
    #[serde(deserialize_with = "one_or_many")]
    pub timing: Vec<Timing>,
    pub rounds: usize,
    pub seconds: f64,
    pub precision: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Study {
    pub seeds: Vec<u64>,
    pub variants: Vec<Variant>,
}

/// One of the trainings that a study compares.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Variant {
    /// In tables and plots.
    pub name: String,
    /// What it changes, as on the command line: `train.lr=0.1`.
    pub set: Vec<String>,
}

/// The first value that stands in `values` more than once.
pub fn repeated<T: PartialEq>(values: &[T]) -> Option<&T> {
    values.iter().enumerate().find(|(index, value)| values[..*index].contains(value)).map(|(_, value)| value)
}

/// `4` and `[4, 8]` alike.
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
