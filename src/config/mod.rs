//! What the user asked for: a TOML file, typed by serde, then `--set section.key=value`, then one check of every value.
//!
//! In: a path or nothing (built-in defaults), overrides. Out: a [`Config`] whose values are all in range, as written; a [`Plan`],
//! which is read-only, as a job of some ranks uses it; and the text that goes into the run file. Knows nothing of devices;
//! `launch` compares the hash over the ranks.

mod data;
mod defaults;
mod documented;
mod experiments;
mod parallel;
mod plan;
mod unread;
mod validate;

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{AtPath, Error, Result};
pub use data::{Data, SYNTHETIC, Shares};
pub use documented::documented_defaults;
pub use experiments::{Study, Sweep, Variant, repeated};
pub use parallel::{Algorithm, BufferSync, Compression, Parallel};
pub use plan::Plan;
pub use unread::Reader;

/// The whole configuration, defaults filled in. Sections as in the TOML file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)] // each key is documented once, in `documented`, where `hpml config` prints it from
pub struct Config {
    pub run: Run,
    pub launch: Launch,
    pub data: Data,
    pub model: Model,
    pub train: Train,
    pub optim: Optim,
    pub schedule: Schedule,
    pub parallel: Parallel,
    pub checkpoint: Checkpoint,
    pub metrics: Metrics,
    pub quantize: Quantize,
    pub sweep: Sweep,
    pub study: Study,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Run {
    pub seed: u64,
    pub out: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Launch {
    pub device: Device,
    pub allow_gpu_sharing: bool,
    pub allow_singletons: bool,
    pub cuda_graphs: bool,
    pub threads: usize,
    pub comm_timeout_s: f64,
}

impl Launch {
    /// How long ranks wait for each other; zero: for ever.
    pub fn comm_timeout(&self) -> Duration {
        Duration::try_from_secs_f64(self.comm_timeout_s).unwrap_or(Duration::ZERO)
    }
}

/// Where a rank computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// A GPU if there is one for every rank of the host, CPU cores otherwise.
    Auto,
    /// CPU cores. What `hpml allreduce` takes if it is not told otherwise.
    #[default]
    Cpu,
    /// GPU number `local_rank`.
    Cuda,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Model {
    pub name: ModelName,
    pub bias: bool,
    pub width: usize,
    pub precision: Precision,
    pub channels_last: bool,
    pub fused_batch_norm: bool,
}

/// The networks that hpml trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelName {
    /// Two convolutions and three fully connected layers, 62 thousand parameters.
    Net,
    /// CIFAR ResNet-18, 11.17 million parameters.
    Resnet18,
}

impl ModelName {
    /// The name as in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            ModelName::Net => "net",
            ModelName::Resnet18 => "resnet18",
        }
    }
}

/// Number format of convolutions and matrix products; parameters and gradients are always float32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// IEEE single precision throughout.
    Float32,
    /// The same, but a GPU's matrix units multiply with 10 bits of mantissa.
    Tf32,
    /// Convolutions and linear layers in bfloat16, the rest as their inputs come (autocast's rule).
    Bf16,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Train {
    pub epochs: usize,
    pub batch_per_rank: usize,
    pub global_batch: usize,
    pub lr: f64,
    pub accumulate: usize,
    pub max_steps: usize,
    pub label_smoothing: f64,
    pub test_batch: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Optim {
    pub name: OptimName,
    pub momentum: f64,
    pub weight_decay: f64,
    pub nesterov: bool,
    pub clip_norm: f64,
    pub trust: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub ema: f64,
}

/// How parameters follow gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimName {
    /// With momentum.
    Sgd,
    /// SGD whose rate follows each layer's ratio of weights to gradient.
    Lars,
    /// Adam whose rate follows each layer's ratio of weights to step.
    Lamb,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Schedule {
    pub scaling: Scaling,
    pub base_batch: usize,
    pub warmup_epochs: f64,
    pub warmup_start: f64,
    pub anneal: Anneal,
    pub least: f64,
    pub milestones: Vec<f64>,
    pub gamma: f64,
}

/// How the learning rate follows the global batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scaling {
    /// Not at all.
    None,
    /// In proportion to it.
    Linear,
    /// With its square root.
    Sqrt,
}

