//! Hints for options that do not exist: many of them are keys of the configuration, which go into `--set`.

use std::ffi::OsString;

use clap::CommandFactory;
use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::Cli;
use crate::config::{Config, Reader, keys_like};

/// The `error` of the command line `arguments` with the key that an unknown option probably means: `--epochs 3` is
/// `--set train.epochs=3`.
pub fn with_hint(mut error: clap::Error, arguments: &[OsString]) -> clap::Error {
    let Some(hint) = hint(&error, arguments) else { return error };
    // clap's own guess is the nearest option, which a key of that very name is nearer than.
    error.remove(ContextKind::SuggestedArg);
    error.remove(ContextKind::TrailingArg);
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![StyledStr::from(hint)]));
    error
}

fn hint(error: &clap::Error, arguments: &[OsString]) -> Option<String> {
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let Some(ContextValue::String(unknown)) = error.get(ContextKind::InvalidArg) else { return None };
    let arguments: Vec<&str> = arguments.iter().skip(1).filter_map(|argument| argument.to_str()).collect();
    let is_it = |argument: &str| {
        argument == unknown || argument.strip_prefix(unknown).is_some_and(|rest| rest.starts_with('='))
    };
    let at = arguments.iter().position(|argument| is_it(argument))?;
    let (name, value) = match arguments[at].split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (arguments[at], arguments.get(at + 1).copied().filter(|next| !next.starts_with('-'))),
    };
    let name = name.trim_start_matches('-');
    let (command, reader) = command(&arguments)?;
    let config = Config::default();
    let defaults = config.flattened();
    let is_read = |key: &String| reader.why_unread(&format!("{key}=0"), &config).is_none();
    let set = |key: String| {
        let is_switch = defaults.iter().any(|(name, value)| *name == key && value.is_bool());
        let value = value.unwrap_or(if is_switch { "true" } else { "VALUE" });
        format!("--set {key}={value}")
    };
    let sets: Vec<String> = keys_like(name).into_iter().filter(is_read).map(set).collect();
    (!sets.is_empty()).then(|| format!("did you mean {command}{}?", sets.join(" or ")))
}

/// Words before `--set` and the reader of its keys, by the command that `arguments` name; `None` if that has no `--set`.
fn command(arguments: &[&str]) -> Option<(&'static str, Reader)> {
    let cli = Cli::command();
    let named = arguments.iter().find(|argument| cli.find_subcommand(argument).is_some());
    match named.copied() {
        None => Some(("hpml train ", Reader::Train)),
        Some("train" | "workload") => Some(("", Reader::Train)),
        Some("sweep") => Some(("", Reader::Sweep)),
        Some("study") => Some(("", Reader::Study)),
        Some("quantize") => Some(("", Reader::Quantize)),
        Some("eval") => Some(("", Reader::Eval)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn told(line: &str) -> String {
        let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let error = Cli::try_parse_from(&arguments).unwrap_err();
        with_hint(error, &arguments).to_string()
    }

    #[test]
    fn an_option_that_is_a_key_is_told_as_one() {
        for (line, hint) in [
            ("hpml train --epochs 3", "did you mean --set train.epochs=3?"),
            ("hpml --epochs=3", "did you mean hpml train --set train.epochs=3?"),
            ("hpml train --epoch 3", "did you mean --set train.epochs=3?"),
            ("hpml train --batch-size 32", "did you mean --set train.batch_per_rank=32?"),
            ("hpml train a.toml --train.lr 0.1", "did you mean --set train.lr=0.1?"),
            ("hpml train a.toml train.lr=0.1", "did you mean --set train.lr=0.1?"),
            ("hpml train --augment", "did you mean --set data.augment=true?"),
            ("hpml train --threads 2", "did you mean --set data.threads=2 or --set launch.threads=2?"),
            ("hpml sweep --batch-per-rank 8", "did you mean --set sweep.batch_per_rank=8?"),
            ("hpml train --seed", "did you mean --set run.seed=VALUE?"),
        ] {
            let message = told(line);
            assert!(message.contains(hint), "{line}: {message}");
            assert!(!message.contains("similar argument"), "{line}: {message}");
        }
    }

    #[test]
    fn what_is_no_key_is_left_to_clap() {
        for line in
            ["hpml train --frobnicate 3", "hpml report a.h5 --epochs 3", "hpml devices --seed 1", "hpml train --forse"]
        {
            assert!(!told(line).contains("did you mean"), "{line}: {}", told(line));
        }
        assert!(told("hpml train --forse").contains("--force"));
    }
}
