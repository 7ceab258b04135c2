//! One copy per host of samples that are made in memory: a file in the host's shared memory, which all its ranks read and which has no
//! name any more once they have opened it. In: the communicator, and a function that makes the bytes. Out: the file.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::collective::Communicator;
use crate::error::Result;
use crate::metrics::Kind;

/// Folder of the host's shared memory.
const SHARED_MEMORY: &str = "/dev/shm";

/// Writes what `make` gives to shared memory, on one rank of each host. `None` if a rank is alone on its host, or if a host has no
/// room. A collective.
///
/// # Errors
/// A rank is gone.
pub(super) fn share(
    ranks: &Communicator,
    make: impl FnOnce() -> std::io::Result<Vec<u8>>,
) -> Result<Option<(PathBuf, File)>> {
    let host = ranks.split_by_host()?;
    let write = || -> std::io::Result<NamedTempFile> {
        let mut file = tempfile::Builder::new().prefix("hpml-data-").tempfile_in(SHARED_MEMORY)?;
        file.write_all(&make()?)?;
        Ok(file)
    };
    let written = (host.rank() == 0 && host.size() > 1).then(write);
    let reason = written.as_ref().and_then(|written| written.as_ref().err()).map(ToString::to_string);
    let file = written.and_then(|written| written.ok());
    let path = file.as_ref().map_or_else(String::new, |file| file.path().display().to_string());
    let path = PathBuf::from(host.all_gather_text(Kind::Control, &path)?.swap_remove(0));
    let opened = if path == Path::new("") { None } else { File::open(&path).ok() };
    // When all have come here, all have opened it, and the first one removes the name.
    let all = host.all_gather(Kind::Control, &[u64::from(opened.is_some())])?;
    drop(file);
    if host.rank() == 0 && host.size() > 1 && all.contains(&0) {
        let reason = reason.unwrap_or_else(|| "a rank of this host cannot open the file there".into());
        log::warn!("{SHARED_MEMORY}: {reason}: each rank of this host holds the data set in its own memory");
    }
    Ok(opened.filter(|_| !all.contains(&0)).map(|file| (path, file)))
}
