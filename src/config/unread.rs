//! Keys that a command ignores. One that is given on the command line and has no effect is a mistake, so it is refused with a
//! hint at the key that has the effect; a file may contain such keys, since one file serves several commands.

use std::borrow::Cow;

use super::load::split_override;
use super::{Config, ModelName};
use crate::error::{Error, Result};

/// Command that reads a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// `hpml train`.
    Train,
    /// `hpml study`, without its variants.
    Study,
    /// One variant of a study.
    Variant,
    /// `hpml sweep`.
    Sweep,
    /// `hpml quantize`.
    Quantize,
    /// `hpml eval`.
    Eval,
}

/// Reason why a key is not read, with what is read instead; `None`: it is read.
type Why = Option<&'static str>;

const READ: Why = None;
const NO_TRAINING: Why = Some("this command does not train");
const OF_STUDY: Why = Some("belongs to hpml study");
const OF_SWEEP: Why = Some("belongs to hpml sweep");
const ONE_JOB: Why = Some("holds for the whole job: set it for the study");
const NAMED_BY_OUT: Why = Some("name the file with --out");
const NO_CHECKPOINTS: Why = Some("no checkpoints are written");
const OF_TRAIN: Why = Some("only hpml train writes it");
const NOT_QUANTIZED: Why = Some("nothing is quantized");

/// Keys that another one, beside them, can leave without effect.
const DECIDED: [(&[&str], &str); 10] = [
    (&["optim.nesterov", "optim.trust", "optim.beta2", "optim.epsilon"], "optim.name"),
    (&["optim.decay"], "optim.weight_decay"),
    (&["schedule.base_batch"], "schedule.scaling"),
    (&["schedule.warmup_start"], "schedule.warmup_epochs"),
    (&["schedule.least", "schedule.milestones", "schedule.gamma"], "schedule.anneal"),
    (
        &["parallel.compression_start", "parallel.compression_block", "parallel.compression_rank"],
        "parallel.compression",
    ),
    (&["parallel.crossovers"], "parallel.all_reduce"),
    (&["parallel.bucket_mb"], "parallel.local_steps"),
    (&["parallel.buffers", "model.convolution"], "model.name"),
    (&["model.fused_batch_norm"], "model.channels_last"),
];

