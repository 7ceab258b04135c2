//! What run files show, in a few plain sentences for a reader who has never seen a report: slow ranks and steps, exposed
//! communication, efficiency, warnings; and honestly where the files cannot tell.

use std::collections::{BTreeMap, BTreeSet};

use super::sections::{self, Cases};
use super::source::Source;
use crate::device::Name;
use crate::error::Result;
use crate::metrics::{Group, LEAST_RATIO, Part, SlowRank, median_of, slow_ranks};
use crate::store::{self, Attribute};
use crate::trace::{self, LONG_STEP, Row, Slowest};
use crate::units::{Second, counted};

/// Greatest number of warnings that are given in full, and of slow ranks that are named.
const MOST: usize = 3;

/// Sentences on all files, each after the file's label if there are several.
///
/// # Errors
/// A table cannot be read.
pub fn of(sources: &[Source]) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for source in sources {
        let label = if sources.len() > 1 { format!("{}: ", source.label) } else { String::new() };
        all.extend(sentences(source)?.into_iter().map(|sentence| format!("{label}{sentence}")));
    }
    Ok(all)
}

fn sentences(source: &Source) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let groups = sections::groups(source)?;
    let spans = source.trace()?;
    let hosts = source.frame("environment")?;
    let host = |rank: i64| hosts.as_ref().map_or("", |hosts| hosts.text("host", rank as usize));
    let steps = sections::steps_as_spans(source)?;
    for group in &groups {
        found.extend(slow_rank(group, groups.len() > 1, &steps, &host));
        found.extend(exposed(group, groups.len() > 1));
    }
    if groups.is_empty() {
        found.push("The file has no steps of a training, so it says nothing on slow ranks.".into());
    } else {
        found.extend(slow_steps(&spans, &steps, &host));
        found.extend(causes(&spans));
    }
    found.extend(efficiency(source, !groups.is_empty())?);
    found.extend(sections::peaks(source));
    found.extend(warnings(source));
    Ok(found)
}

fn ms(seconds: Second) -> String {
    format!("{:.2} ms", 1e3 * seconds)
}

/// ` (host NAME)`, if the host is known.
fn on_host(host: &str) -> String {
    if host.is_empty() { String::new() } else { format!(" (host {host})") }
}

/// Whether a rank is slow throughout, or by its mean alone, and which; `steps` are those on the most ranks.
fn slow_rank<'a>(group: &Group, has_others: bool, steps: &[Row], host: &dyn Fn(i64) -> &'a str) -> Vec<String> {
    let ranks = group.ranks.len();
    let of = if has_others { format!("On {}: ", counted(ranks, "rank")) } else { String::new() };
    if ranks < 2 {
        return vec![format!("{of}One rank trained: there is no other to compare it with, and no communication.")];
    }
    let usual = usual_work(steps);
    let middle = median_of(usual.values().copied());
    let is_seldom = |slow: &SlowRank| usual.len() == ranks && usual[&(slow.rank as usize)] < LEAST_RATIO * middle;
    let (seldom, throughout): (Vec<SlowRank>, Vec<SlowRank>) =
        slow_ranks(&group.ranks).into_iter().partition(is_seldom);
    let named = |slow: &SlowRank| {
        format!(
            "rank {}{}: its own work takes {} per step, {:.1} times the median, {} more in {}",
            slow.rank,
            on_host(host(slow.rank)),
            ms(slow.own),
            slow.ratio,
            ms(slow.excess),
            slow.part.as_str()
        )
    };
    let listed = |slow: &[SlowRank]| {
        let more = if slow.len() > MOST { format!("; and {} more", slow.len() - MOST) } else { String::new() };
        slow.iter().take(MOST).map(named).collect::<Vec<_>>().join("; ") + &more
    };
    let mut found = Vec::new();
    if throughout.is_empty() {
        found.push(format!(
            "{of}No rank is slow throughout: own work of each of {ranks} ranks is within 1.2 times the median."
        ));
    } else {
        found.push(format!("{of}Slow throughout: {}.", listed(&throughout)));
    }
    if !seldom.is_empty() {
        found.push(format!("{of}Slow on average, but not in most steps: {}.", listed(&seldom)));
    }
    found
}

/// Median over the steps of each rank's own work.
fn usual_work(steps: &[Row]) -> BTreeMap<usize, Second> {
    let mut work: BTreeMap<usize, BTreeMap<usize, Second>> = BTreeMap::new();
    for row in steps {
        if let Name::Part(Part::Data | Part::Forward | Part::Backward | Part::Optimizer) = row.name {
            *work.entry(row.rank).or_default().entry(row.step).or_default() += row.seconds();
        }
    }
    work.into_iter().map(|(rank, steps)| (rank, median_of(steps.into_values()))).collect()
}

