//! CIFAR-10's official binary files. In: a folder. Out: images and labels, after checking every file's size and every label.
//!
//! Layout (www.cs.toronto.edu/~kriz/cifar.html, "Binary version"): five training files and one test file of 10,000
//! records; a record is one byte of label, then the red, green and blue plane of 1,024 bytes.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::{CLASSES, Dataset, IMAGE_BYTES};
use crate::error::{AtPath, Error, Result};

const RECORD_BYTES: usize = 1 + IMAGE_BYTES;
const FILE_RECORDS: usize = 10_000;
const TRAIN_FILES: [&str; 5] =
    ["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"];
const TEST_FILE: &str = "test_batch.bin";
/// Folder in the official archive.
const FOLDER: &str = "cifar-10-batches-bin";
const SOURCE: &str = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz";

pub(super) const TRAIN_SAMPLES: usize = TRAIN_FILES.len() * FILE_RECORDS;
pub(super) const TEST_SAMPLES: usize = FILE_RECORDS;

/// Finds the folder with the files: `dir` or the `cifar-10-batches-bin` in it.
///
/// # Errors
/// Neither folder holds all six files.
pub(super) fn find(dir: &Path) -> Result<PathBuf> {
    let missing = |path: PathBuf, mend: String| Err(Error::DataMissing { path, mend });
    let given = "data.dir (or --data) must be the folder of CIFAR-10's binary files or the one above it";
    let holds_any = |dir: &Path| TRAIN_FILES.iter().chain([&TEST_FILE]).any(|name| dir.join(name).exists());
    let found = [dir.to_owned(), dir.join(FOLDER)].into_iter().find(|dir| holds_any(dir));
    let Some(found) = found else {
        if !dir.is_dir() {
            return missing(dir.to_owned(), format!("no such folder; {given}"));
        }
        if dir.join("data_batch_1").exists() || dir.join("cifar-10-batches-py").exists() {
            return missing(dir.to_owned(), format!("this is CIFAR-10's Python version; unpack {SOURCE} instead"));
        }
        return missing(dir.to_owned(), format!("{given}; unpack {SOURCE} there"));
    };
    match TRAIN_FILES.iter().chain([&TEST_FILE]).find(|name| !found.join(name).exists()) {
        Some(name) => missing(found.join(name), format!("the other files are there; unpack {SOURCE} again")),
        None => Ok(found),
    }
}

/// Reads the first `samples` training images, file by file, and no more files than needed.
pub(super) fn read_train(dir: &Path, samples: usize) -> Result<Dataset> {
    let mut dataset = Dataset::with_capacity(samples);
    for name in TRAIN_FILES {
        let take = (samples - dataset.len()).min(FILE_RECORDS);
        if take > 0 {
            append(&dir.join(name), take, &mut dataset)?;
        }
    }
    Ok(dataset)
}

/// Reads the first `samples` test images.
pub(super) fn read_test(dir: &Path, samples: usize) -> Result<Dataset> {
    let mut dataset = Dataset::with_capacity(samples);
    append(&dir.join(TEST_FILE), samples, &mut dataset)?;
    Ok(dataset)
}

/// Reads a whole file, checks all of it, and appends its first `take` records.
fn append(path: &Path, take: usize, dataset: &mut Dataset) -> Result<()> {
    let mut file = File::open(path).at(path)?;
    check_size(path, file.metadata().at(path)?.len(), FILE_RECORDS)?;
    let expected = FILE_RECORDS * RECORD_BYTES;
    let mut bytes = Vec::with_capacity(expected + 1);
    // The file may grow at this moment: one byte more than expected suffices to see that it is too long.
    file.by_ref().take(expected as u64 + 1).read_to_end(&mut bytes).at(path)?;
    append_records(path, &bytes, FILE_RECORDS, take, dataset)
}

/// Checks all of `bytes`, the content of the file `path` with `records` records, and appends the first `take`.
///
/// # Errors
/// `bytes` has another size, or a label is not 0 to 9.
pub fn append_records(path: &Path, bytes: &[u8], records: usize, take: usize, dataset: &mut Dataset) -> Result<()> {
    check_size(path, bytes.len() as u64, records)?;
    for (record, bytes) in bytes.chunks_exact(RECORD_BYTES).enumerate() {
        let (label, image) = (bytes[0], &bytes[1..]);
        if usize::from(label) >= CLASSES {
            let offset = (record * RECORD_BYTES) as u64;
            return Err(Error::DataLabel { path: path.to_owned(), record, offset, label });
        }
        if record < take {
            dataset.labels.push(label);
            dataset.images.extend_from_slice(image);
        }
    }
    Ok(())
}

