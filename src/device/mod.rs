//! The device of a rank: CPU cores, or a GPU of its own. In: `launch.device` and what the host has. Out: a [`Target`], and
//! the [`Clock`] that times the work done there. Knows no messages and no networks.
//!
//! Two ranks on one host with one GPU each:
//! ```no_run
//! use hpml::config::{Device, Launch};
//! use hpml::device::{look, offer};
//!
//! let found = look(Device::Auto); // each rank's own; the ranks of a host gather it as text
//! let offer = offer(&Launch::default(), "node01", &[0, 1], &[found.clone(), found]);
//! println!("{:?}", offer.targets?);
//! # Ok::<(), String>(())
//! ```

mod choose;
mod clock;
mod monitor;
mod recorder;
mod timeline;

pub use choose::{Choice, Found, Offers, choose, look, offer};
pub use clock::{Clock, Moment, seconds_between};
pub use monitor::{GpuMonitor, Reading, gpu_clocks};
pub use recorder::{Message, Open, StepRecorder};
pub use timeline::{Lane, Name, TraceSpan, origin, since_origin};

use crate::error::Result;
use crate::sys::gpu;

/// The device that a rank computes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// CPU cores.
    Cpu,
    /// One of the GPUs that this process sees.
    Gpu {
        /// Index of the GPU among those that the process sees.
        index: usize,
        /// Whether another rank uses it, too.
        shared: bool,
    },
    /// CPU cores that are treated as a GPU: the code for GPUs with every tensor on the host, for tests without a GPU.
    Emulated,
}

impl Target {
    /// Device of this rank's tensors.
    pub fn device(self) -> tch::Device {
        match self {
            Target::Cpu | Target::Emulated => tch::Device::Cpu,
            Target::Gpu { index, .. } => tch::Device::Cuda(index),
        }
    }

    /// Device of the tensors if its memory is not the host's, or is treated so; `None` for CPU cores.
    pub fn own_memory(self) -> Option<tch::Device> {
        self.is_gpu().then(|| self.device())
    }

    /// Whether this is a GPU, or is treated as one.
    pub fn is_gpu(self) -> bool {
        self != Target::Cpu
    }

    /// Makes this device the current one of the process. With `tf32`, float32 may be multiplied with 10 bits of mantissa.
    ///
    /// # Errors
    /// Returns [`Error::Gpu`](crate::error::Error::Gpu) if the GPU cannot be used.
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
