//! Training. In: a [`Plan`] and a job. Out: a run file, checkpoints, and on rank 0 one line per epoch and the closing
//! tables.
//!
//! [`begin`] checks, takes the output's name and finds out how the training begins; [`Begun::run`] trains; [`Trained`] holds the
//! weights, for a command that goes on with them. Decides what happens when; how gradients are reduced, times stored and tables
//! drawn is elsewhere.

mod checkpoints;
mod console;
mod convolutions;
mod divergence;
mod draws;
mod found;
mod global_batch;
mod gpus;
mod kept_steps;
mod outputs;
mod partial_epoch;
mod peak;
mod reads;
mod record;
mod resume;
mod sampling;
mod start;
mod step;
mod training;
mod weights;

use std::path::Path;
use std::time::Instant;

use crate::collective::{Bf16, Crossovers, DeviceCollectives, Levels, Network};
use crate::config::{Algorithm, Compression, Plan};
use crate::data::{self, Datasets};
use crate::environment;
use crate::error::Result;
use crate::launch::Job;
use crate::live::{self, Ending, Live};
use crate::metrics::{Kind, Part, Summaries};
use crate::output::{self, Destination};
use crate::store::{Checkpoint, Owner};
use crate::table::Table;
use crate::trace;
use crate::workload;
pub use checkpoints::Checkpoints;
pub use convolutions::Convolutions;
pub use global_batch::GlobalBatch;
use outputs::Outputs;
pub use record::{EpochRow, Record, Score};
pub use start::ResumeFrom;
use start::{Beginning, Start};
pub use step::{loader_options, timed_step};
pub use training::{Progress, Training};
pub use weights::load;

/// Begins a training: opens the data, takes the output's name, and finds out whether it starts anew or goes on. `None` if it is
/// finished already. A collective.
///
/// # Errors
/// The data, the output or the checkpoint cannot be used; no file has been written.
pub fn begin<'a>(
    plan: &Plan,
    job: &'a Job,
    destination: &Destination,
    resume: Option<&ResumeFrom>,
) -> Result<Option<Begun<'a>>> {
    let destination = job.agree(start::destination(destination, &plan.run, resume))?;
    let datasets = job.agree(data::open_shared(&plan.data, &job.communicator))?;
    let stem = format!("{}-{}ranks", plan.model.name.as_str(), job.world_size);
    let owner = output::claim(job, &destination, &stem)?;
    let out = owner.as_ref().map(Owner::target);
    let Start::Begin { is_resumed, how } = start::find(resume, out, destination.force, plan, job, &datasets)? else {
        if let Some(out) = out {
            println!("{} is finished: nothing to do", out.display());
        }
        return Ok(None);
    };
    let samples = datasets.train.len();
    let plan = start::with_its_batch(plan, job, how.as_deref(), samples)?;
    let (plan, network) = start::with_its_crossovers(&plan, job, how.as_deref())?;
    let batch = job.agree(GlobalBatch::new(&plan, samples))?;
    let outlets = live::Outlets::open(job, &plan.metrics, out, resume.is_some(), destination.force)?;
    let live = Live::new(job, &plan.metrics, outlets);
    Ok(Some(Begun { plan, job, datasets, batch, is_resumed, network, output: owner.zip(how), live }))
}

/// The tables of a training without rows, in the order of the run file, for their documentation.
pub fn empty_tables() -> Vec<Table> {
    vec![
        record::steps().table(&[]),
        record::epochs().table(&[]),
        record::comm().table(&[]),
        sampling::sampling().table(&[]),
        divergence::spread().table(&[]),
        divergence::ranks().table(&[]),
        gpus::gpu().table(&[]),
        convolutions::empty_table(),
        reads::reads().table(&[]),
        trace::trace().table(&[]),
        trace::clocks().table(&[]),
        workload::empty_buckets(),
    ]
    .into_iter()
    .chain(Summaries::empty_tables())
    .collect()
}

/// Training before its first step: checked, with its output's name taken, but with nothing written.
pub struct Begun<'a> {
    plan: Plan,
    job: &'a Job,
    datasets: Datasets,
    batch: GlobalBatch,
    /// Whether it goes on from a checkpoint.
    is_resumed: bool,
    /// The network between hosts, if it was measured.
    network: Option<Network>,
    /// Owner of the run file and what was found there, on rank 0.
    output: Option<(Owner, Box<Beginning>)>,
    live: Live,
}

impl<'a> Begun<'a> {
    /// The plan as this training uses it: a resumed one keeps its global batch.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The images.
    pub fn datasets(&self) -> &Datasets {
        &self.datasets
    }

    /// Path of the run file to be written and id of its run, on rank 0.
    pub fn output(&self) -> Option<(&Path, &str)> {
        self.output.as_ref().map(|(owner, how)| (owner.target(), how.identity.run_id.as_str()))
    }

