//! The trace in Chrome's form: a process per rank, a thread per lane, an arrow from a bucket's last gradient to its all-reduce, and
//! counters.
//!
//! Source: Trace Event Format, Google, 2016.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Row;
use crate::device::{Lane, Name};
use crate::metrics::Part;

/// An event of the format; times in microseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChromeEvent {
    /// Name that is shown.
    pub name: String,
    /// Category: the lane.
    pub cat: &'static str,
    /// Kind: X a span, M a name, s and f the ends of an arrow, C a counter.
    pub ph: &'static str,
    /// Start.
    pub ts: f64,
    /// Duration of a span.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dur: Option<f64>,
    /// Rank.
    pub pid: usize,
    /// Number of the lane.
    pub tid: usize,
    /// Number of an arrow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<usize>,
    /// End of an arrow: binds to the span around it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bp: Option<&'static str>,
    /// Values.
    pub args: BTreeMap<&'static str, serde_json::Value>,
}

impl ChromeEvent {
    fn of(ph: &'static str, row: &Row, ts: f64, name: &str) -> ChromeEvent {
        ChromeEvent {
            name: name.into(),
            cat: row.lane.as_str(),
            ph,
            ts: 1e6 * ts,
            dur: None,
            pid: row.rank,
            tid: row.lane as usize,
            id: None,
            bp: None,
            args: BTreeMap::new(),
        }
    }
}

/// The events of `rows`. `batch` is the number of samples of a rank and step where the rows of an earlier build do not say it.
pub fn chrome_trace(rows: &[Row], batch: f64) -> Vec<ChromeEvent> {
    let mut events = names(rows);
    events.extend(rows.iter().filter(|row| row.name != Name::Ready).map(span));
    events.extend(arrows(rows));
    events.extend(counters(rows, batch));
    events
}

/// The events of one rank's `rows` as Holistic Trace Analysis reads them: each lane is a GPU stream, parts are kernels, and a
/// collective has a name as NCCL's kernels have, whatever carried it, since the program knows communication by that name. Waiting of the
/// compute lane is no kernel. Of nested spans the outer ones are left out, so that kernels of a stream do not overlap.
pub fn hta_trace(rows: &[Row]) -> Vec<ChromeEvent> {
    let is_kernel = |row: &&Row| match row.name {
        Name::Part(Part::Comm) => row.lane == Lane::Communication,
        Name::Part(Part::Data | Part::Forward | Part::Backward | Part::Optimizer) => true,
        _ => false,
    };
    let mut events = names(rows);
    for (number, row) in rows.iter().filter(is_kernel).enumerate() {
        let mut event = span(row);
        event.cat = "kernel";
        if row.lane == Lane::Communication {
            event.name = format!("ncclKernel: {}", event.name);
        }
        event.args.insert("stream", (row.lane as usize + 1).into());
        event.args.insert("correlation", (number + 1).into());
        event.args.insert("device", row.rank.into());
        events.push(event);
    }
    events
}

fn names(rows: &[Row]) -> Vec<ChromeEvent> {
    let ranks: std::collections::BTreeSet<usize> = rows.iter().map(|row| row.rank).collect();
    let meta = |rank: usize, tid: usize, name: &str, value: serde_json::Value, key: &'static str| {
        let row = Row { rank, ..Row::default() };
        let mut event = ChromeEvent::of("M", &row, 0.0, name);
        (event.cat, event.tid) = ("__metadata", tid);
        event.args.insert(key, value);
        event
    };
    let of_rank = |rank: usize| {
        let lanes = Lane::ALL.map(|lane| meta(rank, lane as usize, "thread_name", lane.as_str().into(), "name"));
        let process = meta(rank, 0, "process_name", format!("rank {rank}").into(), "name");
        [process, meta(rank, 0, "process_sort_index", rank.into(), "sort_index")].into_iter().chain(lanes)
    };
    ranks.into_iter().flat_map(of_rank).collect()
}

fn span(row: &Row) -> ChromeEvent {
    let name = match (row.name, row.bucket) {
        (Name::Part(Part::Comm), Some(bucket)) => format!("all-reduce of bucket {bucket}"),
        (Name::Part(Part::Comm), None) => "collective".into(),
        (name, _) => name.as_str().into(),
    };
    let mut event = ChromeEvent::of("X", row, row.start, &name);
    event.dur = Some(1e6 * row.seconds());
    event.args.insert("step", row.step.into());
    event.args.insert("part", row.name.as_str().into());
    if let Some(bucket) = row.bucket {
        event.args.insert("bucket", bucket.into());
    }
    if row.bytes > 0 {
        event.args.insert("bytes", row.bytes.into());
    }
    event
}

