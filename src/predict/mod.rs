//! `hpml predict`: scaling of a training to unmeasured numbers of ranks, predicted from the run file of a sweep. Prints a table
//! by ranks and, for each measured case, the error of the model when fitted without that case.

mod cost;
mod points;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::metrics::definitions;
use crate::store::RunFile;
use crate::table::{Cell, Frame, Schema, Sheet, Table, terminal, terminal_width};
use crate::units::{Second, counted, format_seconds};
pub use cost::{Cost, Link};
pub use points::{Collective, Point, read};

/// Columns of `/prediction` that are shown; network and timing stand above the table.
pub const COLUMNS: [&str; 8] =
    ["ranks", "batch_per_rank", "step", "comm", "images_per_second", "speedup", "efficiency", "batch_for_90_percent"];

/// Efficiency that `batch_for_90_percent` reaches.
const WANTED: f64 = 0.9;

/// Options of a prediction.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Run file of a sweep on 1 and on several ranks.
    pub run: PathBuf,
    /// Numbers of ranks to predict for, ascending.
    pub ranks: Vec<usize>,
    /// Samples per rank and step; `None`: the middle one of the measured batches.
    pub batch: Option<usize>,
    /// Given latency and bandwidth of the network between the ranks; those not given are fitted.
    pub link: Link,
    /// The only model to predict; `None`: all models.
    pub model: Option<String>,
    /// Whether the prediction is also written to the run file, as `/prediction`.
    pub save: bool,
}

/// Predicts the requested cases and returns the text to print.
///
/// # Errors
/// The run file cannot be read, does not hold cases on 1 and on several ranks, or cannot be written to save the prediction.
pub fn run(args: &Request) -> Result<String> {
    let (points, collectives) = read(&args.run)?;
    let link = args.link;
    let mut text = String::new();
    let mut rows = Vec::new();
    for (model, timing) in series(&points, args.model.as_deref(), &args.run)? {
        let chosen = of(&points, &model, &timing);
        let Some(cost) = Cost::fit(&chosen, &collectives, link) else { continue };
        let batch = args.batch.unwrap_or_else(|| middle_batch(&chosen));
        let predicted = predict(&model, &cost, &args.ranks, batch);
        let most = args.ranks.iter().copied().max().unwrap_or(1);
        let frame = Frame::new(schema().table(&predicted));
        let title = format!("Predicted scaling of {model}");
        let sheet = frame.sheet("prediction", title, &COLUMNS, &frame.rows()).with_keys(2);
        let sheet = sheet.with_note(describe(&timing, &cost, link, &chosen, most));
        let _ = writeln!(text, "{}", terminal(&sheet, terminal_width()));
        let _ = writeln!(text, "{}", terminal(&left_out(&chosen, &collectives), terminal_width()));
        rows.extend(predicted);
    }
    if rows.is_empty() {
        let message = "has no network that was measured on 1 rank and on several: sweep.ranks must hold both".into();
        return Err(Error::File { path: args.run.clone(), message });
    }
    if args.save {
        RunFile::open(&args.run)?.flush(&[schema().table(&rows)], None)?;
        let _ = writeln!(text, "/prediction written to {}", args.run.display());
    }
    Ok(text)
}

/// The table `/prediction` for a report: all measured numbers of ranks and powers of two up to `most`, at every measured batch.
/// `None` if the file cannot be read or does not support a prediction.
pub fn table(path: &Path, most: usize) -> Result<Option<Table>> {
    let Ok((points, collectives)) = read(path) else { return Ok(None) };
    let mut rows = Vec::new();
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
        rows.extend(batches.into_iter().flat_map(|batch| predict(&model, &cost, &ranks, batch)));
    }
    Ok((!rows.is_empty()).then(|| schema().table(&rows)))
}

/// Each network with the timing to predict: overlap if it was measured on several ranks, else profile.
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

/// One predicted case.
struct Row {
    model: String,
    ranks: usize,
    batch_per_rank: usize,
    step: Second,
    comm: Second,
    efficiency: f64,
    batch_for: f64,
}

/// The table without rows, which its documentation is generated from.
pub fn empty_table() -> Table {
    schema().table(&[])
}

