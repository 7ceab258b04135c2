//! Section of `/allreduce`: bandwidth and time of collectives by size.

use std::collections::BTreeSet;

use super::cases::ranks_label;
use crate::error::Result;
use crate::metrics::definitions::{BUSBW, REDUCE_TIME};
use crate::report::figure::{Axis, Figure, Lines, Panel, Scale, Series, Style};
use crate::report::section::Section;
use crate::report::source::Source;
use crate::table::{Cell, Frame, Heading};

/// Builds the table and the curves of bandwidth and time.
pub fn section(source: &Source) -> Result<Option<Section>> {
    let Some(frame) = source.frame("allreduce")? else { return Ok(None) };
    let rows = frame.rows();
    let counts: BTreeSet<i64> = rows.iter().map(|row| ranks(&frame, *row)).collect();
    let collectives: BTreeSet<&str> = rows.iter().map(|row| collective(&frame, *row)).collect();
    let what = if collectives.len() > 1 { "Collectives" } else { title_of(collectives.first().copied()) };
    let mut columns = vec![
        "collective",
        "size",
        "type",
        "algorithm",
        "place",
        "time",
        "algbw",
        "busbw",
        "wrong",
        "p50",
        "p99",
        "min",
        "skew",
        "count",
        "iterations",
    ];
    if rows.iter().any(|row| frame.number("between", *row).is_finite()) {
        columns.splice(8..8, ["within", "within_algbw", "between", "between_busbw"]); // after busbw
    }
    if rows.iter().any(|row| frame.number("between_racks", *row).is_finite()) {
        columns.insert(12, "between_racks"); // after between_busbw
    }
    let mut sheet = frame.sheet("allreduce", format!("{what} by size"), &columns, &rows);
    sheet.keys = if frame.column("collective").is_some() { 5 } else { 4 };
    sheet.note =
        format!("{}: {}; algbw and busbw are computed from time, as in nccl-tests", REDUCE_TIME.name, REDUCE_TIME.text);
    match (counts.len(), counts.first()) {
        (1, Some(ranks)) => sheet.title = format!("{what} by size on {}", ranks_label(*ranks)),
        _ => {
            sheet.columns.insert(0, Heading::new("ranks", "1", "number of ranks in the collective"));
            sheet.rows.iter_mut().zip(&rows).for_each(|(cells, row)| cells.insert(0, Cell::Int(ranks(&frame, *row))));
            sheet.keys += 1;
        }
    }
    let figures = collectives.iter().map(|name| curves(&frame, name)).collect();
    Ok(Some(Section::new(what, vec![sheet], figures)))
}

/// Number of ranks that a row was measured on; older files have one number for all rows.
fn ranks(frame: &Frame, row: usize) -> i64 {
    frame.integer("ranks", row).unwrap_or(frame.attribute("ranks") as i64)
}

/// Collective of a row; older files hold all-reduces only.
fn collective(frame: &Frame, row: usize) -> &str {
    if frame.column("collective").is_some() { frame.text("collective", row) } else { ALL_REDUCE }
}

const ALL_REDUCE: &str = "all_reduce";

fn title_of(collective: Option<&str>) -> &'static str {
    match collective {
        Some("all_gather") => "All-gather",
        Some("reduce_scatter") => "Reduce-scatter",
        Some("broadcast") => "Broadcast",
        Some("all_to_all") => "All-to-all",
        _ => "All-reduce",
    }
}

fn curves(frame: &Frame, name: &str) -> Figure {
    // In place, but where there is no such thing.
    let place = if name == "all_to_all" { "in_place" } else { "out_of_place" };
    let rows = frame.rows_where(|row| collective(frame, row) == name && frame.text("place", row) != place);
    let kinds = rows.iter().map(|row| frame.text("type", *row)).collect::<BTreeSet<_>>().len();
    let key = |row: usize| {
        let kind = if kinds > 1 { format!(", {}", frame.text("type", row)) } else { String::new() };
        let count = ranks(frame, row);
        (count, format!("{}, {}{kind}", ranks_label(count), frame.text("algorithm", row)))
    };
    let mut keys: Vec<(i64, String)> = Vec::new();
    for key in rows.iter().map(|row| key(*row)) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys.sort_by_key(|(ranks, _)| *ranks);
    let of_key = |(color, (ranks, label)): (usize, &(i64, String)), column: &str| {
        let own: Vec<usize> = rows.iter().copied().filter(|row| key(*row) == (*ranks, label.clone())).collect();
        let points = own.iter().map(|&row| (frame.number("size", row), frame.number(column, row)));
        let points = points.filter(|(x, y)| *x > 0.0 && *y > 0.0).collect();
        let series = Series::new(label, Style::Line, color, points);
        if column != "time" {
            return series;
        }
        let ends = |&row: &usize| (frame.number("size", row), frame.number("min", row), frame.number("p99", row));
        series.with_intervals(own.iter().map(ends).filter(|(x, low, _)| *x > 0.0 && *low > 0.0).collect())
    };
    let panel = |title: &str, column: &str, units: &str| {
        Panel::Lines(Lines {
            title: title.to_owned(),
            x: Axis::new("size of the buffer", "B", Scale::Log),
            y: Axis::new(column, units, Scale::Log),
            series: keys.iter().enumerate().map(|key| of_key(key, column)).filter(|s| !s.points.is_empty()).collect(),
        })
    };
    let panels = vec![panel("bus bandwidth", "busbw", "GB/s"), panel("latency", "time", "s")];
    let id = if name == ALL_REDUCE { "allreduce".to_owned() } else { name.replace('_', "-") };
    let how = if name == "all_to_all" { "out of place" } else { "in place" };
    let title = format!("Bandwidth and latency: {}, {how}", title_of(Some(name)).to_lowercase());
    Figure::new(&id, &title, panels).with_note(&format!(
        "busbw = {}; time: {}. Error bars of the time: from the minimum to the 99th percentile of the iterations.",
        BUSBW.text, REDUCE_TIME.text
    ))
}
