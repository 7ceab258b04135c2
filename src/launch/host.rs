//! Description of a host for users (`hpml devices`), and its name.

use super::cpus::Cpus;
use crate::collective::{built_for, check_library, library_version, nccl_version};
use crate::sys::{LIBTORCH_VERSION, gpu};

/// The host's cores, GPUs and communication libraries, one per line, with the reason for each that is missing.
pub fn describe_host() -> String {
    let mut lines = vec![
        format!("host         {}", name()),
        format!("cores        {}", Cpus::of_this_process().count()),
        format!("libtorch     {LIBTORCH_VERSION}"),
        format!("MPI          {}", library_version()),
        format!("built for    {}", built_for()),
    ];
    lines.extend(check_library().err().map(|error| format!("MPI cannot be used: {error}")));
    let gpus = gpu::gpus();
    match &gpus {
        Ok(gpus) => {
            lines.extend(gpus.iter().enumerate().map(|(index, gpu)| format!("cuda:{index}       {}", gpu.name)))
        }
        Err(missing) => lines.push(format!("GPUs         none: {}", missing.reason)),
    }
    let libtorch = gpu::open_libtorch_cuda();
    let cuda = libtorch.as_ref().map_or_else(|missing| format!("cannot be used: {missing}"), |()| "here".into());
    lines.push(format!("libtorch's part for CUDA  {cuda}"));
    lines.push(format!("NCCL         {}", nccl_version().unwrap_or_else(|missing| missing)));
    let verdict = match gpus.is_ok() && libtorch.is_ok() {
        true => "a GPU for each rank, as many ranks as GPUs",
        false => "CPU cores",
    };
    lines.push(format!("launch.device = \"auto\" takes {verdict}"));
    lines.join("\n")
}

/// Name of this host.
pub(super) fn name() -> String {
    sysinfo::System::host_name().filter(|name| !name.is_empty()).unwrap_or_else(|| "localhost".into())
}
