//! `/sampling`: which samples were drawn, and how well that mixed them.

use super::study::{curves, variants, x_values};
use crate::error::Result;
use crate::metrics::mean;
use crate::report::figure::Figure;
use crate::report::section::Section;
use crate::report::source::Source;
use crate::table::{Cell, Heading, Sheet};

const COLUMNS: [&str; 5] = ["drawn", "seen", "seen_so_far", "repeated", "met_before"];

/// A row a variant with its last epoch (of a single training, a row an epoch), and curves.
pub fn section(source: &Source) -> Result<Option<Section>> {
    let Some(frame) = source.frame("sampling")? else { return Ok(None) };
    let variants = variants(&frame);
    let title = "Samples drawn over all ranks";
    let sheet = if frame.column("variant").is_some() {
        let mut sheet = Sheet::new("sampling-summary", format!("{title}, of the last epoch, mean over the seeds"));
        sheet.columns = vec![Heading::new("variant", "1", "what is compared")];
        sheet.columns.extend(COLUMNS.iter().filter_map(|name| frame.heading(name)));
        for variant in &variants {
            let last = x_values(&frame, variant, "epoch").last().copied();
            let rows =
                frame.rows_where(|row| frame.text("variant", row) == variant && frame.integer("epoch", row) == last);
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
        .with_note("met_before: pairs of samples in a global batch that were in one batch in the epoch before, too");
    let panels = vec![
        curves(&frame, &variants, "epoch", "seen_so_far", "percent", "of the data set seen so far"),
        curves(&frame, &variants, "epoch", "met_before", "percent", "pairs that met in the epoch before"),
    ];
    Ok(Some(Section::new("Sampling", vec![sheet], vec![Figure::new("sampling", title, panels)])))
}