/// The share of a step that is exposed communication.
fn exposed(group: &Group, has_others: bool) -> Option<String> {
    if group.ranks.len() < 2 {
        return None;
    }
    let mean =
        |part: Part| group.ranks.values().map(|means| means[part as usize]).sum::<f64>() / group.ranks.len() as f64;
    let (exposed, step) = (mean(Part::CommExposed), mean(Part::Step));
    let of = if has_others { format!("On {}: ", counted(group.ranks.len(), "rank")) } else { String::new() };
    let timing = if group.conditions.is_profile { " (profile timing: nothing overlaps)" } else { "" };
    Some(format!(
        "{of}{:.0} % of a step is exposed communication, in which a rank only waits: {} of {}{timing}.",
        100.0 * exposed / step,
        ms(exposed),
        ms(step)
    ))
}

/// Whether single steps were slow, which, and on which rank: the slowest of all `steps`, and that of the traced `spans`, of which
/// more is known.
fn slow_steps<'a>(spans: &[Row], steps: &[Row], host: &dyn Fn(i64) -> &'a str) -> Vec<String> {
    let (times, traced) = (trace::step_times(steps), trace::step_times(spans));
    let told = |slow: &Slowest| match slow.rank().map(|rank| host(rank as i64)) {
        Some(host) if !host.is_empty() => format!("{}; that rank's host: {host}", slow.describe()),
        _ => slow.describe(),
    };
    let mut found = Vec::new();
    let of_all = trace::slowest(steps);
    if let Some(slow) = of_all.as_ref().filter(|slow| !traced.contains_key(&slow.step)) {
        let mend = "It was not traced, so that no more is known of it (metrics.trace_steps).";
        found.push(format!("The slowest step: {}. {mend}", told(slow)));
    }
    if let Some(slow) = trace::slowest(spans) {
        found.push(format!("The slowest traced step: {}.", told(&slow)));
    } else if found.is_empty() {
        found.extend(of_all.map(|slow| format!("The slowest step: {}.", told(&slow))));
    }
    let typical = median_of(times.values().copied());
    let long = times.values().filter(|seconds| **seconds >= LONG_STEP * typical).count();
    let count = times.len().max(traced.len());
    match found.last_mut() {
        Some(last) if long > 1 => {
            *last += &format!(" {long} of {count} steps took {LONG_STEP} times the median or more.")
        }
        Some(_) => {}
        None if count < 3 => found.push("Too few steps are there to say whether a single one was slow.".into()),
        None => found.push(format!("No single step stands out: none of {count} took {LONG_STEP} times the median.")),
    }
    found
}

/// What the exposed communication of the traced steps waited for most.
fn causes(spans: &[Row]) -> Option<String> {
    let exposed = trace::causes(spans)?;
    let (cause, seconds) = exposed.causes.first()?;
    let steps = trace::step_times(spans).len();
    let share = 100.0 * seconds / exposed.seconds;
    Some(format!(
        "In the {} the wait was mostly for {} ({share:.0} % of it).",
        counted(steps, "traced step"),
        cause.describe()
    ))
}

/// Efficiency on the most ranks against one rank, by model; or why it is not known.
fn efficiency(source: &Source, is_training: bool) -> Result<Vec<String>> {
    let Some(frame) = source.frame("scaling")? else {
        let unknown = "Efficiency is not known from one number of ranks: hpml sweep measures it.".to_owned();
        return Ok(if is_training { vec![unknown] } else { Vec::new() });
    };
    let cases = Cases { frame };
    let rows = cases.as_trained();
    let models: BTreeSet<&str> = rows.iter().map(|((model, ..), _)| model.as_str()).collect();
    let of_model = |model: &str| {
        let known = rows.iter().filter(|((of, ..), _)| of == model);
        let known = known.map(|((_, ranks, batch), row)| (*ranks, *batch, cases.frame.number("efficiency", *row)));
        let known: Vec<(i64, i64, f64)> = known.filter(|(ranks, _, value)| *ranks > 1 && value.is_finite()).collect();
        let most = known.iter().map(|(ranks, ..)| *ranks).max();
        let of_most = || known.iter().filter(|(ranks, ..)| Some(*ranks) == most);
        let best = of_most().max_by(|a, b| a.2.total_cmp(&b.2));
        let worst = of_most().min_by(|a, b| a.2.total_cmp(&b.2));
        match (best, worst) {
            (Some((ranks, batch, best)), Some((_, other, worst))) if batch != other => format!(
                "Efficiency of {model} on {ranks} ranks: {best:.2} at {batch} samples per rank, {worst:.2} at {other} (1 would be ideal)."
            ),
            (Some((ranks, batch, best)), _) => {
                format!(
                    "Efficiency of {model} on {ranks} ranks: {best:.2} at {batch} samples per rank (1 would be ideal)."
                )
            }
            _ => format!(
                "Efficiency of {model} is not known: one rank and several at the same batch were not both measured."
            ),
        }
    };
    Ok(models.into_iter().map(of_model).collect())
}

