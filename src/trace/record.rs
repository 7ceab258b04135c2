//! Gathers the spans of traced steps on rank 0, puts them on rank 0's clock, and keeps them as tables.

use std::collections::BTreeMap;

use super::{ClockRow, Row};
use crate::collective::{ClockOffset, Combine, Communicator};
use crate::config::{Config, TraceSteps};
use crate::device::{Lane, Message, Name, TraceSpan, origin, since_origin};
use crate::error::{Error, Result};
use crate::launch::Job;
use crate::metrics::{Kind, Part, definitions};
use crate::table::{Schema, Table};
use crate::units::{Bytes, Second};

/// Most spans of all ranks together, which take 20 MB in the run file; further steps are not traced.
const MOST_ROWS: usize = 1 << 18;
/// Numbers per span in a message.
const WIDTH: usize = 7;

/// Columns of `/trace`, which has one row per span.
pub fn trace() -> Schema<Row> {
    Schema::new("trace", "row")
        .count(&definitions::RANK, |row: &Row| row.rank)
        .put(|row, value| row.rank = value as usize)
        .count(("step", "1", "optimizer step, from 0"), |row| row.step)
        .put(|row, value| row.step = value as usize)
        .text(("lane", "1", "compute (with any waiting) or communication"), |row| row.lane.as_str())
        .put_text(|row, text| row.lane = Lane::ALL.into_iter().find(|lane| lane.as_str() == text).unwrap_or(row.lane))
        .text(("name", "1", "part of the step; ready: the last gradient of the bucket was complete"), |row| {
            row.name.as_str()
        })
        .put_text(|row, text| {
            row.name = Part::ALL.map(Name::Part).into_iter().find(|name| name.as_str() == text).unwrap_or(Name::Ready);
        })
        .integer(&definitions::BUCKET, |row| row.bucket.map_or(-1, |bucket| bucket as i64))
        .put(|row, value| row.bucket = (value >= 0.0).then_some(value as usize))
        .integer(&definitions::BYTES, |row| row.bytes as i64)
        .put(|row, value| row.bytes = value as Bytes)
        .count(("samples", "1", "samples that the rank trained on in the step"), |row| row.samples)
        .put(|row, value| row.samples = value as usize)
        .float(
            ("start", "s", "start of the span on rank 0's clock, since the trace began; resumed jobs follow on"),
            |row| row.start,
        )
        .put(|row, value| row.start = value)
        .float(
            ("end", "s", "end of the span on rank 0's clock, since the trace began; resumed jobs follow on"),
            |row| row.end,
        )
        .put(|row, value| row.end = value)
}

/// Columns of `/clocks`, which has one row per rank and measurement.
pub fn clocks() -> Schema<ClockRow> {
    Schema::new("clocks", "row")
        .count(&definitions::RANK, |row: &ClockRow| row.rank)
        .put(|row, value| row.rank = value as usize)
        .float(("at", "s", "moment of the measurement on rank 0's clock, since the trace began"), |row| row.at)
        .put(|row, value| row.at = value)
        .float(
            ("offset", "s", "time that the rank's clock lies ahead of rank 0's, already taken off in /trace"),
            |row| row.offset,
        )
        .put(|row, value| row.offset = value)
        .float(("uncertainty", "s", "greatest error of offset: half of the least round trip"), |row| row.uncertainty)
        .put(|row, value| row.uncertainty = value)
}

/// Spans of all traced steps so far, on rank 0.
pub struct TraceRecord {
    steps: TraceSteps,
    /// Spans that this rank may still keep.
    room: usize,
    rows: Vec<Row>,
    clocks: Vec<ClockRow>,
    /// Samples of this rank in each traced step that [`add`](Self::add) has not had.
    samples: BTreeMap<usize, usize>,
    /// End of the spans of earlier jobs, which those of this one follow.
    before: Second,
    /// The last measurement of every rank's clock, on rank 0.
    last: Vec<ClockOffset>,
    last_at: Second,
    is_begun: bool,
    /// Whether the warning of a full record has been given.
    is_told: bool,
}

impl TraceRecord {
    /// The record of a training of `total` steps, without any span yet.
    ///
    /// # Errors
    /// [`Error::ConfigValue`] if a range of `metrics.trace_steps` lies beyond the training.
    pub fn of(config: &Config, total: usize, world_size: usize) -> Result<TraceRecord> {
        let key = "metrics.trace_steps";
        let value = format!("{:?}", config.metrics.trace_steps);
        let refuse = |expected| {
            Err(Error::ConfigValue { place: "metrics".into(), key: key.into(), value: value.clone(), expected })
        };
        match TraceSteps::parse(&config.metrics.trace_steps) {
            Err(expected) => refuse(expected),
            Ok(steps) => match steps.beyond(total) {
                Some(range) => {
                    refuse(format!("step {} is never taken: the training has steps 0 to {}", range.start, total - 1))
                }
                None => Ok(TraceRecord::new(steps, world_size)),
            },
        }
    }

