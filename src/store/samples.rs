//! Datasets of samples in HDF5 files that users made: shape, type, place of the values in the file, and reading by rows. Values of
//! another file (external storage, virtual datasets, external links) are not read.
//!
//! HDF5 has one lock per process, so threads that read in chunks do it one after the other; what lies in one piece can be read
//! from the file itself, see [`Rows::offset`].

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use hdf5::dataset::Layout;
use hdf5::datatype::ByteOrder;
use hdf5::filters::Filter;
use hdf5::types::{FloatSize, IntSize, TypeDescriptor};
use hdf5::{Dataset, H5Type, Hyperslab, MinorErrorCode, SliceOrIndex};
use ndarray::IxDyn;

use super::atomic::reason;
use super::input::member_names;
use crate::error::{AtPath, Error, Result};

/// Bytes of the rows that are read at once where the file has no chunks.
const PIECE: usize = 64 << 10;

/// Type of the numbers of an array in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Number {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F32,
}

impl Number {
    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            Number::U8 | Number::I8 => 1,
            Number::U16 | Number::I16 => 2,
            Number::U32 | Number::I32 | Number::F32 => 4,
            Number::U64 | Number::I64 => 8,
        }
    }

    /// Name of the type in NumPy.
    pub fn as_str(self) -> &'static str {
        match self {
            Number::U8 => "uint8",
            Number::I8 => "int8",
            Number::U16 => "uint16",
            Number::I16 => "int16",
            Number::U32 => "uint32",
            Number::I32 => "int32",
            Number::U64 => "uint64",
            Number::I64 => "int64",
            Number::F32 => "float32",
        }
    }

    /// Whether the numbers are whole.
    pub fn is_whole(self) -> bool {
        self != Number::F32
    }

    /// Decodes whole numbers, in the machine's byte order; one above 2^63 becomes 2^63 - 1.
    ///
    /// # Panics
    /// The numbers are float32.
    pub fn decode(self, bytes: &[u8]) -> Vec<i64> {
        fn each<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> i64) -> Vec<i64> {
            bytes.as_chunks().0.iter().map(|bytes| number(*bytes)).collect()
        }
        match self {
            Number::U8 => each(bytes, |b| u8::from_ne_bytes(b).into()),
            Number::I8 => each(bytes, |b| i8::from_ne_bytes(b).into()),
            Number::U16 => each(bytes, |b| u16::from_ne_bytes(b).into()),
            Number::I16 => each(bytes, |b| i16::from_ne_bytes(b).into()),
            Number::U32 => each(bytes, |b| u32::from_ne_bytes(b).into()),
            Number::I32 => each(bytes, |b| i32::from_ne_bytes(b).into()),
            Number::U64 => each(bytes, |b| i64::try_from(u64::from_ne_bytes(b)).unwrap_or(i64::MAX)),
            Number::I64 => each(bytes, i64::from_ne_bytes),
            Number::F32 => panic!("float32 numbers are not whole"),
        }
    }
}

/// Version of the HDF5 library.
fn version() -> String {
    let (major, minor, release) = hdf5::library_version();
    format!("{major}.{minor}.{release}")
}

/// HDF5 file with samples.
pub struct SampleFile {
    path: PathBuf,
    file: hdf5::File,
}

impl SampleFile {
    /// Opens the file.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::File`] if it is damaged, cut short or no HDF5 file.
    pub fn open(path: &Path) -> Result<SampleFile> {
        fs::File::open(path).at(path)?; // for a file without read permission HDF5 would only say "unable to open"
        crate::sys::refuse_external_links();
        let refuse = |message: String| Error::File { path: path.to_owned(), message };
        let file = hdf5::File::open(path).map_err(|error| match () {
            () if error.contains_minor(MinorErrorCode::NotHdf5) => refuse("not an HDF5 file".into()),
            () if error.contains_minor(MinorErrorCode::Truncated) => refuse("cut short: copy or write it again".into()),
            () => refuse(format!("cannot be read as HDF5: {}", reason(&error))),
        })?;
        Ok(SampleFile { path: path.to_owned(), file })
    }

    /// Whether something of the name `name` is in the file.
    pub fn has(&self, name: &str) -> bool {
        self.file.link_exists(name)
    }

    /// Names of the members of the root group, for messages.
    pub fn names(&self) -> Vec<String> {
        member_names(&self.file)
    }

