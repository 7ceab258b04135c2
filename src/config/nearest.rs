//! Keys and values that a misspelt one probably means, for error messages.

use strsim::osa_distance;

use super::Config;

/// Names that other programs give to keys.
const ALIASES: [(&str, &str); 14] = [
    ("arch", "model.name"),
    ("batch", "train.batch_per_rank"),
    ("batch_size", "train.batch_per_rank"),
    ("dataset", "data.dir"),
    ("gpu", "launch.device"),
    ("gradient_accumulation_steps", "train.accumulate"),
    ("learning_rate", "train.lr"),
    ("network", "model.name"),
    ("num_workers", "data.threads"),
    ("optimizer", "optim.name"),
    ("scheduler", "schedule.anneal"),
    ("steps", "train.max_steps"),
    ("wd", "optim.weight_decay"),
    ("workers", "data.threads"),
];
/// Most keys that are named: of more it is not known which one is meant.
const MOST: usize = 3;

/// The keys (`section.key`) that `given` probably means, none if it is like no key. `given` may have a section, and dashes for
/// underscores.
///
/// ```
/// assert_eq!(hpml::config::keys_like("epoch"), ["train.epochs"]);
/// assert_eq!(hpml::config::keys_like("train.momentum"), ["optim.momentum"]);
/// ```
pub fn keys_like(given: &str) -> Vec<String> {
    let given = given.trim().to_lowercase().replace('-', "_");
    let (section, key) = given.split_once('.').map_or(("", &*given), |(section, key)| (section.trim(), key.trim()));
    if let Some((_, named)) = ALIASES.iter().find(|(alias, _)| *alias == key) {
        return vec![(*named).to_owned()];
    }
    let distance = |known: &str| {
        let (of, own) = known.split_once('.').expect("a key has a section");
        // The beginning of a name is a slip of another kind: bucket for bucket_mb.
        let is_beginning = key.len() >= 4 && own.starts_with(key);
        let key = if is_beginning { usize::from(key != own) } else { osa_distance(key, own) };
        let section = if section.is_empty() { 0 } else { osa_distance(section, of) };
        (key <= limit(own)).then_some(2 * key + section)
    };
    let keys = Config::default().flattened().into_iter().map(|(name, _)| name);
    let found: Vec<(usize, String)> = keys.filter_map(|name| Some((distance(&name)?, name))).collect();
    let least = found.iter().map(|(distance, _)| *distance).min();
    let nearest: Vec<String> =
        found.into_iter().filter(|(distance, _)| Some(*distance) == least).map(|(_, name)| name).collect();
    if nearest.len() > MOST { Vec::new() } else { nearest }
}

/// Edits by which a slip may differ from `name`.
fn limit(name: &str) -> usize {
    if name.len() < 4 { name.len() / 2 } else { 1 + name.len() / 5 }
}

/// The message of serde about an unknown name, in the configuration's words and with the name that was probably meant; any other
/// message as it is.
pub(super) fn explained(message: &str) -> String {
    let Some((kind, name, known)) = unknown(message) else { return message.to_owned() };
    let keys: Vec<String> = Config::default().flattened().into_iter().map(|(name, _)| name).collect();
    let has_all = |section: &str| {
        let own = keys.iter().filter_map(|key| key.strip_prefix(section)?.strip_prefix('.'));
        own.clone().count() == known.len() && own.into_iter().all(|key| known.contains(&key))
    };
    let mut sections = keys.iter().filter_map(|key| key.split_once('.')).map(|(section, _)| section);
    let section = sections.find(|section| kind == "field" && has_all(section));
    if let Some(section) = section {
        let meant = keys_like(&format!("{section}.{name}"));
        let hint = if meant.is_empty() { String::new() } else { format!(": did you mean {}?", meant.join(" or ")) };
        return format!("no key {section}.{name}{hint} [{section}] has {}", known.join(", "));
    }
    let nearest = known.iter().map(|known| (osa_distance(&name.to_lowercase(), known), *known)).min();
    match nearest.filter(|(distance, known)| *distance <= limit(known)) {
        Some((_, nearest)) if known.contains(&"train") => {
            format!("no section [{name}]: did you mean [{nearest}]? There are {}", known.join(", "))
        }
        Some((_, nearest)) => format!("{message}: did you mean {nearest}?"),
        None => message.to_owned(),
    }
}

/// Kind (`field`, `variant`) and text of the unknown name in a message of serde, and the known names.
fn unknown(message: &str) -> Option<(&str, &str, Vec<&str>)> {
    let (kind, rest) = message.strip_prefix("unknown ")?.split_once(" `")?;
    let (name, rest) = rest.split_once("`, expected ")?;
    Some((kind, name, rest.split('`').skip(1).step_by(2).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_has_the_one_that_was_meant() {
        for (given, meant) in [
            ("train.epoch", &["train.epochs"][..]),
            ("tarin.epochs", &["train.epochs"]),
            ("train.momentum", &["optim.momentum"]),
            ("lunch.threads", &["launch.threads"]),
            ("threads", &["data.threads", "launch.threads"]),
            ("batch-size", &["train.batch_per_rank"]),
            ("Parallel.bucket", &["parallel.bucket_mb"]),
            ("lr", &["train.lr"]),
            ("model.nmae", &["model.name"]),
            ("zzz", &[]),
            ("", &[]),
        ] {
            let mut found = keys_like(given);
            found.sort();
            assert_eq!(found, meant, "{given}");
        }
    }

    #[test]
    fn every_alias_names_a_key() {
        let keys: Vec<String> = Config::default().flattened().into_iter().map(|(key, _)| key).collect();
        for (alias, key) in ALIASES {
            assert!(keys.iter().any(|known| known == key), "{alias}: {key}");
        }
    }
}
