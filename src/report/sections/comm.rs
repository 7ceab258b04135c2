//! `/comm`: the ledger of messages.

use crate::error::Result;
use crate::metrics::definitions::{BYTES, MESSAGES, SECONDS, SENT_BYTES};
use crate::report::figure::{Axis, Bar, Bars, Figure, Panel, Scale};
use crate::report::section::Section;
use crate::report::source::Source;
use crate::table::{Cell, Frame, Heading, Sheet};

/// What is counted of each kind, and in what.
const COUNTED: [(&str, &str); 4] = [
    (MESSAGES.name, MESSAGES.units),
    (BYTES.name, BYTES.units),
    (SENT_BYTES.name, SENT_BYTES.units),
    (SECONDS.name, SECONDS.units),
];

/// Tables of the whole run and of a step, and bars of a step's bytes and seconds.
pub fn section(source: &Source) -> Result<Option<Section>> {
    let Some(frame) = source.frame("comm")? else { return Ok(None) };
    // A file of before there were steps beside the counts has no table of a step; its bars are of the whole run.
    let has_steps = frame.rows().iter().any(|row| frame.number("steps", *row) > 0.0);
    let of = if has_steps { "of a step" } else { "of the whole run" };
    let mut sheets = vec![messages(&frame)];
    sheets.extend(has_steps.then(|| per_step(&frame)));
    let bars = |&(column, units): &(&str, &str)| bars(&frame, column, units, has_steps);
    let figure = Figure::new("comm", format!("Messages by kind, {of}"), COUNTED.iter().map(bars).collect()).with_note(
        "bytes: of the buffers handed to the collectives; sent_bytes: what all ranks together made of them as messages, none \
         within the shared memory of a host; seconds: inside the calls (gradients wait for the slowest rank in a call of control).",
    );
    Ok(Some(Section::new("Communication", sheets, vec![figure])))
}

/// The table of the whole run alone, for each number of ranks that it had.
fn messages(frame: &Frame) -> Sheet {
    let keys = 2 + usize::from(frame.column("case").is_some());
    let columns =
        ["case", "kind", "world_size", "steps", "messages", "bytes", "sent_bytes", "seconds", "algbw", "busbw"];
    frame.sheet("comm", "Messages by kind, of the whole run", &columns, &frame.rows()).with_keys(keys).with_note(
        "messages, bytes of their buffers and seconds as rank 0 saw them; sent_bytes of all ranks; algbw and busbw of the \
         gradients' all-reduces",
    )
}

/// The whole run over its steps on as many ranks: what comes once, or once an epoch, is spread over them.
fn per_step(frame: &Frame) -> Sheet {
    let mut sheet = Sheet::new("comm-step", "Messages by kind, of a step").with_keys(2);
    sheet.note =
        "the whole run divided by its steps on this number of ranks; what happens once, or once per epoch, is spread over them".into();
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
        Bar { label, values: vec![frame.number(column, row) / per] }
    };
    Panel::Bars(Bars {
        title: column.into(),
        x: Axis::new(column, units, Scale::Zero),
        parts: vec![column.into()],
        bars: frame.rows().into_iter().map(bar).collect(),
    })
}
