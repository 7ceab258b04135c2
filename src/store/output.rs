//! Files other than HDF5 (tables, plots, ONNX) that appear whole or not at all.

use std::fs::{self, Metadata};
use std::io::{self, Write};
use std::path::Path;

use super::atomic;
use crate::error::{Error, Result};

/// Refuses a place that cannot or must not be written: before the work, not after it.
pub fn check_output(path: &Path, force: bool) -> Result<()> {
    check_found(fs::metadata(path), path, force)
}

/// The same, by what was `found` at `path`.
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

/// Writes under another name and renames; makes missing folders.
pub fn write_output(path: &Path, bytes: &[u8]) -> Result<()> {
    // A rename would put the file in the place of the link.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let written = fs::create_dir_all(atomic::folder_of(&target)).and_then(|()| {
        let mut file = atomic::beside(&target)?;
        file.write_all(bytes)?;
        Ok(file.persist(&target)?)
    });
    written.map(drop).map_err(|error| Error::Output { path: path.to_owned(), reason: error.to_string() })
}
