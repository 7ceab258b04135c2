//! One self-contained HTML page with all tables and plots: no script, no font, no other file.

use std::fmt::Write;

use super::{csv, json};
use crate::metrics::definitions::EXPLAINED;
use crate::report::figure::Figure;
use crate::report::plot::{self, Layout};
use crate::report::section::Section;
use crate::table::{Sheet, printable};
use crate::units::counted;

const STYLE: &str = include_str!("page.css");

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

/// Builds the page; `files` are the names of the run files, `verdict` what they show in sentences, `raw` their tables as stored.
///
/// # Errors
/// A plot cannot be drawn.
pub fn html(files: &[&str], verdict: &[String], sections: &[Section], raw: &[Sheet]) -> Result<String, String> {
    let names = escaped(&files.join(", "));
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>hpml report: {names}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <h1>hpml report</h1>\n<p>Run files: <strong>{names}</strong></p>\n"
    );
    page += "<section class=\"verdict\" aria-label=\"In short\"><h2 id=\"short\">In short</h2>\n<ul>\n";
    verdict.iter().for_each(|sentence| page += &format!("<li>{}</li>\n", escaped(sentence)));
    page += "</ul></section>\n<nav aria-label=\"Sections\">";
    for (index, section) in sections.iter().enumerate() {
        let _ = write!(page, "<a href=\"#s{index}\">{}</a> ", escaped(&section.title));
    }
    page += "<a href=\"#data\">Data</a> <a href=\"#how\">How each figure was measured</a></nav>\n<main>\n";
    for (index, section) in sections.iter().enumerate() {
        let _ = writeln!(page, "<h2 id=\"s{index}\">{}</h2>", escaped(&section.title));
        for figure in &section.figures {
            page += &plots(figure)?;
        }
        section.sheets.iter().for_each(|sheet| page += &table(sheet));
    }
    page += &data(files, sections, raw);
    page += "<h2 id=\"how\">How each figure was measured</h2>\n<dl>\n";
    let explain = |term: &str, meaning: &str| format!("<dt>{}</dt><dd>{}</dd>\n", escaped(term), escaped(meaning));
    HOW.iter().for_each(|(term, meaning)| page += &explain(term, meaning));
    for figure in EXPLAINED {
        let absent = if figure.absent.is_empty() { String::new() } else { format!(". A dash: {}", figure.absent) };
        page += &explain(figure.name, &format!("{}{absent}", figure.text));
    }
    let _ = write!(
        page,
        "</dl>\n</main>\n<footer>Made by hpml {} from run files alone. The meaning of a column is shown when \
         the pointer rests on its name, and stands in the run file as its long_name.</footer>\n</body>\n</html>\n",
        env!("CARGO_PKG_VERSION")
    );
    Ok(page)
}

/// Number of characters above which a text may be broken into lines.
const LONG: usize = 48;

fn table(sheet: &Sheet) -> String {
    let columns = sheet.shown();
    let title = escaped(&sheet.title);
    let mut html = format!("{}<table>\n<caption><span>{title}</span></caption>\n<thead><tr>", region(&title));
    for column in &columns {
        let class = if column.is_text { " class=\"text\"" } else { "" };
        let unit =
            if column.unit.is_empty() { String::new() } else { format!("<small>{}</small>", escaped(&column.unit)) };
        let (meaning, name) = (escaped(&column.long_name), escaped(&column.name));
        let _ = write!(html, "<th scope=\"col\"{class} title=\"{meaning}\">{name}{unit}</th>");
    }
    html += "</tr></thead>\n<tbody>\n";
    for row in 0..sheet.rows.len() {
        html += "<tr>";
        for (index, column) in columns.iter().enumerate() {
            let cell = &column.cells[row];
            let class = match (column.is_text, cell.len() > LONG) {
                (true, true) => " class=\"text long\"",
                (true, false) => " class=\"text\"",
                _ => "",
            };
            // The columns that identify a row are its headers.
            let (tag, scope) = if index < sheet.keys { ("th", " scope=\"row\"") } else { ("td", "") };
            let _ = write!(html, "<{tag}{scope}{class}>{}</{tag}>", escaped(cell));
        }
        html += "</tr>\n";
    }
    html += "</tbody>\n</table></div>\n";
    if !sheet.note.is_empty() {
        let _ = writeln!(html, "<p class=\"note\">{}</p>", escaped(&sheet.note));
    }
    for reason in sheet.dashes() {
        let _ = writeln!(html, "<p class=\"note\">{}</p>", escaped(&reason));
    }
    let _ = writeln!(html, "<p class=\"note\">With all digits, in the units of the run file: {}</p>", downloads(sheet));
    html
}

