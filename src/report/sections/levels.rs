//! Section of `/levels`: what an all-reduce between hosts does on each level of the network.

use crate::error::Result;
use crate::report::section::Section;
use crate::report::source::Source;

/// Builds the table with one row per algorithm and level.
pub fn section(source: &Source) -> Result<Option<Section>> {
    let Some(frame) = source.frame("levels")? else { return Ok(None) };
    let columns = [
        "algorithm",
        "level",
        "groups",
        "members_min",
        "members_max",
        "carrier",
        "hop_latency",
        "hop_bandwidth",
        "leaving",
    ];
    let mut sheet = frame.sheet("levels", "Levels of an all-reduce between hosts", &columns, &frame.rows());
    sheet.keys = 2;
    let sheet = sheet
        .with_note("leaving: bytes that leave a host or a rack per byte of the buffer, computed from the messages");
    Ok(Some(Section::new("Levels", vec![sheet], Vec::new())))
}
