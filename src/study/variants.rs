//! The variants of a study, checked together before the first of them is trained. In: the `[study]` section. Out: one
//! configuration per variant and its effect, or one message with all that is wrong.

use super::effect::{Ground, effect};
use crate::collective::DeviceCollectives;
use crate::config::{self, Config, Plan, Precision, Reader, repeated};
use crate::error::{Error, Result};
use crate::metrics::definitions;
use crate::table::Schema;
use crate::train::GlobalBatch;

/// One training of the comparison.
pub struct Variant {
    /// Name in tables and plots, unique in the study.
    pub name: String,
    /// Plan of the training, except for the seed.
    pub plan: Plan,
    /// Settings that differ from the study's configuration, as written.
    pub set: Vec<String>,
    /// Batch and steps of an epoch.
    pub batch: GlobalBatch,
    /// Remark on the settings: that they change nothing, or make another variant's training.
    pub note: Option<String>,
}

impl Variant {
    /// Samples that a training with one seed takes, over all ranks.
    pub fn samples(&self) -> f64 {
        (self.batch.steps_of(&self.plan.train) * self.batch.samples) as f64
    }

    /// Settings of the variant in one line.
    pub fn changes(&self) -> String {
        if self.set.is_empty() { "as configured".into() } else { self.set.join(", ") }
    }
}

/// Checks the study's variants and returns them in order.
///
/// # Errors
/// There is no variant or seed, a seed or name is listed twice, or a variant lacks a name, sets a key that it cannot change, or
/// has values that are wrong on these ranks and data.
pub fn variants(config: &Config, ground: Ground) -> Result<Vec<Variant>> {
    let given = &config.study.variants;
    let mut problems = names(given);
    if given.is_empty() {
        problems.push(
            "study.variants = []: must name what to compare: [[study.variants]] name = \"...\" set = [...]".into(),
        );
    }
    if config.study.seeds.is_empty() {
        problems.push("study.seeds = []: must list at least one seed".into());
    }
    if let Some(seed) = repeated(&config.study.seeds) {
        problems.push(format!("study.seeds = {:?}: {seed} is listed twice: list each once", config.study.seeds));
    }
    let mut found: Vec<Variant> = Vec::new();
    for (index, variant) in given.iter().enumerate() {
        let before = problems.len();
        problems
            .extend(keys(variant, config).into_iter().map(|problem| format!("{}: {problem}", called(index, variant))));
        if problems.len() > before {
            continue;
        }
        match one(variant, config, ground) {
            Ok(variant) => found.push(variant),
            Err(error) => problems.push(format!("{}: {error}", called(index, variant))),
        }
    }
    if !problems.is_empty() {
        return Err(Error::ConfigSyntax { place: "study".into(), message: problems.join("; ") });
    }
    note_effects(&mut found, config, ground);
    Ok(found)
}

/// Name of a variant in messages.
fn called(index: usize, variant: &config::Variant) -> String {
    match variant.name.trim() {
        "" => format!("variant {}", index + 1),
        name => format!("variant {name:?}"),
    }
}

/// Problems with the variants' names.
fn names(variants: &[config::Variant]) -> Vec<String> {
    let names: Vec<&str> = variants.iter().map(|variant| variant.name.trim()).collect();
    let mut problems = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let number = index + 1;
        if name.is_empty() {
            problems.push(format!("variant {number} has no name: give it one with name = \"...\""));
        } else if let Some(earlier) = names[..index].iter().position(|other| other == name) {
            problems.push(format!("variants {} and {number} are both named {name:?}: rename one", earlier + 1));
        } else if name.chars().any(char::is_control) {
            problems.push(format!("variant {number} is named {name:?}: must be one line without control characters"));
        }
    }
    problems
}

/// Problems with the keys that a variant sets.
fn keys(variant: &config::Variant, config: &Config) -> Vec<String> {
    let mut problems: Vec<String> = Vec::new();
    // The batch per rank is checked with all of the variant's settings, if those are valid.
    let own = config.with_overrides(&variant.set, "study").unwrap_or_else(|_| config.clone());
    let name = |given: &String| given.split('=').next().unwrap_or_default().replace(char::is_whitespace, "");
    let names: Vec<String> = variant.set.iter().map(name).collect();
    for given in &variant.set {
        if let Some(why) = Reader::Variant.why_unread(given, &own) {
            problems.push(format!("{given} changes nothing in a variant: {why}"));
        }
    }
    if let Some(name) = repeated(&names) {
        problems.push(format!("{name} is set twice: leave one out"));
    }
    problems
}

fn one(variant: &config::Variant, config: &Config, ground: Ground) -> Result<Variant> {
    let plan = Plan::new(config.with_overrides(&variant.set, "study")?, ground.ranks)?;
    let batch = GlobalBatch::new(&plan, ground.samples)?;
    let tf32 = |config: &Config| config.model.precision == Precision::Tf32;
    if ground.target.is_gpu() {
        plan.check_for_gpu(DeviceCollectives::go_through_host(ground.target, plan.parallel.all_reduce))?;
    } else {
        plan.check_for_cpu()?;
    }
    if ground.target.is_gpu() && tf32(&plan) != tf32(config) {
        let (place, value) = ("study".into(), format!("{:?}", plan.model.precision).to_lowercase());
        let expected = "tf32 is on or off for the whole job: run a separate study for it".into();
        return Err(Error::ConfigValue { place, key: "model.precision".into(), value, expected });
    }
    let (name, set) = (variant.name.trim().to_owned(), variant.set.clone());
    Ok(Variant { name, plan, set, batch, note: None })
}

