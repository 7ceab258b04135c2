//! The integer network on float tensors: every value is an integer held in a float, as quantization is usually simulated.
//! The sums come from libtorch's float convolutions, so that it shares nothing but the definition with the kernels.
//!
//! float32 adds integers exactly up to 2^24. Where a layer's sums could grow beyond, its input channels are cut into
//! groups whose sums provably cannot, and those are added in float64. A GPU convolves in float64: its fast algorithms for
//! float32 (Winograd's) multiply with fractions.

use tch::{Device, Kind, Tensor};

use super::float_network::{Keep, convolve, forget, last_reads, max_pool};
use super::graph::{Layer, Node, Operation, Spec, Window};
use super::integer::{IntNet, Integers, RESIDUAL_SHIFT};
use crate::error::{Error, Result};

/// Bound below which every integer is exact in float32, or float64.
fn exact(kind: Kind) -> i64 {
    if kind == Kind::Double { 1 << 53 } else { 1 << 24 }
}

/// The simulated integer network.
pub struct Simulated {
    net: IntNet,
    device: Device,
    kind: Kind,                  // type of the convolutions
    table: Tensor,               // [channels * 256] f32
    groups: Vec<Vec<Group>>,     // per node
    multipliers: Vec<Tensor>,    // per node [1, outputs, 1, 1] i64
    biases: Vec<Option<Tensor>>, // per node [1, outputs, 1, 1] f64
}

/// Input channels whose sums float32 holds exactly.
struct Group {
    first: i64,
    count: i64,
    weight: Tensor, // [outputs, count, rows, columns]
}

impl Simulated {
    /// Copies the integers into float tensors in host memory.
    pub fn new(net: &IntNet) -> Simulated {
        Simulated::on(net, Device::Cpu, Kind::Float)
    }

    /// Copies the integers to `device`, which convolves in `kind`: float32 if its sums are exact, float64 otherwise.
    pub fn on(net: &IntNet, device: Device, kind: Kind) -> Simulated {
        let table: Vec<f32> = net.input_table().iter().flatten().map(|&value| value as f32).collect();
        let per_channel = |values: Vec<i64>| Tensor::from_slice(&values).view([1, -1, 1, 1]).to_device(device);
        let multiplier = |node: &Node<Integers>| {
            let numbers = node.numbers();
            let multiplier = numbers.requantization.as_ref().map_or(&[0][..], |r| &r.multiplier);
            per_channel(multiplier.iter().map(|&value| value as i64).collect())
        };
        let bias = |node: &Node<Integers>| {
            let bias = node.layer()?.numbers.bias.as_ref()?;
            Some(per_channel(bias.iter().map(|&value| value as i64).collect()).to_kind(Kind::Double))
        };
        let group = |node: &Node<Integers>| match node.layer() {
            Some(layer) => groups(layer, net.quantization(node.input).zero_point, device, kind),
            None => Vec::new(),
        };
        Simulated {
            device,
            kind,
            table: Tensor::from_slice(&table).to_device(device),
            groups: net.nodes.iter().map(group).collect(),
            multipliers: net.nodes.iter().map(multiplier).collect(),
            biases: net.nodes.iter().map(bias).collect(),
            net: net.clone(),
        }
    }

    /// Network, images and classes.
    pub fn spec(&self) -> &Spec {
        &self.net.spec
    }

    /// Computes logits `[n, classes]` i32 of `pixels` `[n, channels, height, width]` u8.
    ///
    /// # Errors
    /// A value is out of range or not whole; the error names its layer.
    pub fn run(&self, pixels: &[u8]) -> Result<Vec<i32>> {
        Ok(self.forward(pixels, Keep::Last)?.1)
    }

    /// Every u8 tensor as `[n, channels, height, width]` float32 (0: the quantized images), and the logits.
    ///
    /// # Errors
    /// A value is out of range or not whole; the error names its layer. A network that passed [`super::scheme::complete`] has
    /// none.
    pub fn trace(&self, pixels: &[u8]) -> Result<(Vec<Tensor>, Vec<i32>)> {
        self.forward(pixels, Keep::All)
    }

