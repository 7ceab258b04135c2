//! Section of `/spread` and `/ranks`: how far the networks of the ranks differ.

use super::study::{rows_by, series, variants};
use crate::error::Result;
use crate::metrics::mean;
use crate::report::figure::{Axis, Figure, Lines, Panel, Scale};
use crate::report::section::Section;
use crate::report::source::Source;
use crate::table::{Cell, Frame, Heading, Sheet};

/// Builds the table with one row per variant (one row for a single training), and curves of spread and worst accuracy.
pub fn section(source: &Source) -> Result<Option<Section>> {
    let (Some(spread), Some(ranks)) = (source.frame("spread")?, source.frame("ranks")?) else { return Ok(None) };
    let variants = variants(&spread);
    let mut sheet = Sheet::new("ranks-summary", "Divergence of the ranks, mean over the seeds");
    sheet.note =
        "spread: greatest distance of a rank's parameters from the mean over the ranks, relative to it; accuracy: of \
         each rank's own network on the whole test set, after the last epoch"
            .into();
    let headings = [
        ("variant", "1", "name of the variant"),
        ("spread_first", "1", "spread of the parameters before the first step"),
        ("spread_last", "1", "spread of the parameters at the last measured step"),
        ("buffer_spread_last", "1", "spread of batch norm's running statistics at the last measured step"),
        ("worst_rank", "percent", "test accuracy of the worst rank"),
        ("best_rank", "percent", "test accuracy of the best rank"),
    ];
    sheet.columns = headings.map(|(name, units, meaning)| Heading::new(name, units, meaning)).to_vec();
    sheet.rows = variants.iter().map(|variant| row(&spread, &ranks, variant)).collect();

    // A logarithmic axis has no 0, so equal ranks have no point.
    let spread_of = |rows: &[usize]| {
        let value = of_seeds(&spread, rows, "parameter_spread");
        if value > 0.0 { value } else { f64::NAN }
    };
    let panels = vec![
        Panel::Lines(Lines {
            title: "spread of the parameters".into(),
            x: Axis::new("steps done", "1", Scale::Linear),
            y: Axis::new("spread", "1", Scale::Log),
            series: series(&spread, &variants, "steps_done", &spread_of),
        }),
        Panel::Lines(Lines {
            title: "worst rank".into(),
            x: Axis::new("epoch", "1", Scale::Linear),
            y: Axis::new("test accuracy", "percent", Scale::Linear),
            series: series(&ranks, &variants, "epoch", &|rows| extreme(&ranks, rows, f64::min)),
        }),
    ];
    let figure = Figure::new("ranks", "Divergence of the ranks, mean over the seeds", panels)
        .with_note("A variant without a curve in the left plot: its ranks agree to the last bit.");
    Ok(Some(Section::new("Divergence of the ranks", vec![sheet], vec![figure])))
}

fn row(spread: &Frame, ranks: &Frame, variant: &str) -> Vec<Cell> {
    let steps = rows_by(spread, variant, "steps_done");
    let (first, last) = (steps.values().next(), steps.values().next_back());
    let epochs = rows_by(ranks, variant, "epoch");
    let of = |rows: Option<&Vec<usize>>, column| rows.map_or(f64::NAN, |rows| of_seeds(spread, rows, column));
    let of_last = |pick| epochs.values().next_back().map_or(f64::NAN, |rows| extreme(ranks, rows, pick));
    vec![
        Cell::from(variant),
        Cell::Float(of(first, "parameter_spread")),
        Cell::Float(of(last, "parameter_spread")),
        Cell::Float(of(last, "buffer_spread")),
        Cell::Float(of_last(f64::min)),
        Cell::Float(of_last(f64::max)),
    ]
}

/// Mean of `column` over `rows`, one per seed.
fn of_seeds(frame: &Frame, rows: &[usize], column: &str) -> f64 {
    mean(rows.iter().map(|&row| frame.number(column, row)))
}

/// Mean over the seeds of the test accuracy of the worst (`pick` = min) or best (max) rank in `rows`.
fn extreme(ranks: &Frame, rows: &[usize], pick: fn(f64, f64) -> f64) -> f64 {
    let mut seeds: Vec<(Option<i64>, f64)> = Vec::new();
    for &row in rows {
        let (seed, accuracy) = (ranks.integer("seed", row), ranks.number("test_accuracy", row));
        match seeds.iter_mut().find(|(known, _)| *known == seed) {
            Some((_, extreme)) => *extreme = pick(*extreme, accuracy),
            None => seeds.push((seed, accuracy)),
        }
    }
    mean(seeds.into_iter().map(|(_, accuracy)| accuracy))
}