/// The warnings of the run, or that there are none.
fn warnings(source: &Source) -> Vec<String> {
    let texts = store::attribute(&source.environment, store::WARNINGS).and_then(Attribute::texts).unwrap_or_default();
    let mut found: Vec<String> = texts.iter().take(MOST).map(|text| format!("Warning of the run: {text}.")).collect();
    if texts.len() > MOST {
        found.push(format!("{} more warnings stand below.", texts.len() - MOST));
    }
    if texts.is_empty() {
        found.push("The run gave no warning.".into());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Lane;
    use crate::metrics::{Conditions, RankStep, StepTimes, groups};

    /// Steps of 10 ms on two ranks; that of `slow` takes 100 ms in `backward` of rank 1.
    fn steps(count: usize, slow: Option<usize>) -> Vec<Row> {
        let span = |rank: usize, step: usize, part: Part, end: f64| Row {
            rank,
            step,
            lane: Lane::Compute,
            name: Name::Part(part),
            end,
            ..Row::default()
        };
        let of_step = |step: usize| {
            let whole = if slow == Some(step) { 0.1 } else { 0.01 };
            let backward = |rank: usize| if rank == 1 { whole - 0.005 } else { 0.005 };
            [0, 1].map(|rank| [span(rank, step, Part::Step, whole), span(rank, step, Part::Backward, backward(rank))])
        };
        (0..count).flat_map(of_step).flatten().collect()
    }

    #[test]
    fn a_slow_step_is_named_with_its_rank_and_otherwise_none_is() {
        let host = |_: i64| "node1";
        let told = |spans: &[Row], steps: &[Row]| slow_steps(spans, steps, &host).join(" ");
        assert!(told(&[], &steps(2, None)).starts_with("Too few steps"));
        assert!(told(&[], &steps(9, None)).starts_with("No single step stands out: none of 9"));
        let untraced = told(&[], &steps(9, Some(4)));
        assert!(untraced.starts_with("The slowest step: step 4 took 100.00 ms"), "{untraced}");
        assert!(untraced.contains("rank 1") && untraced.contains("host: node1. It was not traced"), "{untraced}");
        let traced = told(&steps(9, Some(4))[8..24], &steps(9, Some(4)));
        assert!(traced.starts_with("The slowest traced step: step 4") && !traced.contains("not traced"), "{traced}");
    }

    #[test]
    fn a_rank_that_one_step_makes_slow_is_not_called_slow_throughout() {
        let group = |backward: &dyn Fn(usize, usize) -> f32| {
            let conditions = Conditions { world_size: 3, is_profile: false };
            let of = |rank: usize, step: usize| {
                let mut times = StepTimes::default();
                times.set(Part::Backward, f64::from(backward(rank, step)));
                RankStep { step: step as i64, conditions, rank: rank as i64, is_warmup: false, times }
            };
            let rows: Vec<RankStep> = (0..9).flat_map(|step| [0, 1, 2].map(|rank| of(rank, step))).collect();
            let span = |row: &RankStep| Row {
                rank: row.rank as usize,
                step: row.step as usize,
                name: Name::Part(Part::Backward),
                end: f64::from(row.times.get(Part::Backward)),
                ..Row::default()
            };
            let spans: Vec<Row> = rows.iter().map(span).collect();
            slow_rank(&groups(&rows)[0], false, &spans, &|_| "node1").join(" ")
        };
        let told = group(&|_, _| 0.01);
        assert!(told.starts_with("No rank is slow throughout") && !told.contains("average"), "{told}");
        let told = group(&|rank, _| if rank == 1 { 0.02 } else { 0.01 });
        assert!(
            told.starts_with("Slow throughout: rank 1 (host node1): its own work takes 20.00 ms per step, 2.0"),
            "{told}"
        );
        let told = group(&|rank, step| if (rank, step) == (1, 4) { 0.31 } else { 0.01 });
        assert!(told.contains("No rank is slow throughout") && told.contains("not in most steps: rank 1"), "{told}");
    }
}