/// A figure with its plot in both layouts, of which the style shows the one that fits the window.
fn plots(figure: &Figure) -> Result<String, String> {
    let (title, note) = (escaped(&figure.title), escaped(&figure.note));
    let (figure, words) = figure.without_dots();
    let words: String = words.iter().map(|text| format!("<p>{}</p>\n", escaped(text))).collect();
    let Some(figure) = figure else {
        return Ok(format!("<p><strong>{title}</strong></p>\n{words}<p class=\"note\">{note}</p>\n"));
    };
    let mut html = format!("{words}<figure>\n<figcaption><strong>{title}</strong>{note}</figcaption>\n");
    for (layout, class) in [(Layout::Wide, "wide"), (Layout::Narrow, "narrow")] {
        let svg = plot::inline_svg(&figure, layout)?;
        let tag = format!("<svg class=\"{class}\" role=\"img\" aria-label=\"{title}\" ");
        html += &svg.replacen("<svg ", &tag, 1);
    }
    Ok(html + "</figure>\n")
}

/// The section with the stored tables to save.
fn data(files: &[&str], sections: &[Section], raw: &[Sheet]) -> String {
    let mut html = "<h2 id=\"data\">Data</h2>\n<p class=\"note\">The tables of the run files as stored, held in this page. They are \
                    also printed by hpml report --csv or --json with --table NAME.</p>\n<ul>\n"
        .to_owned();
    let all = download("hpml-report.json", "application/json", "JSON", &json::report(files, sections));
    let _ =
        writeln!(html, "<li>all tables of this page: {}</li>", all.unwrap_or_else(|| too_large("hpml report --json")));
    for sheet in raw {
        let (name, rows) = (escaped(&sheet.name), sheet.rows.len());
        let _ = writeln!(html, "<li>/{name}, {}: {}</li>", counted(rows, "row"), downloads(sheet));
    }
    html + "</ul>\n"
}

/// Links that save a table as CSV and JSON.
fn downloads(sheet: &Sheet) -> String {
    // Not even made where it is certain not to fit: a number and its comma take two bytes.
    let cells = sheet.rows.len() * sheet.columns.len();
    let link = |ending: &str, kind: &str, text: &str, content: &dyn Fn() -> String| {
        let made = (2 * cells < MOST_BYTES).then(content);
        made.and_then(|content| download(&format!("{}.{ending}", sheet.name.replace('/', "-")), kind, text, &content))
    };
    let as_csv = link("csv", "text/csv", "CSV", &|| csv(sheet));
    let as_json = link("json", "application/json", "JSON", &|| json::table(sheet).to_string());
    let links: Vec<String> = as_csv.into_iter().chain(as_json).collect();
    if links.is_empty() { too_large(&format!("hpml report --csv --table {}", sheet.name)) } else { links.join(" ") }
}

fn too_large(command: &str) -> String {
    format!("too large for this page, use {}", escaped(command))
}

/// The opening tag of a part that scrolls sideways where it is wider than the page, by the keyboard too.
fn region(label: &str) -> String {
    format!("<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{label}\">")
}

/// Greatest size of a link: browsers save no greater ones.
const MOST_BYTES: usize = 2_000_000;

/// A link that saves `content`, which it holds, as the file `name`; `None` if it is too large for a link.
fn download(name: &str, kind: &str, text: &str, content: &str) -> Option<String> {
    let mut data = String::with_capacity(content.len() * 2);
    for byte in content.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b',' | b'.' | b'-' | b'_' | b':' | b'[' | b']' => {
                data.push(byte.into())
            }
            _ => {
                let _ = write!(data, "%{byte:02X}");
            }
        }
    }
    let (name, text) = (escaped(name), escaped(text));
    let link = format!("<a download=\"{name}\" href=\"data:{kind};charset=utf-8,{data}\">{text}</a>");
    (data.len() < MOST_BYTES).then_some(link)
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
        let raw = [sheet.clone()];
        let page = html(&[name], &[name.to_owned()], &[Section::new(name, vec![sheet], Vec::new())], &raw).unwrap();
        assert!(!page.contains("<script") && page.matches("&lt;script&gt;").count() >= 8);
    }
}