impl Reader {
    /// Patterns (`section.key`, or `section.` for all its keys) and why their keys are not read. The first match counts; a
    /// key without one is read.
    fn unread(self) -> &'static [(&'static str, Why)] {
        match self {
            Reader::Train => &[("sweep.", OF_SWEEP), ("study.", OF_STUDY)],
            Reader::Study => &[
                ("run.seed", Some("study.seeds are the seeds")),
                ("run.out", NAMED_BY_OUT),
                ("checkpoint.", NO_CHECKPOINTS),
                ("metrics.warmup_steps", Some("a study counts every step")),
                ("metrics.step_rows", Some("a study keeps no row of a step")),
                ("metrics.log", OF_TRAIN),
                ("metrics.tensorboard", OF_TRAIN),
                ("metrics.trace_steps", Some("a study traces no step")),
                ("metrics.peak", Some("a study measures no peak")),
                ("quantize.", NOT_QUANTIZED),
                ("sweep.", OF_SWEEP),
            ],
            Reader::Variant => &[
                ("run.seed", Some("study.seeds are the seeds")),
                ("run.out", Some("a study writes one file, named with --out")),
                ("launch.cuda_graphs", READ),
                ("launch.", ONE_JOB),
                ("data.shuffle", READ),
                ("data.set_epoch", READ),
                ("data.shares", READ),
                ("data.drop_last", READ),
                ("data.augment", READ),
                ("data.mean", READ),
                ("data.std", READ),
                ("data.prefetch", READ),
                ("data.threads", READ),
                ("data.cache_mb", READ),
                ("data.gpu_mb", READ),
                ("data.", Some("all variants train on the same data: set it for the study")),
                ("checkpoint.", NO_CHECKPOINTS),
                ("metrics.warmup_steps", Some("a study counts every step")),
                ("metrics.step_rows", Some("a study keeps no row of a step")),
                ("metrics.progress_seconds", ONE_JOB),
                ("metrics.log", OF_TRAIN),
                ("metrics.tensorboard", OF_TRAIN),
                ("metrics.trace_steps", Some("a study traces no step")),
                ("metrics.peak", Some("a study measures no peak")),
                ("quantize.", NOT_QUANTIZED),
                ("sweep.", OF_SWEEP),
                ("study.", Some("belongs to the study, not to a variant")),
            ],
            Reader::Sweep => &[
                ("run.out", NAMED_BY_OUT),
                ("train.batch_per_rank", Some("sweep.batch_per_rank are the batches")),
                ("train.global_batch", Some("sweep.batch_per_rank are the batches")),
                ("train.accumulate", Some("a step of a sweep has one batch: set sweep.batch_per_rank")),
                ("train.epochs", Some("sweep.seconds and sweep.rounds limit the measurement")),
                ("train.max_steps", Some("sweep.seconds and sweep.rounds limit the measurement")),
                ("train.test_batch", Some("nothing is tested")),
                ("model.weights", Some("only speed is measured")),
                ("metrics.timing", Some("sweep.timing decides it")),
                ("metrics.spread_steps", Some("only speed is measured")),
                ("metrics.step_rows", Some("a sweep keeps every counted step")),
                ("metrics.log", OF_TRAIN),
                ("metrics.tensorboard", OF_TRAIN),
                ("metrics.trace_steps", Some("a sweep traces no step")),
                ("metrics.peak", Some("a sweep measures no peak")),
                ("data.set_epoch", Some("only speed is measured")),
                ("data.shares", Some("only speed is measured")),
                ("data.drop_last", Some("every measured batch is full")),
                ("data.augment", Some("a sweep does not augment")),
                ("optim.ema", Some("a sweep does not average weights")),
                ("parallel.same_seed", Some("only speed is measured")),
                ("parallel.lr_spread", Some("only speed is measured")),
                ("schedule.", Some("every step of a sweep uses train.lr")),
                ("checkpoint.", Some("a sweep continues with --resume")),
                ("quantize.", NOT_QUANTIZED),
                ("study.", OF_STUDY),
            ],
            Reader::Quantize => &[
                ("run.out", NAMED_BY_OUT),
                ("model.precision", READ),
                ("model.", Some("the network is that of the run file")),
                ("train.epochs", READ),
                ("train.batch_per_rank", READ),
                ("train.", NO_TRAINING),
                ("optim.", NO_TRAINING),
                ("schedule.", NO_TRAINING),
                ("parallel.all_reduce", READ),
                ("parallel.crossovers", READ),
                ("parallel.", NO_TRAINING),
                ("checkpoint.", NO_CHECKPOINTS),
                ("metrics.progress_seconds", READ),
                ("metrics.", Some("no step is timed")),
                ("sweep.", OF_SWEEP),
                ("study.", OF_STUDY),
            ],
            Reader::Eval => &[
                ("launch.device", READ),
                ("launch.allow_gpu_sharing", READ),
                ("launch.", Some("hpml eval is one process with one thread")),
                ("data.shuffle", NO_TRAINING),
                ("data.set_epoch", NO_TRAINING),
                ("data.shares", NO_TRAINING),
                ("data.drop_last", NO_TRAINING),
                ("data.augment", NO_TRAINING),
                ("data.mean", Some("images are normalized as the file says")),
                ("data.std", Some("images are normalized as the file says")),
                ("data.prefetch", NO_TRAINING),
                ("data.gpu_mb", NO_TRAINING),
                ("run.", NO_TRAINING),
                ("model.", Some("the network is that of the file")),
                ("train.", NO_TRAINING),
                ("optim.", NO_TRAINING),
                ("schedule.", NO_TRAINING),
                ("parallel.", NO_TRAINING),
                ("checkpoint.", NO_CHECKPOINTS),
                ("metrics.", Some("no step is timed")),
                ("quantize.", Some("the network is quantized already: set it for hpml quantize")),
                ("sweep.", OF_SWEEP),
                ("study.", OF_STUDY),
            ],
        }
    }

    /// Returns why `given` (`section.key=value`), which is part of `config`, has no effect; `None` if it has one or is
    /// malformed.
    pub fn why_unread(self, given: &str, config: &Config) -> Option<Cow<'static, str>> {
        let (section, key, _) = split_override(given).ok()?;
        let name = format!("{section}.{key}");
        let trains = matches!(self, Reader::Train | Reader::Study | Reader::Variant);
        if trains && name == "train.batch_per_rank" && config.train.global_batch > 0 {
            return Some("train.global_batch decides it: set that, or set it to 0 too".into());
        }
        if matches!(self, Reader::Train | Reader::Variant) && section == "model" && !config.model.name.reads(key) {
            let why = match config.model.name {
                ModelName::Net => "net does not have it: choose another model.name",
                ModelName::File => "a model file brings its own: set it in Python, before the export",
                ModelName::Vit | ModelName::Gpt2 => "a transformer does not have it: choose another model.name",
                _ => "a ResNet does not have it: choose another model.name",
            };
            return (value(config, &name) != value(&Config::default(), &name)).then(|| why.into());
        }
        if self == Reader::Sweep && name == "model.name" && !config.sweep.model.is_empty() {
            return Some("sweep.model are the networks".into());
        }
        let fits = |pattern: &str| if pattern.ends_with('.') { name.starts_with(pattern) } else { name == pattern };
        if let Some((_, why)) = self.unread().iter().find(|(pattern, _)| fits(pattern)) {
            return why.map(Cow::from);
        }
        match self {
            Reader::Train => decided_elsewhere(&name, config),
            // sweep.model may name a network that reads it.
            Reader::Sweep if !["parallel.buffers", "model.convolution"].contains(&&*name) => {
                decided_elsewhere(&name, config)
            }
            _ => None,
        }
    }

    /// Refuses overrides without effect.
    ///
    /// # Errors
    /// [`Error::ConfigSyntax`] that names all such keys.
    pub fn refuse_unread(self, set: &[String], config: &Config) -> Result<()> {
        let unread = set.iter().filter_map(|given| {
            let why = self.why_unread(given, config)?;
            Some(format!("{}: {why}", given.split('=').next().unwrap_or_default().trim()))
        });
        let unread: Vec<String> = unread.collect();
        if unread.is_empty() {
            return Ok(());
        }
        let message = format!("remove what has no effect here: {}", unread.join("; "));
        Err(Error::ConfigSyntax { place: "--set".into(), message })
    }
}

