//! The sweep's run file: every counted step, and what follows from them. On rank 0 only.

use std::collections::BTreeMap;
use std::path::Path;

use super::scaling::{self, Measurement, Row, Status};
use super::visit::{GpuUse, Outcome};
use super::{Case, memory};
use crate::config::{Config, Plan};
use crate::data::Datasets;
use crate::environment;
use crate::error::{Error, Result};
use crate::launch::Job;
use crate::metrics::{Part, StepTimes, all_reduce_busbw};
use crate::store::{self, Attribute, Column, FileKind, Identity, Owner, RunFile, Table, Values};
use crate::units::Bytes;

/// What is measured so far.
pub(super) struct Record {
    file: RunFile,
    cases: Vec<Case>,
    samples: usize,
    /// `/allreduce`, once it was measured.
    pub all_reduce: Option<Table>,
    /// By case and round: `[steps][ranks]`.
    visits: BTreeMap<(usize, usize), Vec<Vec<StepTimes>>>,
    /// By case.
    about: Vec<About>,
}

/// What is known of a case beside its steps.
#[derive(Debug, Clone, Copy, Default)]
struct About {
    out_of_memory: bool,
    peak_memory: Bytes,
    gradient_bytes: Bytes,
    overlaps: bool,
    gpu: Option<GpuUse>,
}

