//! Forward and backward pass of one batch, launched op by op or replayed from CUDA graphs. With small batches the launches
//! dominate (a GPU finishes a kernel before the host has launched the next), so a step is captured once and replayed.

use std::rc::Rc;

use tch::Tensor;

use crate::data::Batch;
use crate::error::Result;
use crate::sys::gpu::{self, Stream};
use crate::sys::{CudaGraph, CudaGraphPool, GradientHooks, backward, give_back_freed_memory};

/// One batch between its forward pass and the end of its backward pass.
pub(super) struct Pass {
    /// Logits, `[n, classes]` or `[n, t, vocabulary]`.
    pub logits: Tensor,
    /// Mean loss of the batch.
    pub mean_loss: Tensor,
    execution: Execution,
}

enum Execution {
    /// Loss of the batch, and its share of the step's.
    Eager {
        loss: Tensor,
        share: f64,
    },
    Replayed(Rc<Recorded>),
}

/// Hooks on the gradients, and their receiver: the number of a parameter whose gradient is complete.
pub(super) type Listener<'a> = (&'a mut GradientHooks, &'a mut (dyn FnMut(usize) + Send));

impl Pass {
    /// Creates the pass of a batch whose forward pass was launched op by op. `loss`, the `mean_loss` times the loss scale if there is
    /// one, counts with its `share` of the step.
    pub fn eager(loss: Tensor, share: f64, logits: Tensor, mean_loss: Tensor) -> Pass {
        Pass { logits, mean_loss, execution: Execution::Eager { loss, share } }
    }

    /// Launches the backward pass; `listener` hears of each gradient.
    ///
    /// # Errors
    /// A graph cannot be replayed.
    pub fn backward(&self, listener: Option<Listener>) -> Result<()> {
        match (&self.execution, listener) {
            (Execution::Eager { loss, share }, None) => backward(loss, *share),
            (Execution::Eager { loss, share }, Some((hooks, ready))) => hooks.backward(loss, *share, ready),
            (Execution::Replayed(recorded), _) => recorded.backward.replay()?,
        }
        Ok(())
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
    /// Samples of the batch, and its share of the step.
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

    /// Replays the captured forward pass of `batch`, a `share` of its step; captures it first when due, from `forward` of inputs
    /// and targets. `None` if the batch has another size, is too large, or comes too early.
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
    inputs: Tensor,
    targets: Tensor,
    forward: CudaGraph,
    backward: CudaGraph,
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
        let (inputs, targets) = (batch.inputs.copy(), batch.targets.copy());
        let (graph, pass) = CudaGraph::record(index, pool, || forward(&inputs, &targets))?;
        let (backward, done) = CudaGraph::record(index, pool, || pass.backward(None))?;
        done?;
        let (logits, mean_loss) = (pass.logits.detach(), pass.mean_loss.detach());
        Ok(Recorded { inputs, targets, forward: graph, backward, logits, mean_loss })
    }

    fn forward(self: Rc<Recorded>, batch: &Batch) -> Result<Pass> {
        tch::no_grad(|| {
            self.inputs.shallow_clone().copy_(&batch.inputs);
            self.targets.shallow_clone().copy_(&batch.targets);
        });
        self.forward.replay()?;
        let (logits, mean_loss) = (self.logits.shallow_clone(), self.mean_loss.shallow_clone());
        Ok(Pass { logits, mean_loss, execution: Execution::Replayed(self) })
    }
}
