//! `/comm`: the ledger of messages.

use crate::error::Result;
use crate::report::figure::{Axis, Bar, Bars, Figure, Panel, Scale};
use crate::report::sheet::{Cell, Heading, Section, Sheet};
use crate::report::source::{Frame, Source};

/// What is counted of each kind, and in what.
const COUNTED: [(&str, &str); 4] = [("messages", "1"), ("bytes", "B"), ("sent_bytes", "B"), ("seconds", "s")];

/// Tables of the whole run and of a step, and bars of a step's bytes and seconds.
pub fn section(source: &Source) -> Result<Option<Section>> {
    let Some(frame) = source.frame("comm")? else { return Ok(None) };
    let columns = ["case", "kind", "messages", "bytes", "sent_bytes", "seconds"];
    let mut sheet = frame.sheet("comm", "Messages by kind, of the whole run", &columns, &frame.rows());
    let (algbw, busbw) = (frame.attribute("gradients_algbw_GBps"), frame.attribute("gradients_busbw_GBps"));
    sheet.note = "messages, bytes of their buffers and seconds as rank 0 saw them; sent_bytes of all ranks".into();
    if algbw > 0.0 {
        sheet.note += &format!("; gradients: algbw {algbw:.3} GB/s, busbw {busbw:.3} GB/s");
    }
    // A file of before there was this attribute has no table of a step; its bars are of the whole run.
    let steps = frame.attribute("steps");
    let (per, of) = if steps > 0.0 { (steps, "of a step") } else { (1.0, "of the whole run") };
    let mut sheets = vec![sheet];
    sheets.extend((steps > 0.0).then(|| per_step(&frame, steps)));
    let bars = |&(column, units): &(&str, &str)| bars(&frame, column, units, per);
    let figure = Figure::new("comm", format!("Messages by kind, {of}"), COUNTED.iter().map(bars).collect()).with_note(
        "bytes: of the buffers handed to the collectives; sent_bytes: what all ranks together made of them as messages, none \
         within the shared memory of a host; seconds: inside the calls (gradients wait for the slowest rank in a call of control).",
    );
    Ok(Some(Section::new("Communication", sheets, vec![figure])))
}

/// The whole run over its steps: what comes once, or once an epoch, is spread over them.
fn per_step(frame: &Frame, steps: f64) -> Sheet {
    let mut sheet = Sheet::new("comm-step", "Messages by kind, of a step");
    sheet.note = format!("the whole run over its {steps} steps, what comes once or once an epoch spread over them");
    let headings = COUNTED.iter().filter_map(|(name, _)| frame.heading(name));
    sheet.columns = std::iter::once(Heading::new("kind", "1", "what the messages are for")).chain(headings).collect();
    let row = |row: usize| {
        let counts = sheet.columns[1..].iter().map(|heading| Cell::Float(frame.number(&heading.name, row) / steps));
        std::iter::once(Cell::from(frame.text("kind", row))).chain(counts).collect()
    };
    sheet.rows = frame.rows().into_iter().map(row).collect();
    sheet
}

fn bars(frame: &Frame, column: &str, units: &str, per: f64) -> Panel {
    let bar = |row| Bar { label: frame.text("kind", row).to_owned(), values: vec![frame.number(column, row) / per] };
    Panel::Bars(Bars {
        title: column.into(),
        x: Axis::new(column, units, Scale::Zero),
        parts: vec![column.into()],
        bars: frame.rows().into_iter().map(bar).collect(),
    })
}
