//! CIFAR-10's and CIFAR-100's official binary files. In: a folder. Out: labels, and where each image lies, after checking every
//! file's size and every label.
//!
//! Layout (www.cs.toronto.edu/~kriz/cifar.html, "Binary version"): five training files and one test file of 10,000 records, of
//! CIFAR-100 one of 50,000 and one of 10,000; a record is one byte of label, of CIFAR-100 two (coarse, then fine, which is read),
//! then the red, green and blue plane of 1,024 bytes.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::source::{RecordFile, Records};
use crate::error::{AtPath, Error, Result};

/// Shape of the images.
pub(super) const SHAPE: [usize; 3] = [3, 32, 32];
const IMAGE_BYTES: usize = 3 * 32 * 32;
/// Records that are read at once.
const PIECE: usize = 500;

/// CIFAR-10 or CIFAR-100.
#[derive(Debug, PartialEq, Eq)]
pub struct Cifar {
    /// Name of the set.
    pub(super) name: &'static str,
    /// Number of classes.
    pub(super) classes: usize,
    /// Bytes of a record before the image, the last of which is the label.
    labels: usize,
    /// Files of the training set and of the test set.
    files: [&'static [&'static str]; 2],
    /// Records of a file of each set.
    file_records: [usize; 2],
    /// Folder in the official archive.
    folder: &'static str,
    source: &'static str,
    /// What is in the folder of the Python version.
    python: [&'static str; 2],
}

/// The set of ten classes.
pub static CIFAR10: Cifar = Cifar {
    name: "CIFAR-10",
    classes: 10,
    labels: 1,
    files: [
        &["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"],
        &["test_batch.bin"],
    ],
    file_records: [10_000, 10_000],
    folder: "cifar-10-batches-bin",
    source: "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    python: ["data_batch_1", "cifar-10-batches-py"],
};

/// The set of a hundred classes.
pub static CIFAR100: Cifar = Cifar {
    name: "CIFAR-100",
    classes: 100,
    labels: 2,
    files: [&["train.bin"], &["test.bin"]],
    file_records: [50_000, 10_000],
    folder: "cifar-100-binary",
    source: "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    python: ["file.txt~", "cifar-100-python"],
};

/// Finds the folder with the files of one of the sets: `dir` or the one of the archive in it. `None` if there is none.
///
/// # Errors
/// A file of the set is missing, or it is the version for Python.
pub(super) fn find(dir: &Path) -> Result<Option<(&'static Cifar, PathBuf)>> {
    for set in [&CIFAR10, &CIFAR100] {
        let names = || set.files.iter().copied().flatten();
        let holds_any = |dir: &PathBuf| names().any(|name| dir.join(name).exists());
        if let Some(found) = [dir.to_owned(), dir.join(set.folder)].into_iter().find(holds_any) {
            return match names().find(|name| !found.join(name).exists()) {
                Some(name) => {
                    let mend = format!("the other files are there; unpack {} again", set.source);
                    Err(Error::DataMissing { path: found.join(name), mend })
                }
                None => Ok(Some((set, found))),
            };
        }
        if set.python.iter().any(|name| dir.join(name).exists()) {
            let mend = format!("this is {}'s Python version; unpack {} instead", set.name, set.source);
            return Err(Error::DataMissing { path: dir.to_owned(), mend });
        }
    }
    Ok(None)
}

impl Cifar {
    /// Samples of the training and of the test set.
    pub(super) fn samples(&self) -> [usize; 2] {
        std::array::from_fn(|part| self.files[part].len() * self.file_records[part])
    }

    /// Opens the first `samples` images of the training set (`part` 0) or of the test set (1), and no more files than needed, each of
    /// which is checked whole.
    pub(super) fn open(&self, dir: &Path, part: usize, samples: usize) -> Result<(Vec<u32>, Records)> {
        let (mut labels, mut files) = (Vec::with_capacity(samples), Vec::new());
        let records = self.file_records[part];
        for name in self.files[part].iter().take(samples.div_ceil(records)) {
            let path = dir.join(name);
            let mut file = File::open(&path).at(&path)?;
            self.check_size(&path, file.metadata().at(&path)?.len(), records)?;
            let first = labels.len();
            // The file may shrink or grow at this moment: one byte more than expected suffices to see that it is too long.
            let mut bytes = Vec::with_capacity(PIECE * self.record_bytes());
            let mut read = 0;
            while read < records {
                bytes.clear();
                let most = PIECE.min(records - read) * self.record_bytes();
                file.by_ref().take(most as u64).read_to_end(&mut bytes).at(&path)?;
                if bytes.len() < most {
                    self.check_size(&path, (read * self.record_bytes() + bytes.len()) as u64, records)?;
                }
                labels.extend(self.labels(&path, &bytes, read)?);
                read = labels.len() - first;
            }
            files.push(RecordFile { path, file, first, offset: self.labels as u64 });
        }
        labels.truncate(samples);
        Ok((labels, Records { files, stride: self.record_bytes() as u64 }))
    }

    fn record_bytes(&self) -> usize {
        self.labels + IMAGE_BYTES
    }

    /// Labels of the records in `bytes`, the content of the file `path` with `records` records.
    ///
    /// # Errors
    /// `bytes` has another size, or a label is no class.
    pub fn labels_of(&self, path: &Path, bytes: &[u8], records: usize) -> Result<Vec<u32>> {
        self.check_size(path, bytes.len() as u64, records)?;
        self.labels(path, bytes, 0)
    }

