//! The integer network in plain loops: the definition against which the fast kernels are tested, and the fallback for CPUs
//! without them.

use super::graph::{Layer, Node, Operation, Window};
use super::integer::{IntNet, Integers, RESIDUAL_SHIFT};

/// Plain-loop execution from pixels `[n, channels, height, width]` u8 to logits `[n, classes]` i32.
pub struct Reference {
    net: IntNet,
    table: Vec<[u8; 256]>,
    starts: Vec<Vec<i32>>,
    offsets: Vec<i64>,
    weights: Vec<Vec<i32>>, // per node [rows, columns, inputs, outputs]: the inner loop runs over outputs
}

impl Reference {
    /// Prepares the weights of `net`.
    pub fn new(net: &IntNet) -> Reference {
        let starts = net.nodes.iter().map(|node| net.start(node)).collect();
        let offsets = net.nodes.iter().map(|node| net.offset(node)).collect();
        let weights = net.nodes.iter().map(|node| node.layer().map_or_else(Vec::new, outputs_last)).collect();
        Reference { net: net.clone(), table: net.input_table(), starts, offsets, weights }
    }

    /// Computes the logits `[n, classes]` of every image.
    pub fn run(&self, pixels: &[u8]) -> Vec<i32> {
        let spec = &self.net.spec;
        let mut logits = Vec::with_capacity(spec.image_count(pixels) * spec.classes);
        for image in pixels.chunks(spec.image_bytes()) {
            logits.extend(self.image(image).1);
        }
        logits
    }

    /// Every u8 tensor of one image as `[height, width, channels]` (0: the quantized image), and the logits.
    pub fn image(&self, pixels: &[u8]) -> (Vec<Vec<u8>>, Vec<i32>) {
        let [channels, height, width] = self.net.spec.shape;
        let plane = height * width;
        let image = (0..plane).flat_map(|at| (0..channels).map(move |c| (c, at)));
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
                    let (channels, size) = (layer.geometry.outputs, layer.geometry.out_size());
                    tensors.push(match layer.max_pool {
                        true => max_pool(&output, channels, size, Window::HALVING),
                        false => output,
                    });
                }
                &Operation::MaxPool { channels, size, window, .. } => {
                    tensors.push(max_pool(&tensors[node.input], channels, size, window));
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

    /// Computes the accumulators `[height, width, outputs]`.
    fn convolve(&self, index: usize, layer: &Layer<Integers>, node: &Node<Integers>, input: &[u8]) -> Vec<i32> {
        let geometry = layer.geometry;
        let (outputs, [height, width]) = (geometry.outputs, geometry.out_size());
        let zero_point = self.net.quantization(node.input).zero_point;
        let mut sums = Vec::with_capacity(height * width * outputs);
        for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
            let mut sum = self.starts[index].clone();
            let mut weights = self.weights[index].chunks_exact(outputs);
            let [rows, columns] = geometry.kernel;
            for (ky, kx) in (0..rows).flat_map(|ky| (0..columns).map(move |kx| (ky, kx))) {
                let at = |o: usize, k: usize| (o * geometry.stride + k).checked_sub(geometry.padding);
                let inside = at(y, ky).zip(at(x, kx)).filter(|&(y, x)| y < geometry.size[0] && x < geometry.size[1]);
                for c in 0..geometry.inputs {
                    let value =
                        inside.map_or(zero_point, |(y, x)| input[(y * geometry.size[1] + x) * geometry.inputs + c]);
                    let taps = weights.next().expect("a row of weights for every tap");
                    sum.iter_mut().zip(taps).for_each(|(sum, &tap)| *sum += value as i32 * tap);
                }
            }
            sums.extend(sum);
        }
        sums
    }
}

/// Reorders weights `[outputs, inputs, rows, columns]` to `[rows, columns, inputs, outputs]`.
fn outputs_last(layer: &Layer<Integers>) -> Vec<i32> {
    let (geometry, weight) = (layer.geometry, &layer.numbers.weight);
    let area = geometry.kernel[0] * geometry.kernel[1];
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

/// Max-pools `[height, width, channels]` of `size`.
fn max_pool(input: &[u8], channels: usize, size: [usize; 2], window: Window) -> Vec<u8> {
    let [height, width] = window.out_size(size);
    let mut output = Vec::with_capacity(height * width * channels);
    for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
        let (rows, columns) = (window.inside(y, size[0]), window.inside(x, size[1]));
        let greatest = |c: usize| {
            let pixels = rows.clone().flat_map(|y| columns.clone().map(move |x| (y, x)));
            pixels.map(|(y, x)| input[(y * size[1] + x) * channels + c]).max().expect("a window has pixels")
        };
        output.extend((0..channels).map(greatest));
    }
    output
}