fn check_size(path: &Path, found: u64, records: usize) -> Result<()> {
    let (records, record_bytes) = (records as u64, RECORD_BYTES as u64);
    let expected = records * record_bytes;
    let mend = match found.cmp(&expected) {
        std::cmp::Ordering::Equal => return Ok(()),
        std::cmp::Ordering::Less => format!("cut short; unpack {SOURCE} again"),
        std::cmp::Ordering::Greater => format!("another file or another format; unpack {SOURCE} again"),
    };
    Err(Error::DataSize { path: path.to_owned(), found, expected, records, record_bytes, mend })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Writes six files to a new folder; in file `f` (test: 5), record `r` has label `(r + f) % 10` and pixels `f`, except that
    /// the last pixel of each plane is 100 more.
    fn folder() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join(FOLDER);
        fs::create_dir(&dir).unwrap();
        for (f, name) in TRAIN_FILES.iter().chain([&TEST_FILE]).enumerate() {
            let mut bytes = vec![f as u8; FILE_RECORDS * RECORD_BYTES];
            for (r, record) in bytes.chunks_mut(RECORD_BYTES).enumerate() {
                record[0] = ((r + f) % CLASSES) as u8;
                for plane in 1..=3 {
                    record[plane * 1024] += 100;
                }
            }
            fs::write(dir.join(name), bytes).unwrap();
        }
        root
    }

    #[test]
    fn records_become_labels_and_planes_in_the_order_of_the_files() {
        let root = folder();
        let dir = find(root.path()).unwrap();
        assert_eq!(dir, root.path().join(FOLDER));
        assert_eq!(find(&dir).unwrap(), dir);
        let train = read_train(&dir, TRAIN_SAMPLES).unwrap();
        assert_eq!((train.len(), train.images.len()), (50_000, 50_000 * 3072));
        assert_eq!(train.labels[29_998..30_002], [0, 1, 3, 4]); // r 9998 and 9999 of file 2, r 0 and 1 of file 3
        let mut expected = vec![3; IMAGE_BYTES];
        for last in [1023, 2047, 3071] {
            expected[last] = 103;
        }
        assert_eq!(train.image(30_000), expected);
        let few = read_train(&dir, 12_345).unwrap();
        assert_eq!(few.labels, train.labels[..12_345]);
        assert_eq!(few.image(12_344), train.image(12_344));
        let test = read_test(&dir, 7).unwrap();
        assert_eq!(test.labels, [5, 6, 7, 8, 9, 0, 1]);
        assert_eq!(test.image(6)[0], 5);
    }

    #[test]
    fn a_wrong_size_and_a_wrong_label_name_the_file_and_the_place() {
        let root = folder();
        let dir = find(root.path()).unwrap();
        let path = dir.join("data_batch_2.bin");
        let whole = fs::read(&path).unwrap();

        fs::write(&path, &whole[..30_000]).unwrap();
        let message = read_train(&dir, TRAIN_SAMPLES).unwrap_err().to_string();
        let expected = "data_batch_2.bin: 30000 bytes, expected 30730000 (10000 records of 3073): cut short";
        assert!(message.contains(expected), "{message}");
        assert!(read_train(&dir, FILE_RECORDS).is_ok(), "data_batch_2.bin is not needed for 10,000 samples");

        fs::write(&path, [&whole[..], &[0]].concat()).unwrap();
        let message = read_train(&dir, TRAIN_SAMPLES).unwrap_err().to_string();
        assert!(message.contains("30730001 bytes") && message.contains("another file"), "{message}");

        let mut damaged = whole;
        damaged[9_999 * RECORD_BYTES] = 10;
        fs::write(&path, damaged).unwrap();
        let message = read_train(&dir, 10_001).unwrap_err().to_string();
        assert!(message.contains("data_batch_2.bin: record 9999 (byte 30726927) has label 10"), "{message}");
    }

    #[test]
    fn a_missing_folder_file_or_format_is_told_apart() {
        let root = folder();
        let message = |dir: &Path| find(dir).unwrap_err().to_string();
        assert!(message(&root.path().join("nowhere")).contains("nowhere: no data here: no such folder"));
        fs::remove_file(root.path().join(FOLDER).join(TEST_FILE)).unwrap();
        assert!(message(root.path()).contains("test_batch.bin: no data here: the other files are there"));
        let other = tempfile::tempdir().unwrap();
        assert!(message(other.path()).contains(SOURCE));
        fs::create_dir(other.path().join("cifar-10-batches-py")).unwrap();
        assert!(message(other.path()).contains("Python version"));
    }
}
