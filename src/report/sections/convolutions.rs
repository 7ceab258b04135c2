//! Section of `/convolutions`: how each shape of convolution was computed, and what a trial found.

use crate::error::Result;
use crate::report::section::Section;
use crate::report::source::Source;

/// Builds the table with one row per shape.
pub fn section(source: &Source) -> Result<Option<Section>> {
    let Some(frame) = source.frame("convolutions")? else { return Ok(None) };
    let columns =
        ["inputs", "outputs", "height", "width", "images", "method", "direct_seconds", "winograd_seconds", "reason"];
    let sheet = frame
        .sheet("convolutions", "3x3 convolutions by shape", &columns, &frame.rows())
        .with_note("seconds of a trial: forward pass and both gradients, the fastest of five repetitions");
    Ok(Some(Section::new("Convolutions", vec![sheet], Vec::new())))
}
