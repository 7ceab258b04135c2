//! Assignment of GPUs to ranks.

use super::Target;
use crate::config::{Device, Launch};
use crate::sys::gpu::{self, Missing};

/// Variable that makes CPU cores stand for a GPU, for tests on machines without one.
const EMULATE: &str = "HPML_EMULATE_GPU";

/// Second half of a GPU's UUID, equal in all processes: its 8 random bytes distinguish the GPUs of a host.
type Uuid = u64;

/// GPUs that one process found on its host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// GPUs that the process may use, in the driver's order.
    pub gpus: Vec<Uuid>,
    /// Names and whole UUIDs of `gpus`; empty in what another rank found.
    pub about: Vec<gpu::Gpu>,
    /// Whether CPU cores stand for GPUs.
    pub emulated: bool,
    /// Reason why the process can use no GPU.
    pub missing: Option<Missing>,
}

/// Looks for GPUs, unless `device` is the CPU, and opens libtorch's CUDA part. Call before the first tensor is made.
pub fn look(device: Device) -> Found {
    if device == Device::Cpu {
        return Found::default();
    }
    if std::env::var_os(EMULATE).is_some_and(|value| value == "1") {
        return Found { emulated: true, ..Found::default() };
    }
    let unusable = |reason| Missing { reason, has_gpu: true };
    let found = gpu::gpus().and_then(|gpus| gpu::open_libtorch_cuda().map(|()| gpus).map_err(unusable));
    match found {
        Ok(gpus) => Found {
            gpus: gpus.iter().map(|gpu| u64::from_be_bytes(gpu.uuid[8..].try_into().expect("16 bytes"))).collect(),
            about: gpus,
            ..Found::default()
        },
        Err(missing) => Found { missing: Some(missing), ..Found::default() },
    }
}

/// The devices of all ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Device of each rank.
    pub targets: Vec<Target>,
    /// Reason for computing on CPU cores although there is a GPU, under `launch.device = "auto"`.
    pub fallback: Option<String>,
}

/// Chooses the device of each rank from its host and what it found there; all ranks compute the same choice.
///
/// # Errors
/// Returns what is missing for `launch.device = "cuda"`.
pub fn assign(launch: &Launch, hosts: &[String], found: &[Found]) -> Result<Choice, String> {
    let cpu = |fallback| Choice { targets: vec![Target::Cpu; hosts.len()], fallback };
    if launch.device == Device::Cpu {
        return Ok(cpu(None));
    }
    if found.iter().all(|found| found.emulated) {
        return Ok(Choice { targets: vec![Target::Emulated; hosts.len()], fallback: None });
    }
    match gpus(launch, hosts, found) {
        Ok(targets) => Ok(Choice { targets, fallback: None }),
        Err(reason) if launch.device == Device::Auto => Ok(cpu(found.iter().any(Found::has_gpu).then_some(reason))),
        Err(reason) => Err(reason),
    }
}

/// Gives each rank, in turn, the first GPU that it sees and that no earlier rank of its host has: the GPU with the number of its
/// local rank if all ranks see all GPUs, and its own if the launcher shows each rank one.
fn gpus(launch: &Launch, hosts: &[String], found: &[Found]) -> Result<Vec<Target>, String> {
    let mut indices = Vec::with_capacity(hosts.len());
    let mut taken: Vec<(&str, Uuid)> = Vec::new();
    for (rank, (host, found)) in hosts.iter().zip(found).enumerate() {
        if let Some(missing) = &found.missing {
            return Err(format!("on {host}: {}", missing.reason));
        }
        let is_taken = |uuid: &Uuid| taken.iter().filter(|(other, gpu)| *other == host && gpu == uuid).count();
        let least = found.gpus.iter().map(is_taken).min();
        let index = found.gpus.iter().position(|uuid| Some(is_taken(uuid)) == least);
        let (Some(index), Some(least)) = (index, least) else {
            return Err(format!("on {host}: rank {rank} sees no GPU"));
        };
        if least > 0 && !launch.allow_gpu_sharing {
            let ranks = hosts.iter().filter(|other| *other == host).count();
            let seen = found.gpus.len();
            return Err(format!(
                "on {host}: {ranks} ranks, but rank {rank} sees {seen} GPU(s), each taken by a rank before it: start as many \
                 ranks on a host as it has GPUs, or set launch.allow_gpu_sharing = true"
            ));
        }
        taken.push((host, found.gpus[index]));
        indices.push(index);
    }
    let shared = |own: &(&str, Uuid)| taken.iter().filter(|other| *other == own).count() > 1;
    Ok(indices.into_iter().zip(&taken).map(|(index, own)| Target::Gpu { index, shared: shared(own) }).collect())
}

impl Found {
    fn has_gpu(&self) -> bool {
        !self.gpus.is_empty() || self.missing.as_ref().is_some_and(|missing| missing.has_gpu)
    }

    /// Encodes this as a line for other ranks; [`from_text`](Self::from_text) reads it.
    pub fn to_text(&self) -> String {
        match &self.missing {
            Some(Missing { reason, has_gpu: true }) => format!("unusable {reason}"),
            Some(Missing { reason, has_gpu: false }) => format!("missing {reason}"),
            None if self.emulated => "emulated".into(),
            None => self.gpus.iter().map(|uuid| format!("{uuid:x}")).collect::<Vec<_>>().join(" "),
        }
    }

