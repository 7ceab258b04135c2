//! The start and the end of a job: MPI, ranks and local ranks, threads, devices. In: the launcher's environment. Out: a
//! [`Job`]. An error of any rank ends all of them, with one message and a non-zero status. Never sees a batch or a gradient.
//!
//! A program that prints on which device each rank computes, for `mpirun`:
//! ```no_run
//! use hpml::config::Config;
//!
//! fn main() -> std::process::ExitCode {
//!     let config = Config::default();
//!     hpml::launch::run(&config.launch, |job| {
//!         job.configure(&config)?;
//!         println!("rank {} of {}: {}", job.rank, job.world_size, job.target);
//!         Ok(())
//!     })
//! }
//! ```

mod affinity;
mod ancestors;
mod cpus;
mod host;
mod places;
mod signals;
mod singletons;
mod watchdog;

use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::collective::{Combine, Communicator, DeviceCollectives, Universe, share_progress};
use crate::config::{Config, Launch, Precision};
use crate::device::{self, Choice, Found, Target};
use crate::error::{Error, Result};
use crate::metrics::Kind;
use affinity::{Bound, Surroundings};
use ancestors::ancestors;
use cpus::Cpus;
pub use host::describe_host;
pub use places::Place;
pub use signals::{Signals, signal_name};
use singletons::{Singleton, Variables};

/// The running job as one rank sees it.
pub struct Job {
    /// Communicator over all ranks.
    pub communicator: Arc<Communicator>,
    /// Rank of this process, from 0.
    pub rank: usize,
    /// Number of ranks.
    pub world_size: usize,
    /// Rank of this process among those of its host, from 0.
    pub local_rank: usize,
    /// Device of this rank.
    pub target: Target,
    /// UUID of this rank's GPU; zeros without one.
    pub gpu_uuid: [u8; 16],
    /// Host, cores, compute threads and device of every rank.
    pub places: Vec<Place>,
    /// CPUs and settings around this process when it started.
    surroundings: Surroundings,
    /// Warnings for the run file, kept on rank 0.
    warnings: Mutex<Vec<String>>,
    /// Watchdog of the start, until [`watch`](Self::watch) replaces or [`disable_watchdog`](Self::disable_watchdog) ends it.
    watchdog: Option<watchdog::Watchdog>,
}

/// Ends every process but the first with `status`, so that only the first reports an error that comes before MPI is
/// initialized. The launcher's variables tell which process is the first.
pub fn leave_to_first_rank(status: i32) {
    if Variables::new(&variable, &ancestors()).is_not_first() {
        leave(status)
    }
}

/// Ends this process without a message, a second later: the launcher ends all processes once one has failed, and the one with
/// the message must come first.
fn leave(status: i32) -> ! {
    std::thread::sleep(Duration::from_secs(1));
    std::process::exit(status)
}

