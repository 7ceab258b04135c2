//! Measurements of a sweep or a training, as numbers.

use std::collections::BTreeMap;
use std::path::Path;

use super::overlap::{self, Bucket};
use crate::config::Timing;
use crate::error::{Error, Result};
use crate::metrics::{
    Conditions, Group, Part, RankStep, StepTimes, Summaries, TimeHistogram, groups, mean, overlap as share_hidden,
    own_work, rank_steps,
};
use crate::store::{self, FileKind};
use crate::table::{Frame, Table, Values};
use crate::units::{Bytes, Second};

/// One measured case.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Name of the network.
    pub model: String,
    /// Timing mode, `overlap` or `profile`.
    pub timing: String,
    /// Number of ranks.
    pub ranks: usize,
    /// Samples per rank and step.
    pub batch_per_rank: usize,
    /// Seconds of the whole step.
    pub step: Second,
    /// Seconds of the backward pass.
    pub backward: Second,
    /// Seconds in collectives, hidden or not.
    pub comm: Second,
    /// Seconds of waiting for slower ranks before collectives, hidden or not.
    pub comm_wait: Second,
    /// Seconds of `comm` and `comm_wait` that were not hidden.
    pub comm_exposed: Second,
    /// Seconds by which the slowest rank's own work exceeds the mean of the ranks; NaN if the steps are not known by rank.
    pub lag: Second,
    /// Share of `comm` and `comm_wait` that was hidden; NaN if nothing can overlap.
    pub overlap: f64,
    /// Bytes of gradients.
    pub gradient_bytes: Bytes,
    /// Deviations of single ranks' own work from the mean of the ranks, as shares of it.
    pub deviations: Vec<f64>,
}

impl Point {
    /// Seconds of a step without waiting for collectives.
    pub fn compute(&self) -> Second {
        self.step - self.comm_exposed
    }
}

/// One size of the bare all-reduce.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Collective {
    /// Number of ranks that took part.
    pub ranks: usize,
    /// Bytes of the buffer on one rank.
    pub bytes: Bytes,
    /// Median seconds, in place.
    pub seconds: Second,
}

/// What a run file holds to predict from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measured {
    /// Cases.
    pub points: Vec<Point>,
    /// Bare all-reduces; none in a training's file.
    pub collectives: Vec<Collective>,
    /// Buckets by network; none in files of older versions.
    pub buckets: BTreeMap<String, Vec<Bucket>>,
    /// Least bytes of a bucket where `buckets` holds none.
    pub bucket_bytes: f64,
}

impl Measured {
    /// The cases of one network in one timing mode, with everything else.
    pub fn only(&self, model: &str, timing: &str) -> Measured {
        let mut only = self.clone();
        only.points.retain(|point| point.model == model && point.timing == timing);
        only
    }

    /// Buckets of `model`, `bytes` together: as recorded, else of equal sizes and complete evenly.
    pub fn buckets_of(&self, model: &str, bytes: Bytes) -> Vec<Bucket> {
        let recorded = self.buckets.get(model);
        let sum: f64 = recorded.into_iter().flatten().map(|bucket| bucket.bytes).sum();
        match recorded {
            // Compressed gradients are smaller than the parameters.
            Some(buckets) if sum > 0.0 && buckets.iter().all(|bucket| bucket.ready.is_finite()) => {
                let scaled = |bucket: &Bucket| Bucket { bytes: bucket.bytes * bytes as f64 / sum, ..*bucket };
                buckets.iter().map(scaled).collect()
            }
            _ => overlap::even(bytes as f64, self.bucket_bytes.max(1.0)),
        }
    }
}

