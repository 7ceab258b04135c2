//! A table of typed cells with units, and the formatting of its numbers for readers.

use super::definition::{Definition, reason};
use crate::units::fitting_unit;

/// One value of a table.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// No value.
    Empty,
    /// A text, possibly from a file and with any characters.
    Text(String),
    /// A whole number.
    Int(i64),
    /// A float64; NaN where the figure does not exist.
    Float(f64),
    /// A float32; its shortest decimal form differs from a float64's.
    Single(f32),
}

impl Cell {
    /// The value as a number; NaN for text and for an empty cell.
    pub fn number(&self) -> f64 {
        match self {
            Cell::Int(value) => *value as f64,
            Cell::Float(value) => *value,
            Cell::Single(value) => f64::from(*value),
            Cell::Empty | Cell::Text(_) => f64::NAN,
        }
    }

    /// The value with all its digits: reading the text back gives the same value.
    pub fn full(&self) -> String {
        match self {
            Cell::Empty => String::new(),
            Cell::Text(text) => text.clone(),
            Cell::Int(value) => value.to_string(),
            Cell::Float(value) => value.to_string(),
            Cell::Single(value) => value.to_string(),
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Cell {
        Cell::Text(text.to_owned())
    }
}

/// Name, unit and meaning of a column.
#[derive(Debug, Clone, PartialEq)]
pub struct Heading {
    /// Name of the column in the run file.
    pub name: String,
    /// Unit as in the run file: `s`, `B`, `1`.
    pub units: String,
    /// Meaning, and after it the reason for which a figure may be missing.
    pub long_name: String,
}

impl Heading {
    /// A heading with this name, unit and meaning.
    pub fn new(name: &str, units: &str, long_name: &str) -> Heading {
        Heading { name: name.to_owned(), units: units.to_owned(), long_name: long_name.to_owned() }
    }
}

impl From<&Definition> for Heading {
    fn from(definition: &Definition) -> Heading {
        Heading::new(definition.name, definition.units, &definition.long_name())
    }
}

impl From<(&str, &str, &str)> for Heading {
    fn from((name, units, long_name): (&str, &str, &str)) -> Heading {
        Heading::new(name, units, long_name)
    }
}

/// A table for readers.
#[derive(Debug, Clone, PartialEq)]
pub struct Sheet {
    /// Name, by which the sheets of several files are matched.
    pub name: String,
    /// Title for readers.
    pub title: String,
    /// Text that a reader must know beside the table; may be empty.
    pub note: String,
    /// Number of leading columns that identify a row; a table that is too wide repeats them.
    pub keys: usize,
    /// One heading per column.
    pub columns: Vec<Heading>,
    /// Rows from the top, one cell per column.
    pub rows: Vec<Vec<Cell>>,
}

/// A column formatted for display.
pub struct Shown {
    /// Name of the column.
    pub name: String,
    /// Unit of the numbers below; may be empty.
    pub unit: String,
    /// Meaning of the column.
    pub long_name: String,
    /// Whether the cells are texts, which are aligned on the left.
    pub is_text: bool,
    /// Whether the cells are texts or whole numbers.
    pub is_exact: bool,
    /// One text per row; `-` where a figure does not exist.
    pub cells: Vec<String>,
}

impl Sheet {
    /// A sheet without columns and rows.
    pub fn new(name: &str, title: impl Into<String>) -> Sheet {
        let (note, columns, rows) = (String::new(), Vec::new(), Vec::new());
        Sheet { name: name.to_owned(), title: title.into(), note, keys: 1, columns, rows }
    }

    /// Sets the number of leading columns that identify a row.
    pub fn with_keys(mut self, keys: usize) -> Sheet {
        self.keys = keys;
        self
    }

    /// This sheet with a hundred of its rows at most, evenly chosen with the first and the last, and a note that says so: for
    /// tables that grow with the epochs.
    pub fn thinned(mut self) -> Sheet {
        const MOST: usize = 100;
        let all = self.rows.len();
        if all > MOST {
            let chosen = |place: usize| place * (all - 1) / (MOST - 1);
            self.rows = (0..MOST).map(|place| std::mem::take(&mut self.rows[chosen(place)])).collect();
            let note = format!("{MOST} of {all} rows; all: hpml report FILE --table {}", self.name);
            self.note = if self.note.is_empty() { note } else { format!("{}; {note}", self.note) };
        }
        self
    }

    /// Sets the note.
    pub fn with_note(mut self, note: impl Into<String>) -> Sheet {
        self.note = note.into();
        self
    }

    /// Appends a column; `value` gives the cell of each row.
    pub fn push(&mut self, heading: impl Into<Heading>, value: impl Fn(usize) -> Cell) {
        self.columns.push(heading.into());
        self.rows.iter_mut().enumerate().for_each(|(row, cells)| cells.push(value(row)));
    }

    /// Formats all columns in units that fit their values; columns in `s`, and columns in `B`, share a unit if it suits all of
    /// them.
    pub fn shown(&self) -> Vec<Shown> {
        let shared = |units: &'static str| {
            let same = self.columns.iter().enumerate().filter(|(_, heading)| heading.units == units);
            shared_unit(units, &same.map(|(column, _)| self.cells(column)).collect::<Vec<_>>())
        };
        let shared = ["s", "B"].map(|units| (units, shared(units)));
        let column = |(column, heading): (usize, &Heading)| {
            let cells = self.cells(column);
            let given = shared.iter().find(|(units, _)| *units == heading.units).and_then(|(_, unit)| *unit);
            let numbers = Numbers::new(&heading.units, given, &cells);
            Shown {
                name: printable(&heading.name),
                unit: printable(&numbers.unit),
                long_name: printable(&heading.long_name),
                is_text: cells.iter().any(|cell| matches!(cell, Cell::Text(_))),
                is_exact: cells.iter().all(|cell| matches!(cell, Cell::Text(_) | Cell::Int(_))),
                cells: cells.into_iter().map(|cell| numbers.format(cell)).collect(),
            }
        };
        self.columns.iter().enumerate().map(column).collect()
    }

    /// The cells of one column from the top.
    fn cells(&self, column: usize) -> Vec<&Cell> {
        self.rows.iter().map(|row| row.get(column).unwrap_or(&Cell::Empty)).collect()
    }

    /// Reasons for which figures do not exist, one line per reason: `- in busbw, busbw_share: one rank`.
    pub fn dashes(&self) -> Vec<String> {
        let mut reasons: Vec<(&str, Vec<String>)> = Vec::new();
        for (column, heading) in self.columns.iter().enumerate() {
            let mut cells = self.rows.iter().map(|row| row.get(column).unwrap_or(&Cell::Empty));
            let why = match cells.find(|cell| !matches!(cell, Cell::Text(_)) && cell.number().is_nan()) {
                None => continue,
                Some(Cell::Empty) => "not there",
                Some(_) => reason(&heading.long_name).unwrap_or("does not exist or was not measured"),
            };
            match reasons.iter_mut().find(|(known, _)| *known == why) {
                Some((_, names)) => names.push(printable(&heading.name)),
                None => reasons.push((why, vec![printable(&heading.name)])),
            }
        }
        reasons.iter().map(|(why, names)| format!("- in {}: {}", names.join(", "), printable(why))).collect()
    }
}

/// Least and greatest magnitude above 0 of a column; `None` without any.
fn magnitudes(cells: &[&Cell]) -> Option<(f64, f64)> {
    let found = cells.iter().map(|cell| cell.number().abs()).filter(|m| m.is_finite() && *m > 0.0);
    found.fold(None, |range, m| {
        range.map_or(Some((m, m)), |(least, most): (f64, f64)| Some((least.min(m), most.max(m))))
    })
}

/// The factor and unit in which numbers from `least` to `most` read well. From 5 us to 0.5 s all are readable in us, but not in
/// s; sizes below 1 kB are powers of two, which no one knows in kB.
fn unit_between(units: &str, least: f64, most: f64) -> (f64, &str) {
    match units {
        "B" if least < 1e3 => (1.0, units),
        _ => fitting_unit(units, if most / least > 1e3 { least * 1e2 } else { most }),
    }
}

/// The factor and unit that several columns of the same `units` can share, if the greatest number of each reads well in it.
fn shared_unit<'a>(units: &'a str, columns: &[Vec<&Cell>]) -> Option<(f64, &'a str)> {
    let ranges: Vec<(f64, f64)> = columns.iter().filter_map(|cells| magnitudes(cells)).collect();
    let least = ranges.iter().map(|(least, _)| *least).fold(f64::INFINITY, f64::min);
    let (factor, unit) = unit_between(units, least, ranges.iter().map(|(_, most)| *most).fold(0.0, f64::max));
    let reads_well = |(_, most): &(f64, f64)| (0.01..1e5).contains(&(most * factor));
    (ranges.len() > 1 && ranges.iter().all(reads_well)).then_some((factor, unit))
}

