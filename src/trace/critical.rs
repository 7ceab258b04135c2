//! What the exposed communication of traced steps waited for: ranks that arrived late, and the transfer itself.

use std::collections::{BTreeMap, BTreeSet};

use super::Row;
use crate::device::{Lane, Name};
use crate::metrics::{Part, median_of};
use crate::units::Second;

/// What a rank waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// A rank that arrived last at the collective, and the part of its step that it was in meanwhile.
    Late {
        /// The late rank.
        rank: usize,
        /// Number of the part in [`Part::ALL`].
        part: usize,
    },
    /// A rank that had arrived, but noticed later than all had: it stood still, or had no core.
    Still {
        /// The rank.
        rank: usize,
    },
    /// The transfer of a bucket, or of another buffer, once all ranks had arrived.
    Transfer {
        /// Bucket of gradients, if it was one.
        bucket: Option<usize>,
    },
    /// Neither: the hand-over to or from the thread that communicates.
    HandOver,
}

impl Cause {
    /// The cause in words.
    pub fn describe(self) -> String {
        match self {
            Cause::Late { rank, part } => format!("rank {rank} arriving late in {}", Part::ALL[part].as_str()),
            Cause::Still { rank } => format!("rank {rank} standing still in a collective (stopped, or without a core)"),
            Cause::Transfer { bucket: Some(bucket) } => format!("the transfer of bucket {bucket}"),
            Cause::Transfer { bucket: None } => "the transfer of other buffers".into(),
            Cause::HandOver => "the hand-over between threads".into(),
        }
    }
}

/// Exposed communication, mean of the traced steps and ranks, by cause.
#[derive(Debug, Clone, PartialEq)]
pub struct Exposed {
    /// Seconds per step and rank.
    pub seconds: Second,
    /// Seconds per step and rank by cause, the greatest first; they add up to `seconds`.
    pub causes: Vec<(Cause, Second)>,
}

/// Collective of a step: its bucket, and its number among those of the bucket in this step.
type Key = (usize, Option<usize>, usize);

/// Splits the exposed communication of `rows`, the spans of traced steps; `None` if no step has any.
pub fn causes(rows: &[Row]) -> Option<Exposed> {
    let mut steps: BTreeMap<usize, Vec<Row>> = BTreeMap::new();
    for row in rows {
        steps.entry(row.step).or_default().push(*row);
    }
    let mut of_cause: BTreeMap<Cause, Second> = BTreeMap::new();
    let mut ranks_of_steps = 0;
    for (step, of_step) in &steps {
        ranks_of_steps += of_step.iter().map(|row| row.rank).collect::<BTreeSet<_>>().len();
        // A late rank may still be in its step before.
        let before = step.checked_sub(1).and_then(|before| steps.get(&before)).map_or(&[][..], |rows| rows);
        split(of_step, before, &mut of_cause);
    }
    let mut causes: Vec<(Cause, Second)> =
        of_cause.into_iter().map(|(cause, seconds)| (cause, seconds / ranks_of_steps as f64)).collect();
    causes.retain(|(_, seconds)| *seconds > 0.0);
    causes.sort_by(|a, b| b.1.total_cmp(&a.1));
    let seconds: Second = causes.iter().map(|(_, seconds)| seconds).sum();
    (seconds > 0.0).then_some(Exposed { seconds, causes })
}

/// Adds the exposed communication of one step, of which `before` is the step before.
fn split(rows: &[Row], before: &[Row], of_cause: &mut BTreeMap<Cause, Second>) {
    let all: Vec<(Key, Vec<Row>)> = collectives(rows).into_iter().collect();
    let moments: Vec<[(usize, Second); 2]> = all
        .iter()
        .map(|(_, ranks)| {
            let last = last_arrival(ranks);
            [last, last_to_notice(rows, ranks, last)]
        })
        .collect();
    let is_exposed = |row: &&Row| row.lane == Lane::Compute && row.name == Name::Part(Part::CommExposed);
    for exposed in rows.iter().filter(is_exposed) {
        let mut left = exposed.seconds();
        for ((key, ranks), [(late, arrived), (still, noticed)]) in all.iter().zip(&moments) {
            let Some(own) = ranks.iter().find(|row| row.rank == exposed.rank) else { continue };
            let (from, to) = (own.start.max(exposed.start), own.end.min(exposed.end));
            if to <= from {
                continue;
            }
            let arrived = if *late == exposed.rank { from } else { arrived.clamp(from, to) };
            if arrived > from {
                let part = busiest([before, rows], *late, from, arrived) as usize;
                *of_cause.entry(Cause::Late { rank: *late, part }).or_default() += arrived - from;
            }
            let noticed = noticed.clamp(arrived, to);
            *of_cause.entry(Cause::Still { rank: *still }).or_default() += noticed - arrived;
            *of_cause.entry(Cause::Transfer { bucket: key.1 }).or_default() += to - noticed;
            left -= to - from;
        }
        *of_cause.entry(Cause::HandOver).or_default() += left.max(0.0);
    }
}