    /// Trains, and writes the run file at the end of every epoch and checkpoints as configured and when a signal comes. With a
    /// sequel (`has_sequel`) the run file is finished by [`Trained::finish`]. A collective.
    ///
    /// # Errors
    /// [`Error::Stopped`](crate::error::Error::Stopped) on every rank if a signal ended the training before its end; before the first step what cannot be
    /// written or resumed.
    pub fn run(self, has_sequel: bool) -> Result<Trained<'a>> {
        let Begun { plan, job, datasets, batch, is_resumed, network, output, mut live } = self;
        let run_id = output.as_ref().map_or_else(String::new, |(_, how)| how.identity.run_id.clone());
        let created = output
            .map(|(owner, mut how)| {
                how.environment.extend(network.iter().flat_map(environment::network));
                Outputs::create(owner, *how, has_sequel, &plan, job, &datasets, &batch)
            })
            .transpose();
        let mut outputs = job.agree(created)?;
        let resume = outputs.as_mut().and_then(|outputs| outputs.resume.take());
        let from = resume.as_ref().map(|resume| resume.path.clone());
        let folder = outputs.as_mut().and_then(|outputs| outputs.folder.take());
        let mut checkpoints = job.agree(Checkpoints::new(&plan.checkpoint, folder, from.as_deref()))?;
        let mut training = match is_resumed {
            true => Training::resumed(&plan, job, &datasets, resume.as_ref())?,
            false => Training::new(&plan, job, &datasets)?,
        };
        if job.is_root() {
            console::print_header(&plan, job, &datasets, training.replica(), &batch);
            if let Some(crossovers) = Crossovers::configured(&plan.parallel.crossovers).filter(|_| job.hosts() > 1) {
                println!("# {}", environment::describe_crossovers(job.hosts(), crossovers, network.as_ref()));
            }
            if let Some(from) = &from {
                println!("# goes on after step {} from {}", training.steps_done(), from.display());
            }
        }
        if let Err(reason) = training.operations() {
            log::info!("FLOP/s are unknown: {reason}");
        }
        let levels = levels(&training, &plan, network.as_ref(), job)?;
        if let Some(outputs) = &mut outputs {
            outputs.set_operations(training.operations());
            levels.iter().cloned().for_each(|levels| outputs.add_table(levels));
        }
        drop(resume); // its tensors are as large as the training's own

        let run_file = outputs.as_ref().map_or_else(String::new, |outputs| outputs.path().display().to_string());
        live.start(&live::Start {
            hpml: env!("CARGO_PKG_VERSION"),
            run_id,
            run_file,
            step: training.steps_done(),
            steps: training.steps_of_all(),
            epochs: plan.train.epochs,
            ranks: job.world_size,
            global_batch: batch.samples,
            model: plan.model.name.as_str(),
            data: datasets.name.clone(),
        });

        let started = Instant::now();
        let ended = epochs(&mut training, &mut checkpoints, outputs.as_mut(), &mut live, &plan, job);
        live.end(
            training.steps_done(),
            match &ended {
                Ok(None) => Ending::Finished,
                Ok(Some(_)) => Ending::Stopped,
                Err(_) => Ending::Failed,
            },
        );
        match &ended {
            Ok(Some(_)) => checkpoints.stopping(),
            Ok(None) => {}
            Err(_) => outputs.iter_mut().for_each(|outputs| outputs.keep_records(&training)),
        }
        // After an error too: what is still being written is a good state of before.
        let saved = checkpoints.finish();
        let signal = ended?;
        // There is more than was written last, or perhaps there was no epoch left to do.
        if let Some(outputs) = outputs.as_mut().filter(|outputs| signal.is_some() || !outputs.is_current()) {
            outputs.flush(&training)?;
        }
        if let Some(signal) = signal {
            let checkpoint = job.agree(saved)?;
            return Err(checkpoints::stopped(signal, training.steps_done(), checkpoint));
        }
        if let Some(outputs) = &mut outputs {
            // The tables of the file as it was written: messages sent since then are not in them.
            let (mut tables, seconds) = (outputs.take_written(), started.elapsed().as_secs_f64());
            tables.push(environment::table(job)); // hosts of slow ranks
            tables.extend(levels);
            console::print_closing(&plan, job.world_size, &tables, outputs.path(), seconds, &training.record().spent());
        }
        drop(checkpoints); // from here on a signal ends the job: all is written, and what follows can be repeated
        Ok(Trained { training, datasets, outputs })
    }
}

/// Training after its last step.
pub struct Trained<'a> {
    training: Training<'a>,
    datasets: Datasets,
    outputs: Option<Outputs>,
}