    /// A record of `steps`, without any yet.
    pub fn new(steps: TraceSteps, world_size: usize) -> TraceRecord {
        let room = MOST_ROWS / world_size;
        let (rows, clocks, last) = (Vec::new(), Vec::new(), Vec::new());
        let samples = BTreeMap::new();
        TraceRecord {
            steps,
            room,
            rows,
            clocks,
            samples,
            before: 0.0,
            last,
            last_at: 0.0,
            is_begun: false,
            is_told: false,
        }
    }

    /// Whether `step` is to be traced on this rank.
    pub fn wants(&self, step: usize) -> bool {
        self.room > 0 && self.steps.contains(step)
    }

    /// Counts the spans of a traced `step`, in which each rank had `samples`.
    pub fn count(&mut self, step: usize, spans: usize, samples: usize) {
        if spans > 0 {
            self.room = self.room.saturating_sub(spans);
            self.samples.insert(step, samples);
        }
    }

    /// Measures the clocks before the first traced step. A collective.
    ///
    /// # Errors
    /// An MPI call failed.
    pub fn begin(&mut self, ranks: &Communicator) -> Result<()> {
        if !self.steps.is_empty() && !self.is_begun {
            self.is_begun = true;
            origin();
            self.measure(ranks)?;
        }
        Ok(())
    }

    /// Gathers the spans of this rank's steps from `first` on. A collective.
    ///
    /// # Errors
    /// An MPI call failed.
    pub fn add(&mut self, job: &Job, first: usize, steps: &[Vec<TraceSpan>]) -> Result<()> {
        if self.steps.is_empty() {
            return Ok(());
        }
        if self.room == 0 && !self.is_told {
            self.is_told = true;
            job.warn(format!("metrics.trace_steps: {MOST_ROWS} spans are kept, and those of later steps are not"));
        }
        let ranks = &*job.communicator;
        let mut own: Vec<f64> = Vec::new();
        for (done, spans) in steps.iter().enumerate() {
            own.extend(spans.iter().flat_map(|span| packed(first + done, span)));
        }
        let mut most = [own.len() as f64];
        ranks.all_reduce(Kind::Control, Combine::Max, &mut most)?;
        if most[0] == 0.0 {
            return Ok(());
        }
        own.resize(most[0] as usize, f64::NAN);
        let all = ranks.gather(Kind::Metrics, &own)?;
        let (before, before_at) = (std::mem::take(&mut self.last), self.last_at);
        self.measure(ranks)?;
        let (from, earlier, samples) = (self.rows.len(), self.before, std::mem::take(&mut self.samples));
        for (rank, values) in all.chunks(own.len()).enumerate() {
            // The offset lies on the line through both measurements, since clocks drift.
            let (old, new) = (before[rank].offset, self.last[rank].offset);
            let drift = (new - old) / (self.last_at - before_at).max(f64::MIN_POSITIVE);
            let on_root = |at: Second| earlier + at - (old + drift * (at - old - before_at));
            let packed = values.chunks(WIDTH).take_while(|values| !values[0].is_nan());
            let row = |values: &[f64]| {
                let row = unpacked(rank, values, on_root)?;
                // The sampler pads, so every rank has as many samples as rank 0.
                Some(Row { samples: samples.get(&row.step).copied().unwrap_or(0), ..row })
            };
            self.rows.extend(packed.filter_map(row));
        }
        self.rows[from..]
            .sort_by(|a, b| (a.step, a.rank, a.lane).cmp(&(b.step, b.rank, b.lane)).then(a.start.total_cmp(&b.start)));
        Ok(())
    }

    /// Measures every rank's clock. A collective.
    fn measure(&mut self, ranks: &Communicator) -> Result<()> {
        let now = || since_origin(std::time::Instant::now());
        self.last = ranks.clock_offsets(now)?;
        self.last_at = now();
        let at = self.before + self.last_at;
        let row = |(rank, clock): (usize, &ClockOffset)| ClockRow {
            rank,
            at,
            offset: clock.offset,
            uncertainty: clock.uncertainty,
        };
        self.clocks.extend(self.last.iter().enumerate().map(row));
        Ok(())
    }

