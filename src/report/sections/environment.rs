//! Environment of the runs, machine and software, with one column per run file.

use crate::report::section::Section;
use crate::report::source::Source;
use crate::store::{self, Attribute};
use crate::table::{Cell, Heading, Sheet};

/// Attributes of `/environment` shown first; all others follow.
const FIRST: [&str; 9] = ["command", "hpml", "git_commit", "libtorch", "mpi", "nccl", "world_size", "data", "cpu"];

/// Builds the section of all files: the warnings, then the environment.
pub fn section(sources: &[Source]) -> Section {
    let mut names: Vec<&str> = FIRST.to_vec();
    for (name, _) in sources.iter().flat_map(|source| &source.environment) {
        if !names.contains(&name.as_str()) && name != store::WARNINGS {
            names.push(name);
        }
    }
    let mut sheet = Sheet::new("environment", "Command, software and machine");
    let value =
        |source: &Source, name: &str| source.environment.iter().find(|(key, _)| key == name).map(|(_, v)| text(v));
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
    Section::new("Environment", vec![warnings(sources), sheet], Vec::new())
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

fn text(attribute: &Attribute) -> String {
    match attribute {
        Attribute::Text(text) => text.clone(),
        Attribute::Int(value) => value.to_string(),
        Attribute::Float(value) => value.to_string(),
        Attribute::Ints(values) => joined(values),
        Attribute::Floats(values) => joined(values),
        Attribute::Texts(values) => joined(values),
    }
}

fn joined<T: ToString>(values: &[T]) -> String {
    values.iter().map(T::to_string).collect::<Vec<_>>().join(" ")
}
