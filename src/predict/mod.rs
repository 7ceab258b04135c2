//! `hpml predict`: scaling of a training to unmeasured numbers of ranks on the measured or a given machine, predicted from the run
//! file of a sweep or of a training. Prints a table by ranks and, for each measured case, the error of the model when fitted without
//! that case.

mod cost;
mod machine;
mod overlap;
mod points;
#[cfg(test)]
mod published;
mod spread;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::metrics::definitions;
use crate::store::RunFile;
use crate::table::{Cell, Frame, Schema, Sheet, Table, terminal, terminal_width};
use crate::units::{Second, counted, format_seconds};
pub use cost::{Cost, Link, Network};
pub use machine::{AllReduce, Level, Machine, Stragglers};
pub use overlap::Bucket;
pub use points::{Collective, Measured, Point, read};
pub use spread::Spread;

/// Columns of `/prediction` that are shown; network and timing stand above the table.
pub const COLUMNS: [&str; 11] = [
    "ranks",
    "batch_per_rank",
    "step",
    "lag",
    "comm",
    "comm_exposed",
    "all_reduce",
    "images_per_second",
    "speedup",
    "efficiency",
    "batch_for_90_percent",
];

/// Efficiency that `batch_for_90_percent` reaches.
const WANTED: f64 = 0.9;

/// Options of a prediction.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Run file of a sweep on 1 and on several ranks; with a given network that of any sweep or training.
    pub run: PathBuf,
    /// Numbers of ranks to predict for, ascending.
    pub ranks: Vec<usize>,
    /// Samples per rank and step; `None`: the middle one of the measured batches.
    pub batch: Option<usize>,
    /// File of the machine to predict for; `None`: `link`.
    pub machine: Option<PathBuf>,
    /// Latency and bandwidth of the network between the ranks; those not given are fitted.
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
    let network = match &args.machine {
        Some(path) => Network::Machine(Machine::load(path)?),
        None => Network::Ring(args.link),
    };
    let measured = read(&args.run)?;
    let mut text = String::new();
    let mut rows = Vec::new();
    for (model, timing) in series(&measured.points, args.model.as_deref(), &args.run)? {
        let chosen = measured.only(&model, &timing);
        let Some(cost) = Cost::fit(&chosen, &network) else { continue };
        let batch = args.batch.unwrap_or_else(|| middle_batch(&chosen.points));
        let predicted = predict(&model, &cost, &args.ranks, batch);
        let most = args.ranks.iter().copied().max().unwrap_or(1);
        let frame = Frame::new(schema().table(&predicted));
        let title = format!("Predicted scaling of {model}");
        let sheet = frame.sheet("prediction", title, &COLUMNS, &frame.rows()).with_keys(2);
        let sheet = sheet.with_note(describe(&timing, &cost, args, &chosen.points, most));
        let _ = writeln!(text, "{}", terminal(&sheet, terminal_width()));
        if chosen.collectives.is_empty() {
            let _ = writeln!(text, "no /allreduce in the file: no case can be predicted from the others\n");
        } else {
            let _ = writeln!(text, "{}", terminal(&left_out(&chosen), terminal_width()));
        }
        rows.extend(predicted);
    }
    if rows.is_empty() {
        let message = "has no network that was measured on 1 rank and on several, and the all-reduce (sweep.ranks must hold both): \
                       measure both by hpml sweep, or give --machine, for which one case suffices";
        return Err(Error::File { path: args.run.clone(), message: message.into() });
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
    let Ok(measured) = read(path) else { return Ok(None) };
    let mut rows = Vec::new();
    for (model, timing) in series(&measured.points, None, path)? {
        let chosen = measured.only(&model, &timing);
        let Some(cost) = Cost::fit(&chosen, &Network::default()) else { continue };
        let chosen = chosen.points;
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

/// Each network with the timing to predict: overlap if it was measured on several ranks, or nothing else was, else profile.
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
        let of = || points.iter().filter(|point| point.model == model);
        let several = of().any(|point| point.timing == "overlap" && point.ranks > 1);
        if several || of().all(|point| point.timing == "overlap") { "overlap" } else { "profile" }
    };
    Ok(models.into_iter().map(|model| (model.to_owned(), timing(model).to_owned())).collect())
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
    lag: Second,
    comm: Second,
    exposed: Second,
    all_reduce: &'static str,
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
        .float(&definitions::PREDICTED_LAG, |row| row.lag)
        .float(&definitions::PREDICTED_COMM, |row| row.comm)
        .float(&definitions::PREDICTED_EXPOSED, |row| row.exposed)
        .text(&definitions::PREDICTED_ALL_REDUCE, |row| row.all_reduce)
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
        lag: cost.lag(ranks, batch),
        comm: cost.comm(ranks),
        exposed: cost.exposed(ranks, batch),
        all_reduce: if ranks > 1 { cost.machine.all_reduce(ranks, cost.largest_bucket()).1.as_str() } else { "" },
        efficiency: cost.efficiency(ranks, batch),
        batch_for: cost.batch_for(ranks, WANTED).map_or(f64::NAN, |batch| batch as f64),
    };
    ranks.iter().map(row).collect()
}

