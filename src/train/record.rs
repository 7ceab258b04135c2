//! What a run leaves behind: rows of steps and epochs, the ledger, the checkpoint, in the form of the run file.

use crate::collective::{Communicator, Universe};
use crate::config::Config;
use crate::data::Datasets;
use crate::error::Result;
use crate::launch::Job;
use crate::metrics::{Kind, Ledger, Part, StepTimes, algbw, all_reduce_busbw};
use crate::model::{Model, Role};
use crate::parallel::StepResult;
use crate::store::{Attribute, Checkpoint, Column, NamedTensor, Table, TensorValues, Values};
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

/// Everything measured so far. Step times of all ranks are kept on rank 0 only.
pub struct Record {
    world_size: usize,
    warmup_steps: usize,
    epochs: Vec<EpochRow>,
    step_epochs: Vec<i64>,      // [steps]
    times: Vec<Vec<StepTimes>>, // [ranks][steps], on rank 0
}

impl Record {
    /// Of a run that has not begun.
    pub fn new(config: &Config, world_size: usize) -> Record {
        let times = vec![Vec::new(); world_size];
        let warmup_steps = config.metrics.warmup_steps;
        Record { world_size, warmup_steps, epochs: Vec::new(), step_epochs: Vec::new(), times }
    }

    /// Gathers an epoch's step times from all ranks; a collective.
    pub fn add_steps(
        &mut self,
        communicator: &Communicator,
        epoch: usize,
        first: usize,
        times: &[StepTimes],
    ) -> Result<()> {
        debug_assert_eq!(first, self.step_epochs.len());
        let own: Vec<f32> = times.iter().flat_map(|time| *time.as_array()).collect();
        let all = communicator.gather(Kind::Metrics, &own)?;
        for (rank, values) in all.chunks(own.len().max(1)).enumerate() {
            self.times[rank].extend(values.chunks(StepTimes::PARTS).map(StepTimes::from_slice));
        }
        self.step_epochs.extend(std::iter::repeat_n(epoch as i64, times.len()));
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
        let steps = self.step_epochs.iter().rev().take_while(|epoch| Some(*epoch) == self.step_epochs.last()).count();
        let times = &self.times[0];
        times[times.len().saturating_sub(steps)..].iter().map(|time| f64::from(time.get(part))).sum()
    }

    /// The counted step times (warm-up left out) of each rank.
    pub fn counted(&self) -> impl Iterator<Item = &[StepTimes]> {
        let skip = if self.step_epochs.len() > self.warmup_steps { self.warmup_steps } else { 0 };
        self.times.iter().map(move |times| &times[skip.min(times.len())..])
    }

    /// How many steps are counted.
    pub fn counted_steps(&self) -> usize {
        self.counted().next().map_or(0, <[StepTimes]>::len)
    }

    /// The tables of the run file.
    pub fn tables(&self, ledger: &Ledger) -> Vec<Table> {
        vec![self.steps(), self.epoch_table(), self.comm(ledger)]
    }

    fn steps(&self) -> Table {
        let steps = self.step_epochs.len();
        let rows = || (0..steps).flat_map(|step| (0..self.world_size).map(move |rank| (step, rank)));
        let integers = |value: &dyn Fn(usize, usize) -> i64| Values::I64(rows().map(|(s, r)| value(s, r)).collect());
        let mut columns = vec![
            column("global_step", "1", "optimiser step, from 0", integers(&|step, _| step as i64)),
            column("epoch", "1", "epoch, from 0", integers(&|step, _| self.step_epochs[step])),
            column("rank", "1", "MPI rank", integers(&|_, rank| rank as i64)),
            column(
                "warmup",
                "1",
                "1: a warm-up step, left out of all statistics",
                integers(&|step, _| (step < self.warmup_steps) as i64),
            ),
        ];
        for part in Part::ALL {
            let values = Values::F32(rows().map(|(step, rank)| self.times[rank][step].get(part)).collect());
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
            column("seconds", "s", "time inside the calls on rank 0", Values::F64(entries.map(|e| e.seconds).to_vec())),
        ];
        let gbs = |bytes_per_second| Attribute::Float(gigabytes_per_second(bytes_per_second));
        let busbw = all_reduce_busbw(gradients.bytes, gradients.seconds, self.world_size);
        let attributes = vec![
            ("gradients_algbw_GBps".into(), gbs(algbw(gradients.bytes, gradients.seconds))),
            ("gradients_busbw_GBps".into(), gbs(busbw)),
        ];
        Table { attributes, ..Table::new("comm", "kind", columns) }
    }
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
    ];
    Table::new("environment", "rank", columns)
}

/// The model with PyTorch's names, shapes and order, ready for `load_state_dict`.
pub fn checkpoint(model: &Model, epochs: usize, steps: usize) -> Checkpoint {
    let tensors = model.state.iter().map(|entry| match entry.role {
        // PyTorch counts batches per batch norm; all of ours have seen every step.
        Role::Counter => NamedTensor::new(&entry.name, vec![], TensorValues::I64(vec![steps as i64])),
        Role::Parameter | Role::Buffer => {
            let mut values = vec![0.0; entry.tensor.numel()];
            entry.tensor.detach().contiguous().copy_data(&mut values, entry.tensor.numel());
            let shape = entry.tensor.size().into_iter().map(|extent| extent as usize).collect();
            NamedTensor::new(&entry.name, shape, TensorValues::F32(values))
        }
    });
    let attributes =
        vec![("epochs".into(), Attribute::Int(epochs as i64)), ("steps".into(), Attribute::Int(steps as i64))];
    Checkpoint { tensors: tensors.collect(), attributes }
}

fn cpu_model() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split_once(':')).map_or_else(|| "unknown".into(), |(_, name)| name.trim().to_owned())
}
