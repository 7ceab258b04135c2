//! A file that is either the old one or the new one: written under another name, synced, renamed.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use hdf5::file::FileCloseDegree;
use hdf5::plist::group_create::LinkCreationOrder;
use tempfile::{NamedTempFile, TempPath};

use crate::error::{Error, Result};

/// A finished file under a hidden name beside its target. Dropped, it is removed.
pub(super) struct Temporary {
    path: TempPath,
    target: PathBuf,
}

impl Temporary {
    /// Makes a file beside `target`, empty or a copy of `from`, lets `fill` write it, and syncs it to the disk.
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
        builder.with_fcpl(|plist| plist.link_creation_order(LinkCreationOrder::Indexed));
        let file = match from {
            Some(from) => {
                fs::copy(from, &temporary.path).map_err(|error| cannot(error.to_string()))?;
                builder.open_rw(&temporary.path)
            }
            None => builder.create(&temporary.path),
        };
        let file = file.map_err(|error| cannot(reason(&error)))?;
        fill(&file).and_then(|()| file.flush()).and_then(|()| file.close()).map_err(|error| cannot(reason(&error)))?;
        let synced = fs::File::open(&temporary.path).and_then(|file| file.sync_all());
        synced.map_err(|error| cannot(error.to_string()))?;
        Ok(temporary)
    }

    /// Where it lies for now.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Puts the file in the target's place, in one step.
    pub(super) fn rename(self) -> Result<()> {
        let target = self.target.clone();
        self.rename_to(&target)
    }

    /// Puts the file in the place of another one of the target's folder, in one step.
    pub(super) fn rename_to(self, target: &Path) -> Result<()> {
        let renamed = self.path.persist(target);
        renamed.map_err(|error| Error::Output { path: target.to_owned(), reason: error.error.to_string() })?;
        // So that the new name survives a power cut as well. Some file systems cannot sync a folder: the file is safe.
        if let Ok(folder) = fs::File::open(folder_of(&self.target)) {
            let _ = folder.sync_all();
        }
        Ok(())
    }
}

/// A new file under a hidden name in the folder of `target`, removed when dropped.
pub(super) fn beside(target: &Path) -> io::Result<NamedTempFile> {
    let mut named = tempfile::Builder::new();
    // As any new file's mode, less the umask: others of one's group read the results.
    named.prefix(".hpml-").suffix(".part").permissions(fs::Permissions::from_mode(0o666));
    named.tempfile_in(folder_of(target))
}

/// The folder that a file lies in, `.` for a bare name.
pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// The cause of an HDF5 error, which stands last in its stack, in the system's words if the system refused.
pub(super) fn reason(error: &hdf5::Error) -> String {
    let stack = error.stack();
    let cause = stack.as_deref().and_then(|frames| frames.last()).map(|frame| frame.desc().to_owned());
    let text = cause.unwrap_or_else(|| error.to_string());
    let quoted = text.split_once("error message = '").and_then(|(_, rest)| rest.split_once('\''));
    let text = quoted.map_or(text.as_str(), |(message, _)| message).replace('\n', " ");
    if text.contains("lock") { format!("{text} (try HDF5_USE_FILE_LOCKING=FALSE)") } else { text }
}
