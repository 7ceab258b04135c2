//! `hpml inspect`: prints the contents of a file. Run files are shown by their meaning, any other HDF5 file as a tree.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use hdf5::{Dataset, Group, IndexType, IterationOrder, LinkType};

use super::input::{Input, member_names};
use super::schema::{CHECKPOINT, CONFIG, DIMENSION, ENVIRONMENT, LONG_NAME, UNITS, VERSION, WARNINGS};
use super::{Attribute, Checkpoint, Table, checkpoint, table};
use crate::error::Result;
use crate::metrics::definitions::{PROFILE, WARMUP, WORLD_SIZE};
use crate::units::format_bytes;

mod text;
use text::{columns, number, printable, shown, summary, whole};

/// Largest number of rows of a table that is shown in full.
const MOST_ROWS: usize = 20;
/// Largest numbers of members and levels of a foreign file that are shown, since links may form cycles.
const MOST_MEMBERS: usize = 2000;
const MOST_LEVELS: usize = 16;

/// Formats an overview of a run file, a parity file or any HDF5 file.
///
/// ```no_run
/// print!("{}", hpml::store::inspect("runs/net.h5".as_ref())?);
/// # Ok::<(), hpml::error::Error>(())
/// ```
///
/// # Errors
/// [`Error::Io`](crate::error::Error::Io) or [`Error::File`](crate::error::Error::File) if it is no readable HDF5 file.
pub fn inspect(path: &Path) -> Result<String> {
    let input = Input::open(path)?;
    let mut out = String::new();
    let is_run = input.attribute(input.root(), VERSION).is_some_and(|version| version.integer().is_some());
    let what = if is_run { "run file of hpml" } else { "HDF5 file" };
    line(&mut out, format!("{}: {what}, {}", path.display(), format_bytes(input.bytes)));
    attributes(&mut out, "  ", &input.attributes(input.root(), &[]));
    if is_run {
        run_file(&mut out, &Input::open_run_file(path)?)?;
    } else {
        let mut left = MOST_MEMBERS;
        tree(&mut out, &input, input.root(), "", MOST_LEVELS, &mut left, &[]);
    }
    Ok(out)
}

fn run_file(out: &mut String, input: &Input) -> Result<()> {
    line(out, format!("\n{CONFIG}"));
    for (section, keys) in toml::from_str::<toml::Table>(&input.config_text()?).unwrap_or_default() {
        for (key, value) in keys.as_table().into_iter().flatten() {
            line(out, format!("  {}.{} = {}", printable(&section), printable(key), whole(&value.to_string())));
        }
    }
    let mut known = vec![CONFIG.to_owned(), CHECKPOINT.to_owned()];
    for name in table::names(input)? {
        line(out, format!("\n{}", printable(&name)));
        match table::read(input, &name) {
            Ok(table) => show_table(out, &table),
            Err(error) => line(out, format!("  {error}")), // the rest may be whole
        }
        known.push(name);
    }
    if !known.iter().any(|name| name == ENVIRONMENT) {
        known.push(ENVIRONMENT.to_owned());
        line(out, format!("\n{ENVIRONMENT}"));
        attributes(out, "  ", &input.attributes(&*input.group(ENVIRONMENT)?, &[]));
    }
    let mut left = MOST_MEMBERS;
    tree(out, input, input.root(), "", MOST_LEVELS, &mut left, &known);
    if input.root().link_exists(CHECKPOINT) {
        line(out, format!("\n{CHECKPOINT}"));
        match checkpoint::read(input, CHECKPOINT) {
            Ok(checkpoint) => show_checkpoint(out, &checkpoint),
            Err(error) => line(out, format!("  {error}")),
        }
    }
    Ok(())
}

