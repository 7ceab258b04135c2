//! Atomic writes of files other than HDF5 (tables, plots, ONNX).

use std::fs::{self, Metadata};
use std::io::{self, Write};
use std::path::Path;

use super::atomic;
use crate::error::{Error, Result};

/// Checks that `path` may be written, before the work is done.
///
/// # Errors
/// [`Error::OutputExists`] for an existing file without `force`, [`Error::Output`] if it is a folder or not a regular file.
pub fn check_output(path: &Path, force: bool) -> Result<()> {
    check_found(fs::metadata(path), path, force)
}

/// Checks as [`check_output`] does, given what was `found` at `path`.
pub(super) fn check_found(found: io::Result<Metadata>, path: &Path, force: bool) -> Result<()> {
    let cannot = |reason: &str| Err(Error::Output { path: path.to_owned(), reason: reason.into() });
    match found {
        Ok(found) if found.is_dir() => cannot("it is a folder"),
        // A rename would put a file in the place of /dev/null.
        Ok(found) if !found.is_file() => cannot("it is not a regular file"),
        Ok(_) if !force => Err(Error::OutputExists { path: path.to_owned() }),
        _ if path.file_name().is_none() => cannot("it is no file name"),
        _ => Ok(()),
    }
}

/// Writes `bytes` under another name and renames the file to `path`; creates missing folders. Replaces a file only with
/// `force`.
///
/// ```
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("tables/epochs.csv");
/// hpml::store::write_output(&path, b"epoch,loss\n", false)?;
/// assert!(hpml::store::write_output(&path, b"", false).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`Error::OutputExists`] without `force`, [`Error::Output`] if the system refuses.
pub fn write_output(path: &Path, bytes: &[u8], force: bool) -> Result<()> {
    // A rename would put the file in the place of the link.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let made = fs::create_dir_all(atomic::folder_of(&target)).and_then(|()| {
        let mut file = atomic::beside(&target)?;
        file.write_all(bytes)?;
        Ok(file.into_temp_path())
    });
    let made = made.map_err(|error| Error::Output { path: path.to_owned(), reason: error.to_string() })?;
    atomic::persist(made, &target, force).map_err(|error| atomic::not_persisted(path, error))
}

/// Refuses an output that is one of its inputs, even with `--force`.
///
/// # Errors
/// [`Error::Output`] if it is one.
pub fn check_not_input(out: &Path, inputs: &[impl AsRef<Path>]) -> Result<()> {
    match inputs.iter().any(|input| is_same_file(out, input.as_ref())) {
        true => Err(Error::Output {
            path: out.to_owned(),
            reason: "it is the file that is read: choose another name".into(),
        }),
        false => Ok(()),
    }
}

/// Whether two paths lead to the same existing file or folder.
pub fn is_same_file(a: &Path, b: &Path) -> bool {
    let whole = |path: &Path| fs::canonicalize(path).ok();
    whole(a).is_some() && whole(a) == whole(b)
}
