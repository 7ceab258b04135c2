//! MNIST's IDX files. In: a folder. Out: arrays of images and labels, after checking header and size.
//!
//! Layout (yann.lecun.com/exdb/mnist): two zero bytes, the type (8: unsigned bytes), the number of dimensions, each extent as four
//! bytes big endian, the values.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::array::Array;
use crate::error::{AtPath, Error, Result};
use crate::store::Number;

/// Names of images and labels of the training set and of the test set, as they are published.
const NAMES: [[&str; 2]; 2] =
    [["train-images-idx3-ubyte", "train-labels-idx1-ubyte"], ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]];

/// Paths of images and labels of the training set and of the test set in `dir`, if it holds any of them.
///
/// # Errors
/// Some are missing, or are compressed still.
pub(super) fn find(dir: &Path) -> Result<Option<[[PathBuf; 2]; 2]>> {
    // Some archives have a dot before "idx".
    let forms = |name: &str| [name.to_owned(), name.replacen("-idx", ".idx", 1)];
    let all = NAMES.as_flattened();
    if !all.iter().flat_map(|name| forms(name)).any(|name| dir.join(&name).exists() || dir.join(name + ".gz").exists())
    {
        return Ok(None);
    }
    let path = |name: &str| {
        let found = forms(name).map(|name| dir.join(name)).into_iter().find(|path| path.exists());
        found.ok_or_else(|| {
            let compressed = forms(name).map(|name| dir.join(name + ".gz")).into_iter().find(|path| path.exists());
            let mend = match compressed {
                Some(path) => format!("only {} is there: unpack it with gunzip", path.display()),
                None => "the other IDX files are there; copy this one beside them".into(),
            };
            Error::DataMissing { path: dir.join(name), mend }
        })
    };
    let pair = |[images, labels]: [&str; 2]| Ok([path(images)?, path(labels)?]);
    Ok(Some([pair(NAMES[0])?, pair(NAMES[1])?]))
}

/// Opens the array of a file.
///
/// # Errors
/// It is no IDX file of unsigned bytes, or has another size than its header says.
pub(super) fn open(path: &Path) -> Result<Array> {
    let refuse = |message: &str| Err(Error::File { path: path.to_owned(), message: message.into() });
    let mut bytes = Vec::new();
    File::open(path).at(path)?.take(4 + 4 * 255).read_to_end(&mut bytes).at(path)?;
    let dimensions = match bytes[..] {
        [0x1f, 0x8b, ..] => return refuse("compressed: unpack it with gunzip"),
        [0, 0, 8, dimensions @ 1..=4, ..] => usize::from(dimensions),
        [0, 0, 9..=14, ..] => return refuse("IDX values of another type than unsigned bytes: not read"),
        _ => return refuse("no IDX file"),
    };
    let Some(extents) = bytes.get(4..4 + 4 * dimensions) else {
        return refuse("cut short; write or copy it again");
    };
    let shape = extents.as_chunks().0.iter().map(|extent| u32::from_be_bytes(*extent) as usize).collect();
    Array::of_file(path, 4 + extents.len() as u64, shape, Number::U8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_and_size_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let open = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            open(&path)
        };
        let whole = [0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6];
        assert_eq!(open(&whole).unwrap().shape, [2, 1, 3]);
        for (bytes, named) in [
            (&whole[..21], "21 bytes, expected 22"),
            (&whole[..9], "cut short"),
            (&[0x1f, 0x8b, 8][..], "gunzip"),
            (&[0, 0, 13, 1, 0, 0, 0, 0], "another type"),
            (b"images", "no IDX file"),
        ] {
            let message = open(bytes).err().unwrap().to_string();
            assert!(message.contains(named), "{message}");
        }
    }

    #[test]
    fn a_folder_is_whole_or_says_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(find(folder.path()).unwrap(), None);
        let add = |name: &str| std::fs::write(folder.path().join(name), "").unwrap();
        add("train-images-idx3-ubyte");
        add("train-labels.idx1-ubyte");
        add("t10k-images-idx3-ubyte.gz");
        let message = find(folder.path()).unwrap_err().to_string();
        assert!(message.contains("t10k-images-idx3-ubyte.gz is there: unpack it with gunzip"), "{message}");
        add("t10k-images-idx3-ubyte");
        assert!(find(folder.path()).unwrap_err().to_string().contains("t10k-labels-idx1-ubyte"));
        add("t10k-labels-idx1-ubyte");
        assert!(find(folder.path()).unwrap().is_some());
    }
}
