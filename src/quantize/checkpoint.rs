//! Checkpoint of the integer network: PyTorch's names, int8 weights, int32 biases, scales and zero points as attributes. It is
//! complete: structure follows from names and shapes, multipliers from the scales.

use super::graph::{Geometry, Node, structure};
use super::integer::{IntNet, Integers, Quantization};
use super::scheme;
use crate::config::ModelName;
use crate::error::{Error, Result};
use crate::store::{Attribute, Checkpoint, NamedTensor, TensorValues, attribute};

/// Attributes of a weight, and those of the tensor that its layer makes.
const SCALE: &str = "scale"; // [1] or [outputs]: real = value * scale
const ZERO_POINT: &str = "zero_point";
const OUTPUT_SCALE: &str = "output_scale";
const OUTPUT_ZERO_POINT: &str = "output_zero_point";
/// Attributes of the checkpoint.
const FORMAT: &str = "quantization";
const INT8: &str = "int8";
const MODEL: &str = "model";
const MEAN: &str = "mean";
const STD: &str = "std";
const INPUT_SCALE: &str = "input_scale";
const INPUT_ZERO_POINT: &str = "input_zero_point";
const AVERAGE_SCALE: &str = "avgpool_output_scale";

/// Converts `net` to a checkpoint.
pub fn to_checkpoint(net: &IntNet) -> Checkpoint {
    let mut tensors = Vec::new();
    let floats = |values: [f32; 3]| Attribute::Floats(values.iter().map(|&value| value as f64).collect());
    let mut attributes = vec![
        (FORMAT.to_owned(), Attribute::Text(INT8.into())),
        (MODEL.into(), Attribute::Text(net.name.as_str().into())),
        (MEAN.into(), floats(net.mean)),
        (STD.into(), floats(net.std)),
        (INPUT_SCALE.into(), Attribute::Float(net.input.scale)),
        (INPUT_ZERO_POINT.into(), Attribute::Int(net.input.zero_point.into())),
    ];
    for node in &net.nodes {
        let numbers = node.numbers();
        let Some(layer) = node.layer() else {
            attributes.push((AVERAGE_SCALE.into(), Attribute::Float(numbers.output.scale)));
            continue;
        };
        let Geometry { inputs, outputs, kernel, .. } = layer.geometry;
        let linear = is_linear(&node.name);
        let shape = if linear { vec![outputs, layer.geometry.taps()] } else { vec![outputs, inputs, kernel, kernel] };
        let values = TensorValues::I8(numbers.weight.clone());
        let mut weight = NamedTensor::new(format!("{}.weight", node.name), shape, values);
        weight.attributes = vec![
            (SCALE.into(), Attribute::Floats(numbers.weight_scale.clone())),
            (ZERO_POINT.into(), Attribute::Int(0)),
            (OUTPUT_SCALE.into(), Attribute::Float(numbers.output.scale)),
            (OUTPUT_ZERO_POINT.into(), Attribute::Int(numbers.output.zero_point.into())),
        ];
        tensors.push(weight);
        if let Some(bias) = &numbers.bias {
            let input = net.quantization(node.input).scale;
            let scales = numbers.weight_scale.iter().map(|scale| scale * input).collect();
            let values = TensorValues::I32(bias.clone());
            let mut bias = NamedTensor::new(format!("{}.bias", node.name), vec![outputs], values);
            bias.attributes = vec![(SCALE.into(), Attribute::Floats(scales)), (ZERO_POINT.into(), Attribute::Int(0))];
            tensors.push(bias);
        }
    }
    Checkpoint { tensors, attributes }
}

/// Whether a checkpoint was made by [`to_checkpoint`].
pub fn is_quantized(checkpoint: &Checkpoint) -> bool {
    matches!(attribute(&checkpoint.attributes, FORMAT), Some(Attribute::Text(format)) if format == INT8)
}

/// Reads the network of a checkpoint.
///
/// # Errors
/// A tensor or attribute is missing or does not fit; the error names it.
pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<IntNet> {
    let refuse = |name: &str, problem: &str| Error::QuantizeModel { name: name.into(), problem: problem.into() };
    let own = Attributes { owner: "checkpoint", attributes: &checkpoint.attributes };
    if !is_quantized(checkpoint) {
        return Err(refuse("checkpoint", "not quantized: make it with hpml quantize"));
    }
    let name = match own.get(MODEL)? {
        Attribute::Text(name) if name == ModelName::Net.as_str() => ModelName::Net,
        Attribute::Text(name) if name == ModelName::Resnet18.as_str() => ModelName::Resnet18,
        _ => return Err(refuse(MODEL, "neither net nor resnet18")),
    };
    let width = checkpoint.tensor("conv1.weight").and_then(|tensor| tensor.shape.first().copied());
    let width = width.ok_or_else(|| refuse("conv1.weight", "missing"))?;
    if !(1..=1024).contains(&width) {
        return Err(refuse("conv1.weight", "impossible shape"));
    }
    let structure = structure(name, width);
    let nodes = structure.iter().map(|node| {
        node.with_numbers(|node| match node.layer() {
            None => Ok(Integers::average_pool(Quantization { scale: own.scale(AVERAGE_SCALE)?, zero_point: 0 })),
            // Folded batch norm always leaves a bias.
            Some(layer) => numbers(checkpoint, node, layer.geometry, name == ModelName::Resnet18),
        })
    });
    let nodes = nodes.collect::<Result<Vec<_>>>()?;
    let input = Quantization { scale: own.scale(INPUT_SCALE)?, zero_point: own.zero_point(INPUT_ZERO_POINT)? };
    scheme::complete(IntNet { name, mean: own.three(MEAN)?, std: own.three(STD)?, input, nodes })
}

