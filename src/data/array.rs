//! Arrays `[n, ...]` in files, whatever the format, and what they are taken for: images, token sequences or labels. In: an array with
//! its shape and type. Out: form, order and labels, checked, or a message that names array, place and mend.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::chunks::Chunks;
use super::source::{RecordFile, Records, Source};
use crate::config::{self, Layout};
use crate::error::{AtPath, Error, Result};
use crate::store::{Number, Rows};
use crate::units::{Bytes, format_bytes};

/// Most classes, and most ids of a vocabulary.
pub(super) const MOST_CLASSES: usize = 1 << 24;
/// Most channels of an axis that the shape alone shows to be that of the channels.
const MOST_CHANNELS: usize = 4;
/// Labels that are read at once.
const PIECE: usize = 1 << 16;

/// Array in a file.
pub(super) struct Array {
    origin: Origin,
    /// Extents, the number of samples first.
    pub(super) shape: Vec<usize>,
    /// Type of the numbers.
    pub(super) number: Number,
    place: Place,
}

/// Name of an array for messages.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    path: PathBuf,
    /// Name of the dataset in its file; empty if the file is the array.
    name: String,
}

enum Place {
    /// All values one after the other, in memory's byte order, from this place on.
    File(File, u64),
    /// Values that the HDF5 library must read.
    Rows(Rows),
}

impl Origin {
    pub(super) fn new(path: &Path, name: &str) -> Origin {
        Origin { path: path.to_owned(), name: name.into() }
    }

    /// Error about the array.
    pub(super) fn error(&self, message: impl Into<String>) -> Error {
        let (path, message) = (self.path.clone(), message.into());
        match self.name.as_str() {
            "" => Error::File { path, message },
            name => Error::Dataset { path, name: name.into(), message },
        }
    }

    /// Error about sample `index`.
    pub(super) fn error_at(&self, index: usize, message: impl Into<String>) -> Error {
        let (path, message) = (self.path.clone(), message.into());
        match self.name.as_str() {
            "" => Error::File { path, message: format!("sample {index}: {message}") },
            name => Error::Dataset { path, name: format!("{name}[{index}]"), message },
        }
    }

    fn name(&self) -> String {
        match self.name.as_str() {
            "" => self.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            name => name.into(),
        }
    }
}

impl Array {
    /// The array of the file `path`, which begins `offset` bytes after the file's start and must end with it.
    ///
    /// # Errors
    /// The file has another size.
    pub(super) fn of_file(path: &Path, offset: u64, shape: Vec<usize>, number: Number) -> Result<Array> {
        let file = File::open(path).at(path)?;
        let found = file.metadata().at(path)?.len();
        let origin = Origin::new(path, "");
        let too_large = || origin.error(format!("shape {shape:?}: more values than a file can hold: damaged"));
        let values = shape.iter().try_fold(1u64, |count, extent| count.checked_mul(*extent as u64));
        let bytes = values.and_then(|count| count.checked_mul(number.bytes() as u64)).ok_or_else(too_large)?;
        let expected = offset.checked_add(bytes).ok_or_else(too_large)?;
        if found != expected {
            let what = if found < expected { "cut short" } else { "more than its header says" };
            let of = format!("shape {shape:?} of {}", number.as_str());
            return Err(
                origin.error(format!("{found} bytes, expected {expected} ({of}): {what}; write or copy it again"))
            );
        }
        Array { origin, shape, number, place: Place::File(file, offset) }.with_rows()
    }

    /// The array of an HDF5 dataset `name` in the file `path`.
    ///
    /// # Errors
    /// The file is cut short, or cannot be opened.
    pub(super) fn of_rows(path: &Path, name: &str, rows: Rows) -> Result<Array> {
        let origin = Origin::new(path, name);
        let (shape, number) = (rows.shape.clone(), rows.number);
        let place = match rows.offset {
            None => Place::Rows(rows),
            Some(offset) => {
                let file = File::open(path).at(path)?;
                let (found, end) = (file.metadata().at(path)?.len(), offset + (rows.shape[0] * rows.row_bytes) as u64);
                if found < end {
                    let message = format!("ends at byte {end}, the file at {found}: cut short; write or copy it again");
                    return Err(origin.error(message));
                }
                Place::File(file, offset)
            }
        };
        Array { origin, shape, number, place }.with_rows()
    }

