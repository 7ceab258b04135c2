//! `hpml sweep`: one job measures every case of network x batch per rank x ranks x timing, as listed in the `[sweep]` section.
//! The run file holds every counted step of every rank in `/steps`, the bare all-reduce on each number of ranks in `/allreduce`,
//! and one row per case in `/scaling`, computed from those two alone.
//!
//! A case with fewer ranks than the job runs on the first ranks while the others sleep. Each case is visited several times, in a
//! changing order, so that a machine that slows down meanwhile does not look like scaling. The file is complete after each
//! visit, so an interrupted sweep resumes from there.

mod case;
mod crossovers;
mod memory;
mod record;
mod scaling;
mod visit;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use crate::collective::{Collective, Communicator, Crossovers, WaitPolicy};
use crate::collectives::{self, Bench, Budget};
use crate::config::{Config, ModelName, Plan};
use crate::data::{self, Datasets, Form};
use crate::environment::describe_crossovers;
use crate::error::Result;
use crate::launch::Job;
use crate::live::{Live, Outlets};
use crate::output::{self, Destination};
use crate::report;
use crate::table::Table;
use crate::train::Convolutions;
use crate::units::{Bytes, Second, counted, format_left, format_seconds};
use crate::workload;
pub use case::{Case, cases};
use crossovers::Kept;
use record::Record;
pub use scaling::{Row, Status, rows};
use visit::Visits;

/// The tables of a sweep without rows, which their documentation is generated from.
pub fn empty_tables() -> Vec<Table> {
    vec![scaling::schema(true).table(&[]), record::steps().table(&[]), crossovers::schema().table(&[])]
}

/// Measures all cases of the plan into the run file at `destination`; with `resume` only those that the file lacks. A
/// collective.
///
/// # Errors
/// The cases do not suit the number of ranks, the file cannot be written or belongs to another sweep, or a rank fails.
pub fn run(plan: &Plan, job: &Job, destination: &Destination, resume: bool) -> Result<()> {
    let datasets = job.agree(data::open_shared(&plan.data, &job.communicator))?;
    let cases = job.agree(case::cases(&plan.sweep, plan.model.name, job.world_size, datasets.train.len()))?;
    let stem = format!("scaling-{}ranks", job.world_size);
    let owner = output::claim(job, destination, &stem)?;
    let opened = owner.map(|owner| Record::open(owner, destination.force, resume, plan, job, &datasets, &cases));
    let mut record = job.agree(opened.transpose())?;
    if let Some(record) = &record {
        print_header(plan, job, &datasets, &cases, record);
    }
    let buckets = job.is_root().then(|| buckets(plan, &cases, datasets.train.form())).transpose();
    let buckets = job.agree(buckets)?.flatten();
    if let Some(record) = &mut record {
        record.buckets = buckets;
    }
    let groups = groups(plan, job, &cases, &mut record)?;
    measure_all_reduce(plan, job, &cases, &groups, datasets.train.form(), &mut record)?;
    let earlier = record.as_ref().and_then(|record| record.convolutions.as_ref());
    let convolutions = Convolutions::of_sweep(earlier.map_or(&[][..], std::slice::from_ref));
    let live = Live::new(job, &plan.metrics, Outlets::none());
    let mut visits = Visits { job, dataset: &datasets.train, convolutions, live };
    visits.live.begin_work();
    let (mut begun, all) = (0, plan.sweep.rounds * cases.len());
    for round in 0..plan.sweep.rounds {
        for number in order(&cases, round, plan.run.seed) {
            let case = &cases[number];
            visits.live.set_left((all - begun) as f64, 1.0); // at most: what is measured precisely is not visited again
            begun += 1;
            let wanted = record.as_ref().is_some_and(|record| record.wants(number, round, plan.sweep.precision));
            if job.from_root([f64::from(wanted)])? == [0.0] {
                continue;
            }
            let needed = record.as_ref().map_or(0, |record| record.memory_for(number));
            let [needed] = job.from_root([needed as f64])?;
            let group = groups.get(&case.ranks).expect("a group for every rank count");
            let seconds = plan.sweep.seconds / plan.sweep.rounds as f64;
            visits.live.begin(&format!("{}, visit", case.describe()), begun - 1, all);
            let outcome = match group {
                Some(group) => Some(visits.visit(case, group, needed as Bytes, seconds)?),
                None => None,
            };
            if let (Some(record), Some(outcome)) = (&mut record, outcome) {
                record.convolutions = visits.convolutions.table();
                record.add(number, round, outcome)?;
                visits.live.advance();
                log_visit(record, number, round, plan.sweep.rounds, visits.live.left());
                visits.live.restart_interval();
            }
            // Ranks outside the group sleep here.
            job.communicator.patient_barrier(WaitPolicy::Idle)?;
        }
    }
    visits.live.clear();
    if let Some(record) = &mut record {
        record.finish()?;
        print_closing(record);
    }
    Ok(())
}

