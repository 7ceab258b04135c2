//! Reads the configuration (file, overrides, check) and writes it as TOML.

use std::path::Path;

use super::Config;
use super::nearest::{explained, keys_like};
use crate::error::{AtPath, Error, Result};

impl Config {
    /// Reads `path` (or starts from the defaults), applies `overrides` of the form `section.key=value` and checks all.
    ///
    /// ```
    /// let config = hpml::config::Config::load(None, &["train.lr=0.1".into(), "model.name=resnet18".into()])?;
    /// assert_eq!(config.train.lr, 0.1);
    /// # Ok::<(), hpml::error::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, [`Error::ConfigSyntax`] with its line or the override if it is not a
    /// configuration, [`Error::OverrideSyntax`] and [`Error::ConfigValue`] for an override or a value that is not allowed.
    pub fn load(path: Option<&Path>, overrides: &[String]) -> Result<Config> {
        let place = path.map_or_else(|| "built-in defaults".into(), |path| path.display().to_string());
        let text = match path {
            Some(path) if !path.exists() && split_override(&place).is_ok() => {
                let message = format!("there is no such file: did you mean --set {}?", on_one_line(&place));
                return Err(Error::ConfigSyntax { place, message });
            }
            Some(path) => std::fs::read_to_string(path).at(path)?,
            None => String::new(),
        };
        let syntax = |place: &str, error: toml::de::Error| Error::ConfigSyntax {
            place: place.into(),
            message: one_line(&text, &error),
        };
        // Parsed into the typed form before any override, so that an error in the file is reported with its line.
        toml::from_str::<Config>(&text).map_err(|error| syntax(&place, error))?;
        let table: toml::Table = toml::from_str(&text).map_err(|error| syntax(&place, error))?;
        Config::from_table(table, overrides, place)
    }

    /// Applies `overrides` to this configuration and checks all of it again. `place` says in errors where it came from.
    ///
    /// # Errors
    /// [`Error::OverrideSyntax`], [`Error::ConfigSyntax`] or [`Error::ConfigValue`] if an override or a value is not allowed.
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
                message: explained(&on_one_line(error.message())),
            })?;
        }
        let config: Config = table.try_into().map_err(|error: toml::de::Error| Error::ConfigSyntax {
            place: place.clone(),
            message: on_one_line(&error.to_string()),
        })?;
        config.validate(&if overrides.is_empty() { place } else { format!("{place} with --set") })?;
        Ok(config)
    }

    /// Formats the whole configuration as TOML, with every key.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every field of Config has a TOML form")
    }

    /// Lists all values as (`section.key`, value), in the order of the file.
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

    /// Lists the keys with another value in `other`: key, value here, value there. Sections that make the same network are equal,
    /// however they say it, as those of earlier versions may.
    pub fn differences(&self, other: &Config) -> Vec<(String, toml::Value, toml::Value)> {
        let effective = |config: &Config| Config { model: config.model.effective(), ..config.clone() }.flattened();
        let pairs = effective(self).into_iter().zip(effective(other));
        pairs.filter(|(own, other)| own != other).map(|((key, own), (_, other))| (key, own, other)).collect()
    }
}

/// Writes `section.key=value` into `table`. A value that is not TOML is taken as a string (`model.name=net`).
fn apply_override(table: &mut toml::Table, given: &str) -> Result<()> {
    let (section, key, value) = split_override(given)?;
    let parsed = toml::from_str::<toml::Table>(&format!("value = {value}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| toml::Value::String(value.into()));
    let entry = table.entry(section).or_insert_with(|| toml::Value::Table(toml::Table::new()));
    let section = entry.as_table_mut().ok_or_else(|| malformed(given))?;
    section.insert(key.into(), parsed);
    Ok(())
}

/// Splits `section.key=value` into section, key and value, without the spaces around them.
pub(super) fn split_override(given: &str) -> Result<(&str, &str, &str)> {
    let parts = || {
        let (name, value) = given.split_once('=')?;
        let (section, key) = name.split_once('.')?;
        Some((section.trim(), key.trim(), value.trim()))
    };
    match parts() {
        Some(parts @ (section, key, _)) if !section.is_empty() && !key.is_empty() => Ok(parts),
        _ => Err(malformed(given)),
    }
}

/// Error for an override that is not of the form `section.key=value`, with the keys that may be meant.
fn malformed(given: &str) -> Error {
    let (name, value) = given.split_once('=').unwrap_or((given, "VALUE"));
    let meant: Vec<String> =
        keys_like(name).into_iter().map(|key| format!("--set {key}={}", on_one_line(value))).collect();
    let hint = match meant.is_empty() {
        true => "as in --set train.epochs=3".into(),
        false => format!("did you mean {}?", meant.join(" or ")),
    };
    Error::OverrideSyntax { given: on_one_line(given), hint }
}

/// Replaces control characters by spaces: a message that quotes user input stays one line and sends the terminal no commands.
fn on_one_line(text: &str) -> String {
    text.trim().chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

/// Formats a TOML error as its line and message, without the multi-line drawing.
fn one_line(text: &str, error: &toml::de::Error) -> String {
    let message = explained(&on_one_line(error.message()));
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
    use crate::config::ModelName;

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
            ("epochs=3", "section.key=value, did you mean --set train.epochs=3?"),
            ("train.epoch=3", "no key train.epoch: did you mean train.epochs? [train] has epochs, batch_per_rank"),
            ("tarin.epochs=3", "no section [tarin]: did you mean [train]?"),
            ("train.momentum=0.9", "did you mean optim.momentum?"),
            ("model.name=resnet81", "did you mean resnet18?"),
            ("model.name=vgg", "vgg"),
            ("data.dir=", "data.dir = \"\""),
        ] {
            let message = set(&[given]).unwrap_err().to_string();
            assert!(message.contains(named), "{given}: {message}");
            assert!(!message.contains('\n'), "{given}: {message}");
        }
    }

    #[test]
    fn the_same_network_makes_no_difference_however_it_is_said() {
        // The first is the form of version 0.1, whose default width was 64.
        for (then, now) in [
            (&["model.width=64"][..], &[][..]),
            (&["model.width=64", "model.name=resnet18"], &["model.name=resnet18"]),
            (&["model.name=vit", "model.depth=2"], &["model.name=vit", "model.depth=2", "model.width=768"]),
        ] {
            assert_eq!(set(then).unwrap().differences(&set(now).unwrap()), [], "{then:?} {now:?}");
        }
        let [narrow, wide] =
            [16, 0].map(|width| set(&["model.name=resnet18", &format!("model.width={width}")]).unwrap());
        let found = narrow.differences(&wide);
        assert_eq!(found, [("model.width".to_owned(), toml::Value::Integer(16), toml::Value::Integer(64))]);
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
