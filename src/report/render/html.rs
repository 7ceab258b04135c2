//! One self-contained HTML page with all tables and plots: no script, no font, no other file.

use std::fmt::Write;

use crate::metrics::definitions::EXPLAINED;
use crate::report::plot;
use crate::report::section::Section;
use crate::table::{Sheet, printable};

const STYLE: &str = "
body { margin: 0 auto; padding: 1.5rem; max-width: 72rem; color: #222; background: #fff;
       font: 16px/1.5 system-ui, 'Segoe UI', 'Liberation Sans', 'DejaVu Sans', sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .8rem; padding-bottom: .2rem; border-bottom: 2px solid #0072b2; }
h3 { font-size: 1rem; margin: 1.6rem 0 .3rem; }
p { margin: .3rem 0; }
p.note, figcaption { color: #555; font-size: .88rem; }
nav a { margin-right: 1rem; color: #0072b2; }
div.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; margin: .4rem 0; }
th, td { padding: .18rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e2e2e2; }
th { border-bottom: 2px solid #999; vertical-align: bottom; font-weight: 600; }
th small { display: block; font-weight: normal; color: #555; }
th.text, td.text { text-align: left; }
td.long { white-space: normal; overflow-wrap: anywhere; }
tbody tr:nth-child(even) { background: #f6f8fa; }
figure { margin: 1.2rem 0; }
figure svg { max-width: 100%; height: auto; display: block; }
dt { font-weight: 600; margin-top: .6rem; }
dd { margin: 0 0 0 1.2rem; }
footer { margin-top: 3rem; color: #777; font-size: .85rem; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  h2, h3, p.note { break-after: avoid; }
  figure, tr { break-inside: avoid; }
  div.table { overflow: visible; }
  th, td { white-space: normal; padding: .1rem .35rem; }
}
";

/// Explanations that belong to no single column, as (term, text).
const HOW: [(&str, &str); 4] = [
    (
        "Where communication is timed",
        "Communication is timed at the collective itself, never as the difference of two runs: each rank takes the time when an \
         all-reduce starts and when it ends.",
    ),
    (
        "profile and overlap",
        "In profile timing nothing overlaps, a barrier stands before each collective and the device is synchronized at each \
         border, so that data, forward, backward, comm_wait, comm and optimizer add up to the step. In overlap timing buckets \
         of gradients are reduced while the backward pass still computes, as in real training; parts that run side by side \
         do not add up, and only comm_exposed makes a step longer.",
    ),
    (
        "Warm-up",
        "The first metrics.warmup_steps steps of a job, a resumed one included, are left out of all statistics; if no others \
         were measured they are counted, and the table says so. Steps on different numbers of ranks are never pooled.",
    ),
    (
        "Quantization",
        "Accuracy over the whole test set after each step towards int8; the last row is computed in true integers. The marks \
         in the histograms are the mean and mean ± 3 standard deviations, cut at the extremes.",
    ),
];

/// Builds the page; `files` are the names of the run files.
///
/// # Errors
/// A plot cannot be drawn.
pub fn html(files: &[&str], sections: &[Section]) -> Result<String, String> {
    let names = escaped(&files.join(", "));
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>hpml report: {names}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <h1>hpml report</h1>\n<p>Run files: <strong>{names}</strong></p>\n<nav>"
    );
    for (index, section) in sections.iter().enumerate() {
        let _ = write!(page, "<a href=\"#s{index}\">{}</a> ", escaped(&section.title));
    }
    page += "<a href=\"#how\">How each figure was measured</a></nav>\n";
    for (index, section) in sections.iter().enumerate() {
        let _ = writeln!(page, "<h2 id=\"s{index}\">{}</h2>", escaped(&section.title));
        for figure in &section.figures {
            let (svg, note) = (plot::svg(figure)?, escaped(&figure.note));
            let label = escaped(&figure.title);
            let svg = svg.replacen("<svg ", &format!("<svg role=\"img\" aria-label=\"{label}\" "), 1);
            let _ = writeln!(page, "<figure>\n{svg}<figcaption>{note}</figcaption>\n</figure>");
        }
        section.sheets.iter().for_each(|sheet| page += &table(sheet));
    }
    page += "<h2 id=\"how\">How each figure was measured</h2>\n<dl>\n";
    let explain = |term: &str, meaning: &str| format!("<dt>{}</dt><dd>{}</dd>\n", escaped(term), escaped(meaning));
    HOW.iter().for_each(|(term, meaning)| page += &explain(term, meaning));
    for figure in EXPLAINED {
        let absent = if figure.absent.is_empty() { String::new() } else { format!(". A dash: {}", figure.absent) };
        page += &explain(figure.name, &format!("{}{absent}", figure.text));
    }
    let _ = write!(
        page,
        "</dl>\n<footer>Made by hpml {} from run files alone. The meaning of a column is shown when \
         the pointer rests on its name, and stands in the run file as its long_name.</footer>\n</body>\n</html>\n",
        env!("CARGO_PKG_VERSION")
    );
    Ok(page)
}

/// Number of characters above which a text may be broken into lines.
const LONG: usize = 48;

fn table(sheet: &Sheet) -> String {
    let columns = sheet.shown();
    let mut html = format!("<h3>{}</h3>\n", escaped(&sheet.title));
    if !sheet.note.is_empty() {
        let _ = writeln!(html, "<p class=\"note\">{}</p>", escaped(&sheet.note));
    }
    html += "<div class=\"table\"><table>\n<thead><tr>";
    for column in &columns {
        let class = if column.is_text { " class=\"text\"" } else { "" };
        let unit =
            if column.unit.is_empty() { String::new() } else { format!("<small>{}</small>", escaped(&column.unit)) };
        let _ =
            write!(html, "<th{class} title=\"{}\">{}{unit}</th>", escaped(&column.long_name), escaped(&column.name));
    }
    html += "</tr></thead>\n<tbody>\n";
    for row in 0..sheet.rows.len() {
        html += "<tr>";
        for column in &columns {
            let cell = &column.cells[row];
            let class = match (column.is_text, cell.len() > LONG) {
                (true, true) => " class=\"text long\"",
                (true, false) => " class=\"text\"",
                _ => "",
            };
            let _ = write!(html, "<td{class}>{}</td>", escaped(cell));
        }
        html += "</tr>\n";
    }
    html += "</tbody>\n</table></div>\n";
    for reason in sheet.dashes() {
        let _ = writeln!(html, "<p class=\"note\">{}</p>", escaped(&reason));
    }
    html
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in printable(text).chars() {
        match character {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Heading;

    #[test]
    fn names_are_text_and_never_markup() {
        let name = "</title><script>alert('1')</script>";
        let sheet = Sheet {
            columns: vec![Heading::new(name, name, name)],
            rows: vec![vec![name.into()]],
            ..Sheet::new("t", name).with_note(name)
        };
        let page = html(&[name], &[Section::new(name, vec![sheet], Vec::new())]).unwrap();
        assert!(!page.contains("<script") && page.matches("&lt;script&gt;").count() >= 8);
    }
}
