//! Section of `/comm`, the ledger of messages.

use crate::error::Result;
use crate::metrics::definitions::{BYTES, MESSAGES, SECONDS, SENT_BYTES};
use crate::report::figure::{Axis, Bar, Bars, Figure, Panel, Scale};
use crate::report::section::Section;
use crate::report::source::Source;
use crate::table::{Cell, Frame, Heading, Sheet};

/// Counted columns, as (name, units).
const COUNTED: [(&str, &str); 4] = [
    (MESSAGES.name, MESSAGES.units),
    (BYTES.name, BYTES.units),
    (SENT_BYTES.name, SENT_BYTES.units),
    (SECONDS.name, SECONDS.units),
];

/// Builds the tables of the whole run and per step, and bars of the counted columns per step.
pub fn section(source: &Source) -> Result<Option<Section>> {
    let Some(frame) = source.frame("comm")? else { return Ok(None) };
    // Files from before the ledger counted steps have no table per step; their bars show the whole run.
    let has_steps = frame.rows().iter().any(|row| frame.number("steps", *row) > 0.0);
    let of = if has_steps { "per step" } else { "of the whole run" };
    let mut sheets = vec![messages(&frame)];
    sheets.extend(has_steps.then(|| per_step(&frame)));
    let bars = |&(column, units): &(&str, &str)| bars(&frame, column, units, has_steps);
    let figure = Figure::new("comm", format!("Messages by kind, {of}"), COUNTED.iter().map(bars).collect()).with_note(
        "bytes: size of the buffers given to the collectives; sent_bytes: size of the messages that all ranks together sent \
         for them, none within a host's shared memory; seconds: time inside the calls (the wait for the slowest rank before \
         gradients are reduced counts as control).",
    );
    Ok(Some(Section::new("Communication", sheets, vec![figure])))
}

/// The table of the whole run, with rows for each number of ranks that the run had.
fn messages(frame: &Frame) -> Sheet {
    let keys = 2 + usize::from(frame.column("case").is_some());
    let columns =
        ["case", "kind", "world_size", "steps", "messages", "bytes", "sent_bytes", "seconds", "algbw", "busbw"];
    frame.sheet("comm", "Messages by kind, of the whole run", &columns, &frame.rows()).with_keys(keys).with_note(
        "messages, bytes of their buffers and seconds as rank 0 saw them; sent_bytes of all ranks, without those within the shared memory of a host; algbw and busbw of the \
         gradients' all-reduces",
    )
}

/// The table per step: the whole run divided by its steps on the same number of ranks.
fn per_step(frame: &Frame) -> Sheet {
    let mut sheet = Sheet::new("comm-step", "Messages by kind, per step").with_keys(2);
    sheet.note =
        "the whole run divided by its steps on this number of ranks; calls per run or per epoch are spread over the steps".into();
    let headings = COUNTED.iter().filter_map(|(name, _)| frame.heading(name));
    let kind = Heading::new("kind", "1", "what the messages are for");
    sheet.columns = [kind].into_iter().chain(frame.heading("world_size")).chain(headings).collect();
    let row = |row: usize| {
        let cells = sheet.columns.iter().map(|heading| match heading.name.as_str() {
            "kind" => Cell::from(frame.text("kind", row)),
            "world_size" => frame.integer("world_size", row).map_or(Cell::Empty, Cell::Int),
            name => Cell::Float(frame.number(name, row) / frame.number("steps", row)),
        });
        cells.collect()
    };
    let stepped = frame.rows_where(|row| frame.number("steps", row) > 0.0);
    sheet.rows = stepped.into_iter().map(row).collect();
    sheet
}

fn bars(frame: &Frame, column: &str, units: &str, is_per_step: bool) -> Panel {
    let first = frame.integer("world_size", 0);
    let several = frame.rows().iter().any(|row| frame.integer("world_size", *row) != first);
    let bar = |row| {
        let kind = frame.text("kind", row).to_owned();
        let label = match frame.integer("world_size", row) {
            Some(ranks) if several => format!("{kind}, {ranks} ranks"),
            _ => kind,
        };
        let per = if is_per_step { frame.number("steps", row) } else { 1.0 };
        Bar { label, values: vec![frame.number(column, row) / per], interval: None }
    };
    Panel::Bars(Bars {
        title: column.into(),
        x: Axis::new(column, units, Scale::Zero),
        parts: vec![column.into()],
        bars: frame.rows().into_iter().map(bar).collect(),
    })
}
