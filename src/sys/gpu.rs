//! GPUs without linking their libraries: the driver and libtorch's CUDA part are opened on first use, streams and events come
//! from libtorch.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr::NonNull;
use std::sync::Arc;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use super::libtorch::failure;
use crate::error::{Error, Result};
use crate::units::{Bytes, Second};

/// NVIDIA's driver library, with CUDA's driver API.
pub(super) const DRIVER: &str = "libcuda.so.1";
/// libtorch's part for CUDA, which loads cuDNN, cuBLAS and NCCL.
const LIBTORCH_CUDA: &str = "libtorch_cuda.so";

/// A GPU that this process may use, as the driver shows it (after `CUDA_VISIBLE_DEVICES`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// UUID of the GPU, equal in every process.
    pub uuid: [u8; 16],
    /// Name of the GPU, for example `NVIDIA H200`.
    pub name: String,
}

/// Reason why this process cannot use a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Missing thing and its mend, without a full stop.
    pub reason: String,
    /// Whether the host has a GPU all the same, or a driver that fails, so that it may have one.
    pub has_gpu: bool,
}

/// The GPUs that this process may use, in the driver's order.
///
/// # Errors
/// Returns what is missing if there is no driver, no GPU, or a driver that fails.
pub fn gpus() -> Result<Vec<Gpu>, Missing> {
    let none = |reason: String| Missing { reason, has_gpu: false };
    let broken = |reason: String| Missing { reason, has_gpu: true };
    let library = open(DRIVER, RTLD_NOW).map_err(|reason| none(format!("no NVIDIA driver here ({reason})")))?;
    // SAFETY: the names and signatures are those of CUDA's driver API, cuda.h; pointers are to live variables of the sizes
    // that it writes. The library stays open.
    unsafe {
        let status = |call: &str, code: c_int| match code {
            0 => Ok(()),
            100 => {
                let reason =
                    "the NVIDIA driver shows no GPU (CUDA_VISIBLE_DEVICES empty, or no kernel module: nvidia-smi)";
                Err(none(reason.into()))
            }
            code => Err(broken(format!("the NVIDIA driver does not work ({call}: error {code}); try nvidia-smi"))),
        };
        let missing = |error: libloading::Error| broken(format!("the NVIDIA driver is too old ({error})"));
        let init = library.get::<unsafe extern "C" fn(c_uint) -> c_int>(b"cuInit\0").map_err(missing)?;
        let count = library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"cuDeviceGetCount\0").map_err(missing)?;
        let get = library.get::<unsafe extern "C" fn(*mut c_int, c_int) -> c_int>(b"cuDeviceGet\0").map_err(missing)?;
        let name = library
            .get::<unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int>(b"cuDeviceGetName\0")
            .map_err(missing)?;
        let uuid =
            library.get::<unsafe extern "C" fn(*mut u8, c_int) -> c_int>(b"cuDeviceGetUuid\0").map_err(missing)?;
        status("cuInit", init(0))?;
        let mut devices = 0;
        status("cuDeviceGetCount", count(&mut devices))?;
        let mut found = Vec::new();
        for index in 0..devices {
            let (mut device, mut text, mut bytes) = (0, [0 as c_char; 128], [0u8; 16]);
            status("cuDeviceGet", get(&mut device, index))?;
            status("cuDeviceGetName", name(text.as_mut_ptr(), text.len() as c_int - 1, device))?;
            status("cuDeviceGetUuid", uuid(bytes.as_mut_ptr(), device))?;
            found.push(Gpu { uuid: bytes, name: CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned() });
        }
        std::mem::forget(library);
        match found.is_empty() {
            true => status("cuDeviceGetCount", 100).map(|()| found),
            false => Ok(found),
        }
    }
}

/// Opens libtorch's CUDA part. Call before this process makes its first tensor: later libtorch ignores it.
///
/// # Errors
/// Returns what is missing if this libtorch has no such part, or a library that it needs is not installed.
pub fn open_libtorch_cuda() -> Result<(), String> {
    let library = open(LIBTORCH_CUDA, RTLD_NOW | RTLD_GLOBAL)
        .map_err(|reason| format!("this libtorch has no part for CUDA, or what that needs is not here ({reason})"))?;
    std::mem::forget(library);
    Ok(())
}