    fn forward(&self, pixels: &[u8], keep: Keep) -> Result<(Vec<Tensor>, Vec<i32>)> {
        let _guard = tch::no_grad_guard();
        let last_reads = last_reads(&self.net.nodes);
        let shift: Vec<i64> = (0..self.net.spec.shape[0]).map(|channel| 256 * channel as i64).collect();
        let shift = Tensor::from_slice(&shift).view([1, -1, 1, 1]).to_device(self.device);
        let indices = self.net.spec.pixel_tensor(pixels).to_device(self.device).to_kind(Kind::Int64) + shift;
        let mut tensors = vec![self.table.index_select(0, &indices.flatten(0, -1)).view_as(&indices)];
        for (index, node) in self.net.nodes.iter().enumerate() {
            if keep == Keep::Last && index > 0 {
                forget(&mut tensors, &last_reads, index - 1);
            }
            let sums = match &node.operation {
                Operation::MaxPool { window, .. } => {
                    tensors.push(max_pool(&tensors[node.input], *window));
                    continue;
                }
                Operation::Convolution(layer) => self.sums(index, node, layer, &tensors[node.input]),
                Operation::AveragePool { .. } => {
                    tensors[node.input].to_kind(Kind::Double).sum_dim_intlist([2i64, 3].as_slice(), true, Kind::Double)
                }
            };
            check(&node.name, &sums, i32::MIN as f64, i32::MAX as f64)?;
            let sums = sums.to_kind(Kind::Int64);
            if node.numbers().requantization.is_none() {
                let logits: Vec<i64> = sums.flatten(0, -1).try_into().expect("a vector of integers");
                return Ok((tensors, logits.into_iter().map(|logit| logit as i32).collect()));
            }
            let residual = node.layer().and_then(|layer| layer.residual);
            let residual = residual.map(|tensor| (&tensors[tensor], self.net.quantization(tensor).zero_point));
            let output = requantize(node.numbers(), sums, &self.multipliers[index], residual);
            let output = if node.layer().is_some_and(|layer| layer.max_pool) {
                max_pool(&output, Window::HALVING)
            } else {
                output
            };
            check(&node.name, &output, 0.0, 255.0)?;
            tensors.push(output);
        }
        unreachable!("the last layer has no requantization")
    }

    /// bias + sum of (x - zero_point) * w, whole numbers in float64, `[n, outputs, height, width]`.
    fn sums(&self, index: usize, node: &Node<Integers>, layer: &Layer<Integers>, input: &Tensor) -> Tensor {
        let centred = input.to_kind(self.kind) - self.net.quantization(node.input).zero_point as f64;
        let parts = self.groups[index].iter().map(|group| {
            let input = centred.narrow(1, group.first, group.count);
            convolve(&input, &group.weight, None, layer.geometry).to_kind(Kind::Double)
        });
        let sums = parts.reduce(|sum, part| sum + part).expect("a layer has inputs");
        match &self.biases[index] {
            Some(bias) => sums + bias,
            None => sums,
        }
    }
}

/// Cuts a layer into the fewest equal groups in which no output's sum of magnitudes exceeds what `kind` holds exactly.
fn groups(layer: &Layer<Integers>, zero_point: u8, device: Device, kind: Kind) -> Vec<Group> {
    let geometry = layer.geometry;
    let (area, taps) = (geometry.kernel[0] * geometry.kernel[1], geometry.taps());
    let most = zero_point.max(255 - zero_point) as i64;
    let fits = |channels: usize| {
        layer.numbers.weight.chunks(taps).all(|output| {
            let sums =
                output.chunks(channels * area).map(|group| group.iter().map(|w| w.unsigned_abs() as i64).sum::<i64>());
            sums.max().is_none_or(|sum| sum * most < exact(kind))
        })
    };
    let splits = (1..=geometry.inputs).map(|groups| geometry.inputs.div_ceil(groups));
    let channels = splits.into_iter().find(|&channels| fits(channels)).expect("one channel's taps fit");
    let weight: Vec<f32> = layer.numbers.weight.iter().map(|&weight| weight as f32).collect();
    let weight = Tensor::from_slice(&weight).view(geometry.weight_shape().map(|extent| extent as i64));
    let weight = weight.to_kind(kind).to_device(device);
    let firsts = (0..geometry.inputs).step_by(channels);
    let group = |first: usize| {
        let (first, count) = (first as i64, channels.min(geometry.inputs - first) as i64);
        Group { first, count, weight: weight.narrow(1, first, count).contiguous() }
    };
    firsts.map(group).collect()
}

/// Applies the formula of [`super::integer`] in int64 tensors.
fn requantize(numbers: &Integers, sums: Tensor, multiplier: &Tensor, residual: Option<(&Tensor, u8)>) -> Tensor {
    let requantization = numbers.requantization.as_ref().expect("only the last layer has none");
    let shift = requantization.shift as i64;
    let mut total = sums * multiplier;
    if let Some((residual, zero_point)) = residual {
        let factor = (requantization.residual_multiplier as i64) << RESIDUAL_SHIFT;
        total += (residual.to_kind(Kind::Int64) - zero_point as i64) * factor;
    }
    let rounded = total + (1i64 << (shift - 1));
    let output = rounded.bitwise_right_shift_tensor_scalar(shift) + numbers.output.zero_point as i64;
    output.clamp(0, 255).to_kind(Kind::Float)
}

fn check(name: &str, values: &Tensor, least: f64, most: f64) -> Result<()> {
    let whole = values.eq_tensor(&values.round()).all().int64_value(&[]) != 0;
    let (min, max) = (values.min().double_value(&[]), values.max().double_value(&[]));
    if whole && min >= least && max <= most {
        return Ok(());
    }
    let problem = format!("values from {min} to {max}, expected whole numbers from {least} to {most}");
    Err(Error::ScaleOverflow { name: name.into(), problem })
}
