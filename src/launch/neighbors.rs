//! Other hpml jobs on the cores of this one. Threads that wait for each other inside a parallel region spin, and where two jobs
//! share cores each spins while the other would compute: both crawl (57 and 430 images per second where one alone made 6,611).

use procfs::process::{ProcState, Process, all_processes};

use super::cpus::Cpus;
use super::variable;

/// Process number of another job's rank that computes with several threads on any of the cores `own`, those of this process;
/// `None` if there is none, or if this job's threads do not spin (`OMP_WAIT_POLICY`). `ranks` are the processes of this job.
pub(super) fn find(ranks: &[usize], own: &Cpus) -> Option<usize> {
    let is_passive = variable("OMP_WAIT_POLICY").is_some_and(|policy| policy.trim().eq_ignore_ascii_case("passive"));
    if is_passive {
        return None;
    }
    let name = Process::myself().and_then(|process| process.stat()).ok()?.comm;
    all_processes().ok()?.flatten().find_map(|process| {
        let number = usize::try_from(process.pid()).ok()?;
        let stat = process.stat().ok().filter(|stat| stat.comm == name && stat.num_threads > 1)?;
        let runs = stat.state().is_ok_and(|state| !matches!(state, ProcState::Stopped | ProcState::Zombie));
        let shares = || process.status().is_ok_and(|status| Cpus::of(&status).overlaps(own));
        (runs && !ranks.contains(&number) && shares()).then_some(number)
    })
}

/// The warning of the other job's process `number`.
pub(super) fn warning(number: usize) -> String {
    format!(
        "another hpml job (process {number}) has threads on the same cores: both become many times slower, because threads spin \
         while they wait for each other; give each job cores of its own (taskset, mpirun --cpu-set), or start both with \
         OMP_WAIT_POLICY=passive"
    )
}
