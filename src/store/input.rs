//! Reader for untrusted files. A size that the file claims is checked against the file's own, and nothing outside the file is
//! read: links, external storage and virtual datasets could lead HDF5 to other files.
//!
//! Text of variable length is checked before the C library sees it, see [`heap`](super::heap). A limit: in files of HDF5's
//! old format (h5py's default; hpml does not write it) metadata has no checksums, and the library can crash on damaged
//! metadata.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use hdf5::dataset::Layout;
use hdf5::types::{FixedAscii, FixedUnicode, FloatSize, TypeDescriptor, VarLenAscii, VarLenUnicode};
use hdf5::{Container, Dataset, Group, H5Type, IndexType, IterationOrder, Location, MinorErrorCode};

use super::atomic::reason;
use super::heap::{Heaps, REFERENCE};
use super::schema::{CONFIG, FORMAT_VERSION, TOML, VERSION};
use super::{Attribute, Values};
use crate::error::{AtPath, Error, Result};

/// Longest text of fixed length that is read.
const FIXED: usize = 1024;
/// Longest one in an attribute: netCDF writes all texts so, even the whole configuration.
const LONG: usize = 1 << 16;
/// Most texts in one attribute.
const ATTRIBUTE_TEXTS: usize = 256;

/// Open HDF5 file.
pub(super) struct Input {
    path: PathBuf,
    file: hdf5::File,
    /// Size of the file.
    pub(super) bytes: u64,
    /// Bytes that may still be read. All data once is less than the file, since hpml writes no compressed data.
    left: Cell<u64>,
    /// Heaps of the texts.
    heaps: Heaps,
}

impl Input {
    /// Opens any HDF5 file.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::File`] if it is damaged or not an HDF5 file.
    pub(super) fn open(path: &Path) -> Result<Input> {
        let metadata = fs::metadata(path).at(path)?;
        let refuse = |message: &str| Error::File { path: path.to_owned(), message: message.into() };
        if !metadata.is_file() {
            return Err(refuse("not a file: expected an HDF5 file"));
        }
        // For a file without read permission HDF5 would only say "unable to open".
        fs::File::open(path).at(path)?;
        crate::sys::refuse_external_links();
        let file = hdf5::File::open(path).map_err(|error| match () {
            () if error.contains_minor(MinorErrorCode::NotHdf5) => refuse("not an HDF5 file"),
            () if error.contains_minor(MinorErrorCode::Truncated) => refuse("truncated: copy it again"),
            () => refuse(&format!("cannot be read as HDF5: {}", reason(&error))),
        })?;
        let (bytes, heaps) = (metadata.len(), Heaps::find(path).at(path)?);
        if !heaps.are_whole() {
            return Err(refuse("damaged: a heap of texts is not whole: take another copy of the file"));
        }
        Ok(Input { path: path.to_owned(), file, bytes, left: Cell::new(bytes), heaps })
    }

    /// Opens a run file of this format version or an earlier one.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::File`] if it is not such a file.
    pub(super) fn open_run_file(path: &Path) -> Result<Input> {
        let input = Input::open(path)?;
        let found = input.attribute(&input.file, VERSION);
        let message = match found.as_ref().map(Attribute::integer) {
            Some(Some(version)) if (1..=FORMAT_VERSION).contains(&version) => return Ok(input),
            Some(Some(version)) => {
                format!("run file of format {version}, this hpml reads up to {FORMAT_VERSION}: use a newer hpml")
            }
            Some(None) => format!("not a run file of hpml: the root attribute {VERSION} is not one integer"),
            None => format!("not a run file of hpml: no root attribute {VERSION}"),
        };
        Err(Error::File { path: path.to_owned(), message })
    }

    /// Root group.
    pub(super) fn root(&self) -> &Group {
        &self.file
    }

    /// Makes an error about the dataset or group `name`.
    pub(super) fn error(&self, name: &str, message: impl Into<String>) -> Error {
        Error::Dataset { path: self.path.clone(), name: name.into(), message: message.into() }
    }

    /// Reads the stored configuration, as TOML.
    pub(super) fn config_text(&self) -> Result<String> {
        let group = self.group(CONFIG)?;
        self.text(&group, TOML).ok_or_else(|| {
            let exists = group.attr(TOML).is_ok();
            let problem = if exists { "the attribute `toml` is not one text" } else { "no attribute `toml`" };
            self.error(CONFIG, problem)
        })
    }

    /// Opens the group `path`.
    pub(super) fn group(&self, path: &str) -> Result<Group> {
        self.file.group(path).map_err(|error| self.not_opened(path, "group", &error))
    }