/// Reads the measurements of a run file: `/scaling`, `/steps` and `/allreduce` of a sweep, or the steps of a training.
///
/// # Errors
/// The file cannot be read, is neither a sweep's nor a training's, or a table is damaged.
pub fn read(path: &Path) -> Result<Measured> {
    let names = store::table_names(path)?;
    let has = |name: &str| names.iter().any(|known| known == name);
    let reader = Reader { path };
    let config = store::read_config(path).ok();
    let mut measured = Measured {
        bucket_bytes: config.as_ref().map_or(25e6, |config| config.parallel.bucket_mb * 1e6),
        ..Measured::default()
    };
    if has("buckets") {
        measured.buckets = buckets(&Frame::new(store::read_table(path, "buckets")?));
    }
    let is_training =
        || matches!(store::read_identity(path), Ok(identity) if identity.kind == Some(FileKind::Training));
    if has("scaling") {
        let steps =
            if has("steps") { by_case(&Frame::new(store::read_table(path, "steps")?)) } else { BTreeMap::new() };
        measured.points = reader.points(&store::read_table(path, "scaling")?, &steps)?;
        if has("allreduce") {
            measured.collectives = reader.collectives(&store::read_table(path, "allreduce")?)?;
        }
    } else if let Some(config) = config.filter(|_| has("steps") && is_training()) {
        let tables = names.iter().filter(|name| ["rank_times", "time_histogram"].contains(&name.as_str()));
        let tables = tables.map(|name| store::read_table(path, name)).collect::<Result<Vec<Table>>>()?;
        let model = config.model.name.as_str();
        let bytes = measured.buckets.get(model).map_or(0.0, |all| all.iter().map(|bucket| bucket.bytes).sum()) as Bytes;
        let profile = config.metrics.timing == Timing::Profile;
        let parts = config.train.accumulate.max(1);
        let batch = |ranks: usize| match config.train.global_batch {
            0 => config.train.batch_per_rank * parts,
            global => global / ranks.max(1),
        };
        let point =
            |group: &Group, deviations: Vec<f64>, lag: Second| of_training(group, model, batch, bytes, deviations, lag);
        measured.points = match Summaries::find(&tables) {
            Some(summaries) => {
                let of = |group: &Group| {
                    let deviations = summaries.histogram(group.conditions, Part::Backward).map_or(Vec::new(), relative);
                    point(group, deviations, f64::NAN)
                };
                summaries.groups().iter().map(of).collect()
            }
            None => {
                let rows = rank_steps(&Frame::new(store::read_table(path, "steps")?), profile);
                let of = |group: &Group| {
                    let (deviations, lag) = deviations(&of_group(&rows, group.conditions));
                    point(group, deviations, lag)
                };
                groups(&rows).iter().map(of).collect()
            }
        };
        measured.points.retain(|point| point.ranks > 0 && point.batch_per_rank > 0 && point.step > 0.0);
    } else {
        let message =
            format!("holds no /scaling but {}: predictions need a file of hpml sweep or hpml train", list(&names));
        return Err(Error::File { path: path.to_owned(), message });
    }
    Ok(measured)
}

fn list(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("/{name}")).collect();
    if names.is_empty() { "nothing".into() } else { names.join(", ") }
}

fn buckets(frame: &Frame) -> BTreeMap<String, Vec<Bucket>> {
    let mut all: BTreeMap<String, Vec<Bucket>> = BTreeMap::new();
    for row in frame.rows() {
        let bucket = Bucket { bytes: frame.number("bytes", row).max(0.0), ready: frame.number("ready", row) };
        all.entry(frame.text("model", row).to_owned()).or_default().push(bucket);
    }
    all
}

/// Steps of a case, `[steps][ranks]`.
type Steps = Vec<Vec<StepTimes>>;

/// The steps of a sweep by case, in the file's order.
fn by_case(frame: &Frame) -> BTreeMap<i64, Steps> {
    let mut cases: BTreeMap<i64, BTreeMap<(i64, i64), Vec<StepTimes>>> = BTreeMap::new();
    let integer = |name: &str, row: usize| frame.integer(name, row).unwrap_or(-1);
    for row in frame.rows() {
        let times = StepTimes::from_slice(&Part::ALL.map(|part| frame.number(part.as_str(), row) as f32));
        let step = (integer("round", row), integer("step_index", row));
        cases.entry(integer("case", row)).or_default().entry(step).or_default().push(times);
    }
    cases.into_iter().map(|(case, steps)| (case, steps.into_values().collect())).collect()
}

/// The counted steps of a training under these `conditions`.
fn of_group(rows: &[RankStep], conditions: Conditions) -> Steps {
    let mut steps: BTreeMap<i64, Vec<StepTimes>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.conditions == conditions && !row.is_warmup) {
        steps.entry(row.step).or_default().push(row.times);
    }
    steps.into_values().collect()
}

/// Deviations of the ranks' own work from its mean in each step, as shares of it, and the mean seconds by which the slowest exceeds
/// it in the middle half of the steps (see [`TRIMMED_MEAN`](crate::metrics::definitions::TRIMMED_MEAN)).
fn deviations(steps: &Steps) -> (Vec<f64>, Second) {
    let (mut all, mut lags) = (Vec::new(), Vec::new());
    for ranks in steps.iter().filter(|ranks| ranks.len() > 1) {
        let own: Vec<f64> = ranks.iter().map(|times| own_work(&Part::ALL.map(|part| times.get(part).into()))).collect();
        let middle = mean(own.iter().copied());
        if !(middle > 0.0 && middle.is_finite()) {
            continue;
        }
        all.extend(own.iter().map(|own| own / middle - 1.0));
        let step = ranks.iter().map(|times| f64::from(times.get(Part::Step))).fold(0.0, f64::max);
        lags.push((step, own.iter().copied().fold(0.0, f64::max) - middle));
    }
    lags.sort_by(|a, b| a.0.total_cmp(&b.0));
    let cut = lags.len() / 4;
    (all, mean(lags[cut..lags.len() - cut].iter().map(|(_, lag)| *lag)))
}