fn describe(timing: &str, cost: &Cost, args: &Request, points: &[Point], most: usize) -> String {
    let measured = points.iter().map(|point| point.ranks).max().unwrap_or(1);
    let level = &cost.machine.levels[0];
    let fitted = |given: bool| if given { "given" } else { "fitted" };
    let network = match &args.machine {
        Some(path) => format!("machine {}", path.display()),
        None => format!(
            "one ring: latency {} per message ({}), busbw {:.3} GB/s ({}), x {:.2} in training",
            format_seconds(level.latency_us * 1e-6),
            fitted(args.link.latency.is_some()),
            level.bandwidth_gbs,
            fitted(args.link.busbw.is_some()),
            cost.in_training
        ),
    };
    let beyond = match args.machine.is_some() || args.link.busbw.is_some() && args.link.latency.is_some() {
        false if most > measured => format!(
            "; beyond {measured} ranks the fitted ring is assumed: give --machine, or --busbw and --latency of the network between \
             hosts"
        ),
        _ => String::new(),
    };
    let alone = match points.iter().any(|point| point.ranks == 1) {
        true => "",
        false => "; nothing was measured on 1 rank: its own work is taken to be that of a rank here",
    };
    let bytes: f64 = cost.buckets.iter().map(|bucket| bucket.bytes).sum();
    format!(
        "{timing}: fitted to {} on up to {}; all-reduce of {:.1} MB in {}, {}; {network}; the slowest of {measured} ranks {:.1} % \
         behind the mean, growing with a {}{beyond}{alone}",
        counted(points.len(), "measured case"),
        counted(measured, "rank"),
        bytes / 1e6,
        counted(cost.buckets.len(), "bucket"),
        if cost.overlaps { "behind the backward pass" } else { "after the backward pass" },
        100.0 * cost.spread.lag(measured),
        if cost.spread.is_recorded() { "recorded tail" } else { "normal distribution" }
    )
}

/// The table of leave-one-out errors: each measured case on several ranks against the model fitted without it.
fn left_out(measured: &Measured) -> Sheet {
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
    for (index, point) in measured.points.iter().enumerate().filter(|(_, point)| point.ranks > 1) {
        let mut others = measured.clone();
        others.points.remove(index);
        let Some(cost) = Cost::fit(&others, &Network::default()) else { continue };
        let predicted = cost.step(point.ranks, point.batch_per_rank);
        let error = 100.0 * (predicted / point.step - 1.0);
        errors.push(error.abs());
        let key = [point.ranks, point.batch_per_rank].map(|number| Cell::Int(number as i64));
        sheet.rows.push(key.into_iter().chain([point.step, predicted, error].map(Cell::Float)).collect());
    }
    errors.sort_by(f64::total_cmp);
    sheet.note = match errors.last() {
        Some(worst) => format!(
            "with the measured network, whatever network is given; error: median {:.1} %, largest {worst:.1} %",
            errors[errors.len() / 2]
        ),
        None => "too few cases to leave one out".into(),
    };
    sheet
}
