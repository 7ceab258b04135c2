//! Tables as JSON: typed cells with all digits, units and meanings of the run file; `null` where a figure does not exist.

use serde_json::{Value, json};

use crate::report::section::Section;
use crate::table::{Cell, Sheet};

/// Formats all tables as one document: `hpml` (version), `files`, `tables`.
pub fn report(files: &[&str], sections: &[Section]) -> String {
    let of_section = |section: &Section| -> Vec<Value> {
        let with_section = |sheet: &Sheet| {
            let mut value = table(sheet);
            value["section"] = json!(section.title);
            value
        };
        section.sheets.iter().map(with_section).collect()
    };
    document(files, sections.iter().flat_map(of_section).collect())
}

/// Formats one table as a document of the form of [`report`].
pub fn single(files: &[&str], sheet: &Sheet) -> String {
    document(files, vec![table(sheet)])
}

/// One table: `name`, `title`, `note`, `keys` (leading columns that identify a row), `columns` (`name`, `units`, `long_name`,
/// `type`), `rows`.
pub fn table(sheet: &Sheet) -> Value {
    let column = |(index, heading): (usize, &crate::table::Heading)| {
        let kinds = sheet.rows.iter().filter_map(|row| row.get(index)).map(kind);
        // Whole numbers beside fractions are floats; a text makes the column text.
        let kind = kinds.max().unwrap_or(Kind::Empty);
        json!({
            "name": heading.name, "units": heading.units, "long_name": heading.long_name, "type": kind.as_str(),
        })
    };
    json!({
        "name": sheet.name,
        "title": sheet.title,
        "note": sheet.note,
        "keys": sheet.keys,
        "columns": sheet.columns.iter().enumerate().map(column).collect::<Vec<_>>(),
        "rows": sheet.rows.iter().map(|row| row.iter().map(value).collect()).collect::<Vec<Vec<Value>>>(),
    })
}

fn document(files: &[&str], tables: Vec<Value>) -> String {
    json!({ "hpml": env!("CARGO_PKG_VERSION"), "files": files, "tables": tables }).to_string() + "\n"
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Empty,
    Int,
    Float,
    Text,
}

impl Kind {
    fn as_str(&self) -> &'static str {
        match self {
            Kind::Empty => "null",
            Kind::Int => "int",
            Kind::Float => "float",
            Kind::Text => "text",
        }
    }
}

fn kind(cell: &Cell) -> Kind {
    match cell {
        Cell::Empty => Kind::Empty,
        Cell::Int(_) => Kind::Int,
        Cell::Float(_) | Cell::Single(_) => Kind::Float,
        Cell::Text(_) => Kind::Text,
    }
}

fn value(cell: &Cell) -> Value {
    match cell {
        Cell::Empty => Value::Null,
        Cell::Text(text) => json!(text),
        Cell::Int(value) => json!(value),
        Cell::Float(value) => json!(value), // null for NaN and infinity, which JSON does not have
        Cell::Single(value) => json!(value.to_string().parse::<f64>().unwrap_or(f64::NAN)), // its own shortest digits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Heading;

    #[test]
    fn cells_keep_their_types_and_every_digit() {
        let sheet = Sheet {
            columns: ["case", "f64", "f32", "n", "none"].map(|name| Heading::new(name, "s", "what")).to_vec(),
            rows: vec![
                vec!["a\"</a>".into(), Cell::Float(0.1 + 0.2), Cell::Single(0.1), Cell::Int(1 << 60), Cell::Empty],
                vec![Cell::Empty, Cell::Float(f64::NAN), Cell::Float(f64::INFINITY), Cell::Int(-3), Cell::Empty],
            ],
            ..Sheet::new("t", "A table")
        };
        let read: Value = serde_json::from_str(&single(&["run"], &sheet)).unwrap();
        let table = &read["tables"][0];
        assert_eq!(table["rows"][0], json!(["a\"</a>", 0.30000000000000004, 0.1, 1152921504606846976_i64, null]));
        assert_eq!(table["rows"][1], json!([null, null, null, -3, null]));
        let types: Vec<&str> = (0..5).map(|column| table["columns"][column]["type"].as_str().unwrap()).collect();
        assert_eq!(types, ["text", "float", "float", "int", "null"]);
        assert_eq!((&table["columns"][1]["units"], &read["files"][0]), (&json!("s"), &json!("run")));
    }
}