/// Values of a histogram from its mean, as shares of it; each bin stands for at most a hundred values.
fn relative(histogram: &TimeHistogram) -> Vec<f64> {
    let all: f64 = histogram.counts().iter().sum();
    let center = |bin: usize| TimeHistogram::border(bin) * (1.0 - TimeHistogram::ERROR);
    let sum: f64 = histogram.counts().iter().enumerate().map(|(bin, count)| count * center(bin)).sum();
    let most = 10_000.0f64.min(all);
    let (mut taken, mut seen, mut values) = (0.0, 0.0, Vec::new());
    for (bin, count) in histogram.counts().iter().enumerate() {
        seen += count;
        while taken < (seen / all * most).floor() {
            taken += 1.0;
            values.push(center(bin) * all / sum - 1.0);
        }
    }
    values
}

fn of_training(
    group: &Group,
    model: &str,
    batch: impl Fn(usize) -> usize,
    gradient_bytes: Bytes,
    deviations: Vec<f64>,
    lag: Second,
) -> Point {
    let of = |part: Part| mean(group.ranks.values().map(|means| means[part as usize]));
    let (comm, comm_wait, comm_exposed) = (of(Part::Comm), of(Part::CommWait), of(Part::CommExposed));
    let Conditions { world_size: ranks, is_profile } = group.conditions;
    Point {
        model: model.into(),
        timing: if is_profile { Timing::Profile } else { Timing::Overlap }.as_str().into(),
        ranks,
        batch_per_rank: batch(ranks),
        step: of(Part::Step),
        backward: of(Part::Backward),
        comm,
        comm_wait,
        comm_exposed,
        lag,
        overlap: if is_profile || ranks < 2 { f64::NAN } else { share_hidden(comm_exposed, comm_wait, comm) },
        gradient_bytes,
        deviations,
    }
}

struct Reader<'a> {
    path: &'a Path,
}

impl Reader<'_> {
    fn points(&self, table: &Table, steps_of: &BTreeMap<i64, Steps>) -> Result<Vec<Point>> {
        let (models, timings) = (self.texts(table, "model")?, self.texts(table, "timing")?);
        let status = self.texts(table, "status")?;
        let (ranks, batches) = (self.numbers(table, "ranks")?, self.numbers(table, "batch_per_rank")?);
        let (steps, bytes) = (self.numbers(table, "step")?, self.numbers(table, "gradient_bytes")?);
        let (comm, wait) = (self.numbers(table, "comm")?, self.numbers(table, "comm_wait")?);
        let (exposed, overlap) = (self.numbers(table, "comm_exposed")?, self.numbers(table, "overlap")?);
        let backward = self.numbers(table, "backward")?;
        let measured =
            (0..status.len()).filter(|&row| status[row] == "ok" && steps[row].is_finite() && steps[row] > 0.0);
        let point = |row: usize| {
            let (deviations, lag) = steps_of.get(&(row as i64)).map_or((Vec::new(), f64::NAN), deviations);
            Point {
                model: models[row].clone(),
                timing: timings[row].clone(),
                ranks: ranks[row] as usize,
                batch_per_rank: batches[row] as usize,
                step: steps[row],
                backward: backward[row],
                comm: comm[row],
                comm_wait: wait[row],
                comm_exposed: exposed[row],
                lag,
                overlap: overlap[row],
                gradient_bytes: bytes[row] as Bytes,
                deviations,
            }
        };
        Ok(measured.map(point).filter(|point| point.ranks > 0 && point.batch_per_rank > 0).collect())
    }

    fn collectives(&self, table: &Table) -> Result<Vec<Collective>> {
        let places = self.texts(table, "place")?;
        let (ranks, sizes) = (self.numbers(table, "ranks")?, self.numbers(table, "size")?);
        let times = self.numbers(table, "p50")?;
        let rows = (0..places.len()).filter(|&row| places[row] == "in_place" && times[row] > 0.0 && ranks[row] > 1.0);
        let one =
            |row: usize| Collective { ranks: ranks[row] as usize, bytes: sizes[row] as Bytes, seconds: times[row] };
        Ok(rows.map(one).collect())
    }

    fn numbers(&self, table: &Table, name: &str) -> Result<Vec<f64>> {
        let numbers = table.column(name).and_then(|column| column.values.numbers());
        numbers.filter(|numbers| numbers.len() == rows(table)).ok_or_else(|| self.damaged(table, name))
    }

    fn texts(&self, table: &Table, name: &str) -> Result<Vec<String>> {
        match table.column(name).map(|column| &column.values) {
            Some(Values::Text(texts)) if texts.len() == rows(table) => Ok(texts.clone()),
            _ => Err(self.damaged(table, name)),
        }
    }

    fn damaged(&self, table: &Table, name: &str) -> Error {
        Error::Dataset {
            path: self.path.to_owned(),
            name: format!("{}/{name}", table.group),
            message: "missing, or not as long as the table: not a file of hpml sweep".into(),
        }
    }
}

fn rows(table: &Table) -> usize {
    table.column("ranks").map_or(0, |column| column.values.len())
}
