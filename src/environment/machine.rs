//! Facts of this host and of the MPI library's way of sending, as far as the system tells: attributes of `/environment`. What it
//! does not tell has no attribute.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use procfs::Current;
use procfs::process::{MMapPath, Process};

use crate::table::Attribute;

/// Processor packages, NUMA nodes, memory, kernel, frequency governor and container of this host.
pub(super) fn attributes() -> Vec<(String, Attribute)> {
    let number = |name: &str, value: Option<u64>| Some((name.to_owned(), Attribute::Int(value?.try_into().ok()?)));
    let text = |name: &str, value: Option<String>| Some((name.to_owned(), Attribute::Text(value?)));
    let memory = procfs::Meminfo::current().ok().map(|memory| memory.mem_total);
    let limit = sysinfo::System::new_with_specifics(
        sysinfo::RefreshKind::nothing().with_memory(sysinfo::MemoryRefreshKind::nothing().with_ram()),
    )
    .cgroup_limits()
    .map(|limits| limits.total_memory)
    .filter(|limit| memory.is_some_and(|memory| *limit < memory));
    let found = [
        number("sockets", count(&of_cpus("topology/physical_package_id"))),
        number("numa_nodes", numa_nodes()),
        number("memory_bytes", memory),
        number("memory_limit_bytes", limit),
        text("kernel", sysinfo::System::kernel_version()),
        text("cpu_governor", joined(of_cpus("cpufreq/scaling_governor"))),
        text("container", container(&|name| std::env::var(name).ok(), &|path| Path::new(path).exists(), &cgroups())),
    ];
    found.into_iter().flatten().collect()
}

/// Distinct contents of the file `name` of all CPUs, as Linux keeps them. Read by hand: neither procfs nor sysinfo reads them.
fn of_cpus(name: &str) -> BTreeSet<String> {
    let numbered = |name: &str| name.strip_prefix("cpu").is_some_and(|number| number.parse::<usize>().is_ok());
    let cpus = fs::read_dir("/sys/devices/system/cpu").into_iter().flatten().flatten();
    cpus.filter(|entry| numbered(&entry.file_name().to_string_lossy()))
        .filter_map(|entry| Some(fs::read_to_string(entry.path().join(name)).ok()?.trim().to_owned()))
        .collect()
}

fn count(found: &BTreeSet<String>) -> Option<u64> {
    (!found.is_empty()).then_some(found.len() as u64)
}

fn joined(found: BTreeSet<String>) -> Option<String> {
    (!found.is_empty()).then(|| found.into_iter().collect::<Vec<_>>().join(", "))
}

fn numa_nodes() -> Option<u64> {
    let nodes = fs::read_dir("/sys/devices/system/node").ok()?.flatten();
    let numbered = |name: &str| name.strip_prefix("node").is_some_and(|number| number.parse::<usize>().is_ok());
    let nodes = nodes.filter(|entry| numbered(&entry.file_name().to_string_lossy())).count() as u64;
    (nodes > 0).then_some(nodes)
}

/// Paths of this process in its control groups.
fn cgroups() -> Vec<String> {
    let groups = Process::myself().and_then(|process| process.cgroups());
    groups.map(|groups| groups.0.into_iter().map(|group| group.pathname).collect()).unwrap_or_default()
}

/// The container that this process runs in, by the marks that container programs leave: variables, files and names of control
/// groups. `None` if there is none of these, which a container without marks shares with a bare host.
fn container(
    variable: &dyn Fn(&str) -> Option<String>,
    exists: &dyn Fn(&str) -> bool,
    cgroups: &[String],
) -> Option<String> {
    let image = |program: &str, name: &str| Some(format!("{program} {}", variable(name)?).trim().to_owned());
    let group = |part: &str| cgroups.iter().any(|path| path.contains(part));
    image("apptainer", "APPTAINER_NAME")
        .or_else(|| image("singularity", "SINGULARITY_NAME"))
        .or_else(|| variable("KUBERNETES_SERVICE_HOST").map(|_| "kubernetes".into()))
        .or_else(|| (exists("/run/.containerenv") || group("libpod")).then(|| "podman".into()))
        .or_else(|| (exists("/.dockerenv") || group("docker")).then(|| "docker".into()))
        .or_else(|| group("kubepods").then(|| "kubernetes".into()))
        .or_else(|| group("/lxc").then(|| "lxc".into()))
        .or_else(|| variable("container")) // systemd-nspawn and others
        .filter(|name| !name.is_empty())
}