impl Record {
    /// A new file, or to `resume` the one that is there.
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
        let (identity, ranks) = (Identity::new(FileKind::Sweep), vec![environment::ranks(job)]);
        let mut file = match resumed {
            true => RunFile::open_owned(owner)?,
            false => RunFile::create_owned(owner, force, identity, plan, environment, ranks)?,
        };
        file.set_written(plan.as_written());
        file.set_warnings(job.warnings());
        let (cases, samples) = (cases.to_vec(), datasets.train.len());
        let about = vec![About::default(); cases.len()];
        let mut record = Record { file, cases, samples, all_reduce: None, visits: BTreeMap::new(), about };
        if resumed {
            record.read(&out)?;
        }
        Ok(record)
    }

    /// Where it is written.
    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Whether this visit is still to be made.
    pub(super) fn wants(&self, number: usize, round: usize, precision: f64) -> bool {
        if self.visits.contains_key(&(number, round)) || self.out_of_memory(number) {
            return false;
        }
        let row = self.row(number);
        let half_width = 0.5 * (row.step_high - row.step_low) / row.step_p50;
        // Two visits and a dozen steps at least, or three lucky ones in a row would do.
        !(round >= 2 && row.steps >= 12 && half_width <= precision)
    }

    /// A case that ran out of memory takes along those with more of everything.
    fn out_of_memory(&self, number: usize) -> bool {
        let case = &self.cases[number];
        let beyond = |other: &Case| {
            other.model == case.model && other.ranks <= case.ranks && other.batch_per_rank <= case.batch_per_rank
        };
        self.cases.iter().zip(&self.about).any(|(other, about)| about.out_of_memory && beyond(other))
    }

    /// What a rank probably takes in this case; 0 if too little is known.
    pub(super) fn memory_for(&self, number: usize) -> Bytes {
        let case = &self.cases[number];
        let measured = self.cases.iter().zip(&self.about);
        let known: Vec<(usize, Bytes)> = measured
            .filter(|(other, about)| other.model == case.model && about.peak_memory > 0 && !about.out_of_memory)
            .map(|(other, about)| (other.batch_per_rank, about.peak_memory))
            .collect();
        memory::extrapolated(&known, case.batch_per_rank)
    }

    /// Takes a visit in and writes the file.
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

    /// Takes `/allreduce` in and writes the file.
    pub(super) fn set_all_reduce(&mut self, table: Table) -> Result<()> {
        self.all_reduce = Some(table);
        self.flush()
    }

    /// The row of one case as far as it is measured, without its speedup.
    pub(super) fn row(&self, number: usize) -> Row {
        scaling::rows(&[self.measurement(number)], self.samples).remove(0)
    }

    /// All rows.
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

    /// busbw of the bare all-reduce, in place and at its median time, in bytes per second. Not of its mean: a burst of other work
    /// on the machine is in that, and left out of a case's trimmed mean.
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

    /// Writes the file as that of a sweep that is finished.
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
        tables
    }

    /// `/steps`: a row a case, round, step and rank.
    fn steps(&self) -> Table {
        let mut keys: [Vec<i64>; 4] = Default::default();
        let mut parts = vec![Vec::new(); StepTimes::PARTS];
        for (&(case, round), steps) in &self.visits {
            for (step, ranks) in steps.iter().enumerate() {
                for (rank, time) in ranks.iter().enumerate() {
                    for (column, value) in keys.iter_mut().zip([case, round, step, rank]) {
                        column.push(value as i64);
                    }
                    for (column, value) in parts.iter_mut().zip(time.as_array()) {
                        column.push(*value);
                    }
                }
            }
        }
        let meanings =
            ["row of /scaling, from 0", "visit to that case", "counted step of the visit, from 0", "MPI rank"];
        let names = KEYS.iter().zip(meanings).zip(keys);
        let mut columns: Vec<Column> =
            names.map(|((name, meaning), values)| Column::new(*name, "1", meaning, Values::I64(values))).collect();
        for (part, values) in Part::ALL.into_iter().zip(parts) {
            columns.push(Column::of(part.definition(), Values::F32(values)));
        }
        Table::new("steps", "row", columns)
    }

    /// What an earlier sweep left, from its own tables.
    fn read(&mut self, out: &Path) -> Result<()> {
        let names = store::table_names(out)?;
        if names.iter().any(|name| name == "allreduce") {
            self.all_reduce = Some(store::read_table(out, "allreduce")?);
        }
        if !names.iter().any(|name| name == "scaling") {
            return Ok(()); // cut before anything was measured
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
        // A file of before there was this column leaves it open until the next visit.
        let overlaps = scaling.numbers("overlaps");
        for (number, about) in self.about.iter_mut().enumerate() {
            let out_of_memory = status.get(number).is_some_and(|status| status == Status::OutOfMemory.as_str());
            let (peak_memory, gradient_bytes) = (peaks[number] as Bytes, gradients[number] as Bytes);
            let overlaps = overlaps.get(number).is_some_and(|overlaps| *overlaps != 0.0);
            let gpu = scaling::gpu_use(&scaling, number);
            *about = About { out_of_memory, peak_memory, gradient_bytes, overlaps, gpu };
        }

        if !names.iter().any(|name| name == "steps") {
            return Ok(()); // cut before the first visit
        }
        let steps = store::read_table(out, "steps")?;
        let rows = steps.column("case").map_or(0, |column| column.values.len());
        let keys = KEYS.map(|name| column(&steps, name, rows));
        let [cases, rounds, numbers, ranks] = keys;
        let (cases, rounds, numbers, ranks) = (cases?, rounds?, numbers?, ranks?);
        let parts: Result<Vec<Vec<f64>>> = Part::ALL.iter().map(|part| column(&steps, part.as_str(), rows)).collect();
        let parts = parts?;
        for row in 0..rows {
            let case = cases[row] as usize;
            let visit = self.visits.entry((case, rounds[row] as usize)).or_default();
            let (step, rank) = (numbers[row] as usize, ranks[row] as usize);
            if rank == 0 {
                visit.push(Vec::new());
            }
            let values: Vec<f32> = parts.iter().map(|part| part[row] as f32).collect();
            // Written in this order; anything else is another's file.
            match visit.get_mut(step) {
                Some(times) if times.len() == rank && case < self.cases.len() => {
                    times.push(StepTimes::from_slice(&values));
                }
                _ => return Err(damaged("steps")),
            }
        }
        Ok(())
    }
}

/// What a row of `/steps` is of.
const KEYS: [&str; 4] = ["case", "round", "step_index", "rank"];

/// An error unless `out` was made with the same configuration on as many ranks.
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
    match store::attribute(&attributes, "world_size") {
        Some(Attribute::Int(ranks)) if *ranks == job.world_size as i64 => Ok(()),
        _ => refuse(format!("was not measured on {} ranks: cannot resume; choose another --out", job.world_size)),
    }
}
