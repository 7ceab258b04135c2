//! Section of `/reads`: what reading the training set from files cost.

use crate::error::Result;
use crate::report::section::Section;
use crate::report::source::Source;

/// Builds the table with one row per epoch and rank.
pub fn section(source: &Source) -> Result<Option<Section>> {
    let Some(frame) = source.frame("reads")? else { return Ok(None) };
    let columns =
        ["epoch", "rank", "read_bytes", "bytes_per_second", "cache_hits", "cache_misses", "read_seconds", "read_wait"];
    let sheet = frame.sheet("reads", "Training samples read from files, by epoch", &columns, &frame.rows()).with_note(
        "bytes as decompressed, from storage or from the system's page cache; read_seconds is the sum over the threads that read \
         ahead, read_wait the time that the training waited for them",
    ).thinned();
    Ok(Some(Section::new("Reading", vec![sheet], Vec::new())))
}
