//! The running job as one rank sees it: who runs where, and how ranks agree. Decides on device and threads of this rank.

use std::sync::{Arc, Mutex};

use super::affinity::{self, Bound, Surroundings};
use super::cpus::{self, Cpus};
use super::host_ranks::HostRanks;
use super::places::{self, Place};
use super::{host, neighbors, watchdog};
use crate::collective::{Combine, Communicator, DeviceCollectives, check_racks, library_version, share_progress};
use crate::config::{Launch, Plan, Precision};
use crate::device::{self, Choice, Found, Offers, Target};
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
    /// Host, cores, compute threads and device of every rank, on rank 0; empty on the others.
    pub places: Vec<Place>,
    /// The ranks of this host.
    host: HostRanks,
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
        let host = HostRanks::meet(&communicator, host::name())?;
        let local_rank = host.local_rank();
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
            host,
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
    /// Returns [`Error::ConfigDiffers`], [`Error::Rack`], [`Error::Device`], or the reason why the configuration does not fit the GPU,
    /// alike on all ranks; and [`Error::Mpi`] if MPI reports a failure.
    pub fn configure(&mut self, plan: &Plan) -> Result<()> {
        let halves = [plan.hash() >> 32, plan.hash() & u64::from(u32::MAX)].map(|half| half as f64);
        let is_that_of_root = self.from_root(halves)? == halves;
        self.agree(if is_that_of_root { Ok(()) } else { Err(Error::ConfigDiffers { rank: self.rank }) })?;
        self.agree(check_racks(&self.communicator, &self.host.communicator))?;
        let device = self.choose_device(plan)?;
        let own = self.find_place(plan.launch.threads, device)?;
        let processes = self.host.communicator.all_gather(Kind::Control, &[u64::from(std::process::id())])?;
        self.places = self.host.gather_places(&self.communicator, &own)?;
        tch::set_num_threads(own.threads as i32);
        if self.is_root() {
            let processes: Vec<usize> = processes.into_iter().map(|process| process as usize).collect();
            let other = neighbors::find(&processes, &Cpus::of_this_process()).filter(|_| own.threads > 1);
            other.into_iter().for_each(|process| self.warn(neighbors::warning(process)));
            let warnings = places::warnings(&self.places, plan.launch.threads > 0, &library_version());
            warnings.into_iter().for_each(|warning| self.warn(warning));
        }
        Ok(())
    }

    /// Shares out the cores of this host among its ranks: this rank's place, on `device`. A collective of the host.
    fn find_place(&self, threads: usize, device: String) -> Result<Place> {
        let own = Cpus::of_this_process();
        let words = own.to_words();
        let all = self.host.communicator.all_gather(Kind::Control, &words)?;
        let all: Vec<Cpus> = all.chunks(words.len()).map(Cpus::from_words).collect();
        let sharing = all.iter().filter(|cpus| cpus.overlaps(&own)).count().max(1);
        let (bound, cores_unbound) = Bound::find(&own, &self.surroundings);
        Ok(Place {
            host: self.host.name.clone(),
            local_rank: self.local_rank,
            threads: if threads == 0 { affinity::fair_share(&own, sharing) } else { threads },
            device,
            cores: own.count(),
            cpus: own.to_string(),
            sharing,
            cores_of_ranks: cpus::union(&all).count(),
            cores_unbound,
            cores_of_host: self.surroundings.host.count(),
            bound,
        })
    }

    /// Name of this rank's host.
    pub fn host_name(&self) -> &str {
        &self.host.name
    }

    /// Ranks of this host, ascending.
    pub fn ranks_of_host(&self) -> &[usize] {
        &self.host.numbers
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

    /// Chooses this rank's device and makes it the current one; returns its name. Called before the first tensor is made.
    fn choose_device(&mut self, plan: &Plan) -> Result<String> {
        let own = device::look(plan.launch.device);
        let found = self.host.communicator.all_gather_text(Kind::Control, &own.to_text())?;
        let found: Vec<Found> = found.iter().map(|text| Found::from_text(text)).collect();
        let offer = device::offer(&plan.launch, &self.host.name, &self.host.numbers, &found);
        let own_target = offer.targets.as_ref().map_or(Target::Cpu, |targets| targets[self.local_rank]);
        let is = |what: bool| f64::from(u8::from(what));
        let is_shared = matches!(own_target, Target::Gpu { shared: true, .. });
        let mut facts = [is(!own.emulated), is(offer.targets.is_err()), is(offer.has_gpu), is(is_shared)];
        self.communicator.all_reduce(Kind::Control, Combine::Max, &mut facts)?;
        let [some_real, some_missing, have_gpu, some_shared] = facts.map(|fact| fact > 0.0);
        let offers = Offers { are_emulated: !some_real, are_complete: !some_missing, have_gpu };
        self.target = match device::choose(plan.launch.device, offers) {
            Choice::Offered | Choice::Emulated => own_target,
            Choice::Cpu { falls_back } => {
                if falls_back {
                    let reason = self.first_text(offer.targets.err().as_deref())?;
                    self.warn(format!(
                        "computing on CPU cores although there is a GPU: {reason}; hpml devices shows more"
                    ));
                }
                Target::Cpu
            }
            Choice::Missing => {
                return self.agree(offer.targets.map(|_| String::new()).map_err(|reason| Error::Device { reason }));
            }
        };
        if some_shared && self.target.is_gpu() {
            self.warn(
                "ranks share a GPU: step times and speedup do not apply to ranks with a GPU of their own; start as many ranks \
                 on a host as it has GPUs"
                    .into(),
            );
        }
        let through_host = DeviceCollectives::go_through_host(self.target, plan.parallel.all_reduce);
        self.agree(if self.target.is_gpu() { plan.check_for_gpu(through_host) } else { plan.check_for_cpu() })?;
        self.agree(self.target.enter(plan.model.precision == Precision::Tf32))?;
        Ok(match self.target {
            Target::Gpu { index, .. } => {
                let gpu = &own.about[index];
                self.gpu_uuid = gpu.uuid;
                format!("{} {}", self.target, gpu.name).trim().to_owned()
            }
            target => target.to_string(),
        })
    }

    /// The text of the lowest rank that has one, on all ranks, cut at 256 bytes. A collective.
    fn first_text(&self, own: Option<&str>) -> Result<String> {
        let mut first = [if own.is_some() { self.rank } else { self.world_size } as f64];
        self.communicator.all_reduce(Kind::Control, Combine::Min, &mut first)?;
        let own = own.filter(|_| first[0] as usize == self.rank).unwrap_or_default();
        let mut bytes = [0.0; 256];
        bytes.iter_mut().zip(own.bytes()).for_each(|(place, byte)| *place = byte.into());
        self.communicator.all_reduce(Kind::Control, Combine::Sum, &mut bytes)?;
        let bytes: Vec<u8> = bytes.iter().map(|&byte| byte as u8).take_while(|&byte| byte != 0).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Starts the watchdog: a collective that takes longer than `launch.comm_timeout_s` ends the job and names the missing rank.
    /// For commands in which all ranks always work together. A collective, called once.
    ///
    /// # Errors
    /// Returns [`Error::Mpi`] if MPI reports a failure.
    pub fn watch(&mut self, launch: &Launch) -> Result<()> {
        share_progress(&self.host.communicator)?;
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
