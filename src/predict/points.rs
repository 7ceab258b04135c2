//! Measurements of a sweep, as numbers.

use std::path::Path;

use crate::error::{Error, Result};
use crate::store::{self, Table, Values};
use crate::units::{Bytes, Second};

/// One measured case.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Name of the network.
    pub model: String,
    /// Timing mode, `overlap` or `profile`.
    pub timing: String,
    /// Number of ranks.
    pub ranks: usize,
    /// Samples per rank and step.
    pub batch_per_rank: usize,
    /// Seconds of the whole step.
    pub step: Second,
    /// Seconds in collectives, hidden or not.
    pub comm: Second,
    /// Seconds of waiting for slower ranks before collectives, hidden or not.
    pub comm_wait: Second,
    /// Seconds of `comm` and `comm_wait` that were not hidden.
    pub comm_exposed: Second,
    /// Share of `comm` and `comm_wait` that was hidden; NaN if nothing can overlap.
    pub overlap: f64,
    /// Bytes of gradients.
    pub gradient_bytes: Bytes,
}

impl Point {
    /// Seconds of a step without waiting for collectives.
    pub fn compute(&self) -> Second {
        self.step - self.comm_exposed
    }
}

/// One size of the bare all-reduce.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Collective {
    /// Number of ranks that took part.
    pub ranks: usize,
    /// Bytes of the buffer on one rank.
    pub bytes: Bytes,
    /// Median seconds, in place.
    pub seconds: Second,
}

/// Reads `/scaling` and `/allreduce` of a sweep's run file.
///
/// # Errors
/// The file cannot be read, lacks one of the tables, or a table is damaged.
pub fn read(path: &Path) -> Result<(Vec<Point>, Vec<Collective>)> {
    let names = store::table_names(path)?;
    for (needed, mend) in [("scaling", "hpml sweep"), ("allreduce", "hpml sweep on 2 ranks or more")] {
        if !names.iter().any(|name| name == needed) {
            let message = format!("holds no /{needed} but {}: predictions need a file of {mend}", list(&names));
            return Err(Error::File { path: path.to_owned(), message });
        }
    }
    let reader = Reader { path };
    let scaling = reader.points(&store::read_table(path, "scaling")?)?;
    let collectives = reader.collectives(&store::read_table(path, "allreduce")?)?;
    Ok((scaling, collectives))
}

fn list(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("/{name}")).collect();
    if names.is_empty() { "nothing".into() } else { names.join(", ") }
}

struct Reader<'a> {
    path: &'a Path,
}

impl Reader<'_> {
    fn points(&self, table: &Table) -> Result<Vec<Point>> {
        let (models, timings) = (self.texts(table, "model")?, self.texts(table, "timing")?);
        let status = self.texts(table, "status")?;
        let (ranks, batches) = (self.numbers(table, "ranks")?, self.numbers(table, "batch_per_rank")?);
        let (steps, bytes) = (self.numbers(table, "step")?, self.numbers(table, "gradient_bytes")?);
        let (comm, wait) = (self.numbers(table, "comm")?, self.numbers(table, "comm_wait")?);
        let (exposed, overlap) = (self.numbers(table, "comm_exposed")?, self.numbers(table, "overlap")?);
        let measured =
            (0..status.len()).filter(|&row| status[row] == "ok" && steps[row].is_finite() && steps[row] > 0.0);
        let point = |row: usize| Point {
            model: models[row].clone(),
            timing: timings[row].clone(),
            ranks: ranks[row] as usize,
            batch_per_rank: batches[row] as usize,
            step: steps[row],
            comm: comm[row],
            comm_wait: wait[row],
            comm_exposed: exposed[row],
            overlap: overlap[row],
            gradient_bytes: bytes[row] as Bytes,
        };
        Ok(measured.map(point).filter(|point| point.ranks > 0 && point.batch_per_rank > 0).collect())
    }

    fn collectives(&self, table: &Table) -> Result<Vec<Collective>> {
        let places = self.texts(table, "place")?;
        let (ranks, sizes) = (self.numbers(table, "ranks")?, self.numbers(table, "size")?);
        let times = self.numbers(table, "p50")?;
        let rows = (0..places.len()).filter(|&row| places[row] == "in_place" && times[row] > 0.0 && ranks[row] > 1.0);
        let one =
            |row: usize| Collective { ranks: ranks[row] as usize, bytes: sizes[row] as Bytes, seconds: times[row] };
        Ok(rows.map(one).collect())
    }

    fn numbers(&self, table: &Table, name: &str) -> Result<Vec<f64>> {
        let numbers = table.column(name).and_then(|column| column.values.numbers());
        numbers.filter(|numbers| numbers.len() == rows(table)).ok_or_else(|| self.damaged(table, name))
    }

    fn texts(&self, table: &Table, name: &str) -> Result<Vec<String>> {
        match table.column(name).map(|column| &column.values) {
            Some(Values::Text(texts)) if texts.len() == rows(table) => Ok(texts.clone()),
            _ => Err(self.damaged(table, name)),
        }
    }

    fn damaged(&self, table: &Table, name: &str) -> Error {
        Error::Dataset {
            path: self.path.to_owned(),
            name: format!("{}/{name}", table.group),
            message: "missing, or not as long as the table: not a file of hpml sweep".into(),
        }
    }
}

fn rows(table: &Table) -> usize {
    table.column("ranks").map_or(0, |column| column.values.len())
}
