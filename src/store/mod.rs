//! The one reader and writer of HDF5 (run files, checkpoints, parity files), and of what is made from it.
//!
//! In: tables (named columns over named dimensions), tensors under PyTorch's names, attributes. Out: a file that h5py,
//! xarray (`open_dataset(FILE, group="epochs", engine="h5netcdf")`) and netCDF4 read without knowing hpml: every dataset
//! has `units` and `long_name`, every axis of a table is an HDF5 dimension scale. A run file is replaced as a whole, by
//! a rename: whoever opens it, and whenever the job was killed, finds the state of a finished flush.
//! What is read is not trusted: sizes are checked against the file's before memory is taken. Knows nothing of ranks and
//! of training; only rank 0 calls it.

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
mod schema;
mod table;
mod values;
mod write;

use std::path::Path;

use crate::config::{Config, SYNTHETIC};
use crate::error::{Error, Result};
pub use crate::table::{Attribute, Column, Table, Values, attribute};
pub use checkpoint::read_checkpoint;
pub use checkpoint_folder::{CheckpointFolder, Resumable, Written, newest_checkpoint, newest_step, read_resumable};
pub use identity::{FileKind, Identity, RunIdentity, read_identity};
pub use inspect::inspect;
pub use owner::{Attempt, Claim, Owner};
pub use parity::{Parity, Reference, read_parity};
pub use run_file::RunFile;
pub use schema::{FORMAT_VERSION, WARNINGS};
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
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            TensorValues::F32(values) => values.len(),
            TensorValues::I64(values) => values.len(),
            TensorValues::I32(values) => values.len(),
            TensorValues::I8(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The type's name, as in NumPy and PyTorch.
    pub fn type_name(&self) -> &'static str {
        match self {
            TensorValues::F32(_) => "float32",
            TensorValues::I64(_) => "int64",
            TensorValues::I32(_) => "int32",
            TensorValues::I8(_) => "int8",
        }
    }

    /// Size of all values.
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
    /// Empty: a scalar.
    pub shape: Vec<usize>,
    /// As many as the shape says.
    pub values: TensorValues,
    /// Of the dataset: `scale`, `zero_point` and the like.
    pub attributes: Vec<(String, Attribute)>,
}

impl NamedTensor {
    /// A tensor without attributes.
    pub fn new(name: impl Into<String>, shape: Vec<usize>, values: TensorValues) -> NamedTensor {
        NamedTensor { name: name.into(), shape, values, attributes: Vec::new() }
    }
}

/// What `/checkpoint` holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Checkpoint {
    /// In the model's order, kept in the file.
    pub tensors: Vec<NamedTensor>,
    /// Of the group: epochs, steps.
    pub attributes: Vec<(String, Attribute)>,
}

impl Checkpoint {
    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<&NamedTensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}

/// Reads one table of a run file, its columns in the file's order. Errors name the dataset.
pub fn read_table(path: &Path, group: &str) -> Result<Table> {
    table::read(&input::Input::open_run_file(path)?, group)
}

/// The paths of a run file's tables, such as `epochs` and `comm`, in the file's order.
pub fn table_names(path: &Path) -> Result<Vec<String>> {
    table::names(&input::Input::open_run_file(path)?)
}

/// The attributes of one group of a run file, such as `environment`, sorted by name.
pub fn read_attributes(path: &Path, group: &str) -> Result<Vec<(String, Attribute)>> {
    let input = input::Input::open_run_file(path)?;
    let group = input.group(group)?;
    Ok(input.attributes(&group, &[schema::DIMENSION]))
}

/// The configuration a run file was made with.
pub fn read_config(path: &Path) -> Result<Config> {
    let text = input::Input::open_run_file(path)?.config_text()?;
    let mut config: Config = toml::from_str(&text).map_err(|error| Error::Dataset {
        path: path.to_owned(),
        name: schema::CONFIG.into(),
        message: format!("{}: written by another version of hpml", error.message().trim().replace('\n', " ")),
    })?;
    if config.data.dir.is_empty() {
        config.data.dir = SYNTHETIC.into(); // what an empty one meant in files written by hpml 0.1
    }
    Ok(config)
}
