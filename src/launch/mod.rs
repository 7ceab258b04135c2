//! Who runs where: MPI, rank and local rank, threads, and how a job ends. In: nothing but the environment of the
//! launcher. Out: a [`Job`]. An error of any rank ends all of them, with one message and a non-zero status.

mod affinity;
mod ancestors;
mod host;
mod places;
mod signals;
mod singletons;
mod watchdog;

use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::collective::{Combine, Communicator, DeviceCollectives, Universe, share_progress};
use crate::config::{Launch, Plan, Precision};
use crate::device::{self, Choice, Found, Target};
use crate::error::{Error, Result};
use crate::metrics::Kind;
use affinity::{Bound, Cpus, Surroundings};
use ancestors::ancestors;
pub use host::describe_host;
pub use places::Place;
pub use signals::{Signals, signal_name};
use singletons::{Singleton, Variables};

/// The running job as one rank sees it.
pub struct Job {
    /// All ranks.
    pub communicator: Arc<Communicator>,
    /// This process's number, from 0.
    pub rank: usize,
    /// How many ranks there are.
    pub world_size: usize,
    /// This process's number among those of its host.
    pub local_rank: usize,
    /// Where this rank computes.
    pub target: Target,
    /// Of its GPU, if it has one.
    pub gpu_uuid: [u8; 16],
    /// Host, cores, compute threads and device of every rank.
    pub places: Vec<Place>,
    /// What this rank's cores are held against.
    surroundings: Surroundings,
    /// On rank 0: what the run file is to say of this run.
    warnings: Mutex<Vec<String>>,
    /// Until [`watch`](Self::watch) or [`let_ranks_wait`](Self::let_ranks_wait) that of the start.
    watchdog: Option<watchdog::Watchdog>,
}

/// Before MPI has started: ends every rank but the first with `status`, so that the first can tell alone why it does not.
/// Which one this is the launcher has left in the environment.
pub fn leave_to_first_rank(status: i32) {
    if Variables::new(&variable, &ancestors()).is_not_first() {
        leave(status)
    }
}

/// Ends this process without a word, after the one that speaks: the launcher ends the others as soon as one has failed.
fn leave(status: i32) -> ! {
    std::thread::sleep(Duration::from_secs(1));
    std::process::exit(status)
}

/// Initialises MPI, runs `work` on every rank and ends the job: 0 if all went well, else the error's status. Ranks that do not
/// meet within `launch.comm_timeout_s` end it too; zero: they wait for ever. Processes that were started together and did not
/// become ranks of one job are an error unless `launch.allow_singletons`.
pub fn run(launch: &Launch, work: impl FnOnce(&mut Job) -> Result<()>) -> ExitCode {
    prepare_open_mpi(); // sets the environment, so before there is another thread
    let surroundings = Surroundings::look();
    let variables = Variables::new(&variable, &surroundings.ancestors);
    let library = Universe::library_version();
    if let Some(warning) = variables.warning_before_start(&library) {
        eprintln!("hpml: {warning}");
    }
    let singleton = variables.singleton(&library); // now: Open MPI sets the variables of a process that is alone
    let policy = launch.comm_timeout();
    let watchdog = watchdog::meeting("met", policy);
    let universe = Universe::start().expect("MPI is initialised once, here");
    let communicator = Arc::new(universe.world());
    let rank = communicator.rank();
    let is_alone = communicator.size() == 1 && !launch.allow_singletons;
    if let Some(Singleton { error, speaks }) = singleton.filter(|_| is_alone) {
        if !speaks {
            leave(error.status().into())
        }
        eprintln!("hpml: {error}");
        return ExitCode::from(error.status());
    }
    start_log(rank);
    end_job_on_panic(rank);
    let result = Job::new(communicator, surroundings, watchdog).and_then(|mut job| work(&mut job));
    let status = result.as_ref().map_or_else(Error::status, |()| 0);
    match result {
        Ok(()) | Err(Error::OnRank { .. }) => {}
        // All ranks know of it and are here: one of them speaks.
        Err(Error::Agreed(error)) => eprintln!("hpml: {error}"),
        // All ranks stopped together.
        Err(error @ Error::Stopped { .. }) => {
            if rank == 0 {
                eprintln!("hpml: {error}");
            }
        }
        Err(error) => {
            eprintln!("hpml: rank {rank}: {error}");
            Communicator::abort(status.into())
        }
    }
    let watchdog = watchdog::meeting("all ended", policy);
    drop(universe); // waits for the other ranks
    drop(watchdog);
    ExitCode::from(status)
}

