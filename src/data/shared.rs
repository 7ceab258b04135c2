//! One copy per host of samples that are made in memory, or must not change with their files: a file in the host's shared memory, which
//! all its ranks read and which has no name any more once they have opened it. In: the communicator, and the samples. Out: the file, or
//! the sets that read it.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::NamedTempFile;

use super::source::{Memory, RecordFile, Records, Source};
use super::{Dataset, Datasets};
use crate::collective::Communicator;
use crate::error::{AtPath, Result};
use crate::metrics::Kind;
use crate::units::Bytes;

/// Folder of the host's shared memory.
const SHARED_MEMORY: &str = "/dev/shm";

/// Has `write` write to a file in shared memory, on one rank of each host. `None` if a rank is alone on its host, or if a host has no
/// room. A collective.
///
/// # Errors
/// A rank is gone.
pub(super) fn share(
    ranks: &Communicator,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<Option<(PathBuf, File)>> {
    let host = ranks.split_by_host()?;
    let make = || -> std::io::Result<NamedTempFile> {
        let mut file = tempfile::Builder::new().prefix("hpml-data-").tempfile_in(SHARED_MEMORY)?;
        write(&mut file)?;
        Ok(file)
    };
    let written = (host.rank() == 0 && host.size() > 1).then(make);
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

/// The sets in the host's memory, once per host: what happens to their files no longer matters. A collective.
pub(super) fn hold(datasets: Datasets, ranks: &Communicator) -> Result<Datasets> {
    let Datasets { train, test, name } = datasets;
    const PIECE: usize = 1024;
    let write = |file: &mut dyn Write| {
        for set in [&train, &test] {
            for start in (0..set.len()).step_by(PIECE) {
                let images = set.images(start..set.len().min(start + PIECE)).map_err(std::io::Error::other)?;
                file.write_all(&images)?;
            }
        }
        Ok(())
    };
    let shared = share(ranks, write)?;
    let bytes = |set: &Dataset| set.stored_bytes() / set.len().max(1) as Bytes;
    let source = |set: &Dataset, offset: Bytes| -> Result<Box<dyn Source>> {
        Ok(match &shared {
            None => Box::new(Memory(set.images(0..set.len())?.into_owned())),
            Some((path, file)) => Box::new(part_of(path, file, offset, bytes(set))?),
        })
    };
    let sources = [source(&train, 0)?, source(&test, train.stored_bytes())?];
    let mut sets = [train, test]
        .into_iter()
        .zip(sources)
        .map(|(set, source)| Arc::new(Arc::into_inner(set).expect("nobody else has the set yet").held_in(source)));
    let mut next = || sets.next().expect("there are two");
    Ok(Datasets { train: next(), test: next(), name })
}

/// Samples of `bytes` bytes each in `file`, the first of them at `offset`.
pub(super) fn part_of(path: &Path, file: &File, offset: Bytes, bytes: Bytes) -> Result<Records> {
    let file = file.try_clone().at(path)?;
    Ok(Records { files: vec![RecordFile { path: path.to_owned(), file, first: 0, offset }], stride: bytes })
}
