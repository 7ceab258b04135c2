//! Quantization scheme: ranges, scales, zero points and fixed-point multipliers from float numbers and distributions.

use super::calibration::Distribution;
use super::graph::{FloatNet, Floats, Layer, Operation};
use super::integer::{IntNet, Integers, Quantization, RESIDUAL_SHIFT, Requantization};
use crate::config::{self, RangeFrom};
use crate::error::{Error, Result};

/// Greatest quantized weight; -128 is left out so that the range is symmetric.
pub(super) const WEIGHT_MAX: f64 = 127.0;
/// Greatest quantized activation.
pub(super) const ACTIVATION_MAX: f64 = 255.0;

/// Quantizes the network at scales from `activations`, the result of [`super::calibration::activations`].
///
/// # Errors
/// A layer's output is always 0, a weight is NaN or infinite, or a scale does not fit the integers.
pub fn quantize(net: &FloatNet, activations: &[Distribution], config: &config::Quantize) -> Result<IntNet> {
    let mut tensors: Vec<Quantization> = Vec::with_capacity(activations.len());
    for distribution in activations {
        tensors.push(activation_quantization(distribution, config)?);
    }
    for (index, node) in net.nodes.iter().enumerate() {
        if let Operation::MaxPool { .. } = node.operation {
            tensors[index + 1] = tensors[node.input];
        }
    }
    let nodes = net.nodes.iter().enumerate().map(|(index, node)| {
        let output = tensors.get(index + 1).copied();
        node.with_numbers(|node| match node.layer() {
            Some(layer) => quantize_layer(&node.name, layer, tensors[node.input], output, config),
            None => Ok(Integers::pool(output.expect("a layer follows a pool"))),
        })
    });
    let nodes = nodes.collect::<Result<_>>()?;
    complete(IntNet { spec: net.spec.clone(), input: tensors[0], nodes })
}

/// Quantizes the network at the scales of `like`.
///
/// # Errors
/// A number is NaN or infinite, or a sum can overflow its integer.
pub fn with_scales_of(net: &FloatNet, like: &IntNet) -> Result<IntNet> {
    let nodes = net.nodes.iter().zip(&like.nodes).map(|(node, like_node)| {
        node.with_numbers(|node| match node.layer() {
            Some(layer) => {
                let numbers = like_node.numbers();
                let input = like.quantization(node.input).scale;
                integers(&node.name, layer, input, numbers.output, numbers.weight_scale.clone())
            }
            None => Ok(like_node.numbers().clone()),
        })
    });
    complete(IntNet { nodes: nodes.collect::<Result<_>>()?, ..like.clone() })
}

/// Computes every requantization from the scales, which determine it to the last bit, and checks the accumulators.
///
/// # Errors
/// A multiplier or a sum does not fit its integer.
pub fn complete(mut net: IntNet) -> Result<IntNet> {
    let last = net.nodes.len() - 1;
    for index in 0..last {
        let node = &net.nodes[index];
        let input = net.quantization(node.input).scale;
        let output = net.quantization(index + 1).scale;
        let requantization = match &node.operation {
            // The sums are small and computed without vectors: any shift will do.
            Operation::AveragePool { size: [height, width], .. } => {
                fixed_point(&node.name, &[input / (output * (height * width) as f64)], 0.0, 16)
            }
            Operation::MaxPool { .. } => continue,
            Operation::Convolution(layer) => {
                let numbers = &layer.numbers;
                let of = |channel| input * numbers.scale_of(channel) / output;
                let multipliers: Vec<f64> = (0..layer.geometry.outputs).map(of).collect();
                let residual = layer.residual.map_or(0.0, |tensor| net.quantization(tensor).scale / output);
                fixed_point(&node.name, &multipliers, residual, 32)
            }
        };
        net.nodes[index].numbers_mut().requantization = Some(requantization?);
    }
    check_accumulators(&net)?;
    Ok(net)
}

/// The float network with every weight replaced by its quantized value times its scale; biases unchanged.
pub fn with_quantized_weights(net: &FloatNet, integers: &IntNet) -> FloatNet {
    let mut net = net.clone();
    for (node, quantized) in net.nodes.iter_mut().zip(&integers.nodes) {
        let (Operation::Convolution(layer), Some(quantized)) = (&mut node.operation, quantized.layer()) else {
            continue;
        };
        let taps = layer.geometry.taps();
        for (index, weight) in layer.numbers.weight.iter_mut().enumerate() {
            *weight = (quantized.numbers.weight[index] as f64 * quantized.numbers.scale_of(index / taps)) as f32;
        }
    }
    net
}

