//! The integer network, as stored, exported and executed. The arithmetic of every execution:
//!
//! ```text
//! acc    = bias + sum over the taps of (x - x_zero_point) * w            i32, x u8, w i8; padding is x_zero_point
//! y      = clamp((acc * multiplier + ((r - r_zero_point) << 8) * residual_multiplier + 2^(shift-1)) >> shift + zero_point)
//! ```
//!
//! in i64 with an arithmetic shift, clamped to [0, 255], `r` the residual; the output of the last layer is `acc` (i32
//! logits). ReLU is the clamp at zero point 0. In the average pool `acc` is the sum over the image.

use super::graph::{Node, Spec};

/// Left shift of the residual, in bits. With it the residual's multiplier and the layer's, which is far smaller, share one
/// `shift` without losing bits.
pub const RESIDUAL_SHIFT: u32 = 8;

/// Mapping of a tensor's u8 values to real ones: `real = (value - zero_point) * scale`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantization {
    /// Real value of one step.
    pub scale: f64,
    /// Value that stands for 0.
    pub zero_point: u8,
}

/// Fixed-point factors from i32 accumulators to u8.
#[derive(Debug, Clone, PartialEq)]
pub struct Requantization {
    /// Multiplier per output channel (one for the average pool), 0 to 2^31 - 1.
    pub multiplier: Vec<i32>,
    /// Multiplier of the residual; 0 without one.
    pub residual_multiplier: i32,
    /// Right shift in bits, 32 to 50.
    pub shift: u32,
}

/// Numbers of an integer layer; `weight`, `weight_scale` and `bias` are empty for a pool.
#[derive(Debug, Clone, PartialEq)]
pub struct Integers {
    /// Weights `[outputs, inputs, rows, columns]`, each in [-127, 127].
    pub weight: Vec<i8>,
    /// Weight scale, one or one per output channel: real weight = weight * scale.
    pub weight_scale: Vec<f64>,
    /// Bias `[outputs]` at the scale input scale * weight scale; `None` if the layer has none.
    pub bias: Option<Vec<i32>>,
    /// Quantization of the tensor that the layer makes; for the last layer the scale of its logits, zero point 0.
    pub output: Quantization,
    /// Requantization, computed by `scheme::complete`; `None` for a max-pool and the last layer, whose outputs are the
    /// accumulators.
    pub requantization: Option<Requantization>,
}

impl Integers {
    /// Numbers of a pool, without its requantization.
    pub fn pool(output: Quantization) -> Integers {
        Integers { weight: Vec::new(), weight_scale: Vec::new(), bias: None, output, requantization: None }
    }

    /// Weight scale of an output channel.
    pub fn scale_of(&self, channel: usize) -> f64 {
        if self.weight_scale.len() == 1 { self.weight_scale[0] } else { self.weight_scale[channel] }
    }
}

/// The integer network.
#[derive(Debug, Clone, PartialEq)]
pub struct IntNet {
    /// Network, images and classes.
    pub spec: Spec,
    /// Quantization of the normalized image.
    pub input: Quantization,
    /// Nodes in the order of the forward pass.
    pub nodes: Vec<Node<Integers>>,
}

impl IntNet {
    /// Quantization of tensor `index` (0: the image).
    pub fn quantization(&self, index: usize) -> Quantization {
        match index {
            0 => self.input,
            _ => self.nodes[index - 1].numbers().output,
        }
    }

    /// (channels, height and width) of tensor `index` (0: the image).
    pub fn shape(&self, index: usize) -> (usize, [usize; 2]) {
        let [channels, height, width] = self.spec.shape;
        if index == 0 { (channels, [height, width]) } else { self.nodes[index - 1].shape() }
    }

    /// Table from pixel to quantized input, per channel: normalization and quantization in one look-up.
    pub fn input_table(&self) -> Vec<[u8; 256]> {
        let channel = |(mean, std): (&f32, &f32)| {
            std::array::from_fn(|pixel| {
                let real = (pixel as f32 / 255.0 - mean) / std;
                let steps = (real as f64 / self.input.scale).round_ties_even() + self.input.zero_point as f64;
                steps.clamp(0.0, 255.0) as u8
            })
        };
        self.spec.mean.iter().zip(&self.spec.std).map(channel).collect()
    }

    /// Initial accumulators `[outputs]`: the bias less the input's zero point times the sum of the weights.
    pub fn start(&self, node: &Node<Integers>) -> Vec<i32> {
        let Some(layer) = node.layer() else { return Vec::new() };
        let zero_point = self.quantization(node.input).zero_point as i32;
        let taps = layer.geometry.taps();
        let sums = layer.numbers.weight.chunks(taps).map(|taps| taps.iter().map(|&tap| tap as i32).sum::<i32>());
        let bias = |channel: usize| layer.numbers.bias.as_ref().map_or(0, |bias| bias[channel]);
        sums.enumerate().map(|(channel, sum)| bias(channel) - zero_point * sum).collect()
    }

    /// Term added to the 64-bit sum before the shift: rounding, the residual's zero point, the output's zero point.
    pub fn offset(&self, node: &Node<Integers>) -> i64 {
        let (numbers, residual) = (node.numbers(), node.layer().and_then(|layer| layer.residual));
        let Some(requantization) = &numbers.requantization else { return 0 };
        let mut offset = 1i64 << (requantization.shift - 1);
        offset += (numbers.output.zero_point as i64) << requantization.shift;
        if let Some(residual) = residual {
            let zero_point = (self.quantization(residual).zero_point as i64) << RESIDUAL_SHIFT;
            offset -= zero_point * requantization.residual_multiplier as i64;
        }
        offset
    }

    /// Bytes of a checkpoint's numbers: weights (1 each), biases (4 each), scales (8 each).
    pub fn bytes(&self) -> usize {
        let bytes = |numbers: &Integers| {
            numbers.weight.len() + 8 * (numbers.weight_scale.len() + 1) + 4 * numbers.bias.as_ref().map_or(0, Vec::len)
        };
        self.nodes.iter().map(|node| bytes(node.numbers())).sum()
    }
}

/// Index of the greatest logit of each image, the first among equals. `logits` `[n, classes]`.
pub fn predictions(logits: &[i32], classes: usize) -> Vec<usize> {
    let greatest = |image: &[i32]| (0..classes).rev().max_by_key(|&class| image[class]).expect("there are classes");
    logits.chunks(classes).map(greatest).collect()
}