impl Trained<'_> {
    /// The images.
    pub fn datasets(&self) -> &Datasets {
        &self.datasets
    }

    /// Rank 0's weights with PyTorch's names, on every rank. A collective.
    ///
    /// # Errors
    /// A rank is gone.
    pub fn weights(&self) -> Result<Checkpoint> {
        let mut weights = self.training.checkpoint();
        weights::share(self.training.communicator(), &mut weights)?;
        Ok(weights)
    }

    /// Writes the run file of a training with a sequel for the last time, on rank 0: `weights`, the training's tables and `more`.
    ///
    /// # Errors
    /// The run file cannot be written.
    pub fn finish(mut self, weights: &Checkpoint, more: &[Table]) -> Result<()> {
        let training = &self.training;
        self.outputs.as_mut().map_or(Ok(()), |outputs| outputs.finish(training, weights, more))
    }
}

/// The table `/levels` of the all-reduces that carry the gradients of `training`. `None` on one host, where NCCL carries them, and where
/// other sums than those of whole buckets are sent. A collective.
fn levels(training: &Training, plan: &Plan, network: Option<&Network>, job: &Job) -> Result<Option<Table>> {
    let parallel = &plan.parallel;
    let bytes_of_element = match parallel.compression {
        Compression::None => size_of::<f32>(),
        Compression::Bf16 => size_of::<Bf16>(),
        Compression::Fp16 | Compression::Int8 | Compression::PowerSgd => return Ok(None),
    };
    if parallel.local_steps > 1 || !DeviceCollectives::go_through_host(job.target, parallel.all_reduce) {
        return Ok(None);
    }
    let mut hosts = [job.hosts() as u64]; // as rank 0 knows
    job.communicator.broadcast(Kind::Control, &mut hosts)?;
    if hosts == [1] {
        return Ok(None);
    }
    let levels = Levels::of(&job.communicator)?;
    let sizes = training.replica().buckets().iter().map(|bucket| bucket.elements.len() * bytes_of_element);
    let used: Vec<Algorithm> = sizes.map(|bytes| levels.algorithm_for(parallel, bytes)).collect();
    let table = environment::levels(&levels, network, |algorithm| used.contains(&algorithm));
    Ok(Some(table).filter(|table| !table.is_empty()))
}

/// Trains to the last epoch of `plan`, and writes the run file between epochs, the last time with the peak. Returns the signal that
/// stopped it before, if one did.
fn epochs(
    training: &mut Training,
    checkpoints: &mut Checkpoints,
    mut outputs: Option<&mut Outputs>,
    live: &mut Live,
    plan: &Plan,
    job: &Job,
) -> Result<Option<usize>> {
    live.begin_work();
    let mut lines = console::EpochLines::default();
    loop {
        match training.epoch(checkpoints, live)? {
            Progress::Epoch if training.is_finished() && plan.metrics.peak => {
                let started = Instant::now();
                let ranks = peak::measure(job, plan.model.precision)?;
                training.record_mut().peak_took(started.elapsed().as_secs_f64());
                if let Some(ranks) = ranks {
                    training.record_mut().set_peak(ranks.iter().sum());
                    outputs.iter_mut().for_each(|outputs| outputs.set_peak(&ranks));
                }
            }
            Progress::Epoch => {}
            Progress::Stopped(signal) => return Ok(Some(signal)),
            Progress::Finished => return Ok(None),
        }
        if outputs.is_some() {
            lines.print(training.record().epochs(), plan.train.epochs, training.is_finished());
            log_epoch(training, live);
        }
        let write_started = Instant::now();
        if let Some(outputs) = &mut outputs {
            outputs.after_epoch(training)?;
        }
        let (wrote, checkpoint_started) = (write_started.elapsed(), Instant::now());
        let signal = training.between_epochs(checkpoints)?;
        training.record_mut().end_of_epoch_took(wrote.as_secs_f64(), checkpoint_started.elapsed().as_secs_f64());
        if let Some(signal) = signal
            && !training.is_finished()
        {
            return Ok(Some(signal));
        }
    }
}

/// Logs the epoch that has just ended.
fn log_epoch(training: &Training, live: &mut Live) {
    let record = training.record();
    let Some(row) = record.epochs().last() else { return };
    let exposed = record.last_epoch(Part::CommExposed) / record.last_epoch(Part::Step);
    live.epoch(&live::Epoch {
        epoch: row.epoch,
        step: training.steps_done(),
        train_loss: row.train.loss,
        train_accuracy: row.train.accuracy,
        test_loss: row.test.loss,
        test_accuracy: row.test.accuracy,
        lr: row.lr,
        seconds: row.seconds,
        test_seconds: row.test_seconds,
        images_per_second: row.images_per_second,
        exposed_share: if row.world_size > 1 { exposed } else { f64::NAN },
    });
}
