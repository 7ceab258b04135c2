//! Utilization, memory and energy of the ranks' GPUs by epoch: `/gpu`.

use crate::collective::Communicator;
use crate::device::{GpuMonitor, Reading, Target};
use crate::error::Result;
use crate::metrics::{Kind, definitions};
use crate::table::{Schema, Table};
use crate::units::Bytes;

/// The monitor of this rank's GPU, and the readings of all ranks.
pub struct Gpus {
    has_gpu: bool,
    monitor: Option<GpuMonitor>,
    rows: Vec<GpuRow>,
}

/// Readings of one rank's GPU over the training of one epoch.
#[derive(Default)]
pub struct GpuRow {
    epoch: i64,
    rank: i64,
    reading: Reading,
}

/// Columns of `/gpu`, which has one row per epoch and rank with a GPU.
pub fn gpu() -> Schema<GpuRow> {
    let busy = "share of the training's time in which the GPU computed anything (NVML)";
    Schema::new("gpu", "row")
        .integer(&definitions::EPOCH, |row: &GpuRow| row.epoch)
        .put(|row, value| row.epoch = value as i64)
        .integer(&definitions::RANK, |row| row.rank)
        .put(|row, value| row.rank = value as i64)
        .float(("utilization", "percent", busy), |row| row.reading.utilization)
        .put(|row, value| row.reading.utilization = value)
        .integer(("memory", "B", "greatest memory in use on the GPU, other processes included"), |row| {
            row.reading.memory as i64
        })
        .put(|row, value| row.reading.memory = value as Bytes)
        .float(("energy", "J", "energy of the whole GPU during the training"), |row| row.reading.joules)
        .put(|row, value| row.reading.joules = value)
}

impl Gpus {
    /// Starts the monitor of the GPU with UUID `uuid`, if `target` is a GPU.
    pub fn new(target: Target, uuid: &[u8; 16]) -> Gpus {
        Gpus { has_gpu: target.is_gpu(), monitor: GpuMonitor::start(target, uuid), rows: Vec::new() }
    }

    /// Starts the readings over an epoch's training.
    pub fn begin_epoch(&mut self) {
        if let Some(monitor) = &mut self.monitor {
            monitor.read();
        }
    }

    /// Ends the readings over an epoch's training. A collective if the ranks have GPUs.
    ///
    /// # Errors
    /// An MPI call failed.
    pub fn end_epoch(&mut self, ranks: &Communicator, epoch: usize) -> Result<()> {
        if !self.has_gpu {
            return Ok(());
        }
        const NONE: f64 = -1.0;
        let own = self.monitor.as_mut().map(GpuMonitor::read);
        let own = own.map_or([NONE; 3], |own| [own.utilization, own.memory as f64, own.joules]);
        for (rank, values) in ranks.all_gather(Kind::Metrics, &own)?.chunks(own.len()).enumerate() {
            if let [utilization, memory, joules] = *values
                && utilization > NONE
            {
                let reading = Reading { utilization, memory: memory as Bytes, joules };
                self.rows.push(GpuRow { epoch: epoch as i64, rank: rank as i64, reading });
            }
        }
        Ok(())
    }

    /// Continues with the earlier tables.
    pub fn resume(&mut self, tables: &[Table]) {
        self.rows = gpu().find(tables);
    }

    /// The table `/gpu`; `None` without any row.
    pub fn table(&self) -> Option<Table> {
        (!self.rows.is_empty()).then(|| gpu().table(&self.rows))
    }
}
