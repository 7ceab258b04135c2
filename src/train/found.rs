//! Trainings found in run files and checkpoints, and the checks whether they are the training that the user wants now.

use std::path::{Path, PathBuf};

use super::record::STEPS_DONE;
use super::resume::Resume;
use crate::collective::Crossovers;
use crate::config::{self, Config, ModelName, Plan};
use crate::environment::HOSTS;
use crate::error::{AtPath, Error, Result};
use crate::store::{self, FileKind, Identity, RunIdentity};
use crate::table::{self, Attribute};

/// Keys and sections that may change when a training is resumed: how fast, how long and on how many ranks it trains. Keys that
/// decide which samples make a step, and what is done with them, are not among these.
const MAY_DIFFER: [&str; 27] = [
    "run.out",
    "launch.",
    "data.dir", // the samples in it must be the same, see `fingerprint`
    "data.images",
    "data.labels",
    "data.test_images",
    "data.test_labels",
    "data.test_dir",
    "data.layout",
    "data.prefetch",
    "model.file", // its content must be the same, see `model_file`
    "data.threads",
    "data.cache_mb",
    "data.gpu_mb",
    "train.epochs",
    "train.batch_per_rank", // the global batch must be the same, see `batch_differs`
    "train.global_batch",
    "train.accumulate",
    "train.test_batch",
    "parallel.bucket_mb",
    "parallel.all_reduce",
    "parallel.crossovers",
    "checkpoint.",
    "metrics.",
    "quantize.",
    "sweep.",
    "study.",
];

/// Keys and sections that may differ between a finished training and the configuration that starts it again.
const MAY_DIFFER_AT_THE_END: [&str; 12] = [
    "run.out",
    "data.dir",
    "train.batch_per_rank",
    "train.global_batch",
    "train.accumulate",
    "parallel.crossovers", // measured, unless configured
    "checkpoint.",
    "metrics.progress_seconds",
    "metrics.log",
    "metrics.tensorboard",
    "sweep.",
    "study.",
];

/// Attribute of `/environment`: `train.batch_per_rank` as configured when the run began.
pub const ASKED_BATCH: &str = "asked_batch_per_rank";
/// Attribute of `/environment`: name of the data.
const DATA: &str = "data";
/// Attribute of `/environment`: fingerprint of the training samples.
pub const FINGERPRINT: &str = "data_fingerprint";

/// Attribute of `/environment`: fingerprint of the file `model.file`.
pub const MODEL_FILE: &str = "model_file_fingerprint";

/// Training that the user wants now.
pub struct Now<'a> {
    /// Plan of the job.
    pub plan: &'a Plan,
    /// Name of the data.
    pub data: &'a str,
    /// Fingerprint of the training samples.
    pub fingerprint: String,
    /// Fingerprint of the model's file, with `model.name = "file"`.
    pub model_file: Option<String>,
}

/// Fingerprint of the model's file: a hash of all its bytes; `None` for a built-in network.
///
/// # Errors
/// The file cannot be read.
pub fn model_file(model: &config::Model) -> Result<Option<String>> {
    if model.name != ModelName::File {
        return Ok(None);
    }
    let path = Path::new(&model.file);
    let bytes = std::fs::read(path).at(path)?;
    Ok(Some(blake3::hash(&bytes).to_hex()[..16].to_owned()))
}

/// Description of a training in its run file or in a checkpoint.
pub struct Saved {
    path: PathBuf,
    /// Id, kind and status of the run.
    pub identity: RunIdentity,
    /// Configuration as used.
    config: Config,
    /// Ranks of the run.
    pub world_size: usize,
    /// Hosts of the run; 0 in files of earlier versions.
    hosts: usize,
    /// `train.batch_per_rank` as the user gave it when the run began.
    pub asked_batch: usize,
    /// Name of the data.
    data: String,
    /// Fingerprint of the training samples; `None` in files of earlier versions.
    fingerprint: Option<String>,
    /// Fingerprint of the model's file, if it has one.
    model_file: Option<String>,
}

