//! `hpml predict`: how a training would scale to ranks that nobody has measured, and how far that can be trusted.
//! In: the run file of a sweep. Out: a table by ranks, and the model's error on each measured case when it is fitted
//! without that case.

mod cost;
mod points;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::metrics::definitions;
use crate::store::{Column, RunFile, Table, Values};
use crate::units::format_seconds;
pub use cost::{Cost, Link};
pub use points::{Collective, Point, read};

/// The efficiency for which a batch is looked for.
const WANTED: f64 = 0.9;

/// What is predicted.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Run file of a sweep on 1 and on several ranks.
    pub run: PathBuf,
    /// Rank counts, ascending.
    pub ranks: Vec<usize>,
    /// Samples per rank and step; `None`: the middle one of the measured.
    pub batch: Option<usize>,
    /// What is known of the network between the ranks; the rest is fitted.
    pub link: Link,
    /// The only model to predict; `None`: all.
    pub model: Option<String>,
    /// Whether the prediction is also written to the run file, as `/prediction`.
    pub save: bool,
}

/// Predicts what is requested, and returns the text to print.
///
/// # Errors
/// The run file cannot be read or, to save, written, or does not hold cases on 1 and on several ranks.
pub fn run(args: &Request) -> Result<String> {
    let (points, collectives) = read(&args.run)?;
    let link = args.link;
    let mut text = String::new();
    let mut tables = Vec::new();
    for (model, timing) in series(&points, args.model.as_deref(), &args.run)? {
        let chosen = of(&points, &model, &timing);
        let Some(cost) = Cost::fit(&chosen, &collectives, link) else { continue };
        let batch = args.batch.unwrap_or_else(|| middle_batch(&chosen));
        let table = predict(&model, &cost, &args.ranks, batch);
        let _ = writeln!(
            text,
            "{}",
            describe(&model, &timing, &cost, link, &chosen, args.ranks.iter().copied().max().unwrap_or(1))
        );
        let _ = writeln!(text, "{}", render(&cost, &args.ranks, batch));
        let _ = writeln!(text, "{}", left_out(&chosen, &collectives));
        tables.push(table);
    }
    if tables.is_empty() {
        let message = "has no network that was measured on 1 rank and on several: sweep.ranks must hold both".into();
        return Err(Error::File { path: args.run.clone(), message });
    }
    if args.save {
        RunFile::open(&args.run)?.flush(&[joined(tables)], None)?;
        let _ = writeln!(text, "/prediction written to {}", args.run.display());
    }
    Ok(text)
}

/// `/prediction` for a report: the measured rank counts and powers of two up to `most`, at every measured batch. `None`
/// if the file does not carry a prediction.
pub fn table(path: &Path, most: usize) -> Result<Option<Table>> {
    let Ok((points, collectives)) = read(path) else { return Ok(None) };
    let mut tables = Vec::new();
    for (model, timing) in series(&points, None, path)? {
        let chosen = of(&points, &model, &timing);
        let Some(cost) = Cost::fit(&chosen, &collectives, Link::default()) else { continue };
        let mut ranks: Vec<usize> = chosen.iter().map(|point| point.ranks).collect();
        ranks.extend(std::iter::successors(Some(1), |n| Some(n * 2)).take_while(|&n| n <= most));
        ranks.sort_unstable();
        ranks.dedup();
        let mut batches: Vec<usize> = chosen.iter().map(|point| point.batch_per_rank).collect();
        batches.sort_unstable();
        batches.dedup();
        tables.extend(batches.into_iter().map(|batch| predict(&model, &cost, &ranks, batch)));
    }
    Ok((!tables.is_empty()).then(|| joined(tables)))
}

/// Networks and the timing mode to predict: overlap where it was measured.
fn series(points: &[Point], model: Option<&str>, path: &Path) -> Result<Vec<(String, String)>> {
    let mut models: Vec<&str> = points.iter().map(|point| point.model.as_str()).collect();
    models.sort_unstable();
    models.dedup();
    if let Some(wanted) = model {
        if !models.contains(&wanted) {
            let message = format!("holds no measured case of {wanted} but of {}", models.join(", "));
            return Err(Error::File { path: path.to_owned(), message });
        }
        models = vec![wanted];
    }
    let timing = |model: &str| {
        let overlap = points.iter().any(|point| point.model == model && point.timing == "overlap" && point.ranks > 1);
        if overlap { "overlap" } else { "profile" }
    };
    Ok(models.into_iter().map(|model| (model.to_owned(), timing(model).to_owned())).collect())
}

fn of(points: &[Point], model: &str, timing: &str) -> Vec<Point> {
    points.iter().filter(|point| point.model == model && point.timing == timing).cloned().collect()
}

/// The middle one of the measured batches.
fn middle_batch(points: &[Point]) -> usize {
    let mut batches: Vec<usize> = points.iter().map(|point| point.batch_per_rank).collect();
    batches.sort_unstable();
    batches.dedup();
    batches[batches.len() / 2]
}