/// Number format of one column.
struct Numbers {
    factor: f64,
    unit: String,
    /// Number of decimals; `None` if each number has its own.
    decimals: Option<usize>,
}

impl Numbers {
    fn new(units: &str, shared: Option<(f64, &str)>, cells: &[&Cell]) -> Numbers {
        let (least, most) = magnitudes(cells).unwrap_or((f64::INFINITY, 0.0));
        let span = most / least;
        let integers = cells.iter().all(|cell| !matches!(cell, Cell::Float(_) | Cell::Single(_)));
        if integers && units != "B" {
            return Numbers { factor: 1.0, unit: fitting_unit(units, 0.0).1.to_owned(), decimals: Some(0) };
        }
        let (factor, unit) = shared.unwrap_or_else(|| unit_between(units, least, most));
        // Four digits for the greatest number, two for the least.
        let digits = |value: f64, digits: f64| digits - 1.0 - (value * factor).log10().floor();
        let needed = if unit == "%" { 2.0 } else { digits(most, 4.0).max(digits(least, 2.0)) };
        let without_fraction = |cell: &&Cell| cell.number().is_nan() || cell.number().fract() == 0.0;
        let is_whole = factor == 1.0 && (integers || units == "1" && cells.iter().all(without_fraction));
        let decimals = if most == 0.0 || is_whole { 0.0 } else { needed.clamp(0.0, 6.0) };
        Numbers { factor, unit: unit.to_owned(), decimals: (span <= 1e3 || is_whole).then_some(decimals as usize) }
    }

