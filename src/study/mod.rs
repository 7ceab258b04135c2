//! `hpml study`: variants of one training, over several seeds, in one job. The `[study]` section of the configuration names the
//! variants. The run file holds them in `/variants` and one row per variant, seed and epoch in `/study`; a table that compares
//! the variants is printed. All variants train with one seed before the next, so that an interrupted job has whole seeds. The
//! file is complete after each training.

mod effect;
mod tables;
mod variants;

use std::time::Instant;

use crate::config::{Config, Plan};
use crate::data;
use crate::environment;
use crate::error::Result;
use crate::launch::Job;
use crate::live::{Live, Outlets};
use crate::metrics::{Entry, Kind, Part, definitions};
use crate::output::{self, Destination};
use crate::report;
use crate::store::{FileKind, Identity, RunFile};
use crate::table::{Schema, Table};
use crate::train::{Checkpoints, EpochRow, Progress, Training};
use crate::units::{Second, counted, format_seconds};
use effect::Ground;
use variants::{Variant, variants};

/// One epoch of one training.
struct Row {
    variant: String,
    seed: u64,
    epoch: usize,
    /// Losses, accuracies and times; `None` once a loss or a weight was NaN or infinite (the training diverged).
    measured: Option<EpochRow>,
    /// All-reduces of gradients (of parameters with local steps) in this epoch on rank 0.
    gradients: Entry,
    /// Sum of `comm` over the steps of this epoch, in seconds, on rank 0.
    comm: Second,
}

/// The tables of a study without rows, which their documentation is generated from. The trainings add `/sampling`, `/spread` and
/// `/ranks` with the columns `variant` and `seed` in front.
pub fn empty_tables() -> Vec<Table> {
    vec![variants::schema().table(&[]), schema().table(&[])]
}

/// Trains every variant with every seed, and writes the results to `destination`. A collective.
///
/// # Errors
/// A variant is invalid, the file cannot be written, or a rank fails. A training that diverges is a result, not an error.
pub fn run(plan: &Plan, job: &Job, destination: &Destination) -> Result<()> {
    let datasets = job.agree(data::open_shared(&plan.data, &job.communicator))?;
    let (plan, network) = &job.with_crossovers(plan, &job.communicator, None)?; // once, so that all variants sum alike
    let ground = Ground { ranks: job.world_size, samples: datasets.train.len(), target: job.target };
    let variants = job.agree(variants(plan, ground))?;
    let mut environment = environment::attributes(job, Some(&datasets));
    environment.extend(network.iter().flat_map(environment::network));
    let owner = output::claim(job, destination, &format!("study-{}ranks", job.world_size))?;
    let created = owner.map(|owner| {
        let identity = Identity::new(FileKind::Study);
        let ranks = vec![environment::table(job)];
        let mut file = RunFile::create_owned(owner, destination.force, identity, plan, environment, ranks)?;
        file.set_written(plan.as_written());
        Ok(file)
    });
    let mut file = job.agree(created.transpose())?;
    if job.is_root() {
        print_header(plan, job, &datasets.name, &variants);
    }
    let (mut rows, mut more_tables) = (Vec::new(), Vec::new());
    let mut live = Live::new(job, &plan.metrics, Outlets::none());
    live.begin_work();
    let (mut begun, trainings) = (0, plan.study.seeds.len() * variants.len());
    let last = (*plan.study.seeds.last().expect("checked: there are seeds"), variants.len() - 1);
    for &seed in &plan.study.seeds {
        for (variant, Variant { name, plan, .. }) in variants.iter().enumerate() {
            let started = Instant::now();
            let plan = job.agree(plan.adapted(|config| config.run.seed = seed))?;
            let first = rows.len();
            begun += 1;
            live.set_context(format!("training {begun}/{trainings} ({name}, seed {seed})"));
            live.set_later((begun..trainings).map(|number| variants[number % variants.len()].samples()).sum());
            let measured = train_one(&plan, job, &datasets, name, &mut rows, &mut live)?;
            tables::append(&mut more_tables, name, seed, measured);
            if let Some(file) = &mut file {
                print_training(name, seed, &rows[first..], started.elapsed().as_secs_f64());
                let mut tables = vec![variants::schema().table(&variants), schema().table(&rows)];
                tables.extend(more_tables.iter().cloned());
                file.set_warnings(job.warnings());
                match (seed, variant) == last {
                    true => file.finish(&tables, None)?,
                    false => file.flush(&tables, None)?,
                }
            }
        }
    }
    if let Some(file) = &file {
        print!("\n{}", report::tables(None, &[schema().table(&rows)], &["study-summary"]));
        println!("\nwritten to {}\nnext: hpml report {}", file.path().display(), file.path().display());
    }
    Ok(())
}

