//! Record of a sweep: every counted step, and the run file computed from them. Exists on rank 0 only.

use std::collections::BTreeMap;
use std::path::Path;

use super::crossovers::{self, Kept};
use super::scaling::{self, Measurement, Row, Status};
use super::visit::{GpuUse, Outcome};
use super::{Case, memory};
use crate::config::{Config, Plan};
use crate::data::Datasets;
use crate::environment;
use crate::error::{Error, Result};
use crate::launch::Job;
use crate::metrics::{Part, StepTimes, all_reduce_busbw, definitions};
use crate::store::{self, FileKind, Identity, Owner, RunFile};
use crate::table::{Attribute, Schema, Table, Values, attribute};
use crate::units::Bytes;

/// Measurements of a sweep so far, and the run file.
pub(super) struct Record {
    file: RunFile,
    cases: Vec<Case>,
    samples: usize,
    /// The table `/allreduce`, once measured.
    pub all_reduce: Option<Table>,
    /// The table `/buckets` of all networks.
    pub buckets: Option<Table>,
    /// The table `/convolutions`, once something was chosen.
    pub convolutions: Option<Table>,
    /// What was measured between hosts, by number of ranks.
    pub crossovers: Vec<Kept>,
    /// Step times `[steps][ranks]` by case and round.
    visits: BTreeMap<(usize, usize), Vec<Vec<StepTimes>>>,
    /// Other measurements, one entry per case.
    about: Vec<About>,
}

/// Measurements of a case beside its step times.
#[derive(Debug, Clone, Copy, Default)]
struct About {
    out_of_memory: bool,
    peak_memory: Bytes,
    gradient_bytes: Bytes,
    overlaps: bool,
    gpu: Option<GpuUse>,
}

impl Record {
    /// Creates the run file or, to `resume`, opens the existing one and reads it.
    ///
    /// # Errors
    /// The file cannot be written, or belongs to another sweep.
    pub(super) fn open(
        owner: Owner,
        force: bool,
        resume: bool,
        plan: &Plan,
        job: &Job,
        datasets: &Datasets,
        cases: &[Case],
    ) -> Result<Record> {
        let out = owner.target().to_owned();
        let resumed = resume && out.exists();
        if resumed {
            same_sweep(&out, plan, job)?;
        }
        let environment = environment::attributes(job, Some(datasets));
        let (identity, ranks) = (Identity::new(FileKind::Sweep), vec![environment::table(job)]);
        let mut file = match resumed {
            true => RunFile::open_owned(owner)?,
            false => RunFile::create_owned(owner, force, identity, plan, environment, ranks)?,
        };
        file.set_written(plan.as_written());
        file.set_warnings(job.warnings());
        let (cases, samples) = (cases.to_vec(), datasets.train.len());
        let about = vec![About::default(); cases.len()];
        let (all_reduce, buckets, convolutions) = (None, None, None);
        let (crossovers, visits) = (Vec::new(), BTreeMap::new());
        let mut record = Record { file, cases, samples, all_reduce, buckets, convolutions, crossovers, visits, about };
        if resumed {
            record.read(&out)?;
        }
        Ok(record)
    }

    /// Path of the run file.
    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Whether visit `round` of case `number` is still to be made, which also depends on the `precision` reached so far.
    pub(super) fn wants(&self, number: usize, round: usize, precision: f64) -> bool {
        if self.visits.contains_key(&(number, round)) || self.out_of_memory(number) {
            return false;
        }
        let row = self.row(number);
        let half_width = 0.5 * (row.step_high - row.step_low) / row.step_p50;
        // At least two visits and a dozen steps, since three steps may agree by luck.
        !(round >= 2 && row.steps >= 12 && half_width <= precision)
    }

    /// Whether the case, or one with at most as many ranks and samples, ran out of memory.
    fn out_of_memory(&self, number: usize) -> bool {
        let case = &self.cases[number];
        let beyond = |other: &Case| {
            other.model == case.model && other.ranks <= case.ranks && other.batch_per_rank <= case.batch_per_rank
        };
        self.cases.iter().zip(&self.about).any(|(other, about)| about.out_of_memory && beyond(other))
    }

    /// Estimated memory of a rank in the case; 0 if too little is known.
    pub(super) fn memory_for(&self, number: usize) -> Bytes {
        let case = &self.cases[number];
        let measured = self.cases.iter().zip(&self.about);
        let known: Vec<(usize, Bytes)> = measured
            .filter(|(other, about)| other.model == case.model && about.peak_memory > 0 && !about.out_of_memory)
            .map(|(other, about)| (other.batch_per_rank, about.peak_memory))
            .collect();
        memory::extrapolated(&known, case.batch_per_rank)
    }

