//! The output of a command: its name, owned from the start. In: the user's name for it, or none. Out: on rank 0 the owner of
//! the output, before any work is done. All ranks call this together and wait together. Writes no data.
//!
//! ```no_run
//! # fn command(job: &hpml::launch::Job) -> hpml::error::Result<()> {
//! let owner = hpml::output::claim(job, &Default::default(), "train")?; // runs/train-20261127-120000.h5
//! assert_eq!(owner.is_some(), job.is_root());
//! # Ok(())
//! # }
//! ```

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::launch::Job;
use crate::store::{Attempt, CheckpointFolder, Claim, Owner};

/// Folder of run files without a name from the user.
const FOLDER: &str = "runs";

/// File that the user wants to have written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Destination {
    /// The file; `None`: a new one under a name that the command chooses.
    pub path: Option<PathBuf>,
    /// Whether a file that is there may be replaced, and the name be taken from a job that writes it.
    pub force: bool,
}

/// Owns the output that rank 0's `destination` names, or a new one called after `stem`, the Slurm job if there is one, and the
/// time. Returns the owner on rank 0, `None` on the others. A collective.
///
/// `force` takes a name from the job that owns it; whether a file of that name may be replaced is not decided here.
///
/// # Errors
/// Returns [`OutputOwned`](crate::error::Error::OutputOwned) if a living job writes there, and
/// [`Output`](crate::error::Error::Output) if nothing can be written there.
pub fn claim(job: &Job, destination: &Destination, stem: &str) -> Result<Option<Owner>> {
    // Rank 0's destination counts, also where a launcher has started ranks with different arguments.
    let [is_named] = job.from_root([f64::from(u8::from(destination.path.is_some()))])?;
    match is_named > 0.0 {
        true => claim_at(job, destination.path.as_deref().unwrap_or(Path::new("")), destination.force),
        false => job.agree(job.is_root().then(|| new_name(stem)).transpose()),
    }
}

/// Owns the output at rank 0's `path`, like [`claim`].
///
/// # Errors
/// Returns the errors of [`claim`].
pub fn claim_at(job: &Job, path: &Path, force: bool) -> Result<Option<Owner>> {
    let claim = job.is_root().then(|| Claim::new(path, force)).transpose();
    let mut claim = job.agree(claim)?;
    let mut is_logged = false;
    loop {
        let attempt = claim.as_mut().map(Claim::attempt).transpose();
        match job.agree(attempt)? {
            Some(Attempt::Owned(owner)) => {
                job.from_root([0.0])?;
                return Ok(Some(owner));
            }
            Some(Attempt::Waiting(other)) => {
                if !is_logged {
                    log::info!(
                        "{} was being written by {other}: waiting until it is clear whether that job still runs",
                        path.display()
                    );
                    is_logged = true;
                }
                job.from_root([1.0])?;
            }
            None if job.from_root([0.0])? == [0.0] => return Ok(None),
            None => {}
        }
        Claim::pause();
    }
}

/// Owns the first free name of `STEM-TIME.h5`, `STEM-TIME-2.h5`, ...
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