/// An arrow from each bucket's last gradient to its all-reduce.
fn arrows(rows: &[Row]) -> Vec<ChromeEvent> {
    let key = |row: &Row| (row.rank, row.step, row.bucket);
    let mut all_reduces: BTreeMap<_, &Row> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.name == Name::Part(Part::Comm)) {
        all_reduces.entry(key(row)).or_insert(row);
    }
    let ready = rows.iter().filter(|row| row.name == Name::Ready);
    let pairs = ready.filter_map(|ready| all_reduces.get(&key(ready)).map(|to| (ready, *to)));
    let arrow = |(id, (from, to)): (usize, (&Row, &Row))| {
        let mut begin = ChromeEvent::of("s", from, from.start, "bucket is complete");
        let mut end = ChromeEvent::of("f", to, to.start.max(from.start), "bucket is complete");
        (begin.cat, end.cat, end.bp) = ("bucket", "bucket", Some("e"));
        (begin.id, end.id) = (Some(id), Some(id));
        [begin, end]
    };
    pairs.enumerate().flat_map(arrow).collect()
}

/// Images per second of each step, of all its ranks, and the bytes in collectives at each moment.
fn counters(rows: &[Row], batch: f64) -> Vec<ChromeEvent> {
    let value = |row: &Row, ts: f64, name: &str, value: f64| {
        let mut event = ChromeEvent::of("C", row, ts, name);
        event.args.insert("value", value.into());
        event
    };
    let mut events = Vec::new();
    // A resumed run may have had other ranks and other batches before.
    let mut images: BTreeMap<usize, f64> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.name == Name::Part(Part::Step)) {
        *images.entry(row.step).or_default() += if row.samples > 0 { row.samples as f64 } else { batch };
    }
    let mut in_flight: BTreeMap<usize, Vec<(&Row, f64, i64)>> = BTreeMap::new();
    for row in rows {
        match row.name {
            Name::Part(Part::Step) if row.seconds() > 0.0 && images[&row.step].is_finite() => {
                events.push(value(row, row.start, "images/s", images[&row.step] / row.seconds()));
            }
            Name::Part(Part::Comm) => {
                let changes = in_flight.entry(row.rank).or_default();
                changes.extend([(row, row.start, row.bytes as i64), (row, row.end, -(row.bytes as i64))]);
            }
            _ => {}
        }
    }
    for changes in in_flight.values_mut() {
        changes.sort_by(|a, b| a.1.total_cmp(&b.1));
        let mut bytes = 0;
        for (row, at, change) in changes {
            bytes += *change;
            events.push(value(row, *at, "bytes in collectives", bytes as f64));
        }
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_arrows_and_counters_are_events() {
        let step = Row { rank: 1, step: 3, name: Name::Part(Part::Step), start: 1.0, end: 1.5, ..Row::default() };
        let ready = Row { name: Name::Ready, bucket: Some(2), start: 1.1, end: 1.1, ..step };
        let lane = Lane::Communication;
        let comm = Row { lane, name: Name::Part(Part::Comm), bucket: Some(2), bytes: 40, start: 1.2, end: 1.4, ..step };
        let events = chrome_trace(&[step, ready, comm], 8.0);
        let of = |ph: &str| events.iter().filter(|event| event.ph == ph).collect::<Vec<_>>();
        assert_eq!(of("M").len(), 4);
        let spans = of("X");
        assert_eq!((spans[0].ts, spans[0].dur, spans[0].pid, spans[0].tid), (1e6, Some(0.5e6), 1, 0));
        assert_eq!((spans[1].name.as_str(), spans[1].tid), ("all-reduce of bucket 2", 1));
        assert_eq!((of("s")[0].ts, of("f")[0].ts, of("s")[0].id == of("f")[0].id), (1.1e6, 1.2e6, true));
        let counters: Vec<_> =
            of("C").iter().map(|event| (event.name.as_str(), event.args["value"].as_f64())).collect();
        let bytes = "bytes in collectives";
        assert_eq!(counters, [("images/s", Some(16.0)), (bytes, Some(40.0)), (bytes, Some(0.0))]);
        // Before a resume with another batch and other ranks.
        let other = |rank: usize| Row { rank, step: 1, samples: 2, ..step };
        let resumed = super::counters(&[other(0), other(1), Row { samples: 6, ..step }], 8.0);
        let found: Vec<_> = resumed.iter().map(|event| event.args["value"].as_f64().unwrap()).collect();
        assert_eq!(found, [8.0, 8.0, 12.0]);
    }
}
