//! Samples of an HDF5 dataset in chunks, kept in a bounded cache. In: rows of a dataset. Out: a [`Source`] that reads all rows of a
//! chunk once, decompressed, and gives back the chunks used longest ago.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use super::source::{Counters, Source};
use crate::error::Result;
use crate::store::Rows;

/// Rows of a chunk once they are read. Its lock is held while they are, so that no chunk is read twice at a time.
type Slot = Arc<Mutex<Option<Box<[u8]>>>>;

/// Samples in chunks.
pub(super) struct Chunks {
    rows: Rows,
    cache: Mutex<Cache>,
}

/// The chunks used last, as many as fit into `most`.
struct Cache {
    most: usize,
    /// Slot and time of last use of each chunk.
    chunks: HashMap<usize, (Slot, u64)>,
    /// Chunks by time of last use, the earliest first.
    by_use: BTreeMap<u64, usize>,
    uses: u64,
}

impl Cache {
    /// The slot of `chunk`, and whether it was there.
    fn slot(&mut self, chunk: usize) -> (Slot, bool) {
        self.uses += 1;
        let (uses, most) = (self.uses, self.most);
        if let Some((slot, used)) = self.chunks.get_mut(&chunk) {
            self.by_use.remove(used);
            self.by_use.insert(uses, chunk);
            *used = uses;
            return (slot.clone(), true);
        }
        while self.chunks.len() >= most
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.chunks.remove(&oldest);
        }
        let slot = Slot::default();
        self.chunks.insert(chunk, (slot.clone(), uses));
        self.by_use.insert(uses, chunk);
        (slot, false)
    }
}

impl Chunks {
    /// The samples of `rows`, of which at most `bytes` (and at least one chunk) are kept.
    pub(super) fn new(rows: Rows, bytes: usize) -> Chunks {
        let most = (bytes / (rows.at_once * rows.row_bytes)).max(1);
        let cache = Cache { most, chunks: HashMap::new(), by_use: BTreeMap::new(), uses: 0 };
        Chunks { rows, cache: Mutex::new(cache) }
    }
}

impl Source for Chunks {
    fn read(&self, index: usize, out: &mut [u8], count: &Counters) -> Result<()> {
        let (chunk, within) = (index / self.rows.at_once, index % self.rows.at_once);
        let (slot, was_there) = self.cache.lock().expect("no thread panics with the cache").slot(chunk);
        let mut bytes = slot.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        count.hit(was_there && bytes.is_some());
        if bytes.is_none() {
            let first = chunk * self.rows.at_once;
            let rows = first..(first + self.rows.at_once).min(self.rows.shape[0]);
            let mut read = vec![0; rows.len() * self.rows.row_bytes];
            self.rows.read(rows, &mut read)?;
            count.read(read.len());
            *bytes = Some(read.into());
        }
        let bytes = bytes.as_ref().expect("it was read");
        out.copy_from_slice(&bytes[within * out.len()..][..out.len()]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::SampleFile;

    #[test]
    fn the_chunks_used_last_stay_and_each_is_read_once_while_it_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.h5");
        let file = hdf5::File::create(&path).unwrap();
        let values: Vec<i16> = (0..10 * 3).collect();
        let dataset = file.new_dataset::<i16>().chunk((2, 3)).deflate(3).shape((10, 3)).create("x").unwrap();
        dataset.write_raw(&values).unwrap();
        drop(dataset);
        file.close().unwrap();
        let rows = SampleFile::open(&path).unwrap().rows("x").unwrap();
        assert_eq!((rows.offset, rows.at_once, rows.row_bytes), (None, 2, 6));
        let (chunks, count) = (Chunks::new(rows, 24), Counters::default()); // two chunks
        let read = |index: usize| {
            let mut out = [0; 6];
            chunks.read(index, &mut out, &count).unwrap();
            let expected: Vec<u8> = (0..3).flat_map(|i| ((index * 3 + i) as i16).to_ne_bytes()).collect();
            assert_eq!(out[..], expected);
        };
        [0, 1, 2, 0, 9, 1, 3].into_iter().for_each(read); // 9 takes the place of 2 and 3
        let reads = count.take();
        assert_eq!((reads.hits, reads.misses, reads.bytes), (3, 4, 4 * 12));
        assert_eq!(count.take().bytes, 0);
    }
}