/// Opens a shared library, found like the libraries that a program is linked to.
///
/// # Errors
/// Returns the first line of the loader's message.
pub fn open(name: &str, flags: c_int) -> Result<Library, String> {
    // SAFETY: runs the library's initializers: NVIDIA's and libtorch's own, which make no demands on who loads them.
    unsafe { Library::open(Some(name), flags) }.map_err(|error| {
        let reason = match std::error::Error::source(&error) {
            Some(source) => source.to_string(),
            None => error.to_string(),
        };
        reason.lines().next().unwrap_or_default().to_owned()
    })
}

unsafe extern "C" {
    fn hpml_gpu_use(index: c_int) -> bool;
    fn hpml_fast_kernels(tf32: bool);
    fn hpml_gpu_give_back();
    fn hpml_gpu_memory(index: c_int, forget: bool, most: *mut u64, all: *mut u64) -> bool;
    fn hpml_range(name: *const c_char);
    fn hpml_stream(index: c_int, own: bool) -> *mut c_void;
    fn hpml_stream_free(stream: *mut c_void);
    fn hpml_stream_handle(stream: *mut c_void) -> *mut c_void;
    fn hpml_stream_synchronize(stream: *mut c_void) -> bool;
    fn hpml_stream_wait(stream: *mut c_void, event: *mut c_void) -> bool;
    fn hpml_event(stream: *mut c_void) -> *mut c_void;
    fn hpml_event_free(event: *mut c_void);
    fn hpml_event_happened(event: *mut c_void) -> c_int;
    fn hpml_event_synchronize(event: *mut c_void) -> bool;
    fn hpml_event_elapsed(from: *mut c_void, to: *mut c_void) -> f64;
}

fn failed<T>() -> Result<T> {
    Err(Error::Gpu { reason: failure() })
}

fn ok(done: bool) -> Result<()> {
    if done { Ok(()) } else { failed() }
}

/// Makes GPU `index` the current one of this thread. cuDNN's benchmark mode picks the fastest convolution for each shape; with
/// `tf32`, float32 is multiplied with 10 bits of mantissa.
///
/// # Errors
/// Returns [`Error::Gpu`] if the GPU cannot be used.
pub fn use_gpu(index: usize, tf32: bool) -> Result<()> {
    // SAFETY: both take plain values.
    unsafe {
        ok(hpml_gpu_use(index as c_int))?;
        hpml_fast_kernels(tf32);
    }
    Ok(())
}

/// Releases cached memory that no tensor uses to the GPU. Does nothing without a GPU.
pub fn give_back_memory() {
    // SAFETY: no arguments.
    unsafe { hpml_gpu_give_back() };
}

/// Memory of a GPU, by libtorch's allocator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Peak of the bytes that tensors of this process have used.
    pub most: Bytes,
    /// Bytes of the whole GPU.
    pub all: Bytes,
}

/// Memory of GPU `index`. `forget` resets the peak first.
///
/// # Errors
/// Returns [`Error::Gpu`] if the GPU has failed.
pub fn memory(index: usize, forget: bool) -> Result<Memory> {
    let mut memory = Memory { most: 0, all: 0 };
    // SAFETY: writes two numbers.
    ok(unsafe { hpml_gpu_memory(index as c_int, forget, &mut memory.most, &mut memory.all) })?;
    Ok(memory)
}

/// Guard of an NVTX range: a part of the time line that Nsight shows under a name, which ends when this is dropped.
pub struct Range(());

/// Begins an NVTX range called `name`. Does nothing without a GPU.
pub fn range(name: &CStr) -> Range {
    // SAFETY: the text ends in a 0 and is copied.
    unsafe { hpml_range(name.as_ptr()) };
    Range(())
}

impl Drop for Range {
    fn drop(&mut self) {
        // SAFETY: ends what `range` began; they are dropped in turn.
        unsafe { hpml_range(std::ptr::null()) };
    }
}

/// A CUDA stream: work that a GPU does in order.
#[derive(Clone)]
pub struct Stream(Arc<Raw>);

/// An object of libtorch, freed when it is dropped.
struct Raw {
    pointer: NonNull<c_void>,
    free: unsafe extern "C" fn(*mut c_void),
}

// SAFETY: c10's streams and events belong to no thread; no function here changes one that others can see.
unsafe impl Send for Raw {}
// SAFETY: as above.
unsafe impl Sync for Raw {}