    fn with_rows(self) -> Result<Array> {
        if self.len() == 0 || self.row_bytes() == 0 {
            return Err(self.error(format!("shape {:?}: no values", self.shape)));
        }
        if u32::try_from(self.len()).is_err() {
            return Err(self.error(format!("{} samples: at most {} are read; split the set", self.len(), u32::MAX)));
        }
        Ok(self)
    }

    /// Number of samples.
    pub(super) fn len(&self) -> usize {
        self.shape[0]
    }

    /// Bytes of a sample.
    pub(super) fn row_bytes(&self) -> usize {
        self.shape[1..].iter().product::<usize>() * self.number.bytes()
    }

    pub(super) fn origin(&self) -> &Origin {
        &self.origin
    }

    pub(super) fn error(&self, message: impl Into<String>) -> Error {
        self.origin.error(message)
    }

    fn read(&self, rows: Range<usize>) -> Result<Vec<u8>> {
        let bytes = self.row_bytes();
        let mut read = vec![0; rows.len() * bytes];
        match &self.place {
            Place::File(file, offset) => {
                file.read_exact_at(&mut read, offset + (rows.start * bytes) as u64).at(&self.origin.path)?
            }
            Place::Rows(array) => array.read(rows, &mut read)?,
        }
        Ok(read)
    }

    /// The samples to be read; a cache of at most `cache` bytes holds chunks.
    ///
    /// # Errors
    /// A chunk is larger than the cache.
    pub(super) fn into_source(self, cache: usize) -> Result<Box<dyn Source>> {
        let bytes = self.row_bytes();
        match self.place {
            Place::File(file, offset) => {
                let file = RecordFile { path: self.origin.path, file, first: 0, offset };
                Ok(Box::new(Records { files: vec![file], stride: bytes as u64 }))
            }
            Place::Rows(rows) => {
                let (chunk, size) = (rows.at_once, rows.at_once * bytes);
                if size > cache {
                    let message = format!(
                        "the chunks of {chunk} samples have {}, more than data.cache_mb: raise it to {} or write the set with \
                         smaller chunks (chunks=(1, ...))",
                        format_bytes(size as Bytes),
                        size.div_ceil(1_000_000)
                    );
                    return Err(self.origin.error(message));
                }
                Ok(Box::new(Chunks::new(rows, cache)))
            }
        }
    }

    /// Whether the array is of token sequences: `[n, length + 1]` whole numbers.
    pub(super) fn is_tokens(&self) -> bool {
        self.shape.len() == 2 && self.number.is_whole()
    }

    /// Shape `[channels, height, width]` of the images, and whether their channels come last.
    ///
    /// # Errors
    /// The shape is none of images or can be read in two ways, or the type is another than u8 and f32.
    pub(super) fn as_images(&self, layout: Layout) -> Result<([usize; 3], bool)> {
        let shape = &self.shape;
        if !matches!(self.number, Number::U8 | Number::F32) {
            let message = format!(
                "images of {}: write them as uint8 (0 to 255), or as float32 from 0 to 1",
                self.number.as_str()
            );
            return Err(self.error(message));
        }
        match shape[1..] {
            [height, width] => Ok(([1, height, width], false)),
            [a, b, c] => {
                let last = match layout {
                    Layout::Nchw => false,
                    Layout::Nhwc => true,
                    Layout::Auto if a <= MOST_CHANNELS && c > MOST_CHANNELS => false,
                    Layout::Auto if c <= MOST_CHANNELS && a > MOST_CHANNELS => true,
                    Layout::Auto => {
                        let message = format!(
                            "shape {shape:?}: the channels may be axis 1 or axis 3; set data.layout = \"nchw\" or \"nhwc\""
                        );
                        return Err(self.error(message));
                    }
                };
                Ok((if last { [c, a, b] } else { [a, b, c] }, last))
            }
            _ => {
                let message = format!(
                    "shape {shape:?}: expected images [n, channels, height, width], [n, height, width, channels] or [n, height, \
                     width], or tokens [n, length + 1] as whole numbers"
                );
                Err(self.error(message))
            }
        }
    }

    /// Length of the token sequences: a sample has one id more, the last target.
    ///
    /// # Errors
    /// A sample has a single id.
    pub(super) fn as_tokens(&self) -> Result<usize> {
        match self.shape[1] {
            0 | 1 => Err(self.error(format!("shape {:?}: a sequence needs two tokens or more", self.shape))),
            ids => Ok(ids - 1),
        }
    }

