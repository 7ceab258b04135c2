//! A source of tables by name: a run file, or a run in this process.

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::metrics::Summaries;
use crate::predict;
use crate::store;
use crate::table::{Attribute, Frame, Table, printable};
use crate::trace::{self, Row};

/// Greatest number of ranks to predict for when the file holds no prediction.
const PREDICTED_RANKS: usize = 64;

/// Tables, configuration and environment of one run.
pub struct Source<'a> {
    /// Short name; differs from that of every other file.
    pub label: String,
    /// Configuration of the run; `None` if another version of hpml wrote it.
    pub config: Option<Config>,
    /// Attributes of `/environment`.
    pub environment: Vec<(String, Attribute)>,
    path: PathBuf,
    content: Content<'a>,
}

/// Place of the tables of a source.
enum Content<'a> {
    /// Names of the tables in the file.
    File(Vec<String>),
    /// Tables in memory, from a run that has not ended.
    Memory(&'a [Table]),
}

/// Opens all files and labels each with its stem, or with its path if two stems are equal.
///
/// # Errors
/// A file cannot be read as a run file.
pub fn open_all(paths: &[PathBuf]) -> Result<Vec<Source<'static>>> {
    let mut sources = paths.iter().map(|path| Source::open(path)).collect::<Result<Vec<Source<'static>>>>()?;
    let stem = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    for index in 0..sources.len() {
        let path = &paths[index];
        let alone = paths.iter().filter(|other| stem(other) == stem(path)).count() == 1;
        let before = paths[..index].iter().filter(|other| *other == path).count();
        let label = if alone { stem(path) } else { path.display().to_string() };
        sources[index].label = if before == 0 { label } else { format!("{label} ({})", before + 1) };
    }
    Ok(sources)
}

impl<'a> Source<'a> {
    fn open(path: &Path) -> Result<Source<'static>> {
        let tables = store::table_names(path)?;
        Ok(Source {
            label: String::new(),
            config: store::read_config(path).ok(),
            environment: store::read_attributes(path, "environment").unwrap_or_default(),
            path: path.to_owned(),
            content: Content::File(tables),
        })
    }

    /// A source with the tables of a run in this process; none of them has to be on disk yet.
    pub fn of_run(config: Option<&Config>, tables: &'a [Table]) -> Source<'a> {
        Source {
            label: String::new(),
            config: config.cloned(),
            environment: Vec::new(),
            path: PathBuf::new(),
            content: Content::Memory(tables),
        }
    }

    /// Names of the tables.
    pub fn names(&self) -> Vec<&str> {
        match &self.content {
            Content::File(names) => names.iter().map(String::as_str).collect(),
            Content::Memory(tables) => tables.iter().map(|table| table.group.as_str()).collect(),
        }
    }

    /// Whether there is a table called `name`.
    pub fn has(&self, name: &str) -> bool {
        self.names().contains(&name)
    }

    /// The table called `name`, to read its columns by name and row; `None` if there is none.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn frame(&self, name: &str) -> Result<Option<Frame>> {
        Ok(self.table(name)?.map(Frame::new))
    }

    /// The table called `name`; `None` if there is none.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn table(&self, name: &str) -> Result<Option<Table>> {
        Ok(match &self.content {
            Content::Memory(tables) => tables.iter().find(|table| table.group == name).cloned(),
            Content::File(_) if self.has(name) => Some(store::read_table(&self.path, name)?),
            // A sweep's file has everything a prediction needs, even if none was saved with it.
            Content::File(_) if name == "prediction" => predict::table(&self.path, PREDICTED_RANKS)?,
            Content::File(_) => None,
        })
    }

    /// The spans of traced steps, by step, rank and lane; empty if no step was traced.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn trace(&self) -> Result<Vec<Row>> {
        Ok(self.table("trace")?.map(|table| trace::trace().read(&table)).unwrap_or_default())
    }

    /// Summaries of a training with too many steps for a row each; `None` for others.
    ///
    /// # Errors
    /// A table cannot be read.
    pub fn summaries(&self) -> Result<Option<Summaries>> {
        let tables = [self.table("rank_times")?, self.table("time_histogram")?];
        Ok(Summaries::find(&tables.into_iter().flatten().collect::<Vec<_>>()))
    }

    /// The error for a file without any table that the report shows.
    pub fn has_nothing(&self) -> Error {
        let message = format!(
            "nothing to report: no scaling, prediction, study, allreduce, epochs, steps, comm, quantization or histograms; the \
             file holds {}",
            self.holds()
        );
        Error::File { path: self.path.clone(), message }
    }

    fn holds(&self) -> String {
        let names = self.names();
        if names.is_empty() { "no tables".into() } else { printable(&names.join(", ")) }
    }

    /// The error for a missing table, naming the tables that exist.
    pub fn lacks(&self, name: &str) -> Error {
        let message = format!("no such table here: the file holds {}", self.holds());
        Error::Dataset { path: self.path.clone(), name: printable(name), message }
    }
}
