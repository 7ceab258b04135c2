//! Folder of a run's checkpoints, which are run files with an additional group `/resume`. Each is named after its step and
//! the hash of its bytes, so that damage is found before anything in it is used.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::atomic::Temporary;
use super::identity::read_identity;
use super::input::Input;
use super::layout::{self, Header};
use super::schema::{CHECKPOINT, RESUME};
use super::write::is_same_file;
use super::{Checkpoint, Owner, RunFile, Table, checkpoint, table};
use crate::error::{AtPath, Error, Result};

/// Appended to the run file's whole name, so that no two run files share a folder.
const EXTENSION: &str = "checkpoints";

/// State that a training needs to continue.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Resumable {
    /// Tables measured so far, as in the run file.
    pub tables: Vec<Table>,
    /// Parameters and buffers of the model.
    pub model: Checkpoint,
    /// Remaining state: the optimizer's moments and, as attributes, the position in the training.
    pub state: Checkpoint,
}

/// Folder `runs/net.h5.checkpoints/` of the run file `runs/net.h5`, written by the process that owns the run file.
pub struct CheckpointFolder {
    path: PathBuf,
    owner: Arc<Owner>,
    keep: usize,
    header: Header,
    /// Checkpoints that are kept, oldest first.
    chain: Vec<PathBuf>,
    /// Files to remove once a new checkpoint is written.
    superseded: Vec<PathBuf>,
}

/// Checkpoint that is written and synced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Path of the checkpoint.
    pub path: PathBuf,
    /// Size of the checkpoint.
    pub bytes: u64,
}

impl CheckpointFolder {
    /// Path of the folder that belongs to `run_file`.
    pub fn path_beside(run_file: &Path) -> PathBuf {
        let mut name = run_file.file_name().unwrap_or_default().to_owned();
        name.push(".");
        name.push(EXTENSION);
        run_file.with_file_name(name)
    }

    /// Path of the run file that `checkpoint`'s folder belongs to; `None` if it lies in no such folder.
    pub fn run_file_of(checkpoint: &Path) -> Option<PathBuf> {
        let folder = checkpoint.parent().filter(|folder| folder.extension() == Some(EXTENSION.as_ref()))?;
        Some(folder.with_extension(""))
    }

    /// Prepares the folder for the training that has created `run_file` and continues from the checkpoint `from`, if any.
    /// Each checkpoint gets the header of the run file. Nothing is written yet.
    ///
    /// The `keep` newest checkpoints are kept. The others stay until the first new one is written; then damaged ones and
    /// those of this run are removed, whose steps this training has done or will repeat, and with `replace` those of other
    /// runs too.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be read.
    ///
    /// # Panics
    /// If `run_file` was opened instead of created.
    pub fn new(run_file: &RunFile, keep: usize, from: Option<&Path>, replace: bool) -> Result<CheckpointFolder> {
        let path = CheckpointFolder::path_beside(run_file.path());
        let header = run_file.header().expect("created by this training").clone();
        let is_from = |file: &Path| from.is_some_and(|from| is_same_file(from, file));
        let (chain, others): (Vec<PathBuf>, Vec<PathBuf>) =
            checkpoints_in(&path)?.into_iter().map(|(_, file)| file).partition(|file| is_from(file));
        let of_this_run =
            |file: &PathBuf| read_identity(file).map_or(true, |identity| identity.run_id == header.run_id());
        let superseded = others.into_iter().filter(|file| replace || of_this_run(file)).collect();
        Ok(CheckpointFolder { path, owner: run_file.owner(), keep, header, chain, superseded })
    }

    /// Writes the checkpoint of `step`, then removes those that are no longer kept. On an error no file changes.
    ///
    /// # Errors
    /// [`Error::OutputLost`] if another job has taken over the run file's name, [`Error::Output`] if the checkpoint cannot be
    /// written.
    pub fn write(&mut self, step: usize, content: &Resumable) -> Result<Written> {
        fs::create_dir_all(&self.path)
            .map_err(|error| Error::Output { path: self.path.clone(), reason: error.to_string() })?;
        let temporary = Temporary::write(&self.path.join("checkpoint"), None, |root| {
            self.header.write(root)?;
            layout::write(root, false, &content.tables, Some(&content.model))?;
            checkpoint::write(root, RESUME, &content.state)
        })?;
        let path = self.path.join(file_name(step, hash(temporary.path())?));
        let bytes = fs::metadata(temporary.path()).at(temporary.path())?.len();
        self.owner.check()?;
        temporary.rename_to(&path, true)?;
        self.chain.retain(|known| *known != path);
        self.chain.push(path.clone());
        let dropped = self.chain.len().saturating_sub(self.keep);
        self.superseded.extend(self.chain.drain(..dropped));
        // A file that cannot be removed does no harm; the next write tries again.
        self.superseded.retain(|old| *old != path && fs::remove_file(old).is_err() && old.exists());
        Ok(Written { path, bytes })
    }
}

