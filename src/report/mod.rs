//! `hpml report`: tables, CSV, JSON, Markdown, plots and one HTML page, from run files alone.
//!
//! Reads run files of `hpml train`, `sweep`, `collectives`, `study` and `quantize` through `store`. `sections/` makes [`Sheet`]s
//! (tables of typed cells with units) and [`Figure`]s of them once, so that every output form shows the same numbers. Nothing is
//! measured here, and neither ranks nor tensors are known. A run file may be of any age: tables and columns that it lacks are not
//! shown.

mod compare;
mod figure;
mod plot;
mod render;
mod section;
mod sections;
mod source;
mod timeline;
mod verdict;

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::message;
use crate::store;
use crate::table::{Sheet, Table, terminal, terminal_width};
pub use figure::{Axis, Bar, Bars, Figure, Histogram, Lines, Panel, Scale, Series, Style};
pub use plot::{png, svg};
pub use section::Section;
use source::Source;

/// Tables that `--csv` looks for; it writes the first that exists.
const CSV_TABLES: [&str; 5] = ["scaling", "study", "allreduce", "epochs", "quantization"];

/// Run files to report on, and the forms to write.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// Paths of the run files.
    pub files: Vec<PathBuf>,
    /// Whether one table goes to stdout as CSV: `table` or, without it, the first known table that exists.
    pub csv: bool,
    /// Whether all tables, or `table` alone, go to stdout as one JSON document.
    pub json: bool,
    /// Whether tables go to stdout as GitHub Markdown.
    pub markdown: bool,
    /// The only table to show.
    pub table: Option<String>,
    /// Page to write with all tables and plots.
    pub html: Option<PathBuf>,
    /// Folder to write each plot to, as SVG and PNG.
    pub plots: Option<PathBuf>,
    /// File to write the timeline of traced steps to, in Chrome's form.
    pub trace: Option<PathBuf>,
    /// Folder to write the timeline of each rank to, for Holistic Trace Analysis.
    pub hta: Option<PathBuf>,
    /// Whether files that exist may be replaced.
    pub force: bool,
}

/// Runs `hpml report FILE...`: writes the requested files and returns the text for stdout.
///
/// # Errors
/// A file is not a run file, lacks the requested table or has nothing to report, or an output exists or cannot be written.
pub fn report(args: &Request) -> Result<String> {
    let sources = source::open_all(&args.files)?;
    let mut text = None;
    if args.csv || args.table.is_some() {
        let name = match &args.table {
            Some(name) => name.trim_matches('/').to_owned(),
            None => csv_table(&sources)?,
        };
        let sheet = match raw_sheet(&sources, &name, sources.len() > 1) {
            Err(missing) if !sources.iter().any(|source| source.has(&name)) => shown_sheet(&sources, &name, missing)?,
            raw => raw?,
        };
        text = Some(match (args.csv, args.markdown) {
            _ if args.json => render::json::single(&titles(&sources), &sheet),
            (true, _) => render::csv(&sheet),
            (_, true) => render::markdown_sheet(&sheet),
            _ => terminal(&sheet, terminal_width()),
        });
    }
    let traces = timeline::write(args, &sources)?;
    let is_whole = args.json && text.is_none(); // every table, which the sections below hold
    if args.html.is_none() && args.plots.is_none() && !is_whole {
        match text {
            Some(text) if traces.is_empty() => return Ok(text),
            Some(text) => {
                message::print(traces.trim_end()); // stdout is the table's
                return Ok(text);
            }
            None if !traces.is_empty() => return Ok(traces),
            None => {}
        }
    }

    let sections = sections::all(&sources)?;
    if args.json && text.is_none() {
        text = Some(render::json::report(&titles(&sources), &with_details(&sources, &sections)?));
    }
    let written = traces + &write_files(args, &sources, &sections)?;
    Ok(match text {
        Some(text) => {
            if !written.is_empty() {
                message::print(written.trim_end()); // stdout is the table's
            }
            text
        }
        None if args.markdown => render::markdown(&sections),
        None if written.is_empty() => in_terminal(sections.iter().flat_map(|section| &section.sheets)),
        None => written,
    })
}

/// Formats those tables of the report that are called `names`, in that order, for the terminal; tables without a row are left
/// out. `config` is the configuration of the run in this process, if it has one.
pub fn tables(config: Option<&Config>, tables: &[Table], names: &[&str]) -> String {
    let sections = sections::all(&[Source::of_run(config, tables)]).unwrap_or_default(); // a table in memory can always be read
    let sheets: Vec<&Sheet> = sections.iter().flat_map(|section| &section.sheets).collect();
    let named = names.iter().filter_map(|name| sheets.iter().find(|sheet| sheet.name == *name));
    in_terminal(named.copied())
}

