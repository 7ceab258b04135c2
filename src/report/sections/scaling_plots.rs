//! Plots of a sweep, with a panel per model.

use std::collections::BTreeSet;

use super::cases::{Cases, INTERVALS, Key, RATIO_INTERVALS, ranks_label};
use crate::report::figure::{Axis, Bar, Bars, Figure, Lines, Panel, Scale, Series, Style};

/// Greatest number of bars in a panel.
const MOST_BARS: usize = 48;

/// Builds all plots of a sweep.
pub fn figures(cases: &Cases) -> Vec<Figure> {
    vec![anatomy(cases), scaling(cases), throughput(cases)]
}

/// One series per batch of a model: `column` against the number of ranks.
pub fn against_ranks(cases: &Cases, model: &str, column: &str, style: Style, suffix: &str) -> Vec<Series> {
    let rows = cases.as_trained();
    let batches: BTreeSet<i64> = rows.iter().filter(|((m, ..), _)| m == model).map(|((.., batch), _)| *batch).collect();
    let series = batches.into_iter().enumerate().map(|(color, batch)| {
        let own: Vec<&(Key, usize)> = rows.iter().filter(|((m, _, b), _)| m == model && *b == batch).collect();
        measured(cases, &own, column, format!("batch {batch}{suffix}"), style, color)
    });
    series.filter(|series| !series.points.is_empty()).collect()
}

/// The series of `column` against the number of ranks in these rows, with its intervals.
pub fn measured(
    cases: &Cases,
    rows: &[&(Key, usize)],
    column: &str,
    label: String,
    style: Style,
    color: usize,
) -> Series {
    let point = |((_, ranks, _), row): &&(Key, usize)| (*ranks as f64, cases.frame.number(column, *row));
    let interval = |((_, ranks, _), row): &&(Key, usize)| {
        cases.interval(column, *row).map(|(low, high)| (*ranks as f64, low, high))
    };
    let series = Series::new(label, style, color, rows.iter().map(point).collect());
    series.with_intervals(rows.iter().filter_map(interval).collect())
}

/// The dashed ideal line over the ranks of `series`: `y` is the identity for speedup, 1 for efficiency. Both are straight on their
/// axes, so that two points suffice.
fn ideal(series: &[Series], y: impl Fn(f64) -> f64) -> Series {
    let ranks = || series.iter().flat_map(|series| &series.points).map(|(ranks, _)| *ranks);
    let ends = [ranks().fold(f64::INFINITY, f64::min), ranks().fold(f64::NEG_INFINITY, f64::max)];
    Series::new("ideal", Style::Ideal, 0, ends.map(|ranks| (ranks, y(ranks))).to_vec())
}

/// Panels of a model's speedup and efficiency, side by side, with their ideal lines.
pub fn speedup_and_efficiency(model: &str, speedup: Vec<Series>, efficiency: Vec<Series>) -> [Panel; 2] {
    let panel = |what: &str, y: Scale, mut series: Vec<Series>, best: fn(f64) -> f64| {
        series.push(ideal(&series, best));
        let title = if model.is_empty() { what.to_owned() } else { format!("{model}: {what}") };
        Panel::Lines(Lines { title, x: Axis::new("ranks", "1", Scale::Values), y: Axis::new(what, "1", y), series })
    };
    // Both axes of the speedup are logarithmic, on which the ideal is a straight line.
    [panel("speedup", Scale::Log, speedup, |ranks| ranks), panel("efficiency", Scale::Zero, efficiency, |_| 1.0)]
}

fn scaling(cases: &Cases) -> Figure {
    let panels = cases.models().into_iter().flat_map(|model| {
        let series = |column| against_ranks(cases, model, column, Style::Line, "");
        speedup_and_efficiency(model, series("speedup"), series("efficiency"))
    });
    Figure::new("scaling", "Speedup and efficiency", panels.collect()).with_note(&format!(
        "Speedup: throughput / that of 1 rank at the same batch per rank. Efficiency: speedup / ranks. {RATIO_INTERVALS}."
    ))
}

fn throughput(cases: &Cases) -> Figure {
    let rows = cases.as_trained();
    let panel = |model: &str| {
        let own = || rows.iter().filter(|((m, ..), _)| m == model);
        let ranks: BTreeSet<i64> = own().map(|((_, ranks, _), _)| *ranks).collect();
        let series = ranks.into_iter().enumerate().map(|(color, ranks)| {
            let own: Vec<(f64, usize)> =
                own().filter(|((_, r, _), _)| *r == ranks).map(|((.., batch), row)| (*batch as f64, *row)).collect();
            let points = own.iter().map(|(batch, row)| (*batch, cases.frame.number("images_per_second", *row)));
            let interval = |(batch, row): &(f64, usize)| {
                cases.interval("images_per_second", *row).map(|(low, high)| (*batch, low, high))
            };
            Series::new(ranks_label(ranks), Style::Line, color, points.collect())
                .with_intervals(own.iter().filter_map(interval).collect())
        });
        Panel::Lines(Lines {
            title: model.to_owned(),
            x: Axis::new("batch_per_rank", "1", Scale::Values),
            y: Axis::new("throughput", "samples/s", Scale::Auto),
            series: series.filter(|series| !series.points.is_empty()).collect(),
        })
    };
    let panels = cases.models().into_iter().map(panel).collect();
    Figure::new("scaling-throughput", "Throughput against batch size", panels)
        .with_note(&format!("Images per second of all ranks together. {INTERVALS}."))
}

fn anatomy(cases: &Cases) -> Figure {
    const PARTS: [&str; 6] = ["data", "forward", "backward", "comm_wait", "comm", "optimizer"];
    let mut rows = cases.timed("profile");
    rows.retain(|(_, row)| cases.frame.number("step", *row) > 0.0);
    // Bars with the same batch stand together, since these are compared.
    rows.sort_by_key(|((model, ranks, batch), _)| (model.clone(), *batch, *ranks));
    let bar = |((_, ranks, batch), row): &(Key, usize)| {
        let [low, high] = ["step_low", "step_high"].map(|end| cases.frame.number(end, *row));
        Bar {
            label: format!("batch {batch}, {}", ranks_label(*ranks)),
            values: PARTS.iter().map(|part| cases.frame.number(part, *row)).collect(),
            interval: (low > 0.0 && high >= low && high.is_finite()).then_some((low, high)),
        }
    };
    let mut left_out = 0;
    let panel = |model: &str| {
        let own: Vec<&(Key, usize)> = rows.iter().filter(|((m, ..), _)| m == model).collect();
        left_out += own.len().saturating_sub(MOST_BARS);
        Panel::Bars(Bars {
            title: model.to_owned(),
            x: Axis::new("trimmed mean time per step", "s", Scale::Zero),
            parts: PARTS.map(str::to_owned).to_vec(),
            bars: own.into_iter().take(MOST_BARS).map(bar).collect(),
        })
    };
    let panels = cases.models().into_iter().map(panel).collect();
    let mut note =
        "Profile mode: nothing overlaps, the parts add up to the step. Error bars: 95 % interval of the median \
                    step. Each model has an axis of its own."
            .to_owned();
    if left_out > 0 {
        note += &format!(" {left_out} cases are in the table only.");
    }
    let mut figure =
        Figure::new("scaling-anatomy", "Step anatomy: compute against communication", panels).with_note(&note);
    figure.columns = 1;
    figure
}
