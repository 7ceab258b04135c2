//! Section of `/epochs`: loss and accuracy.

use crate::error::Result;
use crate::report::figure::{Axis, Figure, Lines, Panel, Scale, Series, Style};
use crate::report::section::Section;
use crate::report::source::Source;
use crate::table::{Frame, Sheet};

/// Builds the table and the curves.
pub fn section(source: &Source) -> Result<Option<Section>> {
    let Some(frame) = source.frame("epochs")? else { return Ok(None) };
    let panels = vec![
        curves(&frame, "loss", "1", ["train_loss", "test_loss"]),
        curves(&frame, "accuracy", "percent", ["train_accuracy", "test_accuracy"]),
    ];
    let augmented = match source.config.as_ref().map(|config| config.data.augment) {
        Some(true) => ", augmented",
        _ => "",
    };
    let figure = Figure::new("epochs", "Loss and accuracy", panels).with_note(&format!(
        "Training: mean over the samples{augmented}, with the parameters of each step. Test: after the epoch."
    ));
    Ok(Some(Section::new("Training", vec![sheet(&frame)], vec![figure])))
}

/// The table of losses, accuracies and times by epoch.
fn sheet(frame: &Frame) -> Sheet {
    let columns = [
        "epoch",
        "world_size",
        "train_loss",
        "train_accuracy",
        "test_loss",
        "test_accuracy",
        "lr",
        "seconds",
        "test_seconds",
        "images_per_second",
        "flops",
        "peak_share",
    ];
    // Without a peak there is no share, and of a network from a file neither.
    let told = |column: &&str| {
        !["flops", "peak_share"].contains(column)
            || frame.rows().into_iter().any(|row| !frame.number(column, row).is_nan())
    };
    let columns: Vec<&str> = columns.into_iter().filter(told).collect();
    frame.sheet("epochs", "Loss and accuracy by epoch", &columns, &frame.rows()).thinned()
}

fn curves(frame: &Frame, what: &str, units: &str, columns: [&str; 2]) -> Panel {
    let points = |column: &str| {
        let point =
            |row| (frame.integer("epoch", row).map_or(row as f64, |epoch| epoch as f64), frame.number(column, row));
        frame.rows().into_iter().map(point).collect()
    };
    let series = columns.iter().enumerate().map(|(color, column)| {
        Series::new(column.split('_').next().unwrap_or_default(), Style::Line, color, points(column))
    });
    Panel::Lines(Lines {
        title: what.into(),
        x: Axis::new("epoch", "1", Scale::Linear),
        y: Axis::new(what, units, Scale::Linear),
        series: series.filter(|series| !series.points.is_empty()).collect(),
    })
}
