//! Where a command writes: its name, taken at the start. In: what the user named, or nothing. Out: on rank 0 the owner of
//! the output, before any work is done. All ranks call this together and wait together.

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::launch::Job;
use crate::store::{Attempt, CheckpointFolder, Claim, Owner};

/// Folder of the outputs that the user gave no name.
const FOLDER: &str = "results";

/// File that the user wants to have written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Destination {
    /// The file; `None`: a new one under a name that the command chooses.
    pub path: Option<PathBuf>,
    /// Whether a file that is there may be replaced, and the name be taken from a job that writes it.
    pub force: bool,
}

/// Owns the output that rank 0's `destination` names, or a new one called after `stem`, the Slurm job if there is one, and the time. A
/// collective; the owner is on rank 0.
///
/// `force` takes a name from the job that owns it; whether a file of that name may be replaced is not decided here.
///
/// # Errors
/// [`OutputOwned`](crate::error::Error::OutputOwned) if a living job writes there, [`Output`](crate::error::Error::Output)
/// if there is no such place.
pub fn claim(job: &Job, destination: &Destination, stem: &str) -> Result<Option<Owner>> {
    // Rank 0's destination counts, also where a launcher has started ranks with different arguments.
    let [is_named] = job.from_root([f64::from(u8::from(destination.path.is_some()))])?;
    match is_named > 0.0 {
        true => claim_at(job, destination.path.as_deref().unwrap_or(Path::new("")), destination.force),
        false => job.agree(job.is_root().then(|| new_name(stem)).transpose()),
    }
}

/// Owns the output `path`, of which rank 0's counts, as [`claim`] does.
///
/// # Errors
/// Those of [`claim`].
pub fn claim_at(job: &Job, path: &Path, force: bool) -> Result<Option<Owner>> {
    let claim = job.is_root().then(|| Claim::new(path, force)).transpose();
    let mut claim = job.agree(claim)?;
    let mut is_told = false;
    loop {
        let attempt = claim.as_mut().map(Claim::attempt).transpose();
        match job.agree(attempt)? {
            Some(Attempt::Owned(owner)) => {
                job.from_root([0.0])?;
                return Ok(Some(owner));
            }
            Some(Attempt::Waiting(other)) => {
                if !is_told {
                    log::info!("{} was being written by {other}: looking whether it still is", path.display());
                    is_told = true;
                }
                job.from_root([1.0])?;
            }
            None if job.from_root([0.0])? == [0.0] => return Ok(None),
            None => {}
        }
        Claim::pause();
    }
}

/// Owns the first name of `STEM-TIME.h5`, `STEM-TIME-2.h5`, ... that nobody has.
fn new_name(stem: &str) -> Result<Owner> {
    let slurm = std::env::var("SLURM_JOB_ID").map_or_else(|_| String::new(), |id| format!("-slurm{id}"));
    let time = jiff::Zoned::now().strftime("%Y%m%d-%H%M%S").to_string();
    for number in 1.. {
        let number = if number == 1 { String::new() } else { format!("-{number}") };
        let path = PathBuf::from(FOLDER).join(format!("{stem}{slurm}-{time}{number}.h5"));
        if CheckpointFolder::path_beside(&path).exists() {
            continue;
        }
        if let Some(owner) = Claim::new(&path, false)?.if_new()? {
            return Ok(owner);
        }
    }
    unreachable!("there are more numbers than files")
}