/// Variables by which users and sites choose how an MPI library sends.
const CHOOSING: [&str; 14] = [
    "OMPI_MCA_pml",
    "OMPI_MCA_mtl",
    "OMPI_MCA_btl",
    "OMPI_MCA_osc",
    "UCX_TLS",
    "UCX_NET_DEVICES",
    "FI_PROVIDER",
    "I_MPI_FABRICS",
    "I_MPI_OFI_PROVIDER",
    "I_MPI_SHM",
    "MPIR_CVAR_CH4_NETMOD",
    "MPIR_CVAR_OFI_USE_PROVIDER",
    "MPICH_NETMOD",
    "MPICH_OFI_USE_PROVIDER",
];

/// Transports of this process's MPI library, as far as they show from outside: `set`, the variables that choose them (the user's, the
/// site's or hpml's); `loaded`, the transports among the libraries in this process.
pub(super) fn transport() -> Vec<(String, Attribute)> {
    let set = CHOOSING.iter().filter_map(|name| Some(format!("{name}={}", std::env::var(name).ok()?)));
    let set = set.collect::<Vec<_>>().join(" ");
    let maps = Process::myself().and_then(|process| process.maps());
    let files = maps.into_iter().flat_map(|maps| maps.0).filter_map(|map| match map.pathname {
        MMapPath::Path(path) => Some(path.file_name()?.to_string_lossy().into_owned()),
        _ => None,
    });
    let loaded: BTreeSet<String> = files.filter_map(|file| transport_in(&file)).collect();
    let text = |name: &str, value: String| (!value.is_empty()).then(|| (name.to_owned(), Attribute::Text(value)));
    let loaded = loaded.into_iter().collect::<Vec<_>>().join(" ");
    [text("mpi_transport_set", set), text("mpi_transport_loaded", loaded)].into_iter().flatten().collect()
}

/// Transport that the library `file` is: a component of Open MPI (`pml_ob1` of `mca_pml_ob1.so`; it unloads those it does not
/// choose), UCX or libfabric.
fn transport_in(file: &str) -> Option<String> {
    let stem = file.split(".so").next().filter(|stem| stem.len() < file.len())?;
    let component = stem.strip_prefix("mca_");
    let sends = |name: &&str| ["pml_", "mtl_", "btl_"].iter().any(|kind| name.starts_with(kind));
    match stem {
        "libucp" => Some("ucx".into()),
        "libfabric" => Some("libfabric".into()),
        "libpsm2" => Some("psm2".into()),
        _ => component.filter(sends).map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_known_by_their_marks() {
        let found = |variables: &[(&str, &str)], files: &[&str], cgroups: &[&str]| {
            let variable = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, v)| (*v).to_owned());
            let cgroups: Vec<String> = cgroups.iter().map(|path| (*path).to_owned()).collect();
            container(&variable, &|path| files.contains(&path), &cgroups)
        };
        assert_eq!(found(&[], &[], &["/user.slice"]), None);
        assert_eq!(found(&[("APPTAINER_NAME", "hpml.sif")], &[], &[]).unwrap(), "apptainer hpml.sif");
        assert_eq!(found(&[("SINGULARITY_NAME", "a.sif")], &["/.dockerenv"], &[]).unwrap(), "singularity a.sif");
        assert_eq!(found(&[], &["/.dockerenv"], &["/"]).unwrap(), "docker");
        assert_eq!(found(&[("container", "systemd-nspawn")], &[], &[]).unwrap(), "systemd-nspawn");
        assert_eq!(found(&[], &[], &["/kubepods/pod1"]).unwrap(), "kubernetes");
    }

    #[test]
    fn transports_are_known_by_their_libraries() {
        let names =
            ["mca_pml_ob1.so", "mca_btl_vader.so", "libucp.so.0.0.0", "mca_coll_tuned.so", "libmpi.so.40", "maps"];
        let found: Vec<String> = names.into_iter().filter_map(transport_in).collect();
        assert_eq!(found, ["pml_ob1", "btl_vader", "ucx"]);
    }
}