    /// Opens the dataset `path`.
    pub(super) fn dataset(&self, path: &str) -> Result<Dataset> {
        self.file.dataset(path).map_err(|error| self.not_opened(path, "dataset", &error))
    }

    fn not_opened(&self, path: &str, what: &str, error: &hdf5::Error) -> Error {
        if !error.contains_minor(MinorErrorCode::NotFound) {
            return self.unreadable(path, error);
        }
        self.error(path, format!("missing: expected a {what} of that name"))
    }

    /// Reads a dataset of numbers, converted to `T`.
    pub(super) fn numbers<T: H5Type>(&self, dataset: &Dataset, path: &str) -> Result<Vec<T>> {
        self.spend(dataset, path)?;
        dataset.read_raw::<T>().map_err(|error| self.unreadable(path, &error))
    }

    /// Reads a dataset of numbers, or of text with at most one dimension.
    pub(super) fn values(&self, dataset: &Dataset, path: &str) -> Result<Values> {
        match self.kind(dataset, path)? {
            TypeDescriptor::Float(FloatSize::U4) => self.numbers(dataset, path).map(Values::F32),
            TypeDescriptor::Float(_) => self.numbers(dataset, path).map(Values::F64),
            TypeDescriptor::Integer(_) | TypeDescriptor::Unsigned(_) => self.numbers(dataset, path).map(Values::I64),
            _ => self.texts(dataset, path).map(Values::Text),
        }
    }

    /// Reads a dataset of text, of any of HDF5's string types.
    pub(super) fn texts(&self, dataset: &Dataset, path: &str) -> Result<Vec<String>> {
        let count = self.spend(dataset, path)?;
        if dataset.ndim() > 1 {
            return Err(self.error(path, "text of several dimensions is not supported"));
        }
        let kind = self.kind(dataset, path)?;
        if matches!(kind, TypeDescriptor::VarLenUnicode | TypeDescriptor::VarLenAscii) {
            self.check_references(dataset, count, path)?;
        }
        let texts = match kind {
            TypeDescriptor::VarLenUnicode => {
                self.one_by_one(dataset, count, |text: &VarLenUnicode| text.as_bytes().to_vec())
            }
            TypeDescriptor::VarLenAscii => {
                self.one_by_one(dataset, count, |text: &VarLenAscii| text.as_bytes().to_vec())
            }
            TypeDescriptor::FixedAscii(length) if length <= FIXED => {
                self.one_by_one(dataset, count, |text: &FixedAscii<FIXED>| text.as_bytes().to_vec())
            }
            TypeDescriptor::FixedUnicode(length) if length <= FIXED => {
                self.one_by_one(dataset, count, |text: &FixedUnicode<FIXED>| text.as_bytes().to_vec())
            }
            other => return Err(self.error(path, format!("type {other} is not supported"))),
        };
        texts.map_err(|error| self.unreadable(path, &error))
    }

