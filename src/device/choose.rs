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

/// The GPUs of one host for the ranks there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Device of each rank, or the reason why one has none.
    pub targets: Result<Vec<Target>, String>,
    /// Whether a rank sees a GPU, or would if it worked.
    pub has_gpu: bool,
}

/// Offers of the hosts of a job, summed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offers {
    /// Whether CPU cores stand for the GPUs of every rank.
    pub are_emulated: bool,
    /// Whether every rank has a GPU.
    pub are_complete: bool,
    /// Whether a host has a GPU.
    pub have_gpu: bool,
}

/// Devices on which a job computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// CPU cores on every rank; `falls_back` if that is news, because there is a GPU.
    Cpu {
        /// Whether there is a GPU, which `launch.device = "auto"` leaves unused.
        falls_back: bool,
    },
    /// CPU cores in the place of GPUs.
    Emulated,
    /// The GPU that each rank was offered.
    Offered,
    /// None: `launch.device = "cuda"` cannot be had.
    Missing,
}

/// Offers the GPUs of `host` to its ranks, whose numbers in the job are `ranks`, given what each found.
pub fn offer(launch: &Launch, host: &str, ranks: &[usize], found: &[Found]) -> Offer {
    let targets = match found.iter().all(|found| found.emulated) {
        true => Ok(vec![Target::Emulated; ranks.len()]),
        false => gpus(launch, host, ranks, found),
    };
    Offer { targets, has_gpu: found.iter().any(Found::has_gpu) }
}

/// Chooses the devices of a job from the offers of its hosts.
pub fn choose(device: Device, offers: Offers) -> Choice {
    match device {
        Device::Cpu => Choice::Cpu { falls_back: false },
        _ if offers.are_emulated => Choice::Emulated,
        _ if offers.are_complete => Choice::Offered,
        Device::Auto => Choice::Cpu { falls_back: offers.have_gpu },
        Device::Cuda => Choice::Missing,
    }
}

/// Gives each rank, in turn, the first GPU that it sees and that no earlier rank of its host has: the GPU with the number of its
/// local rank if all ranks see all GPUs, and its own if the launcher shows each rank one.
fn gpus(launch: &Launch, host: &str, ranks: &[usize], found: &[Found]) -> Result<Vec<Target>, String> {
    let mut indices = Vec::with_capacity(ranks.len());
    let mut taken: Vec<Uuid> = Vec::new();
    for (rank, found) in ranks.iter().zip(found) {
        if let Some(missing) = &found.missing {
            return Err(format!("on {host}: {}", missing.reason));
        }
        let is_taken = |uuid: &Uuid| taken.iter().filter(|gpu| *gpu == uuid).count();
        let least = found.gpus.iter().map(is_taken).min();
        let index = found.gpus.iter().position(|uuid| Some(is_taken(uuid)) == least);
        let (Some(index), Some(least)) = (index, least) else {
            return Err(format!("on {host}: rank {rank} sees no GPU"));
        };
        if least > 0 && !launch.allow_gpu_sharing {
            return Err(format!(
                "on {host}: {} ranks, but rank {rank} sees {} GPU(s), each taken by a rank before it: start as many \
                 ranks on a host as it has GPUs, or set launch.allow_gpu_sharing = true",
                ranks.len(),
                found.gpus.len()
            ));
        }
        taken.push(found.gpus[index]);
        indices.push(index);
    }
    let shared = |own: &Uuid| taken.iter().filter(|other| *other == own).count() > 1;
    Ok(indices.into_iter().zip(&taken).map(|(index, own)| Target::Gpu { index, shared: shared(own) }).collect())
}

impl Found {
    fn has_gpu(&self) -> bool {
        !self.gpus.is_empty() || self.missing.as_ref().is_some_and(|missing| missing.has_gpu)
    }

    /// Encodes this as a line for the other ranks of the host; [`from_text`](Self::from_text) reads it.
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

