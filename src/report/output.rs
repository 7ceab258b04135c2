//! Files that appear whole or not at all.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Refuses a place that cannot or must not be written: before the work, not after it.
pub fn check(path: &Path, force: bool) -> Result<()> {
    let cannot = |reason: &str| Err(Error::Output { path: path.to_owned(), reason: reason.into() });
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => cannot("it is a folder"),
        Ok(found) if !found.is_file() => cannot("it is not a regular file"),
        Ok(_) if !force => Err(Error::OutputExists { path: path.to_owned() }),
        _ if path.file_name().is_none() => cannot("it is no file name"),
        _ => Ok(()),
    }
}

/// Writes under another name and renames; makes missing folders.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    // A rename would put the file in the place of the link.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut part = target.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let written =
        fs::create_dir_all(folder).and_then(|()| fs::write(&part, bytes)).and_then(|()| fs::rename(&part, &target));
    written.map_err(|error| {
        let _ = fs::remove_file(&part); // it may not be there
        Error::Output { path: path.to_owned(), reason: error.to_string() }
    })
}