fn numbers(checkpoint: &Checkpoint, node: &Node<()>, geometry: Geometry, has_bias: bool) -> Result<Integers> {
    let Geometry { inputs, outputs, kernel, .. } = geometry;
    let refuse = |name: &str, problem: String| Error::QuantizeModel { name: name.into(), problem };
    let name = format!("{}.weight", node.name);
    let tensor = checkpoint.tensor(&name).ok_or_else(|| refuse(&name, "missing".into()))?;
    let expected =
        if is_linear(&node.name) { vec![outputs, geometry.taps()] } else { vec![outputs, inputs, kernel, kernel] };
    let TensorValues::I8(weight) = &tensor.values else { return Err(refuse(&name, "not int8".into())) };
    if tensor.shape != expected || weight.len() != outputs * geometry.taps() {
        return Err(refuse(&name, format!("shape {:?}, expected {expected:?}", tensor.shape)));
    }
    let own = Attributes { owner: &name, attributes: &tensor.attributes };
    let weight_scale = own.floats(SCALE)?;
    if ![1, outputs].contains(&weight_scale.len()) || !weight_scale.iter().all(|&scale| usable(scale)) {
        return Err(refuse(&name, format!("{SCALE}: expected 1 or {outputs} positive numbers")));
    }
    let bias_name = format!("{}.bias", node.name);
    let bias = match checkpoint.tensor(&bias_name).map(|tensor| (&tensor.values, tensor.shape.as_slice())) {
        None if has_bias => return Err(refuse(&bias_name, "missing".into())),
        None => None,
        Some((TensorValues::I32(bias), shape)) if shape == [outputs] && bias.len() == outputs => Some(bias.clone()),
        Some(_) => return Err(refuse(&bias_name, format!("expected {outputs} int32"))),
    };
    let output = Quantization { scale: own.scale(OUTPUT_SCALE)?, zero_point: own.zero_point(OUTPUT_ZERO_POINT)? };
    Ok(Integers { weight: weight.clone(), weight_scale, bias, output, requantization: None })
}

/// Whether PyTorch's module `name` is a linear layer, whose weight has two dimensions.
pub(super) fn is_linear(name: &str) -> bool {
    name.starts_with("fc") || name == "linear"
}

fn usable(scale: f64) -> bool {
    scale.is_finite() && scale > 0.0
}

struct Attributes<'a> {
    owner: &'a str,
    attributes: &'a [(String, Attribute)],
}

impl Attributes<'_> {
    fn get(&self, name: &str) -> Result<&Attribute> {
        attribute(self.attributes, name).ok_or_else(|| self.refuse(name, "missing"))
    }

    fn refuse(&self, name: &str, problem: &str) -> Error {
        Error::QuantizeModel { name: self.owner.into(), problem: format!("{name}: {problem}") }
    }

    fn floats(&self, name: &str) -> Result<Vec<f64>> {
        match self.get(name)? {
            Attribute::Floats(values) => Ok(values.clone()),
            Attribute::Float(value) => Ok(vec![*value]),
            _ => Err(self.refuse(name, "not a number")),
        }
    }

    fn scale(&self, name: &str) -> Result<f64> {
        match self.floats(name)?[..] {
            [scale] if usable(scale) => Ok(scale),
            _ => Err(self.refuse(name, "expected one positive number")),
        }
    }

    fn zero_point(&self, name: &str) -> Result<u8> {
        match self.get(name)? {
            Attribute::Int(value) => u8::try_from(*value).map_err(|_| self.refuse(name, "expected 0 to 255")),
            _ => Err(self.refuse(name, "expected 0 to 255")),
        }
    }

    fn three(&self, name: &str) -> Result<[f32; 3]> {
        let values: Vec<f32> = self.floats(name)?.into_iter().map(|value| value as f32).collect();
        <[f32; 3]>::try_from(values).map_err(|_| self.refuse(name, "expected three numbers"))
    }
}