/// Shows a table in full, or in summary with one line per column.
fn show_table(out: &mut String, table: &Table) {
    attributes(out, "  ", &table.attributes);
    let rows =
        table.columns.iter().filter(|column| column.dimensions.is_empty()).map(|column| column.values.len()).max();
    let rows = rows.unwrap_or(0);
    let plain = table.columns.iter().all(|column| column.dimensions.is_empty());
    if plain && rows <= MOST_ROWS {
        let cells = table.columns.iter().map(|column| {
            let head = [printable(&column.name), format!("({})", printable(&column.units))];
            head.into_iter().chain((0..rows).map(|row| shown(&column.values, row))).collect()
        });
        out.push_str(&columns("  ", cells.collect()));
        return;
    }
    for (what, rows) in if plain { parts(table, rows) } else { vec![(String::new(), (0..rows).collect())] } {
        line(out, format!("  {} rows along {}{what}", rows.len(), printable(&table.dimension)));
        let mut cells: Vec<Vec<String>> = vec![Vec::new(); 7];
        let mut row = |texts: [String; 7]| cells.iter_mut().zip(texts).for_each(|(cells, text)| cells.push(text));
        row(["column", "units", "first", "last", "min", "mean", "max"].map(str::to_owned));
        for column in &table.columns {
            let values = if plain { column.values.select(&rows) } else { column.values.clone() };
            let [first, last, min, mean, max] = summary(&values);
            row([printable(&column.name), printable(&column.units), first, last, min, mean, max]);
        }
        out.push_str(&columns("  ", cells));
    }
}

/// Groups the rows to summarize by number of ranks and timing, without the warm-up if there are others. Returns a description
/// and the row numbers per group.
fn parts(table: &Table, rows: usize) -> Vec<(String, Vec<usize>)> {
    let [ranks, profile, warmup] = [WORLD_SIZE, PROFILE, WARMUP].map(|figure| table.numbers(figure.name));
    let mut parts: BTreeMap<(Option<i64>, bool), Vec<usize>> = BTreeMap::new();
    for row in 0..rows {
        let key = (ranks.get(row).map(|ranks| *ranks as i64), profile.get(row) == Some(&1.0));
        parts.entry(key).or_default().push(row);
    }
    if parts.len() > MOST_ROWS {
        return vec![(String::new(), (0..rows).collect())]; // no file of hpml
    }
    let mut parts: Vec<_> = parts.into_iter().collect();
    parts.sort_by_key(|(_, rows)| rows[0]);
    let part = |((ranks, is_profile), all): ((Option<i64>, bool), Vec<usize>)| {
        let mut what = ranks.map_or(String::new(), |ranks| format!(", on {ranks} ranks"));
        what += if is_profile { ", profile timing" } else { "" };
        let counted: Vec<usize> = all.iter().copied().filter(|row| warmup.get(*row) != Some(&1.0)).collect();
        if counted.is_empty() || counted.len() == all.len() {
            return (what, all);
        }
        (format!("{what}, {} of warm-up left out", all.len() - counted.len()), counted)
    };
    parts.into_iter().map(part).collect()
}

fn show_checkpoint(out: &mut String, checkpoint: &Checkpoint) {
    let bytes: usize = checkpoint.tensors.iter().map(|tensor| tensor.values.bytes()).sum();
    let elements: usize = checkpoint.tensors.iter().map(|tensor| tensor.values.len()).sum();
    line(out, format!("  {} tensors, {elements} elements, {}", checkpoint.tensors.len(), format_bytes(bytes as u64)));
    attributes(out, "  ", &checkpoint.attributes);
    let column = |head: &str, cell: &dyn Fn(&super::NamedTensor) -> String| {
        std::iter::once(head.to_owned()).chain(checkpoint.tensors.iter().map(cell)).collect()
    };
    let cells = vec![
        column("tensor", &|tensor| printable(&tensor.name)),
        column("shape", &|tensor| format!("{:?}", tensor.shape)),
        column("type", &|tensor| tensor.values.type_name().to_owned()),
        column("bytes", &|tensor| tensor.values.bytes().to_string()),
    ];
    out.push_str(&columns("  ", cells));
    for tensor in checkpoint.tensors.iter().filter(|tensor| !tensor.attributes.is_empty()) {
        line(out, format!("  {}", printable(&tensor.name)));
        attributes(out, "    ", &tensor.attributes);
    }
}

