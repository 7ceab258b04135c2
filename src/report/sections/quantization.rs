//! Section of `/quantization` and `/histograms`: accuracy lost by int8, and the distributions that the scales come from.

use crate::error::Result;
use crate::report::figure::{Figure, Histogram, Panel};
use crate::report::section::Section;
use crate::report::source::Source;
use crate::table::{Cell, Frame, Heading, Sheet};

/// Greatest number of histograms in a figure; the table has all layers.
const MOST_PANELS: usize = 80;

/// Builds the accuracy table, the statistics, and one grid of histograms each for weights and activations.
pub fn section(source: &Source) -> Result<Option<Section>> {
    let (accuracy, histograms) = (source.frame("quantization")?, source.frame("histograms")?);
    if accuracy.is_none() && histograms.is_none() {
        return Ok(None);
    }
    let mut sheets: Vec<Sheet> = accuracy.iter().map(accuracies).collect();
    let mut figures = Vec::new();
    if let Some(frame) = &histograms {
        let columns = ["name", "kind", "values", "mean", "std", "min", "max", "range", "sigma3_lower", "sigma3_upper"];
        sheets.push(frame.sheet("histograms", "Distributions of weights and activations", &columns, &frame.rows()));
        figures.push(grid(frame, "weight", "histograms-weights", "Weights"));
        figures.push(grid(frame, "activation", "histograms-activations", "Activations"));
    }
    Ok(Some(Section::new("Quantization to int8", sheets, figures)))
}

fn accuracies(frame: &Frame) -> Sheet {
    let rows = frame.rows();
    let mut sheet = frame.sheet("quantization", "Accuracy, step by step to int8", &["case", "accuracy"], &rows);
    if frame.column("accuracy").is_some() {
        let change = |row| Cell::Float(frame.number("accuracy", row) - frame.number("accuracy", 0));
        sheet.push(Heading::new("change", "points", "percentage points against the first row"), change);
    }
    let whole = |name: &str| frame.attribute(name);
    if whole("samples") > 0.0 {
        sheet.note = format!("{} test images", whole("samples"));
    }
    if whole("elements_compared") > 0.0 {
        let (differing, compared) = (whole("elements_differing"), whole("elements_compared"));
        let by = frame.attribute_text("kernel").map(|kernel| format!(" ({kernel})")).unwrap_or_default();
        sheet.note += &format!("; simulated and true integers{by}: {differing} of {compared} elements differ");
    }
    if whole("int8_bytes") > 0.0 {
        let bytes = |name| crate::units::format_bytes(whole(name).max(0.0) as u64);
        sheet.note += &format!("; model {} as float32, {} as int8", bytes("float32_bytes"), bytes("int8_bytes"));
    }
    sheet
}

fn grid(frame: &Frame, kind: &str, name: &str, title: &str) -> Figure {
    let panel = |row| {
        Panel::Histogram(Histogram {
            title: frame.text("name", row).to_owned(),
            edges: (frame.number("min", row), frame.number("max", row)),
            counts: frame.list("bins", row),
            mean: frame.number("mean", row),
            sigma3: (frame.number("sigma3_lower", row), frame.number("sigma3_upper", row)),
        })
    };
    let mut rows = frame.rows_where(|row| frame.text("kind", row) == kind);
    rows.truncate(MOST_PANELS);
    let mut figure =
        Figure::new(name, format!("{title}: distribution by layer"), rows.into_iter().map(panel).collect())
            .with_note("Counts in equal bins from min to max; logarithmic where a few bins hold nearly all values.");
    figure.columns = figure.panels.len().clamp(1, 4);
    figure
}
