//! The running job as one rank sees it: who runs where, and how ranks agree. Decides on device and threads of this rank.

use std::sync::{Arc, Mutex};

use super::affinity::{self, Bound, Surroundings};
use super::cpus::{self, Cpus};
use super::places::{self, Place};
use super::{host, neighbors, watchdog};
use crate::collective::{Combine, Communicator, DeviceCollectives, library_version, share_progress};
use crate::config::{Launch, Plan, Precision};
use crate::device::{self, Choice, Found, Target};
use crate::error::{Error, Result};
use crate::metrics::Kind;
use crate::units;

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
    /// Time of the start, by this process's clock: ISO 8601 with the offset from UTC.
    pub started: String,
    /// CPUs and settings around this process when it started.
    surroundings: Surroundings,
    /// Warnings for the run file, kept on rank 0.
    warnings: Mutex<Vec<String>>,
    /// Watchdog of the start, until [`watch`](Self::watch) replaces or [`disable_watchdog`](Self::disable_watchdog) ends it.
    watchdog: Option<watchdog::Watchdog>,
}

impl Job {
    pub(super) fn new(
        communicator: Arc<Communicator>,
        surroundings: Surroundings,
        watchdog: Option<watchdog::Watchdog>,
    ) -> Result<Job> {
        let (rank, world_size) = (communicator.rank(), communicator.size());
        let local_rank = communicator.split_by_host()?.rank();
        let (target, gpu_uuid, places, warnings) = (Target::Cpu, [0; 16], Vec::new(), Mutex::default());
        let started = units::now();
        Ok(Job {
            communicator,
            rank,
            world_size,
            local_rank,
            target,
            gpu_uuid,
            places,
            started,
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
    pub fn configure(&mut self, plan: &Plan) -> Result<()> {
        let hashes = self.communicator.all_gather(Kind::Control, &[plan.hash()])?;
        let differing = hashes.iter().position(|&hash| hash != hashes[0]);
        self.agree(differing.map_or(Ok(()), |rank| Err(Error::ConfigDiffers { rank })))?;
        let host = host::name();
        let hosts = self.communicator.all_gather_text(Kind::Control, &host)?;
        let devices = self.choose_device(plan, &hosts)?;
        let processes = self.processes_here(&hosts)?;
        self.places = self.find_places(plan.launch.threads, hosts, devices)?;
        let own = &self.places[self.rank];
        tch::set_num_threads(own.threads as i32);
        if self.is_root() && own.threads > 1 {
            let other = neighbors::find(&processes, &Cpus::of_this_process());
            other.into_iter().for_each(|process| self.warn(neighbors::warning(process)));
        }
        let warnings = places::warnings(&self.places, plan.launch.threads > 0, &library_version());
        warnings.into_iter().for_each(|warning| self.warn(warning));
        Ok(())
    }

    /// Process numbers of the ranks on this rank's host. A collective.
    fn processes_here(&self, hosts: &[String]) -> Result<Vec<usize>> {
        let all = self.communicator.all_gather(Kind::Control, &[u64::from(std::process::id())])?;
        let here = all.into_iter().zip(hosts).filter(|(_, host)| **host == hosts[self.rank]);
        Ok(here.map(|(process, _)| process as usize).collect())
    }

    /// Gathers the cores of every rank, and derives this rank's compute threads and everybody's place.
    fn find_places(&self, threads: usize, hosts: Vec<String>, devices: Vec<String>) -> Result<Vec<Place>> {
        let own = Cpus::of_this_process();
        let words = own.to_words();
        let all: Vec<Cpus> =
            self.communicator.all_gather(Kind::Control, &words)?.chunks(words.len()).map(Cpus::from_words).collect();
        let on_host = || hosts.iter().zip(&all).filter(|(host, _)| **host == hosts[self.rank]).map(|(_, cpus)| cpus);
        let sharing = on_host().filter(|cpus| cpus.overlaps(&own)).count().max(1);
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
            cpus::union(on_host()).count(),
            unbound,
            self.surroundings.host.count(),
            bound as usize,
        ]
        .map(|number| number as u64);
        let numbers = self.communicator.all_gather(Kind::Control, &numbers)?;
        let numbers: Vec<usize> = numbers.into_iter().map(|number| number as usize).collect();
        let place = |(((host, device), numbers), cpus): (((String, String), &[usize]), &Cpus)| {
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
                cpus: cpus.to_string(),
                sharing,
                cores_of_ranks,
                cores_unbound,
                cores_of_host,
                bound,
            }
        };
        Ok(hosts.into_iter().zip(devices).zip(numbers.chunks(8)).zip(&all).map(place).collect())
    }

    /// Hosts, devices, threads and cores of the ranks, one line per group of ranks that have the same.
    pub fn describe(&self) -> Vec<String> {
        places::lines(&self.places)
    }

    /// Logs a warning on rank 0 and keeps it for the run file, unless it was given before; does nothing on other ranks.
    pub fn warn(&self, warning: String) {
        let mut warnings = self.warnings.lock().expect("no thread panics while it adds a text");
        if self.is_root() && !warnings.contains(&warning) {
            log::warn!("{warning}");
            warnings.push(warning);
        }
    }

    /// The warnings that rank 0 has logged until now; empty on other ranks.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.lock().expect("no thread panics while it adds a text").clone()
    }

    /// Chooses this rank's device and makes it the current one; returns the name of every rank's device. Called before the first
    /// tensor is made.
    fn choose_device(&mut self, plan: &Plan, hosts: &[String]) -> Result<Vec<String>> {
        let own = device::look(plan.launch.device);
        let found = self.communicator.all_gather_text(Kind::Control, &own.to_text())?;
        let found: Vec<Found> = found.iter().map(|text| Found::from_text(text)).collect();
        let choice = device::assign(&plan.launch, hosts, &found).map_err(|reason| Error::Device { reason });
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
        let through_host = DeviceCollectives::go_through_host(self.target, plan.parallel.all_reduce);
        self.agree(if self.target.is_gpu() { plan.check_for_gpu(through_host) } else { plan.check_for_cpu() })?;
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

    /// Starts the watchdog: a collective that takes longer than `launch.comm_timeout_s` ends the job and names the missing rank.
    /// For commands in which all ranks always work together. A collective, called once.
    ///
    /// # Errors
    /// Returns [`Error::Mpi`] if MPI reports a failure.
    pub fn watch(&mut self, launch: &Launch) -> Result<()> {
        share_progress(&self.communicator.split_by_host()?)?;
        self.watchdog = watchdog::start(self, launch.comm_timeout());
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
