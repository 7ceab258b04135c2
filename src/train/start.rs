//! How a training begins: anew, or where a run of the same configuration left off. In: the plan, and the files at the
//! destination. Out: a [`Start`]. Decides which of these files belong to the run, and refuses what would lose a result or claim
//! work that was not done. Writes nothing.

use std::path::{Path, PathBuf};

use super::GlobalBatch;
use super::found::{self, ASKED_BATCH, FINGERPRINT, MODEL_FILE, Now, RunThere, Saved};
use super::resume::Resume;
use crate::collective::{Crossovers, Network};
use crate::config::{self, Plan};
use crate::data::{Datasets, samples_per_rank};
use crate::error::{Error, Result};
use crate::launch::Job;
use crate::output::Destination;
use crate::store::{
    self, Attribute, CheckpointFolder, FileKind, Identity, newest_checkpoint, newest_step, read_resumable,
};
use crate::units::counted;

/// Attribute of `/environment`: the run whose checkpoint this run began from.
const FORKED_FROM: &str = "forked_from_run_id";

/// Checkpoint that a training goes on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResumeFrom {
    /// The newest whole checkpoint beside the run file, of the same run; anew without one.
    Newest,
    /// The checkpoint in this file.
    Checkpoint(PathBuf),
}

/// Next action of a job that is to train.
pub enum Start {
    /// Nothing: the run file holds this training, finished.
    Finished,
    /// Train. `is_resumed` is known to all ranks, `how` to rank 0.
    Begin {
        /// Whether it goes on from a checkpoint.
        is_resumed: bool,
        /// Checkpoint, identity and rights, on rank 0.
        how: Option<Box<Beginning>>,
    },
}

/// How a training begins, as rank 0 found it.
pub struct Beginning {
    /// The checkpoint that it goes on from.
    pub resume: Option<Resume>,
    /// Run that the run file and its checkpoints belong to.
    pub identity: Identity,
    /// Whether a run file that is there may be replaced.
    pub replace: bool,
    /// Whether checkpoints and int8 networks of other runs that lie there may be replaced.
    pub force: bool,
    /// Steps in the run file of the same run that is there: it stays until this training has done as many.
    pub steps_there: usize,
    /// Attributes that the training adds to `/environment`.
    pub environment: Vec<(String, Attribute)>,
    /// Configured samples per step over all ranks of the run, and its ranks; zeros if it begins now.
    saved_batch: [usize; 2],
    /// `parallel.crossovers` of the run as used, if it had any, and its hosts.
    saved_crossovers: Option<(Crossovers, usize)>,
}

impl Beginning {
    fn new(identity: Identity, now: &Now, force: bool) -> Beginning {
        let asked = now.plan.train.batch_per_rank as i64;
        let model_file = now.model_file.clone().map(|hash| (MODEL_FILE.into(), Attribute::Text(hash)));
        Beginning {
            resume: None,
            identity,
            replace: force,
            force,
            steps_there: 0,
            environment: [
                (ASKED_BATCH.into(), Attribute::Int(asked)),
                (FINGERPRINT.into(), Attribute::Text(now.fingerprint.clone())),
            ]
            .into_iter()
            .chain(model_file)
            .collect(),
            saved_batch: [0, 0],
            saved_crossovers: None,
        }
    }

    /// This beginning, with the batch and the ranks of the run that was `saved`.
    fn going_on(mut self, saved: &Saved) -> Beginning {
        self.environment[0].1 = Attribute::Int(saved.asked_batch as i64);
        self.saved_batch = [saved.nominal_batch(), saved.world_size];
        self.saved_crossovers = saved.crossovers();
        self
    }
}

/// Destination of the run file: `given` by the user, else `run.out`, else the run file that the checkpoint to go on from belongs
/// to.
///
/// # Errors
/// [`Error::ConfigSyntax`] if the newest checkpoint is wanted, but no run file is named beside which it would lie.
pub fn destination(given: &Destination, run: &config::Run, resume: Option<&ResumeFrom>) -> Result<Destination> {
    let configured = (!run.out.is_empty()).then(|| PathBuf::from(&run.out));
    let path = match (given.path.clone().or(configured), resume) {
        (Some(path), _) => Some(path),
        (None, Some(ResumeFrom::Newest)) => {
            let message = "say of which run: give its run file with --out FILE.h5".into();
            return Err(Error::ConfigSyntax { place: "--resume auto".into(), message });
        }
        (None, Some(ResumeFrom::Checkpoint(checkpoint))) => CheckpointFolder::run_file_of(checkpoint),
        (None, None) => None,
    };
    Ok(Destination { path, force: given.force })
}

