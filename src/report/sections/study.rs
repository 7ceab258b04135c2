//! Section of `/study`: variants of a training side by side.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::metrics::definitions::{AGAINST_FIRST, DIVERGED, LEAST, MOST, SEEDS, VARIANT_ACCURACY, WON_BACK};
use crate::metrics::{self, mean};
use crate::report::figure::{Axis, Figure, Lines, Panel, Scale, Series, Style};
use crate::report::section::Section;
use crate::report::source::Source;
use crate::table::{Cell, Frame, Heading, Sheet};

/// Builds the table with one row per variant, and its mean curves over the seeds.
pub fn section(source: &Source) -> Result<Option<Section>> {
    let Some(frame) = source.frame("study")? else { return Ok(None) };
    let variants = variants(&frame);
    let panels = vec![
        curves(&frame, &variants, "epoch", "train_loss", "1", "training loss"),
        curves(&frame, &variants, "epoch", "test_accuracy", "percent", "test accuracy"),
    ];
    let figure = Figure::new("study", "Variants, mean over the seeds", panels).with_note(
        "Each point is the mean over the seeds that had not diverged yet; a curve ends early if every seed diverged. Error bars: from \
         the least to the greatest seed.",
    );
    let mut sheets = vec![summary(&frame, &variants)];
    if let Some(frame) = source.frame("variants")? {
        let columns = ["variant", "global_batch", "set", "note"];
        sheets.push(frame.sheet("variants", "What each variant changes", &columns, &frame.rows()));
    }
    Ok(Some(Section::new("Study", sheets, vec![figure])))
}

/// Names of the variants in the file's order; a single training is one variant with an empty name.
pub(super) fn variants(frame: &Frame) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for row in frame.rows() {
        let name = frame.text("variant", row);
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}

fn summary(frame: &Frame, variants: &[String]) -> Sheet {
    let mut sheet = Sheet::new("study-summary", "Variants after their last epoch, over the seeds");
    sheet.note = format!(
        "per epoch, mean over all epochs and seeds that did not diverge: seconds, gradient_messages, gradient_bytes, \
         gradient_seconds, comm; test_accuracy: {}; won_back: {}",
        VARIANT_ACCURACY.text, WON_BACK.text
    );
    let per_epoch = ["seconds", "gradient_messages", "gradient_bytes", "gradient_seconds", "comm"];
    let figures = [SEEDS, DIVERGED, VARIANT_ACCURACY, LEAST, MOST, AGAINST_FIRST, WON_BACK];
    let variant = Heading::new("variant", "1", "name of the variant");
    sheet.columns = [variant].into_iter().chain(figures.iter().map(Heading::from)).collect();
    sheet.columns.extend(per_epoch.iter().filter_map(|name| frame.heading(name)));
    let rows_of = |variant: &String| frame.rows_where(|row| frame.text("variant", row) == variant);
    let accuracies = |variant: &String| {
        let last = last_of_seeds(frame, &rows_of(variant));
        last.into_iter().map(|row| frame.number("test_accuracy", row)).collect()
    };
    let found = metrics::variants(&variants.iter().map(accuracies).collect::<Vec<Vec<f64>>>());
    for (variant, found) in variants.iter().zip(found) {
        let rows = rows_of(variant);
        let of = |heading: &Heading| {
            let values = rows.iter().map(|&row| frame.number(&heading.name, row));
            Cell::Float(mean(values.filter(|value| value.is_finite())))
        };
        let counts = [found.seeds, found.diverged].map(|count| Cell::Int(count as i64));
        let numbers = [found.mean, found.least, found.most, found.against_first, found.won_back].map(Cell::Float);
        let cells = [Cell::Text(variant.clone())].into_iter().chain(counts).chain(numbers);
        sheet.rows.push(cells.chain(sheet.columns[1 + figures.len()..].iter().map(of)).collect());
    }
    sheet
}

/// Row of the last epoch of each seed.
fn last_of_seeds(frame: &Frame, rows: &[usize]) -> Vec<usize> {
    let mut last: Vec<(i64, usize)> = Vec::new();
    for &row in rows {
        let seed = frame.integer("seed", row).unwrap_or(-1);
        match last.iter_mut().find(|(known, _)| *known == seed) {
            Some((_, latest)) => *latest = row,
            None => last.push((seed, row)),
        }
    }
    last.into_iter().map(|(_, row)| row).collect()
}

/// Rows of a variant by the whole number in column `x`: one per seed, or per seed and rank.
pub(super) fn rows_by(frame: &Frame, variant: &str, x: &str) -> BTreeMap<i64, Vec<usize>> {
    let mut rows: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
    for row in frame.rows_where(|row| frame.text("variant", row) == variant) {
        if let Some(place) = frame.integer(x, row) {
            rows.entry(place).or_default().push(row);
        }
    }
    rows
}

/// A panel of `column` over `x`, one curve per variant, mean over the seeds.
pub(super) fn curves(frame: &Frame, variants: &[String], x: &str, column: &str, units: &str, title: &str) -> Panel {
    let values = |rows: &[usize]| -> Vec<f64> {
        rows.iter().map(|&row| frame.number(column, row)).filter(|value| value.is_finite()).collect()
    };
    let mut series = series(frame, variants, x, &|rows| mean(values(rows)));
    for series in &mut series {
        let ends = |(place, rows): (i64, Vec<usize>)| {
            let seeds = values(&rows);
            let extreme = |from: f64, pick: fn(f64, f64) -> f64| seeds.iter().copied().fold(from, pick);
            let ends = (place as f64, extreme(f64::INFINITY, f64::min), extreme(f64::NEG_INFINITY, f64::max));
            (seeds.len() > 1).then_some(ends)
        };
        let intervals = rows_by(frame, &series.label, x).into_iter().filter_map(ends).collect();
        *series = series.clone().with_intervals(intervals);
    }
    Panel::Lines(Lines {
        title: title.into(),
        x: Axis::new(x, "1", Scale::Linear),
        y: Axis::new(title, units, Scale::Linear),
        series,
    })
}

/// One curve per variant over the variant's values of column `x`: `value` of the rows there; non-finite points are left out.
pub(super) fn series(frame: &Frame, variants: &[String], x: &str, value: &dyn Fn(&[usize]) -> f64) -> Vec<Series> {
    let of_variant = |(color, variant): (usize, &String)| {
        let points = rows_by(frame, variant, x).into_iter().map(|(place, rows)| (place as f64, value(&rows)));
        Series::new(variant, Style::Line, color, points.collect())
    };
    variants.iter().enumerate().map(of_variant).filter(|series| !series.points.is_empty()).collect()
}
