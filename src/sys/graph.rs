//! CUDA graphs: what is asked of a GPU, recorded once and asked again in one call.

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;

use super::libtorch::failure;
use crate::error::{Error, Result};

unsafe extern "C" {
    fn hpml_graph_pool(pool: *mut u64) -> bool;
    fn hpml_graph_begin(index: c_int, pool: *const u64) -> *mut c_void;
    fn hpml_graph_end(graph: *mut c_void) -> bool;
    fn hpml_graph_replay(graph: *mut c_void) -> bool;
    fn hpml_graph_free(graph: *mut c_void);
}

fn failed() -> Error {
    Error::Gpu { reason: format!("{} (launch.cuda_graphs = false does without a recording)", failure()) }
}

fn ok(done: bool) -> Result<()> {
    if done { Ok(()) } else { Err(failed()) }
}

/// Memory that recordings share which are replayed in the order in which they were made.
pub struct GraphPool([u64; 2]);

impl GraphPool {
    /// A new one. Error: this libtorch records nothing.
    pub fn new() -> Result<GraphPool> {
        let mut pool = [0; 2];
        // SAFETY: writes two numbers.
        ok(unsafe { hpml_graph_pool(pool.as_mut_ptr()) })?;
        Ok(GraphPool(pool))
    }
}

/// A recording. Tensors that were made in it live in its pool, and hold what the last replay has given them.
pub struct Graph(NonNull<c_void>);

impl Graph {
    /// Records what `work` asks of GPU `index`, which is not done until it is replayed: `work` must not wait for it, nor read a
    /// number. Error: it has.
    pub fn record<T>(index: usize, pool: &GraphPool, work: impl FnOnce() -> T) -> Result<(Graph, T)> {
        // SAFETY: reads two numbers; returns an object of ours, or null.
        let begun = NonNull::new(unsafe { hpml_graph_begin(index as c_int, pool.0.as_ptr()) });
        let graph = Graph(begun.ok_or_else(failed)?);
        let result = work(); // if it panics, the recording ends with `graph`
        // SAFETY: an object of ours that is recording.
        ok(unsafe { hpml_graph_end(graph.0.as_ptr()) })?;
        Ok((graph, result))
    }

    /// Asks the GPU for all of it, after what it was asked for so far.
    pub fn replay(&self) -> Result<()> {
        // SAFETY: an object of ours whose recording has ended.
        ok(unsafe { hpml_graph_replay(self.0.as_ptr()) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: an object of ours, freed once.
        unsafe { hpml_graph_free(self.0.as_ptr()) };
    }
}
