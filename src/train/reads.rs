//! What reading the training set from files cost each rank, by epoch: `/reads`.

use crate::collective::Communicator;
use crate::data::{Feed, Reads};
use crate::error::Result;
use crate::metrics::{Kind, definitions};
use crate::table::{Schema, Table};
use crate::units::{Bytes, Second};

/// Readings of all ranks, by epoch.
#[derive(Default)]
pub struct ReadRecord {
    rows: Vec<ReadRow>,
}

/// Cost of one rank's reading over the training of one epoch.
#[derive(Default)]
pub struct ReadRow {
    epoch: i64,
    rank: i64,
    reads: Reads,
    /// Wall time of the training of the epoch.
    seconds: Second,
}

/// Columns of `/reads`, which has one row per epoch and rank that reads files while it trains.
pub fn reads() -> Schema<ReadRow> {
    Schema::new("reads", "row")
        .integer(&definitions::EPOCH, |row: &ReadRow| row.epoch)
        .put(|row, value| row.epoch = value as i64)
        .integer(&definitions::RANK, |row| row.rank)
        .put(|row, value| row.rank = value as i64)
        .integer(&definitions::READ_BYTES, |row| row.reads.bytes as i64)
        .put(|row, value| row.reads.bytes = value as Bytes)
        .float(&definitions::READ_RATE, |row| row.reads.bytes as f64 / row.seconds)
        .put(|row, value| row.seconds = row.reads.bytes as f64 / value)
        .integer(("cache_hits", "1", "samples whose chunk of the HDF5 file was in the cache"), |row| {
            row.reads.hits as i64
        })
        .put(|row, value| row.reads.hits = value as u64)
        .integer(("cache_misses", "1", "samples whose chunk was read for them"), |row| row.reads.misses as i64)
        .put(|row, value| row.reads.misses = value as u64)
        .float(&definitions::READ_SECONDS, |row| row.reads.reading)
        .put(|row, value| row.reads.reading = value)
        .float(&definitions::READ_WAIT, |row| row.reads.waiting)
        .put(|row, value| row.reads.waiting = value)
}

impl ReadRecord {
    /// Adds what the training of `epoch`, which took `seconds`, has read from `feed`. A collective if it reads files.
    ///
    /// # Errors
    /// An MPI call failed.
    pub fn end_epoch(&mut self, ranks: &Communicator, feed: &Feed, epoch: usize, seconds: Second) -> Result<()> {
        let Reads { bytes, hits, misses, reading, waiting } = feed.dataset().take_reads();
        if !feed.reads_files() {
            return Ok(());
        }
        let own = [bytes as f64, hits as f64, misses as f64, reading, waiting, seconds];
        for (rank, values) in ranks.all_gather(Kind::Metrics, &own)?.chunks(own.len()).enumerate() {
            if let [bytes, hits, misses, reading, waiting, seconds] = *values {
                let reads = Reads { bytes: bytes as Bytes, hits: hits as u64, misses: misses as u64, reading, waiting };
                self.rows.push(ReadRow { epoch: epoch as i64, rank: rank as i64, reads, seconds });
            }
        }
        Ok(())
    }

    /// Continues with the earlier tables.
    pub fn resume(&mut self, tables: &[Table]) {
        self.rows = reads().find(tables);
    }

    /// The table `/reads`; `None` without any row.
    pub fn table(&self) -> Option<Table> {
        (!self.rows.is_empty()).then(|| reads().table(&self.rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_table_is_the_one_that_was_written() {
        let reads = Reads { bytes: 4_000_000, hits: 3, misses: 4, reading: 0.5, waiting: 0.25 };
        let record = ReadRecord { rows: vec![ReadRow { epoch: 1, rank: 2, reads, seconds: 2.0 }] };
        let table = record.table().unwrap();
        assert_eq!(table.numbers("bytes_per_second"), [2e6]);
        let mut resumed = ReadRecord::default();
        resumed.resume(std::slice::from_ref(&table));
        assert_eq!(resumed.rows[0].reads, reads);
        assert_eq!(resumed.table().unwrap().numbers("bytes_per_second"), [2e6]);
    }
}