    /// Opens the dataset `name`.
    ///
    /// # Errors
    /// [`Error::Dataset`] if it is missing, or has values of a type, a filter or a place that is not supported.
    pub fn rows(&self, name: &str) -> Result<Rows> {
        let error = |message: String| Error::Dataset { path: self.path.clone(), name: name.into(), message };
        let unreadable = |cause: hdf5::Error| error(format!("cannot be read: {}", reason(&cause)));
        let dataset = self.file.dataset(name).map_err(|cause| match self.has(name) {
            false => error(format!("no such dataset; the file has {}", self.names().join(", "))),
            true if self.file.group(name).is_ok() => {
                let members = self.file.group(name).map(|group| member_names(&group)).unwrap_or_default();
                let members: Vec<String> = members.iter().map(|member| format!("{name}/{member}")).collect();
                error(format!("a group: name a dataset in it, of {}", members.join(", ")))
            }
            true => error(format!(
                "cannot be opened: {}; if a newer HDF5 than this {} wrote it, write it again without libver=\"latest\"",
                reason(&cause),
                version()
            )),
        })?;
        let created = dataset.dcpl().map_err(unreadable)?;
        if created.layout() == Layout::Virtual || !created.external().is_empty() {
            return Err(error("its values lie in another file, which is not read: copy them into this one".into()));
        }
        if let Some(filter) = dataset.filters().iter().find(|filter| !filter.is_available()) {
            let name = match filter {
                Filter::User(id, _) => format!("HDF5's filter {id}"),
                known => format!("{known:?}"),
            };
            return Err(error(format!(
                "compressed with {name}, which is not here: write it with compression=\"gzip\""
            )));
        }
        let stored = dataset.dtype().map_err(unreadable)?;
        let number = match stored.to_descriptor() {
            Ok(TypeDescriptor::Unsigned(IntSize::U1)) => Number::U8,
            Ok(TypeDescriptor::Integer(IntSize::U1)) => Number::I8,
            Ok(TypeDescriptor::Unsigned(IntSize::U2)) => Number::U16,
            Ok(TypeDescriptor::Integer(IntSize::U2)) => Number::I16,
            Ok(TypeDescriptor::Unsigned(IntSize::U4)) => Number::U32,
            Ok(TypeDescriptor::Integer(IntSize::U4)) => Number::I32,
            Ok(TypeDescriptor::Unsigned(IntSize::U8)) => Number::U64,
            Ok(TypeDescriptor::Integer(IntSize::U8)) => Number::I64,
            Ok(TypeDescriptor::Float(FloatSize::U4)) => Number::F32,
            other => {
                let found = other.map_or_else(|_| "a type of HDF5's own".into(), |other| other.to_string());
                return Err(error(format!(
                    "has values of {found}: write images as uint8 or float32, labels and tokens as whole numbers"
                )));
            }
        };
        let shape = dataset.shape();
        if shape.is_empty() {
            return Err(error("is a single value, expected an array".into()));
        }
        let of_row: Option<usize> =
            shape[1..].iter().try_fold(number.bytes(), |bytes, extent| bytes.checked_mul(*extent));
        let row_bytes = of_row.filter(|bytes| *bytes > 0 && shape[0].checked_mul(*bytes).is_some());
        let row_bytes =
            row_bytes.ok_or_else(|| error(format!("shape {shape:?}: a sample has no values, or too many")))?;
        let in_place = number.bytes() == 1 || stored.byte_order() == ByteOrder::LittleEndian;
        let offset = dataset.offset().filter(|_| created.layout() == Layout::Contiguous && in_place);
        let at_once = match dataset.chunk() {
            Some(chunk) => chunk[0].clamp(1, shape[0].max(1)),
            None => (PIECE / row_bytes).max(1),
        };
        Ok(Rows { path: self.path.clone(), name: name.into(), dataset, shape, number, row_bytes, offset, at_once })
    }
}

/// Dataset `[n, ...]` of an HDF5 file, read by rows.
pub struct Rows {
    path: PathBuf,
    name: String,
    dataset: Dataset,
    /// Extents, the number of rows first.
    pub shape: Vec<usize>,
    /// Type of the numbers.
    pub number: Number,
    /// Bytes of a row.
    pub row_bytes: usize,
    /// Place of the first row in the file, if all rows lie there one after the other, as this machine holds them in memory.
    pub offset: Option<u64>,
    /// Rows that share chunks, and are therefore best read together.
    pub at_once: usize,
}

impl Rows {
    /// Reads `rows`, in the machine's byte order.
    ///
    /// # Errors
    /// [`Error::Dataset`] if the library cannot read them.
    ///
    /// # Panics
    /// `out` has another size than the rows.
    pub fn read(&self, rows: Range<usize>, out: &mut [u8]) -> Result<()> {
        assert_eq!(out.len(), rows.len() * self.row_bytes, "the buffer has the size of the rows");
        let first = rows.start;
        let read = match self.number {
            Number::U8 => self.read_as::<u8, 1>(rows, out, u8::to_ne_bytes),
            Number::I8 => self.read_as::<i8, 1>(rows, out, i8::to_ne_bytes),
            Number::U16 => self.read_as::<u16, 2>(rows, out, u16::to_ne_bytes),
            Number::I16 => self.read_as::<i16, 2>(rows, out, i16::to_ne_bytes),
            Number::U32 => self.read_as::<u32, 4>(rows, out, u32::to_ne_bytes),
            Number::I32 => self.read_as::<i32, 4>(rows, out, i32::to_ne_bytes),
            Number::U64 => self.read_as::<u64, 8>(rows, out, u64::to_ne_bytes),
            Number::I64 => self.read_as::<i64, 8>(rows, out, i64::to_ne_bytes),
            Number::F32 => self.read_as::<f32, 4>(rows, out, f32::to_ne_bytes),
        };
        read.map_err(|error| Error::Dataset {
            path: self.path.clone(),
            name: format!("{}[{first}]", self.name),
            message: format!("cannot be read: {}: write the file again", reason(&error)),
        })
    }

    fn read_as<T: H5Type + Copy, const N: usize>(
        &self,
        rows: Range<usize>,
        out: &mut [u8],
        bytes: impl Fn(T) -> [u8; N],
    ) -> hdf5::Result<()> {
        let all = |extent: usize| SliceOrIndex::from(0..extent);
        let axes = std::iter::once(SliceOrIndex::from(rows)).chain(self.shape[1..].iter().copied().map(all));
        let values = self.dataset.read_slice::<T, _, IxDyn>(Hyperslab::from(axes.collect::<Vec<_>>()))?;
        for (out, value) in out.as_chunks_mut::<N>().0.iter_mut().zip(values) {
            *out = bytes(value);
        }
        Ok(())
    }
}
