//! Aligned columns below `#` lines with their names and units, as training prints them.

use std::fmt::Write;

use crate::report::sheet::{Section, Sheet, Shown, printable};

/// All tables.
pub fn terminal(sections: &[Section]) -> String {
    let sheets = sections.iter().flat_map(|section| &section.sheets);
    sheets.map(terminal_sheet).collect::<Vec<_>>().join("\n")
}

/// One table with its title.
pub fn terminal_sheet(sheet: &Sheet) -> String {
    let columns = sheet.shown();
    let mut text = format!("{}\n", printable(&sheet.title));
    if !sheet.note.is_empty() {
        let _ = writeln!(text, "# {}", printable(&sheet.note));
    }
    let units: Vec<String> = columns.iter().map(unit).collect();
    let widths: Vec<usize> = columns.iter().zip(&units).map(|(column, unit)| width(column, unit)).collect();
    let mut line = |start: &str, value: &dyn Fn(usize) -> String| {
        let mut line = start.to_owned();
        for (index, (column, width)) in columns.iter().zip(&widths).enumerate() {
            let value = value(index);
            let pad = " ".repeat(width.saturating_sub(value.chars().count()));
            line += &if column.is_text { format!(" {value}{pad} ") } else { format!(" {pad}{value} ") };
        }
        let _ = writeln!(text, "{}", line.trim_end());
    };
    line("#", &|column| columns[column].name.clone());
    if units.iter().any(|unit| !unit.is_empty()) {
        line("#", &|column| units[column].clone());
    }
    for row in 0..sheet.rows.len() {
        line(" ", &|column| columns[column].cells[row].clone());
    }
    sheet.dashes().iter().for_each(|reason| text += &format!("# {reason}\n"));
    text
}

fn unit(column: &Shown) -> String {
    if column.unit.is_empty() { String::new() } else { format!("({})", column.unit) }
}

fn width(column: &Shown, unit: &str) -> usize {
    let cells = column.cells.iter().map(|cell| cell.chars().count());
    cells.chain([column.name.chars().count(), unit.chars().count()]).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sheet::{Cell, Heading};

    #[test]
    fn columns_are_aligned_below_their_units() {
        let sheet = Sheet {
            columns: vec![Heading::new("kind", "1", ""), Heading::new("seconds", "s", "; NaN: none sent")],
            rows: vec![vec!["gradients".into(), Cell::Float(0.0412)], vec!["x".into(), Cell::Float(f64::NAN)]],
            ..Sheet::new("t", "messages").with_note("of rank 0")
        };
        let expected = "messages\n# of rank 0\n# kind       seconds\n#               (ms)\n  gradients    41.20\n  x                -\n# - in seconds: none sent\n";
        assert_eq!(terminal_sheet(&sheet), expected);
    }
}
