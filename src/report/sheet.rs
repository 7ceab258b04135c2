//! A table of typed cells with units, and how its numbers are written for a reader.

use super::figure::Figure;
use crate::metrics::Definition;
use crate::metrics::definitions::reason;
use crate::units::fitting_unit;

/// One value of a table.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// Nothing there.
    Empty,
    /// As in the file; may hold anything.
    Text(String),
    /// A whole number.
    Int(i64),
    /// float64; NaN: does not apply.
    Float(f64),
    /// float32, kept apart since its shortest decimal form is another one.
    Single(f32),
}

impl Cell {
    /// As a number; NaN for all else.
    pub fn number(&self) -> f64 {
        match self {
            Cell::Int(value) => *value as f64,
            Cell::Float(value) => *value,
            Cell::Single(value) => f64::from(*value),
            Cell::Empty | Cell::Text(_) => f64::NAN,
        }
    }

    /// With all its digits: reading it back gives the same value.
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

/// What stands above a column.
#[derive(Debug, Clone, PartialEq)]
pub struct Heading {
    /// The run file's name of it.
    pub name: String,
    /// As in the run file: `s`, `B`, `1`.
    pub units: String,
    /// What it is.
    pub long_name: String,
}

impl Heading {
    /// Name, units and meaning.
    pub fn new(name: &str, units: &str, long_name: &str) -> Heading {
        Heading { name: name.to_owned(), units: units.to_owned(), long_name: long_name.to_owned() }
    }

    /// The heading of a figure.
    pub fn of(definition: &Definition) -> Heading {
        Heading::new(definition.name, definition.units, &definition.long_name())
    }
}

/// A table.
#[derive(Debug, Clone, PartialEq)]
pub struct Sheet {
    /// Equal for the same table of several files.
    pub name: String,
    /// For readers.
    pub title: String,
    /// What a reader must know beside it; may be empty.
    pub note: String,
    /// As many as each row has cells.
    pub columns: Vec<Heading>,
    /// Top down.
    pub rows: Vec<Vec<Cell>>,
}

/// What belongs together: tables and plots of one kind of measurement.
#[derive(Debug, Clone)]
pub struct Section {
    /// For readers.
    pub title: String,
    /// Tables.
    pub sheets: Vec<Sheet>,
    /// Plots.
    pub figures: Vec<Figure>,
}

impl Section {
    /// Without those that show nothing.
    pub fn new(title: &str, sheets: Vec<Sheet>, figures: Vec<Figure>) -> Section {
        let sheets = sheets.into_iter().filter(|sheet| !sheet.rows.is_empty() && !sheet.columns.is_empty()).collect();
        let figures = figures.into_iter().filter(|figure| !figure.is_empty()).collect();
        Section { title: title.to_owned(), sheets, figures }
    }
}

/// A column as it is shown.
pub struct Shown {
    /// Its name.
    pub name: String,
    /// Of the numbers below; may be empty.
    pub unit: String,
    /// What it is.
    pub long_name: String,
    /// Numbers stand on the right.
    pub is_text: bool,
    /// A text a row; `-` where nothing applies.
    pub cells: Vec<String>,
}

impl Sheet {
    /// An empty one.
    pub fn new(name: &str, title: impl Into<String>) -> Sheet {
        let (note, columns, rows) = (String::new(), Vec::new(), Vec::new());
        Sheet { name: name.to_owned(), title: title.into(), note, columns, rows }
    }

    /// The same with a note.
    pub fn with_note(mut self, note: impl Into<String>) -> Sheet {
        self.note = note.into();
        self
    }

    /// Adds a column on the right, `value` being called for each row.
    pub fn push(&mut self, heading: Heading, value: impl Fn(usize) -> Cell) {
        self.columns.push(heading);
        self.rows.iter_mut().enumerate().for_each(|(row, cells)| cells.push(value(row)));
    }

    /// All columns, in units that fit their values.
    pub fn shown(&self) -> Vec<Shown> {
        self.columns.iter().enumerate().map(|(column, heading)| self.shown_column(column, heading)).collect()
    }

    /// Why there are dashes, a line a reason: `- in busbw, busbw_share: one rank`. None where there are none.
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

    fn shown_column(&self, column: usize, heading: &Heading) -> Shown {
        let cells: Vec<&Cell> = self.rows.iter().map(|row| row.get(column).unwrap_or(&Cell::Empty)).collect();
        let numbers = Numbers::new(&heading.units, &cells);
        Shown {
            name: printable(&heading.name),
            unit: printable(&numbers.unit),
            long_name: printable(&heading.long_name),
            is_text: cells.iter().any(|cell| matches!(cell, Cell::Text(_))),
            cells: cells.into_iter().map(|cell| numbers.format(cell)).collect(),
        }
    }
}

/// How the numbers of one column are written.
struct Numbers {
    factor: f64,
    unit: String,
    /// `None`: each number has its own.
    decimals: Option<usize>,
}

impl Numbers {
    fn new(units: &str, cells: &[&Cell]) -> Numbers {
        let magnitudes = || cells.iter().map(|cell| cell.number().abs()).filter(|m| m.is_finite() && *m > 0.0);
        let (least, most) = (magnitudes().fold(f64::INFINITY, f64::min), magnitudes().fold(0.0, f64::max));
        let span = most / least;
        let integers = cells.iter().all(|cell| !matches!(cell, Cell::Float(_) | Cell::Single(_)));
        if integers && (units != "B" || span > 1e3) {
            return Numbers { factor: 1.0, unit: fitting_unit(units, 0.0).1.to_owned(), decimals: Some(0) };
        }
        // From 5 us to 0.5 s all is readable in us, but not in s.
        let (factor, unit) = fitting_unit(units, if span > 1e3 { least * 1e2 } else { most });
        // Four digits of the greatest, two of the least.
        let own = |value: f64, digits: f64| digits - 1.0 - (value * factor).log10().floor();
        let digits = if unit == "%" { 2.0 } else { own(most, 4.0).max(own(least, 2.0)) };
        let decimals = if most == 0.0 { 0.0 } else { digits.clamp(0.0, 6.0) };
        Numbers { factor, unit: unit.to_owned(), decimals: (span <= 1e3).then_some(decimals as usize) }
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

/// Without anything that a terminal would obey.
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
