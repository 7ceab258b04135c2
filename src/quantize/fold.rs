//! The float network from a trained `state_dict`: batch norm is folded into the convolution before it.

use std::collections::HashSet;

use super::graph::{FloatNet, Floats, Geometry, Layer, Norm, Source, Spec};
use super::structure::structure;
use crate::error::{Error, Result};
use crate::store::{NamedTensor, TensorValues};

impl FloatNet {
    /// Reads the network that `spec` describes from a `state_dict`.
    ///
    /// # Errors
    /// int8 cannot express a node of the network; a tensor is missing, unknown, has another shape, or holds a NaN or infinity.
    /// The error names it.
    pub fn from_state(state: &[NamedTensor], spec: Spec) -> Result<FloatNet> {
        let structure = structure(&spec.model, spec.form())?;
        let state = State { tensors: state, network: spec.model.name.as_str() };
        state.check_names(structure.iter().filter_map(|node| Some((node.name.as_str(), &node.layer()?.numbers))))?;
        let nodes = structure.iter().map(|node| {
            node.with_numbers(|node| match node.layer() {
                Some(layer) => state.layer(&node.name, layer),
                None => Ok(Floats::default()),
            })
        });
        Ok(FloatNet { nodes: nodes.collect::<Result<_>>()?, spec })
    }
}

/// Entries of a batch norm in the `state_dict`, and its counter, which is not read.
const NORM: [&str; 4] = ["weight", "bias", "running_mean", "running_var"];
const COUNTER: &str = "num_batches_tracked";

struct State<'a> {
    tensors: &'a [NamedTensor],
    network: &'static str,
}

impl State<'_> {
    /// Refuses a tensor that belongs to none of `layers`: the file is of another network.
    fn check_names<'l>(&self, layers: impl Iterator<Item = (&'l str, &'l Source)>) -> Result<()> {
        let mut known = HashSet::new();
        for (name, source) in layers {
            known.insert(format!("{name}.weight"));
            if source.bias {
                known.insert(format!("{name}.bias"));
            }
            for suffix in source.norm.iter().flat_map(|_| NORM.into_iter().chain([COUNTER])) {
                known.insert(format!("{}.{suffix}", source.norm.as_ref().map_or("", |norm| &norm.name)));
            }
        }
        match self.tensors.iter().find(|tensor| !known.contains(&tensor.name)) {
            Some(tensor) => Err(self.refuse(&tensor.name, "unknown".into())),
            None => Ok(()),
        }
    }

    fn refuse(&self, name: &str, problem: String) -> Error {
        let problem = format!("{problem}: not a checkpoint of {}", self.network);
        Error::QuantizeModel { name: name.into(), problem }
    }

    fn floats(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>> {
        let refuse = |problem: String| self.refuse(name, problem);
        let tensor = self.tensors.iter().find(|tensor| tensor.name == name).ok_or_else(|| refuse("missing".into()))?;
        if tensor.shape != expected {
            return Err(refuse(format!("shape {:?}, expected {expected:?}", tensor.shape)));
        }
        let TensorValues::F32(values) = &tensor.values else { return Err(refuse("not float32".into())) };
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return Err(Error::QuantizeNotFinite { name: name.into(), index, value: values[index] });
        }
        Ok(values.clone())
    }

    /// Reads the numbers of the layer `name`, folded with its batch norm.
    fn layer(&self, name: &str, layer: &Layer<Source>) -> Result<Floats> {
        let (geometry, source) = (layer.geometry, &layer.numbers);
        let weight = self.floats(&format!("{name}.weight"), &layer.state_shape())?;
        let bias = source.bias.then(|| self.floats(&format!("{name}.bias"), &[geometry.outputs])).transpose()?;
        match &source.norm {
            Some(norm) => self.folded(Floats { weight, bias }, norm, geometry),
            None => Ok(Floats { weight, bias }),
        }
    }

    /// Folds a batch norm into its convolution. In evaluation it is `x * gain + offset` per channel: the gain goes into the
    /// weights and their bias, the offset becomes part of the bias.
    fn folded(&self, mut floats: Floats, norm: &Norm, geometry: Geometry) -> Result<Floats> {
        let [weight, bias, mean, variance] =
            NORM.map(|suffix| self.floats(&format!("{}.{suffix}", norm.name), &[geometry.outputs]));
        let (weight, bias, mean, variance) = (weight?, bias?, mean?, variance?);
        let mut offsets = Vec::with_capacity(geometry.outputs);
        for (channel, taps) in floats.weight.chunks_mut(geometry.taps()).enumerate() {
            let gain = weight[channel] as f64 / (variance[channel] as f64 + norm.epsilon).sqrt();
            let own = floats.bias.as_ref().map_or(0.0, |bias| bias[channel] as f64);
            taps.iter_mut().for_each(|tap| *tap = (*tap as f64 * gain) as f32);
            offsets.push((bias[channel] as f64 - (mean[channel] as f64 - own) * gain) as f32);
        }
        if let Some(index) = floats.weight.iter().chain(&offsets).position(|value| !value.is_finite()) {
            let name = format!("{}.running_var", norm.name);
            return Err(Error::QuantizeNotFinite { name, index: index / geometry.taps(), value: f32::NAN });
        }
        floats.bias = Some(offsets);
        Ok(floats)
    }
}
