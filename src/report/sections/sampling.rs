//! Section of `/sampling`: the samples that the ranks drew, and how well the epochs mixed them.

use super::study::{curves, rows_by, variants};
use crate::error::Result;
use crate::metrics::mean;
use crate::report::figure::Figure;
use crate::report::section::Section;
use crate::report::source::Source;
use crate::table::{Cell, Heading, Sheet};

const COLUMNS: [&str; 5] = ["drawn", "seen", "seen_so_far", "repeated", "met_before"];

/// Builds the table with one row per variant, its last epoch (per epoch for a single training), and the curves.
pub fn section(source: &Source) -> Result<Option<Section>> {
    let Some(frame) = source.frame("sampling")? else { return Ok(None) };
    let variants = variants(&frame);
    let title = "Samples drawn over all ranks";
    let sheet = if frame.column("variant").is_some() {
        let mut sheet = Sheet::new("sampling-summary", format!("{title} in the last epoch, mean over the seeds"));
        sheet.columns = vec![Heading::new("variant", "1", "name of the variant")];
        sheet.columns.extend(COLUMNS.iter().filter_map(|name| frame.heading(name)));
        for variant in &variants {
            let rows = rows_by(&frame, variant, "epoch").into_values().next_back().unwrap_or_default();
            let of = |heading: &Heading| Cell::Float(mean(rows.iter().map(|&row| frame.number(&heading.name, row))));
            sheet
                .rows
                .push(std::iter::once(Cell::from(variant.as_str())).chain(sheet.columns[1..].iter().map(of)).collect());
        }
        sheet
    } else {
        frame.sheet("sampling", title, &[&["epoch"][..], &COLUMNS].concat(), &frame.rows())
    };
    let sheet = sheet
        .with_note("met_before: pairs of samples in a global batch that also shared one in the previous epoch")
        .thinned();
    let panels = vec![
        curves(&frame, &variants, "epoch", "seen_so_far", "percent", "samples seen so far"),
        curves(&frame, &variants, "epoch", "met_before", "percent", "pairs that met in the previous epoch"),
    ];
    let mut figure = Figure::new("sampling", title, panels);
    if frame.column("variant").is_some() {
        figure = figure.with_note("Mean over the seeds. Error bars: from the least to the greatest seed.");
    }
    Ok(Some(Section::new("Sampling", vec![sheet], vec![figure])))
}
