//! Checkpoint of the integer network: PyTorch's names, int8 weights, int32 biases, scales and zero points as attributes. It is
//! complete: its section `[model]` and the form of the images give the structure, the scales the multipliers.

use super::graph::{Layer, Node, Operation, Source, Spec};
use super::integer::{IntNet, Integers, Quantization};
use super::scheme;
use super::structure::structure;
use crate::config::{self, ModelName};
use crate::error::{Error, Result};
use crate::store::{Attribute, Checkpoint, LONG_NAME, NamedTensor, TensorValues, attribute};

/// Attributes of a weight, and those of the tensor that its layer makes.
const SCALE: &str = "scale"; // [1] or [outputs]
const AXIS: &str = "axis"; // of the scales; files of earlier builds lack it and the formula
const FORMULA: &str = "formula";
const ZERO_POINT: &str = "zero_point";
const OUTPUT_SCALE: &str = "output_scale";
const OUTPUT_ZERO_POINT: &str = "output_zero_point";
/// Attributes of the checkpoint.
const FORMAT: &str = "quantization";
const INT8: &str = "int8";
const MODEL: &str = "model";
const SECTION: &str = "model_section"; // [model] as TOML; files of hpml 0.1 lack it, the shape and the classes
const SHAPE: &str = "image_shape";
const CLASSES: &str = "classes";
const MEAN: &str = "mean";
const STD: &str = "std";
const INPUT_SCALE: &str = "input_scale";
const INPUT_ZERO_POINT: &str = "input_zero_point";
const AVERAGE_SCALE: &str = "avgpool_output_scale";

/// Meaning of the integers of a tensor called `what`. NumPy broadcasts a scale that is one number for all.
fn formula(what: &str) -> String {
    format!("{what} = (value - zero_point) * scale along axis 0")
}

/// Converts `net` to a checkpoint.
pub fn to_checkpoint(net: &IntNet) -> Checkpoint {
    let mut tensors = Vec::new();
    let spec = &net.spec;
    let section = toml::to_string(&spec.model).expect("the section of a configuration is TOML");
    let floats = |values: &[f32]| Attribute::Floats(values.iter().map(|&value| value as f64).collect());
    let mut attributes = vec![
        (FORMAT.to_owned(), Attribute::Text(INT8.into())),
        (MODEL.into(), Attribute::Text(spec.model.name.as_str().into())),
        (SECTION.into(), Attribute::Text(section)),
        (SHAPE.into(), Attribute::Ints(spec.shape.iter().map(|&extent| extent as i64).collect())),
        (CLASSES.into(), Attribute::Int(spec.classes as i64)),
        (MEAN.into(), floats(&spec.mean)),
        (STD.into(), floats(&spec.std)),
        (INPUT_SCALE.into(), Attribute::Float(net.input.scale)),
        (INPUT_ZERO_POINT.into(), Attribute::Int(net.input.zero_point.into())),
    ];
    for node in &net.nodes {
        let numbers = node.numbers();
        let layer = match &node.operation {
            Operation::Convolution(layer) => layer,
            Operation::AveragePool { .. } => {
                attributes.push((AVERAGE_SCALE.into(), Attribute::Float(numbers.output.scale)));
                continue;
            }
            Operation::MaxPool { .. } => continue,
        };
        let outputs = layer.geometry.outputs;
        let long_name = |what: &str, kind: &str| {
            format!("{}.{what} as {kind}, not to be loaded as a float: {}", node.name, formula(what))
        };
        let shape = layer.state_shape();
        let values = TensorValues::I8(numbers.weight.clone());
        let mut weight = NamedTensor::new(format!("{}.weight", node.name), shape, values);
        weight.attributes = vec![
            (LONG_NAME.into(), Attribute::Text(long_name("weight", "int8"))),
            (FORMULA.into(), Attribute::Text(formula("weight"))),
            (SCALE.into(), Attribute::Floats(numbers.weight_scale.clone())),
            (AXIS.into(), Attribute::Int(0)),
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
            bias.attributes = vec![
                (LONG_NAME.into(), Attribute::Text(long_name("bias", "int32"))),
                (FORMULA.into(), Attribute::Text(formula("bias"))),
                (SCALE.into(), Attribute::Floats(scales)),
                (AXIS.into(), Attribute::Int(0)),
                (ZERO_POINT.into(), Attribute::Int(0)),
            ];
            tensors.push(bias);
        }
    }
    Checkpoint { tensors, attributes }
}

/// Whether a checkpoint was made by [`to_checkpoint`].
pub fn is_quantized(checkpoint: &Checkpoint) -> bool {
    attribute(&checkpoint.attributes, FORMAT).and_then(Attribute::text) == Some(INT8)
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
    let spec = spec(checkpoint, &own)?;
    let input = Quantization { scale: own.scale(INPUT_SCALE)?, zero_point: own.zero_point(INPUT_ZERO_POINT)? };
    let mut net = IntNet { input, nodes: Vec::new(), spec };
    for node in structure(&net.spec.model, net.spec.form())? {
        let numbers = match &node.operation {
            Operation::Convolution(layer) => numbers(checkpoint, &node, layer)?,
            Operation::MaxPool { .. } => Integers::pool(net.quantization(node.input)),
            Operation::AveragePool { .. } => {
                Integers::pool(Quantization { scale: own.scale(AVERAGE_SCALE)?, zero_point: 0 })
            }
        };
        net.nodes.push(node.with_numbers(|_| Ok(numbers))?);
    }
    scheme::complete(net)
}

