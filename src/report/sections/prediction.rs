//! Section of `/prediction`, compared with the measurements in `/scaling`.

use std::collections::BTreeSet;

use super::cases::{Cases, Key};
use super::scaling_plots::{against_ranks, speedup_and_efficiency};
use crate::error::Result;
use crate::metrics::definitions;
use crate::predict;
use crate::report::figure::{Figure, Series, Style};
use crate::report::section::Section;
use crate::report::source::Source;
use crate::table::{Cell, Frame, Heading};

/// Builds the table and the curves.
pub fn section(source: &Source) -> Result<Option<Section>> {
    let Some(frame) = source.frame("prediction")? else { return Ok(None) };
    let measured = source.frame("scaling")?.map(|frame| Cases { frame });
    let columns = [&["model"][..], &predict::COLUMNS].concat();
    let rows = frame.rows();
    let mut sheet = frame.sheet("prediction", "Predicted scaling", &columns, &rows).with_keys(3);
    if let Some(cases) = &measured {
        let known = cases.as_trained();
        for (column, units) in [("step", "s"), ("speedup", "1"), ("efficiency", "1")] {
            let meaning = "measurement of this case in /scaling; NaN: not measured";
            let heading = Heading::new(&format!("{column} (measured)"), units, meaning);
            sheet.push(heading, |row| Cell::Float(measured_value(&frame, cases, &known, row, column)));
        }
        sheet.push(Heading::from(&definitions::STEP_ERROR), |row| {
            let step = measured_value(&frame, cases, &known, row, "step");
            Cell::Float(100.0 * (frame.number("step", row) / step - 1.0))
        });
    }
    let figure = Figure::new("prediction", "Predicted and measured scaling", {
        let series = |column| series(&frame, measured.as_ref(), column);
        speedup_and_efficiency(series("speedup"), series("efficiency"))
    });
    let figure = figure.with_note("Lines: predicted. Markers: measured.");
    Ok(Some(Section::new("Prediction", vec![sheet], vec![figure])))
}

fn measured_value(frame: &Frame, cases: &Cases, known: &[(Key, usize)], row: usize, column: &str) -> f64 {
    let (Some(ranks), Some(batch)) = (frame.integer("ranks", row), frame.integer("batch_per_rank", row)) else {
        return f64::NAN;
    };
    let model = frame.text("model", row);
    let same = |((m, r, b), _): &&(Key, usize)| (model.is_empty() || m == model) && *r == ranks && *b == batch;
    known.iter().find(same).map_or(f64::NAN, |(_, row)| cases.frame.number(column, *row))
}

/// One predicted curve per model and batch, each with its measured points in the same color.
fn series(frame: &Frame, measured: Option<&Cases>, column: &str) -> Vec<Series> {
    let rows = frame.rows();
    let key = |row: usize| Some((frame.text("model", row), frame.integer("batch_per_rank", row)?));
    let lines: BTreeSet<(&str, i64)> = rows.iter().filter_map(|row| key(*row)).collect();
    let models = lines.iter().map(|(model, _)| *model).collect::<BTreeSet<_>>().len();
    let mut all = Vec::new();
    for (color, (model, batch)) in lines.into_iter().enumerate() {
        let label = if models > 1 { format!("{model}, batch {batch}") } else { format!("batch {batch}") };
        let own = rows.iter().filter(|row| key(**row) == Some((model, batch)));
        let points = own.map(|row| (frame.number("ranks", *row), frame.number(column, *row))).collect();
        all.push(Series::new(&label, Style::Plain, color, points));
        let Some(cases) = measured else { continue };
        let same = |((m, _, b), _): &&(Key, usize)| (model.is_empty() || m == model) && *b == batch;
        let known = cases.as_trained();
        let points = known.iter().filter(same).map(|((_, r, _), row)| (*r as f64, cases.frame.number(column, *row)));
        all.push(Series::new(format!("{label}, measured"), Style::Points, color, points.collect()));
    }
    if all.iter().all(|series| series.points.is_empty()) {
        // Without any predicted value of the column, only the measurement is shown.
        return measured.map_or(Vec::new(), |cases| against_ranks(cases, column, Style::Points, ", measured"));
    }
    all.retain(|series| !series.points.is_empty());
    all
}
