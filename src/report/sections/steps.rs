//! Section of `/steps`: the parts of a training's steps.

use std::collections::{BTreeMap, BTreeSet};

use super::slow;

use crate::config::{Config, Timing};
use crate::device::{Lane, Name};
use crate::error::Result;
use crate::metrics::definitions::{MEAN, MEAN_OF_SLOWEST, P50, P99, SHARE, WORLD_SIZE};
use crate::metrics::{self, Group, Part, RankStep, own_work, rank_steps};
use crate::report::figure::{Axis, Bar, Bars, Figure, Lines, Panel, Scale, Series, Style};
use crate::report::section::Section;
use crate::report::source::Source;
use crate::table::{Cell, Frame, Heading, Sheet};
use crate::trace::Row;

/// Greatest number of bars of a group.
const MOST_BARS: usize = 32;
/// Number of them that the slowest ranks have where not all have one.
const SLOWEST_BARS: usize = 12;
/// Greatest number of points of a curve.
const MOST_POINTS: usize = 1500;

/// Builds the table of the parts, bars of them with one bar per rank, and the curve of step times.
pub fn section(source: &Source) -> Result<Option<Section>> {
    let Some(frame) = rows(source)? else { return Ok(None) };
    let summaries = source.summaries()?;
    let groups = groups(source)?;
    let mut sheets = vec![sheet(&groups)];
    let slow = slow_of(source, &groups)?;
    if slow[0].rows.is_empty() && groups.iter().any(|group| group.ranks.len() > 1) {
        sheets[0].note += "; no rank's own work takes 1.2 times the median over the ranks";
    }
    sheets.extend(slow);
    let figures = vec![bars(&groups), course(&frame, summaries.is_some())];
    Ok(Some(Section::new("Step anatomy", sheets, figures)))
}

/// Builds the tables of slow ranks and hosts alone.
pub fn slow_sheets(source: &Source) -> Result<Vec<Sheet>> {
    Ok(slow_of(source, &groups(source)?)?.into())
}

/// The counted steps of a training, in groups of equal conditions.
///
/// # Errors
/// A table cannot be read.
pub fn groups(source: &Source) -> Result<Vec<Group>> {
    Ok(match source.summaries()? {
        Some(summaries) => summaries.groups(), // without reading the rows, of which there are many
        None => rows(source)?.map(|frame| groups_of(&frame, source.config.as_ref())).unwrap_or_default(),
    })
}

/// The parts of the steps of `/steps`, warm-up left out, as spans that all begin at 0; those of steps on the most ranks.
///
/// # Errors
/// A table cannot be read.
pub fn steps_as_spans(source: &Source) -> Result<Vec<Row>> {
    let Some(frame) = rows(source)? else { return Ok(Vec::new()) };
    let steps = rank_steps(&frame, false);
    let most = steps.iter().map(|step| step.conditions.world_size).max().unwrap_or(0);
    let counted = steps.iter().filter(|step| !step.is_warmup && step.conditions.world_size == most);
    let spans = |of: &RankStep| {
        let (rank, step, times) = (of.rank.max(0) as usize, of.step.max(0) as usize, of.times);
        Part::ALL.into_iter().map(move |part| {
            let (lane, name, end) = (Lane::Compute, Name::Part(part), f64::from(times.get(part)));
            Row { rank, step, lane, name, end, ..Row::default() }
        })
    };
    Ok(counted.flat_map(spans).collect())
}

/// The table `/steps` of a training. A sweep's holds the steps of all its cases, which /scaling summarizes.
fn rows(source: &Source) -> Result<Option<Frame>> {
    Ok(source.frame("steps")?.filter(|frame| frame.column("case").is_none()))
}

fn slow_of(source: &Source, groups: &[Group]) -> Result<[Sheet; 2]> {
    let hosts = source.frame("environment")?;
    Ok(slow::sheets(groups, &|rank| hosts.as_ref().map_or("", |hosts| hosts.text("host", rank as usize))))
}

/// Groups the counted steps by number of ranks and timing.
fn groups_of(frame: &Frame, config: Option<&Config>) -> Vec<Group> {
    let profile = config.is_some_and(|config| config.metrics.timing == Timing::Profile);
    metrics::groups(&rank_steps(frame, profile))
}