/// The table `/buckets` of all networks of the `cases`.
fn buckets(plan: &Plan, cases: &[Case], form: Form) -> Result<Option<Table>> {
    let mut models: Vec<ModelName> = cases.iter().map(|case| case.model).collect();
    models.dedup();
    let mut all: Option<Table> = None;
    for model in models {
        let table = workload::buckets(&plan.adapted(|config| config.model.name = model)?, form)?;
        match &mut all {
            Some(all) => all.append(table),
            None => all = Some(table),
        }
    }
    Ok(all)
}

/// The first ranks of the job, which visit the cases of their number.
struct Group {
    ranks: Arc<Communicator>,
    /// Plan of the sweep with the all-reduce that these ranks choose between their hosts: once, so that all visits sum alike.
    plan: Plan,
}

/// The groups by their number of ranks; `None` on a rank outside. What they measure goes into `record`, which may have it from before.
fn groups(
    plan: &Plan,
    job: &Job,
    cases: &[Case],
    record: &mut Option<Record>,
) -> Result<BTreeMap<usize, Option<Group>>> {
    let counts: BTreeSet<usize> = cases.iter().map(|case| case.ranks).collect();
    let mut groups = BTreeMap::new();
    for count in counts {
        let hosts = job.hosts_of(count);
        let kept = record.as_ref().and_then(|record| crossovers::find(&record.crossovers, count, hosts));
        let kept = job.crossovers_from_root(kept)?;
        let group = match job.communicator.split((job.rank < count).then_some(0))? {
            Some(ranks) => {
                let (plan, network) = job.with_crossovers(plan, &ranks, kept)?;
                if let (Some(record), true) = (record.as_mut(), hosts > 1) {
                    record.crossovers.extend(network.as_ref().map(|network| Kept::of(count, hosts, network)));
                    let used = Crossovers::configured(&plan.parallel.crossovers);
                    used.iter().for_each(|used| println!("# {}", describe_crossovers(hosts, *used, network.as_ref())));
                }
                Some(Group { ranks: Arc::new(ranks), plan })
            }
            None => None,
        };
        job.communicator.patient_barrier(WaitPolicy::Idle)?;
        groups.insert(count, group);
    }
    Ok(groups)
}