/// The collectives of each step, as each rank saw them.
fn collectives(rows: &[Row]) -> BTreeMap<Key, Vec<Row>> {
    let mut seen: BTreeMap<(usize, usize, Option<usize>), usize> = BTreeMap::new();
    let mut found: BTreeMap<Key, Vec<Row>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.lane == Lane::Communication && row.name == Name::Part(Part::Comm)) {
        let number = seen.entry((row.rank, row.step, row.bucket)).or_default();
        found.entry((row.step, row.bucket, *number)).or_default().push(*row);
        *number += 1;
    }
    found
}

/// The rank that began a collective last, and when.
fn last_arrival(ranks: &[Row]) -> (usize, Second) {
    let last = ranks.iter().max_by(|a, b| a.start.total_cmp(&b.start)).expect("a collective has a rank");
    (last.rank, last.start)
}

/// The rank that noticed last that all had arrived at a collective, and when; not before the arrival itself, `last`.
fn last_to_notice(rows: &[Row], ranks: &[Row], last: (usize, Second)) -> (usize, Second) {
    let wait = |of: &Row| {
        let own = rows.iter().filter(|row| row.name == Name::Part(Part::CommWait) && row.rank == of.rank);
        // The first one: a compressed bucket has several.
        own.filter(|row| row.start >= of.start && row.end <= of.end).map(|row| row.end).min_by(f64::total_cmp)
    };
    let noticed = ranks.iter().filter_map(|of| Some((of.rank, wait(of)?)));
    noticed.max_by(|a, b| a.1.total_cmp(&b.1)).filter(|noticed| noticed.1 > last.1).unwrap_or(last)
}

/// The part that `rank` spent most of the time between two moments in, by the spans of two steps.
fn busiest(rows: [&[Row]; 2], rank: usize, from: Second, to: Second) -> Part {
    let parts = [Part::Data, Part::Forward, Part::Backward, Part::Optimizer, Part::CommExposed];
    let within = |part: Part| -> Second {
        let of = rows.into_iter().flatten().filter(|row| row.rank == rank && row.lane == Lane::Compute);
        of.filter(|row| row.name == Name::Part(part)).map(|row| (row.end.min(to) - row.start.max(from)).max(0.0)).sum()
    };
    parts.into_iter().max_by(|&a, &b| within(a).total_cmp(&within(b))).expect("a list that is not empty")
}

/// Time of each traced step on its slowest rank.
pub fn step_times(rows: &[Row]) -> BTreeMap<usize, Second> {
    let mut times: BTreeMap<usize, Second> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.name == Name::Part(Part::Step)) {
        let slowest = times.entry(row.step).or_default();
        *slowest = slowest.max(row.seconds());
    }
    times
}

/// Ratio to the median from which a step is a long one.
pub const LONG_STEP: f64 = 1.5;

/// The slowest traced step, and the rank and part that made it slow.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slowest {
    /// The step.
    pub step: usize,
    /// Seconds of the step on its slowest rank, and the median of the traced steps.
    pub seconds: [Second; 2],
    /// The rank whose time in a part exceeds its own median most, and that part.
    pub late: (usize, Part),
    /// The time of that rank in that part, and its median over the traced steps.
    pub late_seconds: [Second; 2],
    /// The rank that stood still longest in a collective of the step, and for how long.
    pub still: Option<(usize, Second)>,
    /// The rank that began the step last, and how long after the first.
    pub behind: (usize, Second),
}

