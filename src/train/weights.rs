//! State of the model as named tensors: into a checkpoint, out of one, and to all ranks.

use std::path::Path;

use crate::collective::Communicator;
use crate::config;
use crate::data::Form;
use crate::error::{Error, Result};
use crate::metrics::Kind;
use crate::model::{Entry, Model, Role, other_name};
use crate::parallel::Replica;
use crate::store::{self, Attribute, Checkpoint, NamedTensor, TensorValues};

/// State of the model after `epochs` epochs and `steps` steps, with PyTorch's names, shapes and order: what `load_state_dict`
/// reads.
pub fn checkpoint(replica: &Replica, epochs: usize, steps: usize) -> Checkpoint {
    let saved = replica.model().state.iter().filter(|entry| entry.role != Role::Constant);
    let tensors = saved.map(|entry| match entry.role {
        // PyTorch counts the batches of each batch norm; here all have seen the same.
        Role::Counter if !entry.tensor.defined() => {
            NamedTensor::new(&entry.name, vec![], TensorValues::I64(vec![replica.state().batches_tracked]))
        }
        Role::Counter => {
            let mut values = vec![0; entry.tensor.numel()];
            entry.tensor.to_kind(tch::Kind::Int64).contiguous().copy_data(&mut values, entry.tensor.numel());
            NamedTensor::new(&entry.name, shape(entry), TensorValues::I64(values))
        }
        _ => {
            let mut values = vec![0.0; entry.tensor.numel()];
            entry.tensor.detach().contiguous().copy_data(&mut values, entry.tensor.numel());
            NamedTensor::new(&entry.name, shape(entry), TensorValues::F32(values))
        }
    });
    let attributes =
        vec![("epochs".into(), Attribute::Int(epochs as i64)), ("steps".into(), Attribute::Int(steps as i64))];
    Checkpoint { tensors: tensors.collect(), attributes }
}

fn shape(entry: &Entry) -> Vec<usize> {
    entry.tensor.size().into_iter().map(|extent| extent as usize).collect()
}

/// Name of the first value of a checkpoint that is NaN or infinite, as in `fc1.weight[17] is NaN`; `None` if all are finite. A
/// tensor of zeros and negative infinities is an attention mask of a model from a file.
pub fn not_finite(checkpoint: &Checkpoint) -> Option<String> {
    checkpoint.tensors.iter().find_map(|tensor| {
        let TensorValues::F32(values) = &tensor.values else { return None };
        // No early exit within a piece, so that the compiler vectorizes the one pass over memory.
        let is_finite = |piece: &[f32]| piece.iter().fold(true, |all, value| all & value.is_finite());
        if values.chunks(1024).all(is_finite) {
            return None;
        }
        if values.iter().all(|&value| value == 0.0 || value == f32::NEG_INFINITY) {
            return None;
        }
        let index = values.iter().position(|value| !value.is_finite())?;
        Some(format!("{}[{index}] is {}", tensor.name, values[index]))
    })
}

/// Broadcasts rank 0's values, for work that all ranks share: batch norm's statistics may differ between ranks.
///
/// # Errors
/// A rank is gone.
pub fn share(ranks: &Communicator, checkpoint: &mut Checkpoint) -> Result<()> {
    for tensor in &mut checkpoint.tensors {
        if let TensorValues::F32(values) = &mut tensor.values {
            ranks.broadcast(Kind::Parameters, values)?;
        }
    }
    Ok(())
}

/// The network before a training's first step: with the tensors in `model.weights`, or with values drawn from `seed`.
///
/// # Errors
/// The network does not suit the `form` of the samples, or the file of the weights does not suit the network.
pub fn initial(config: &config::Model, form: Form, seed: u64) -> Result<Model> {
    let mut model = Model::new(config, form, seed)?;
    if !config.weights.is_empty() {
        let path = Path::new(&config.weights);
        let (tensors, group) = store::read_weights(path)?;
        load(&mut model, &tensors, path, group)?;
    }
    Ok(model)
}

/// Copies `tensors`, which have PyTorch's names, into the model; a ResNet takes either of its namings, see [`other_name`]. `path` and `group` tell
/// where they were read.
///
/// # Errors
/// [`Error::Dataset`] if a tensor of the model is missing or has another shape.
pub fn load(model: &mut Model, tensors: &[NamedTensor], path: &Path, group: &str) -> Result<()> {
    let is_read = |entry: &&mut Entry| entry.role != Role::Constant && entry.tensor.defined();
    for entry in model.state.iter_mut().filter(is_read) {
        let refuse = |message: String| Error::Dataset {
            path: path.to_owned(),
            name: if group.is_empty() { entry.name.clone() } else { format!("{group}/{}", entry.name) },
            message,
        };
        let shape = shape(entry);
        let named = |name: &str| tensors.iter().find(|tensor| tensor.name == name);
        let tensor = named(&entry.name).or_else(|| named(&other_name(&entry.name)?));
        let tensor = tensor.ok_or_else(|| refuse("missing".into()))?;
        let source = match (&tensor.values, entry.role) {
            _ if tensor.shape != shape => Err("float32"),
            (TensorValues::I64(values), Role::Counter) => Ok(tch::Tensor::from_slice(values)),
            (_, Role::Counter) => Err("int64"),
            (TensorValues::F32(values), _) => Ok(tch::Tensor::from_slice(values)),
            _ => Err("float32"),
        };
        let source = source.map_err(|kind| refuse(format!("shape {:?}, expected {kind} {shape:?}", tensor.shape)))?;
        tch::no_grad(|| entry.tensor.copy_(&source.view_as(&entry.tensor)));
    }
    Ok(())
}