/// Formats the tables of slow ranks and hosts of the run file at `path` for the terminal; empty if it is of another kind, has none,
/// or cannot be read as a run file.
pub fn slow(path: &Path) -> String {
    let sources = source::open_all(&[path.to_owned()]).unwrap_or_default();
    let sheets: Vec<Sheet> = sources.iter().filter_map(|source| sections::slow(source).ok()).flatten().collect();
    in_terminal(sheets.iter().filter(|sheet| !sheet.rows.is_empty()))
}

/// Formats tables one below the other for the terminal.
fn in_terminal<'a>(sheets: impl Iterator<Item = &'a Sheet>) -> String {
    sheets.map(|sheet| terminal(sheet, terminal_width())).collect::<Vec<_>>().join("\n")
}

/// Writes the HTML page and the plots, after checking that every target may be written. Returns one line per kind of output.
fn write_files(args: &Request, sources: &[Source], sections: &[Section]) -> Result<String> {
    let figures = || sections.iter().flat_map(|section| &section.figures);
    let mut targets = Vec::new();
    if let Some(folder) = &args.plots {
        for figure in figures() {
            targets.push((folder.join(format!("{}.svg", figure.name)), Some(figure)));
            targets.push((folder.join(format!("{}.png", figure.name)), Some(figure)));
        }
    }
    targets.extend(args.html.iter().map(|path| (path.clone(), None)));
    for (path, _) in &targets {
        store::check_not_input(path, &args.files)?;
        store::check_output(path, args.force)?;
    }

    let cannot = |path: &Path, reason| Error::Output { path: path.to_owned(), reason };
    for (path, figure) in &targets {
        let bytes = match figure {
            Some(figure) if path.extension().is_some_and(|extension| extension == "png") => plot::png(figure),
            Some(figure) => plot::svg(figure).map(String::into_bytes),
            None => {
                let all = with_details(sources, sections)?;
                render::html(&titles(sources), &verdict::of(sources)?, &all, &raw_sheets(sources)?)
                    .map(String::into_bytes)
            }
        };
        store::write_output(path, &bytes.map_err(|reason| cannot(path, reason))?, args.force)?;
    }

    let mut lines = String::new();
    let (tables, plots) = (sections.iter().map(|section| section.sheets.len()).sum::<usize>(), figures().count());
    if let Some(folder) = &args.plots {
        lines += &format!("{plots} plots, each as SVG and PNG, written to {}\n", folder.display());
    }
    if let Some(path) = &args.html {
        lines += &format!("{tables} tables and {plots} plots written to {}\n", path.display());
    }
    Ok(lines)
}

/// The sections, and what only page and JSON show: each rank's place and the whole configuration.
fn with_details(sources: &[Source], sections: &[Section]) -> Result<Vec<Section>> {
    Ok(sections.iter().cloned().chain([sections::details(sources)?]).collect())
}

fn titles<'a>(sources: &'a [Source]) -> Vec<&'a str> {
    sources.iter().map(|source| source.label.as_str()).collect()
}

/// Every table of the files, each joined over those that have it.
fn raw_sheets(sources: &[Source]) -> Result<Vec<Sheet>> {
    let mut names: Vec<&str> = Vec::new();
    for name in sources.iter().flat_map(Source::names) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let of_name = |name: &str| raw_sheet(sources.iter().filter(|source| source.has(name)), name, sources.len() > 1);
    names.into_iter().map(of_name).collect()
}

/// The table `name` of these files with its stored columns and rows; `compared`: with the file of each.
fn raw_sheet<'a>(sources: impl IntoIterator<Item = &'a Source<'a>>, name: &str, compared: bool) -> Result<Sheet> {
    let mut parts = Vec::new();
    for source in sources {
        let frame = source.frame(name)?.ok_or_else(|| source.lacks(name))?;
        parts.push((source.label.as_str(), frame.raw()));
    }
    Ok(compare::sheets(parts, compared))
}

/// The table `name` as the report shows it, for a name that no file has; `missing` if the report shows none either.
fn shown_sheet(sources: &[Source], name: &str, missing: Error) -> Result<Sheet> {
    let sheets: Vec<Sheet> = sections::all(sources)?.into_iter().flat_map(|section| section.sheets).collect();
    let names: Vec<&str> = sheets.iter().map(|sheet| sheet.name.as_str()).collect();
    let shown = format!("; the report has {}", names.join(", "));
    sheets.into_iter().find(|sheet| sheet.name == name).ok_or(match missing {
        Error::Dataset { path, name, message } => Error::Dataset { path, name, message: message + &shown },
        other => other,
    })
}

fn csv_table(sources: &[Source]) -> Result<String> {
    let everywhere = CSV_TABLES.iter().find(|name| sources.iter().all(|source| source.has(name)));
    let somewhere = || CSV_TABLES.iter().find(|name| sources.iter().any(|source| source.has(name)));
    match everywhere.or_else(somewhere) {
        Some(name) => Ok((*name).to_owned()),
        None => Err(sources[0].lacks("scaling, allreduce, epochs or quantization")),
    }
}

#[cfg(test)]
mod tests;
