//! One batch's way through the network and back, asked of the device call by call, or replayed: at few images a GPU is done with
//! a kernel before the host has asked for the next, so that what a step asks for is recorded once (a CUDA graph).

use std::rc::Rc;

use tch::Tensor;

use super::SyncBatchNorm;
use super::batch_norm::Cut;
use crate::data::Batch;
use crate::error::Result;
use crate::sys::backward_with;
use crate::sys::gpu::{self, Stream};
use crate::sys::{CudaGraph, CudaGraphPool, give_back_freed_memory};

/// One batch on its way.
pub(super) struct Pass {
    /// `[n, 10]`.
    pub logits: Tensor,
    /// The batch's mean loss.
    pub mean_loss: Tensor,
    way: Way,
}

enum Way {
    Asked(Segments),
    /// And how many segments are left.
    Replayed(Rc<Recorded>, usize),
}

impl Pass {
    /// Whose forward pass has been asked for.
    pub fn asked(segments: Segments, logits: Tensor, mean_loss: Tensor) -> Pass {
        Pass { logits, mean_loss, way: Way::Asked(segments) }
    }

    /// How many segments' backward pass is still to come.
    pub fn left(&self) -> usize {
        match &self.way {
            Way::Asked(segments) => segments.all.len(),
            Way::Replayed(_, left) => *left,
        }
    }

    /// The backward pass of the last segment that is left.
    pub fn backward(&mut self, sync_batch_norm: Option<&SyncBatchNorm>) -> Result<()> {
        match &mut self.way {
            Way::Asked(segments) => {
                segments.backward(sync_batch_norm);
                Ok(())
            }
            Way::Replayed(recorded, left) => {
                let next = recorded.backward.len() - *left;
                *left -= 1;
                recorded.backward[next].replay()
            }
        }
    }
}

/// A network between the cuts of a backward pass, and what is differentiated: the batch's part of the step's loss.
pub(super) struct Segments {
    /// Those whose backward pass is still to come.
    pub all: Vec<Segment>,
    /// The loss.
    pub loss: Tensor,
}

/// The part of the network between two cuts, as one forward pass left it.
pub(super) struct Segment {
    /// Cut off from the graph before it; `None` for the images.
    pub input: Option<Tensor>,
    /// The next one's input, or the logits.
    pub output: Tensor,
    /// Of the loss by `output`; `None` for the last segment, whose output goes into the loss itself.
    pub gradient: Option<Tensor>,
    /// Of its batch norms, if they are synchronised.
    pub cuts: Vec<Cut>,
}

impl Segments {
    fn backward(&mut self, sync_batch_norm: Option<&SyncBatchNorm>) {
        // Its activations are freed when this is left, within the time of the backward pass.
        let mut segment = self.all.pop().expect("a segment that has not been through");
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

/// Passes with so many images are asked for call by call before one is recorded: by then cuDNN has tried its algorithms.
const ASKED_BEFORE: usize = 2;
/// A pass that takes more of a GPU's memory is not recorded: a recording has its memory for itself, and so many images keep a
/// GPU busy without one.
const MOST_OF_MEMORY: f64 = 0.4;

/// Records the passes of one size of batch on a GPU.
pub(super) struct Recorder {
    index: usize,
    pool: CudaGraphPool,
    /// Images, and the batch's share of the step.
    seen: Option<(usize, f64)>,
    times: usize,
    recorded: Option<Rc<Recorded>>,
    /// Whether a pass takes too much for it.
    too_large: bool,
}

impl Recorder {
    /// On GPU `index`; `None`, which is told, if this libtorch cannot.
    pub fn new(index: usize) -> Option<Recorder> {
        match CudaGraphPool::new().and_then(|pool| gpu::memory(index, true).map(|_| pool)) {
            Ok(pool) => Some(Recorder { index, pool, seen: None, times: 0, recorded: None, too_large: false }),
            Err(error) => {
                log::warn!("CUDA graphs are disabled: {error}");
                None
            }
        }
    }

    /// The pass of `batch`, a `share` of its step, if there is a recording for it or it is time for one, its forward pass asked
    /// for; `forward` computes that of images and labels. Error: what the GPU does not take into a recording.
    pub fn pass(
        &mut self,
        batch: &Batch,
        share: f64,
        forward: impl FnOnce(&Tensor, &Tensor) -> Pass,
    ) -> Result<Option<Pass>> {
        if *self.seen.get_or_insert((batch.len, share)) != (batch.len, share) {
            return Ok(None); // an epoch's last batch
        }
        self.times += 1;
        if self.times <= ASKED_BEFORE || self.too_large {
            return Ok(None);
        }
        let recorded = match &self.recorded {
            Some(recorded) => recorded.clone(),
            None => {
                let memory = gpu::memory(self.index, false)?;
                if memory.most as f64 > MOST_OF_MEMORY * memory.all as f64 {
                    self.too_large = true;
                    return Ok(None);
                }
                // What the passes so far have left free is not for the recording's pool.
                Stream::of_tensors(self.index)?.synchronize()?;
                give_back_freed_memory();
                let recorded = Rc::new(Recorded::new(self.index, &self.pool, batch, forward)?);
                self.recorded.insert(recorded).clone()
            }
        };
        recorded.forward(batch).map(Some)
    }
}

/// The passes of batches of one size, as calls.
struct Recorded {
    images: Tensor,
    labels: Tensor,
    forward: CudaGraph,
    /// From the last segment to the first.
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
        let (images, labels) = (batch.images.copy(), batch.labels.copy());
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
            self.images.shallow_clone().copy_(&batch.images);
            self.labels.shallow_clone().copy_(&batch.labels);
        });
        self.forward.replay()?;
        let (logits, mean_loss) = (self.logits.shallow_clone(), self.mean_loss.shallow_clone());
        let left = self.backward.len();
        Ok(Pass { logits, mean_loss, way: Way::Replayed(self, left) })
    }
}