    /// Adds a visit and writes the file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn add(&mut self, number: usize, round: usize, outcome: Outcome) -> Result<()> {
        let about = &mut self.about[number];
        about.out_of_memory |= outcome.out_of_memory;
        about.peak_memory = about.peak_memory.max(outcome.peak_memory);
        about.gradient_bytes = about.gradient_bytes.max(outcome.gradient_bytes);
        about.overlaps |= outcome.overlaps;
        about.gpu = outcome.gpu.or(about.gpu);
        if !outcome.out_of_memory {
            let steps = outcome.times.first().map_or(0, Vec::len);
            let by_step = (0..steps).map(|step| outcome.times.iter().map(|rank| rank[step]).collect()).collect();
            self.visits.insert((number, round), by_step);
        }
        self.flush()
    }

    /// Sets `/allreduce` and writes the file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn set_all_reduce(&mut self, table: Table) -> Result<()> {
        self.all_reduce = Some(table);
        self.flush()
    }

    /// The row of one case from its visits so far, without speedup.
    pub(super) fn row(&self, number: usize) -> Row {
        scaling::rows(&[self.measurement(number)], self.samples).remove(0)
    }

    /// The rows of all cases, with speedups.
    pub(super) fn rows(&self) -> Vec<Row> {
        let all: Vec<Measurement> = (0..self.cases.len()).map(|number| self.measurement(number)).collect();
        scaling::rows(&all, self.samples)
    }

    fn measurement(&self, number: usize) -> Measurement {
        let about = self.about[number];
        let visits = self.visits.range((number, 0)..(number + 1, 0));
        Measurement {
            case: self.cases[number],
            steps: visits.flat_map(|(_, steps)| steps.iter().cloned()).collect(),
            out_of_memory: self.out_of_memory(number),
            peak_memory: about.peak_memory,
            gradient_bytes: about.gradient_bytes,
            overlaps: about.overlaps,
            gpu: about.gpu,
            bare_busbw: self.bare_busbw(self.cases[number].ranks, about.gradient_bytes),
        }
    }

    /// busbw of the bare all-reduce, in place and at its median time, in bytes per second. The median, since a burst of other
    /// work on the machine distorts the mean, while a case's trimmed mean leaves it out.
    fn bare_busbw(&self, ranks: usize, bytes: Bytes) -> f64 {
        let Some(table) = &self.all_reduce else { return f64::NAN };
        let numbers = |name: &str| table.column(name).and_then(|column| column.values.numbers()).unwrap_or_default();
        let in_place = match table.column("place").map(|column| &column.values) {
            Some(Values::Text(places)) => places.iter().map(|place| place == "in_place").collect(),
            _ => Vec::new(),
        };
        let rows = numbers("ranks").into_iter().zip(numbers("size")).zip(numbers("p50")).zip(in_place);
        let mut found = rows.filter(|(((of, size), _), here)| *of == ranks as f64 && *size == bytes as f64 && *here);
        found.next().map_or(f64::NAN, |((_, time), _)| all_reduce_busbw(bytes, time, ranks))
    }

    /// Writes the file and marks it as finished.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.file.finish(&self.tables(), None)
    }

    fn flush(&mut self) -> Result<()> {
        self.file.flush(&self.tables(), None)
    }

    fn tables(&self) -> Vec<Table> {
        let mut tables = vec![scaling::table(&self.rows())];
        tables.extend((!self.visits.is_empty()).then(|| self.steps()));
        tables.extend(self.all_reduce.clone());
        tables.extend(self.buckets.clone());
        tables.extend(self.convolutions.clone());
        tables.extend(crossovers::table(&self.crossovers));
        tables
    }

    /// The table `/steps` of all visits.
    fn steps(&self) -> Table {
        let of_visit = |(&(case, round), steps): (&(usize, usize), &Vec<Vec<StepTimes>>)| {
            let of_step = move |(step, ranks): (usize, &Vec<StepTimes>)| {
                let row = move |(rank, times): (usize, &StepTimes)| StepRow { case, round, step, rank, times: *times };
                ranks.iter().enumerate().map(row).collect::<Vec<StepRow>>()
            };
            steps.iter().enumerate().flat_map(of_step).collect::<Vec<StepRow>>()
        };
        steps().table(&self.visits.iter().flat_map(of_visit).collect::<Vec<StepRow>>())
    }

    /// Reads the measurements of an interrupted sweep from its own tables.
    fn read(&mut self, out: &Path) -> Result<()> {
        let names = store::table_names(out)?;
        if names.iter().any(|name| name == "allreduce") {
            self.all_reduce = Some(store::read_table(out, "allreduce")?);
        }
        if names.iter().any(|name| name == "convolutions") {
            self.convolutions = Some(store::read_table(out, "convolutions")?);
        }
        if names.iter().any(|name| name == "crossovers") {
            self.crossovers = crossovers::schema().read(&store::read_table(out, "crossovers")?);
        }
        if !names.iter().any(|name| name == "scaling") {
            return Ok(()); // interrupted before anything was measured
        }
        let damaged = |name: &str| Error::Dataset {
            path: out.to_owned(),
            name: name.into(),
            message: "does not fit this sweep: choose another --out".into(),
        };
        let column = |table: &Table, name: &str, rows: usize| {
            let numbers = table.column(name).and_then(|column| column.values.numbers());
            numbers.filter(|numbers| numbers.len() == rows).ok_or_else(|| damaged(name))
        };
        let scaling = store::read_table(out, "scaling")?;
        let rows = self.cases.len();
        let (peaks, gradients) = (column(&scaling, "peak_memory", rows)?, column(&scaling, "gradient_bytes", rows)?);
        let Some(Values::Text(status)) = scaling.column("status").map(|column| &column.values) else {
            return Err(damaged("scaling/status"));
        };
        // Files from before this column existed have no value until the next visit.
        let overlaps = scaling.numbers("overlaps");
        for (number, about) in self.about.iter_mut().enumerate() {
            let out_of_memory = status.get(number).is_some_and(|status| status == Status::OutOfMemory.as_str());
            let (peak_memory, gradient_bytes) = (peaks[number] as Bytes, gradients[number] as Bytes);
            let overlaps = overlaps.get(number).is_some_and(|overlaps| *overlaps != 0.0);
            let gpu = scaling::gpu_use(&scaling, number);
            *about = About { out_of_memory, peak_memory, gradient_bytes, overlaps, gpu };
        }

        if !names.iter().any(|name| name == "steps") {
            return Ok(()); // interrupted before the first visit
        }
        let table = store::read_table(out, "steps")?;
        let names = ["case", "round", "step_index", "rank"].into_iter().chain(Part::ALL.map(Part::as_str));
        names.into_iter().try_for_each(|name| column(&table, name, table.len()).map(|_| ()))?;
        for StepRow { case, round, step, rank, times } in steps().read(&table) {
            let visit = self.visits.entry((case, round)).or_default();
            if rank == 0 {
                visit.push(Vec::new());
            }
            // hpml writes rows in this order; a file in another order is not hpml's.
            match visit.get_mut(step) {
                Some(ranks) if ranks.len() == rank && case < self.cases.len() => ranks.push(times),
                _ => return Err(damaged("steps")),
            }
        }
        Ok(())
    }
}

