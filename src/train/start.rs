//! How a training begins: anew, or where a run of the same configuration left off. Decides what of the files that are
//! there belongs to this run, and refuses what would lose a result or claim what was not done.

use std::path::{Path, PathBuf};

use super::GlobalBatch;
use super::resume::Resume;
use crate::config::{self, Config, Plan};
use crate::data::{Datasets, samples_per_rank};
use crate::error::{Error, Result};
use crate::launch::Job;
use crate::output::Destination;
use crate::store::{
    self, Attribute, CheckpointFolder, FileKind, Identity, RunIdentity, newest_checkpoint, newest_step, read_resumable,
};

/// Keys that a resumed training may have other than it began with. Which samples make a step, and what is done with
/// them, is none of these; how fast, how long and on how many ranks is.
const MAY_DIFFER: [&str; 16] = [
    "run.out",
    "launch.",
    "data.dir", // the samples in it may not, see `fingerprint`
    "data.prefetch",
    "train.epochs",
    "train.batch_per_rank", // together as many as before, see `batch_differs`
    "train.global_batch",
    "train.accumulate",
    "train.test_batch",
    "parallel.bucket_mb",
    "parallel.all_reduce",
    "checkpoint.",
    "metrics.",
    "quantize.",
    "sweep.",
    "study.",
];

/// Keys in which the configuration of a finished training may differ from the one that asks for it again.
const NO_MATTER_AT_THE_END: [&str; 8] = [
    "run.out",
    "data.dir",
    "train.batch_per_rank",
    "train.global_batch",
    "train.accumulate",
    "checkpoint.",
    "sweep.",
    "study.",
];

/// Attributes of `/environment` by which a later start knows the training.
const ASKED_BATCH: &str = "asked_batch_per_rank";
const DATA: &str = "data";
const FINGERPRINT: &str = "data_fingerprint";
const FORKED_FROM: &str = "forked_from_run_id";

/// Where a training goes on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResumeFrom {
    /// The newest whole checkpoint of the run file's own run, if there is one.
    Newest,
    /// The checkpoint in this file.
    Checkpoint(PathBuf),
}

/// What is to be done.
pub enum Start {
    /// Nothing: the run file is that of this very training, finished.
    Finished,
    /// A training. `is_resumed` is known to all ranks, `how` to rank 0.
    Begin {
        /// Whether it goes on from a checkpoint.
        is_resumed: bool,
        /// The rest, on rank 0.
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
    /// What it adds to `/environment`.
    pub environment: Vec<(String, Attribute)>,
    /// Configured samples per step over all ranks of the run, and its ranks; zeros if it begins now.
    saved_batch: [usize; 2],
}

impl Beginning {
    fn new(identity: Identity, now: &Now, force: bool) -> Beginning {
        let asked = now.plan.train.batch_per_rank as i64;
        Beginning {
            resume: None,
            identity,
            replace: force,
            force,
            steps_there: 0,
            environment: vec![
                (ASKED_BATCH.into(), Attribute::Int(asked)),
                (FINGERPRINT.into(), Attribute::Text(now.fingerprint.clone())),
            ],
            saved_batch: [0, 0],
        }
    }

    /// Goes on after what `saved` tells, as the same run.
    fn going_on(mut self, saved: &Saved) -> Beginning {
        self.environment[0].1 = Attribute::Int(saved.asked_batch as i64);
        self.saved_batch = [saved.nominal_batch(), saved.world_size];
        self
    }
}

/// The training that the user wants now.
struct Now<'a> {
    plan: &'a Plan,
    data: &'a str,
    fingerprint: String,
}

/// Where the run file is to be: `given` by the user, else `run.out`, else the place that the checkpoint to go on from belongs to.
///
/// # Errors
/// [`Error::ConfigSyntax`] if the newest checkpoint is wanted and there is no file to look beside.
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

