//! A run file as report sees it: which tables there are, and one table by row and column name without surprises.

use std::path::{Path, PathBuf};

use super::sheet::{Cell, Heading, Sheet, printable};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::predict;
use crate::store::{self, Attribute, Column, Table, Values};

/// Predictions that are not in the file go up to so many ranks.
const PREDICTED_RANKS: usize = 64;

/// A run file.
pub struct Source {
    /// Short and different from the other files' labels.
    pub label: String,
    /// Of the configuration stored in it; `None` if another version of hpml wrote it.
    pub config: Option<Config>,
    /// Attributes of `/environment`.
    pub environment: Vec<(String, Attribute)>,
    path: PathBuf,
    tables: Vec<String>,
}

/// Opens all files and gives each a label: its stem, or the path where two stems are the same.
pub fn open_all(paths: &[PathBuf]) -> Result<Vec<Source>> {
    let mut sources = paths.iter().map(|path| Source::open(path)).collect::<Result<Vec<Source>>>()?;
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

impl Source {
    fn open(path: &Path) -> Result<Source> {
        let tables = store::table_names(path)?;
        Ok(Source {
            label: String::new(),
            config: store::read_config(path).ok(),
            environment: store::read_attributes(path, "environment").unwrap_or_default(),
            path: path.to_owned(),
            tables,
        })
    }

    /// Whether there is a table of that name.
    pub fn has(&self, name: &str) -> bool {
        self.tables.iter().any(|table| table == name)
    }

    /// That table; `None` if there is none. Errors: it cannot be read.
    pub fn frame(&self, name: &str) -> Result<Option<Frame>> {
        if !self.has(name) {
            // A sweep's file has all that a prediction is made of, whether or not one was saved with it.
            let predicted = if name == "prediction" { predict::table(&self.path, PREDICTED_RANKS)? } else { None };
            return Ok(predicted.map(Frame::new));
        }
        store::read_table(&self.path, name).map(|table| Some(Frame::new(table)))
    }

    /// The error for a file without any table that report knows.
    pub fn has_nothing(&self) -> Error {
        let message = format!(
            "nothing to report: no scaling, prediction, study, allreduce, epochs, steps, comm, quantization or histograms; the \
             file holds {}",
            self.holds()
        );
        Error::File { path: self.path.clone(), message }
    }

    fn holds(&self) -> String {
        if self.tables.is_empty() { "no tables".into() } else { printable(&self.tables.join(", ")) }
    }

    /// The error for a table that is missing, with what is there instead.
    pub fn lacks(&self, name: &str) -> Error {
        let message = format!("no such table here: the file holds {}", self.holds());
        Error::Dataset { path: self.path.clone(), name: printable(name), message }
    }
}

/// A table by row and column name. A column that is missing, too short or of the wrong type reads as NaN or as no text.
pub struct Frame {
    table: Table,
    rows: usize,
}

impl Frame {
    /// Of a table as read.
    pub fn new(table: Table) -> Frame {
        let rows = table.columns.iter().filter(|column| is_plain(&table, column)).map(|column| column.values.len());
        let rows = rows.max().unwrap_or(0);
        Frame { table, rows }
    }

    /// Indices of all rows.
    pub fn rows(&self) -> Vec<usize> {
        (0..self.rows).collect()
    }

    /// Indices of the rows that `keep` holds for.
    pub fn rows_where(&self, keep: impl Fn(usize) -> bool) -> Vec<usize> {
        (0..self.rows).filter(|row| keep(*row)).collect()
    }

    /// The column of that name that has a value a row.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.table.column(name).filter(|column| is_plain(&self.table, column))
    }

    /// NaN where there is no number.
    pub fn number(&self, name: &str, row: usize) -> f64 {
        match self.column(name).map(|column| &column.values) {
            Some(Values::F64(values)) => values.get(row).copied().unwrap_or(f64::NAN),
            Some(Values::F32(values)) => values.get(row).map_or(f64::NAN, |value| f64::from(*value)),
            Some(Values::I64(values)) => values.get(row).map_or(f64::NAN, |value| *value as f64),
            _ => f64::NAN,
        }
    }

    /// A whole number; `None` where there is none.
    pub fn integer(&self, name: &str, row: usize) -> Option<i64> {
        let value = self.number(name, row);
        (value.is_finite() && value.fract() == 0.0 && value.abs() < 1e15).then_some(value as i64)
    }

    /// Empty where there is no text.
    pub fn text(&self, name: &str, row: usize) -> &str {
        match self.column(name).map(|column| &column.values) {
            Some(Values::Text(texts)) => texts.get(row).map_or("", String::as_str),
            _ => "",
        }
    }

    /// A number attached to the table; NaN if there is none.
    pub fn attribute(&self, name: &str) -> f64 {
        match store::attribute(&self.table.attributes, name) {
            Some(Attribute::Float(value)) => *value,
            Some(Attribute::Int(value)) => *value as f64,
            _ => f64::NAN,
        }
    }

    /// The values of a column of lists (`bins` over tensor and bin), those of one row.
    pub fn list(&self, name: &str, row: usize) -> Vec<f64> {
        let Some(column) = self.table.column(name).filter(|column| is_list(&self.table, column)) else {
            return Vec::new();
        };
        let (Some(values), (_, each)) = (column.values.numbers(), &column.dimensions[1]) else { return Vec::new() };
        values.chunks((*each).max(1)).nth(row).map_or(Vec::new(), <[f64]>::to_vec)
    }

    /// Name, units and meaning of a column, as the file has them.
    pub fn heading(&self, name: &str) -> Option<Heading> {
        self.column(name).map(|column| Heading::new(&column.name, &column.units, &column.long_name))
    }

    /// The columns named, as far as they are there, and the rows given.
    pub fn select(&self, columns: &[&str], rows: &[usize]) -> (Vec<Heading>, Vec<Vec<Cell>>) {
        let columns: Vec<&Column> = columns.iter().filter_map(|name| self.column(name)).collect();
        let headings = columns.iter().map(|column| Heading::new(&column.name, &column.units, &column.long_name));
        let cells = rows.iter().map(|&row| columns.iter().map(|column| cell(&column.values, row)).collect());
        (headings.collect(), cells.collect())
    }

    /// [`select`](Self::select) as a sheet.
    pub fn sheet(&self, name: &str, title: impl Into<String>, columns: &[&str], rows: &[usize]) -> Sheet {
        let (columns, rows) = self.select(columns, rows);
        Sheet { columns, rows, ..Sheet::new(name, title) }
    }

    /// All that has a row, as it stands in the file. A column of lists becomes a column an element, named after the
    /// coordinate of its second axis, or numbered.
    pub fn raw(&self) -> Sheet {
        let (rows, mut sheet) = (self.rows(), Sheet::new(&self.table.group, format!("/{}", self.table.group)));
        sheet.rows = vec![Vec::new(); self.rows];
        for column in &self.table.columns {
            if is_plain(&self.table, column) {
                sheet.columns.push(Heading::new(&column.name, &column.units, &column.long_name));
                rows.iter().for_each(|&row| sheet.rows[row].push(cell(&column.values, row)));
            } else if is_list(&self.table, column) {
                let (axis, each) = &column.dimensions[1];
                let places = self.table.column(axis).filter(|places| places.values.len() == *each);
                for element in 0..*each {
                    let place = places.map_or(Cell::Int(element as i64), |places| cell(&places.values, element));
                    let name = format!("{}_{}", column.name, place.full());
                    sheet.columns.push(Heading::new(&name, &column.units, &column.long_name));
                    rows.iter().for_each(|&row| sheet.rows[row].push(cell(&column.values, row * each + element)));
                }
            }
        }
        sheet
    }
}

fn is_plain(table: &Table, column: &Column) -> bool {
    let names = |other: &Column| other.dimensions.iter().any(|(axis, _)| *axis == column.name);
    match column.dimensions.as_slice() {
        // The coordinate of another axis has no dimensions either, but a value for each place there.
        [] => column.name == table.dimension || !table.columns.iter().any(names),
        [(axis, _)] => *axis == table.dimension,
        _ => false,
    }
}

/// The elements of a list become columns: not endlessly many.
const MOST_ELEMENTS: usize = 4096;

fn is_list(table: &Table, column: &Column) -> bool {
    matches!(column.dimensions.as_slice(), [(axis, _), (_, each)] if *axis == table.dimension && *each <= MOST_ELEMENTS)
}

fn cell(values: &Values, row: usize) -> Cell {
    let cell = match values {
        Values::F64(values) => values.get(row).map(|value| Cell::Float(*value)),
        Values::F32(values) => values.get(row).map(|value| Cell::Single(*value)),
        Values::I64(values) => values.get(row).map(|value| Cell::Int(*value)),
        Values::Text(values) => values.get(row).map(|value| Cell::Text(value.clone())),
    };
    cell.unwrap_or(Cell::Empty)
}
