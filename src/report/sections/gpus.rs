//! Section of `/gpu`: utilization, memory and energy of the GPUs.

use crate::error::Result;
use crate::report::section::Section;
use crate::report::source::Source;

/// Builds the table with one row per epoch and rank.
pub fn section(source: &Source) -> Result<Option<Section>> {
    let Some(frame) = source.frame("gpu")? else { return Ok(None) };
    let columns = ["epoch", "rank", "utilization", "memory", "energy"];
    let sheet = frame
        .sheet("gpu", "GPUs by epoch", &columns, &frame.rows())
        .with_note("during training, without the test; memory and energy are the whole GPU's, other processes included")
        .thinned();
    Ok(Some(Section::new("GPUs", vec![sheet], Vec::new())))
}
