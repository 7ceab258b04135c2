//! `/gpu`: what the GPUs took.

use crate::error::Result;
use crate::report::section::Section;
use crate::report::source::Source;

/// A row an epoch and rank.
pub fn section(source: &Source) -> Result<Option<Section>> {
    let Some(frame) = source.frame("gpu")? else { return Ok(None) };
    let columns = ["epoch", "rank", "utilization", "memory", "energy"];
    let sheet = frame
        .sheet("gpu", "GPUs by epoch", &columns, &frame.rows())
        .with_note("of the training alone, without the test; memory and energy are the whole GPU's, whoever used it");
    Ok(Some(Section::new("GPUs", vec![sheet], Vec::new())))
}