/// Trains one variant with one seed, and appends its epochs to `rows`. Returns the training's other tables.
fn train_one(
    plan: &Plan,
    job: &Job,
    datasets: &data::Datasets,
    variant: &str,
    rows: &mut Vec<Row>,
    live: &mut Live,
) -> Result<Vec<Table>> {
    let mut checkpoints = Checkpoints::none();
    let mut training = Training::new(plan, job, datasets)?.tolerating_divergence();
    loop {
        let before = job.communicator.ledger();
        let more = training.epoch(&mut checkpoints, live)? == Progress::Epoch;
        let Some(row) = training.record_mut().take_last() else { return Ok(training.more_tables()) };
        let since = job.communicator.ledger();
        let [gradients, parameters] = [Kind::Gradients, Kind::Parameters].map(|kind| since.since(&before, kind));
        let gradients = gradients.and(parameters);
        let comm = training.record().last_epoch(Part::Comm);
        let (seed, epoch) = (plan.run.seed, row.epoch);
        let diverged = training.has_diverged();
        let variant = variant.to_owned();
        rows.push(Row { variant, seed, epoch, measured: (!diverged).then_some(row), gradients, comm });
        if diverged || !more {
            return Ok(training.more_tables());
        }
    }
}

/// Columns of `/study`, which has one row per variant, seed and epoch.
fn schema() -> Schema<Row> {
    let of = |value: fn(&EpochRow) -> f64| move |row: &Row| row.measured.as_ref().map_or(f64::NAN, value);
    Schema::new("study", "row")
        .text(&definitions::VARIANT, |row: &Row| row.variant.clone())
        .integer(&definitions::SEED, |row| row.seed as i64)
        .count(&definitions::EPOCH, |row| row.epoch)
        .float(&definitions::TRAIN_LOSS, of(|epoch| epoch.train.loss))
        .float(&definitions::TRAIN_ACCURACY, of(|epoch| epoch.train.accuracy))
        .float(&definitions::TEST_LOSS, of(|epoch| epoch.test.loss))
        .float(&definitions::TEST_ACCURACY, of(|epoch| epoch.test.accuracy))
        .float(&definitions::EPOCH_LR, of(|epoch| epoch.lr))
        .float(&definitions::TRAIN_SECONDS, of(|epoch| epoch.seconds))
        .float(&definitions::IMAGES_PER_SECOND, of(|epoch| epoch.images_per_second))
        .integer(&definitions::GRADIENT_MESSAGES, |row| row.gradients.messages as i64)
        .integer(&definitions::GRADIENTS_SENT, |row| row.gradients.bytes as i64)
        .float(&definitions::GRADIENT_SECONDS, |row| row.gradients.seconds)
        .float(&definitions::EPOCH_COMM, |row| row.comm)
}

fn print_header(config: &Config, job: &Job, data: &str, variants: &[Variant]) {
    println!(
        "# hpml {}   study of {} x {} x {} on {}",
        env!("CARGO_PKG_VERSION"),
        counted(variants.len(), "variant"),
        counted(config.study.seeds.len(), "seed"),
        counted(config.train.epochs, "epoch"),
        counted(job.world_size, "rank")
    );
    job.describe().iter().for_each(|line| println!("# {line}"));
    println!("# data {data}");
    for variant in variants {
        println!("# {}: global batch {}; {}", variant.name, variant.batch.samples, variant.changes());
        for note in [&variant.note, &variant.batch.note()].into_iter().flatten() {
            println!("#   WARNING: {note}");
        }
    }
    println!("# test accuracy by epoch, percent");
}

fn print_training(name: &str, seed: u64, rows: &[Row], seconds: f64) {
    let accuracy =
        |row: &Row| row.measured.as_ref().map_or("diverged".into(), |row| format!("{:.2}", row.test.accuracy));
    let curve: Vec<String> = rows.iter().map(accuracy).collect();
    println!("{name:>28}  seed {seed}  {}  ({})", curve.join(" "), format_seconds(seconds));
}
