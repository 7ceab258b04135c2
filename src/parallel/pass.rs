//! Forward and backward pass of one batch, launched op by op or replayed from CUDA graphs. With small batches the launches
//! dominate (a GPU finishes a kernel before the host has launched the next), so a step is captured once and replayed.

use std::rc::Rc;

use tch::Tensor;

use super::SyncBatchNorm;
use super::batch_norm::Cut;
use crate::data::Batch;
use crate::error::Result;
use crate::sys::backward_with;
use crate::sys::gpu::{self, Stream};
use crate::sys::{CudaGraph, CudaGraphPool, give_back_freed_memory};

/// One batch between its forward pass and the end of its backward pass.
pub(super) struct Pass {
    /// Logits, `[n, 10]`.
    pub logits: Tensor,
    /// Mean loss of the batch.
    pub mean_loss: Tensor,
    execution: Execution,
}

enum Execution {
    Eager(Segments),
    /// The captured graphs and the number of segments left.
    Replayed(Rc<Recorded>, usize),
}

impl Pass {
    /// Creates the pass of a batch whose forward pass was launched op by op.
    pub fn eager(segments: Segments, logits: Tensor, mean_loss: Tensor) -> Pass {
        Pass { logits, mean_loss, execution: Execution::Eager(segments) }
    }

    /// Number of segments whose backward pass is not yet launched.
    pub fn left(&self) -> usize {
        match &self.execution {
            Execution::Eager(segments) => segments.all.len(),
            Execution::Replayed(_, left) => *left,
        }
    }

    /// Launches the backward pass of the last segment left.
    ///
    /// # Errors
    /// A graph cannot be replayed.
    pub fn backward(&mut self, sync_batch_norm: Option<&SyncBatchNorm>) -> Result<()> {
        match &mut self.execution {
            Execution::Eager(segments) => {
                segments.backward(sync_batch_norm);
                Ok(())
            }
            Execution::Replayed(recorded, left) => {
                let next = recorded.backward.len() - *left;
                *left -= 1;
                recorded.backward[next].replay()
            }
        }
    }
}

/// A forward pass cut into segments, and the loss to differentiate: the batch's part of the step's loss.
pub(super) struct Segments {
    /// Segments whose backward pass is not yet launched, in forward order.
    pub all: Vec<Segment>,
    /// Loss of the batch times its share of the step.
    pub loss: Tensor,
}

/// Part of the network between two cuts, with the graph of one forward pass.
pub(super) struct Segment {
    /// Leaf detached from the graph of the segment before; `None` for the images.
    pub input: Option<Tensor>,
    /// Input of the next segment before it is detached, or the logits.
    pub output: Tensor,
    /// d loss / d `output`; `None` for the last segment, which is differentiated through the loss itself.
    pub gradient: Option<Tensor>,
    /// Cuts of the segment's synchronized batch norms.
    pub cuts: Vec<Cut>,
}

impl Segments {
    fn backward(&mut self, sync_batch_norm: Option<&SyncBatchNorm>) {
        // The segment's activations are freed on return, within the time of the backward pass.
        let mut segment = self.all.pop().expect("a segment whose backward pass is left");
        match &segment.gradient {
            None => self.loss.backward(),
            Some(gradient) => backward_with(&segment.output, gradient),
        }
        if let Some(batch_norm) = sync_batch_norm {
            batch_norm.backward(std::mem::take(&mut segment.cuts));
        }
        if let (Some(before), Some(input)) = (self.all.last_mut(), &segment.input) {
            before.gradient = Some(input.grad());
        }
    }
}

/// Passes launched op by op before one is captured: by then cuDNN has tried its algorithms.
const EAGER_PASSES: usize = 2;
/// Share of a GPU's memory above which a pass is not captured: a capture keeps its memory to itself, and batches of that size
/// keep a GPU busy without one.
const MAX_MEMORY_SHARE: f64 = 0.4;