    /// All labels of the `samples` samples of `images`.
    ///
    /// # Errors
    /// There are more or fewer of them, they are no whole numbers, or one is no class.
    pub(super) fn labels(&self, images: &Array, data: &config::Data) -> Result<Vec<u32>> {
        if !self.number.is_whole() {
            let message = format!(
                "labels of {}: write them as whole numbers, as in labels.astype(\"int64\")",
                self.number.as_str()
            );
            return Err(self.error(message));
        }
        if !matches!(self.shape[1..], [] | [1]) {
            return Err(self.error(format!("shape {:?}: expected one class per image, [n]", self.shape)));
        }
        if self.len() != images.len() {
            let message = format!(
                "{} labels, but {} has {} images: write as many of one as of the other",
                self.len(),
                images.origin.name(),
                images.len()
            );
            return Err(self.error(message));
        }
        let (below, so) = match data.classes {
            0 => (MOST_CLASSES, "number the classes from 0".to_owned()),
            classes => (classes, format!("data.classes = {classes}")),
        };
        let mut labels = Vec::with_capacity(self.len());
        for first in (0..self.len()).step_by(PIECE) {
            for label in self.number.decode(&self.read(first..(first + PIECE).min(self.len()))?) {
                match u32::try_from(label).ok().filter(|label| (*label as usize) < below) {
                    Some(label) => labels.push(label),
                    None => {
                        let message = format!("label {label}, expected 0 to {} ({so})", below - 1);
                        return Err(self.origin.error_at(labels.len(), message));
                    }
                }
            }
        }
        Ok(labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(folder: &Path, name: &str, shape: &[usize], number: Number, bytes: &[u8]) -> Array {
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        Array::of_file(&path, 0, shape.to_vec(), number).unwrap()
    }

    #[test]
    fn the_axis_of_the_channels_is_told_by_the_shape_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        for (shape, layout, expected) in [
            (&[1, 3, 8, 9][..], Layout::Auto, Some(([3, 8, 9], false))),
            (&[1, 8, 9, 3], Layout::Auto, Some(([3, 8, 9], true))),
            (&[1, 8, 9], Layout::Auto, Some(([1, 8, 9], false))),
            (&[1, 3, 8, 3], Layout::Auto, None),
            (&[1, 16, 8, 8], Layout::Auto, None),
            (&[1, 3, 8, 3], Layout::Nhwc, Some(([3, 3, 8], true))),
            (&[1, 16, 8, 8], Layout::Nchw, Some(([16, 8, 8], false))),
            (&[1, 2, 2, 2, 2], Layout::Nchw, None),
        ] {
            let bytes = vec![0; shape.iter().product()];
            let found = array(folder.path(), "x", shape, Number::U8, &bytes).as_images(layout);
            assert_eq!(found.ok(), expected, "{shape:?} {layout:?}");
        }
    }

    #[test]
    fn labels_must_be_as_many_as_images_and_classes() {
        let folder = tempfile::tempdir().unwrap();
        let images = array(folder.path(), "images.npy", &[3, 1, 1], Number::U8, &[0; 3]);
        let of = |values: &[i16], classes: usize| {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
            let data = config::Data { classes, ..config::Data::default() };
            array(folder.path(), "labels.npy", &[values.len(), 1], Number::I16, &bytes).labels(&images, &data)
        };
        assert_eq!(of(&[2, 0, 299], 0).unwrap(), [2, 0, 299]);
        for (values, classes, named) in [
            (&[2, 0, 299][..], 299, "labels.npy: sample 2: label 299, expected 0 to 298 (data.classes = 299)"),
            (&[2, -1, 0], 0, "sample 1: label -1, expected 0 to"),
            (&[2, 1], 0, "labels.npy: 2 labels, but images.npy has 3 images"),
        ] {
            let message = of(values, classes).unwrap_err().to_string();
            assert!(message.contains(named), "{message}");
        }
    }

    #[test]
    fn a_file_of_another_size_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npy");
        std::fs::write(&path, [0; 20]).unwrap();
        for (shape, named) in [
            (vec![5, 4], "20 bytes, expected 28 (shape [5, 4] of uint8): cut short"),
            (vec![3, 2], "20 bytes, expected 14"),
            (vec![usize::MAX, 9], "more values than a file can hold"),
        ] {
            let message = Array::of_file(&path, 8, shape, Number::U8).err().unwrap().to_string();
            assert!(message.contains(named), "{message}");
        }
    }
}
