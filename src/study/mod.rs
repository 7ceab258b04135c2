//! `hpml study`: variants of one training, over several seeds, in one job. In: a configuration whose `[study]` section names the
//! variants. Out: `/variants`; `/study` with one row per variant, seed and epoch; and the table that compares the variants. The
//! variants take turns seed by seed, so that an interrupted job has whole seeds. The file is complete after each training.

mod effect;
mod tables;
mod variants;

use std::time::Instant;

use crate::config::{Config, Plan};
use crate::data;
use crate::environment;
use crate::error::Result;
use crate::launch::Job;
use crate::metrics::definitions::{self, WON_BACK};
use crate::metrics::{self, Definition, Entry, Kind, Part};
use crate::output::{self, Destination};
use crate::store::{Column, FileKind, Identity, RunFile, Table, Values};
use crate::train::{Checkpoints, EpochRow, Progress, Training, loss_and_accuracy};
use crate::units::{Second, format_seconds, or_dash};
use effect::Ground;
use variants::{Variant, variants};

/// One epoch of one training.
struct Row {
    variant: usize,
    seed: u64,
    epoch: usize,
    /// Losses, accuracies and times; `None` once a loss or a weight was NaN or infinite (the training diverged).
    measured: Option<EpochRow>,
    /// All-reduces of gradients, or of parameters between local steps, in this epoch on rank 0.
    gradients: Entry,
    /// Sum over the steps of this epoch of `comm`, in seconds, on rank 0.
    comm: Second,
}

