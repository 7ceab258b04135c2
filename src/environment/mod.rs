//! The environment of a run, for `/environment` in its run file: versions, ranks, hardware, command, time. In: the job. Out: the
//! attributes and the table. Measures nothing.

mod levels;
mod machine;
mod network;

use crate::collective::library_version;
use crate::data::Datasets;
use crate::device::gpu_clocks;
use crate::launch::{Job, Place};
use crate::metrics::definitions;
use crate::store::STARTED;
use crate::sys::LIBTORCH_VERSION;
use crate::table::{Attribute, Schema, Table};
pub use levels::{describe_levels, empty_levels, levels};
pub use network::{describe_crossovers, network};

/// Attribute of `/environment`: number of hosts.
pub const HOSTS: &str = "hosts";

/// Attributes of `/environment`: start, versions, ranks, data set, command and Slurm job, and rank 0's host: processor, memory, kernel,
/// container, clocks of its GPU. `datasets` is `None` for commands that read no data.
pub fn attributes(job: &Job, datasets: Option<&Datasets>) -> Vec<(String, Attribute)> {
    let text = |name: &str, value: &str| (name.to_owned(), Attribute::Text(value.to_owned()));
    let mut attributes = vec![
        text(STARTED, &job.started),
        text("hpml", env!("CARGO_PKG_VERSION")),
        text("git_commit", env!("HPML_GIT_COMMIT")),
        text("libtorch", LIBTORCH_VERSION),
        text("mpi", &library_version()),
        ("world_size".into(), Attribute::Int(job.world_size as i64)),
        (HOSTS.into(), Attribute::Int(job.hosts() as i64)),
        text("cpu", &cpu_model()),
        text("command", &std::env::args().collect::<Vec<_>>().join(" ")),
    ];
    attributes.extend(job.places.first().map(|place| ("cores".into(), Attribute::Int(place.cores_of_host as i64))));
    attributes.extend(machine::attributes());
    attributes.extend(gpu_clocks(job.target, &job.gpu_uuid).map(|clocks| text("gpu_clocks", &clocks)));
    attributes.extend(machine::transport());
    attributes.extend(datasets.map(|datasets| text("data", &datasets.name)));
    for variable in ["SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_JOB_NODELIST"] {
        attributes.extend(std::env::var(variable).ok().map(|value| text(&variable.to_lowercase(), &value)));
    }
    attributes
}

/// Table `/environment`: one row per rank.
fn ranks<'a>() -> Schema<(usize, &'a Place)> {
    Schema::new("environment", "rank")
        .count(&definitions::RANK, |(rank, _): &(usize, &Place)| *rank)
        .text(("host", "1", "host name"), |(_, place)| place.host.clone())
        .count(("local_rank", "1", "number of the rank on its host, from 0"), |(_, place)| place.local_rank)
        .text(("device", "1", "device that the rank computes on"), |(_, place)| place.device.clone())
        .count(("threads", "1", "compute threads"), |(_, place)| place.threads)
        .count(("cores", "1", "cores that the rank may use"), |(_, place)| place.cores)
        .text(("cpus", "1", "numbers of these cores on the host, as Linux writes them: 0-3,8"), |(_, place)| {
            place.cpus.clone()
        })
        .count(("host_cores", "1", "cores of the host"), |(_, place)| place.cores_of_host)
        .text(("bound_by", "1", "what keeps the rank's cores from the other ranks"), |(_, place)| place.bound.as_str())
}

/// The table without rows, for its documentation.
pub fn empty_table() -> Table {
    ranks().table(&[])
}

/// The rows of [`ranks`] for this job.
pub fn table(job: &Job) -> Table {
    ranks().table(&job.places.iter().enumerate().collect::<Vec<_>>())
}

/// Model name of this host's processor; `unknown` if the system does not report it.
fn cpu_model() -> String {
    let mut system = sysinfo::System::new();
    system.refresh_cpu_list(sysinfo::CpuRefreshKind::nothing());
    let name = system.cpus().first().map_or("", |cpu| cpu.brand().trim());
    if name.is_empty() { "unknown".into() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_has_the_name_that_linux_gives_it() {
        let known = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = known.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        assert!(name.is_none_or(|(_, name)| cpu_model() == name.trim()), "{}", cpu_model());
    }
}
