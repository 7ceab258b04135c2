//! What the ranks' GPUs took in each epoch: `/gpu`.

use crate::collective::Communicator;
use crate::device::{GpuMonitor, Reading, Target};
use crate::error::Result;
use crate::metrics::Kind;
use crate::store::{Column, Table, Values};
use crate::units::Bytes;

/// This rank's monitor, and what all have shown.
pub struct Gpus {
    has_gpu: bool,
    monitor: Option<GpuMonitor>,
    rows: Vec<Row>,
}

/// One GPU in one epoch.
struct Row {
    epoch: i64,
    rank: i64,
    reading: Reading,
}

impl Gpus {
    /// Of a training on `target`, a GPU with this UUID or none.
    pub fn new(target: Target, uuid: &[u8; 16]) -> Gpus {
        Gpus { has_gpu: target.is_gpu(), monitor: GpuMonitor::start(target, uuid), rows: Vec::new() }
    }

    /// From here on it is the training that takes it.
    pub fn begin_epoch(&mut self) {
        if let Some(monitor) = &mut self.monitor {
            monitor.read();
        }
    }

    /// The training of an epoch is over. A collective where ranks have GPUs.
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
                self.rows.push(Row { epoch: epoch as i64, rank: rank as i64, reading });
            }
        }
        Ok(())
    }

    /// Goes on with the tables of before.
    pub fn resume(&mut self, tables: &[Table]) {
        let Some(table) = tables.iter().find(|table| table.group == "gpu") else { return };
        let row = |[epoch, rank, utilization, memory, joules]: [f64; 5]| {
            let reading = Reading { utilization, memory: memory as Bytes, joules };
            Row { epoch: epoch as i64, rank: rank as i64, reading }
        };
        self.rows = table.rows(["epoch", "rank", "utilization", "memory", "energy"]).into_iter().map(row).collect();
    }

    /// `/gpu`, a row an epoch and rank; `None` without any.
    pub fn table(&self) -> Option<Table> {
        let rows = &self.rows;
        let integers = |value: fn(&Row) -> i64| Values::I64(rows.iter().map(value).collect());
        let floats = |value: fn(&Row) -> f64| Values::F64(rows.iter().map(value).collect());
        let busy = "share of the training's time in which the GPU computed anything (NVML)";
        let columns = vec![
            Column::new("epoch", "1", "epoch, from 0", integers(|row| row.epoch)),
            Column::new("rank", "1", "MPI rank", integers(|row| row.rank)),
            Column::new("utilization", "percent", busy, floats(|row| row.reading.utilization)),
            Column::new("memory", "B", "the most that was taken of the GPU", integers(|row| row.reading.memory as i64)),
            Column::new("energy", "J", "of the whole GPU while it trained", floats(|row| row.reading.joules)),
        ];
        (!rows.is_empty()).then(|| Table::new("gpu", "row", columns))
    }
}
