//! Section of `/allreduce`: bandwidth by size.

use std::collections::BTreeSet;

use super::cases::ranks_label;
use crate::error::Result;
use crate::metrics::definitions::{BUSBW, REDUCE_TIME};
use crate::report::figure::{Axis, Figure, Lines, Panel, Scale, Series, Style};
use crate::report::section::Section;
use crate::report::source::Source;
use crate::table::{Cell, Frame, Heading};

/// Builds the table and the bandwidth curves.
pub fn section(source: &Source) -> Result<Option<Section>> {
    let Some(frame) = source.frame("allreduce")? else { return Ok(None) };
    let rows = frame.rows();
    let counts: BTreeSet<i64> = rows.iter().map(|row| ranks(&frame, *row)).collect();
    let columns = [
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
    let mut sheet = frame.sheet("allreduce", "All-reduce by size", &columns, &rows).with_keys(4);
    sheet.note =
        format!("{}: {}; algbw and busbw are computed from time, as in nccl-tests", REDUCE_TIME.name, REDUCE_TIME.text);
    match (counts.len(), counts.first()) {
        (1, Some(ranks)) => sheet.title = format!("All-reduce by size on {}", ranks_label(*ranks)),
        _ => {
            sheet.columns.insert(0, Heading::new("ranks", "1", "number of ranks in the all-reduce"));
            sheet.rows.iter_mut().zip(&rows).for_each(|(cells, row)| cells.insert(0, Cell::Int(ranks(&frame, *row))));
            sheet.keys += 1;
        }
    }
    Ok(Some(Section::new("All-reduce", vec![sheet], vec![curves(&frame)])))
}

/// Number of ranks that a row was measured on; older files have one number for all rows.
fn ranks(frame: &Frame, row: usize) -> i64 {
    frame.integer("ranks", row).unwrap_or(frame.attribute("ranks") as i64)
}

fn curves(frame: &Frame) -> Figure {
    let rows = frame.rows_where(|row| frame.text("place", row) != "out_of_place");
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
    let series = keys.iter().enumerate().map(|(color, (ranks, label))| {
        let own = rows.iter().filter(|row| key(**row) == (*ranks, label.clone()));
        let points = own.map(|&row| (frame.number("size", row), frame.number("busbw", row)));
        Series::new(label, Style::Line, color, points.filter(|(size, busbw)| *size > 0.0 && *busbw > 0.0).collect())
    });
    let panel = Lines {
        title: String::new(),
        x: Axis::new("size of the buffer", "B", Scale::Log),
        y: Axis::new("busbw", "GB/s", Scale::Log),
        series: series.filter(|series| !series.points.is_empty()).collect(),
    };
    Figure::new("allreduce-busbw", "Bus bandwidth of the all-reduce, in place", vec![Panel::Lines(panel)])
        .with_note(&format!("busbw = {}; time: {}.", BUSBW.text, REDUCE_TIME.text))
}
