//! What a run leaves behind: rows of steps and epochs, the ledger, the checkpoint, in the form of the run file.

use crate::collective::{Communicator, Universe};
use crate::config::Config;
use crate::data::Datasets;
use crate::error::Result;
use crate::launch::Job;
use crate::metrics::{Entry, Kind, Ledger, Part, StepTimes, algbw, all_reduce_busbw};
use crate::parallel::StepResult;
use crate::store::{Attribute, Column, Table, Values};
use crate::units::{Second, gigabytes_per_second};

/// One epoch over all ranks.
pub struct EpochRow {
    /// From 0.
    pub epoch: usize,
    /// Training samples as they went by, augmented and with the parameters of their step.
    pub train: StepResult,
    /// The test set with the parameters of the epoch's end.
    pub test: StepResult,
    /// Training, without the test.
    pub seconds: f64,
    /// The test.
    pub test_seconds: f64,
    /// Training images over all ranks per second of `seconds`.
    pub images_per_second: f64,
    /// Learning rate of the epoch's last step.
    pub lr: f64,
    /// Of the parameters, equal on all ranks.
    pub checksum: u64,
}

/// Mean loss and share of hits in per cent.
pub fn loss_and_accuracy(result: &StepResult) -> (f64, f64) {
    let samples = result.samples.max(1) as f64;
    (result.loss_sum / samples, 100.0 * result.correct as f64 / samples)
}

/// Everything measured so far. Steps, and what was measured before a resumption, are on rank 0 only.
pub struct Record {
    world_size: usize,
    epochs: Vec<EpochRow>,
    steps: Vec<StepRow>, // by step, then by rank
    warmup_steps: usize,
    /// Steps before this one are warm-up: caches are cold whenever a job starts or goes on.
    warm_from: usize,
    /// What was sent before a resumption.
    sent_before: Ledger,
}

/// One step of one rank.
#[derive(Debug, Clone, Copy, PartialEq)]
struct StepRow {
    step: i64,
    epoch: i64,
    rank: i64,
    warmup: bool,
    times: StepTimes,
}

impl Record {
    /// Of a run that has not begun.
    pub fn new(config: &Config, world_size: usize) -> Record {
        let warmup_steps = config.metrics.warmup_steps;
        Record {
            world_size,
            epochs: Vec::new(),
            steps: Vec::new(),
            warmup_steps,
            warm_from: warmup_steps,
            sent_before: Ledger::default(),
        }
    }

    /// Goes on at `step` with the [`tables`](Self::tables) of before; none of them where they are not known.
    pub fn resume(&mut self, step: usize, tables: &[Table]) {
        self.warm_from = step + self.warmup_steps;
        let table = |group: &str| tables.iter().find(|table| table.group == group);
        self.steps = table("steps").map(step_rows).unwrap_or_default();
        self.epochs = table("epochs").map(epoch_rows).unwrap_or_default();
        self.sent_before = table("comm").map(ledger_of).unwrap_or_default();
    }

    /// Gathers the times of the steps from `first` on from all ranks; a collective.
    pub fn add_steps(
        &mut self,
        communicator: &Communicator,
        epoch: usize,
        first: usize,
        times: &[StepTimes],
    ) -> Result<()> {
        let own: Vec<f32> = times.iter().flat_map(|time| *time.as_array()).collect();
        let all = communicator.gather(Kind::Metrics, &own)?; // [ranks, steps, parts]
        let (steps, ranks) = (times.len(), all.len() / own.len().max(1));
        for (step, rank) in (0..steps).flat_map(|step| (0..ranks).map(move |rank| (step, rank))) {
            let at = (rank * steps + step) * StepTimes::PARTS;
            self.steps.push(StepRow {
                step: (first + step) as i64,
                epoch: epoch as i64,
                rank: rank as i64,
                warmup: first + step < self.warm_from,
                times: StepTimes::from_slice(&all[at..at + StepTimes::PARTS]),
            });
        }
        Ok(())
    }

    /// Takes an epoch in, after its steps.
    pub fn add_epoch(&mut self, row: EpochRow) {
        self.epochs.push(row);
    }

    /// Takes the last epoch out.
    pub fn take_last(&mut self) -> Option<EpochRow> {
        self.epochs.pop()
    }

    /// The epochs so far.
    pub fn epochs(&self) -> &[EpochRow] {
        &self.epochs
    }

    /// Seconds of one part in the last epoch's steps on rank 0; 0 on the others.
    pub fn last_epoch(&self, part: Part) -> Second {
        let last = self.steps.last().map(|row| row.epoch);
        let rows = self.steps.iter().rev().take_while(|row| Some(row.epoch) == last);
        rows.filter(|row| row.rank == 0).map(|row| f64::from(row.times.get(part))).sum()
    }

    /// The step times of each rank, those of the warm-up only if there are no others.
    pub fn counted(&self) -> Vec<Vec<StepTimes>> {
        let only_warmup = self.steps.iter().all(|row| row.warmup);
        let mut ranks = vec![Vec::new(); self.world_size];
        for row in self.steps.iter().filter(|row| only_warmup || !row.warmup) {
            // Before a resumption there may have been more ranks.
            if let Some(times) = ranks.get_mut(row.rank as usize) {
                times.push(row.times);
            }
        }
        ranks
    }