/// Shows every group and dataset below `group` except those in `known`.
fn tree(out: &mut String, input: &Input, group: &Group, path: &str, levels: usize, left: &mut usize, known: &[String]) {
    let links = group.links(IndexType::Name, IterationOrder::Increasing).unwrap_or_default();
    for name in member_names(group) {
        let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
        if known.contains(&path) {
            continue;
        }
        if *left == 0 {
            return;
        }
        *left -= 1;
        let here = links.iter().any(|(link, info)| *link == name && info.link_type == LinkType::Hard);
        if !here {
            line(out, format!("{}: a link to elsewhere, not followed", printable(&path)));
        } else if let Ok(dataset) = group.dataset(&name) {
            if !input.is_bare_dimension(&dataset) {
                line(out, show_dataset(input, &dataset, &path));
                attributes(out, "    ", &input.attributes(&dataset, &[UNITS, LONG_NAME]));
            }
        } else if let Ok(child) = group.group(&name) {
            if !known.iter().any(|known| known.starts_with(&format!("{path}/"))) {
                line(out, format!("\n{}", printable(&path)));
                attributes(out, "    ", &input.attributes(&child, &[DIMENSION]));
            }
            if levels > 0 {
                tree(out, input, &child, &path, levels - 1, left, known);
            }
        }
        if *left == 0 {
            line(out, format!("... only the first {MOST_MEMBERS} members are shown"));
        }
    }
}

/// Formats a foreign dataset as one line.
fn show_dataset(input: &Input, dataset: &Dataset, path: &str) -> String {
    let kind = input.kind(dataset, path).map_or_else(|_| "type not read".into(), |kind| kind.to_string());
    let mut text = format!("  {}  {:?} {kind}", printable(path), dataset.shape());
    for attribute in [UNITS, LONG_NAME] {
        if let Some(value) = input.text(dataset, attribute) {
            let _ = write!(text, ", {}", printable(&value));
        }
    }
    match input.values(dataset, path) {
        Ok(values) if values.len() == 1 => text.push_str(&format!(": {}", shown(&values, 0))),
        Ok(values) if values.is_empty() => {}
        Ok(values) => {
            let [first, last, min, mean, max] = summary(&values);
            let _ = write!(text, ": first {first}, last {last}");
            if !mean.is_empty() {
                let _ = write!(text, ", min {min}, mean {mean}, max {max}");
            }
        }
        Err(error) if error.to_string().contains("damaged: checksum") => text.push_str(": damaged: checksum"),
        Err(_) => text.push_str(": not read"),
    }
    text
}

fn attributes(out: &mut String, indent: &str, attributes: &[(String, Attribute)]) {
    let width = attributes.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    for (name, value) in attributes {
        match value {
            // One line each, in full: they limit what the figures say.
            Attribute::Texts(texts) if name == WARNINGS => {
                texts.iter().for_each(|text| line(out, format!("{indent}{name:<width$}  {}", whole(text))));
            }
            _ => line(out, format!("{indent}{:<width$}  {}", printable(name), attribute(value))),
        }
    }
}

fn attribute(value: &Attribute) -> String {
    fn list<T>(values: &[T], show: impl Fn(&T) -> String) -> String {
        let dots = if values.len() > 8 { format!(", ... ({} in all)", values.len()) } else { String::new() };
        format!("[{}{dots}]", values.iter().take(8).map(show).collect::<Vec<_>>().join(", "))
    }
    match value {
        Attribute::Text(text) => printable(text),
        Attribute::Int(value) => value.to_string(),
        Attribute::Float(value) => number(*value),
        Attribute::Ints(values) => list(values, i64::to_string),
        Attribute::Floats(values) => list(values, |value| number(*value)),
        Attribute::Texts(texts) => list(texts, |text| printable(text)),
    }
}