/// Reads the newest undamaged checkpoint of `folder`; damaged ones are skipped with a warning. `None` if there is no folder
/// or no checkpoint in it.
///
/// # Errors
/// [`Error::File`] if all checkpoints are damaged, [`Error::Io`] if the folder cannot be read.
pub fn newest_checkpoint(folder: &Path) -> Result<Option<(PathBuf, Resumable)>> {
    let mut found = checkpoints_in(folder)?;
    found.sort();
    let count = found.len();
    for (_, path) in found.into_iter().rev() {
        match read_resumable(&path) {
            Ok(content) => return Ok(Some((path, content))),
            Err(error) => log::warn!("{error}; skipping this checkpoint and trying the one before"),
        }
    }
    match count {
        0 => Ok(None),
        _ => {
            let message = format!(
                "all {count} checkpoints are damaged: start from the beginning with --force and without --resume"
            );
            Err(Error::File { path: folder.to_owned(), message })
        }
    }
}

/// Largest step with a checkpoint in `folder`, damaged or not; `None` if there is none.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be read.
pub fn newest_step(folder: &Path) -> Result<Option<u64>> {
    Ok(checkpoints_in(folder)?.into_iter().map(|(step, _)| step).max())
}

/// Reads a checkpoint. If its name contains a hash, the whole file is checked first.
///
/// # Errors
/// [`Error::File`] or [`Error::Dataset`] if it is damaged or not a checkpoint.
pub fn read_resumable(path: &Path) -> Result<Resumable> {
    if let Some((_, expected)) = path.file_name().and_then(|name| parse(&name.to_string_lossy()))
        && hash(path)? != expected
    {
        let message =
            "damaged, or written again by another program: its bytes do not have the hash in its name: use another \
                       checkpoint"
                .to_owned();
        return Err(Error::File { path: path.to_owned(), message });
    }
    let input = Input::open_run_file(path)?;
    let state = checkpoint::read(&input, RESUME)?;
    let model = checkpoint::read(&input, CHECKPOINT)?;
    // The table `environment` belongs to the header, not to the training.
    let names = table::names(&input)?.into_iter().filter(|name| name != super::schema::ENVIRONMENT);
    let tables: Result<Vec<Table>> = names.map(|name| table::read(&input, &name)).collect();
    Ok(Resumable { tables: tables?, model, state })
}

/// Step and path of each checkpoint in `folder`.
fn checkpoints_in(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        entries => entries.at(folder)?,
    };
    let paths = entries.flatten().map(|entry| entry.path());
    Ok(paths
        .filter_map(|path| {
            let (step, _) = parse(&path.file_name()?.to_string_lossy())?;
            Some((step, path))
        })
        .collect())
}

fn file_name(step: usize, hash: u64) -> String {
    format!("step-{step:010}-{hash:016x}.h5")
}

/// Splits the name of a checkpoint into step and hash.
fn parse(name: &str) -> Option<(u64, u64)> {
    let (step, hash) = name.strip_prefix("step-")?.strip_suffix(".h5")?.split_once('-')?;
    Some((step.parse().ok()?, u64::from_str_radix(hash, 16).ok()?))
}

