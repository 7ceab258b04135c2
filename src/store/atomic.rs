//! Atomic replacement of a file: it is written under another name, synced and renamed, so that a reader finds the old or the
//! new one.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use hdf5::file::FileCloseDegree;
use hdf5::plist::group_create::LinkCreationOrder;
use hdf5::plist::{FileAccessBuilder, FileCreate};
use tempfile::{NamedTempFile, TempPath};

use super::groups::MOST;
use crate::error::{Error, Result};
use crate::sys;

/// A finished file under a hidden name beside its target. Dropped, it is removed.
pub(super) struct Temporary {
    path: TempPath,
    target: PathBuf,
}

impl Temporary {
    /// Makes a file beside `target`, empty or a copy of `from`, lets `fill` write it and syncs it to the disk.
    ///
    /// # Errors
    /// [`Error::Output`] that names `target` if a step fails.
    pub(super) fn write(
        target: &Path,
        from: Option<&Path>,
        fill: impl FnOnce(&hdf5::File) -> hdf5::Result<()>,
    ) -> Result<Temporary> {
        let cannot = |reason: String| Error::Output { path: target.to_owned(), reason };
        let made = beside(target).map_err(|error| cannot(error.to_string()))?;
        let temporary = Temporary { path: made.into_temp_path(), target: target.to_owned() };
        let mut builder = hdf5::File::with_options();
        // From format 1.10 on object headers carry a checksum too, not only chunks.
        builder.with_fapl(|plist| plist.libver_v110().fclose_degree(FileCloseDegree::Strong));
        match from {
            Some(from) => fs::copy(from, &temporary.path).map(drop).map_err(|error| cannot(error.to_string())),
            None => create(&temporary.path, builder.fapl()).map_err(|error| cannot(reason(&error))),
        }?;
        let file = builder.open_rw(&temporary.path).map_err(|error| cannot(reason(&error)))?;
        fill(&file).and_then(|()| file.flush()).and_then(|()| file.close()).map_err(|error| cannot(reason(&error)))?;
        let synced = fs::File::open(&temporary.path).and_then(|file| file.sync_all());
        synced.map_err(|error| cannot(error.to_string()))?;
        Ok(temporary)
    }

    /// Path of the temporary file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Renames the file to its target, atomically. Only with `replace` may it take the place of another file.
    ///
    /// # Errors
    /// [`Error::OutputExists`] if there is a file that must stay, [`Error::Output`] if the system refuses.
    pub(super) fn rename(self, replace: bool) -> Result<()> {
        let target = self.target.clone();
        self.rename_to(&target, replace)
    }

    /// Renames the file to `target`, in the folder of its own target; otherwise as [`rename`](Self::rename).
    ///
    /// # Errors
    /// [`Error::OutputExists`] or [`Error::Output`], as for [`rename`](Self::rename).
    pub(super) fn rename_to(self, target: &Path, replace: bool) -> Result<()> {
        persist(self.path, target, replace).map_err(|error| not_persisted(target, error))?;
        // Without this sync a power cut could undo the rename. Some file systems cannot sync a folder; the file itself is safe.
        if let Ok(folder) = fs::File::open(folder_of(&self.target)) {
            let _ = folder.sync_all();
        }
        Ok(())
    }
}

/// Renames a finished file to `target`, atomically. Only with `replace` may it take the place of another file.
pub(super) fn persist(file: TempPath, target: &Path, replace: bool) -> io::Result<()> {
    if replace {
        return file.persist(target).map_err(io::Error::from);
    }
    match file.persist_noclobber(target) {
        Err(error) if error.error.kind() != io::ErrorKind::AlreadyExists => {
            // The file system supports neither links nor renames that replace nothing.
            fs::File::create_new(target)?;
            error.path.persist(target).map_err(io::Error::from)
        }
        named => named.map_err(io::Error::from),
    }
}

/// Makes an empty file, whose first group is like [all others](super::groups::group).
fn create(path: &Path, access: &FileAccessBuilder) -> hdf5::Result<()> {
    let mut plist = FileCreate::build();
    let plist = plist.link_creation_order(LinkCreationOrder::Indexed).attr_phase_change(MOST, MOST).finish()?;
    sys::create_file(path, &plist, &access.finish()?, MOST)
}

/// Error for a file that [`persist`] could not rename to `path`.
pub(super) fn not_persisted(path: &Path, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::AlreadyExists => Error::OutputExists { path: path.to_owned() },
        _ => Error::Output { path: path.to_owned(), reason: error.to_string() },
    }
}

/// Makes a file under a hidden name in the folder of `target`. It is removed when dropped.
pub(super) fn beside(target: &Path) -> io::Result<NamedTempFile> {
    let mut named = tempfile::Builder::new();
    // The mode of any new file, less the umask: the user's group may read the results.
    named.prefix(".hpml-").suffix(".part").permissions(fs::Permissions::from_mode(0o666));
    named.tempfile_in(folder_of(target))
}

/// Folder of a file; `.` for a bare name.
pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Cause of an HDF5 error (the last frame of its stack), in the system's words if the system refused.
pub(super) fn reason(error: &hdf5::Error) -> String {
    let stack = error.stack();
    let cause = stack.as_deref().and_then(|frames| frames.last()).map(|frame| frame.desc().to_owned());
    let text = cause.unwrap_or_else(|| error.to_string());
    let quoted = text.split_once("error message = '").and_then(|(_, rest)| rest.split_once('\''));
    let text = quoted.map_or(text.as_str(), |(message, _)| message).replace('\n', " ");
    if text.contains("lock") { format!("{text} (try HDF5_USE_FILE_LOCKING=FALSE)") } else { text }
}