/// Captures the passes of one batch size on a GPU as CUDA graphs.
pub(super) struct Recorder {
    index: usize,
    pool: CudaGraphPool,
    /// Images of the batch, and its share of the step.
    seen: Option<(usize, f64)>,
    times: usize,
    recorded: Option<Rc<Recorded>>,
    /// Whether a pass takes too much memory to be captured.
    too_large: bool,
}

impl Recorder {
    /// Creates the recorder for GPU `index`; `None`, with a warning, if this libtorch cannot capture.
    pub fn new(index: usize) -> Option<Recorder> {
        match CudaGraphPool::new().and_then(|pool| gpu::memory(index, true).map(|_| pool)) {
            Ok(pool) => Some(Recorder { index, pool, seen: None, times: 0, recorded: None, too_large: false }),
            Err(error) => {
                log::warn!("CUDA graphs are disabled, kernels are launched op by op: {error}");
                None
            }
        }
    }

    /// Replays the captured forward pass of `batch`, a `share` of its step; captures it first when due, from `forward` of images
    /// and labels. `None` if the batch has another size, is too large, or comes too early.
    ///
    /// # Errors
    /// The GPU cannot capture or replay an operation of the pass.
    pub fn pass(
        &mut self,
        batch: &Batch,
        share: f64,
        forward: impl FnOnce(&Tensor, &Tensor) -> Pass,
    ) -> Result<Option<Pass>> {
        if *self.seen.get_or_insert((batch.len, share)) != (batch.len, share) {
            return Ok(None); // the last batch of an epoch
        }
        self.times += 1;
        if self.times <= EAGER_PASSES || self.too_large {
            return Ok(None);
        }
        let recorded = match &self.recorded {
            Some(recorded) => recorded.clone(),
            None => {
                let memory = gpu::memory(self.index, false)?;
                if memory.most as f64 > MAX_MEMORY_SHARE * memory.all as f64 {
                    self.too_large = true;
                    return Ok(None);
                }
                // Memory that earlier passes freed is not available to the graphs' own pool unless it is returned first.
                Stream::of_tensors(self.index)?.synchronize()?;
                give_back_freed_memory();
                let recorded = Rc::new(Recorded::new(self.index, &self.pool, batch, forward)?);
                self.recorded.insert(recorded).clone()
            }
        };
        recorded.forward(batch).map(Some)
    }
}

/// CUDA graphs of the passes of one batch size.
struct Recorded {
    images: Tensor,
    labels: Tensor,
    forward: CudaGraph,
    /// Backward passes, from the last segment to the first.
    backward: Vec<CudaGraph>,
    logits: Tensor,
    mean_loss: Tensor,
}

impl Recorded {
    fn new(
        index: usize,
        pool: &CudaGraphPool,
        batch: &Batch,
        forward: impl FnOnce(&Tensor, &Tensor) -> Pass,
    ) -> Result<Recorded> {
        let (images, labels) = (batch.inputs.copy(), batch.targets.copy());
        let (graph, mut pass) = CudaGraph::record(index, pool, || forward(&images, &labels))?;
        let mut backward = Vec::new();
        while pass.left() > 0 {
            let (graph, done) = CudaGraph::record(index, pool, || pass.backward(None))?;
            done?;
            backward.push(graph);
        }
        let (logits, mean_loss) = (pass.logits.detach(), pass.mean_loss.detach());
        Ok(Recorded { images, labels, forward: graph, backward, logits, mean_loss })
    }

    fn forward(self: Rc<Recorded>, batch: &Batch) -> Result<Pass> {
        tch::no_grad(|| {
            self.images.shallow_clone().copy_(&batch.inputs);
            self.labels.shallow_clone().copy_(&batch.targets);
        });
        self.forward.replay()?;
        let (logits, mean_loss) = (self.logits.shallow_clone(), self.mean_loss.shallow_clone());
        let left = self.backward.len();
        Ok(Pass { logits, mean_loss, execution: Execution::Replayed(self, left) })
    }
}
