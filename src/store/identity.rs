//! Identity of a run, whatever its files are called: an id made at its start, stored in its run file and in each of its
//! checkpoints.

use std::path::Path;

use hdf5::Group;

use super::Attribute;
use super::groups::group;
use super::input::Input;
use super::schema::{ENDED, ENVIRONMENT, KIND, RUN_ID, STATUS};
use super::values::write_attribute;
use crate::error::Result;
use crate::units;

/// Status of a file whose run is complete.
const FINISHED: &str = "finished";
/// Status of a file whose run is not complete.
const UNFINISHED: &str = "unfinished";

/// Kind of run that wrote a run file.
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

    /// Name in run files.
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

/// Run that a file belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Random UUID of the run.
    pub run_id: String,
    /// Kind of the run.
    pub kind: FileKind,
}

impl Identity {
    /// Makes the identity of a run that starts now.
    pub fn new(kind: FileKind) -> Identity {
        Identity { run_id: uuid::Uuid::new_v4().to_string(), kind }
    }

    /// Writes the root attributes of a new file.
    pub(super) fn write(&self, root: &Group) -> hdf5::Result<()> {
        write_attribute(root, RUN_ID, &Attribute::Text(self.run_id.clone()))?;
        write_attribute(root, KIND, &Attribute::Text(self.kind.as_str().into()))
    }
}

/// Writes whether the run is complete, in place of an earlier status, and the time if it is.
pub(super) fn write_status(root: &Group, is_finished: bool) -> hdf5::Result<()> {
    if root.attr_names()?.iter().any(|name| name == STATUS) {
        root.delete_attr(STATUS)?;
    }
    let status = if is_finished { FINISHED } else { UNFINISHED };
    write_attribute(root, STATUS, &Attribute::Text(status.into()))?;
    if !is_finished {
        return Ok(());
    }
    let environment = group(root, ENVIRONMENT)?;
    if environment.attr_names()?.iter().any(|name| name == ENDED) {
        environment.delete_attr(ENDED)?;
    }
    write_attribute(&environment, ENDED, &Attribute::Text(units::now()))
}

/// Identity and status of the run in a run file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunIdentity {
    /// UUID of the run; empty in files of earlier versions.
    pub run_id: String,
    /// Kind of the run; `None` in files of earlier versions.
    pub kind: Option<FileKind>,
    /// Whether the run was incomplete when the file was written; false in files of earlier versions.
    pub is_unfinished: bool,
}

/// Reads which run a run file or checkpoint belongs to.
///
/// # Errors
/// [`Error::File`](crate::error::Error::File) or [`Error::Io`](crate::error::Error::Io) if it is no readable run file.
pub fn read_identity(path: &Path) -> Result<RunIdentity> {
    let input = Input::open_run_file(path)?;
    let text = |name: &str| input.text(input.root(), name).unwrap_or_default();
    let kind = text(KIND);
    Ok(RunIdentity {
        run_id: text(RUN_ID),
        kind: FileKind::ALL.into_iter().find(|known| known.as_str() == kind),
        is_unfinished: text(STATUS) == UNFINISHED,
    })
}
