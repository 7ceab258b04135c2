//! Where a rank computes: CPU cores, or a GPU of its own. In: `launch.device` and what the host has. Out: a [`Target`], and
//! the [`Clock`] that times what is done there. Knows no messages and no networks.

mod choose;
mod clock;
mod monitor;

pub use choose::{Choice, Found, assign, look};
pub use clock::{Clock, Moment, StepRecorder, seconds_between};
pub use monitor::{GpuMonitor, Reading};

use crate::error::Result;
use crate::sys::gpu;

/// Where a rank computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// CPU cores.
    Cpu,
    /// One of the GPUs that this process sees.
    Gpu {
        /// Its number among them.
        index: usize,
        /// Whether another rank has it too.
        shared: bool,
    },
    /// CPU cores that are treated as a GPU: its code with every tensor on the host, for tests on machines without one.
    Emulated,
}

impl Target {
    /// Where tensors live.
    pub fn device(self) -> tch::Device {
        match self {
            Target::Cpu | Target::Emulated => tch::Device::Cpu,
            Target::Gpu { index, .. } => tch::Device::Cuda(index),
        }
    }

    /// The device whose memory is not the host's, or is treated so; `None`: CPU cores.
    pub fn own_memory(self) -> Option<tch::Device> {
        self.is_gpu().then(|| self.device())
    }

    /// Whether its memory is not the host's, or is treated so.
    pub fn is_gpu(self) -> bool {
        self != Target::Cpu
    }

    /// Makes this process work there. `tf32`: float32 may be multiplied with 10 bits of mantissa.
    pub fn enter(self, tf32: bool) -> Result<()> {
        match self {
            Target::Cpu | Target::Emulated => Ok(()),
            Target::Gpu { index, .. } => gpu::use_gpu(index, tf32),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, out: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Target::Cpu => out.write_str("cpu"),
            Target::Gpu { index, .. } => write!(out, "cuda:{index}"),
            Target::Emulated => out.write_str("cpu as a GPU"),
        }
    }
}
