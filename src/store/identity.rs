//! What tells one run from another, whatever their files are called: an id made at a run's start, in its run file and in
//! each of its checkpoints.

use std::path::Path;

use hdf5::Group;

use super::Attribute;
use super::input::Input;
use super::schema::{KIND, RUN_ID, STATUS};
use super::values::write_attribute;
use crate::error::Result;

/// Status of a file whose run has done all it was started for.
const FINISHED: &str = "finished";
/// Status of any other.
const UNFINISHED: &str = "unfinished";

/// What a run file is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // each is a command
pub enum FileKind {
    Training,
    Sweep,
    Study,
    Allreduce,
    Quantized,
}

impl FileKind {
    const ALL: [FileKind; 5] =
        [FileKind::Training, FileKind::Sweep, FileKind::Study, FileKind::Allreduce, FileKind::Quantized];

    /// Name in files.
    pub fn as_str(self) -> &'static str {
        match self {
            FileKind::Training => "training",
            FileKind::Sweep => "sweep",
            FileKind::Study => "study",
            FileKind::Allreduce => "allreduce",
            FileKind::Quantized => "quantized",
        }
    }
}

/// Which run a file belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// A random UUID.
    pub run_id: String,
    /// What the run is.
    pub kind: FileKind,
}

impl Identity {
    /// A run that begins now.
    pub fn new(kind: FileKind) -> Identity {
        Identity { run_id: uuid::Uuid::new_v4().to_string(), kind }
    }

    /// Writes the root attributes of a new file.
    pub(super) fn write(&self, root: &Group) -> hdf5::Result<()> {
        write_attribute(root, RUN_ID, &Attribute::Text(self.run_id.clone()))?;
        write_attribute(root, KIND, &Attribute::Text(self.kind.as_str().into()))
    }
}

/// Writes whether the run has done all it was started for, in place of what was said before.
pub(super) fn write_status(root: &Group, is_finished: bool) -> hdf5::Result<()> {
    if root.attr_names()?.iter().any(|name| name == STATUS) {
        root.delete_attr(STATUS)?;
    }
    let status = if is_finished { FINISHED } else { UNFINISHED };
    write_attribute(root, STATUS, &Attribute::Text(status.into()))
}

/// What a run file says of its run. Files of earlier versions say nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunIdentity {
    /// Empty in files of earlier versions.
    pub run_id: String,
    /// `None` in files of earlier versions.
    pub kind: Option<FileKind>,
    /// Whether the run had more to do when the file was written. False in files of earlier versions.
    pub is_unfinished: bool,
}

/// Reads which run a run file or checkpoint belongs to.
///
/// # Errors
/// Those of a file that is no run file.
pub fn read_identity(path: &Path) -> Result<RunIdentity> {
    let input = Input::open_run_file(path)?;
    let text = |name: &str| match input.attribute(input.root(), name) {
        Some(Attribute::Text(text)) => text,
        _ => String::new(),
    };
    let kind = text(KIND);
    Ok(RunIdentity {
        run_id: text(RUN_ID),
        kind: FileKind::ALL.into_iter().find(|known| known.as_str() == kind),
        is_unfinished: text(STATUS) == UNFINISHED,
    })
}
