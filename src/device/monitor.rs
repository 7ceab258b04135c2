//! Utilization, memory and energy of a GPU, by NVIDIA's management library NVML (opened at run time).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::Clock;
use nvml_wrapper::error::NvmlError;

use super::Target;
use crate::units::Bytes;

/// Interval between two samples. NVML's own utilization is a mean over 1/6 s to 1 s.
const INTERVAL: Duration = Duration::from_millis(100);

/// Figures of one GPU since the previous reading.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Reading {
    /// Share of the time in which any kernel ran, in percent.
    pub utilization: f64,
    /// Peak of the bytes in use, by any process.
    pub memory: Bytes,
    /// Energy of the whole GPU, in joules.
    pub joules: f64,
}

/// Samples a GPU on a thread of its own until it is dropped.
pub struct GpuMonitor {
    nvml: Arc<Nvml>,
    uuid: String,
    samples: Arc<Mutex<Samples>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// Energy counter at the previous reading, in millijoules.
    before: u64,
}

/// Samples since the previous reading.
#[derive(Default)]
struct Samples {
    count: u32,
    /// Sum of the utilizations, in percent.
    sum: u32,
    /// Peak of the memory in use.
    memory: Bytes,
}

impl GpuMonitor {
    /// Starts to sample the GPU `target` with the given `uuid`. Returns `None` for CPU cores, and, with a warning, if NVML is
    /// missing or refuses.
    pub fn start(target: Target, uuid: &[u8; 16]) -> Option<GpuMonitor> {
        if !target.is_gpu() {
            return None;
        }
        match GpuMonitor::of(&text_of(uuid)) {
            Ok(monitor) => Some(monitor),
            Err(error) if target == Target::Emulated => {
                log::debug!("GPU utilization and energy are not recorded: {error}");
                None
            }
            Err(error) => {
                log::warn!("GPU utilization and energy are not recorded: NVML: {error}; try nvidia-smi");
                None
            }
        }
    }

    fn of(uuid: &str) -> Result<GpuMonitor, NvmlError> {
        let nvml = Arc::new(Nvml::init()?);
        let before = nvml.device_by_uuid(uuid)?.total_energy_consumption()?;
        let (samples, stop) = (Arc::new(Mutex::new(Samples::default())), Arc::new(AtomicBool::new(false)));
        let watch = {
            let (nvml, uuid, samples, stop) = (nvml.clone(), uuid.to_owned(), samples.clone(), stop.clone());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    // A failed sample is left out.
                    let _ = sample(&nvml, &uuid, &samples);
                    std::thread::park_timeout(INTERVAL);
                }
            }
        };
        let thread = std::thread::Builder::new().name("hpml-monitor".into()).spawn(watch).ok();
        Ok(GpuMonitor { nvml, uuid: uuid.to_owned(), samples, stop, thread, before })
    }

    /// Figures since the previous reading, or since the start.
    pub fn read(&mut self) -> Reading {
        let _ = sample(&self.nvml, &self.uuid, &self.samples);
        let samples = std::mem::take(&mut *self.samples.lock().expect("no thread panics while it samples"));
        let device = self.nvml.device_by_uuid(self.uuid.as_str());
        let now = device.and_then(|device| device.total_energy_consumption()).unwrap_or(self.before);
        let before = std::mem::replace(&mut self.before, now);
        Reading {
            utilization: f64::from(samples.sum) / f64::from(samples.count.max(1)),
            memory: samples.memory,
            joules: now.saturating_sub(before) as f64 / 1e3,
        }
    }
}

/// Clocks now and at most of the GPU `target` with the given `uuid`: `SM 1755 of 1980 MHz, memory 2619 of 2619 MHz`. `None` for CPU
/// cores, and if NVML does not tell.
pub fn gpu_clocks(target: Target, uuid: &[u8; 16]) -> Option<String> {
    let read = || {
        let nvml = Nvml::init()?;
        let device = nvml.device_by_uuid(text_of(uuid))?;
        let of = |clock: Clock| Ok::<_, NvmlError>([device.clock_info(clock)?, device.max_clock_info(clock)?]);
        let ([sm, most_sm], [memory, most_memory]) = (of(Clock::SM)?, of(Clock::Memory)?);
        Ok::<_, NvmlError>(format!("SM {sm} of {most_sm} MHz, memory {memory} of {most_memory} MHz"))
    };
    target.is_gpu().then(read)?.ok()
}

/// Takes one sample.
fn sample(nvml: &Nvml, uuid: &str, samples: &Mutex<Samples>) -> Result<(), NvmlError> {
    let device = nvml.device_by_uuid(uuid)?;
    let (busy, memory) = (device.utilization_rates()?.gpu, device.memory_info()?.used);
    let mut samples = samples.lock().expect("no thread panics while it samples");
    samples.count += 1;
    samples.sum += busy;
    samples.memory = samples.memory.max(memory);
    Ok(())
}

/// A UUID as NVIDIA's tools write it: `GPU-00010203-0405-0607-0809-0a0b0c0d0e0f`.
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