/// Finds out how to begin, from the files at `out`, which rank 0 owns and reads. A collective.
///
/// # Errors
/// A file there must not be replaced, or is of another training; the message names the file or the key, and what to do.
pub fn find(
    resume: Option<&ResumeFrom>,
    out: Option<&Path>,
    force: bool,
    plan: &Plan,
    job: &Job,
    data: &Datasets,
) -> Result<Start> {
    let look = |out: &Path| {
        let (fingerprint, model_file) = (data.train.fingerprint()?, found::model_file(&plan.model)?);
        let now = Now { plan, data: &data.name, fingerprint, model_file };
        look(resume, out, force, &now)
    };
    let found = job.agree(out.map(look).transpose())?;
    let is = |what: bool| f64::from(u8::from(what));
    let how = found.flatten();
    let is_resumed = how.as_ref().is_some_and(|how| how.resume.is_some());
    let [begins, is_resumed] = job.from_root([is(how.is_some()), is(is_resumed)])?;
    if begins == 0.0 {
        return Ok(Start::Finished);
    }
    Ok(Start::Begin { is_resumed: is_resumed > 0.0, how: how.map(Box::new) })
}

/// The plan with the `train.batch_per_rank` that keeps the global batch of the run, so that each step trains on the samples that
/// it would have had: step t of an epoch takes the t-th piece of that epoch's order, on any number of ranks. The training set has
/// `samples` samples. A collective.
///
/// # Errors
/// [`Error::ConfigValue`] if that batch does not divide by the ranks.
pub fn with_its_batch(plan: &Plan, job: &Job, how: Option<&Beginning>, samples: usize) -> Result<Plan> {
    let [nominal, ranks] = job.from_root(how.map_or([0.0; 2], |how| how.saved_batch.map(|number| number as f64)))?;
    let (mut nominal, parts) = (nominal as usize, job.world_size * plan.train.accumulate);
    if nominal == 0 {
        return Ok(plan.clone());
    }
    let now = job.agree(GlobalBatch::new(plan, samples))?;
    let ranks = ranks as usize;
    // A step that took the whole epoch takes it on any number of ranks.
    if nominal >= ranks * samples_per_rank(samples, ranks, plan.data.drop_last) {
        if now.is_whole_epoch() {
            return Ok(plan.clone());
        }
        nominal = now.epoch_per_rank.div_ceil(plan.train.accumulate) * parts;
    }
    if nominal % parts != 0 {
        let expected = format!(
            "this training's global batch is {nominal}, which does not divide by {} ranks x train.accumulate = {}: use \
             another number of ranks",
            job.world_size, plan.train.accumulate
        );
        let (place, key) = ("--resume".into(), "train.batch_per_rank".into());
        let value = plan.train.batch_per_rank.to_string();
        return job.agree(Err(Error::ConfigValue { place, key, value, expected }));
    }
    if job.is_root() && plan.train.batch_per_rank != nominal / parts {
        log::info!("train.batch_per_rank = {}, so that the global batch stays {nominal}", nominal / parts);
    }
    job.agree(plan.adapted(|config| config.train.batch_per_rank = nominal / parts))
}

/// The plan with the sizes at which its all-reduce between hosts changes: those of the run on as many hosts and ranks, so that it
/// goes on with the same sums to the last bit; else measured, with what was measured. A collective.
///
/// # Errors
/// A rank is gone.
pub fn with_its_crossovers(plan: &Plan, job: &Job, how: Option<&Beginning>) -> Result<(Plan, Option<Network>)> {
    let saved = how.and_then(|how| how.saved_crossovers.filter(|(_, hosts)| *hosts == job.hosts()));
    let saved = saved.filter(|_| how.is_some_and(|how| how.saved_batch[1] == job.world_size));
    let saved = job.crossovers_from_root(saved.map(|(saved, _)| saved))?;
    job.with_crossovers(plan, &job.communicator, saved)
}

/// How to begin; `None` if the training is finished.
fn look(resume: Option<&ResumeFrom>, out: &Path, force: bool, now: &Now) -> Result<Option<Beginning>> {
    let folder = CheckpointFolder::path_beside(out);
    match resume {
        None => {
            nothing_there(out, &folder, force)?;
            Ok(Some(Beginning::new(Identity::new(FileKind::Training), now, force)))
        }
        Some(ResumeFrom::Newest) => newest(out, &folder, force, now),
        Some(ResumeFrom::Checkpoint(checkpoint)) => from_file(checkpoint, out, &folder, force, now),
    }
}

/// Checks that no run file and no checkpoints lie at the destination, unless they may be replaced.
///
/// # Errors
/// [`Error::OutputExists`].
fn nothing_there(out: &Path, folder: &Path, force: bool) -> Result<()> {
    // The next `--resume auto` would take checkpoints of another training for those of this one.
    match newest_step(folder)? {
        Some(_) if !force => Err(Error::OutputExists { path: folder.to_owned() }),
        _ => store::check_output(out, force),
    }
}