    fn format(&self, cell: &Cell) -> String {
        let value = cell.number() * self.factor;
        match cell {
            Cell::Text(text) => printable(text),
            Cell::Int(value) if self.factor == 1.0 => value.to_string(),
            _ if value.is_nan() => "-".into(),
            _ if value.is_infinite() => value.to_string(),
            _ if value == 0.0 => "0".into(),
            _ if !(1e-6..1e12).contains(&value.abs()) => format!("{value:.3e}"),
            _ => {
                let own = (3.0 - value.abs().log10().floor()).clamp(0.0, 6.0) as usize;
                format!("{value:.*}", self.decimals.unwrap_or(own))
            }
        }
    }
}

/// Replaces every control character, so that the text cannot command a terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(units: &str, cells: Vec<Cell>) -> Shown {
        let mut sheet = Sheet::new("t", "t");
        sheet.columns.push(Heading::new("c", units, ""));
        sheet.rows = cells.into_iter().map(|cell| vec![cell]).collect();
        sheet.shown().remove(0)
    }

    #[test]
    fn a_long_table_keeps_a_hundred_rows_with_the_first_and_the_last() {
        let sheet = |rows: i64| Sheet {
            columns: vec![Heading::new("epoch", "1", "")],
            rows: (0..rows).map(|row| vec![Cell::Int(row)]).collect(),
            ..Sheet::new("epochs", "title").with_note("note")
        };
        assert_eq!(sheet(100).thinned(), sheet(100));
        let long = sheet(10_000).thinned();
        assert_eq!(
            (long.rows.len(), &long.rows[0], &long.rows[99]),
            (100, &vec![Cell::Int(0)], &vec![Cell::Int(9999)])
        );
        assert_eq!(long.note, "note; 100 of 10000 rows; all: hpml report FILE --table epochs");
        assert!(sheet(101).thinned().rows.iter().all(|row| row.len() == 1));
    }

    #[test]
    fn numbers_take_the_unit_that_fits_their_column() {
        let shown = column("s", vec![Cell::Float(0.0412), Cell::Single(0.0005), Cell::Float(f64::NAN), Cell::Empty]);
        assert_eq!(
            (shown.unit.as_str(), shown.cells.as_slice()),
            ("ms", &["41.20", "0.50", "-", "-"].map(str::to_owned)[..])
        );
        let shown = column("s", vec![Cell::Float(5e-6), Cell::Float(0.5)]);
        assert_eq!((shown.unit.as_str(), shown.cells.as_slice()), ("us", &["5.000", "500000"].map(str::to_owned)[..]));
        let shown = column("B", vec![Cell::Int(44_695_848)]);
        assert_eq!((shown.unit.as_str(), shown.cells[0].as_str()), ("MB", "44.70"));
        assert_eq!(column("B", vec![Cell::Int(8), Cell::Int(1 << 28)]).cells, ["8", "268435456"]);
        assert_eq!(column("percent", vec![Cell::Float(63.85), Cell::Float(5.0)]).cells, ["63.85", "5.00"]);
        assert_eq!(
            column("1", vec![Cell::Float(f64::INFINITY), Cell::Float(f64::NEG_INFINITY)]).cells,
            ["inf", "-inf"]
        );
        assert_eq!(column("1", vec![Cell::Float(f64::NAN); 2]).cells, ["-", "-"]);
    }

    #[test]
    fn every_dash_has_a_reason() {
        let mut sheet = Sheet::new("t", "t");
        let headings =
            [("model", "network"), ("busbw", "GB/s; NaN: one rank"), ("share", "1; NaN: one rank"), ("x", "x")];
        sheet.columns = headings.map(|(name, meaning)| Heading::new(name, "1", meaning)).to_vec();
        let nan = || Cell::Float(f64::NAN);
        sheet.rows = vec![
            vec!["net".into(), Cell::Float(1.0), Cell::Float(1.0), Cell::Empty],
            vec!["net".into(), nan(), nan(), Cell::Float(2.0)],
        ];
        assert_eq!(sheet.dashes(), ["- in busbw, share: one rank", "- in x: not there"]);
        sheet.rows.pop();
        assert_eq!(sheet.dashes(), ["- in x: not there"]);
    }

    #[test]
    fn text_where_numbers_are_expected_is_shown_and_cannot_command_the_terminal() {
        let shown = column("s", vec![Cell::from("\x1b[31mred"), Cell::Float(2.0)]);
        assert_eq!(shown.cells, ["\u{fffd}[31mred", "2.000"]);
        assert!(shown.is_text);
    }
}
