//! `/steps` of a training: what a step consists of.

use std::collections::BTreeMap;

use crate::config::Timing;
use crate::error::Result;
use crate::metrics::{Part, StepTimes, anatomy};
use crate::report::figure::{Axis, Bar, Bars, Figure, Lines, Panel, Scale, Series, Style};
use crate::report::sheet::{Cell, Heading, Section, Sheet};
use crate::report::source::{Frame, Source};

/// Points of a curve.
const MOST_POINTS: usize = 1500;

/// Table of the parts, a bar of them a rank, and the steps one after the other.
pub fn section(source: &Source) -> Result<Option<Section>> {
    // A sweep keeps the steps of all its cases there: /scaling tells of them.
    let Some(frame) = source.frame("steps")?.filter(|frame| frame.column("case").is_none()) else { return Ok(None) };
    let ranks = by_rank(&frame);
    let steps = ranks.values().map(Vec::len).max().unwrap_or(0);
    let profile = source.config.as_ref().is_some_and(|config| config.metrics.timing == Timing::Profile);
    let note = format!(
        "{steps} steps x {} rank(s), warm-up left out; {}",
        ranks.len(),
        if profile { "profile: the parts add up" } else { "overlap: comm and comm_wait are hidden or not" }
    );
    let sheets = vec![sheet(&ranks).with_note(note)];
    let figures = vec![bars(&ranks, profile), course(&frame)];
    Ok(Some(Section::new("Step anatomy", sheets, figures)))
}

/// The counted steps of each rank; those of the warm-up only if there are no others.
fn by_rank(frame: &Frame) -> BTreeMap<i64, Vec<StepTimes>> {
    let mut rows = frame.rows_where(|row| frame.integer("warmup", row) != Some(1));
    if rows.is_empty() {
        rows = frame.rows();
    }
    let mut ranks: BTreeMap<i64, Vec<StepTimes>> = BTreeMap::new();
    for row in rows {
        let seconds = Part::ALL.map(|part| frame.number(part.as_str(), row) as f32);
        // A part that an older file does not have took no time that could be told.
        let seconds = seconds.map(|seconds| if seconds.is_finite() { seconds } else { 0.0 });
        let rank = frame.integer("rank", row).unwrap_or(0);
        ranks.entry(rank).or_default().push(StepTimes::from_slice(&seconds));
    }
    ranks
}

fn sheet(ranks: &BTreeMap<i64, Vec<StepTimes>>) -> Sheet {
    let times: Vec<&[StepTimes]> = ranks.values().map(Vec::as_slice).collect();
    let mut parts = if times.is_empty() { Vec::new() } else { anatomy(&times) };
    let comm = |part| matches!(part, Part::Comm | Part::CommWait | Part::CommExposed);
    parts.retain(|row| ranks.len() > 1 || !comm(row.part));
    let mut sheet = Sheet::new("steps", "Step anatomy");
    sheet.columns = vec![
        Heading::new("part", "1", "part of the step"),
        Heading::new("mean", "s", "over all steps and ranks"),
        Heading::new("p50", "s", "median"),
        Heading::new("p99", "s", "99th percentile"),
        Heading::new("slowest_rank", "s", "greatest mean of a rank"),
        Heading::new("share", "percent", "mean over that of the whole step"),
    ];
    let cells = |row: &crate::metrics::PartSummary| {
        let numbers = [row.all.mean, row.all.p50, row.all.p99, row.slowest_rank, 100.0 * row.share];
        std::iter::once(Cell::from(row.part.as_str())).chain(numbers.map(Cell::Float)).collect()
    };
    sheet.rows = parts.iter().map(cells).collect();
    sheet
}

/// Parts that follow one another on a rank: in overlap mode only the exposed part of the communication does.
fn stacked(profile: bool) -> Vec<Part> {
    let comm: &[Part] = if profile { &[Part::CommWait, Part::Comm] } else { &[Part::CommExposed] };
    [&[Part::Data, Part::Forward, Part::Backward][..], comm, &[Part::Optimizer]].concat()
}

fn bars(ranks: &BTreeMap<i64, Vec<StepTimes>>, profile: bool) -> Figure {
    let parts = stacked(profile);
    let bar = |(rank, times): (&i64, &Vec<StepTimes>)| {
        let means = anatomy(&[times.as_slice()]);
        let mean = |part: Part| means.iter().find(|row| row.part == part).map_or(0.0, |row| row.all.mean);
        let mut values: Vec<f64> = parts.iter().map(|part| mean(*part)).collect();
        values.push((mean(Part::Step) - values.iter().sum::<f64>()).max(0.0));
        Bar { label: format!("rank {rank}"), values }
    };
    let panel = Bars {
        title: String::new(),
        x: Axis::new("mean time of a step", "s", Scale::Zero),
        parts: parts.iter().map(|part| part.as_str().to_owned()).chain(["other".into()]).collect(),
        bars: ranks.iter().map(bar).collect(),
    };
    Figure::new("steps-anatomy", "Step anatomy by rank", vec![Panel::Bars(panel)])
        .with_note("What follows one another on a rank; other: the rest of the step.")
}

/// The slowest rank's time of each step, warm-up included.
fn course(frame: &Frame) -> Figure {
    let mut steps: BTreeMap<i64, f64> = BTreeMap::new();
    for row in frame.rows() {
        let seconds = frame.number("step", row);
        if let Some(step) = frame.integer("global_step", row).filter(|_| seconds.is_finite()) {
            let slowest = steps.entry(step).or_insert(0.0);
            *slowest = slowest.max(seconds);
        }
    }
    // Of very many steps, the slowest of each stretch: a mean would hide what such a plot is looked at for.
    let steps: Vec<(i64, f64)> = steps.into_iter().collect();
    let slowest = |stretch: &[(i64, f64)]| (stretch[0].0 as f64, stretch.iter().map(|(_, s)| *s).fold(0.0, f64::max));
    let points = steps.chunks(steps.len().div_ceil(MOST_POINTS).max(1)).map(slowest).collect();
    let panel = Lines {
        title: String::new(),
        x: Axis::new("global_step", "1", Scale::Linear),
        y: Axis::new("step, slowest rank", "s", Scale::Auto),
        series: vec![Series::new("", Style::Plain, 0, points)],
    };
    Figure::new("steps-course", "Time of each step", vec![Panel::Lines(panel)]).with_note("Warm-up included.")
}