/// A counted step of one rank in one visit to a case.
#[derive(Debug, Clone, Copy, Default)]
pub struct StepRow {
    case: usize,
    round: usize,
    step: usize,
    rank: usize,
    times: StepTimes,
}

/// Columns of `/steps` of a sweep, which has one row per case, round, step and rank.
pub fn steps() -> Schema<StepRow> {
    let schema = Schema::new("steps", "row")
        .count(("case", "1", "row of /scaling, from 0"), |row: &StepRow| row.case)
        .put(|row, value| row.case = value as usize)
        .count(("round", "1", "visit of the case, from 0"), |row| row.round)
        .put(|row, value| row.round = value as usize)
        .count(("step_index", "1", "counted step of the visit, from 0"), |row| row.step)
        .put(|row, value| row.step = value as usize)
        .count(&definitions::RANK, |row| row.rank)
        .put(|row, value| row.rank = value as usize);
    Part::ALL.into_iter().fold(schema, |schema, part| {
        schema
            .single(part.definition(), move |row| row.times.get(part))
            .put(move |row, value| row.times.set(part, value))
    })
}

/// Checks that `out` was made with the same configuration on the same number of ranks.
fn same_sweep(out: &Path, config: &Config, job: &Job) -> Result<()> {
    let refuse = |message: String| Err(Error::File { path: out.to_owned(), message });
    if let Some(kind) = store::read_identity(out)?.kind.filter(|kind| *kind != FileKind::Sweep) {
        return refuse(format!("is the file of another command ({}): choose another --out", kind.as_str()));
    }
    let earlier = store::read_config(out)?;
    if let Some((key, then, now)) = earlier.differences(config).into_iter().next() {
        return refuse(format!("was measured with {key} = {then}, now {now}: cannot resume; choose another --out"));
    }
    let attributes = store::read_attributes(out, "environment")?;
    match attribute(&attributes, "world_size").and_then(Attribute::integer) {
        Some(ranks) if ranks == job.world_size as i64 => Ok(()),
        _ => refuse(format!("was not measured on {} ranks: cannot resume; choose another --out", job.world_size)),
    }
}