/// Measures the bare all-reduce on every number of ranks, for comparison with the bandwidth in training and for predictions.
fn measure_all_reduce(
    plan: &Plan,
    job: &Job,
    cases: &[Case],
    groups: &BTreeMap<usize, Option<Group>>,
    form: Form,
    record: &mut Option<Record>,
) -> Result<()> {
    const SIZES: [usize; 5] = [8, 1 << 10, 16 << 10, 256 << 10, 4 << 20];
    let wanted = record.as_ref().is_some_and(|record| record.all_reduce.is_none());
    if job.from_root([f64::from(wanted)])? == [0.0] {
        return Ok(());
    }
    let mut elements: Vec<usize> = SIZES.iter().map(|bytes| bytes / size_of::<f32>()).collect();
    let mut models: Vec<ModelName> = cases.iter().map(|case| case.model).collect();
    models.dedup();
    for name in models {
        elements.push(job.agree(visit::new_model(&plan.model, name, form, plan.run.seed))?.parameter_count());
    }
    elements.sort_unstable();
    elements.dedup();
    let mut rows = Vec::new();
    for (&ranks, group) in groups.iter().filter(|(ranks, _)| **ranks > 1) {
        if let Some(Group { ranks: group, plan }) = group {
            let largest = *elements.last().expect("there are sizes");
            let (limit, hosts) = (plan.launch.comm_timeout(), job.hosts_of(ranks));
            let mut bench =
                Bench::<f32>::new(Collective::AllReduce, group, job.target, &plan.parallel, largest, limit)?;
            for &elements in &elements {
                rows.push(bench.measure(hosts, elements, &Budget { seconds: 0.2, iterations: 0 })?);
            }
        }
        if job.is_root() {
            log::info!("all-reduce on {} measured", counted(ranks, "rank"));
        }
        job.communicator.patient_barrier(WaitPolicy::Idle)?;
    }
    match record {
        Some(record) if !rows.is_empty() => record.set_all_reduce(collectives::table(&rows)),
        _ => Ok(()),
    }
}

/// Order of the cases in a round. The first round goes from small batches to large ones, so that the memory of a case can be
/// extrapolated from smaller ones; the other rounds are shuffled.
fn order(cases: &[Case], round: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..cases.len()).collect();
    if round == 0 {
        order.sort_by_key(|&number| cases[number].batch_per_rank);
        return order;
    }
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed.wrapping_add(round as u64));
    for i in (1..order.len()).rev() {
        order.swap(i, (random.next_u64() % (i as u64 + 1)) as usize);
    }
    order
}

fn print_header(config: &Config, job: &Job, datasets: &Datasets, cases: &[Case], record: &Record) {
    let (count, rounds) = (counted(cases.len(), "case"), counted(config.sweep.rounds, "round"));
    println!("# hpml {}   sweep of {count}, {rounds}", env!("CARGO_PKG_VERSION"));
    job.describe().iter().for_each(|line| println!("# {line}"));
    println!("# data {}", datasets.name);
    let (largest, samples) = (cases.iter().map(Case::global_batch).max().unwrap_or(0), datasets.train.len());
    if largest > samples {
        println!(
            "# steps of more than the {samples} training samples (up to {largest}) draw some of them again: speed is measured, not \
             accuracy"
        );
    }
    println!("# written to {} after each visit; an interrupted sweep continues with --resume", record.path().display());
}

/// Logs one line per visit; `left` is the time until the last one ends.
fn log_visit(record: &Record, number: usize, round: usize, rounds: usize, left: Option<Second>) {
    let row = record.row(number);
    let case = format!("round {}/{rounds}, {}", round + 1, row.case.describe());
    match row.status {
        Status::Ok => {
            let half_width = 0.5 * (row.step_high - row.step_low) / row.step_p50;
            log::info!(
                "{case}: step_p50 {}{}, {:.0} samples/s, {} steps{}",
                format_seconds(row.step_p50),
                if half_width.is_finite() { format!(" +- {:.1} %", 100.0 * half_width) } else { String::new() },
                row.images_per_second,
                row.steps,
                left.filter(|left| *left > 0.0)
                    .map_or_else(String::new, |left| format!("; at most {} left", format_left(left)))
            )
        }
        Status::OutOfMemory => log::info!("{case}: out of memory; larger cases of this model are left out"),
        Status::Pending => {}
    }
}

fn print_closing(record: &Record) {
    println!("\n{}", report::tables(None, &[scaling::table(&record.rows())], &["scaling-cases"]));
    println!("written to {}", record.path().display());
    println!("next: hpml report {}", record.path().display());
}