impl Saved {
    /// File of the description.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The description in the file at `path`.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(path: &Path) -> Result<Saved> {
        let config = store::read_config(path)?;
        let environment = store::read_attributes(path, "environment")?;
        let text = |name: &str| store::attribute(&environment, name)?.text().map(str::to_owned);
        let int = |name: &str| usize::try_from(store::attribute(&environment, name)?.integer()?).ok();
        Ok(Saved {
            path: path.to_owned(),
            identity: store::read_identity(path)?,
            world_size: int("world_size").unwrap_or(1),
            hosts: int(HOSTS).unwrap_or(0),
            asked_batch: int(ASKED_BATCH).unwrap_or(config.train.batch_per_rank),
            data: text(DATA).unwrap_or_default(),
            fingerprint: text(FINGERPRINT),
            model_file: text(MODEL_FILE),
            config,
        })
    }

    /// Identity for the files of this training.
    pub fn identity(&self) -> Identity {
        Identity { run_id: self.identity.run_id.clone(), kind: FileKind::Training }
    }

    /// Configured samples per step over all ranks of the run.
    pub fn nominal_batch(&self) -> usize {
        self.config.train.batch_per_rank * self.config.train.accumulate * self.world_size
    }

    /// Sizes at which the run's all-reduce changed, and its hosts; `None` if it had no choice.
    pub fn crossovers(&self) -> Option<(Crossovers, usize)> {
        Some((Crossovers::configured(&self.config.parallel.crossovers)?, self.hosts))
    }

    /// Checks that the plan of now makes the same training.
    ///
    /// # Errors
    /// [`Error::ResumeDiffers`] with the first key that makes it another one.
    pub fn check(&self, now: &Now) -> Result<()> {
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
        if self.model_file != now.model_file {
            let named = |file: &str, hash: &Option<String>| {
                format!("{file:?} (fingerprint {})", hash.as_deref().unwrap_or("unknown"))
            };
            let saved = named(&self.config.model.file, &self.model_file);
            return Err(self.differs("model.file", saved, named(&now.plan.model.file, &now.model_file)));
        }
        self.batch_differs(now).map_or(Ok(()), Err)
    }

    /// Error that names the key by which the global batch differs from that of the run. On another number of ranks, the batch per
    /// rank that the run began with means the one that keeps the global batch.
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

    /// Checks that the plan has at least the epochs that the checkpoint has begun.
    pub fn not_behind(&self, resume: &Resume, now: &Now) -> Result<()> {
        let begun = usize::from(resume.number("steps_in_epoch") > 0.0);
        not_behind(&self.path, resume.number("epochs") as usize + begun, now)
    }
}

/// Run file that lies at the destination.
pub struct RunThere {
    /// The training that it holds.
    pub saved: Saved,
    /// Epochs that it holds.
    pub epochs: usize,
    /// Steps that it holds.
    pub steps: usize,
}

impl RunThere {
    /// The run file at `out`; `None` if there is no file.
    ///
    /// # Errors
    /// The file cannot be read, or belongs to another command.
    pub fn read(out: &Path) -> Result<Option<RunThere>> {
        if !out.exists() {
            return Ok(None);
        }
        let saved = Saved::read(out)?;
        if let Some(kind) = saved.identity.kind.filter(|kind| *kind != FileKind::Training) {
            let message = format!("is the file of another command ({}): choose another --out", kind.as_str());
            return Err(Error::ResumeRefused { path: out.to_owned(), message });
        }
        let epochs = store::read_table(out, "epochs")?.numbers("epoch").len();
        let steps = store::read_table(out, "steps")?;
        let done = table::attribute(&steps.attributes, STEPS_DONE).and_then(Attribute::integer);
        let last = steps.numbers("global_step").last().map_or(0, |last| *last as usize + 1);
        let steps = done.map_or(last, |done| last.max(done as usize));
        Ok(Some(RunThere { saved, epochs, steps }))
    }

    pub fn not_behind(&self, now: &Now) -> Result<()> {
        not_behind(&self.saved.path, self.epochs, now)
    }

    /// Whether the finished run is what the user wants; false if the plan has more epochs.
    ///
    /// # Errors
    /// [`Error::ResumeRefused`] if another key differs.
    pub fn is_done(&self, now: &Now) -> Result<bool> {
        let differences = self.saved.config.differences(now.plan);
        let mut other =
            differences.iter().filter(|(key, ..)| !MAY_DIFFER_AT_THE_END.iter().any(|free| key.starts_with(free)));
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
}

/// Checks that the plan has at least `epochs` epochs, which the file at `path` has.
///
/// # Errors
/// [`Error::ResumeRefused`].
fn not_behind(path: &Path, epochs: usize, now: &Now) -> Result<()> {
    let asked = now.plan.train.epochs;
    if asked >= epochs {
        return Ok(());
    }
    let message = format!(
        "train.epochs = {asked}, but it has {epochs} already: set as many or more, or train anew under another --out or \
         with --force and without --resume"
    );
    Err(Error::ResumeRefused { path: path.to_owned(), message })
}