    /// Checks that each text of variable length lies where the dataset says. Datasets in chunks are refused, since their
    /// references are not found.
    fn check_references(&self, dataset: &Dataset, count: usize, path: &str) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        if dataset.layout() != Layout::Contiguous {
            return Err(self.error(path, "text in chunks is not supported"));
        }
        let Some(offset) = dataset.offset() else { return Ok(()) }; // never written
        let file = fs::File::open(&self.path).at(&self.path)?;
        let mut references = vec![[0; REFERENCE]; count];
        file.read_exact_at(references.as_flattened_mut(), offset).at(&self.path)?;
        match references.iter().position(|reference| !self.heaps.holds(reference)) {
            Some(index) => Err(self.error(
                path,
                format!("damaged: the reference of text {index} is wrong: take another copy of the file"),
            )),
            None => Ok(()),
        }
    }

    /// Reads texts one by one: many elements may point to the same long text, so that a small file could fill the memory.
    fn one_by_one<T: H5Type>(
        &self,
        dataset: &Dataset,
        count: usize,
        bytes: impl Fn(&T) -> Vec<u8>,
    ) -> hdf5::Result<Vec<String>> {
        let mut texts = Vec::new();
        for index in 0..count {
            let text = match dataset.ndim() {
                0 => bytes(&dataset.read_scalar::<T>()?),
                _ => dataset.read_slice_1d::<T, _>(index..index + 1)?.first().map_or(Vec::new(), &bytes),
            };
            let left = self.left.get().checked_sub(text.len() as u64).ok_or("more text than the file can hold")?;
            self.left.set(left);
            texts.push(String::from_utf8_lossy(&text).into_owned());
        }
        Ok(texts)
    }

    /// Type of the elements of a dataset or attribute.
    pub(super) fn kind(&self, data: &Container, path: &str) -> Result<TypeDescriptor> {
        let descriptor = data.dtype().and_then(|dtype| dtype.to_descriptor());
        descriptor.map_err(|_| self.error(path, "its type is not supported"))
    }

    /// Reads an attribute; `None` if it is missing or its type is not supported.
    pub(super) fn attribute(&self, place: &Location, name: &str) -> Option<Attribute> {
        let attribute = place.attr(name).ok()?;
        let space = attribute.space().ok().filter(|space| !space.is_null())?;
        let (kind, shape) = (self.kind(&attribute, name).ok()?, space.shape());
        let count = element_count(&shape).filter(|count| (*count as u64) <= self.bytes)?;
        let scalar = shape.is_empty();
        match kind {
            TypeDescriptor::Float(_) if scalar => attribute.read_scalar().ok().map(Attribute::Float),
            TypeDescriptor::Float(_) => attribute.read_raw().ok().map(Attribute::Floats),
            TypeDescriptor::Integer(_) | TypeDescriptor::Unsigned(_) if scalar => {
                attribute.read_scalar().ok().map(Attribute::Int)
            }
            TypeDescriptor::Integer(_) | TypeDescriptor::Unsigned(_) => attribute.read_raw().ok().map(Attribute::Ints),
            // Earlier builds wrote booleans. They are read as integers, because a damaged byte may be neither true nor false.
            TypeDescriptor::Boolean if scalar => {
                attribute.read_scalar::<i8>().ok().map(|value| Attribute::Int(i64::from(value != 0)))
            }
            _ if count > ATTRIBUTE_TEXTS => None,
            _ => {
                let mut texts = attribute_texts(&attribute, &kind)?;
                if scalar { texts.pop().map(Attribute::Text) } else { Some(Attribute::Texts(texts)) }
            }
        }
    }

    /// Reads an attribute that is one text; `None` if it is missing or something else.
    pub(super) fn text(&self, place: &Location, name: &str) -> Option<String> {
        self.attribute(place, name)?.text().map(str::to_owned)
    }

    /// Whether a dataset only stands for a dimension without coordinates: netCDF makes one for each axis that has no name.
    pub(super) fn is_bare_dimension(&self, dataset: &Dataset) -> bool {
        const MARK: &str = "This is a netCDF dimension but not a netCDF variable";
        self.text(dataset, "CLASS").is_some_and(|class| class == "DIMENSION_SCALE")
            && self.text(dataset, "NAME").is_some_and(|name| name.starts_with(MARK))
    }

    /// Reads all attributes of `place` that can be read, except those in `without`, those of HDF5's dimension scales and those
    /// that netCDF adds.
    pub(super) fn attributes(&self, place: &Location, without: &[&str]) -> Vec<(String, Attribute)> {
        const SCALES: [&str; 4] = ["CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST"];
        const NETCDF: [&str; 4] = ["_NCProperties", "_Netcdf4Dimid", "_Netcdf4Coordinates", "_FillValue"];
        let own = |name: &String| !SCALES.contains(&name.as_str()) && !NETCDF.contains(&name.as_str());
        let wanted = |name: &String| own(name) && !without.contains(&name.as_str());
        let names = place.attr_names().unwrap_or_default().into_iter().filter(wanted);
        names.filter_map(|name| self.attribute(place, &name).map(|value| (name, value))).collect()
    }

    /// Subtracts a dataset's bytes from what may still be read and returns its number of elements.
    fn spend(&self, dataset: &Dataset, path: &str) -> Result<usize> {
        let layout = dataset.dcpl().map_err(|error| self.unreadable(path, &error))?;
        if layout.layout() == Layout::Virtual || !layout.external().is_empty() {
            return Err(self.error(path, "its values lie in another file, which is not read"));
        }
        let space = dataset.space().map_err(|error| self.unreadable(path, &error))?;
        let count = if space.is_null() { Some(0) } else { element_count(&space.shape()) };
        let size = dataset.dtype().map_err(|error| self.unreadable(path, &error))?.size();
        let bytes = count.and_then(|count| count.checked_mul(size.max(1)));
        // HDF5 allocates a whole chunk, even one that was never written.
        let chunk = layout.chunk().map_or(Some(0), |chunk| element_count(&chunk)?.checked_mul(size));
        let chunk_fits = chunk.is_some_and(|chunk| chunk as u64 <= self.bytes);
        match bytes.and_then(|bytes| self.left.get().checked_sub(bytes as u64)) {
            Some(left) if chunk_fits => self.left.set(left),
            _ => return Err(self.error(path, "claims more data than the file can hold: damaged, or compressed")),
        }
        Ok(count.unwrap_or(0))
    }

    fn unreadable(&self, path: &str, error: &hdf5::Error) -> Error {
        let reason = reason(error);
        // HDF5 1.14 says only that a filter failed; the filter of a run file is the checksum.
        if ["checksum", "filter returned failure"].iter().any(|sign| reason.to_lowercase().contains(sign)) {
            return self.error(path, format!("damaged: checksum ({reason}): take another copy of the file"));
        }
        self.error(path, format!("cannot be read: {reason}"))
    }
}