    /// What was sent before, and `now` in this process.
    pub fn ledger(&self, now: &Ledger) -> Ledger {
        self.sent_before.plus(now)
    }

    /// The tables of the run file; `ledger` is this process's.
    pub fn tables(&self, ledger: &Ledger) -> Vec<Table> {
        vec![self.step_table(), self.epoch_table(), self.comm(&self.ledger(ledger))]
    }

    fn step_table(&self) -> Table {
        let integers = |value: &dyn Fn(&StepRow) -> i64| Values::I64(self.steps.iter().map(value).collect());
        let mut columns = vec![
            column("global_step", "1", "optimiser step, from 0", integers(&|row| row.step)),
            column("epoch", "1", "epoch, from 0", integers(&|row| row.epoch)),
            column("rank", "1", "MPI rank", integers(&|row| row.rank)),
            column(
                "warmup",
                "1",
                "1: a warm-up step, left out of all statistics",
                integers(&|row| i64::from(row.warmup)),
            ),
        ];
        for part in Part::ALL {
            let values = Values::F32(self.steps.iter().map(|row| row.times.get(part)).collect());
            columns.push(column(part.as_str(), "s", part.long_name(), values));
        }
        Table::new("steps", "row", columns)
    }

    fn epoch_table(&self) -> Table {
        let floats = |value: &dyn Fn(&EpochRow) -> f64| Values::F64(self.epochs.iter().map(value).collect());
        let integers = |value: &dyn Fn(&EpochRow) -> i64| Values::I64(self.epochs.iter().map(value).collect());
        let texts = |value: &dyn Fn(&EpochRow) -> String| Values::Text(self.epochs.iter().map(value).collect());
        let columns = vec![
            column("epoch", "1", "epoch, from 0", integers(&|row| row.epoch as i64)),
            column(
                "train_loss",
                "1",
                "mean cross-entropy while training",
                floats(&|row| loss_and_accuracy(&row.train).0),
            ),
            column("train_accuracy", "percent", "hits while training", floats(&|row| loss_and_accuracy(&row.train).1)),
            column(
                "test_loss",
                "1",
                "mean cross-entropy on the test set",
                floats(&|row| loss_and_accuracy(&row.test).0),
            ),
            column("test_accuracy", "percent", "hits on the test set", floats(&|row| loss_and_accuracy(&row.test).1)),
            column("train_samples", "1", "training samples over all ranks", integers(&|row| row.train.samples as i64)),
            column("test_samples", "1", "test samples over all ranks", integers(&|row| row.test.samples as i64)),
            column("seconds", "s", "wall time of the training, without the test", floats(&|row| row.seconds)),
            column("test_seconds", "s", "wall time of the test", floats(&|row| row.test_seconds)),
            column(
                "images_per_second",
                "1/s",
                "training throughput of all ranks",
                floats(&|row| row.images_per_second),
            ),
            column("lr", "1", "learning rate at the epoch's end", floats(&|row| row.lr)),
            column(
                "parameter_checksum",
                "1",
                "blake3 (64 bits) of the parameters, equal on all ranks",
                texts(&|row| format!("{:016x}", row.checksum)),
            ),
        ];
        Table::new("epochs", "epoch", columns)
    }

    fn comm(&self, ledger: &Ledger) -> Table {
        let entries = Kind::ALL.map(|kind| ledger.entry(kind));
        let names = Kind::ALL.map(|kind| kind.as_str().to_owned()).to_vec();
        let gradients = ledger.entry(Kind::Gradients);
        let columns = vec![
            column("kind", "1", "what the messages are for", Values::Text(names)),
            column("messages", "1", "collective calls", Values::I64(entries.map(|e| e.messages as i64).to_vec())),
            column(
                "bytes",
                "B",
                "bytes of the buffers on rank 0",
                Values::I64(entries.map(|e| e.bytes as i64).to_vec()),
            ),
            column(
                "sent_bytes",
                "B",
                "bytes that all ranks together sent as messages (shared memory of a host carries none)",
                Values::I64(entries.map(|e| e.sent as i64).to_vec()),
            ),
            column("seconds", "s", "time inside the calls on rank 0", Values::F64(entries.map(|e| e.seconds).to_vec())),
        ];
        let gbs = |bytes_per_second| Attribute::Float(gigabytes_per_second(bytes_per_second));
        let busbw = all_reduce_busbw(gradients.bytes, gradients.seconds, self.world_size);
        let attributes = vec![
            ("steps".into(), Attribute::Int(self.steps.last().map_or(0, |row| row.step + 1))),
            ("gradients_algbw_GBps".into(), gbs(algbw(gradients.bytes, gradients.seconds))),
            ("gradients_busbw_GBps".into(), gbs(busbw)),
        ];
        Table { attributes, ..Table::new("comm", "kind", columns) }
    }
}