/// The naive step: integer weights without rescaling, and the biases added unscaled.
///
/// In real units every layer's bias is then too small by the product of the weight scales up to its layer (along the main
/// path; a residual network's numbers would have grown by as much). Returned in real units, which leaves the predictions
/// unchanged.
pub fn with_unscaled_biases(net: &FloatNet, integers: &IntNet) -> FloatNet {
    let mut net = with_quantized_weights(net, integers);
    let mut shrunk = vec![1.0f64; net.nodes.len() + 1]; // per tensor
    for (index, (node, quantized)) in net.nodes.iter_mut().zip(&integers.nodes).enumerate() {
        shrunk[index + 1] = shrunk[node.input];
        let (Operation::Convolution(layer), Some(quantized)) = (&mut node.operation, quantized.layer()) else {
            continue;
        };
        let numbers = &quantized.numbers;
        for (channel, bias) in layer.numbers.bias.iter_mut().flatten().enumerate() {
            *bias = (*bias as f64 * numbers.scale_of(channel) * shrunk[node.input]) as f32;
        }
        shrunk[index + 1] *= numbers.weight_scale.iter().copied().fold(0.0, f64::max);
    }
    net
}

/// Chooses scale and zero point of a tensor: covers the configured range and 0, with 0 on a whole value.
fn activation_quantization(distribution: &Distribution, config: &config::Quantize) -> Result<Quantization> {
    let Distribution { name, min, max, .. } = distribution;
    if *min == 0.0 && *max == 0.0 {
        return Err(Error::DeadLayer { name: name.clone() });
    }
    let (lower, upper) = match config.activation_range {
        RangeFrom::Max => (*min, *max),
        RangeFrom::Sigma3 => distribution.sigma3(),
        RangeFrom::Percentile => {
            (distribution.percentile(100.0 - config.percentile), distribution.percentile(config.percentile))
        }
        RangeFrom::Mse => least_error_range(distribution),
    };
    let quantization = affine(lower.min(0.0), upper.max(0.0));
    if !(quantization.scale.is_finite() && quantization.scale >= f32::MIN_POSITIVE as f64) {
        let problem = format!("activations from {min:e} to {max:e} give a scale of {:e}", quantization.scale);
        return Err(Error::ScaleOverflow { name: name.clone(), problem });
    }
    Ok(quantization)
}

/// Finest quantization that covers [lower, upper] with 0 on a whole value.
fn affine(lower: f64, upper: f64) -> Quantization {
    let zero_point = (ACTIVATION_MAX * -lower / (upper - lower)).round_ties_even();
    let above = if zero_point < ACTIVATION_MAX { upper / (ACTIVATION_MAX - zero_point) } else { 0.0 };
    let below = if zero_point > 0.0 { -lower / zero_point } else { 0.0 };
    Quantization { scale: above.max(below), zero_point: zero_point as u8 }
}

/// Share of the whole range (20 % to 100 %) that has the least squared error over the histogram.
fn least_error_range(distribution: &Distribution) -> (f64, f64) {
    let error = |share: f64| {
        let quantization = affine((share * distribution.min).min(0.0), (share * distribution.max).max(0.0));
        let zero_point = quantization.zero_point as f64;
        let of = |value: f64| {
            let steps = ((value / quantization.scale).round_ties_even() + zero_point).clamp(0.0, ACTIVATION_MAX);
            ((steps - zero_point) * quantization.scale - value).powi(2)
        };
        distribution.bins().map(|(centre, count)| count as f64 * of(centre)).sum::<f64>()
    };
    let share = least((20..=100).map(|percent| percent as f64 / 100.0), error);
    (share * distribution.min, share * distribution.max)
}

fn least(candidates: impl Iterator<Item = f64>, error: impl Fn(f64) -> f64) -> f64 {
    let errors = candidates.map(|candidate| (candidate, error(candidate)));
    errors.min_by(|a, b| a.1.total_cmp(&b.1)).expect("there are candidates").0
}

fn quantize_layer(
    name: &str,
    layer: &Layer<Floats>,
    input: Quantization,
    output: Option<Quantization>,
    config: &config::Quantize,
) -> Result<Integers> {
    let Floats { weight, bias } = &layer.numbers;
    let taps = layer.geometry.taps();
    // Logits are compared with each other: the last layer has one scale.
    let mut weight_scale = match config.per_channel && output.is_some() {
        true => weight.chunks(taps).map(|channel| weight_scale(channel, config)).collect(),
        false => vec![weight_scale(weight, config)],
    };
    let largest = weight_scale.iter().copied().fold(0.0, f64::max);
    let per_channel = weight_scale.len() > 1;
    for (channel, scale) in weight_scale.iter_mut().enumerate() {
        if *scale == 0.0 {
            *scale = if largest > 0.0 { largest } else { 1.0 }; // all zero: any scale will do
        }
        // A channel that batch norm has almost zeroed keeps its bias: the scale grows until the bias fits 30 bits.
        let biases = bias.iter().flatten().enumerate().filter(|(own, _)| !per_channel || *own == channel);
        let bias = biases.map(|(_, bias)| bias.abs() as f64).fold(0.0, f64::max);
        *scale = scale.max(bias / (input.scale * (1u64 << 29) as f64));
    }
    let output = output.unwrap_or(Quantization { scale: input.scale * weight_scale[0], zero_point: 0 });
    integers(name, layer, input.scale, output, weight_scale)
}