/// Value of `key` (`section.key`) in `config`.
fn value(config: &Config, key: &str) -> Option<toml::Value> {
    config.flattened().into_iter().find(|(name, _)| name == key).map(|(_, value)| value)
}

/// Why the key `name` has no effect with the other values of `config`: they leave it at its default, whatever it says.
fn decided_elsewhere(name: &str, config: &Config) -> Option<Cow<'static, str>> {
    let (_, decides) = DECIDED.iter().find(|(keys, _)| keys.contains(&name))?;
    let (given, read) = (value(config, name), value(&config.effective(), name));
    let is_default = read == value(&Config::default(), name);
    (given != read && is_default).then(|| {
        let decision = value(config, decides).map(|value| value.to_string()).unwrap_or_default();
        format!("it is not used with {decides} = {decision}").into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(reader: Reader, set: &str) -> bool {
        let config = Config::load(None, &[set.to_owned()]).unwrap();
        reader.refuse_unread(&[set.to_owned()], &config).is_err()
    }

    #[test]
    fn every_pattern_is_a_key_or_a_section() {
        use Reader::*;
        let keys: Vec<String> = Config::default().flattened().into_iter().map(|(key, _)| key).collect();
        for reader in [Train, Study, Variant, Sweep, Quantize, Eval] {
            for (pattern, _) in reader.unread() {
                let known = |key: &String| key == pattern || pattern.ends_with('.') && key.starts_with(pattern);
                assert!(keys.iter().any(known), "{reader:?}: {pattern}");
            }
        }
    }

    #[test]
    fn each_command_refuses_what_it_passes_over() {
        for (reader, set, expected) in [
            (Reader::Train, "sweep.rounds=2", true),
            (Reader::Train, "train.lr=0.1", false),
            (Reader::Train, "quantize.percentile=99.0", false), // a later hpml quantize reads it
            (Reader::Study, "run.seed=3", true),
            (Reader::Study, "study.seeds=[3]", false),
            (Reader::Study, "data.dir=x", false),
            (Reader::Variant, "data.dir=x", true),
            (Reader::Variant, "data . train_samples = 3", true),
            (Reader::Variant, "data.shuffle=false", false),
            (Reader::Variant, "launch.cuda_graphs=false", false),
            (Reader::Variant, "launch.threads=1", true),
            (Reader::Sweep, "train.batch_per_rank=64", true),
            (Reader::Sweep, "train.lr=0.1", false),
            (Reader::Quantize, "train.batch_per_rank=64", false),
            (Reader::Quantize, "train.lr=0.1", true),
            (Reader::Train, "model.depth=3", true),
            (Reader::Train, "model.convolution=winograd", true),
            (Reader::Train, "model.convolution=direct", false),
            (Reader::Train, "optim.trust=0.1", true),
            (Reader::Train, "schedule.gamma=0.5", true),
            (Reader::Train, "schedule.gamma=0.1", false), // the default
            (Reader::Sweep, "parallel.compression_rank=8", true),
            (Reader::Variant, "optim.trust=0.1", false), // the study says so in a note
            (Reader::Sweep, "model.depth=3", false),     // sweep.model may name a network that reads it
            (Reader::Eval, "data.test_samples=100", false),
            (Reader::Eval, "quantize.percentile=99.0", true),
        ] {
            assert_eq!(refused(reader, set), expected, "{reader:?} {set}");
        }
    }

    #[test]
    fn the_batch_of_a_rank_has_no_effect_where_the_global_one_decides() {
        let set = ["train.global_batch=64".to_owned(), "train.batch_per_rank=4".to_owned()];
        let config = Config::load(None, &set).unwrap();
        let message = Reader::Train.refuse_unread(&set, &config).unwrap_err().to_string();
        assert!(message.contains("train.batch_per_rank: train.global_batch decides it"), "{message}");
        assert!(Reader::Quantize.refuse_unread(&set[1..], &config).is_ok());
    }
}