/// How the learning rate falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Anneal {
    /// Not at all.
    Constant,
    /// Along half a cosine.
    Cosine,
    /// By a factor at given epochs.
    Step,
    /// Up along a cosine during the warm-up, down along another.
    OneCycle,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Checkpoint {
    pub every_epochs: usize,
    pub every_minutes: f64,
    pub keep: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Metrics {
    pub timing: Timing,
    pub warmup_steps: usize,
    pub spread_steps: usize,
}

/// How a step is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Timing {
    /// As fast as it goes: buckets are reduced while the backward pass still computes.
    Overlap,
    /// No overlap and a barrier before each collective, so that the parts add up to the step.
    Profile,
}

impl Timing {
    /// The name as in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Timing::Overlap => "overlap",
            Timing::Profile => "profile",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Quantize {
    pub enabled: bool,
    pub calibration_images: usize,
    pub weight_range: RangeFrom,
    pub activation_range: RangeFrom,
    pub percentile: f64,
    pub per_channel: bool,
    pub max_drop: f64,
    pub finetune_epochs: f64,
    pub finetune_lr: f64,
}

/// What the greatest quantized value stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RangeFrom {
    /// The greatest magnitude.
    Max,
    /// Mean and three standard deviations, or the greatest magnitude if that is less.
    Sigma3,
    /// `quantize.percentile`.
    Percentile,
    /// The range with the least mean squared error.
    Mse,
}

impl Config {
    /// Reads `path` (or starts from the defaults), applies `overrides` of the form `section.key=value` and checks all.
    ///
    /// Errors name the file and line, or the override, and what would be right.
    pub fn load(path: Option<&Path>, overrides: &[String]) -> Result<Config> {
        let place = path.map_or_else(|| "built-in defaults".into(), |path| path.display().to_string());
        let text = match path {
            Some(path) => std::fs::read_to_string(path).at(path)?,
            None => String::new(),
        };
        let syntax = |place: &str, error: toml::de::Error| Error::ConfigSyntax {
            place: place.into(),
            message: one_line(&text, &error),
        };
        // Parsed into the typed form before any override, so that an error of the file is told with the file's line.
        toml::from_str::<Config>(&text).map_err(|error| syntax(&place, error))?;
        let table: toml::Table = toml::from_str(&text).map_err(|error| syntax(&place, error))?;
        Config::from_table(table, overrides, place)
    }

    /// The same configuration with `overrides` applied and all checked again. `place` is where it came from.
    pub fn with_overrides(&self, overrides: &[String], place: &str) -> Result<Config> {
        let table = toml::Table::try_from(self).expect("every field of Config has a TOML form");
        Config::from_table(table, overrides, place.into())
    }

    fn from_table(mut table: toml::Table, overrides: &[String], place: String) -> Result<Config> {
        for given in overrides {
            apply_override(&mut table, given)?;
            let typed: Result<Config, _> = table.clone().try_into();
            typed.map_err(|error| Error::ConfigSyntax {
                place: format!("--set {}", on_one_line(given)),
                message: on_one_line(error.message()),
            })?;
        }
        let config: Config = table.try_into().map_err(|error: toml::de::Error| Error::ConfigSyntax {
            place: place.clone(),
            message: on_one_line(&error.to_string()),
        })?;
        config.validate(&if overrides.is_empty() { place } else { format!("{place} with --set") })?;
        Ok(config)
    }

    /// The whole configuration as TOML, every key present.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every field of Config has a TOML form")
    }

    /// Each value as (`section.key`, value), in the file's order.
    pub fn flattened(&self) -> Vec<(String, toml::Value)> {
        let table = toml::Table::try_from(self).expect("every field of Config has a TOML form");
        let sections = table.into_iter().filter_map(|(section, value)| match value {
            toml::Value::Table(keys) => Some((section, keys)),
            _ => None,
        });
        sections
            .flat_map(|(section, keys)| keys.into_iter().map(move |(key, value)| (format!("{section}.{key}"), value)))
            .collect()
    }

    /// The keys with another value in `other`: key, value here, value there.
    pub fn differences(&self, other: &Config) -> Vec<(String, toml::Value, toml::Value)> {
        let pairs = self.flattened().into_iter().zip(other.flattened());
        pairs.filter(|(own, other)| own != other).map(|((key, own), (_, other))| (key, own, other)).collect()
    }

    /// Hash of the parts that all ranks must share. Equal configurations, equal hash, on every machine.
    pub fn hash(&self) -> u64 {
        let digest = blake3::hash(self.to_toml().as_bytes());
        u64::from_le_bytes(digest.as_bytes()[..8].try_into().expect("a blake3 hash has 32 bytes"))
    }
}

