//! Names of groups and attributes of the run file, and its format version.

/// Format version, root attribute [`VERSION`]. It grows when a reader of the old layout would misread the new one.
pub const FORMAT_VERSION: i64 = 1;

pub(super) const VERSION: &str = "hpml_format_version";
/// Root attribute: UUID of the run, see [`identity`](super::identity).
pub(super) const RUN_ID: &str = "run_id";
pub(super) const KIND: &str = "run_kind";
pub(super) const STATUS: &str = "status";
pub(super) const CONFIG: &str = "config";
/// Attribute of [`CONFIG`]: the whole configuration as used.
pub(super) const TOML: &str = "toml";
/// Attribute of [`CONFIG`]: the whole configuration as the user wrote it, before it was fitted to ranks and data.
pub(super) const TOML_AS_WRITTEN: &str = "toml_as_written";
pub(super) const ENVIRONMENT: &str = "environment";
/// Attribute of [`ENVIRONMENT`]: time of the job's start, ISO 8601 with the offset from UTC.
pub const STARTED: &str = "started";
/// Attribute of [`ENVIRONMENT`]: time when the run was finished, as [`STARTED`]; missing before.
pub(super) const ENDED: &str = "ended";
/// Attribute of [`ENVIRONMENT`]: warnings of the run, one text each; missing if there are none.
pub const WARNINGS: &str = "warnings";
pub(super) const CHECKPOINT: &str = "checkpoint";
/// Group of checkpoint files: state beside the model that a training needs to continue.
pub(super) const RESUME: &str = "resume";

/// Attribute of a table's group: dimension of its rows.
pub(super) const DIMENSION: &str = "dimension";
/// Attribute of a column over dimensions other than the rows: names of these dimensions.
pub(super) const DIMENSIONS: &str = "dimensions";
pub(super) const UNITS: &str = "units";
/// Attribute of a dataset: its meaning in words.
pub const LONG_NAME: &str = "long_name";

/// Largest number of elements in a chunk, 1 MiB of f32: large enough for fast checksums, small enough for HDF5's chunk cache.
pub(super) const CHUNK_ELEMENTS: usize = 1 << 18;