impl Job {
    fn new(
        communicator: Arc<Communicator>,
        surroundings: Surroundings,
        watchdog: Option<watchdog::Watchdog>,
    ) -> Result<Job> {
        let (rank, world_size) = (communicator.rank(), communicator.size());
        let local_rank = communicator.split_by_host()?.rank();
        let (target, gpu_uuid, places, warnings) = (Target::Cpu, [0; 16], Vec::new(), Mutex::default());
        Ok(Job {
            communicator,
            rank,
            world_size,
            local_rank,
            target,
            gpu_uuid,
            places,
            surroundings,
            warnings,
            watchdog,
        })
    }

    /// Turns an error of any rank into an error of all: every rank calls this at the same point with its own result.
    /// The lowest failing rank keeps its error (to print it), the others learn which rank that is.
    pub fn agree<T>(&self, result: Result<T>) -> Result<T> {
        let mut failing = [if result.is_err() { self.rank } else { self.world_size } as f64];
        self.communicator.all_reduce(Kind::Control, Combine::Min, &mut failing)?;
        match (result, failing[0] as usize) {
            (Ok(value), rank) if rank == self.world_size => Ok(value),
            (Err(error), rank) if rank == self.rank => Err(Error::Agreed(Box::new(error))),
            (_, rank) => Err(Error::OnRank { rank }),
        }
    }

    /// Rank 0's numbers, on all ranks; what the others give does not count. A collective.
    pub fn from_root<const N: usize>(&self, numbers: [f64; N]) -> Result<[f64; N]> {
        let mut numbers = if self.is_root() { numbers } else { [0.0; N] };
        self.communicator.all_reduce(Kind::Control, Combine::Sum, &mut numbers)?;
        Ok(numbers)
    }

    /// Checks that all ranks read the same configuration, takes the device and sets the threads.
    pub fn configure(&mut self, plan: &Plan) -> Result<()> {
        let hashes = self.communicator.all_gather(Kind::Control, &[plan.hash()])?;
        let differing = hashes.iter().position(|&hash| hash != hashes[0]);
        self.agree(differing.map_or(Ok(()), |rank| Err(Error::ConfigDiffers { rank })))?;
        let host = hostname();
        let hosts = self.communicator.all_gather_text(Kind::Control, &host)?;
        let devices = self.choose_device(plan, &hosts)?;
        self.places = self.find_places(plan.launch.threads, hosts, devices)?;
        tch::set_num_threads(self.places[self.rank].threads as i32);
        let warnings = places::warnings(&self.places, plan.launch.threads > 0, &Universe::library_version());
        warnings.into_iter().for_each(|warning| self.warn(warning));
        Ok(())
    }

    /// Asks every rank for its cores and shares them out.
    fn find_places(&self, threads: usize, hosts: Vec<String>, devices: Vec<String>) -> Result<Vec<Place>> {
        let own = Cpus::parse(&ancestors::own_cpus());
        let words = own.to_words();
        let all: Vec<Cpus> =
            self.communicator.all_gather(Kind::Control, &words)?.chunks(words.len()).map(Cpus::from_words).collect();
        let neighbours = || hosts.iter().zip(&all).filter(|(host, _)| **host == hosts[self.rank]).map(|(_, cpus)| cpus);
        let sharing = neighbours().filter(|cpus| cpus.overlaps(&own)).count().max(1);
        let threads = match threads {
            0 => affinity::fair_share(&own, sharing),
            threads => threads,
        };
        let (bound, unbound) = Bound::find(&own, &self.surroundings);
        let numbers = [
            self.local_rank,
            threads,
            own.count(),
            sharing,
            affinity::together(neighbours()).count(),
            unbound,
            self.surroundings.host.count(),
            bound as usize,
        ]
        .map(|number| number as u64);
        let numbers = self.communicator.all_gather(Kind::Control, &numbers)?;
        let numbers: Vec<usize> = numbers.into_iter().map(|number| number as usize).collect();
        let place = |((host, device), numbers): ((String, String), &[usize])| {
            let &[local_rank, threads, cores, sharing, cores_of_ranks, cores_unbound, cores_of_host, bound] = numbers
            else {
                unreachable!("as many numbers as were sent")
            };
            let bound = Bound::ALL[bound];
            Place {
                host,
                local_rank,
                threads,
                device,
                cores,
                sharing,
                cores_of_ranks,
                cores_unbound,
                cores_of_host,
                bound,
            }
        };
        Ok(hosts.into_iter().zip(devices).zip(numbers.chunks(8)).map(place).collect())
    }

    /// Who runs where with what, a line for all ranks that have the same.
    pub fn describe(&self) -> Vec<String> {
        places::lines(&self.places)
    }