fn predict(model: &str, cost: &Cost, ranks: &[usize], batch: usize) -> Table {
    let integers = |value: &dyn Fn(usize) -> usize| Values::I64(ranks.iter().map(|&n| value(n) as i64).collect());
    let floats = |value: &dyn Fn(usize) -> f64| Values::F64(ranks.iter().map(|&n| value(n)).collect());
    let columns = vec![
        Column::new("model", "1", "network", Values::Text(vec![model.to_owned(); ranks.len()])),
        Column::new("ranks", "1", "ranks that train", integers(&|n| n)),
        Column::new("batch_per_rank", "1", "samples per rank and step", integers(&|_| batch)),
        Column::of(&definitions::PREDICTED_STEP, floats(&|n| cost.step(n, batch))),
        Column::of(&definitions::PREDICTED_COMM, floats(&|n| if n > 1 { cost.comm(n) } else { 0.0 })),
        Column::of(&definitions::SWEEP_IMAGES_PER_SECOND, floats(&|n| (n * batch) as f64 / cost.step(n, batch))),
        Column::of(&definitions::SPEEDUP, floats(&|n| n as f64 * cost.efficiency(n, batch))),
        Column::of(&definitions::EFFICIENCY, floats(&|n| cost.efficiency(n, batch))),
        Column::of(
            &definitions::BATCH_FOR_90,
            floats(&|n| cost.batch_for(n, WANTED).map_or(f64::NAN, |batch| batch as f64)),
        ),
    ];
    Table::new("prediction", "row", columns)
}

/// The rows of several tables, one after the other.
fn joined(tables: Vec<Table>) -> Table {
    let mut tables = tables.into_iter();
    let mut all = tables.next().expect("at least one table");
    for table in tables {
        for (column, more) in all.columns.iter_mut().zip(table.columns) {
            match (&mut column.values, more.values) {
                (Values::F64(values), Values::F64(more)) => values.extend(more),
                (Values::I64(values), Values::I64(more)) => values.extend(more),
                (Values::Text(values), Values::Text(more)) => values.extend(more),
                _ => unreachable!("all are made by `predict`"),
            }
        }
    }
    all
}

fn describe(model: &str, timing: &str, cost: &Cost, link: Link, points: &[Point], most: usize) -> String {
    let mut text = format!(
        "# {model}, {timing}: fitted to {} measured cases on up to {} ranks\n",
        points.len(),
        points.iter().map(|point| point.ranks).max().unwrap_or(1)
    );
    let given = |given: bool| if given { "given" } else { "fitted" };
    let _ = writeln!(
        text,
        "# all-reduce of {:.1} MB as a ring: latency {} a message ({}), busbw {:.3} GB/s ({}), x {:.2} in training",
        cost.bytes as f64 / 1e6,
        format_seconds(cost.alpha),
        given(link.latency.is_some()),
        cost.beta / 1e9,
        given(link.busbw.is_some()),
        cost.in_training
    );
    let _ = write!(
        text,
        "# spread of compute between ranks {:.1} %; overlap of the collectives and the waits before them: ",
        100.0 * cost.spread
    );
    let _ = match cost.overlaps {
        true => write!(text, "{:.0} %, at most {:.0} % of the compute", 100.0 * cost.hidden, 100.0 * cost.hidden_by),
        false => write!(text, "-, {}", definitions::OVERLAP.absent),
    };
    let measured = points.iter().map(|point| point.ranks).max().unwrap_or(1);
    if link.busbw.is_none() && most > measured {
        let _ = write!(
            text,
            "\n# beyond {measured} ranks this takes the measured link for all: give --busbw and --latency of the network between hosts"
        );
    }
    text
}

fn render(cost: &Cost, ranks: &[usize], batch: usize) -> String {
    let mut text =
        String::from("#  ranks  batch      step      comm    images/s   speedup  efficiency  batch for 90 %\n");
    for &n in ranks {
        let comm = if n > 1 { cost.comm(n) } else { 0.0 };
        let efficiency = cost.efficiency(n, batch);
        let _ = writeln!(
            text,
            "{n:>8} {batch:>6} {:>9} {:>9} {:>11.1} {:>9.2} {:>9.1} % {:>15}",
            format_seconds(cost.step(n, batch)),
            format_seconds(comm),
            (n * batch) as f64 / cost.step(n, batch),
            n as f64 * efficiency,
            100.0 * efficiency,
            cost.batch_for(n, WANTED).map_or("-".into(), |batch| batch.to_string())
        );
    }
    if ranks.iter().any(|&n| cost.batch_for(n, WANTED).is_none()) {
        let _ = writeln!(text, "# - in batch for 90 %: {}", definitions::BATCH_FOR_90.absent);
    }
    text
}

/// Each measured case of several ranks against the model fitted without it.
fn left_out(points: &[Point], collectives: &[Collective]) -> String {
    let mut text = String::from("# leave-one-out: each case predicted by a model that was fitted without it\n");
    text.push_str("#  ranks  batch   measured  predicted     error\n");
    let mut errors = Vec::new();
    for (index, point) in points.iter().enumerate().filter(|(_, point)| point.ranks > 1) {
        let mut others = points.to_vec();
        others.remove(index);
        let Some(cost) = Cost::fit(&others, collectives, Link::default()) else { continue };
        let predicted = cost.step(point.ranks, point.batch_per_rank);
        let error = predicted / point.step - 1.0;
        errors.push(error.abs());
        let (ranks, batch) = (point.ranks, point.batch_per_rank);
        let (measured, predicted) = (format_seconds(point.step), format_seconds(predicted));
        let _ = writeln!(text, "{ranks:>8} {batch:>6} {measured:>10} {predicted:>10} {:>+8.1} %", 100.0 * error);
    }
    errors.sort_by(f64::total_cmp);
    match errors.last() {
        Some(worst) => {
            let median = errors[errors.len() / 2];
            let _ = writeln!(text, "# error: median {:.1} %, largest {:.1} %", 100.0 * median, 100.0 * worst);
        }
        None => text.push_str("# too few cases to leave one out\n"),
    }
    text
}