/// Rounds a layer's numbers at these scales; biases at the input's scale times the weights'.
///
/// # Errors
/// A number is NaN or infinite.
fn integers(
    name: &str,
    layer: &Layer<Floats>,
    input_scale: f64,
    output: Quantization,
    weight_scale: Vec<f64>,
) -> Result<Integers> {
    let Floats { weight, bias } = &layer.numbers;
    let all = || weight.iter().chain(bias.iter().flatten());
    if let Some((index, &value)) = all().enumerate().find(|(_, value)| !value.is_finite()) {
        return Err(Error::QuantizeNotFinite { name: name.into(), index, value });
    }
    let mut numbers = Integers { weight: Vec::new(), bias: None, output, requantization: None, weight_scale };
    let taps = layer.geometry.taps();
    let quantized = |(index, value): (usize, &f32)| {
        (*value as f64 / numbers.scale_of(index / taps)).round_ties_even().clamp(-WEIGHT_MAX, WEIGHT_MAX) as i8
    };
    let quantized_bias = |(channel, value): (usize, &f32)| {
        (*value as f64 / (input_scale * numbers.scale_of(channel))).round_ties_even() as i32
    };
    let weight = weight.iter().enumerate().map(quantized).collect();
    let bias = bias.as_ref().map(|bias| bias.iter().enumerate().map(quantized_bias).collect());
    (numbers.weight, numbers.bias) = (weight, bias);
    Ok(numbers)
}

/// Real value of one step of `weights`; 0 if all are 0.
fn weight_scale(weights: &[f32], config: &config::Quantize) -> f64 {
    let count = weights.len() as f64;
    let max = weights.iter().map(|value| value.abs()).fold(0.0, f32::max) as f64;
    let bound = match config.weight_range {
        RangeFrom::Max => max,
        RangeFrom::Sigma3 => {
            let mean = weights.iter().map(|&value| value as f64).sum::<f64>() / count;
            let variance = weights.iter().map(|&value| (value as f64 - mean).powi(2)).sum::<f64>() / count;
            max.min(mean.abs() + 3.0 * variance.sqrt())
        }
        RangeFrom::Percentile => {
            let mut sorted: Vec<f32> = weights.iter().map(|value| value.abs()).collect();
            sorted.sort_by(f32::total_cmp);
            sorted[((config.percentile / 100.0 * count).ceil() as usize).clamp(1, sorted.len()) - 1] as f64
        }
        RangeFrom::Mse => {
            let error = |share: f64| {
                let scale = share * max / WEIGHT_MAX;
                let of = |value: f64| {
                    let steps = (value / scale).round_ties_even().clamp(-WEIGHT_MAX, WEIGHT_MAX);
                    (steps * scale - value).powi(2)
                };
                weights.iter().map(|&value| of(value as f64)).sum::<f64>()
            };
            max * least((20..=100).map(|percent| percent as f64 / 100.0), error)
        }
    };
    // A percentile of mostly zeros may be 0 while the greatest value is not.
    (if bound > 0.0 { bound } else { max }) / WEIGHT_MAX
}

/// Converts real multipliers to integers over a common power of two: the largest from `least_shift` to 50 that fits 31 bits.
fn fixed_point(name: &str, multipliers: &[f64], residual: f64, least_shift: u32) -> Result<Requantization> {
    let residual = residual / (1u64 << RESIDUAL_SHIFT) as f64;
    let greatest = multipliers.iter().copied().fold(residual, f64::max);
    let fixed = |value: f64, shift: u32| (value * (1u64 << shift) as f64).round_ties_even();
    let fitting = (least_shift..=50).rev().find(|&shift| fixed(greatest, shift) <= i32::MAX as f64);
    let Some(shift) = fitting else {
        let problem = format!("a step of its output is {greatest:.1e} times smaller than one of its sums");
        return Err(Error::ScaleOverflow { name: name.into(), problem });
    };
    let multiplier = multipliers.iter().map(|&value| fixed(value, shift) as i32).collect();
    Ok(Requantization { multiplier, residual_multiplier: fixed(residual, shift) as i32, shift })
}

/// Checks that no sum of products, in any order, can leave i32.
fn check_accumulators(net: &IntNet) -> Result<()> {
    for node in &net.nodes {
        let Some(layer) = node.layer() else { continue };
        let taps = layer.geometry.taps();
        for (channel, (weights, start)) in layer.numbers.weight.chunks(taps).zip(net.start(node)).enumerate() {
            let magnitude = weights.iter().map(|&weight| weight.unsigned_abs() as i64).sum::<i64>();
            let most = start.unsigned_abs() as i64 + ACTIVATION_MAX as i64 * magnitude;
            if most > i32::MAX as i64 {
                let problem = format!("channel {channel} can reach {most}, more than an int32 holds");
                return Err(Error::ScaleOverflow { name: node.name.clone(), problem });
            }
        }
    }
    Ok(())
}
