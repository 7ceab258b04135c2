//! What a GPU takes: how busy it is, memory, energy, by NVIDIA's management library (opened at run time).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

use super::Target;
use crate::units::Bytes;

/// Between two looks. NVIDIA's own figure of use is a mean over 1/6 s to 1 s.
const LOOK: Duration = Duration::from_millis(100);

/// Of one GPU since the last reading.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Reading {
    /// Share of the time in which it computed anything, per cent.
    pub utilization: f64,
    /// The most that was taken, by whatever process.
    pub memory: Bytes,
    /// Energy of the whole GPU.
    pub joules: f64,
}

/// Watches a GPU on a thread of its own until it is dropped.
pub struct GpuMonitor {
    nvml: Arc<Nvml>,
    uuid: String,
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// Millijoules at the last reading.
    before: u64,
}

#[derive(Default)]
struct Seen {
    looks: u32,
    sum: u32,
    memory: Bytes,
}

impl GpuMonitor {
    /// Of the GPU `target`, whose UUID this is. `None` for CPU cores; and without NVIDIA's library or its permission, which
    /// is told.
    pub fn start(target: Target, uuid: &[u8; 16]) -> Option<GpuMonitor> {
        if !target.is_gpu() {
            return None;
        }
        match GpuMonitor::of(&text_of(uuid)) {
            Ok(monitor) => Some(monitor),
            Err(error) if target == Target::Emulated => {
                log::debug!("no figures of use and energy: {error}");
                None
            }
            Err(error) => {
                log::warn!("no figures of the GPU's use and energy: NVML: {error}");
                None
            }
        }
    }

    fn of(uuid: &str) -> Result<GpuMonitor, NvmlError> {
        let nvml = Arc::new(Nvml::init()?);
        let before = nvml.device_by_uuid(uuid)?.total_energy_consumption()?;
        let (seen, stop) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
        let watch = {
            let (nvml, uuid, seen, stop) = (nvml.clone(), uuid.to_owned(), seen.clone(), stop.clone());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    // One failed look is one look less.
                    let _ = look(&nvml, &uuid, &seen);
                    std::thread::park_timeout(LOOK);
                }
            }
        };
        let thread = std::thread::Builder::new().name("hpml-monitor".into()).spawn(watch).ok();
        Ok(GpuMonitor { nvml, uuid: uuid.to_owned(), seen, stop, thread, before })
    }

    /// What it took since the last reading, or since the start.
    pub fn read(&mut self) -> Reading {
        let _ = look(&self.nvml, &self.uuid, &self.seen);
        let seen = std::mem::take(&mut *self.seen.lock().expect("no thread panics while it looks"));
        let device = self.nvml.device_by_uuid(self.uuid.as_str());
        let now = device.and_then(|device| device.total_energy_consumption()).unwrap_or(self.before);
        let before = std::mem::replace(&mut self.before, now);
        Reading {
            utilization: f64::from(seen.sum) / f64::from(seen.looks.max(1)),
            memory: seen.memory,
            joules: now.saturating_sub(before) as f64 / 1e3,
        }
    }
}

fn look(nvml: &Nvml, uuid: &str, seen: &Mutex<Seen>) -> Result<(), NvmlError> {
    let device = nvml.device_by_uuid(uuid)?;
    let (busy, memory) = (device.utilization_rates()?.gpu, device.memory_info()?.used);
    let mut seen = seen.lock().expect("no thread panics while it looks");
    seen.looks += 1;
    seen.sum += busy;
    seen.memory = seen.memory.max(memory);
    Ok(())
}

/// As NVIDIA's tools write it.
fn text_of(uuid: &[u8; 16]) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let [a, b, c, d, e] = [0..4, 4..6, 6..8, 8..10, 10..16].map(|part| hex(&uuid[part]));
    format!("GPU-{a}-{b}-{c}-{d}-{e}")
}

impl Drop for GpuMonitor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_written_as_nvidias_tools_do() {
        let bytes = std::array::from_fn(|index| index as u8);
        assert_eq!(text_of(&bytes), "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f");
    }

    #[test]
    fn cpu_cores_have_no_gauge() {
        assert!(GpuMonitor::start(Target::Cpu, &[0; 16]).is_none());
    }
}