    /// Labels of whole records, the first of which is record `first` of the file.
    fn labels(&self, path: &Path, bytes: &[u8], first: usize) -> Result<Vec<u32>> {
        let label = |(record, bytes): (usize, &[u8])| {
            let (record, label) = (first + record, bytes[self.labels - 1]);
            if usize::from(label) < self.classes {
                return Ok(u32::from(label));
            }
            let offset = (record * self.record_bytes() + self.labels - 1) as u64;
            Err(Error::DataLabel {
                path: path.to_owned(),
                record,
                offset,
                label,
                last: self.classes - 1,
                set: self.name,
            })
        };
        bytes.chunks_exact(self.record_bytes()).enumerate().map(label).collect()
    }

    fn check_size(&self, path: &Path, found: u64, records: usize) -> Result<()> {
        let (records, record_bytes) = (records as u64, self.record_bytes() as u64);
        let expected = records * record_bytes;
        let mend = match found.cmp(&expected) {
            std::cmp::Ordering::Equal => return Ok(()),
            std::cmp::Ordering::Less => format!("cut short; unpack {} again", self.source),
            std::cmp::Ordering::Greater => format!("another file or another format; unpack {} again", self.source),
        };
        Err(Error::DataSize { path: path.to_owned(), found, expected, records, record_bytes, mend })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::source::{Counters, Source};
    use std::fs;

    const RECORDS: usize = 10_000;
    const RECORD_BYTES: usize = 3073;

    /// Writes six files to a new folder; in file `f` (test: 5), record `r` has label `(r + f) % 10` and pixels `f`, except that
    /// the last pixel of each plane is 100 more.
    fn folder() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join(CIFAR10.folder);
        fs::create_dir(&dir).unwrap();
        for (f, name) in CIFAR10.files.iter().copied().flatten().enumerate() {
            let mut bytes = vec![f as u8; RECORDS * RECORD_BYTES];
            for (r, record) in bytes.chunks_mut(RECORD_BYTES).enumerate() {
                record[0] = ((r + f) % 10) as u8;
                for plane in 1..=3 {
                    record[plane * 1024] += 100;
                }
            }
            fs::write(dir.join(name), bytes).unwrap();
        }
        root
    }

    fn image(records: &Records, index: usize) -> Vec<u8> {
        let mut image = vec![0; IMAGE_BYTES];
        records.read(index, &mut image, &Counters::default()).unwrap();
        image
    }

    #[test]
    fn records_become_labels_and_planes_in_the_order_of_the_files() {
        let root = folder();
        let (set, dir) = find(root.path()).unwrap().unwrap();
        assert_eq!((set, &dir), (&CIFAR10, &root.path().join(CIFAR10.folder)));
        assert_eq!(find(&dir).unwrap().unwrap().1, dir);
        let (labels, train) = set.open(&dir, 0, 50_000).unwrap();
        assert_eq!(labels.len(), 50_000);
        assert_eq!(labels[29_998..30_002], [0, 1, 3, 4]); // r 9998 and 9999 of file 2, r 0 and 1 of file 3
        let mut expected = vec![3; IMAGE_BYTES];
        for last in [1023, 2047, 3071] {
            expected[last] = 103;
        }
        assert_eq!(image(&train, 30_000), expected);
        let (few, records) = set.open(&dir, 0, 12_345).unwrap();
        assert_eq!(few, labels[..12_345]);
        assert_eq!(image(&records, 12_344), image(&train, 12_344));
        let (labels, test) = set.open(&dir, 1, 7).unwrap();
        assert_eq!(labels, [5, 6, 7, 8, 9, 0, 1]);
        assert_eq!(image(&test, 6)[0], 5);
    }

    #[test]
    fn a_record_of_cifar_100_has_two_labels() {
        let mut bytes = vec![1; 2 * 3074];
        (bytes[1], bytes[3075]) = (99, 7);
        let path = Path::new("train.bin");
        assert_eq!(CIFAR100.labels_of(path, &bytes, 2).unwrap(), [99, 7]);
        bytes[3075] = 100;
        let message = CIFAR100.labels_of(path, &bytes, 2).unwrap_err().to_string();
        assert!(message.contains("record 1 (byte 3075) has label 100, expected 0 to 99: not CIFAR-100's"), "{message}");
    }

    #[test]
    fn a_wrong_size_and_a_wrong_label_name_the_file_and_the_place() {
        let root = folder();
        let dir = root.path().join(CIFAR10.folder);
        let path = dir.join("data_batch_2.bin");
        let whole = fs::read(&path).unwrap();
        let message = |samples| CIFAR10.open(&dir, 0, samples).err().unwrap().to_string();

        fs::write(&path, &whole[..30_000]).unwrap();
        let expected = "data_batch_2.bin: 30000 bytes, expected 30730000 (10000 records of 3073): cut short";
        assert!(message(50_000).contains(expected));
        assert!(CIFAR10.open(&dir, 0, RECORDS).is_ok(), "data_batch_2.bin is not needed for 10,000 samples");

        fs::write(&path, [&whole[..], &[0]].concat()).unwrap();
        assert!(message(50_000).contains("30730001 bytes") && message(50_000).contains("another file"));

        let mut damaged = whole;
        damaged[9_999 * RECORD_BYTES] = 10;
        fs::write(&path, damaged).unwrap();
        assert!(message(10_001).contains("data_batch_2.bin: record 9999 (byte 30726927) has label 10"));
    }

    #[test]
    fn a_missing_file_or_another_format_is_told_apart() {
        let root = folder();
        let message = |dir: &Path| find(dir).unwrap_err().to_string();
        fs::remove_file(root.path().join(CIFAR10.folder).join("test_batch.bin")).unwrap();
        assert!(message(root.path()).contains("test_batch.bin: no data here: the other files are there"));
        let other = tempfile::tempdir().unwrap();
        assert!(find(other.path()).unwrap().is_none());
        fs::create_dir(other.path().join("cifar-10-batches-py")).unwrap();
        assert!(message(other.path()).contains("Python version"));
    }
}
