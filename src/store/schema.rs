//! Names and numbers of the run file.

/// Grows when a reader of the old layout would misread the new one. Root attribute [`VERSION`].
pub const FORMAT_VERSION: i64 = 1;

pub(super) const VERSION: &str = "hpml_format_version";
/// Root attributes of which run a file is, see [`identity`](super::identity).
pub(super) const RUN_ID: &str = "run_id";
pub(super) const KIND: &str = "run_kind";
pub(super) const STATUS: &str = "status";
pub(super) const CONFIG: &str = "config";
/// Attribute of [`CONFIG`]: the whole configuration as used.
pub(super) const TOML: &str = "toml";
/// Attribute of [`CONFIG`]: the whole configuration as the user wrote it, before it was fitted to ranks and data.
pub(super) const TOML_AS_WRITTEN: &str = "toml_as_written";
pub(super) const ENVIRONMENT: &str = "environment";
/// Attribute of [`ENVIRONMENT`]: what makes the run less than it could be, a text each; missing if there is none.
pub const WARNINGS: &str = "warnings";
pub(super) const CHECKPOINT: &str = "checkpoint";
/// Of checkpoint files: what a training needs beside the model to go on.
pub(super) const RESUME: &str = "resume";

/// Attribute of a table's group: the dimension of its rows.
pub(super) const DIMENSION: &str = "dimension";
/// Attribute of a column over other dimensions than the rows: their names.
pub(super) const DIMENSIONS: &str = "dimensions";
pub(super) const UNITS: &str = "units";
pub(super) const LONG_NAME: &str = "long_name";

/// Elements of a chunk, 1 MiB of f32: no smaller than a whole checksum pass is fast at, no larger than HDF5's chunk cache.
pub(super) const CHUNK_ELEMENTS: usize = 1 << 18;