/// The first 64 bits of a file's BLAKE3.
fn hash(path: &Path) -> Result<u64> {
    let mut hasher = blake3::Hasher::new();
    fs::File::open(path).and_then(|file| hasher.update_reader(file).map(|_| ())).at(path)?;
    Ok(u64::from_le_bytes(hasher.finalize().as_bytes()[..8].try_into().expect("a blake3 hash has 32 bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::store::{Attribute, FileKind, Identity, NamedTensor, TensorValues};

    fn content(step: i64) -> Resumable {
        let tensor = |name: &str| NamedTensor::new(name, vec![2], TensorValues::F32(vec![step as f32, 0.5]));
        Resumable {
            tables: Vec::new(),
            model: Checkpoint { tensors: vec![tensor("fc.weight")], attributes: Vec::new() },
            state: Checkpoint {
                tensors: vec![tensor("momentum")],
                attributes: vec![("step".into(), Attribute::Int(step))],
            },
        }
    }

    /// The folder of the run `id`.
    fn open(run_file: &Path, id: &str, from: Option<&Path>, replace: bool) -> CheckpointFolder {
        let identity = Identity { run_id: id.into(), kind: FileKind::Training };
        let run_file = RunFile::create(run_file, false, identity, &Config::default(), Vec::new(), Vec::new()).unwrap();
        CheckpointFolder::new(&run_file, 2, from, replace).unwrap()
    }

    fn steps(folder: &Path) -> Vec<u64> {
        let mut steps: Vec<u64> = checkpoints_in(folder).unwrap().into_iter().map(|(step, _)| step).collect();
        steps.sort();
        steps
    }

    #[test]
    fn the_last_ones_are_kept_and_a_damaged_one_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let run_file = folder.path().join("net.h5");
        let path = folder.path().join("net.h5.checkpoints");
        assert_eq!(newest_checkpoint(&path).unwrap(), None);
        let mut checkpoints = open(&run_file, "a", None, false);
        for step in [3, 10, 200] {
            checkpoints.write(step, &content(step as i64)).unwrap();
        }
        assert_eq!(steps(&path), [10, 200]);
        drop(checkpoints);
        let (newest, found) = newest_checkpoint(&path).unwrap().unwrap();
        assert_eq!(found, content(200));

        let whole = fs::read(&newest).unwrap();
        for damaged in [&whole[..whole.len() / 2], b"", &[&whole[..], b"x"].concat()] {
            fs::write(&newest, damaged).unwrap();
            let (before, found) = newest_checkpoint(&path).unwrap().unwrap();
            assert_eq!(found, content(10));
            // Going on from the older one, the damaged one does not take its place.
            assert_eq!(steps(&path), [10, 200]);
            let again = open(&run_file, "a", Some(&before), false);
            assert_eq!((&again.chain[..], &again.superseded[..]), (&[before][..], std::slice::from_ref(&newest)));
        }
        let (before, _) = newest_checkpoint(&path).unwrap().unwrap();
        open(&run_file, "a", Some(&before), false).write(12, &content(12)).unwrap();
        assert_eq!(steps(&path), [10, 12]);
        for (_, file) in checkpoints_in(&path).unwrap() {
            fs::write(file, "nothing").unwrap();
        }
        let message = newest_checkpoint(&path).unwrap_err().to_string();
        assert!(message.contains("all 2 checkpoints are damaged"), "{message}");
    }

    #[test]
    fn those_of_another_run_stay_unless_they_are_to_be_replaced_and_then_until_a_new_one_is_safe() {
        let folder = tempfile::tempdir().unwrap();
        let run_file = folder.path().join("net.h5");
        let path = folder.path().join("net.h5.checkpoints");
        open(&run_file, "a", None, false).write(900, &content(900)).unwrap();
        open(&run_file, "b", None, false).write(1, &content(1)).unwrap();
        assert_eq!(steps(&path), [1, 900]);
        let mut new = open(&run_file, "c", None, true);
        assert_eq!(steps(&path), [1, 900]);
        new.write(2, &content(2)).unwrap();
        assert_eq!(steps(&path), [2]);
    }

    #[test]
    fn every_run_file_has_a_folder_of_its_own() {
        let names =
            ["batch.4", "batch.16", "two.h5", "two.hdf5", "two"].map(|name| PathBuf::from("results").join(name));
        let mut folders = names.clone().map(|name| CheckpointFolder::path_beside(&name)).to_vec();
        for (name, folder) in names.iter().zip(&folders) {
            assert_eq!(CheckpointFolder::run_file_of(&folder.join("step-1-0.h5")).as_ref(), Some(name));
        }
        folders.dedup();
        assert_eq!(folders.len(), names.len());
        assert_eq!(CheckpointFolder::run_file_of(Path::new("results/step-1-0.h5")), None);
    }
}