/// Finds out how to begin. A collective; rank 0, which owns the run file `out`, reads.
///
/// # Errors
/// What is there must stay, or is of another training; each names the file or the key, and the mend.
pub fn find(
    resume: Option<&ResumeFrom>,
    out: Option<&Path>,
    force: bool,
    plan: &Plan,
    job: &Job,
    data: &Datasets,
) -> Result<Start> {
    let look = |out: &Path| {
        let now = Now { plan, data: &data.name, fingerprint: data.train.fingerprint() };
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

/// The configuration with as many samples a rank as make the global batch of before, so that each step trains on the
/// samples that it would have had: step t of an epoch takes the t-th piece of that epoch's order, on any number of ranks.
/// The training set has `samples`. A collective.
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

/// How to begin; `None`: all is done.
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

/// Refuses a place where something lies, unless it may be replaced.
fn nothing_there(out: &Path, folder: &Path, force: bool) -> Result<()> {
    // Checkpoints of another training would be taken for this one's by the next `--resume auto`.
    match newest_step(folder)? {
        Some(_) if !force => Err(Error::OutputExists { path: folder.to_owned() }),
        _ => store::check_output(out, force),
    }
}

/// `--resume auto`: the newest whole checkpoint beside the run file, if it is of the same run.
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
        (None, Some(there)) if !force => there.again(now),
        (None, _) => {
            store::check_output(out, force)?;
            log::info!("nothing to resume beside {}: starting anew", out.display());
            Ok(Some(Beginning::new(Identity::new(FileKind::Training), now, force)))
        }
    }
}

/// `--resume FILE.h5`: in place if the run file is of that checkpoint's run, else as a new run that begins there.
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

/// Goes on from a checkpoint in its own run's place.
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

/// What a run file or a checkpoint says of its training.
struct Saved {
    path: PathBuf,
    identity: RunIdentity,
    /// As it was used.
    config: Config,
    world_size: usize,
    /// `train.batch_per_rank` as the user gave it when the run began.
    asked_batch: usize,
    data: String,
    /// `None` in files of earlier versions.
    fingerprint: Option<String>,
}

impl Saved {
    fn read(path: &Path) -> Result<Saved> {
        let config = store::read_config(path)?;
        let environment = store::read_attributes(path, "environment")?;
        let text = |name: &str| match store::attribute(&environment, name) {
            Some(Attribute::Text(text)) => Some(text.clone()),
            _ => None,
        };
        let int = |name: &str| match store::attribute(&environment, name) {
            Some(Attribute::Int(value)) => usize::try_from(*value).ok(),
            _ => None,
        };
        Ok(Saved {
            path: path.to_owned(),
            identity: store::read_identity(path)?,
            world_size: int("world_size").unwrap_or(1),
            asked_batch: int(ASKED_BATCH).unwrap_or(config.train.batch_per_rank),
            data: text(DATA).unwrap_or_default(),
            fingerprint: text(FINGERPRINT),
            config,
        })
    }

    fn identity(&self) -> Identity {
        Identity { run_id: self.identity.run_id.clone(), kind: FileKind::Training }
    }

    /// Samples per step over all its ranks.
    fn nominal_batch(&self) -> usize {
        self.config.train.batch_per_rank * self.config.train.accumulate * self.world_size
    }

    /// Refuses a configuration that makes another training of it, by the first key that differs.
    fn check(&self, now: &Now) -> Result<()> {
        let mut differences = self.config.differences(now.plan).into_iter();
        if let Some((key, saved, other)) =
            differences.find(|(key, ..)| !MAY_DIFFER.iter().any(|free| key.starts_with(free)))
        {
            return Err(self.differs(&key, saved.to_string(), other.to_string()));
        }
        let is_other = self.fingerprint.as_ref().is_some_and(|saved| *saved != now.fingerprint);
        let kinds = [&self.config.data, &now.plan.data].map(|data| data.folder().is_some());
        if is_other || kinds[0] != kinds[1] {
            let which = |name: &str| format!("{name:?}");
            return Err(self.differs(
                "the training data",
                which(&self.data),
                format!("{} (other samples)", which(now.data)),
            ));
        }
        self.batch_differs(now).map_or(Ok(()), Err)
    }