    /// Tells on rank 0 what makes this run less than it could be, and keeps it for the run file; nothing on other ranks.
    pub fn warn(&self, warning: String) {
        if self.is_root() {
            log::warn!("{warning}");
            self.warnings.lock().expect("no thread panics while it adds a text").push(warning);
        }
    }

    /// The warnings of this run so far; those of rank 0.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.lock().expect("no thread panics while it adds a text").clone()
    }

    /// Finds this rank's device, before anything makes a tensor. Every rank's device in words.
    fn choose_device(&mut self, plan: &Plan, hosts: &[String]) -> Result<Vec<String>> {
        let own = device::look(plan.launch.device);
        let found = self.communicator.all_gather_text(Kind::Control, &own.to_text())?;
        let found: Vec<Found> = found.iter().map(|text| Found::from_text(text)).collect();
        let choice = device::assign(&plan.launch, hosts, &found).map_err(|reason| Error::Device { reason });
        let Choice { targets, fallback } = self.agree(choice)?;
        let shared = targets.iter().any(|target| matches!(target, Target::Gpu { shared: true, .. }));
        if let Some(reason) = fallback {
            self.warn(format!("computing on CPU cores although there is a GPU: {reason}; hpml devices tells more"));
        }
        if shared {
            self.warn("ranks share a GPU: what is measured is not what each would do with its own".into());
        }
        self.target = targets[self.rank];
        let through_host = DeviceCollectives::go_through_host(self.target, plan.parallel.all_reduce);
        self.agree(if self.target.is_gpu() { plan.check_for_gpu(through_host) } else { Ok(()) })?;
        self.agree(self.target.enter(plan.model.precision == Precision::Tf32))?;
        let name = match self.target {
            Target::Gpu { index, .. } => {
                let gpu = &own.about[index];
                self.gpu_uuid = gpu.uuid;
                format!("{} {}", self.target, gpu.name)
            }
            target => target.to_string(),
        };
        self.communicator.all_gather_text(Kind::Control, name.trim())
    }

    /// From now on a collective that takes longer than `launch.comm_timeout_s` ends the job, naming the rank that is missing.
    /// For commands in which all ranks always work together. A collective, once.
    pub fn watch(&mut self, launch: &Launch) -> Result<()> {
        share_progress(&self.communicator.split_by_host()?)?;
        self.watchdog = watchdog::start(self, launch.comm_timeout());
        Ok(())
    }

    /// The ranks have met; from now on some may wait for others as long as it takes.
    pub fn let_ranks_wait(&mut self) {
        self.watchdog = None;
    }

    /// Whether this is rank 0, the one that speaks.
    pub fn is_root(&self) -> bool {
        self.rank == 0
    }
}

/// Open MPI's shared-memory all-reduce is 2 to 4 times slower with its defaults than with these (measured: kernel-assisted
/// copies off, segmented ring; 44.7 MB on 2 ranks 18.4 -> 5.3 ms). Only where all ranks are on one host, as far as the
/// launcher tells, and only what the user has not set: over a network the cluster's own settings stand.
fn prepare_open_mpi() {
    let ranks = variable("OMPI_COMM_WORLD_SIZE");
    if ranks.is_some() && ranks == variable("OMPI_COMM_WORLD_LOCAL_SIZE") {
        for (name, value) in [
            ("OMPI_MCA_btl_vader_single_copy_mechanism", "none"),
            ("OMPI_MCA_coll_tuned_use_dynamic_rules", "1"),
            ("OMPI_MCA_coll_tuned_allreduce_algorithm", "5"),
            ("OMPI_MCA_coll_tuned_allreduce_algorithm_segmentsize", "1048576"),
        ] {
            crate::sys::default_environment(name, value);
        }
    }
}

/// Log lines on stderr with the rank; rank 0 tells, the others warn, `RUST_LOG` decides otherwise.
fn start_log(rank: usize) {
    use std::io::Write;
    let level = if rank == 0 { "info" } else { "warn" };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(level))
        .format(move |out, record| writeln!(out, "[rank {rank}] {}: {}", record.level(), record.args()))
        .init();
}

/// A panic in any thread of any rank ends the job: the others would wait for this rank for ever.
fn end_job_on_panic(rank: usize) {
    std::panic::set_hook(Box::new(move |info| {
        let message = info.payload_as_str().unwrap_or("no message");
        let first_line = message.lines().next().unwrap_or_default();
        let place = info.location().map(|place| format!(" ({}:{})", place.file(), place.line())).unwrap_or_default();
        eprintln!("hpml: rank {rank}: internal error{place}: {first_line}");
        Communicator::abort(101);
    }));
}

/// A variable of this process's environment.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "localhost".into() } else { name.trim().to_owned() }
}