/// Notes which variants change nothing, and which repeat another variant's training.
fn note_effects(variants: &mut [Variant], config: &Config, ground: Ground) {
    let form = |config: &Config| {
        let plan = Plan::new(config.clone(), ground.ranks).ok()?;
        let batch = GlobalBatch::new(&plan, ground.samples).ok()?;
        Some(effect(&plan, ground, &batch))
    };
    let configured = form(config); // `None`: invalid without a variant's settings
    let forms: Vec<Config> = variants.iter().map(|variant| effect(&variant.plan, ground, &variant.batch)).collect();
    for index in 0..variants.len() {
        let unchanged = !variants[index].set.is_empty() && configured.as_ref() == Some(&forms[index]);
        let twin = forms[..index].iter().position(|other| *other == forms[index]);
        let twin = twin.map(|twin| format!("the same training as {:?}", variants[twin].name));
        variants[index].note = match (unchanged, twin) {
            (true, Some(twin)) => Some(format!("changes nothing: {twin}")),
            (true, None) => Some("changes nothing: trains as configured".into()),
            (false, twin) => twin,
        };
    }
}

/// `/variants`: one row per variant.
pub fn schema() -> Schema<Variant> {
    Schema::new("variants", "row")
        .text(&definitions::VARIANT, |variant: &Variant| variant.name.clone())
        .text(("set", "1", "changes to the configuration"), Variant::changes)
        .count(("batch_per_rank", "1", "samples per rank and batch"), |variant| variant.plan.train.batch_per_rank)
        .count(("accumulate", "1", "batches per step"), |variant| variant.plan.train.accumulate)
        .count(("global_batch", "1", "samples of a full step over all ranks"), |variant| variant.batch.samples)
        .text(("note", "1", "whether the changes have an effect of their own; - if they have"), |variant| {
            variant.note.clone().unwrap_or_else(|| "-".into())
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Target;

    const GROUND: Ground = Ground { ranks: 4, samples: 2000, target: Target::Cpu };

    fn study(text: &str) -> Config {
        toml::from_str(&format!("[train]\nglobal_batch = 256\n[study]\nseeds = [1, 2]\n{text}")).unwrap()
    }

    fn variant(name: &str, set: &[&str]) -> String {
        format!("[[study.variants]]\nname = {name:?}\nset = {set:?}\n")
    }

    #[test]
    fn variants_are_checked_and_take_their_batch_from_the_ranks() {
        let config = study(&(variant("a", &[]) + &variant("b", &["train.global_batch=1024", "train.accumulate=2"])));
        let found = variants(&config, GROUND).unwrap();
        let batches = [0, 1].map(|index: usize| (found[index].plan.train.batch_per_rank, found[index].batch.samples));
        assert_eq!(batches, [(64, 256), (128, 1024)]);
        assert!(found.iter().all(|variant| variant.note.is_none()));
    }

    #[test]
    fn what_a_variant_cannot_change_is_refused_by_name() {
        for (set, named) in [
            ("train.lrr=1", "lrr"),
            ("data.dir=x", "the same data"),
            ("data . train_samples = 10", "the same data"),
            ("run.seed=9", "study.seeds"),
            ("launch.threads=2", "launch.threads=2 changes nothing"),
            ("checkpoint.keep=7", "checkpoint.keep=7 changes nothing"),
            ("quantize.enabled=true", "quantize.enabled"),
            ("study.seeds=[4]", "study.seeds=[4]"),
            ("sweep.rounds=2", "sweep.rounds"),
            ("metrics.warmup_steps=0", "metrics.warmup_steps"),
            ("train.batch_per_rank=2", "train.global_batch decides"),
            ("train.global_batch=1022", "train.global_batch"),
            ("train.global_batch=4096", "there are 2000 training samples"),
        ] {
            let error = variants(&study(&(variant("a", &[]) + &variant("b", &[set]))), GROUND).err().unwrap();
            let message = error.to_string();
            assert!(message.contains(named) && message.contains("variant \"b\""), "{set}: {message}");
        }
        let alone = variants(&study(&variant("a", &["train.lr=1", "train.lr = 2"])), GROUND).err().unwrap();
        assert!(alone.to_string().contains("train.lr is set twice"), "{alone}");
    }

    #[test]
    fn names_and_seeds_that_lose_one_another_are_refused_in_one_message() {
        let mut config =
            study(&(variant("a", &[]) + &variant(" a", &["train.lr=0.5"]) + &variant("  ", &["run.seed=1"])));
        config.study.seeds = vec![3, 4, 3];
        let message = variants(&config, GROUND).err().unwrap().to_string();
        for named in ["variants 1 and 2 are both named \"a\"", "variant 3 has no name", "3 is listed twice", "run.seed"]
        {
            assert!(message.contains(named), "{named}: {message}");
        }
        assert!(variants(&Config::default(), GROUND).err().unwrap().to_string().contains("study.variants"));
    }

    #[test]
    fn a_variant_without_an_effect_of_its_own_says_so() {
        let config = study(
            &(variant("plain", &[])
                + &variant("beta2", &["optim.beta2=0.9"])
                + &variant("fast", &["train.lr=0.1"])
                + &variant("fast again", &["train.lr=1e-1", "schedule.gamma=0.5"])),
        );
        let notes: Vec<Option<String>> = variants(&config, GROUND).unwrap().into_iter().map(|v| v.note).collect();
        let expected = [
            None,
            Some("changes nothing: the same training as \"plain\""),
            None,
            Some("the same training as \"fast\""),
        ];
        assert_eq!(notes.iter().map(Option::as_deref).collect::<Vec<_>>(), expected);
    }
}