    /// The key that asks for another global batch than the run has. On other ranks the batch per rank that the run began
    /// with stands for the one that keeps the global batch.
    fn batch_differs(&self, now: &Now) -> Option<Error> {
        let (saved, train) = (&self.config.train, &now.plan.train);
        if train.batch_per_rank * train.accumulate * now.plan.world_size() == self.nominal_batch() {
            return None;
        }
        let (key, saved, other) = match train {
            _ if train.global_batch > 0 => ("train.global_batch", self.nominal_batch(), train.global_batch),
            _ if train.accumulate != saved.accumulate => ("train.accumulate", saved.accumulate, train.accumulate),
            _ if train.batch_per_rank == self.asked_batch => return None,
            _ => ("train.batch_per_rank", self.asked_batch, train.batch_per_rank),
        };
        Some(self.differs(key, saved.to_string(), other.to_string()))
    }

    fn differs(&self, key: &str, saved: String, now: String) -> Error {
        Error::ResumeDiffers { key: key.into(), now, saved, checkpoint: self.path.clone() }
    }

    /// Refuses to train less than the checkpoint has done.
    fn not_behind(&self, resume: &Resume, now: &Now) -> Result<()> {
        let begun = usize::from(resume.number("steps_in_epoch") > 0.0);
        not_behind(&self.path, resume.number("epochs") as usize + begun, now)
    }
}

/// The run file that is there.
struct RunThere {
    saved: Saved,
    epochs: usize,
    steps: usize,
}

impl RunThere {
    /// `None` if there is no file. An error for a file that is no training's.
    fn read(out: &Path) -> Result<Option<RunThere>> {
        if !out.exists() {
            return Ok(None);
        }
        let saved = Saved::read(out)?;
        if let Some(kind) = saved.identity.kind.filter(|kind| *kind != FileKind::Training) {
            let message = format!("is the file of another command ({}): choose another --out", kind.as_str());
            return Err(Error::ResumeRefused { path: out.to_owned(), message });
        }
        let epochs = store::read_table(out, "epochs")?.numbers("epoch").len();
        let steps = store::read_table(out, "steps")?.numbers("global_step");
        let steps = steps.last().map_or(0, |last| *last as usize + 1);
        Ok(Some(RunThere { saved, epochs, steps }))
    }

    fn not_behind(&self, now: &Now) -> Result<()> {
        not_behind(&self.saved.path, self.epochs, now)
    }

    /// Whether the finished run is what the user wants; false if more epochs are wanted.
    fn is_done(&self, now: &Now) -> Result<bool> {
        let differences = self.saved.config.differences(now.plan);
        let mut other =
            differences.iter().filter(|(key, ..)| !NO_MATTER_AT_THE_END.iter().any(|free| key.starts_with(free)));
        if other.clone().any(|(key, ..)| key == "train.epochs") {
            return Ok(false);
        }
        match other.next() {
            None => Ok(true),
            Some((key, saved, now)) => {
                let message = format!(
                    "is finished, with {key} = {saved} and not {now}: nothing of that is done now; choose another --out, or \
                     train anew in its place with --force and without --resume"
                );
                Err(Error::ResumeRefused { path: self.saved.path.clone(), message })
            }
        }
    }

    /// Begins the same run again, which left no checkpoint; `None` if it is finished.
    fn again(self, now: &Now) -> Result<Option<Beginning>> {
        let RunThere { saved, epochs, steps } = &self;
        saved.check(now)?;
        self.not_behind(now)?;
        if !saved.identity.is_unfinished {
            if self.is_done(now)? {
                return Ok(None);
            }
            let message = format!(
                "finished after {epochs} epochs and left no checkpoint to go on from: train anew under another --out, or in \
                 its place with --force"
            );
            return Err(Error::ResumeRefused { path: saved.path.clone(), message });
        }
        log::warn!(
            "{} ended after {epochs} epochs without a checkpoint: starting anew; it stays until as many are done",
            saved.path.display()
        );
        let how = Beginning::new(saved.identity(), now, false);
        Ok(Some(Beginning { replace: true, steps_there: *steps, ..how.going_on(saved) }))
    }
}

/// Refuses to train less than is done already.
fn not_behind(path: &Path, epochs: usize, now: &Now) -> Result<()> {
    let asked = now.plan.train.epochs;
    if asked >= epochs {
        return Ok(());
    }
    let message = format!(
        "train.epochs = {asked}, but it has {epochs} already: ask for as many or more, or train anew under another --out or \
         with --force and without --resume"
    );
    Err(Error::ResumeRefused { path: path.to_owned(), message })
}