/// Names of a group's members, in the order they were written if the file records it, otherwise by name.
pub(super) fn member_names(group: &Group) -> Vec<String> {
    let by_order = group.member_names_by(IndexType::CreationOrder, IterationOrder::Increasing);
    by_order.or_else(|_| group.member_names_by(IndexType::Name, IterationOrder::Increasing)).unwrap_or_default()
}

fn element_count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |product, extent| product.checked_mul(*extent))
}

fn attribute_texts(attribute: &hdf5::Attribute, kind: &TypeDescriptor) -> Option<Vec<String>> {
    fn read<T: H5Type>(attribute: &hdf5::Attribute, bytes: impl Fn(&T) -> &[u8]) -> Option<Vec<String>> {
        let texts = attribute.read_raw::<T>().ok()?;
        Some(texts.iter().map(|text| String::from_utf8_lossy(bytes(text)).into_owned()).collect())
    }
    match kind {
        TypeDescriptor::VarLenUnicode => read(attribute, VarLenUnicode::as_bytes),
        TypeDescriptor::VarLenAscii => read(attribute, VarLenAscii::as_bytes),
        TypeDescriptor::FixedAscii(length) if *length <= FIXED => read(attribute, FixedAscii::<FIXED>::as_bytes),
        TypeDescriptor::FixedUnicode(length) if *length <= FIXED => read(attribute, FixedUnicode::<FIXED>::as_bytes),
        TypeDescriptor::FixedAscii(length) if *length <= LONG => read(attribute, FixedAscii::<LONG>::as_bytes),
        TypeDescriptor::FixedUnicode(length) if *length <= LONG => read(attribute, FixedUnicode::<LONG>::as_bytes),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_the_file_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("secret");
        fs::write(&secret, b"12345678").unwrap();
        let other = folder.path().join("other.h5");
        let file = hdf5::File::create(&other).unwrap();
        file.new_dataset::<f64>().shape([1]).create("x").unwrap().write_raw(&[1.0]).unwrap();
        file.close().unwrap();

        // h5py: file["link"] = h5py.ExternalLink("other.h5", "/x"). This process may have unlearned to make one.
        let path = folder.path().join("run.h5");
        fs::write(&path, include_bytes!("../../tests/fixtures/external-link.h5")).unwrap();
        let file = hdf5::File::open_rw(&path).unwrap();
        file.new_dataset::<i64>().external(secret.to_str().unwrap(), 0, 8).shape([1]).create("external").unwrap();
        let other = other.to_str().unwrap();
        let builder = file.new_dataset::<f64>().virtual_map(other, "x", [1], .., [1], ..);
        builder.shape([1]).create("virtual").unwrap();
        file.close().unwrap();

        let input = Input::open(&path).unwrap();
        for name in ["external", "virtual"] {
            let dataset = input.dataset(name).unwrap();
            let message = input.values(&dataset, name).unwrap_err().to_string();
            assert!(message.contains("another file"), "{message}");
        }
        assert!(input.dataset("link").is_err());
        let shown = crate::store::inspect(&path).unwrap();
        assert!(shown.contains("link: a link to elsewhere"), "{shown}");
        assert_eq!(shown.matches("not read").count(), 2, "{shown}");
    }

    /// Makes single values lists of one and texts ones of fixed length, as netCDF tools do.
    fn as_a_copy_has_them(place: &Location) {
        for name in place.attr_names().unwrap() {
            let attribute = place.attr(&name).unwrap();
            let kind = attribute.dtype().unwrap().to_descriptor().unwrap();
            if attribute.ndim() > 0 {
                continue;
            }
            match kind {
                TypeDescriptor::Integer(_) => {
                    let value: i64 = attribute.read_scalar().unwrap();
                    place.delete_attr(&name).unwrap();
                    place.new_attr::<i64>().shape([1]).create(name.as_str()).unwrap().write_raw(&[value]).unwrap();
                }
                TypeDescriptor::Float(_) => {
                    let value: f64 = attribute.read_scalar().unwrap();
                    place.delete_attr(&name).unwrap();
                    place.new_attr::<f64>().shape([1]).create(name.as_str()).unwrap().write_raw(&[value]).unwrap();
                }
                _ => {
                    let text: VarLenUnicode = attribute.read_scalar().unwrap();
                    let text: FixedUnicode<8192> = text.parse().unwrap();
                    place.delete_attr(&name).unwrap();
                    place.new_attr::<FixedUnicode<8192>>().create(name.as_str()).unwrap().write_scalar(&text).unwrap();
                }
            }
        }
    }

    #[test]
    fn what_netcdf_tools_make_of_a_file_is_read_as_it_was() {
        use crate::store::{self, Checkpoint, Column, FileKind, Identity, NamedTensor, RunFile, Table, TensorValues};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.h5");
        let bins = Column::new("bins", "1", "values in the bin", Values::I64(vec![1, 2])).over(&[("bin", 2)]);
        let mut table = Table::new("histograms", "tensor", vec![bins]);
        table.attributes = vec![("busbw".into(), Attribute::Float(1.5))];
        let tensor = NamedTensor::new("fc.bias", vec![3], TensorValues::F32(vec![0.5, -1.0, 2.0]));
        let checkpoint = Checkpoint { tensors: vec![tensor], attributes: vec![("epochs".into(), Attribute::Int(3))] };
        let (identity, config) = (Identity::new(FileKind::Training), crate::config::Config::default());
        let environment = vec![("world_size".to_owned(), Attribute::Int(2))];
        let mut file = RunFile::create(&path, false, identity, &config, environment, Vec::new()).unwrap();
        file.finish(&[table], Some(&checkpoint)).unwrap();
        drop(file);
        let (identity, table) = (store::read_identity(&path).unwrap(), store::read_table(&path, "histograms").unwrap());

        let file = hdf5::File::open_rw(&path).unwrap();
        as_a_copy_has_them(&file);
        for group in ["config", "environment", "histograms", "checkpoint"] {
            as_a_copy_has_them(&file.group(group).unwrap());
        }
        let bins = file.dataset("histograms/bins").unwrap();
        as_a_copy_has_them(&bins);
        let [name]: [VarLenUnicode; 1] = bins.attr("dimensions").unwrap().read_raw().unwrap().try_into().unwrap();
        bins.delete_attr("dimensions").unwrap();
        bins.new_attr::<VarLenUnicode>().create("dimensions").unwrap().write_scalar(&name).unwrap();
        let axis = file.new_dataset::<f32>().shape([3]).create("checkpoint/phony_dim_0").unwrap();
        crate::sys::set_dimension_scale(&axis, "This is a netCDF dimension but not a netCDF variable.         3")
            .unwrap();
        drop((bins, axis));
        file.close().unwrap();

        assert_eq!(store::read_identity(&path).unwrap(), identity);
        assert!(store::read_config(&path).is_ok());
        let copy = store::read_table(&path, "histograms").unwrap();
        assert_eq!((&copy.dimension, &copy.columns), (&table.dimension, &table.columns));
        assert_eq!(store::attribute(&copy.attributes, "busbw").unwrap().number(), Some(1.5));
        let copy = store::read_checkpoint(&path).unwrap();
        assert_eq!(copy.tensors, checkpoint.tensors);
        assert_eq!(store::attribute(&copy.attributes, "epochs").unwrap().integer(), Some(3));
        assert!(store::inspect(&path).unwrap().contains("run file of hpml"));

        let file = hdf5::File::open_rw(&path).unwrap();
        file.delete_attr(VERSION).unwrap();
        file.new_attr::<i64>().shape([2]).create(VERSION).unwrap().write_raw(&[1, 1]).unwrap();
        file.close().unwrap();
        let message = store::read_identity(&path).unwrap_err().to_string();
        assert!(message.contains("hpml_format_version is not one integer"), "{message}");
    }

    #[test]
    fn a_huge_chunk_takes_no_memory() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.h5");
        let file = hdf5::File::create(&path).unwrap();
        file.new_dataset::<f64>().chunk([1 << 28]).shape([1..]).create("x").unwrap();
        file.close().unwrap();
        let input = Input::open(&path).unwrap();
        let message = input.values(&input.dataset("x").unwrap(), "x").unwrap_err().to_string();
        assert!(message.contains("claims more data"), "{message}");
    }
}
