//! Section of `/prediction`, compared with the measurements in `/scaling`.

use std::collections::BTreeSet;

use super::cases::{Cases, Key, RATIO_INTERVALS};
use super::scaling_plots::{against_ranks, measured, speedup_and_efficiency};
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
    let cases = source.frame("scaling")?.map(|frame| Cases { frame });
    let columns = [&["model"][..], &predict::COLUMNS].concat();
    let rows = frame.rows();
    let mut sheet = frame.sheet("prediction", "Predicted scaling", &columns, &rows).with_keys(3);
    if let Some(cases) = &cases {
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
    let models: BTreeSet<&str> = rows.iter().map(|row| frame.text("model", *row)).collect();
    let panels = models.into_iter().flat_map(|model| {
        let series = |column| series(&frame, cases.as_ref(), model, column);
        speedup_and_efficiency(model, series("speedup"), series("efficiency"))
    });
    let figure = Figure::new("prediction", "Predicted and measured scaling", panels.collect())
        .with_note(&format!("Lines: predicted. Markers: measured. {RATIO_INTERVALS}."));
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

/// One predicted curve per batch of a model, each with its measured points in the same color. A table without models is of any.
fn series(frame: &Frame, cases: Option<&Cases>, model: &str, column: &str) -> Vec<Series> {
    let rows = frame.rows_where(|row| frame.text("model", row) == model);
    let batches: BTreeSet<i64> = rows.iter().filter_map(|row| frame.integer("batch_per_rank", *row)).collect();
    let mut all = Vec::new();
    for (color, batch) in batches.into_iter().enumerate() {
        let own = rows.iter().filter(|row| frame.integer("batch_per_rank", **row) == Some(batch));
        let points = own.map(|row| (frame.number("ranks", *row), frame.number(column, *row))).collect();
        all.push(Series::new(format!("batch {batch}"), Style::Plain, color, points));
        let Some(cases) = cases else { continue };
        let known = cases.as_trained();
        let same = |((m, _, b), _): &&(Key, usize)| (model.is_empty() || m == model) && *b == batch;
        let own: Vec<&(Key, usize)> = known.iter().filter(same).collect();
        all.push(measured(cases, &own, column, format!("batch {batch}, measured"), Style::Points, color));
    }
    if all.iter().all(|series| series.points.is_empty()) {
        // Without any predicted value of the column, only the measurement is shown.
        return cases.map_or(Vec::new(), |cases| against_ranks(cases, model, column, Style::Points, ", measured"));
    }
    all.retain(|series| !series.points.is_empty());
    all
}
