//! The integer network in plain loops: the definition against which the fast kernels are tested, and the fallback for CPUs
//! without them.

use super::graph::{CLASSES, IMAGE_BYTES, IMAGE_SIDE, Layer, Node, Operation};
use super::integer::{IntNet, Integers, RESIDUAL_SHIFT, image_count};

/// Plain-loop execution from pixels `[n, 3, 32, 32]` u8 to logits `[n, 10]` i32.
pub struct Reference {
    net: IntNet,
    table: [[u8; 256]; 3],
    starts: Vec<Vec<i32>>,
    offsets: Vec<i64>,
    weights: Vec<Vec<i32>>, // per node [kernel, kernel, inputs, outputs]: the inner loop runs over outputs
}

impl Reference {
    /// Prepares the weights of `net`.
    pub fn new(net: &IntNet) -> Reference {
        let starts = net.nodes.iter().map(|node| net.start(node)).collect();
        let offsets = net.nodes.iter().map(|node| net.offset(node)).collect();
        let weights = net.nodes.iter().map(|node| node.layer().map_or_else(Vec::new, outputs_last)).collect();
        Reference { net: net.clone(), table: net.input_table(), starts, offsets, weights }
    }

    /// Computes the logits `[n, 10]` of every image.
    pub fn run(&self, pixels: &[u8]) -> Vec<i32> {
        let mut logits = Vec::with_capacity(image_count(pixels) * CLASSES);
        for image in pixels.chunks(IMAGE_BYTES) {
            logits.extend(self.image(image).1);
        }
        logits
    }

    /// Every u8 tensor of one image as `[side, side, channels]` (0: the quantized image), and the logits.
    pub fn image(&self, pixels: &[u8]) -> (Vec<Vec<u8>>, Vec<i32>) {
        let plane = IMAGE_SIDE * IMAGE_SIDE;
        let image = (0..plane).flat_map(|at| (0..3).map(move |c| (c, at)));
        let mut tensors: Vec<Vec<u8>> =
            vec![image.map(|(c, at)| self.table[c][pixels[c * plane + at] as usize]).collect()];
        let mut logits = Vec::new();
        for (index, node) in self.net.nodes.iter().enumerate() {
            match &node.operation {
                Operation::Convolution(layer) => {
                    let sums = self.convolve(index, layer, node, &tensors[node.input]);
                    if layer.numbers.requantization.is_none() {
                        logits = sums;
                        continue;
                    }
                    let residual = layer.residual.map(|tensor| tensors[tensor].as_slice());
                    let output = requantize(&sums, residual, &layer.numbers, self.offsets[index]);
                    let (channels, side) = (layer.geometry.outputs, layer.geometry.out_side());
                    tensors.push(if layer.max_pool { max_pool(&output, side, channels) } else { output });
                }
                Operation::AveragePool { channels, numbers, .. } => {
                    let sum =
                        |channel| tensors[node.input][channel..].iter().step_by(*channels).map(|&x| x as i32).sum();
                    let zero_point = self.net.quantization(node.input).zero_point;
                    assert_eq!(zero_point, 0, "the average pool follows a ReLU");
                    let sums: Vec<i32> = (0..*channels).map(sum).collect();
                    tensors.push(requantize(&sums, None, numbers, self.offsets[index]));
                }
            }
        }
        (tensors, logits)
    }

    /// Computes the accumulators `[side, side, outputs]`.
    fn convolve(&self, index: usize, layer: &Layer<Integers>, node: &Node<Integers>, input: &[u8]) -> Vec<i32> {
        let geometry = layer.geometry;
        let (outputs, side) = (geometry.outputs, geometry.out_side());
        let zero_point = self.net.quantization(node.input).zero_point;
        let mut sums = Vec::with_capacity(side * side * outputs);
        for (y, x) in (0..side).flat_map(|y| (0..side).map(move |x| (y, x))) {
            let mut sum = self.starts[index].clone();
            let mut weights = self.weights[index].chunks_exact(outputs);
            for (ky, kx) in (0..geometry.kernel).flat_map(|ky| (0..geometry.kernel).map(move |kx| (ky, kx))) {
                let at = |o: usize, k: usize| (o * geometry.stride + k).checked_sub(geometry.padding);
                let inside = at(y, ky).zip(at(x, kx)).filter(|&(y, x)| y < geometry.side && x < geometry.side);
                for c in 0..geometry.inputs {
                    let value =
                        inside.map_or(zero_point, |(y, x)| input[(y * geometry.side + x) * geometry.inputs + c]);
                    let taps = weights.next().expect("a row of weights for every tap");
                    sum.iter_mut().zip(taps).for_each(|(sum, &tap)| *sum += value as i32 * tap);
                }
            }
            sums.extend(sum);
        }
        sums
    }
}

/// Reorders weights `[outputs, inputs, kernel, kernel]` to `[kernel, kernel, inputs, outputs]`.
fn outputs_last(layer: &Layer<Integers>) -> Vec<i32> {
    let (geometry, weight) = (layer.geometry, &layer.numbers.weight);
    let area = geometry.kernel * geometry.kernel;
    let mut turned = Vec::with_capacity(weight.len());
    for (tap, c) in (0..area).flat_map(|tap| (0..geometry.inputs).map(move |c| (tap, c))) {
        turned.extend((0..geometry.outputs).map(|o| weight[(o * geometry.inputs + c) * area + tap] as i32));
    }
    turned
}

/// Applies the formula of [`super::integer`].
fn requantize(sums: &[i32], residual: Option<&[u8]>, numbers: &Integers, offset: i64) -> Vec<u8> {
    let requantization = numbers.requantization.as_ref().expect("only the last layer has none");
    let multiplier = &requantization.multiplier;
    let residual_multiplier = requantization.residual_multiplier as i64;
    let one = |(at, &sum): (usize, &i32)| {
        let added = residual.map_or(0, |residual| ((residual[at] as i64) << RESIDUAL_SHIFT) * residual_multiplier);
        let total = sum as i64 * multiplier[at % multiplier.len()] as i64 + added + offset;
        (total >> requantization.shift).clamp(0, 255) as u8
    };
    sums.iter().enumerate().map(one).collect()
}

/// Max-pools `[side, side, channels]` to half the side.
fn max_pool(input: &[u8], side: usize, channels: usize) -> Vec<u8> {
    let half = side / 2;
    let mut output = Vec::with_capacity(half * half * channels);
    for (y, x) in (0..half).flat_map(|y| (0..half).map(move |x| (y, x))) {
        let corner = (2 * y * side + 2 * x) * channels;
        let window = [0, channels, side * channels, (side + 1) * channels].map(|step| corner + step);
        output.extend((0..channels).map(|c| window.map(|at| input[at + c]).into_iter().max().expect("four")));
    }
    output
}