/// The rows of `/steps`, as [`Record::tables`] wrote them.
fn step_rows(table: &Table) -> Vec<StepRow> {
    let (step, epoch, rank, warmup) =
        (table.numbers("global_step"), table.numbers("epoch"), table.numbers("rank"), table.numbers("warmup"));
    let parts = Part::ALL.map(|part| table.numbers(part.as_str()));
    let at = |values: &[f64], row: usize| values.get(row).copied().unwrap_or_default();
    (0..step.len())
        .map(|row| StepRow {
            step: step[row] as i64,
            epoch: at(&epoch, row) as i64,
            rank: at(&rank, row) as i64,
            warmup: at(&warmup, row) != 0.0,
            times: StepTimes::from_slice(&parts.each_ref().map(|part| at(part, row) as f32)),
        })
        .collect()
}

/// The rows of `/epochs`; sums are made of means and counts again, which may cost a last digit.
fn epoch_rows(table: &Table) -> Vec<EpochRow> {
    let checksums = match table.column("parameter_checksum").map(|column| &column.values) {
        Some(Values::Text(texts)) => texts.clone(),
        _ => Vec::new(),
    };
    let at = |name: &str, row: usize| table.numbers(name).get(row).copied().unwrap_or_default();
    let result = |which: &str, row: usize| {
        let samples = at(&format!("{which}_samples"), row);
        StepResult {
            loss_sum: at(&format!("{which}_loss"), row) * samples,
            correct: (at(&format!("{which}_accuracy"), row) * samples / 100.0).round() as usize,
            samples: samples as usize,
        }
    };
    (0..table.numbers("epoch").len())
        .map(|row| EpochRow {
            epoch: at("epoch", row) as usize,
            train: result("train", row),
            test: result("test", row),
            seconds: at("seconds", row),
            test_seconds: at("test_seconds", row),
            images_per_second: at("images_per_second", row),
            lr: at("lr", row),
            checksum: checksums.get(row).and_then(|text| u64::from_str_radix(text, 16).ok()).unwrap_or_default(),
        })
        .collect()
}

/// What `/comm` counted.
fn ledger_of(table: &Table) -> Ledger {
    let (messages, bytes, seconds) = (table.numbers("messages"), table.numbers("bytes"), table.numbers("seconds"));
    let sent = table.numbers("sent_bytes");
    let at = |values: &[f64], kind: Kind| values.get(kind as usize).copied().unwrap_or_default();
    Ledger::of(|kind| Entry {
        messages: at(&messages, kind) as u64,
        bytes: at(&bytes, kind) as u64,
        sent: at(&sent, kind) as u64,
        seconds: at(&seconds, kind),
    })
}

fn column(name: &'static str, units: &'static str, long_name: &'static str, values: Values) -> Column {
    Column::new(name, units, long_name, values)
}

/// Who ran this, where, with what.
pub fn environment(job: &Job, datasets: &Datasets) -> Vec<(String, Attribute)> {
    let text = |value: &str| Attribute::Text(value.to_owned());
    let mut environment = vec![
        ("hpml".into(), text(env!("CARGO_PKG_VERSION"))),
        ("git_commit".into(), text(env!("HPML_GIT_COMMIT"))),
        ("libtorch".into(), text(env!("HPML_LIBTORCH_VERSION"))),
        ("mpi".into(), text(&Universe::library_version())),
        ("world_size".into(), Attribute::Int(job.world_size as i64)),
        ("data".into(), text(&datasets.name)),
        ("cpu".into(), text(&cpu_model())),
        ("command".into(), text(&std::env::args().collect::<Vec<_>>().join(" "))),
    ];
    for variable in ["SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_JOB_NODELIST"] {
        if let Ok(value) = std::env::var(variable) {
            environment.push((variable.to_lowercase(), Attribute::Text(value)));
        }
    }
    environment
}

/// Rank -> host and device, a row a rank.
pub fn ranks(job: &Job) -> Table {
    let integers = |values: Vec<usize>| Values::I64(values.into_iter().map(|value| value as i64).collect());
    let places = &job.places;
    let columns = vec![
        column("rank", "1", "MPI rank", integers((0..job.world_size).collect())),
        column("host", "1", "host name", Values::Text(places.iter().map(|place| place.host.clone()).collect())),
        column(
            "local_rank",
            "1",
            "number on that host",
            integers(places.iter().map(|place| place.local_rank).collect()),
        ),
        column(
            "device",
            "1",
            "where it computes",
            Values::Text(places.iter().map(|place| place.device.clone()).collect()),
        ),
        column("threads", "1", "compute threads", integers(places.iter().map(|place| place.threads).collect())),
        column("cores", "1", "cores that it may use", integers(places.iter().map(|place| place.cores).collect())),
        column(
            "host_cores",
            "1",
            "cores of that host",
            integers(places.iter().map(|place| place.cores_of_host).collect()),
        ),
        column(
            "bound_by",
            "1",
            "who keeps it from the others",
            Values::Text(places.iter().map(|place| place.bound.as_str().to_owned()).collect()),
        ),
    ];
    Table::new("environment", "rank", columns)
}

fn cpu_model() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split_once(':')).map_or_else(|| "unknown".into(), |(_, name)| name.trim().to_owned())
}
