//! The folder of a run's checkpoints: run files that also hold the group `/resume`. Each is named after its step and the
//! hash of its own bytes, so that a damaged one is known before any of it is believed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::atomic::{Temporary, folder_of};
use super::input::Input;
use super::layout::{self, Header};
use super::schema::{CHECKPOINT, RESUME};
use super::{Checkpoint, RunFile, Table, checkpoint, table};
use crate::error::{AtPath, Error, Result};

/// Of the folder's name.
const EXTENSION: &str = "checkpoints";

/// All that a training needs to go on where it was.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Resumable {
    /// What was measured so far, as in the run file.
    pub tables: Vec<Table>,
    /// The model.
    pub model: Checkpoint,
    /// Everything else: the optimiser's moments, and in the attributes where it stood.
    pub state: Checkpoint,
}

/// `results/net.checkpoints/` beside `results/net.h5`, of which one process writes.
pub struct CheckpointFolder {
    path: PathBuf,
    keep: usize,
    header: Header,
    /// Those of this training that are there, the oldest first.
    chain: Vec<PathBuf>,
}

/// A checkpoint that is safe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
}

impl CheckpointFolder {
    /// The folder that belongs to this run file.
    pub fn path_beside(run_file: &Path) -> PathBuf {
        run_file.with_extension(EXTENSION)
    }

    /// The run file that this checkpoint's folder belongs to; `None` if it lies elsewhere.
    pub fn run_file_of(checkpoint: &Path) -> Option<PathBuf> {
        let folder = checkpoint.parent().filter(|folder| folder.extension() == Some(EXTENSION.as_ref()))?;
        Some(folder.with_extension("h5"))
    }

    /// Of the training that writes `run_file`, which it has created, and goes on from the checkpoint `from`, or begins anew.
    /// Each checkpoint begins as the run file does. Nothing is written yet.
    ///
    /// The last `keep` are kept. Other checkpoints in the folder (of an earlier run, or of steps that this one will do
    /// again) stay until the first new one is safe.
    pub fn new(run_file: &RunFile, keep: usize, from: Option<&Path>) -> CheckpointFolder {
        let path = CheckpointFolder::path_beside(run_file.path());
        let header = run_file.header().expect("created by this training").clone();
        // One from elsewhere is not ours to remove.
        let chain = from.filter(|from| folder_of(from) == path).map(Path::to_owned).into_iter().collect();
        CheckpointFolder { path, keep, header, chain }
    }

    /// Writes the checkpoint of `step`, then removes those that are not to be kept. On an error all are as before.
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
        temporary.rename_to(&path)?;
        self.chain.retain(|known| *known != path);
        self.chain.push(path.clone());
        let kept = self.chain.len().saturating_sub(self.keep);
        self.chain.drain(..kept);
        // What cannot be removed does no harm; the next write tries again.
        for (_, old) in checkpoints_in(&self.path).unwrap_or_default() {
            if !self.chain.contains(&old) {
                let _ = fs::remove_file(old);
            }
        }
        Ok(Written { path, bytes })
    }
}

/// The newest whole checkpoint of a folder and what it holds; damaged ones are passed over with a warning. `None` if there
/// is no folder, or none in it.
///
/// Error: there are some, but every one is damaged.
pub fn newest_checkpoint(folder: &Path) -> Result<Option<(PathBuf, Resumable)>> {
    let mut found = checkpoints_in(folder)?;
    found.sort();
    let count = found.len();
    for (_, path) in found.into_iter().rev() {
        match read_resumable(&path) {
            Ok(content) => return Ok(Some((path, content))),
            Err(error) => log::warn!("{error}: trying the one before"),
        }
    }
    match count {
        0 => Ok(None),
        _ => {
            let message = format!("all {count} checkpoints are damaged: start anew with --force, without --resume");
            Err(Error::File { path: folder.to_owned(), message })
        }
    }
}

/// Whether there are checkpoints in a folder, or what looks like some.
pub fn has_checkpoints(folder: &Path) -> Result<bool> {
    Ok(!checkpoints_in(folder)?.is_empty())
}

/// Reads a checkpoint. One whose name tells its hash is checked as a whole first.
pub fn read_resumable(path: &Path) -> Result<Resumable> {
    if let Some((_, expected)) = path.file_name().and_then(|name| parse(&name.to_string_lossy()))
        && hash(path)? != expected
    {
        let message = "damaged: its bytes are not those that its name tells".to_owned();
        return Err(Error::File { path: path.to_owned(), message });
    }
    let input = Input::open_run_file(path)?;
    let state = checkpoint::read(&input, RESUME)?;
    let model = checkpoint::read(&input, CHECKPOINT)?;
    // The header's own (`environment`) is not the training's.
    let names = table::names(&input)?.into_iter().filter(|name| name != super::schema::ENVIRONMENT);
    let tables: Result<Vec<Table>> = names.map(|name| table::read(&input, &name)).collect();
    Ok(Resumable { tables: tables?, model, state })
}

/// Step and path of each file of ours.
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

/// Step and hash.
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
    use crate::store::{Attribute, NamedTensor, TensorValues};

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

    fn open(run_file: &Path, from: Option<&Path>) -> CheckpointFolder {
        let run_file = RunFile::create(run_file, false, &Config::default(), Vec::new(), Vec::new()).unwrap();
        CheckpointFolder::new(&run_file, 2, from)
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
        let path = folder.path().join("net.checkpoints");
        assert_eq!(newest_checkpoint(&path).unwrap(), None);
        let mut checkpoints = open(&run_file, None);
        for step in [3, 10, 200] {
            checkpoints.write(step, &content(step as i64)).unwrap();
        }
        assert_eq!(steps(&path), [10, 200]);
        let (newest, found) = newest_checkpoint(&path).unwrap().unwrap();
        assert_eq!(found, content(200));

        let whole = fs::read(&newest).unwrap();
        for damaged in [&whole[..whole.len() / 2], b"", &[&whole[..], b"x"].concat()] {
            fs::write(&newest, damaged).unwrap();
            let (before, found) = newest_checkpoint(&path).unwrap().unwrap();
            assert_eq!(found, content(10));
            // Going on from the older one, the damaged one does not take its place.
            assert_eq!(steps(&path), [10, 200]);
            let mut again = open(&run_file, Some(&before));
            assert_eq!(again.chain.len(), 1);
            again.keep = 1;
        }
        let (before, _) = newest_checkpoint(&path).unwrap().unwrap();
        open(&run_file, Some(&before)).write(12, &content(12)).unwrap();
        assert_eq!(steps(&path), [10, 12]);
        for (_, file) in checkpoints_in(&path).unwrap() {
            fs::write(file, "nothing").unwrap();
        }
        let message = newest_checkpoint(&path).unwrap_err().to_string();
        assert!(message.contains("all 2 checkpoints are damaged"), "{message}");
    }

    #[test]
    fn those_of_an_earlier_run_stay_until_the_first_new_one_is_safe() {
        let folder = tempfile::tempdir().unwrap();
        let run_file = folder.path().join("net.h5");
        let path = folder.path().join("net.checkpoints");
        open(&run_file, None).write(900, &content(900)).unwrap();
        let mut new = open(&run_file, None);
        assert_eq!(steps(&path), [900]);
        new.write(1, &content(1)).unwrap();
        assert_eq!(steps(&path), [1]);
    }
}
