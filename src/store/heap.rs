//! Check of HDF5's global heaps, which hold text of variable length. They have no checksum, and on a damaged heap the C
//! library (1.10 at least) loops forever, takes gigabytes of memory or crashes; so the heaps are walked here first.
//!
//! In: the file's bytes. Out: the objects and their sizes. Source: HDF5 File Format Specification,
//! III.E, "Disk Format: Level 1E - Global Heap".

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

const SIGNATURE: &[u8; 4] = b"GCOL";
/// Bytes of a heap's header: signature, version, three reserved bytes, size.
const HEADER: usize = 16;
/// Bytes of an object's header: index, count of references, reserved bytes, size.
const OBJECT_HEADER: usize = 16;
/// Bytes of a reference: length, address of the heap, index.
pub(super) const REFERENCE: usize = 16;
/// Bytes of the smallest heap that HDF5 makes; a larger one was made for a single text.
const SMALLEST: u64 = 4096;
const BLOCK: usize = 1 << 20;

/// Heaps of a file by address, each as the size of every object by index. `None`: the heap is damaged.
pub(super) struct Heaps(BTreeMap<u64, Option<BTreeMap<u32, u64>>>);

impl Heaps {
    /// Finds the heaps by searching the whole file for their signature.
    ///
    /// # Errors
    /// The system's error if the file cannot be read.
    pub(super) fn find(path: &Path) -> std::io::Result<Heaps> {
        let mut file = File::open(path)?;
        let bytes = file.metadata()?.len();
        let (mut heaps, mut block, mut start) = (BTreeMap::new(), Vec::with_capacity(BLOCK + HEADER), 0u64);
        loop {
            let read = file.by_ref().take(BLOCK as u64).read_to_end(&mut block)?;
            for at in (0..block.len().saturating_sub(HEADER - 1)).filter(|&at| block[at..].starts_with(SIGNATURE)) {
                // Another version is data, or refused by the library, which looks at no other byte before the size.
                if block[at + SIGNATURE.len()] == 1 {
                    let address = start + at as u64;
                    let size = u64::from_le_bytes(block[at + 8..at + HEADER].try_into().expect("8 bytes"));
                    let fits = size >= SMALLEST && size <= bytes - address;
                    heaps.insert(address, if fits { walk(&file, address, size)? } else { None });
                }
            }
            if read == 0 {
                return Ok(Heaps(heaps));
            }
            // A header may lie across two blocks.
            let done = block.len().saturating_sub(HEADER - 1);
            block.drain(..done);
            start += done as u64;
        }
    }

    /// Whether no heap is damaged, so that the C library may read them.
    pub(super) fn are_whole(&self) -> bool {
        self.0.values().all(Option::is_some)
    }

    /// Whether the text of `reference`, as stored in the file, lies within its object.
    pub(super) fn holds(&self, reference: &[u8; REFERENCE]) -> bool {
        let number = |from: usize, to: usize| {
            reference[from..to].iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte))
        };
        let (length, address, index) = (number(0, 4), number(4, 12), number(12, 16) as u32);
        let size = || self.0.get(&address)?.as_ref()?.get(&index).copied();
        // An empty text has no heap.
        (address == 0 && length == 0) || size().is_some_and(|size| size >= length)
    }
}

/// Sizes of the objects of one heap by index; `None` if it is damaged.
fn walk(file: &File, address: u64, size: u64) -> std::io::Result<Option<BTreeMap<u32, u64>>> {
    let (mut objects, mut at) = (BTreeMap::new(), HEADER as u64);
    let mut header = [0; OBJECT_HEADER];
    // A rest too small for another object is free.
    while at + OBJECT_HEADER as u64 <= size {
        file.read_exact_at(&mut header, address + at)?;
        let index = u32::from(u16::from_le_bytes([header[0], header[1]]));
        let bytes = u64::from_le_bytes(header[8..].try_into().expect("8 bytes"));
        // Object 0 is the free rest, with its header; the others are padded to 8 bytes.
        let whole = match index {
            0 => Some(bytes).filter(|bytes| *bytes >= OBJECT_HEADER as u64),
            _ => bytes.checked_next_multiple_of(8).and_then(|padded| padded.checked_add(OBJECT_HEADER as u64)),
        };
        match whole.filter(|whole| *whole <= size - at) {
            Some(whole) if objects.insert(index, bytes).is_none() => at += whole,
            _ => return Ok(None),
        }
    }
    Ok(Some(objects))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdf5::types::VarLenUnicode;

    #[test]
    fn what_hdf5_writes_is_whole_and_what_is_changed_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("texts.h5");
        let file = hdf5::File::create(&path).unwrap();
        let texts: Vec<VarLenUnicode> =
            ["a", "", "four", &"long ".repeat(3000)].map(|text| text.parse().unwrap()).into();
        let dataset = file.new_dataset::<VarLenUnicode>().shape([4]).create("texts").unwrap();
        dataset.write_raw(&texts).unwrap();
        let offset = dataset.offset().unwrap() as usize;
        drop(dataset);
        file.close().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let heaps = Heaps::find(&path).unwrap();
        assert!(heaps.are_whole() && !heaps.0.is_empty());
        for text in 0..4 {
            let mut reference: [u8; REFERENCE] = bytes[offset + text * REFERENCE..][..REFERENCE].try_into().unwrap();
            assert!(heaps.holds(&reference), "{text}");
            reference[3] = 1; // 16 MiB longer
            assert!(!heaps.holds(&reference), "{text}");
        }
        let heap = *heaps.0.keys().next().unwrap() as usize;
        for (place, value) in [(8, 1), (9, 0xff), (HEADER + 8, 0xff), (HEADER + 15, 0x7f), (2 * HEADER + 8, 1)] {
            let mut damaged = bytes.clone();
            damaged[heap + place] = value;
            damaged[heap + 7] = 0xff; // reserved: nobody looks
            if place == 9 {
                damaged[heap + 12] = 1;
            }
            std::fs::write(&path, damaged).unwrap();
            assert!(!Heaps::find(&path).unwrap().are_whole(), "{place}");
        }
    }
}
