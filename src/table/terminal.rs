//! Sheets as aligned columns under `#` lines with names and units. A table that is too wide continues below, with its key
//! columns repeated in front.

use std::fmt::Write;
use std::io::IsTerminal;
use std::ops::Range;

use textwrap::{Options, WordSplitter};

use super::{Sheet, Shown, printable};

/// Width in characters if stdout is not a terminal.
const WIDTH: usize = 80;

/// Width of the terminal on stdout in characters; 80 if stdout is not a terminal.
pub fn terminal_width() -> usize {
    let terminal = std::io::stdout().is_terminal().then(terminal_size::terminal_size).flatten();
    terminal.map_or(WIDTH, |(width, _)| usize::from(width.0).max(WIDTH))
}

/// Formats a table with its title, at most `width` characters wide unless its keys and one column are wider. A column of texts
/// or whole numbers with one value in all rows becomes a line above the table.
pub fn terminal(sheet: &Sheet, width: usize) -> String {
    let mut columns = sheet.shown();
    let mut keys = sheet.keys.min(columns.len());
    let mut text = format!("{}\n", printable(&sheet.title));
    write_note(&mut text, &sheet.note, width);
    let (same, varying): (Vec<_>, Vec<_>) =
        columns.into_iter().enumerate().partition(|(_, column)| is_constant(column));
    keys = varying.iter().filter(|(place, _)| *place < keys).count();
    columns = varying.into_iter().map(|(_, column)| column).collect();
    let value = |(_, column): &(usize, Shown)| format!("{} {} {}", column.name, column.cells[0], column.unit);
    let values: Vec<String> = same.iter().map(value).map(|value| value.trim_end().to_owned()).collect();
    if !values.is_empty() {
        write_note(&mut text, &format!("in all rows: {}", values.join(", ")), width);
    }
    for (block, shown) in blocks(&columns, keys, width).into_iter().enumerate() {
        if block > 0 {
            text.push('\n');
        }
        let shown: Vec<&Shown> = columns[..keys].iter().chain(&columns[shown]).collect();
        write_block(&mut text, &shown, sheet.rows.len());
    }
    sheet.dashes().iter().for_each(|reason| write_note(&mut text, reason, width));
    text
}

/// Whether a column of texts or whole numbers has the same cell in several rows. Measured numbers are never taken for constant:
/// the form of a table does not depend on their digits.
fn is_constant(column: &Shown) -> bool {
    let cells = &column.cells;
    column.is_exact && cells.len() > 1 && cells[0] != "-" && cells.iter().all(|cell| *cell == cells[0])
}

/// Splits the columns after the first `keys` into as few blocks as fit `width` beside the keys.
fn blocks(columns: &[Shown], keys: usize, width: usize) -> Vec<Range<usize>> {
    let room = width.saturating_sub(1 + columns[..keys].iter().map(needed).sum::<usize>());
    let (mut blocks, mut start, mut used) = (Vec::new(), keys, 0);
    for (index, column) in columns.iter().enumerate().skip(keys) {
        if used + needed(column) > room && index > start {
            blocks.push(start..index);
            (start, used) = (index, 0);
        }
        used += needed(column);
    }
    blocks.push(start..columns.len());
    blocks
}

fn write_block(text: &mut String, columns: &[&Shown], rows: usize) {
    let widths: Vec<usize> = columns.iter().map(|column| needed(column) - 2).collect();
    let mut line = |start: &str, value: &dyn Fn(&Shown) -> String| {
        let mut line = start.to_owned();
        for (column, width) in columns.iter().zip(&widths) {
            let value = value(column);
            let pad = " ".repeat(width.saturating_sub(value.chars().count()));
            line += &if column.is_text { format!(" {value}{pad} ") } else { format!(" {pad}{value} ") };
        }
        let _ = writeln!(text, "{}", line.trim_end());
    };
    line("#", &|column| column.name.clone());
    if columns.iter().any(|column| !column.unit.is_empty()) {
        line("#", &unit);
    }
    for row in 0..rows {
        line(" ", &|column| column.cells[row].clone());
    }
}

/// Appends a text, unless it is empty, as `#` lines of at most `width` characters.
fn write_note(text: &mut String, note: &str, width: usize) {
    if note.is_empty() {
        return;
    }
    let options = Options::new(width).initial_indent("# ").subsequent_indent("# ").break_words(false);
    for line in textwrap::wrap(&printable(note), options.word_splitter(WordSplitter::NoHyphenation)) {
        let _ = writeln!(text, "{line}");
    }
}

fn unit(column: &Shown) -> String {
    if column.unit.is_empty() { String::new() } else { format!("({})", column.unit) }
}

/// Width of a column in characters, with a space on each side.
fn needed(column: &Shown) -> usize {
    let cells = column.cells.iter().map(|cell| cell.chars().count());
    2 + cells.chain([column.name.chars().count(), unit(column).chars().count()]).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Cell, Heading};

    #[test]
    fn columns_are_aligned_below_their_units() {
        let sheet = Sheet {
            columns: vec![Heading::new("kind", "1", ""), Heading::new("seconds", "s", "; NaN: none sent")],
            rows: vec![vec!["gradients".into(), Cell::Float(0.0412)], vec!["x".into(), Cell::Float(f64::NAN)]],
            ..Sheet::new("t", "messages").with_note("of rank 0")
        };
        let expected = "messages\n# of rank 0\n# kind       seconds\n#               (ms)\n  gradients    41.20\n  x                -\n# - in seconds: none sent\n";
        assert_eq!(terminal(&sheet, 80), expected);
    }

    #[test]
    fn a_wide_table_goes_on_below_with_its_keys_in_front() {
        let columns = ["case", "forward", "backward", "step"].map(|name| Heading::new(name, "1", "")).to_vec();
        let row = vec!["a".into(), Cell::Int(1), Cell::Int(2), Cell::Int(3)];
        let sheet = Sheet { columns, rows: vec![row], ..Sheet::new("t", "title").with_note("one two three four five") };
        let expected = "title\n# one two three four\n# five\n# case  forward\n  a           1\n\n# case  backward\n  a            2\n\n\
                        # case  step\n  a        3\n";
        assert_eq!(terminal(&sheet, 20), expected);
        assert!(terminal(&sheet, 80).lines().count() == 4);

        let rows = [1, 2].map(|n| vec!["b".into(), Cell::Int(7), Cell::Int(n), Cell::Int(n)]);
        let sheet = Sheet { rows: rows.to_vec(), note: String::new(), ..sheet }.with_keys(2);
        let expected =
            "title\n# in all rows: case b,\n# forward 7\n# backward  step\n         1     1\n         2     2\n";
        assert_eq!(terminal(&sheet, 22), expected);
    }
}