fn line(out: &mut String, text: String) {
    out.push_str(&text);
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::store::{Column, FileKind, Identity, NamedTensor, RunFile, TensorValues, Values};

    #[test]
    fn a_run_file_is_shown_by_its_meaning() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.h5");
        let table = |group: &str, rows: usize| {
            let values = (0..rows).map(|row| 0.5 + row as f64).collect();
            Table::new(group, "epoch", vec![Column::new("loss", "nat", "mean loss", Values::F64(values))])
        };
        let tensor = NamedTensor::new("fc.weight", vec![2, 3], TensorValues::F32(vec![0.0; 6]));
        let checkpoint = Checkpoint { tensors: vec![tensor], attributes: Vec::new() };
        let environment = vec![("mpi".to_owned(), Attribute::Text("Open MPI\u{1b}[31m".into()))];
        let mut file = RunFile::create(
            &path,
            false,
            Identity::new(FileKind::Training),
            &Config::default(),
            environment,
            Vec::new(),
        )
        .unwrap();
        file.flush(&[table("epochs", 3), table("steps", 100)], Some(&checkpoint)).unwrap();
        let text = inspect(&path).unwrap();
        for part in [
            "batch_per_rank = 8",
            "Open MPI",
            "(nat)",
            "2.5",
            "100 rows along epoch",
            "99.5",
            "fc.weight",
            "[2, 3]",
            "24",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn steps_on_other_ranks_and_warm_up_are_not_summarized_together() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.h5");
        let integers = |name: &str, value: &dyn Fn(i64) -> i64| {
            Column::new(name, "1", name, Values::I64((0..40).map(value).collect()))
        };
        let seconds = (0..40)
            .map(|row| {
                if row < 4 {
                    100.0
                } else if row < 30 {
                    1.0
                } else {
                    3.0
                }
            })
            .collect();
        let columns = vec![
            integers("world_size", &|row| if row < 30 { 4 } else { 2 }),
            integers("warmup", &|row| i64::from(row < 4)),
            Column::new("step", "s", "the whole step", Values::F64(seconds)),
        ];
        let mut file = RunFile::create(
            &path,
            false,
            Identity::new(FileKind::Training),
            &Config::default(),
            Vec::new(),
            Vec::new(),
        )
        .unwrap();
        file.flush(&[Table::new("steps", "row", columns)], None).unwrap();
        let text = inspect(&path).unwrap();
        let lines = |start: &str| -> Vec<String> {
            let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
            lines.filter(|line| line.starts_with(start)).collect()
        };
        assert_eq!(
            [lines("26 rows"), lines("10 rows")].concat(),
            ["26 rows along row, on 4 ranks, 4 of warm-up left out", "10 rows along row, on 2 ranks"]
        );
        assert_eq!(lines("step (s)").len() + lines("step s").len(), 2, "{text}");
        assert!(text.contains("1") && !text.contains("10.9"), "{text}");
    }

    #[test]
    fn any_other_file_is_shown_as_a_tree_even_one_that_bites_its_tail() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("other.h5");
        let file = hdf5::File::create(&path).unwrap();
        let group = file.create_group("a").unwrap();
        group.new_dataset::<u16>().shape([2, 2]).create("x").unwrap().write_raw(&[1u16, 2, 3, 4]).unwrap();
        group.link_hard("/a", "ring").unwrap();
        group.link_soft("/nowhere", "soft").unwrap();
        drop(group);
        file.close().unwrap();
        let text = inspect(&path).unwrap();
        for part in ["a/x  [2, 2]", "min 1, mean 2.5, max 4", "a/soft: a link to elsewhere"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn what_is_no_hdf5_is_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text.h5");
        std::fs::write(&path, "text").unwrap();
        let message = inspect(&path).unwrap_err().to_string();
        assert!(message.ends_with("text.h5: not an HDF5 file"), "{message}");
    }
}