/// Initializes MPI, runs `work` on every rank, ends the job and returns its exit status: 0, or the status of the error.
///
/// Ranks that do not meet within `launch.comm_timeout_s` end the job; a limit of zero waits for ever. Processes that were
/// started together and did not become ranks of one job are an error unless `launch.allow_singletons` is set.
///
/// # Panics
/// Panics if MPI was initialized before.
pub fn run(launch: &Launch, work: impl FnOnce(&mut Job) -> Result<()>) -> ExitCode {
    prepare_open_mpi(); // sets the environment, so before there is another thread
    let surroundings = Surroundings::look();
    let variables = Variables::new(&variable, &surroundings.ancestors);
    let library = Universe::library_version();
    if let Some(warning) = variables.warning_before_start(&library) {
        eprintln!("hpml: {warning}");
    }
    let singleton = variables.singleton(&library); // now: Open MPI sets the variables of a process that is alone
    let limit = launch.comm_timeout();
    let watchdog = watchdog::meeting("met", limit);
    let universe = Universe::start().expect("MPI is initialized once, here");
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
        // All ranks know of it and are here: the one that has it prints it.
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
    let watchdog = watchdog::meeting("all ended", limit);
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
    ///
    /// # Errors
    /// Returns [`Error::Agreed`] with its own error on the lowest failing rank, which prints it, and [`Error::OnRank`] with the
    /// number of that rank on the others.
    pub fn agree<T>(&self, result: Result<T>) -> Result<T> {
        let mut failing = [if result.is_err() { self.rank } else { self.world_size } as f64];
        self.communicator.all_reduce(Kind::Control, Combine::Min, &mut failing)?;
        match (result, failing[0] as usize) {
            (Ok(value), rank) if rank == self.world_size => Ok(value),
            (Err(error), rank) if rank == self.rank => Err(Error::Agreed(Box::new(error))),
            (_, rank) => Err(Error::OnRank { rank }),
        }
    }

    /// Rank 0's `numbers`, on all ranks; those of the other ranks are ignored. A collective.
    ///
    /// # Errors
    /// Returns [`Error::Mpi`] if MPI reports a failure.
    pub fn from_root<const N: usize>(&self, numbers: [f64; N]) -> Result<[f64; N]> {
        let mut numbers = if self.is_root() { numbers } else { [0.0; N] };
        self.communicator.all_reduce(Kind::Control, Combine::Sum, &mut numbers)?;
        Ok(numbers)
    }

    /// Checks that all ranks read the same configuration, chooses the devices, sets the compute threads and fills `places`. A
    /// collective, called before the first tensor is made.
    ///
    /// # Errors
    /// Returns [`Error::ConfigDiffers`], [`Error::Device`], or the reason why the configuration does not fit the GPU, alike on
    /// all ranks; and [`Error::Mpi`] if MPI reports a failure.
    pub fn configure(&mut self, config: &Config) -> Result<()> {
        let hashes = self.communicator.all_gather(Kind::Control, &[config.hash()])?;
        let differing = hashes.iter().position(|&hash| hash != hashes[0]);
        self.agree(differing.map_or(Ok(()), |rank| Err(Error::ConfigDiffers { rank })))?;
        let host = hostname();
        let hosts = self.communicator.all_gather_text(Kind::Control, &host)?;
        let devices = self.choose_device(config, &hosts)?;
        self.places = self.find_places(config, hosts, devices)?;
        tch::set_num_threads(self.places[self.rank].threads as i32);
        let warnings = places::warnings(&self.places, config.launch.threads > 0, &Universe::library_version());
        warnings.into_iter().for_each(|warning| self.warn(warning));
        Ok(())
    }

    /// Gathers the cores of every rank, and derives this rank's compute threads and everybody's place.
    fn find_places(&self, config: &Config, hosts: Vec<String>, devices: Vec<String>) -> Result<Vec<Place>> {
        let own = Cpus::of_this_process();
        let words = own.to_words();
        let all: Vec<Cpus> =
            self.communicator.all_gather(Kind::Control, &words)?.chunks(words.len()).map(Cpus::from_words).collect();
        let on_host = || hosts.iter().zip(&all).filter(|(host, _)| **host == hosts[self.rank]).map(|(_, cpus)| cpus);
        let sharing = on_host().filter(|cpus| cpus.overlaps(&own)).count().max(1);
        let threads = match config.launch.threads {
            0 => affinity::fair_share(&own, sharing),
            threads => threads,
        };
        let (bound, unbound) = Bound::find(&own, &self.surroundings);
        let numbers = [
            self.local_rank,
            threads,
            own.count(),
            sharing,
            cpus::union(on_host()).count(),
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

    /// Hosts, devices, threads and cores of the ranks, one line per group of ranks that have the same.
    pub fn describe(&self) -> Vec<String> {
        places::lines(&self.places)
    }

    /// Logs a warning on rank 0 and keeps it for the run file; does nothing on other ranks.
    pub fn warn(&self, warning: String) {
        if self.is_root() {
            log::warn!("{warning}");
            self.warnings.lock().expect("no thread panics while it adds a text").push(warning);
        }
    }

    /// The warnings that rank 0 has logged until now; empty on other ranks.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.lock().expect("no thread panics while it adds a text").clone()
    }

    /// Chooses this rank's device and makes it the current one; returns the name of every rank's device. Called before the first
    /// tensor is made.
    fn choose_device(&mut self, config: &Config, hosts: &[String]) -> Result<Vec<String>> {
        let own = device::look(config.launch.device);
        let found = self.communicator.all_gather_text(Kind::Control, &own.to_text())?;
        let found: Vec<Found> = found.iter().map(|text| Found::from_text(text)).collect();
        let choice = device::assign(&config.launch, hosts, &found).map_err(|reason| Error::Device { reason });
        let Choice { targets, fallback } = self.agree(choice)?;
        let shared = targets.iter().any(|target| matches!(target, Target::Gpu { shared: true, .. }));
        if let Some(reason) = fallback {
            self.warn(format!("computing on CPU cores although there is a GPU: {reason}; hpml devices shows more"));
        }
        if shared {
            self.warn(
                "ranks share a GPU: step times and speedup do not apply to ranks with a GPU of their own; start as many ranks \
                 on a host as it has GPUs"
                    .into(),
            );
        }
        self.target = targets[self.rank];
        let through_host = DeviceCollectives::go_through_host(self.target, config.parallel.all_reduce);
        self.agree(if self.target.is_gpu() { config.check_for_gpu(through_host) } else { Ok(()) })?;
        self.agree(self.target.enter(config.model.precision == Precision::Tf32))?;
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

    /// Starts the watchdog: a collective that takes longer than `launch.comm_timeout_s` ends the job and names the missing rank.
    /// For commands in which all ranks always work together. A collective, called once.
    ///
    /// # Errors
    /// Returns [`Error::Mpi`] if MPI reports a failure.
    pub fn watch(&mut self, config: &Config) -> Result<()> {
        share_progress(&self.communicator.split_by_host()?)?;
        self.watchdog = watchdog::start(self, config.launch.comm_timeout());
        Ok(())
    }

    /// Ends the watchdog of the start: for commands in which ranks wait for others as long as it takes.
    pub fn disable_watchdog(&mut self) {
        self.watchdog = None;
    }

    /// Whether this is rank 0, which writes the output and the log.
    pub fn is_root(&self) -> bool {
        self.rank == 0
    }
}

/// Sets Open MPI's parameters for a fast all-reduce on one host: no kernel-assisted copies, segmented ring.
///
/// Open MPI's defaults are 2 to 4 times slower there (44.7 MB on 2 ranks: 18.4 -> 5.3 ms). Only if all ranks are on one host,
/// by the launcher's variables, and only what the user has not set: over a network the cluster's own settings stand.
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

/// Starts the log on stderr, each line with the rank: level info on rank 0, warn on the others, or what `RUST_LOG` says.
fn start_log(rank: usize) {
    use std::io::Write;
    let level = if rank == 0 { "info" } else { "warn" };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(level))
        .format(move |out, record| writeln!(out, "[rank {rank}] {}: {}", record.level(), record.args()))
        .init();
}

/// Makes a panic in any thread end the job: the other ranks would wait for this one for ever.
fn end_job_on_panic(rank: usize) {
    std::panic::set_hook(Box::new(move |info| {
        let message = info.payload_as_str().unwrap_or("no message");
        let first_line = message.lines().next().unwrap_or_default();
        let place = info.location().map(|place| format!(" ({}:{})", place.file(), place.line())).unwrap_or_default();
        eprintln!("hpml: rank {rank}: internal error{place}: {first_line}");
        Communicator::abort(101);
    }));
}

/// Value of the environment variable `name`, if it is set and valid Unicode.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Name of this host.
fn hostname() -> String {
    sysinfo::System::host_name().filter(|name| !name.is_empty()).unwrap_or_else(|| "localhost".into())
}