    /// Continues with the earlier `tables`, which rank 0 has. A collective.
    ///
    /// # Errors
    /// An MPI call failed.
    pub fn resume(&mut self, job: &Job, tables: &[Table]) -> Result<()> {
        self.take_up(tables);
        let [kept] = job.from_root([self.rows.len() as f64])?;
        self.leave_room(kept as usize, job.world_size);
        Ok(())
    }

    /// Takes the rows of earlier jobs, which spans of this one follow.
    fn take_up(&mut self, tables: &[Table]) {
        self.rows = trace().find(tables);
        self.clocks = clocks().find(tables);
        self.before = self.rows.iter().map(|row| row.end).fold(0.0, f64::max);
    }

    /// Sets the room of each of `ranks` ranks for spans beside the `kept` ones of earlier jobs: the limit is that of the whole run.
    fn leave_room(&mut self, kept: usize, ranks: usize) {
        self.room = MOST_ROWS.saturating_sub(kept) / ranks;
    }

    /// The tables `/trace` and `/clocks`; none without any row.
    pub fn tables(&self) -> Vec<Table> {
        if self.rows.is_empty() {
            return Vec::new();
        }
        vec![trace().table(&self.rows), clocks().table(&self.clocks)]
    }
}

fn packed(step: usize, span: &TraceSpan) -> [f64; WIDTH] {
    let TraceSpan { lane, name, message, start, end } = *span;
    let bucket = message.bucket.map_or(-1.0, |bucket| bucket as f64);
    [step as f64, f64::from(lane as u8), name.number() as f64, bucket, message.bytes as f64, start, end]
}

fn unpacked(rank: usize, values: &[f64], on_root: impl Fn(Second) -> Second) -> Option<Row> {
    let [step, lane, name, bucket, bytes, start, end] = *values else { return None };
    let (lane, name) = (*Lane::ALL.get(lane as usize)?, Name::numbered(name as usize)?);
    let message = Message { bucket: (bucket >= 0.0).then_some(bucket as usize), bytes: bytes as Bytes };
    let (start, end) = (on_root(start), on_root(end));
    let (bucket, bytes) = (message.bucket, message.bytes);
    Some(Row { rank, step: step as usize, lane, name, bucket, bytes, samples: 0, start, end })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_table_is_the_one_that_was_written() {
        let row = Row {
            rank: 2,
            step: 7,
            lane: Lane::Communication,
            name: Name::Part(Part::CommWait),
            bucket: Some(1),
            bytes: 4096,
            samples: 32,
            start: 0.25,
            end: 0.5,
        };
        let clock = ClockRow { rank: 2, at: 0.1, offset: 0.05, uncertainty: 1e-6 };
        let mut record = TraceRecord::new(TraceSteps::default(), 4);
        assert!(record.tables().is_empty());
        record.rows = vec![row, Row { name: Name::Ready, bucket: None, ..row }];
        record.clocks = vec![clock];
        let tables = record.tables();
        assert_eq!(tables[0].numbers("bucket"), [1.0, -1.0]);
        let mut resumed = TraceRecord::new(TraceSteps::default(), 4);
        resumed.take_up(&tables);
        assert_eq!(resumed.before, 0.5);
        assert_eq!((resumed.rows, resumed.clocks), (record.rows, record.clocks));
    }

    #[test]
    fn a_span_keeps_its_values_in_a_message() {
        let message = Message { bucket: Some(3), bytes: 12 };
        let span = TraceSpan { lane: Lane::Communication, name: Name::Ready, message, start: 1.0, end: 2.0 };
        let row = unpacked(5, &packed(9, &span), |at| at - 0.5).unwrap();
        assert_eq!((row.rank, row.step, row.lane, row.name), (5, 9, span.lane, span.name));
        assert_eq!((row.bucket, row.bytes, row.start, row.end), (Some(3), 12, 0.5, 1.5));
        assert!(unpacked(5, &[1.0], |at| at).is_none());
    }

    #[test]
    fn a_full_record_wants_no_more_steps() {
        let mut record = TraceRecord::new(TraceSteps::parse("every 2").unwrap(), 2);
        assert!(record.wants(4) && !record.wants(3));
        record.count(4, MOST_ROWS, 8);
        assert!(!record.wants(4));
        record.leave_room(MOST_ROWS - 7, 2);
        assert!(record.wants(4) && record.room == 3, "a resumed run has what earlier jobs left");
        record.leave_room(MOST_ROWS, 2);
        assert!(!record.wants(4));
    }
}
