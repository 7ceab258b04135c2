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
use crate::metrics::Definition;
pub use checkpoint::read_checkpoint;
pub use checkpoint_folder::{CheckpointFolder, Resumable, Written, newest_checkpoint, newest_step, read_resumable};
pub use identity::{FileKind, Identity, RunIdentity, read_identity};
pub use inspect::inspect;
pub use owner::{Attempt, Claim, Owner};
pub use parity::{Parity, Reference, read_parity};
pub use run_file::RunFile;
pub use schema::{FORMAT_VERSION, WARNINGS};
pub use write::{check_not_input, check_output, is_same_file, write_output};

/// The values of a column, in row-major order if it has several dimensions.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // the types are their own documentation
pub enum Values {
    F64(Vec<f64>),
    F32(Vec<f32>),
    I64(Vec<i64>),
    Text(Vec<String>),
}

impl Values {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Values::F64(values) => values.len(),
            Values::F32(values) => values.len(),
            Values::I64(values) => values.len(),
            Values::Text(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values at these places, all of which must exist.
    pub fn select(&self, places: &[usize]) -> Values {
        fn at<T: Clone>(values: &[T], places: &[usize]) -> Vec<T> {
            places.iter().map(|place| values[*place].clone()).collect()
        }
        match self {
            Values::F64(values) => Values::F64(at(values, places)),
            Values::F32(values) => Values::F32(at(values, places)),
            Values::I64(values) => Values::I64(at(values, places)),
            Values::Text(values) => Values::Text(at(values, places)),
        }
    }

    /// As numbers; `None` for text.
    pub fn numbers(&self) -> Option<Vec<f64>> {
        match self {
            Values::F64(values) => Some(values.clone()),
            Values::F32(values) => Some(values.iter().map(|value| f64::from(*value)).collect()),
            Values::I64(values) => Some(values.iter().map(|value| *value as f64).collect()),
            Values::Text(_) => None,
        }
    }
}

/// One dataset of a table: `/epochs/train_loss`.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// Of the dataset.
    pub name: String,
    /// As in UDUNITS: `s`, `B`, `1/s`, `percent`, `1` for a plain number.
    pub units: String,
    /// What it is, in a few words.
    pub long_name: String,
    /// Name and extent of each axis. Empty: the table's own dimension, a value a row.
    pub dimensions: Vec<(String, usize)>,
    /// As many as the dimensions have places.
    pub values: Values,
}

impl Column {
    /// A value a row.
    pub fn new(
        name: impl Into<String>,
        units: impl Into<String>,
        long_name: impl Into<String>,
        values: Values,
    ) -> Column {
        Column { name: name.into(), units: units.into(), long_name: long_name.into(), dimensions: Vec::new(), values }
    }

    /// A value a row of a figure, with the name, units and text of its definition.
    pub fn of(definition: &Definition, values: Values) -> Column {
        Column::new(definition.name, definition.units, definition.long_name(), values)
    }

    /// The same over other dimensions: `column.over(&[("layer", 4), ("bin", 64)])` for 256 values.
    pub fn over(mut self, dimensions: &[(&str, usize)]) -> Column {
        self.dimensions = dimensions.iter().map(|(name, extent)| ((*name).to_owned(), *extent)).collect();
        self
    }
}

/// A group of columns that share dimensions.
///
/// A column named as a dimension (`epoch` over `epoch`) is its coordinate; a dimension without one is numbered from 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// Path of the group, without the first slash.
    pub group: String,
    /// The dimension of all columns that name no other.
    pub dimension: String,
    /// In the order of the file.
    pub columns: Vec<Column>,
    /// Of the group.
    pub attributes: Vec<(String, Attribute)>,
}

impl Table {
    /// A table without attributes.
    pub fn new(group: impl Into<String>, dimension: impl Into<String>, columns: Vec<Column>) -> Table {
        Table { group: group.into(), dimension: dimension.into(), columns, attributes: Vec::new() }
    }

    /// The column of that name.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// The numbers of the column of that name; none if there is no such column, or it is of text.
    pub fn numbers(&self, name: &str) -> Vec<f64> {
        self.column(name).and_then(|column| column.values.numbers()).unwrap_or_default()
    }

    /// The numbers of these columns row by row, as many rows as all of them have.
    pub fn rows<const N: usize>(&self, names: [&str; N]) -> Vec<[f64; N]> {
        let columns = names.map(|name| self.numbers(name));
        let rows = columns.iter().map(Vec::len).min().unwrap_or(0);
        (0..rows).map(|row| columns.each_ref().map(|column| column[row])).collect()
    }
}

/// A small value attached to a group or dataset.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Attribute {
    Text(String),
    Int(i64),
    Float(f64),
    Bool(bool),
    Ints(Vec<i64>),
    Floats(Vec<f64>),
    Texts(Vec<String>),
}

/// The attribute of that name.
pub fn attribute<'a>(attributes: &'a [(String, Attribute)], name: &str) -> Option<&'a Attribute> {
    attributes.iter().find(|(known, _)| known == name).map(|(_, value)| value)
}

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
