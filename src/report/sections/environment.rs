//! Environment of the runs, machine and software, with one column per run file.

use crate::error::Result;
use crate::report::section::Section;
use crate::report::source::Source;
use crate::store::{self, Attribute};
use crate::table::{Cell, Heading, Sheet};
use crate::units::{fitting_unit, format_bytes};

/// Attributes of `/environment` shown first; all others follow.
const FIRST: [&str; 11] =
    ["command", "started", "ended", "hpml", "git_commit", "libtorch", "mpi", "nccl", "world_size", "data", "cpu"];

/// Builds the section of all files: the warnings, then the environment.
pub fn section(sources: &[Source]) -> Section {
    let mut names: Vec<&str> = FIRST.to_vec();
    for (name, _) in sources.iter().flat_map(|source| &source.environment) {
        if !names.contains(&name.as_str()) && name != store::WARNINGS {
            names.push(name);
        }
    }
    let mut sheet = Sheet::new("environment", "Command, software and machine");
    let value = |source: &Source, name: &str| {
        source.environment.iter().find(|(key, _)| key == name).map(|(_, v)| text(name, v))
    };
    names.retain(|name| sources.iter().any(|source| value(source, name).is_some()));
    sheet.columns.push(Heading::new("environment", "1", "attribute of /environment"));
    sheet.columns.extend(sources.iter().map(|source| Heading::new(&source.label, "1", "run file")));
    sheet.rows = names
        .iter()
        .map(|name| {
            let values = sources.iter().map(|source| value(source, name).map_or(Cell::Empty, Cell::Text));
            std::iter::once(Cell::from(*name)).chain(values).collect()
        })
        .collect();
    sheet.note = sources.iter().filter_map(peaks).collect::<Vec<_>>().join(" ");
    Section::new("Environment", vec![warnings(sources), sheet], Vec::new())
}

/// Least ratio of the greatest to the least peak of the ranks about which something is said.
const APART: f64 = 1.3;

/// Why the peaks of a run's ranks differ, in a sentence; `None` if they hardly do.
pub fn peaks(source: &Source) -> Option<String> {
    let of = |name: &str| store::attribute(&source.environment, name);
    let Some(Attribute::Floats(peaks)) = of("peak_flops_of_ranks") else { return None };
    let (least, most) =
        peaks.iter().fold((f64::INFINITY, 0.0), |(least, most), peak| (peak.min(least), peak.max(most)));
    if most < APART * least {
        return None;
    }
    let found =
        format!("The ranks' fastest matrix products differ, {} to {} (peak_flops_of_ranks)", rate(least), rate(most));
    let hosts = source.frame("environment").ok()??;
    let shared = hosts.rows().into_iter().any(|row| {
        let host = hosts.text("host", row);
        let threads = hosts.rows_where(|other| hosts.text("host", other) == host).into_iter();
        let threads: f64 = threads.map(|other| hosts.number("threads", other)).sum();
        threads > hosts.number("host_cores", row)
    });
    Some(match shared {
        true => format!(
            "{found}: there are more compute threads than cores, so ranks took turns and the figure depends on who had a core. By \
             itself that makes no rank a slow one, and peak_share is not to be trusted."
        ),
        false => {
            format!("{found}, measured after the last step: these ranks have unequal cores, or others used them then.")
        }
    })
}

/// Builds the section that only the page has: the ranks' places and every key of the configuration.
///
/// # Errors
/// A table cannot be read.
pub fn details(sources: &[Source]) -> Result<Section> {
    let mut sheets = Vec::new();
    for source in sources {
        if let Some(frame) = source.frame("environment")? {
            let title = if sources.len() > 1 { format!("Ranks of {}", source.label) } else { "Ranks".into() };
            sheets.push(Sheet { title, ..frame.raw() });
        }
    }
    sheets.push(configuration(sources));
    Ok(Section::new("Ranks and configuration", sheets, Vec::new()))
}

/// The table of all keys of the configuration, with one column per run file that this version can read it of.
fn configuration(sources: &[Source]) -> Sheet {
    let known: Vec<_> =
        sources.iter().filter_map(|source| Some((source, source.config.as_ref()?.flattened()))).collect();
    let mut sheet = Sheet::new("configuration", "Configuration as used");
    sheet.columns.push(Heading::new("key", "1", "key of the configuration"));
    sheet.columns.extend(known.iter().map(|(source, _)| Heading::new(&source.label, "1", "run file")));
    let value = |value: &toml::Value| Cell::Text(value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in known.iter().flat_map(|(_, keys)| keys) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let row = |name: &&str| {
        let found =
            |keys: &Vec<(String, toml::Value)>| keys.iter().find(|(key, _)| key == name).map(|(_, found)| value(found));
        let values = known.iter().map(|(_, keys)| found(keys).unwrap_or(Cell::Empty));
        std::iter::once(Cell::from(*name)).chain(values).collect()
    };
    sheet.rows = names.iter().map(row).collect();
    sheet
}

/// The table of warnings, one row per warning of a run.
fn warnings(sources: &[Source]) -> Sheet {
    let mut sheet = Sheet::new(store::WARNINGS, "Warnings");
    sheet.columns.push(Heading::new("file", "1", "run file"));
    sheet.columns.push(Heading::new("warning", "1", "condition that limits the run"));
    for source in sources {
        if let Some(texts) = store::attribute(&source.environment, store::WARNINGS).and_then(Attribute::texts) {
            let row = |text: &String| vec![Cell::from(source.label.as_str()), Cell::Text(text.clone())];
            sheet.rows.extend(texts.iter().map(row));
        }
    }
    sheet
}

fn text(name: &str, attribute: &Attribute) -> String {
    match attribute {
        Attribute::Text(text) => text.clone(),
        Attribute::Int(bytes) if name.ends_with("_bytes") => format_bytes((*bytes).max(0) as u64),
        Attribute::Int(value) => value.to_string(),
        Attribute::Float(value) if name.contains("flops") => rate(*value),
        Attribute::Float(value) => value.to_string(),
        Attribute::Ints(values) => joined(values),
        Attribute::Floats(values) if name.contains("flops") => {
            values.iter().map(|value| rate(*value)).collect::<Vec<_>>().join(", ")
        }
        Attribute::Floats(values) => joined(values),
        Attribute::Texts(values) => joined(values),
    }
}

/// Operations per second with three digits or more: `51.3 GFLOP/s`.
fn rate(operations: f64) -> String {
    let (factor, unit) = fitting_unit("FLOP/s", operations);
    format!("{:.1} {unit}", factor * operations)
}

fn joined<T: ToString>(values: &[T]) -> String {
    values.iter().map(T::to_string).collect::<Vec<_>>().join(" ")
}