/// The slowest of at least three traced steps, if it took [`LONG_STEP`] times their median.
pub fn slowest(rows: &[Row]) -> Option<Slowest> {
    let times = step_times(rows);
    let (&step, &seconds) = times.iter().max_by(|a, b| a.1.total_cmp(b.1))?;
    let typical = median_of(times.values().copied());
    if times.len() < 3 || seconds < LONG_STEP * typical {
        return None;
    }
    let mut of_rank: BTreeMap<(usize, usize), BTreeMap<usize, Second>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.lane == Lane::Compute) {
        let Name::Part(part) = row.name else { continue };
        if matches!(part, Part::Data | Part::Forward | Part::Backward | Part::Optimizer) {
            *of_rank.entry((row.rank, part as usize)).or_default().entry(row.step).or_default() += row.seconds();
        }
    }
    let excess = of_rank.into_iter().filter_map(|((rank, part), steps)| {
        let (own, usual) = (*steps.get(&step)?, median_of(steps.values().copied()));
        Some(((rank, Part::ALL[part]), [own, usual]))
    });
    let (late, late_seconds) = excess.max_by(|a, b| (a.1[0] - a.1[1]).total_cmp(&(b.1[0] - b.1[1])))?;
    let of_step: Vec<Row> = rows.iter().filter(|row| row.step == step).copied().collect();
    let stood = collectives(&of_step).into_values().map(|ranks| {
        let last = last_arrival(&ranks);
        let (rank, noticed) = last_to_notice(&of_step, &ranks, last);
        (rank, noticed - last.1)
    });
    let still = stood.max_by(|a, b| a.1.total_cmp(&b.1));
    let begins = of_step.iter().filter(|row| row.name == Name::Part(Part::Step));
    let first = begins.clone().map(|row| row.start).fold(f64::INFINITY, f64::min);
    let last = begins.max_by(|a, b| a.start.total_cmp(&b.start))?;
    let behind = (last.rank, last.start - first);
    Some(Slowest { step, seconds: [seconds, typical], late, late_seconds, still, behind })
}

impl Slowest {
    /// Whether `seconds` are a good part of what the step took more.
    fn is_much(&self, seconds: Second) -> bool {
        seconds >= 0.3 * (self.seconds[0] - self.seconds[1])
    }

    /// The rank that stood still, if that made the step slow, and for how long.
    fn stopped(&self) -> Option<(usize, Second)> {
        let more = self.late_seconds[0] - self.late_seconds[1];
        self.still.filter(|(_, still)| self.is_much(*still) && *still > more)
    }

    /// The rank that began the step late, if that made it slow, and how late.
    fn delayed(&self) -> Option<(usize, Second)> {
        let more = self.late_seconds[0] - self.late_seconds[1];
        Some(self.behind).filter(|(_, behind)| self.is_much(*behind) && *behind > more)
    }

    /// The rank that made the step slow; `None` if it was slow in communication on every rank.
    pub fn rank(&self) -> Option<usize> {
        let late = self.is_much(self.late_seconds[0] - self.late_seconds[1]).then_some(self.late.0);
        self.stopped().or(self.delayed()).map(|(rank, _)| rank).or(late)
    }

    /// The step in one sentence.
    pub fn describe(&self) -> String {
        let ms = |seconds: Second| format!("{:.2} ms", 1e3 * seconds);
        let ((rank, part), [own, usual], [step, typical]) = (self.late, self.late_seconds, self.seconds);
        let found = format!("step {} took {} (median {})", self.step, ms(step), ms(typical));
        if let Some((rank, still)) = self.stopped() {
            return format!(
                "{found}: rank {rank} stood still for {} in a collective (stopped, or without a core)",
                ms(still)
            );
        }
        if let Some((rank, behind)) = self.delayed() {
            return format!(
                "{found}: rank {rank} began it {} after the first rank (stopped, or without a core, between two steps)",
                ms(behind)
            );
        }
        if !self.is_much(own - usual) {
            return format!("{found}, in communication on every rank");
        }
        format!("{found}: rank {rank} spent {} in {} (median {})", ms(own), part.as_str(), ms(usual))
    }
}