/// `section.key=value` into the table. The value is TOML; what is not TOML is taken as a string (`model.name=net`).
fn apply_override(table: &mut toml::Table, given: &str) -> Result<()> {
    let (section, key, value) = split_override(given)?;
    let parsed = toml::from_str::<toml::Table>(&format!("value = {value}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| toml::Value::String(value.into()));
    let entry = table.entry(section).or_insert_with(|| toml::Value::Table(toml::Table::new()));
    let section = entry.as_table_mut().ok_or_else(|| Error::OverrideSyntax { given: on_one_line(given) })?;
    section.insert(key.into(), parsed);
    Ok(())
}

/// Section, key and value of `section.key=value`, without the spaces around them.
fn split_override(given: &str) -> Result<(&str, &str, &str)> {
    let parts = || {
        let (name, value) = given.split_once('=')?;
        let (section, key) = name.split_once('.')?;
        Some((section.trim(), key.trim(), value.trim()))
    };
    match parts() {
        Some(parts @ (section, key, _)) if !section.is_empty() && !key.is_empty() => Ok(parts),
        _ => Err(Error::OverrideSyntax { given: on_one_line(given) }),
    }
}

/// A message that quotes what was given stays one line, and nothing in it is for the terminal to obey.
fn on_one_line(text: &str) -> String {
    text.trim().chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

/// The message of a TOML error with its line, without the multi-line drawing.
fn one_line(text: &str, error: &toml::de::Error) -> String {
    let message = on_one_line(error.message());
    match error.span() {
        Some(span) => {
            let line = text[..span.start.min(text.len())].matches('\n').count() + 1;
            format!("line {line}: {message}")
        }
        None => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(overrides: &[&str]) -> Result<Config> {
        Config::load(None, &overrides.iter().map(|s| s.to_string()).collect::<Vec<_>>())
    }

    #[test]
    fn no_file_gives_the_defaults() {
        assert_eq!(set(&[]).unwrap(), Config::default());
    }

    #[test]
    fn overrides_take_toml_values_and_bare_words() {
        let config = set(&["train.epochs=7", "model.name=resnet18", "data.dir=/a b/c", "train.lr=0.5"]).unwrap();
        assert_eq!(config.train.epochs, 7);
        assert_eq!(config.model.name, ModelName::Resnet18);
        assert_eq!(config.data.dir, "/a b/c");
        assert_eq!(config.train.lr, 0.5);
    }

    #[test]
    fn an_unknown_key_a_wrong_type_and_a_malformed_override_are_refused_by_name() {
        for (given, named) in [
            ("train.epoch=3", "epoch"),
            ("tarin.epochs=3", "tarin"),
            ("train.epochs=many", "many"),
            ("train.batch_per_rank=0", "train.batch_per_rank"),
            ("epochs=3", "section.key=value"),
            ("model.name=vgg", "vgg"),
            ("data.dir=", "data.dir = \"\""),
        ] {
            let message = set(&[given]).unwrap_err().to_string();
            assert!(message.contains(named), "{given}: {message}");
            assert!(!message.contains('\n'), "{given}: {message}");
        }
    }

    #[test]
    fn the_text_form_reads_back_as_the_same_configuration() {
        let config = set(&["train.lr=0.25", "run.out=a.h5"]).unwrap();
        let again: Config = toml::from_str(&config.to_toml()).unwrap();
        assert_eq!(again, config);
        assert_eq!(again.hash(), config.hash());
        assert_ne!(config.hash(), Config::default().hash());
    }
}
