//! `hpml report`: tables, CSV, Markdown, plots and one HTML page, from run files alone.
//!
//! In: run files of `hpml train`, `sweep`, `allreduce`, `quantize`, read through `store`. Between: [`Sheet`]s (tables of
//! typed cells with units) and [`Figure`]s, made once in `sections/`, so that the same numbers stand in every form. Out:
//! text for stdout, and files. Measures nothing and knows neither ranks nor tensors; a file may be of any age and lack
//! tables or columns, and what is not there is not shown.

mod compare;
mod figure;
mod plot;
mod render;
mod section;
mod sections;
mod source;

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::store;
use crate::table::{Sheet, Table, terminal, terminal_width};
pub use figure::{Axis, Bar, Bars, Figure, Histogram, Lines, Panel, Scale, Series, Style};
pub use plot::{png, svg};
pub use section::Section;
use source::Source;

/// Tables that `--csv` looks for, the first that is there.
const CSV_TABLES: [&str; 5] = ["scaling", "study", "allreduce", "epochs", "quantization"];

/// What is reported, and in which form.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// Run files.
    pub files: Vec<PathBuf>,
    /// Whether one table goes to stdout as CSV: that of `table`, else the first that a list of known names finds.
    pub csv: bool,
    /// Whether tables go to stdout as GitHub's Markdown.
    pub markdown: bool,
    /// The only table to show.
    pub table: Option<String>,
    /// Page to write with all tables and plots.
    pub html: Option<PathBuf>,
    /// Folder to write each plot to, as SVG and PNG.
    pub plots: Option<PathBuf>,
    /// Whether files that exist may be replaced.
    pub force: bool,
}

/// `hpml report FILE...`: writes the files asked for and returns what belongs on stdout.
///
/// Errors: a file that is no run file, has no table of that name or nothing to report; an output that exists.
pub fn report(args: &Request) -> Result<String> {
    let sources = source::open_all(&args.files)?;
    let mut text = None;
    if args.csv || args.table.is_some() {
        let name = match &args.table {
            Some(name) => name.trim_matches('/').to_owned(),
            None => csv_table(&sources)?,
        };
        let sheet = match raw_sheet(&sources, &name) {
            Err(missing) if !sources.iter().any(|source| source.has(&name)) => shown_sheet(&sources, &name, missing)?,
            raw => raw?,
        };
        text = Some(match (args.csv, args.markdown) {
            (true, _) => render::csv(&sheet),
            (_, true) => render::markdown_sheet(&sheet),
            _ => terminal(&sheet, terminal_width()),
        });
    }
    if text.is_some() && args.html.is_none() && args.plots.is_none() {
        return Ok(text.unwrap_or_default());
    }

    let sections = sections::all(&sources)?;
    let written = write_files(args, &sources, &sections)?;
    Ok(match text {
        Some(text) => text,
        None if args.markdown => render::markdown(&sections),
        None if written.is_empty() => in_terminal(sections.iter().flat_map(|section| &section.sheets)),
        None => written,
    })
}

/// Tables of the report called `names`, in that order, as text for the terminal, from a run in this process; those without a row are
/// left out. `config` is that of the run, if it has one.
pub fn tables(config: Option<&Config>, tables: &[Table], names: &[&str]) -> String {
    let sections = sections::all(&[Source::of_run(config, tables)]).unwrap_or_default(); // a table in memory can always be read
    let sheets: Vec<&Sheet> = sections.iter().flat_map(|section| &section.sheets).collect();
    let named = names.iter().filter_map(|name| sheets.iter().find(|sheet| sheet.name == *name));
    in_terminal(named.copied())
}

/// Tables one below the other as text for the terminal.
fn in_terminal<'a>(sheets: impl Iterator<Item = &'a Sheet>) -> String {
    sheets.map(|sheet| terminal(sheet, terminal_width())).collect::<Vec<_>>().join("\n")
}

/// The HTML page and the plots. Looks at every target before it writes the first. Returns what was written, a line each.
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
                let titles: Vec<&str> = sources.iter().map(|source| source.label.as_str()).collect();
                render::html(&titles, sections).map(String::into_bytes)
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

/// One table of every file as it stands there, a row a row.
fn raw_sheet(sources: &[Source], name: &str) -> Result<Sheet> {
    let mut parts = Vec::new();
    for source in sources {
        let frame = source.frame(name)?.ok_or_else(|| source.lacks(name))?;
        parts.push((source.label.as_str(), frame.raw()));
    }
    Ok(compare::sheets(parts, sources.len() > 1))
}

/// One table as the report shows it, where no file has one of that name; `missing` if it shows none.
fn shown_sheet(sources: &[Source], name: &str, missing: Error) -> Result<Sheet> {
    let mut sheets = sections::all(sources)?.into_iter().flat_map(|section| section.sheets);
    sheets.find(|sheet| sheet.name == name).ok_or(missing)
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