impl Raw {
    fn new(pointer: *mut c_void, free: unsafe extern "C" fn(*mut c_void)) -> Result<Raw> {
        NonNull::new(pointer).map_or_else(failed, |pointer| Ok(Raw { pointer, free }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // SAFETY: made by the function that belongs to this one, and freed once.
        unsafe { (self.free)(self.pointer.as_ptr()) };
    }
}

impl Stream {
    /// The current stream of GPU `index`, on which libtorch computes tensors.
    ///
    /// # Errors
    /// Returns [`Error::Gpu`] if the GPU has failed.
    pub fn of_tensors(index: usize) -> Result<Stream> {
        // SAFETY: returns an object of ours, or null.
        Ok(Stream(Arc::new(Raw::new(unsafe { hpml_stream(index as c_int, false) }, hpml_stream_free)?)))
    }

    /// A new stream of high priority on GPU `index`.
    ///
    /// # Errors
    /// Returns [`Error::Gpu`] if the GPU has failed.
    pub fn urgent(index: usize) -> Result<Stream> {
        // SAFETY: as above.
        Ok(Stream(Arc::new(Raw::new(unsafe { hpml_stream(index as c_int, true) }, hpml_stream_free)?)))
    }

    /// The stream's `cudaStream_t`; null is CUDA's default stream.
    pub fn handle(&self) -> *mut c_void {
        // SAFETY: a stream of ours.
        unsafe { hpml_stream_handle(self.0.pointer.as_ptr()) }
    }

    /// Synchronizes: waits until all work enqueued on the stream is complete.
    ///
    /// # Errors
    /// Returns [`Error::Gpu`] if the GPU has failed.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: a stream of ours.
        ok(unsafe { hpml_stream_synchronize(self.0.pointer.as_ptr()) })
    }

    /// Makes all work that is enqueued on the stream later wait for `event`; the host does not wait.
    ///
    /// # Errors
    /// Returns [`Error::Gpu`] if the GPU has failed.
    pub fn wait_for(&self, event: &Event) -> Result<()> {
        // SAFETY: a stream and an event of ours.
        ok(unsafe { hpml_stream_wait(self.0.pointer.as_ptr(), event.0.pointer.as_ptr()) })
    }

    /// Records an event, which completes with all work enqueued on the stream before it.
    ///
    /// # Errors
    /// Returns [`Error::Gpu`] if the GPU has failed.
    pub fn event(&self) -> Result<Event> {
        // SAFETY: a stream of ours; returns an object of ours, or null.
        Ok(Event(Arc::new(Raw::new(unsafe { hpml_event(self.0.pointer.as_ptr()) }, hpml_event_free)?)))
    }
}

/// A CUDA event: a point in the order of a stream.
#[derive(Clone)]
pub struct Event(Arc<Raw>);

impl Event {
    /// Polls whether the event is complete.
    ///
    /// # Errors
    /// Returns [`Error::Gpu`] if the GPU has failed.
    pub fn is_complete(&self) -> Result<bool> {
        // SAFETY: an event of ours.
        match unsafe { hpml_event_happened(self.0.pointer.as_ptr()) } {
            1 => Ok(true),
            0 => Ok(false),
            _ => failed(),
        }
    }

    /// Waits until the event is complete.
    ///
    /// # Errors
    /// Returns [`Error::Gpu`] if the GPU has failed.
    pub fn wait(&self) -> Result<()> {
        // SAFETY: an event of ours.
        ok(unsafe { hpml_event_synchronize(self.0.pointer.as_ptr()) })
    }

    /// Seconds since `earlier`; both must be complete. CUDA's clock has a resolution of half a microsecond.
    ///
    /// # Errors
    /// Returns [`Error::Gpu`] if the GPU has failed.
    pub fn since(&self, earlier: &Event) -> Result<Second> {
        // SAFETY: events of ours.
        match unsafe { hpml_event_elapsed(earlier.0.pointer.as_ptr(), self.0.pointer.as_ptr()) } {
            milliseconds if milliseconds >= 0.0 => Ok(milliseconds / 1e3),
            _ => failed(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_here_is_named() {
        let message = open("libhpml_is_not_here.so", RTLD_NOW).err().unwrap();
        assert!(message.contains("libhpml_is_not_here.so"), "{message}");
        let _ = range(c"a part without a GPU costs nothing and does nothing");
        give_back_memory();
    }
}
