//! Access to a table by row and column name that tolerates old and damaged files.

use super::{Attribute, Cell, Column, Heading, Sheet, Table, Values, attribute};

/// A table by row and column name. A column that is missing, too short or of the wrong type reads as NaN or as no text.
pub struct Frame {
    table: Table,
    rows: usize,
}

impl Frame {
    /// A frame over `table`.
    pub fn new(table: Table) -> Frame {
        let rows = table.len();
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

    /// The column called `name` that has one value per row.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.table.column(name).filter(|column| self.table.is_plain(column))
    }

    /// The number in a column and row; NaN if there is none.
    pub fn number(&self, name: &str, row: usize) -> f64 {
        self.column(name).map_or(f64::NAN, |column| column.values.number(row))
    }

    /// The whole number in a column and row; `None` if there is none.
    pub fn integer(&self, name: &str, row: usize) -> Option<i64> {
        let value = self.number(name, row);
        (value.is_finite() && value.fract() == 0.0 && value.abs() < 1e15).then_some(value as i64)
    }

    /// The text in a column and row; empty if there is none.
    pub fn text(&self, name: &str, row: usize) -> &str {
        self.column(name).map_or("", |column| column.values.text(row))
    }

    /// A number among the attributes of the table; NaN if there is none.
    pub fn attribute(&self, name: &str) -> f64 {
        attribute(&self.table.attributes, name).and_then(Attribute::number).unwrap_or(f64::NAN)
    }

    /// A text among the attributes of the table; `None` if there is none.
    pub fn attribute_text(&self, name: &str) -> Option<&str> {
        attribute(&self.table.attributes, name).and_then(Attribute::text)
    }

    /// The list in a row of a column of lists (`bins` over tensor and bin); empty if there is none.
    pub fn list(&self, name: &str, row: usize) -> Vec<f64> {
        let Some(column) = self.table.column(name).filter(|column| is_list(&self.table, column)) else {
            return Vec::new();
        };
        let (Some(values), (_, each)) = (column.values.numbers(), &column.dimensions[1]) else { return Vec::new() };
        values.chunks((*each).max(1)).nth(row).map_or(Vec::new(), <[f64]>::to_vec)
    }

    /// Name, units and meaning of a column, as in the file.
    pub fn heading(&self, name: &str) -> Option<Heading> {
        self.column(name).map(|column| Heading::new(&column.name, &column.units, &column.long_name))
    }

    /// Headings and cells of those of `columns` that exist, in the given `rows`.
    pub fn select(&self, columns: &[&str], rows: &[usize]) -> (Vec<Heading>, Vec<Vec<Cell>>) {
        let columns: Vec<&Column> = columns.iter().filter_map(|name| self.column(name)).collect();
        let headings = columns.iter().map(|column| Heading::new(&column.name, &column.units, &column.long_name));
        let cells = rows.iter().map(|&row| columns.iter().map(|column| cell(&column.values, row)).collect());
        (headings.collect(), cells.collect())
    }

    /// A sheet of those of `columns` that exist, in the given `rows`, see [`select`](Self::select).
    pub fn sheet(&self, name: &str, title: impl Into<String>, columns: &[&str], rows: &[usize]) -> Sheet {
        let (columns, rows) = self.select(columns, rows);
        Sheet { columns, rows, ..Sheet::new(name, title) }
    }

    /// A sheet of all columns with one value or list per row, with the file's names and order. A column of lists becomes one
    /// column per element, named after the coordinate of its second axis, or numbered.
    pub fn raw(&self) -> Sheet {
        let (rows, mut sheet) = (self.rows(), Sheet::new(&self.table.group, format!("/{}", self.table.group)));
        sheet.rows = vec![Vec::new(); self.rows];
        for column in &self.table.columns {
            if self.table.is_plain(column) {
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

/// Greatest length of a list that [`Frame::raw`] shows as columns.
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
