//! The environment of a run, for `/environment` in its run file: versions, ranks, hardware, command. In: the job. Out: the
//! attributes and the table. Measures nothing.

use crate::collective::Universe;
use crate::data::Datasets;
use crate::launch::Job;
use crate::store::{Attribute, Column, Table, Values};

/// Attributes of `/environment`: versions, ranks, data set, processor, command and Slurm job. `datasets` is `None` for commands
/// that read no data.
pub fn attributes(job: &Job, datasets: Option<&Datasets>) -> Vec<(String, Attribute)> {
    let text = |name: &str, value: &str| (name.to_owned(), Attribute::Text(value.to_owned()));
    let mut attributes = vec![
        text("hpml", env!("CARGO_PKG_VERSION")),
        text("git_commit", env!("HPML_GIT_COMMIT")),
        text("libtorch", env!("HPML_LIBTORCH_VERSION")),
        text("mpi", &Universe::library_version()),
        ("world_size".into(), Attribute::Int(job.world_size as i64)),
        text("cpu", &cpu_model()),
        text("command", &std::env::args().collect::<Vec<_>>().join(" ")),
    ];
    attributes.extend(datasets.map(|datasets| text("data", &datasets.name)));
    for variable in ["SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_JOB_NODELIST"] {
        attributes.extend(std::env::var(variable).ok().map(|value| text(&variable.to_lowercase(), &value)));
    }
    attributes
}

/// The table `/environment`: host, device, threads and cores, one row per rank.
pub fn ranks(job: &Job) -> Table {
    let integers = |values: Vec<usize>| Values::I64(values.into_iter().map(|value| value as i64).collect());
    let places = &job.places;
    let columns = vec![
        Column::new("rank", "1", "MPI rank", integers((0..job.world_size).collect())),
        Column::new("host", "1", "host name", Values::Text(places.iter().map(|place| place.host.clone()).collect())),
        Column::new(
            "local_rank",
            "1",
            "number on that host",
            integers(places.iter().map(|place| place.local_rank).collect()),
        ),
        Column::new(
            "device",
            "1",
            "where it computes",
            Values::Text(places.iter().map(|place| place.device.clone()).collect()),
        ),
        Column::new("threads", "1", "compute threads", integers(places.iter().map(|place| place.threads).collect())),
        Column::new("cores", "1", "cores that it may use", integers(places.iter().map(|place| place.cores).collect())),
        Column::new(
            "host_cores",
            "1",
            "cores of that host",
            integers(places.iter().map(|place| place.cores_of_host).collect()),
        ),
        Column::new(
            "bound_by",
            "1",
            "who keeps it from the others",
            Values::Text(places.iter().map(|place| place.bound.as_str().to_owned()).collect()),
        ),
    ];
    Table::new("environment", "rank", columns)
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
