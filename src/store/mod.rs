//! Reader and writer of HDF5 files (run files, checkpoints, parity files) and of the files made from them.
//!
//! Writes tables (named columns over named dimensions), tensors under PyTorch's names, and attributes. h5py, xarray
//! (`open_dataset(FILE, group="epochs", engine="h5netcdf")`) and netCDF4 read the files without knowing hpml: every dataset has
//! `units` and `long_name`, every axis of a table is an HDF5 dimension scale. A run file is replaced as a whole, by a rename: a
//! reader sees the state of a finished flush at all times, even after the job was killed. Content that is read is not trusted:
//! sizes are checked against the file's size before memory is allocated. Nothing here knows ranks or training; only rank 0 calls
//! it.

mod atomic;
mod checkpoint;
mod checkpoint_folder;
mod groups;
mod heap;
mod identity;
mod input;
mod inspect;
mod layout;
mod owner;
mod parity;
mod run_file;
mod samples;
mod schema;
mod table;
mod values;
mod write;

use std::path::Path;

use crate::config::{Config, SYNTHETIC};
use crate::error::{Error, Result};
pub use crate::table::{Attribute, Column, Table, Values, attribute};
pub use checkpoint::{read_checkpoint, read_weights};
pub use checkpoint_folder::{CheckpointFolder, Resumable, Written, newest_checkpoint, newest_step, read_resumable};
pub use identity::{FileKind, Identity, RunIdentity, read_identity};
pub use inspect::inspect;
pub use owner::{Attempt, Claim, Owner};
pub use parity::{Parity, Reference, Tokens, read_parity};
pub use run_file::RunFile;
pub use samples::{Number, Rows, SampleFile};
pub use schema::{FORMAT_VERSION, LONG_NAME, STARTED, WARNINGS};
pub use write::{check_not_input, check_output, is_same_file, write_output};

/// The values of a tensor, in row-major order.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum TensorValues {
    F32(Vec<f32>),
    I64(Vec<i64>),
    I32(Vec<i32>),
    I8(Vec<i8>),
}

impl TensorValues {
    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            TensorValues::F32(values) => values.len(),
            TensorValues::I64(values) => values.len(),
            TensorValues::I32(values) => values.len(),
            TensorValues::I8(values) => values.len(),
        }
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Name of the element type, as in NumPy and PyTorch.
    pub fn type_name(&self) -> &'static str {
        match self {
            TensorValues::F32(_) => "float32",
            TensorValues::I64(_) => "int64",
            TensorValues::I32(_) => "int32",
            TensorValues::I8(_) => "int8",
        }
    }

    /// Size of all values in bytes.
    pub fn bytes(&self) -> usize {
        self.len()
            * match self {
                TensorValues::F32(_) | TensorValues::I32(_) => 4,
                TensorValues::I64(_) => 8,
                TensorValues::I8(_) => 1,
            }
    }
}

/// A tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    /// PyTorch's name, as in `layer1.0.conv1.weight`.
    pub name: String,
    /// Extent of each dimension; empty for a scalar.
    pub shape: Vec<usize>,
    /// Values, one per place of the shape.
    pub values: TensorValues,
    /// Attributes of the dataset, such as `scale` and `zero_point`.
    pub attributes: Vec<(String, Attribute)>,
}

impl NamedTensor {
    /// A tensor without attributes.
    pub fn new(name: impl Into<String>, shape: Vec<usize>, values: TensorValues) -> NamedTensor {
        NamedTensor { name: name.into(), shape, values, attributes: Vec::new() }
    }
}

/// Content of `/checkpoint`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Checkpoint {
    /// Tensors in the model's order, which the file keeps.
    pub tensors: Vec<NamedTensor>,
    /// Attributes of the group, such as epochs and steps.
    pub attributes: Vec<(String, Attribute)>,
}

impl Checkpoint {
    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&NamedTensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}

/// Reads one table of a run file, with its columns in the file's order.
///
/// # Errors
/// The file is not a run file, or the table is missing or damaged; the error names the dataset.
pub fn read_table(path: &Path, group: &str) -> Result<Table> {
    table::read(&input::Input::open_run_file(path)?, group)
}

/// Reads the paths of a run file's tables, such as `epochs` and `comm`, in the file's order.
///
/// # Errors
/// The file is not a run file.
pub fn table_names(path: &Path) -> Result<Vec<String>> {
    table::names(&input::Input::open_run_file(path)?)
}

/// Reads the attributes of one group of a run file, such as `environment`, sorted by name.
///
/// # Errors
/// The file is not a run file, or the group is missing.
pub fn read_attributes(path: &Path, group: &str) -> Result<Vec<(String, Attribute)>> {
    let input = input::Input::open_run_file(path)?;
    let group = input.group(group)?;
    Ok(input.attributes(&group, &[schema::DIMENSION]))
}

/// Reads the configuration that a run file was made with.
///
/// # Errors
/// The file is not a run file, or its configuration is that of another version of hpml.
pub fn read_config(path: &Path) -> Result<Config> {
    let text = input::Input::open_run_file(path)?.config_text()?;
    let mut config: Config = toml::from_str(&text).map_err(|error| Error::Dataset {
        path: path.to_owned(),
        name: schema::CONFIG.into(),
        message: format!("{}: written by another version of hpml", error.message().trim().replace('\n', " ")),
    })?;
    if config.data.dir.is_empty() {
        config.data.dir = SYNTHETIC.into(); // files written by hpml 0.1 leave it empty for synthetic data
    }
    Ok(config)
}
