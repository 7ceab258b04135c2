//! Numbers, texts and columns, formatted for a terminal.

use crate::store::Values;

/// Largest number of characters of a text that are shown.
const MOST_CHARACTERS: usize = 200;

/// Replaces control characters, since a file may contain any text.
pub(super) fn whole(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect()
}

/// Replaces control characters and truncates the text, since a file may contain any text.
pub(super) fn printable(text: &str) -> String {
    let end = text.char_indices().nth(MOST_CHARACTERS).map_or(text.len(), |(end, _)| end);
    let mut shown = whole(&text[..end]);
    if end < text.len() {
        shown.push_str(" ...");
    }
    shown
}

/// Formats a number with six significant digits, whole numbers without decimals.
pub(super) fn number(value: f64) -> String {
    let magnitude = value.abs();
    if value.fract() == 0.0 && magnitude < 1e15 {
        format!("{value:.0}")
    } else if (1e-4..1e7).contains(&magnitude) {
        let decimals = (5.0 - magnitude.log10().floor()).clamp(0.0, 10.0) as usize;
        let text = format!("{value:.decimals$}");
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
    } else if value.is_finite() {
        format!("{value:.4e}")
    } else {
        value.to_string()
    }
}

/// Formats the value at `index`; empty beyond the last.
pub(super) fn shown(values: &Values, index: usize) -> String {
    let text = match values {
        Values::F64(values) => values.get(index).map(|value| number(*value)),
        Values::F32(values) => values.get(index).map(|value| number(f64::from(*value))),
        Values::I64(values) => values.get(index).map(i64::to_string),
        Values::Text(texts) => texts.get(index).map(|text| printable(text)),
    };
    text.unwrap_or_default()
}

/// Formats first, last, least, mean and largest value; the last three are empty for text.
pub(super) fn summary(values: &Values) -> [String; 5] {
    let ends = [shown(values, 0), shown(values, values.len().saturating_sub(1))];
    let [first, last] = ends;
    match values.numbers() {
        Some(numbers) if !numbers.is_empty() => {
            let least = numbers.iter().copied().fold(f64::INFINITY, f64::min);
            let most = numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
            [first, last, number(least), number(mean), number(most)]
        }
        _ => [first, last, String::new(), String::new(), String::new()],
    }
}

/// Formats columns as lines, with texts aligned left and numbers right.
pub(super) fn columns(indent: &str, columns: Vec<Vec<String>>) -> String {
    let rows = columns.iter().map(Vec::len).max().unwrap_or(0);
    let numeric = |column: &[String]| column.last().is_some_and(|cell| cell.parse::<f64>().is_ok());
    let mut out = String::new();
    for row in 0..rows {
        let mut line = indent.to_owned();
        for column in &columns {
            let width = column.iter().map(|cell| cell.chars().count()).max().unwrap_or(0);
            let cell = column.get(row).map_or("", String::as_str);
            let cell = if numeric(column) { format!("{cell:>width$}  ") } else { format!("{cell:<width$}  ") };
            line.push_str(&cell);
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_six_digits() {
        for (value, text) in [
            (0.0, "0"),
            (12.0, "12"),
            (2.345_678_1, "2.34568"),
            (0.000_123_456_7, "0.000123457"),
            (56.81, "56.81"),
            (1.5e-9, "1.5000e-9"),
            (1234567.5, "1234568"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn a_terminal_obeys_nothing_of_a_file() {
        assert_eq!(printable("a\u{1b}[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
        assert!(printable(&"x".repeat(10_000)).len() < 300);
    }
}
