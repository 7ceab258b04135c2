//! Places that samples are read from: memory, files, chunks of an HDF5 file, or nowhere, since they are made from their index. In:
//! the index of a sample. Out: its bytes as stored. Any number of threads reads at once.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{AtPath, Error, Result};
use crate::units::{Bytes, Second};

/// Samples by index, as they are stored.
pub(super) trait Source: Send + Sync {
    /// Reads sample `index` into `out`, which has its size.
    ///
    /// # Errors
    /// The sample cannot be read; the message names the file.
    fn read(&self, index: usize, out: &mut [u8], count: &Counters) -> Result<()>;
}

/// Samples in this process's memory, one after the other.
pub(super) struct Memory(pub(super) Vec<u8>);

impl Source for Memory {
    fn read(&self, index: usize, out: &mut [u8], _: &Counters) -> Result<()> {
        out.copy_from_slice(&self.0[index * out.len()..][..out.len()]);
        Ok(())
    }
}

/// Samples at equal distances in one or more files, read one by one.
///
/// The system's page cache holds what was read, once per host for all ranks. Files are not mapped into memory: a read error or a
/// file cut short meanwhile would be a signal (SIGBUS) instead of a message, and mapped pages count as a rank's resident memory.
pub(super) struct Records {
    /// Files in order.
    pub(super) files: Vec<RecordFile>,
    /// Bytes from one sample to the next.
    pub(super) stride: u64,
}

/// File of [`Records`].
pub(super) struct RecordFile {
    pub(super) path: PathBuf,
    pub(super) file: File,
    /// Index of its first sample.
    pub(super) first: usize,
    /// Place of its first sample.
    pub(super) offset: u64,
}

impl Source for Records {
    fn read(&self, index: usize, out: &mut [u8], count: &Counters) -> Result<()> {
        let number = self.files.partition_point(|file| file.first <= index) - 1;
        let RecordFile { path, file, first, offset } = &self.files[number];
        let place = offset + (index - first) as u64 * self.stride;
        match file.read_exact_at(out, place) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                let message =
                    format!("cut short while it is read: sample {index} at byte {place} is not there any more");
                return Err(Error::File { path: path.clone(), message });
            }
            error => return error.at(path),
        }
        count.read(out.len());
        Ok(())
    }
}

/// What reading has cost since it was last asked.
#[derive(Debug, Default)]
pub struct Counters {
    bytes: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    reading: AtomicU64,
    waiting: AtomicU64,
}

/// Cost of reading a data set on one rank.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Reads {
    /// Bytes read from files, decompressed.
    pub bytes: Bytes,
    /// Samples whose chunk was in the cache.
    pub hits: u64,
    /// Samples whose chunk was not.
    pub misses: u64,
    /// Time that threads spent in reading, summed over them.
    pub reading: Second,
    /// Time that the training waited for samples that had not been read.
    pub waiting: Second,
}

impl Counters {
    pub(super) fn read(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn hit(&self, is_hit: bool) {
        let counter = if is_hit { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn spent_reading(&self, time: std::time::Duration) {
        self.reading.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    pub(super) fn spent_waiting(&self, time: std::time::Duration) {
        self.waiting.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Returns the counts since the last call.
    pub(super) fn take(&self) -> Reads {
        let take = |counter: &AtomicU64| counter.swap(0, Ordering::Relaxed);
        Reads {
            bytes: take(&self.bytes),
            hits: take(&self.hits),
            misses: take(&self.misses),
            reading: take(&self.reading) as Second * 1e-9,
            waiting: take(&self.waiting) as Second * 1e-9,
        }
    }
}
