//! `/comm`: the ledger of messages.

use crate::error::Result;
use crate::report::figure::{Axis, Bar, Bars, Figure, Panel, Scale};
use crate::report::sheet::Section;
use crate::report::source::{Frame, Source};

/// Table and bars of bytes and seconds.
pub fn section(source: &Source) -> Result<Option<Section>> {
    let Some(frame) = source.frame("comm")? else { return Ok(None) };
    let columns = ["case", "kind", "messages", "bytes", "seconds"];
    let mut sheet = frame.sheet("comm", "Messages by kind, as rank 0 saw them", &columns, &frame.rows());
    let (algbw, busbw) = (frame.attribute("gradients_algbw_GBps"), frame.attribute("gradients_busbw_GBps"));
    if algbw > 0.0 {
        sheet.note = format!("gradients: algbw {algbw:.3} GB/s, busbw {busbw:.3} GB/s");
    }
    let panels = vec![bars(&frame, "bytes", "B"), bars(&frame, "seconds", "s")];
    let figure = Figure::new("comm", "Messages by kind", panels)
        .with_note("Bytes of the buffers handed to the collectives, and the time inside the calls, of the whole run.");
    Ok(Some(Section::new("Communication", vec![sheet], vec![figure])))
}

fn bars(frame: &Frame, column: &str, units: &str) -> Panel {
    let bar = |row| Bar { label: frame.text("kind", row).to_owned(), values: vec![frame.number(column, row)] };
    Panel::Bars(Bars {
        title: column.into(),
        x: Axis::new(column, units, Scale::Zero),
        parts: vec![column.into()],
        bars: frame.rows().into_iter().map(bar).collect(),
    })
}
