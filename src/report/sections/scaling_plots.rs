//! Plots of a sweep.

use std::collections::BTreeSet;

use super::cases::{Cases, ranks_label};
use crate::report::figure::{Axis, Bar, Bars, Figure, Lines, Panel, Scale, Series, Style};

/// Greatest number of bars in a plot.
const MOST_BARS: usize = 48;

/// Builds all plots of a sweep.
pub fn figures(cases: &Cases) -> Vec<Figure> {
    vec![anatomy(cases), scaling(cases), throughput(cases)]
}

/// One series per model and batch: `column` against the number of ranks.
pub fn against_ranks(cases: &Cases, column: &str, style: Style, suffix: &str) -> Vec<Series> {
    let rows = cases.as_trained();
    let lines: BTreeSet<(&str, i64)> = rows.iter().map(|((model, _, batch), _)| (model.as_str(), *batch)).collect();
    let series = lines.into_iter().enumerate().map(|(color, (model, batch))| {
        let own = rows.iter().filter(|((m, _, b), _)| m == model && *b == batch);
        let points = own.map(|((_, ranks, _), row)| (*ranks as f64, cases.frame.number(column, *row)));
        Series::new(format!("{}{suffix}", cases.label(model, batch)), style, color, points.collect())
    });
    series.filter(|series| !series.points.is_empty()).collect()
}

/// The dashed ideal line over the ranks of `series`: `y` is the identity for speedup, 1 for efficiency.
pub fn ideal(series: &[Series], y: impl Fn(f64) -> f64) -> Series {
    let ranks = || series.iter().flat_map(|series| &series.points).map(|(ranks, _)| *ranks);
    let (least, most) = (ranks().fold(f64::INFINITY, f64::min).min(1.0), ranks().fold(1.0, f64::max));
    // Many points: with one logarithmic axis the line is a curve.
    let at = |step: usize| least * (most / least).powf(step as f64 / 64.0);
    Series::new("ideal", Style::Ideal, 0, (0..=64).map(|step| (at(step), y(at(step)))).collect())
}

/// Panels of speedup and efficiency, side by side, with their ideal lines.
pub fn speedup_and_efficiency(speedup: Vec<Series>, efficiency: Vec<Series>) -> Vec<Panel> {
    let panel = |title: &str, y: Scale, mut series: Vec<Series>, best: fn(f64) -> f64| {
        series.push(ideal(&series, best));
        let (x, y) = (Axis::new("ranks", "1", Scale::Values), Axis::new(title, "1", y));
        Panel::Lines(Lines { title: title.into(), x, y, series })
    };
    let most = speedup.iter().flat_map(|series| &series.points).map(|(ranks, _)| *ranks).fold(1.0, f64::max);
    // The ideal speedup over a logarithmic axis of ranks is a straight line only if the other axis is logarithmic too.
    let scale = if most > 8.0 { Scale::Log } else { Scale::Zero };
    vec![panel("speedup", scale, speedup, |ranks| ranks), panel("efficiency", Scale::Zero, efficiency, |_| 1.0)]
}

fn scaling(cases: &Cases) -> Figure {
    let series = |column| against_ranks(cases, column, Style::Line, "");
    Figure::new("scaling", "Speedup and efficiency", speedup_and_efficiency(series("speedup"), series("efficiency")))
        .with_note("Speedup: throughput / that of 1 rank at the same batch per rank. Efficiency: speedup / ranks.")
}

fn throughput(cases: &Cases) -> Figure {
    let rows = cases.as_trained();
    let models = rows.iter().map(|((model, _, _), _)| model.as_str()).collect::<BTreeSet<_>>().len();
    let lines: BTreeSet<(&str, i64)> = rows.iter().map(|((model, ranks, _), _)| (model.as_str(), *ranks)).collect();
    let series = lines.into_iter().enumerate().map(|(color, (model, ranks))| {
        let own = rows.iter().filter(|((m, r, _), _)| m == model && *r == ranks);
        let points = own.map(|((_, _, batch), row)| (*batch as f64, cases.frame.number("images_per_second", *row)));
        let label = if models > 1 { format!("{model}, {}", ranks_label(ranks)) } else { ranks_label(ranks) };
        Series::new(label, Style::Line, color, points.collect())
    });
    let panel = Lines {
        title: String::new(),
        x: Axis::new("batch_per_rank", "1", Scale::Values),
        y: Axis::new("throughput", "samples/s", Scale::Auto),
        series: series.filter(|series| !series.points.is_empty()).collect(),
    };
    Figure::new("scaling-throughput", "Throughput against batch size", vec![Panel::Lines(panel)])
        .with_note("Images per second of all ranks together.")
}

fn anatomy(cases: &Cases) -> Figure {
    const PARTS: [&str; 6] = ["data", "forward", "backward", "comm_wait", "comm", "optimizer"];
    let mut rows = cases.timed("profile");
    let models = rows.iter().map(|((model, _, _), _)| model.as_str()).collect::<BTreeSet<_>>().len();
    rows.retain(|(_, row)| cases.frame.number("step", *row) > 0.0);
    // Bars with the same batch stand together, since these are compared.
    rows.sort_by_key(|((model, ranks, batch), _)| (model.clone(), *batch, *ranks));
    let left_out = rows.len().saturating_sub(MOST_BARS);
    rows.truncate(MOST_BARS);
    let bar = |((model, ranks, batch), row): &((String, i64, i64), usize)| {
        let case = format!("batch {batch}, {}", ranks_label(*ranks));
        Bar {
            label: if models > 1 { format!("{model}, {case}") } else { case },
            values: PARTS.iter().map(|part| cases.frame.number(part, *row)).collect(),
        }
    };
    let panel = Bars {
        title: String::new(),
        x: Axis::new("trimmed mean time per step", "s", Scale::Zero),
        parts: PARTS.map(str::to_owned).to_vec(),
        bars: rows.iter().map(bar).collect(),
    };
    let mut note = "Profile mode: nothing overlaps, the parts add up to the step.".to_owned();
    if left_out > 0 {
        note += &format!(" {left_out} cases are in the table only.");
    }
    Figure::new("scaling-anatomy", "Step anatomy: compute against communication", vec![Panel::Bars(panel)])
        .with_note(&note)
}
