//! `/study`: variants of a training beside each other.

use crate::error::Result;
use crate::report::figure::{Axis, Figure, Lines, Panel, Scale, Series, Style};
use crate::report::sheet::{Cell, Heading, Section, Sheet};
use crate::report::source::{Frame, Source};

/// A row a variant, and its mean curves over the seeds.
pub fn section(source: &Source) -> Result<Option<Section>> {
    let Some(frame) = source.frame("study")? else { return Ok(None) };
    let variants = variants(&frame);
    let panels = vec![
        curves(&frame, &variants, "epoch", "train_loss", "1", "training loss"),
        curves(&frame, &variants, "epoch", "test_accuracy", "percent", "test accuracy"),
    ];
    let figure = Figure::new("study", "Variants, mean over the seeds", panels)
        .with_note("A curve that ends early: every seed had a loss that was no number.");
    let mut sheets = vec![summary(&frame, &variants)];
    if let Some(frame) = source.frame("variants")? {
        let columns = ["variant", "global_batch", "set", "note"];
        sheets.push(frame.sheet("variants", "What each variant changes", &columns, &frame.rows()));
    }
    Ok(Some(Section::new("Study", sheets, vec![figure])))
}

/// In the file's order; of a single training the one without a name.
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
    let mut sheet = Sheet::new("study", "Variants after their last epoch, over the seeds");
    let headings = [
        ("variant", "1", "what is compared"),
        ("seeds", "1", "trainings"),
        ("test_accuracy", "percent", "mean over the seeds; a training that diverged counts as nothing learnt, 10 %"),
        ("least", "percent", "of the seeds"),
        ("most", "percent", "of the seeds"),
        ("against_first", "percent", "test_accuracy less that of the first variant"),
        ("seconds", "s", "training of an epoch, mean"),
        ("gradient_messages", "1", "all-reduces of an epoch, mean"),
        ("gradient_bytes", "B", "bytes of their buffers as sent, mean"),
        ("gradient_seconds", "s", "time in them, mean"),
        ("comm", "s", "the same, and compressing and restoring, of an epoch, mean"),
    ];
    sheet.columns = headings.map(|(name, units, meaning)| Heading::new(name, units, meaning)).to_vec();
    let mut first = f64::NAN;
    for variant in variants {
        let rows = frame.rows_where(|row| frame.text("variant", row) == variant);
        let last = last_of_seeds(frame, &rows);
        let accuracies: Vec<f64> = last
            .iter()
            .map(|&row| frame.number("test_accuracy", row))
            .map(|accuracy| if accuracy.is_finite() { accuracy } else { 10.0 })
            .collect();
        let accuracy = mean(accuracies.iter().copied());
        first = if first.is_nan() { accuracy } else { first };
        let of =
            |name: &str| Cell::Float(mean(rows.iter().map(|&row| frame.number(name, row)).filter(|v| v.is_finite())));
        let extreme =
            |pick: fn(f64, f64) -> f64| Cell::Float(accuracies.iter().copied().reduce(pick).unwrap_or(f64::NAN));
        sheet.rows.push(vec![
            Cell::Text(variant.clone()),
            Cell::Int(last.len() as i64),
            Cell::Float(accuracy),
            extreme(f64::min),
            extreme(f64::max),
            Cell::Float(accuracy - first),
            of("seconds"),
            of("gradient_messages"),
            of("gradient_bytes"),
            of("gradient_seconds"),
            of("comm"),
        ]);
    }
    sheet
}

/// The row of each seed's last epoch.
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

/// The whole numbers that a variant has in column `x`, sorted.
pub(super) fn x_values(frame: &Frame, variant: &str, x: &str) -> Vec<i64> {
    let rows = frame.rows_where(|row| frame.text("variant", row) == variant);
    let mut values: Vec<i64> = rows.iter().filter_map(|&row| frame.integer(x, row)).collect();
    values.sort_unstable();
    values.dedup();
    values
}

/// `column` over `x` of each variant, mean over the seeds.
pub(super) fn curves(frame: &Frame, variants: &[String], x: &str, column: &str, units: &str, title: &str) -> Panel {
    let value = |variant: &str, place: i64| {
        let here = |row| frame.text("variant", row) == variant && frame.integer(x, row) == Some(place);
        mean(frame.rows_where(here).into_iter().map(|row| frame.number(column, row)).filter(|value| value.is_finite()))
    };
    Panel::Lines(Lines {
        title: title.into(),
        x: Axis::new(x, "1", Scale::Linear),
        y: Axis::new(title, units, Scale::Linear),
        series: series(frame, variants, x, &value),
    })
}

/// `value` (of a variant, where its column `x` is that number) as a curve a variant; what is no number is left out.
pub(super) fn series(frame: &Frame, variants: &[String], x: &str, value: &dyn Fn(&str, i64) -> f64) -> Vec<Series> {
    let of_variant = |(color, variant): (usize, &String)| {
        let points = x_values(frame, variant, x).into_iter().map(|place| (place as f64, value(variant, place)));
        Series::new(variant, Style::Line, color, points.collect())
    };
    variants.iter().enumerate().map(of_variant).filter(|series| !series.points.is_empty()).collect()
}

/// NaN of nothing.
pub(super) fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
    sum / f64::from(count)
}
