//! Section of `/trace`: traced steps as a timeline, and what their exposed communication waited for.

use std::collections::BTreeMap;

use crate::device::{Lane, Name};
use crate::error::Result;
use crate::metrics::Part;
use crate::metrics::definitions::EXPOSED;
use crate::report::figure::{Axis, Figure, Panel, Rank, Scale, Timeline};
use crate::report::section::Section;
use crate::report::source::Source;
use crate::table::{Cell, Heading, Sheet};
use crate::trace::{self, Row};
use crate::units::Second;

/// Parts that the compute lane shows, in the order of the legend; then those of the communication lane.
const PARTS: [Part; 7] =
    [Part::Data, Part::Forward, Part::Backward, Part::CommExposed, Part::Optimizer, Part::CommWait, Part::Comm];

/// Least share of the exposed communication for which a cause has a row of its own.
const LEAST_SHARE: f64 = 1e-3;

/// Builds the table of causes, and the timelines of a typical step and of the slowest one.
pub fn section(source: &Source) -> Result<Option<Section>> {
    let rows = source.trace()?;
    if rows.is_empty() {
        return Ok(None);
    }
    Ok(Some(Section::new("Timeline", vec![sheet(&rows)], vec![figure(&rows)])))
}

fn sheet(rows: &[Row]) -> Sheet {
    let mut sheet = Sheet::new("timeline-exposed", "Exposed communication of the traced steps by cause").with_keys(1);
    let exposed = trace::causes(rows);
    let said =
        [trace::sentence(exposed.as_ref()), trace::slowest(rows).map_or_else(String::new, |slow| slow.describe())];
    sheet.note = said.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ");
    sheet.columns = vec![
        Heading::new("cause", "1", "what the rank waited for"),
        Heading::from(&EXPOSED),
        Heading::new("share", "percent", "share of the exposed communication"),
    ];
    let Some(exposed) = exposed else { return sheet };
    let mut row = |cause: &str, seconds: Second| {
        let numbers = [seconds, 100.0 * seconds / exposed.seconds].map(Cell::Float);
        sheet.rows.push([Cell::from(cause)].into_iter().chain(numbers).collect());
    };
    // Together, or left out, so that all rows read well in one unit.
    let (shown, small): (Vec<_>, Vec<_>) =
        exposed.causes.iter().partition(|(_, seconds)| *seconds >= LEAST_SHARE * exposed.seconds);
    shown.iter().for_each(|(cause, seconds)| row(&cause.describe(), *seconds));
    let others: Second = small.iter().map(|(_, seconds)| seconds).sum();
    if others >= LEAST_SHARE * exposed.seconds {
        row("all others, each below 0.1 %", others);
    }
    sheet
}

/// The traced step of median time, and the slowest one if there are more.
fn figure(rows: &[Row]) -> Figure {
    let times = trace::step_times(rows);
    let mut order: Vec<(usize, Second)> = times.into_iter().collect();
    order.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut panels = Vec::new();
    if let Some((step, _)) = order.get(order.len().saturating_sub(1) / 2) {
        panels.push(panel(rows, *step, "a typical step"));
    }
    if let Some((step, _)) = order.last().filter(|_| order.len() > 1) {
        panels.push(panel(rows, *step, "the slowest of the traced steps"));
    }
    let mut figure = Figure::new("timeline", "Timeline, rank below rank", panels).with_note(
        "Upper half of a row: what the rank computes, and in comm_exposed what it waits for; lower half: its collectives, comm_wait until \
         the last rank had arrived. By rank 0's clock.",
    );
    figure.columns = 1;
    figure
}

fn panel(rows: &[Row], step: usize, what: &str) -> Panel {
    let of_step: Vec<&Row> = rows.iter().filter(|row| row.step == step).collect();
    let begin = of_step.iter().map(|row| row.start).fold(f64::INFINITY, f64::min);
    let mut ranks: BTreeMap<usize, Rank> = BTreeMap::new();
    for row in of_step {
        let Name::Part(part) = row.name else { continue };
        let rank = ranks.entry(row.rank).or_insert_with(|| Rank::new(format!("rank {}", row.rank)));
        let span = (row.start - begin, row.end - begin, part.as_str().to_owned());
        match row.lane {
            Lane::Compute if PARTS.contains(&part) => rank.compute.push(span),
            Lane::Communication => rank.communication.push(span),
            Lane::Compute => {}
        }
    }
    // Inner spans are drawn over those that hold them.
    let duration = |span: &(f64, f64, String)| span.1 - span.0;
    for rank in ranks.values_mut() {
        for spans in [&mut rank.compute, &mut rank.communication] {
            spans.sort_by(|a, b| duration(b).total_cmp(&duration(a)));
        }
    }
    Panel::Timeline(Timeline {
        title: format!("Step {step}, {what}"),
        x: Axis::new("time since the step's first rank began", "s", Scale::Zero),
        parts: PARTS.map(|part| part.as_str().to_owned()).to_vec(),
        ranks: ranks.into_values().collect(),
    })
}