    /// What a job on hosts `a`, `b`, ... with these finds of their ranks computes on, and the reason of the first that lacks a GPU.
    fn chosen(launch: &Launch, found: &[&[Found]]) -> (Choice, Vec<Result<Vec<Target>, String>>) {
        let mut next = 0;
        let offers: Vec<Offer> = found
            .iter()
            .zip(["a", "b"])
            .map(|(found, host)| {
                let ranks: Vec<usize> = (next..next + found.len()).collect();
                next += found.len();
                offer(launch, host, &ranks, found)
            })
            .collect();
        let all = Offers {
            are_emulated: found.iter().all(|found| found.iter().all(|found| found.emulated)),
            are_complete: offers.iter().all(|offer| offer.targets.is_ok()),
            have_gpu: offers.iter().any(|offer| offer.has_gpu),
        };
        (choose(launch.device, all), offers.into_iter().map(|offer| offer.targets).collect())
    }

    #[test]
    fn each_rank_gets_a_gpu_of_its_own_however_the_launcher_shows_them() {
        let cuda = launch(Device::Cuda, false);
        let all = sees(&[1, 2]);
        let two = [all.clone(), all.clone()];
        let (choice, targets) = chosen(&cuda, &[&two, &two]);
        assert_eq!((choice, targets), (Choice::Offered, vec![Ok(gpus_of([0, 1])), Ok(gpus_of([0, 1]))]));
        // Slurm's --gpus-per-task=1: every rank sees one, another.
        let offer = offer(&cuda, "a", &[0, 2], &[sees(&[1]), sees(&[2])]);
        assert_eq!(offer.targets.unwrap(), gpus_of([0, 0]));
    }

    #[test]
    fn too_few_gpus_are_an_error_unless_sharing_is_allowed() {
        let one = [sees(&[1]), sees(&[1])];
        let message = offer(&launch(Device::Cuda, false), "a", &[4, 5], &one).targets.unwrap_err();
        assert!(message.starts_with("on a: 2 ranks, but rank 5 sees 1") && message.contains("sharing"), "{message}");
        let shared = offer(&launch(Device::Cuda, true), "a", &[0, 1], &one);
        assert_eq!(shared.targets.unwrap(), [Target::Gpu { index: 0, shared: true }; 2]);
        let three = [sees(&[1, 2]), sees(&[1, 2]), sees(&[1, 2])];
        let gpu = |index, shared| Target::Gpu { index, shared };
        let shared = offer(&launch(Device::Cuda, true), "a", &[0, 1, 2], &three);
        assert_eq!(shared.targets.unwrap(), [gpu(0, true), gpu(1, false), gpu(0, true)]);
    }

    #[test]
    fn one_rank_without_a_gpu_takes_all_to_the_cpu_or_is_named() {
        let (has, lacks) = ([sees(&[1])], [lacks("no NVIDIA driver here", false)]);
        let (choice, targets) = chosen(&launch(Device::Auto, false), &[&has, &lacks]);
        assert_eq!(choice, Choice::Cpu { falls_back: true });
        assert_eq!(targets[1], Err("on b: no NVIDIA driver here".into()));
        assert_eq!(chosen(&launch(Device::Cuda, false), &[&has, &lacks]).0, Choice::Missing);
        assert_eq!(chosen(&launch(Device::Cpu, false), &[&has, &lacks]).0, Choice::Cpu { falls_back: false });
    }

    #[test]
    fn that_there_is_no_gpu_is_no_news_and_that_one_cannot_be_used_is() {
        let falls_back = |found: Found| {
            let choice = chosen(&launch(Device::Auto, false), &[&[found.clone(), found]]).0;
            choice == Choice::Cpu { falls_back: true }
        };
        assert!(!falls_back(lacks("no NVIDIA driver here", false)) && !falls_back(Found::default()));
        assert!(falls_back(lacks("the NVIDIA driver does not work", true)) && falls_back(sees(&[1])));
        let emulated = [Found { emulated: true, ..Found::default() }];
        assert_eq!(chosen(&launch(Device::Auto, false), &[&emulated, &emulated]).0, Choice::Emulated);
    }

    #[test]
    fn what_a_rank_found_reaches_the_others() {
        let (none, broken) = (lacks("no NVIDIA driver here (x)", false), lacks("no part for CUDA", true));
        for found in [sees(&[1, 255]), none, broken, Found { emulated: true, ..Found::default() }, Found::default()] {
            assert_eq!(Found::from_text(&found.to_text()), found);
        }
    }
}