/// Trains every variant with every seed, and writes the results to `destination`. A collective.
///
/// # Errors
/// A variant is wrong, the file cannot be written, or a rank fails. A training that diverges is a result, no error.
pub fn run(plan: &Plan, job: &Job, destination: &Destination) -> Result<()> {
    let datasets = job.agree(data::open(&plan.data))?;
    let ground = Ground { ranks: job.world_size, samples: datasets.train.len(), target: job.target };
    let variants = job.agree(variants(plan, ground))?;
    let environment = environment::attributes(job, Some(&datasets));
    let owner = output::claim(job, destination, &format!("study-{}ranks", job.world_size))?;
    let created = owner.map(|owner| {
        let identity = Identity::new(FileKind::Study);
        let ranks = vec![environment::ranks(job)];
        let mut file = RunFile::create_owned(owner, destination.force, identity, plan, environment, ranks)?;
        file.set_written(plan.as_written());
        Ok(file)
    });
    let mut file = job.agree(created.transpose())?;
    if job.is_root() {
        print_header(plan, job, &datasets.name, &variants);
    }
    let names: Vec<&str> = variants.iter().map(|variant| variant.name.as_str()).collect();
    let (mut rows, mut more_tables) = (Vec::new(), Vec::new());
    let last = (*plan.study.seeds.last().expect("checked: there are seeds"), variants.len() - 1);
    for &seed in &plan.study.seeds {
        for (variant, Variant { name, plan, .. }) in variants.iter().enumerate() {
            let started = Instant::now();
            let plan = job.agree(plan.adapted(|config| config.run.seed = seed))?;
            let first = rows.len();
            let measured = train_one(&plan, job, &datasets, variant, &mut rows)?;
            tables::append(&mut more_tables, name, seed, measured);
            if let Some(file) = &mut file {
                print_training(name, seed, &rows[first..], started.elapsed().as_secs_f64());
                let mut tables = vec![variants::table(&variants), table(&names, &rows)];
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
        print_closing(&names, &rows, plan.study.seeds.len());
        println!("\nwritten to {}\nnext: hpml report {}", file.path().display(), file.path().display());
    }
    Ok(())
}

/// Trains one variant with one seed, and appends its epochs to `rows`. Returns the training's other tables.
fn train_one(
    plan: &Plan,
    job: &Job,
    datasets: &data::Datasets,
    variant: usize,
    rows: &mut Vec<Row>,
) -> Result<Vec<Table>> {
    let mut checkpoints = Checkpoints::none();
    let mut training = Training::new(plan, job, datasets)?.tolerating_divergence();
    loop {
        let before = job.communicator.ledger();
        let more = training.epoch(&mut checkpoints)? == Progress::Epoch;
        let Some(row) = training.record_mut().take_last() else { return Ok(training.more_tables()) };
        let since = job.communicator.ledger();
        let [gradients, parameters] = [Kind::Gradients, Kind::Parameters].map(|kind| since.since(&before, kind));
        let gradients = gradients.and(parameters);
        let comm = training.record().last_epoch(Part::Comm);
        let (seed, epoch) = (plan.run.seed, row.epoch);
        let diverged = training.has_diverged();
        rows.push(Row { variant, seed, epoch, measured: (!diverged).then_some(row), gradients, comm });
        if diverged || !more {
            return Ok(training.more_tables());
        }
    }
}

/// `/study`.
fn table(names: &[&str], rows: &[Row]) -> Table {
    let texts = Values::Text(rows.iter().map(|row| names[row.variant].to_owned()).collect());
    let integers = |value: &dyn Fn(&Row) -> u64| Values::I64(rows.iter().map(|row| value(row) as i64).collect());
    let float = |definition: &Definition, value: &dyn Fn(&EpochRow) -> f64| {
        let value = |row: &Row| row.measured.as_ref().map_or(f64::NAN, value);
        Column::of(definition, Values::F64(rows.iter().map(value).collect()))
    };
    let all = |definition: &Definition, value: &dyn Fn(&Row) -> f64| {
        Column::of(definition, Values::F64(rows.iter().map(value).collect()))
    };
    let columns = vec![
        Column::new("variant", "1", "what is compared", texts),
        Column::new("seed", "1", "run.seed", integers(&|row| row.seed)),
        Column::new("epoch", "1", "epoch, from 0", integers(&|row| row.epoch as u64)),
        float(&definitions::TRAIN_LOSS, &|row| loss_and_accuracy(&row.train).0),
        float(&definitions::TRAIN_ACCURACY, &|row| loss_and_accuracy(&row.train).1),
        float(&definitions::TEST_LOSS, &|row| loss_and_accuracy(&row.test).0),
        float(&definitions::TEST_ACCURACY, &|row| loss_and_accuracy(&row.test).1),
        float(&definitions::EPOCH_LR, &|row| row.lr),
        float(&definitions::TRAIN_SECONDS, &|row| row.seconds),
        float(&definitions::IMAGES_PER_SECOND, &|row| row.images_per_second),
        Column::of(&definitions::GRADIENT_MESSAGES, integers(&|row| row.gradients.messages)),
        Column::of(&definitions::GRADIENTS_SENT, integers(&|row| row.gradients.bytes)),
        all(&definitions::GRADIENT_SECONDS, &|row| row.gradients.seconds),
        all(&definitions::EPOCH_COMM, &|row| row.comm),
    ];
    Table::new("study", "row", columns)
}

/// Test accuracy after the last epoch of each training of a variant, in percent; NaN where it diverged.
fn last_accuracies(rows: &[Row], variant: usize) -> Vec<f64> {
    let mut last: Vec<(u64, f64)> = Vec::new();
    for row in rows.iter().filter(|row| row.variant == variant) {
        let accuracy = row.measured.as_ref().map_or(f64::NAN, |row| loss_and_accuracy(&row.test).1);
        match last.last_mut() {
            Some((seed, known)) if *seed == row.seed => *known = accuracy,
            _ => last.push((row.seed, accuracy)),
        }
    }
    last.into_iter().map(|(_, accuracy)| accuracy).collect()
}

fn print_header(config: &Config, job: &Job, data: &str, variants: &[Variant]) {
    println!(
        "# hpml {}   study of {} variants x {} seeds x {} epochs on {} ranks",
        env!("CARGO_PKG_VERSION"),
        variants.len(),
        config.study.seeds.len(),
        config.train.epochs,
        job.world_size
    );
    job.describe().iter().for_each(|line| println!("# {line}"));
    println!("# data {data}");
    for variant in variants {
        println!("# {}: global batch {}; {}", variant.name, variant.batch.samples, variant.changes());
        for note in [&variant.note, &variant.batch.note()].into_iter().flatten() {
            println!("#   WARNING: {note}");
        }
    }
    println!("# test accuracy by epoch, per cent");
}

fn print_training(name: &str, seed: u64, rows: &[Row], seconds: f64) {
    let accuracy = |row: &Row| {
        row.measured.as_ref().map_or("diverged".into(), |row| format!("{:.2}", loss_and_accuracy(&row.test).1))
    };
    let curve: Vec<String> = rows.iter().map(accuracy).collect();
    println!("{name:>28}  seed {seed}  {}  ({})", curve.join(" "), format_seconds(seconds));
}

/// The first variant is what the others are held against; where the second is worse, it is what the rest should mend.
fn print_closing(names: &[&str], rows: &[Row], seeds: usize) {
    let all: Vec<Vec<f64>> = (0..names.len()).map(|variant| last_accuracies(rows, variant)).collect();
    println!("\ntest accuracy after the last epoch, {seeds} seeds, per cent; a training that diverged counts as 10 %");
    println!(
        "#                    variant    mean   least    most  diverged   against the first   of the second's loss won back"
    );
    let variants = metrics::variants(&all);
    for (name, variant) in names.iter().zip(&variants) {
        let metrics::Variant { diverged, mean, least, most, against_first, .. } = variant;
        let back = or_dash(variant.won_back, |share| format!("{:.0} %", 100.0 * share));
        println!("{name:>28} {mean:>7.2} {least:>7.2} {most:>7.2} {diverged:>9} {against_first:>+19.2} {back:>31}");
    }
    println!("# won back: {}; -: {}", WON_BACK.text, WON_BACK.absent);
}