/// Columns of `/prediction`, which has one row per network, batch and number of ranks.
fn schema() -> Schema<Row> {
    Schema::new("prediction", "row")
        .text(&definitions::MODEL, |row: &Row| row.model.clone())
        .count(("ranks", "1", "ranks that train"), |row| row.ranks)
        .count(&definitions::BATCH_PER_RANK, |row| row.batch_per_rank)
        .float(&definitions::PREDICTED_STEP, |row| row.step)
        .float(&definitions::PREDICTED_COMM, |row| row.comm)
        .float(&definitions::SWEEP_IMAGES_PER_SECOND, |row| (row.ranks * row.batch_per_rank) as f64 / row.step)
        .float(&definitions::SPEEDUP, |row| row.ranks as f64 * row.efficiency)
        .float(&definitions::EFFICIENCY, |row| row.efficiency)
        .float(&definitions::BATCH_FOR_90, |row| row.batch_for)
}

fn predict(model: &str, cost: &Cost, ranks: &[usize], batch: usize) -> Vec<Row> {
    let row = |&ranks: &usize| Row {
        model: model.to_owned(),
        ranks,
        batch_per_rank: batch,
        step: cost.step(ranks, batch),
        comm: if ranks > 1 { cost.comm(ranks) } else { 0.0 },
        efficiency: cost.efficiency(ranks, batch),
        batch_for: cost.batch_for(ranks, WANTED).map_or(f64::NAN, |batch| batch as f64),
    };
    ranks.iter().map(row).collect()
}

fn describe(timing: &str, cost: &Cost, link: Link, points: &[Point], most: usize) -> String {
    let measured = points.iter().map(|point| point.ranks).max().unwrap_or(1);
    let given = |given: bool| if given { "given" } else { "fitted" };
    let overlap = match cost.overlaps {
        true => format!("{:.0} %, at most {:.0} % of the compute", 100.0 * cost.hidden, 100.0 * cost.hidden_by),
        false => format!("-, {}", definitions::OVERLAP.absent),
    };
    let beyond = match (link.busbw, link.latency) {
        (Some(_), Some(_)) => String::new(),
        _ if most <= measured => String::new(),
        _ => format!(
            "; beyond {measured} ranks the fitted terms of the link are assumed: give --busbw and --latency of the network between \
             hosts"
        ),
    };
    format!(
        "{timing}: fitted to {} on up to {}; all-reduce of {:.1} MB as a ring: latency {} per message ({}), busbw {:.3} GB/s ({}), \
         x {:.2} in training; spread of compute between ranks {:.1} %; overlap of the collectives and the waits before them: \
         {overlap}{beyond}",
        counted(points.len(), "measured case"),
        counted(measured, "rank"),
        cost.bytes as f64 / 1e6,
        format_seconds(cost.alpha),
        given(link.latency.is_some()),
        cost.beta / 1e9,
        given(link.busbw.is_some()),
        cost.in_training,
        100.0 * cost.spread
    )
}

/// The table of leave-one-out errors: each measured case on several ranks against the model fitted without it.
fn left_out(points: &[Point], collectives: &[Collective]) -> Sheet {
    let mut sheet =
        Sheet::new("leave-one-out", "Leave-one-out: each case predicted by a model that was fitted without it");
    sheet.keys = 2;
    sheet.columns = vec![
        ("ranks", "1", "ranks that train").into(),
        (&definitions::BATCH_PER_RANK).into(),
        ("measured", "s", "measured step").into(),
        ("predicted", "s", "predicted step").into(),
        (&definitions::STEP_ERROR).into(),
    ];
    let mut errors = Vec::new();
    for (index, point) in points.iter().enumerate().filter(|(_, point)| point.ranks > 1) {
        let mut others = points.to_vec();
        others.remove(index);
        let Some(cost) = Cost::fit(&others, collectives, Link::default()) else { continue };
        let predicted = cost.step(point.ranks, point.batch_per_rank);
        let error = 100.0 * (predicted / point.step - 1.0);
        errors.push(error.abs());
        let key = [point.ranks, point.batch_per_rank].map(|number| Cell::Int(number as i64));
        sheet.rows.push(key.into_iter().chain([point.step, predicted, error].map(Cell::Float)).collect());
    }
    errors.sort_by(f64::total_cmp);
    sheet.note = match errors.last() {
        Some(worst) => format!(
            "with the measured link, whatever link is given; error: median {:.1} %, largest {worst:.1} %",
            errors[errors.len() / 2]
        ),
        None => "too few cases to leave one out".into(),
    };
    sheet
}