    /// Decodes another rank's [`to_text`](Self::to_text), which carries all but `about`.
    pub fn from_text(text: &str) -> Found {
        for (prefix, has_gpu) in [("missing ", false), ("unusable ", true)] {
            if let Some(reason) = text.strip_prefix(prefix) {
                return Found { missing: Some(Missing { reason: reason.into(), has_gpu }), ..Found::default() };
            }
        }
        if text == "emulated" {
            return Found { emulated: true, ..Found::default() };
        }
        let uuids = text.split_whitespace().filter_map(|hex| u64::from_str_radix(hex, 16).ok());
        Found { gpus: uuids.collect(), ..Found::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(device: Device, allow_gpu_sharing: bool) -> Launch {
        Launch { device, allow_gpu_sharing, ..Launch::default() }
    }

    fn sees(gpus: &[u8]) -> Found {
        Found { gpus: gpus.iter().map(|&gpu| u64::from(gpu)).collect(), ..Found::default() }
    }

    fn lacks(reason: &str, has_gpu: bool) -> Found {
        Found { missing: Some(Missing { reason: reason.into(), has_gpu }), ..Found::default() }
    }

    /// GPUs of these numbers, each for one rank alone.
    fn gpus_of<const N: usize>(indices: [usize; N]) -> Vec<Target> {
        indices.map(|index| Target::Gpu { index, shared: false }).into()
    }

    fn hosts(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| name.to_string()).collect()
    }

    #[test]
    fn each_rank_gets_a_gpu_of_its_own_however_the_launcher_shows_them() {
        let cuda = launch(Device::Cuda, false);
        let targets = |names: &[&str], found: &[Found]| assign(&cuda, &hosts(names), found).map(|c| c.targets);
        let all = sees(&[1, 2]);
        assert_eq!(targets(&["a", "a"], &[all.clone(), all.clone()]).unwrap(), gpus_of([0, 1]));
        // Two hosts with two GPUs each, ranks dealt in turn.
        let four = [all.clone(), all.clone(), all.clone(), all.clone()];
        assert_eq!(targets(&["a", "b", "a", "b"], &four).unwrap(), gpus_of([0, 0, 1, 1]));
        // Slurm's --gpus-per-task=1: every rank sees one, another.
        assert_eq!(targets(&["a", "a"], &[sees(&[1]), sees(&[2])]).unwrap(), gpus_of([0, 0]));
    }

    #[test]
    fn too_few_gpus_are_an_error_unless_sharing_is_allowed() {
        let one = [sees(&[1]), sees(&[1])];
        let message = assign(&launch(Device::Cuda, false), &hosts(&["a", "a"]), &one).unwrap_err();
        assert!(message.contains("2 ranks") && message.contains("allow_gpu_sharing"), "{message}");
        let choice = assign(&launch(Device::Cuda, true), &hosts(&["a", "a"]), &one).unwrap();
        assert_eq!(choice.targets, [Target::Gpu { index: 0, shared: true }; 2]);
        let three = [sees(&[1, 2]), sees(&[1, 2]), sees(&[1, 2])];
        let choice = assign(&launch(Device::Cuda, true), &hosts(&["a"; 3]), &three).unwrap();
        let gpu = |index, shared| Target::Gpu { index, shared };
        assert_eq!(choice.targets, [gpu(0, true), gpu(1, false), gpu(0, true)]);
    }

    #[test]
    fn one_rank_without_a_gpu_takes_all_to_the_cpu_or_is_named() {
        let found = [sees(&[1]), lacks("no NVIDIA driver here", false)];
        let choice = assign(&launch(Device::Auto, false), &hosts(&["a", "b"]), &found).unwrap();
        assert_eq!(choice.targets, [Target::Cpu; 2]);
        assert!(choice.fallback.unwrap().contains("on b: no NVIDIA driver"));
        let message = assign(&launch(Device::Cuda, false), &hosts(&["a", "b"]), &found).unwrap_err();
        assert!(message.contains("on b: no NVIDIA driver"), "{message}");
        let choice = assign(&launch(Device::Cpu, false), &hosts(&["a", "b"]), &found).unwrap();
        assert_eq!((choice.targets, choice.fallback), (vec![Target::Cpu; 2], None));
    }

    #[test]
    fn that_there_is_no_gpu_is_no_news_and_that_one_cannot_be_used_is() {
        let fallback = |found: &Found| {
            let found = [found.clone(), found.clone()];
            assign(&launch(Device::Auto, false), &hosts(&["a", "a"]), &found).unwrap().fallback
        };
        assert_eq!(fallback(&lacks("no NVIDIA driver here", false)), None);
        assert_eq!(fallback(&Found::default()), None);
        assert!(fallback(&lacks("the NVIDIA driver does not work", true)).unwrap().contains("does not work"));
        assert!(fallback(&sees(&[1])).unwrap().contains("2 ranks"));
    }

    #[test]
    fn what_a_rank_found_reaches_the_others() {
        let (none, broken) = (lacks("no NVIDIA driver here (x)", false), lacks("no part for CUDA", true));
        for found in [sees(&[1, 255]), none, broken, Found { emulated: true, ..Found::default() }, Found::default()] {
            assert_eq!(Found::from_text(&found.to_text()), found);
        }
    }
}