/// How to begin with [`ResumeFrom::Newest`]: from the newest whole checkpoint beside the run file, if it is of the same run.
fn newest(out: &Path, folder: &Path, force: bool, now: &Now) -> Result<Option<Beginning>> {
    let there = match RunThere::read(out) {
        Err(_) if force => None,
        there => there?,
    };
    let newest = match newest_checkpoint(folder) {
        Err(_) if force => None,
        newest => newest?,
    };
    match (newest, there) {
        (Some((path, content)), there) => {
            let saved = Saved::read(&path)?;
            let foreign = there.as_ref().is_some_and(|there| there.saved.identity.run_id != saved.identity.run_id);
            if foreign && !force {
                let message = format!(
                    "is not of the run whose checkpoints lie in {}: move one of them away, or take one's checkpoint with \
                     --resume FILE.h5 and another --out",
                    folder.display()
                );
                return Err(Error::ResumeRefused { path: out.to_owned(), message });
            }
            let there = there.filter(|_| !foreign);
            go_on(Resume { path, content }, saved, there, force, now)
        }
        (None, Some(there)) if !force => again(there, now),
        (None, _) => {
            store::check_output(out, force)?;
            log::info!("nothing to resume beside {}: starting anew", out.display());
            Ok(Some(Beginning::new(Identity::new(FileKind::Training), now, force)))
        }
    }
}

/// How to begin with [`ResumeFrom::Checkpoint`]: in place if the run file is of that checkpoint's run, else as a new run.
fn from_file(path: &Path, out: &Path, folder: &Path, force: bool, now: &Now) -> Result<Option<Beginning>> {
    let resume = Resume { path: path.to_owned(), content: read_resumable(path)? };
    let saved = Saved::read(path)?;
    let there = RunThere::read(out).unwrap_or(None);
    let in_place = match &there {
        Some(there) => there.saved.identity.run_id == saved.identity.run_id,
        None => !out.exists() && store::is_same_file(folder, path.parent().unwrap_or(Path::new(""))),
    };
    if !in_place {
        nothing_there(out, folder, force)?;
        saved.check(now)?;
        saved.not_behind(&resume, now)?;
        let mut how = Beginning::new(Identity::new(FileKind::Training), now, force);
        how.environment.push((FORKED_FROM.into(), Attribute::Text(saved.identity.run_id.clone())));
        return Ok(Some(Beginning { resume: Some(resume.checked()?), ..how.going_on(&saved) }));
    }
    if let Some(newest) = newest_step(folder)?.filter(|newest| *newest as f64 > resume.number("steps") && !force) {
        let message = format!(
            "is of step {}, but {} has got to step {newest}: go on from there with --resume auto, name another --out, or do \
             those steps again with --force",
            resume.number("steps"),
            out.display()
        );
        return Err(Error::ResumeRefused { path: path.to_owned(), message });
    }
    go_on(resume, saved, there, force, now)
}

/// How to go on from a checkpoint in the place of its own run; `None` if the training is finished.
fn go_on(resume: Resume, saved: Saved, there: Option<RunThere>, force: bool, now: &Now) -> Result<Option<Beginning>> {
    saved.check(now)?;
    saved.not_behind(&resume, now)?;
    if let Some(there) = &there {
        there.not_behind(now)?;
        if !there.saved.identity.is_unfinished && there.is_done(now)? {
            return Ok(None);
        }
    }
    let (is_there, steps_there) = there.map_or((false, 0), |there| (true, there.steps));
    let how = Beginning::new(saved.identity(), now, force).going_on(&saved);
    Ok(Some(Beginning { resume: Some(resume.checked()?), replace: is_there || force, steps_there, ..how }))
}

/// How to begin the same run again, which has left no checkpoint; `None` if it is finished.
fn again(there: RunThere, now: &Now) -> Result<Option<Beginning>> {
    let RunThere { saved, epochs, steps } = &there;
    saved.check(now)?;
    there.not_behind(now)?;
    if !saved.identity.is_unfinished {
        if there.is_done(now)? {
            return Ok(None);
        }
        let message = format!(
            "finished after {} and left no checkpoint to go on from: train anew under another --out, or in its place \
             with --force",
            counted(*epochs, "epoch")
        );
        return Err(Error::ResumeRefused { path: saved.path().to_owned(), message });
    }
    log::warn!(
        "{} ended after {epochs} epochs without a checkpoint: starting anew; it stays until as many are done",
        saved.path().display()
    );
    let how = Beginning::new(saved.identity(), now, false);
    Ok(Some(Beginning { replace: true, steps_there: *steps, ..how.going_on(saved) }))
}
