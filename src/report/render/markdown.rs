//! Tables as GitHub Markdown.

use std::fmt::Write;

use crate::report::section::Section;
use crate::table::{Sheet, printable};

/// Formats all tables under the headings of their sections.
pub fn markdown(sections: &[Section]) -> String {
    let mut text = String::new();
    for section in sections.iter().filter(|section| !section.sheets.is_empty()) {
        let _ = writeln!(text, "## {}\n", escaped(&section.title));
        section.sheets.iter().for_each(|sheet| text += &markdown_sheet(sheet));
    }
    text
}

/// Formats one table with its title and notes.
pub fn markdown_sheet(sheet: &Sheet) -> String {
    let columns = sheet.shown();
    let mut text = format!("### {}\n\n", escaped(&sheet.title));
    let line = |value: &dyn Fn(usize) -> String| {
        let cells: Vec<String> = (0..columns.len()).map(value).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    text += &line(&|column| {
        let (name, unit) = (escaped(&columns[column].name), escaped(&columns[column].unit));
        if unit.is_empty() { name } else { format!("{name} ({unit})") }
    });
    text += &line(&|column| if columns[column].is_text { "---".into() } else { "---:".into() });
    for row in 0..sheet.rows.len() {
        text += &line(&|column| escaped(&columns[column].cells[row]));
    }
    let notes = [sheet.note.clone()].into_iter().filter(|note| !note.is_empty()).chain(sheet.dashes());
    notes.for_each(|note| text += &format!("\n{}\n", escaped(&note)));
    text + "\n"
}

/// Escapes `text` so that nothing in it is markup.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in printable(text).chars() {
        match character {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '~' | '#' | '!' => escaped.extend(['\\', character]),
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Cell, Heading};

    #[test]
    fn no_text_breaks_the_table() {
        let sheet = Sheet {
            columns: vec![Heading::new("file", "1", ""), Heading::new("step", "s", "")],
            rows: vec![vec!["a|b <script>\n`x`".into(), Cell::Float(0.5)]],
            ..Sheet::new("t", "A table")
        };
        let expected =
            "### A table\n\n| file | step (ms) |\n| --- | ---: |\n| a\\|b &lt;script&gt;\u{fffd}\\`x\\` | 500.0 |\n\n";
        assert_eq!(markdown_sheet(&sheet), expected);
    }
}