/// The causes in one sentence, those that make up at least a tenth; `""` without any.
pub fn sentence(exposed: Option<&Exposed>) -> String {
    let Some(Exposed { seconds, causes }) = exposed else { return String::new() };
    let milliseconds = |seconds: Second| format!("{:.2} ms", 1e3 * seconds);
    let main = causes.iter().filter(|(_, part)| *part >= 0.1 * seconds);
    let parts: Vec<String> =
        main.map(|(cause, seconds)| format!("{} is {}", milliseconds(*seconds), cause.describe())).collect();
    format!("of {} exposed per step and rank, {}", milliseconds(*seconds), parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(rank: usize, lane: Lane, part: Part, bucket: Option<usize>, start: f64, end: f64) -> Row {
        Row { rank, step: 5, lane, name: Name::Part(part), bucket, start, end, ..Row::default() }
    }

    #[test]
    fn the_exposed_time_is_split_into_late_ranks_and_transfer() {
        let (compute, comm) = (Lane::Compute, Lane::Communication);
        let rows = [
            row(0, compute, Part::Backward, None, 0.0, 1.0),
            row(0, compute, Part::CommExposed, None, 1.0, 4.5),
            row(0, comm, Part::Comm, Some(0), 1.0, 4.0),
            row(1, compute, Part::Backward, None, 0.0, 3.0),
            row(1, compute, Part::CommExposed, None, 3.0, 4.0),
            row(1, comm, Part::Comm, Some(0), 3.0, 4.0),
        ];
        let exposed = causes(&rows).unwrap();
        assert_eq!(exposed.seconds, 4.5 / 2.0);
        let late = Cause::Late { rank: 1, part: Part::Backward as usize };
        let transfer = Cause::Transfer { bucket: Some(0) };
        // Rank 0 waits 2 s for rank 1, then both transfer for 1 s; rank 0 needs 0.5 s more.
        assert_eq!(exposed.causes, [(late, 1.0), (transfer, 1.0), (Cause::HandOver, 0.25)]);
        assert_eq!(
            sentence(Some(&exposed)),
            "of 2250.00 ms exposed per step and rank, 1000.00 ms is rank 1 arriving late in backward, 1000.00 ms is the \
             transfer of bucket 0, 250.00 ms is the hand-over between threads"
        );
        assert_eq!((causes(&rows[..1]), sentence(None)), (None, String::new()));
    }

    #[test]
    fn the_slowest_step_names_the_rank_and_the_part() {
        let spans = |step: usize, rank: usize, backward: f64, whole: f64| {
            let of = |part: Part, end: f64| Row { step, ..row(rank, Lane::Compute, part, None, 0.0, end) };
            [of(Part::Step, whole), of(Part::Forward, 1.0), of(Part::Backward, backward)]
        };
        let mut rows: Vec<Row> =
            (0..4).flat_map(|step| [spans(step, 0, 2.0, 4.0), spans(step, 1, 2.5, 4.0)]).flatten().collect();
        assert_eq!(slowest(&rows), None);
        rows.extend([spans(4, 0, 2.0, 9.0), spans(4, 1, 7.5, 9.0)].into_iter().flatten());
        let slow = slowest(&rows).unwrap();
        assert_eq!(
            (slow.step, slow.seconds, slow.late, slow.late_seconds),
            (4, [9.0, 4.0], (1, Part::Backward), [7.5, 2.5])
        );
        assert_eq!(
            slow.describe(),
            "step 4 took 9000.00 ms (median 4000.00 ms): rank 1 spent 7500.00 ms in backward (median 2500.00 ms)"
        );
        let elsewhere = Slowest { late_seconds: [2.6, 2.5], ..slow };
        let still = Slowest { still: Some((1, 4.0)), ..elsewhere };
        assert!(
            still
                .describe()
                .ends_with("rank 1 stood still for 4000.00 ms in a collective (stopped, or without a core)")
        );
        assert!(elsewhere.describe().ends_with("in communication on every rank") && elsewhere.rank().is_none());
        let between = Slowest { behind: (1, 4.0), ..elsewhere };
        assert!(between.describe().contains("rank 1 began it 4000.00 ms after the first rank"));
        assert_eq!((between.rank(), still.rank()), (Some(1), Some(1)));
    }
}