/// Network, images and classes of a checkpoint; CIFAR-10's if it does not say.
fn spec(checkpoint: &Checkpoint, own: &Attributes) -> Result<Spec> {
    let name = own.text(MODEL)?;
    if attribute(&checkpoint.attributes, SECTION).is_none() {
        let name = match name {
            name if name == ModelName::Net.as_str() => ModelName::Net,
            name if name == ModelName::Resnet18.as_str() => ModelName::Resnet18,
            _ => return Err(own.refuse(MODEL, "neither net nor resnet18")),
        };
        let width = checkpoint.tensor("conv1.weight").and_then(|tensor| tensor.shape.first().copied()).unwrap_or(0);
        let model =
            config::Model { name, width, bias: checkpoint.tensor("fc3.bias").is_some(), ..config::Model::default() };
        let spec = Spec { model, shape: [3, 32, 32], classes: 10, mean: own.singles(MEAN)?, std: own.singles(STD)? };
        return checked(spec, own);
    }
    let model: config::Model = toml::from_str(own.text(SECTION)?)
        .map_err(|error| own.refuse(SECTION, &format!("{}: written by another version of hpml", error.message())))?;
    let count = |value: i64| usize::try_from(value).unwrap_or(0);
    let shape: Vec<usize> =
        own.get(SHAPE)?.integers().unwrap_or_default().iter().map(|&extent| count(extent)).collect();
    let shape = shape.try_into().map_err(|_| own.refuse(SHAPE, "expected channels, height and width"))?;
    let classes = own.get(CLASSES)?.integer().map_or(0, count);
    checked(Spec { model, shape, classes, mean: own.singles(MEAN)?, std: own.singles(STD)? }, own)
}

/// `spec`, if its numbers are possible.
fn checked(spec: Spec, own: &Attributes) -> Result<Spec> {
    const MOST_CHANNELS: usize = 4096;
    const MOST_BLOCKS: usize = 1024;
    const MOST_PIXELS: usize = 4096; // along a side
    const MOST_CLASSES: usize = 1 << 20;
    let [channels, height, width] = spec.shape;
    let possible = [
        (SECTION, spec.model.width <= MOST_CHANNELS && spec.model.depth <= MOST_BLOCKS),
        (SHAPE, (1..=MOST_CHANNELS).contains(&channels)),
        (SHAPE, [height, width].iter().all(|side| (1..=MOST_PIXELS).contains(side))),
        (CLASSES, (1..=MOST_CLASSES).contains(&spec.classes)),
        (MEAN, spec.mean.len() == channels),
        (STD, spec.std.len() == channels),
    ];
    match possible.iter().find(|(_, possible)| !possible) {
        Some((name, _)) => Err(own.refuse(name, "impossible value")),
        None => Ok(spec),
    }
}

fn numbers(checkpoint: &Checkpoint, node: &Node<Source>, layer: &Layer<Source>) -> Result<Integers> {
    let outputs = layer.geometry.outputs;
    // Folded batch norm always leaves a bias.
    let has_bias = layer.numbers.bias || layer.numbers.norm.is_some();
    let refuse = |name: &str, problem: String| Error::QuantizeModel { name: name.into(), problem };
    let name = format!("{}.weight", node.name);
    let tensor = checkpoint.tensor(&name).ok_or_else(|| refuse(&name, "missing".into()))?;
    let expected = layer.state_shape();
    let TensorValues::I8(weight) = &tensor.values else { return Err(refuse(&name, "not int8".into())) };
    if tensor.shape != expected || weight.len() != outputs * layer.geometry.taps() {
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

    fn text(&self, name: &str) -> Result<&str> {
        self.get(name)?.text().ok_or_else(|| self.refuse(name, "not a text"))
    }

    fn floats(&self, name: &str) -> Result<Vec<f64>> {
        self.get(name)?.floats().map(<[f64]>::to_vec).ok_or_else(|| self.refuse(name, "not a number"))
    }

    fn scale(&self, name: &str) -> Result<f64> {
        match self.floats(name)?[..] {
            [scale] if usable(scale) => Ok(scale),
            _ => Err(self.refuse(name, "expected one positive number")),
        }
    }

    fn zero_point(&self, name: &str) -> Result<u8> {
        let value = self.get(name)?.integer().and_then(|value| u8::try_from(value).ok());
        value.ok_or_else(|| self.refuse(name, "expected 0 to 255"))
    }

    fn singles(&self, name: &str) -> Result<Vec<f32>> {
        Ok(self.floats(name)?.into_iter().map(|value| value as f32).collect())
    }
}