fn sheet(groups: &[Group]) -> Sheet {
    let mut sheet = Sheet::new("steps-anatomy", "Step anatomy").with_keys(3);
    sheet.note = groups.iter().map(Group::describe).collect::<Vec<_>>().join("; and ");
    sheet.columns = vec![
        Heading::from(&WORLD_SIZE),
        Heading::new("timing", "1", "profile: nothing overlaps, or overlap"),
        Heading::new("part", "1", "part of the step"),
    ];
    sheet.columns.extend([MEAN, P50, P99, MEAN_OF_SLOWEST, SHARE].iter().map(Heading::from));
    for group in groups {
        let timing = if group.conditions.is_profile { Timing::Profile } else { Timing::Overlap };
        let case = [Cell::Int(group.conditions.world_size as i64), Cell::from(timing.as_str())];
        for row in group.anatomy() {
            let numbers = [row.all.mean, row.all.p50, row.all.p99, row.slowest_rank, row.share].map(Cell::Float);
            sheet.rows.push(case.iter().cloned().chain([Cell::from(row.part.as_str())]).chain(numbers).collect());
        }
    }
    sheet
}

/// Parts that follow one another on a rank and can be stacked; with overlap timing communication counts only where exposed.
fn stacked(profile: bool) -> Vec<Part> {
    let comm: &[Part] = if profile { &[Part::CommWait, Part::Comm] } else { &[Part::CommExposed] };
    [&[Part::Data, Part::Forward, Part::Backward][..], comm, &[Part::Optimizer]].concat()
}

fn bars(groups: &[Group]) -> Figure {
    let parts = stacked(groups.iter().all(|group| group.conditions.is_profile));
    let bars = groups.iter().flat_map(|group| {
        let (parts, shown) = (&parts, shown(group));
        group.ranks.iter().filter(move |(rank, _)| shown.contains(rank)).map(move |(rank, means)| {
            let seconds = |part: Part| means[part as usize];
            let mut values: Vec<f64> = parts.iter().map(|part| seconds(*part)).collect();
            values.push((seconds(Part::Step) - values.iter().sum::<f64>()).max(0.0));
            let ranks = group.conditions.world_size;
            let label = if groups.len() > 1 { format!("rank {rank} of {ranks}") } else { format!("rank {rank}") };
            Bar { label, values, interval: None }
        })
    });
    let panel = Bars {
        title: String::new(),
        x: Axis::new("mean time of a step", "s", Scale::Zero),
        parts: parts.iter().map(|part| part.as_str().to_owned()).chain(["other".into()]).collect(),
        bars: bars.collect(),
    };
    let most = groups.iter().map(|group| group.ranks.len()).max().unwrap_or(0);
    let chosen = match most > MOST_BARS {
        true => {
            format!(" Of {most} ranks the {SLOWEST_BARS} slowest by their own work, and others at equal distances.")
        }
        false => String::new(),
    };
    let note = format!("Parts that follow one another on a rank; other: the rest of the step.{chosen}");
    Figure::new("steps-anatomy", "Step anatomy by rank", vec![Panel::Bars(panel)]).with_note(&note)
}

/// The ranks that have a bar: all, or where they are too many the slowest and others at equal distances.
fn shown(group: &Group) -> BTreeSet<i64> {
    if group.ranks.len() <= MOST_BARS {
        return group.ranks.keys().copied().collect();
    }
    let mut by_own: Vec<i64> = group.ranks.keys().copied().collect();
    by_own.sort_by(|a, b| own_work(&group.ranks[b]).total_cmp(&own_work(&group.ranks[a])));
    let others = group.ranks.keys().step_by(group.ranks.len().div_ceil(MOST_BARS - SLOWEST_BARS));
    others.chain(&by_own[..SLOWEST_BARS]).copied().collect()
}

/// The curve of the slowest rank's time per step, warm-up included.
fn course(frame: &Frame, is_thinned: bool) -> Figure {
    let mut steps: BTreeMap<i64, f64> = BTreeMap::new();
    for row in frame.rows() {
        let seconds = frame.number("step", row);
        if let Some(step) = frame.integer("global_step", row).filter(|_| seconds.is_finite()) {
            let slowest = steps.entry(step).or_insert(0.0);
            *slowest = slowest.max(seconds);
        }
    }
    // Each point is the slowest step of its stretch: a mean would hide outliers, which this plot is for.
    let steps: Vec<(i64, f64)> = steps.into_iter().collect();
    let slowest = |stretch: &[(i64, f64)]| (stretch[0].0 as f64, stretch.iter().map(|(_, s)| *s).fold(0.0, f64::max));
    let points = steps.chunks(steps.len().div_ceil(MOST_POINTS).max(1)).map(slowest).collect();
    let panel = Lines {
        title: String::new(),
        x: Axis::new("global_step", "1", Scale::Linear),
        y: Axis::new("step, slowest rank", "s", Scale::Auto),
        series: vec![Series::new("", Style::Plain, 0, points)],
    };
    Figure::new("steps-course", "Time of each step", vec![Panel::Lines(panel)]).with_note(match is_thinned {
        true => "Steps at equal distances and the slowest of each epoch, warm-up included.",
        false => "Warm-up included.",
    })
}
