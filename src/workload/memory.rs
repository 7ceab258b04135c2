//! Memory of a rank, part by part.

use super::{Activations, of_role};
use crate::config::{OptimName, Plan};
use crate::data::Form;
use crate::model::Role;
use crate::model::graph::Slot;
use crate::units::Bytes;

/// Predicted memory of a rank that trains, without that of the process: libtorch, MPI, workspaces of kernels, a data set that is
/// held in memory (once per host), what compression carries, and the activations of a network from a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Memory {
    /// Name, meaning and bytes of each part.
    pub parts: Vec<(&'static str, &'static str, Bytes)>,
}

impl Memory {
    /// Memory of a rank by `plan`, on CPU cores or on a GPU.
    pub(super) fn new(state: &[Slot], form: Form, activations: Option<&Activations>, plan: &Plan, gpu: bool) -> Memory {
        let float = size_of::<f32>();
        let bytes = |role: Role| (float * of_role(state, role).map(Slot::elements).sum::<usize>()) as Bytes;
        let parameters = bytes(Role::Parameter);
        let moments = match plan.optim.name {
            OptimName::Sgd | OptimName::Lars => 1,
            OptimName::Adam | OptimName::AdamW => 2,
            OptimName::Lamb if gpu => 2,
            OptimName::Lamb => 3, // and the direction of the step
        };
        let average = if plan.optim.ema > 0.0 { parameters + bytes(Role::Buffer) } else { 0 };
        let batch = plan.train.batch_per_rank as Bytes;
        let sample = match form {
            Form::Images { shape, .. } => float * shape.iter().product::<usize>(),
            Form::Tokens { length, .. } => 2 * size_of::<i64>() * length, // with the targets
        };
        let prefetched = batch * sample as Bytes * plan.data.prefetch as Bytes;
        let mut parts = vec![
            ("parameters", "trained and frozen parameters", parameters + bytes(Role::Frozen)),
            ("gradients", "gradients of the parameters", parameters),
            ("optimizer", "moments of the optimizer", moments * parameters),
            ("average", "average of the weights", average),
            ("buffers", "running statistics of batch norm", bytes(Role::Buffer)),
            ("batches", "batches that are prepared in advance", prefetched),
        ];
        if let Some(&Activations { kept, peak, cast_weights, .. }) = activations {
            parts.extend([
                ("cast_weights", "weights as bf16 or fp16", cast_weights),
                ("activations", "values that the backward pass needs, of a batch", batch * kept),
                ("backward", "gradients of these values, at the worst moment", batch * (peak - kept)),
            ]);
        }
        Memory { parts }
    }

    /// Sum of the parts.
    pub fn total(&self) -> Bytes {
        self.parts.iter().map(|(.., bytes)| bytes).sum()
    }
}
