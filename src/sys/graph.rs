//! CUDA graphs: work of a GPU, captured once and replayed in one call.

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;

use super::libtorch::failure;
use super::version::check_libtorch;
use crate::error::{Error, Result};

unsafe extern "C" {
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
    /// Returns [`Error::Libtorch`] if the libtorch that is loaded is not the one that graph.cpp was compiled for, and
    /// [`Error::Gpu`] if it has no part for CUDA.
    pub fn new() -> Result<CudaGraphPool> {
        check_libtorch()?;
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
