//! CUDA graphs: work of a GPU, captured once and replayed in one call.

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;

use super::libtorch::failure;
use crate::error::{Error, Result};

/// Version (major, minor) of the libtorch whose `CUDAGraph` graph.cpp calls, by symbols and a size that no interface promises.
const WRITTEN_FOR: [u8; 2] = [2, 11];

unsafe extern "C" {
    fn hpml_libtorch_loaded() -> u64;
    fn hpml_graph_pool(pool: *mut u64) -> bool;
    fn hpml_graph_begin(index: c_int, pool: *const u64) -> *mut c_void;
    fn hpml_graph_end(graph: *mut c_void) -> bool;
    fn hpml_graph_replay(graph: *mut c_void) -> bool;
    fn hpml_graph_free(graph: *mut c_void);
}

fn failed() -> Error {
    Error::Gpu { reason: format!("{} (launch.cuda_graphs = false does without CUDA graphs)", failure()) }
}

fn ok(done: bool) -> Result<()> {
    if done { Ok(()) } else { Err(failed()) }
}

/// Memory shared by graphs that are replayed in the order of their capture.
pub struct CudaGraphPool([u64; 2]);

impl CudaGraphPool {
    /// A new, empty pool.
    ///
    /// # Errors
    /// Returns [`Error::GraphVersion`] if this libtorch, at build time or now, is not the version that graph.cpp is written for,
    /// and [`Error::Gpu`] if it has no part for CUDA.
    pub fn new() -> Result<CudaGraphPool> {
        // SAFETY: returns a number.
        let loaded = unsafe { hpml_libtorch_loaded() };
        check_version(option_env!("HPML_LIBTORCH_VERSION").unwrap_or("an unknown version"), loaded)?;
        let mut pool = [0; 2];
        // SAFETY: writes two numbers.
        ok(unsafe { hpml_graph_pool(pool.as_mut_ptr()) })?;
        Ok(CudaGraphPool(pool))
    }
}

/// A captured graph. Tensors made during its capture live in its pool, and hold the values of the last replay.
pub struct CudaGraph(NonNull<c_void>);

impl CudaGraph {
    /// Captures what `work` enqueues on GPU `index`; it runs when the graph is replayed. `work` must neither synchronize with the
    /// GPU nor copy a value to the host.
    ///
    /// # Errors
    /// Returns [`Error::Gpu`] if `work` did so, or CUDA cannot capture it.
    pub fn record<T>(index: usize, pool: &CudaGraphPool, work: impl FnOnce() -> T) -> Result<(CudaGraph, T)> {
        // SAFETY: reads two numbers; returns an object of ours, or null.
        let begun = NonNull::new(unsafe { hpml_graph_begin(index as c_int, pool.0.as_ptr()) });
        let graph = CudaGraph(begun.ok_or_else(failed)?);
        let result = work(); // if it panics, dropping `graph` ends the capture
        // SAFETY: an object of ours that is recording.
        ok(unsafe { hpml_graph_end(graph.0.as_ptr()) })?;
        Ok((graph, result))
    }

    /// Enqueues the captured work on the current stream.
    ///
    /// # Errors
    /// Returns [`Error::Gpu`] if the GPU has failed.
    pub fn replay(&self) -> Result<()> {
        // SAFETY: an object of ours whose recording has ended.
        ok(unsafe { hpml_graph_replay(self.0.as_ptr()) })
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        // SAFETY: an object of ours, freed once.
        unsafe { hpml_graph_free(self.0.as_ptr()) };
    }
}

/// Refuses a libtorch other than [`WRITTEN_FOR`]: `built` is the version of the headers, `loaded` the version that the library
/// reports (major, minor and patch in the three highest bytes; 0 if it reports none).
fn check_version(built: &str, loaded: u64) -> Result<()> {
    let [major, minor, patch, ..] = loaded.to_be_bytes();
    let [wanted_major, wanted_minor] = WRITTEN_FOR;
    if [major, minor] == WRITTEN_FOR && built.starts_with(&format!("{wanted_major}.{wanted_minor}.")) {
        return Ok(());
    }
    let loaded =
        if loaded == 0 { "one that does not report its version".into() } else { format!("{major}.{minor}.{patch}") };
    Err(Error::GraphVersion { expected: format!("{wanted_major}.{wanted_minor}"), built: built.into(), loaded })
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn version(major: u64, minor: u64, patch: u64) -> u64 {
        major << 56 | minor << 48 | patch << 40
    }

    #[test]
    fn another_libtorch_than_the_graphs_are_written_for_is_refused_by_version() {
        for patch in [0, 1, 9] {
            assert!(check_version(&format!("2.11.{patch}"), version(2, 11, patch)).is_ok());
        }
        for (built, loaded, named) in [
            ("2.10.0", version(2, 10, 0), "2.10.0"),
            ("2.11.0", version(2, 12, 1), "2.12.1"),
            ("2.12.1", version(2, 11, 0), "built with 2.12.1"),
            ("2.110.0", version(2, 11, 0), "built with 2.110.0"),
            ("2.11.0", version(3, 11, 0), "3.11.0"),
            ("2.11.0", 0, "does not report"),
        ] {
            let message = check_version(built, loaded).unwrap_err().to_string();
            assert!(message.contains("libtorch 2.11 ") && message.contains(named), "{message}");
        }
    }

    #[test]
    fn the_loaded_libtorch_says_the_version_of_the_headers() {
        // SAFETY: returns a number.
        let [major, minor, patch, ..] = unsafe { hpml_libtorch_loaded() }.to_be_bytes();
        assert_eq!(Some(&*format!("{major}.{minor}.{patch}")), option_env!("HPML_LIBTORCH_VERSION"));
    }
}
