//! The start and the end of a job: MPI, ranks and local ranks, threads, devices. In: the launcher's environment. Out: a
//! [`Job`]. An error of any rank ends all of them, with one message and a non-zero status. Never sees a batch or a gradient.
//!
//! A program that prints on which device each rank computes, for `mpirun`:
//! ```no_run
//! use hpml::config::{Config, Plan};
//!
//! fn main() -> std::process::ExitCode {
//!     let config = Config::default();
//!     hpml::launch::run(&config.launch.clone(), |job| {
//!         job.configure(&Plan::new(config, job.world_size)?)?;
//!         println!("rank {} of {}: {}", job.rank, job.world_size, job.target);
//!         Ok(())
//!     })
//! }
//! ```

mod affinity;
mod ancestors;
mod cpus;
mod host;
mod host_ranks;
mod job;
mod logger;
mod neighbors;
mod network;
mod panic_hook;
mod places;
mod shared_memory;
mod signals;
mod singletons;
mod tuning;
mod watchdog;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use crate::collective::{Communicator, Universe, check_library, library_version};
use crate::config::Launch;
use crate::error::{Error, Result};
use crate::message;
use affinity::Surroundings;
use ancestors::ancestors;
pub use host::describe_host;
pub use job::Job;
pub use places::Place;
pub use signals::{Signals, signal_name};
use singletons::{Singleton, Variables};

/// Ends every process but the first with `status`, so that only the first reports an error that comes before MPI is
/// initialized. The launcher's variables tell which process is the first.
pub fn leave_to_first_rank(status: i32) {
    if !is_first() {
        leave(status)
    }
}

/// Whether this process is the first of those that were started together, or alone. The launcher's variables tell.
pub fn is_first() -> bool {
    !Variables::new(&variable, &ancestors()).is_not_first()
}

/// Ends this process without a message, a second later: the launcher ends all processes once one has failed, and the one with
/// the message must come first.
fn leave(status: i32) -> ! {
    std::thread::sleep(Duration::from_secs(1));
    std::process::exit(status)
}

/// Ends this process before it has become a rank. `speaks` says whether it is the one of its launcher's that prints the error.
fn refuse(error: &Error, speaks: bool) -> ExitCode {
    let status = error.status();
    if !speaks {
        leave(status.into())
    }
    message::print(format_args!("hpml: {error}"));
    message::wait_until_read();
    ExitCode::from(status)
}

/// Initializes MPI, runs `work` on every rank, ends the job and returns its exit status: 0, or the status of the error.
///
/// Ranks that do not meet within `launch.comm_timeout_s` end the job; a limit of zero waits for ever. Processes that were
/// started together and did not become ranks of one job are an error unless `launch.allow_singletons` is set.
///
/// # Panics
/// Panics if MPI was initialized before.
pub fn run(launch: &Launch, work: impl FnOnce(&mut Job) -> Result<()>) -> ExitCode {
    let surroundings = Surroundings::look();
    let variables = Variables::new(&variable, &surroundings.ancestors);
    if let Err(error) = check_library() {
        // Before MPI is called: what it would do with another library's constants nobody knows.
        return refuse(&error, !variables.is_not_first());
    }
    let library = library_version();
    tuning::tune(&library, &surroundings); // sets the environment, so before there is another thread
    if let Some(warning) = variables.warning_before_start(&library) {
        message::print(format_args!("hpml: {warning}"));
    }
    let singleton = variables.singleton(&library); // now: Open MPI sets the variables of a process that is alone
    let limit = launch.comm_timeout();
    let watchdog = watchdog::meeting("met", limit);
    let universe = Universe::start().expect("MPI is initialized once, here");
    let communicator = Arc::new(universe.world());
    let rank = communicator.rank();
    let is_alone = communicator.size() == 1 && !launch.allow_singletons;
    if let Some(Singleton { error, speaks }) = singleton.filter(|_| is_alone) {
        return refuse(&error, speaks);
    }
    logger::start(rank);
    panic_hook::set(rank);
    let result = Job::new(communicator, surroundings, watchdog).and_then(|mut job| work(&mut job));
    let status = result.as_ref().map_or_else(Error::status, |()| 0);
    match result {
        Ok(()) | Err(Error::OnRank { .. }) => {}
        // All ranks know of it and are here: the one that has it prints it.
        Err(Error::Agreed(error)) => {
            message::print(format_args!("hpml: {error}"));
            message::wait_until_read(); // a launcher that sees another rank's status first may end the job
        }
        // All ranks stopped together.
        Err(error @ Error::Stopped { .. }) => {
            if rank == 0 {
                message::print(format_args!("hpml: {error}"));
            }
        }
        Err(error) => {
            // Where all ranks fail alike, at the same time, the first one's message suffices: it ends the others.
            std::thread::sleep(Duration::from_millis(100) * rank.min(10) as u32);
            message::print(format_args!("hpml: rank {rank}: {error}"));
            Communicator::abort(status.into())
        }
    }
    let watchdog = watchdog::meeting("all ended", limit);
    drop(universe); // waits for the other ranks
    drop(watchdog);
    ExitCode::from(status)
}

/// Value of the environment variable `name`, if it is set and valid Unicode.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
