//! Convolutions of few channels on small images, by passes over the images themselves: no im2col, no products of tiny matrices.
//!
//! An image is padded, and its rows are joined to one line. An output is then, at each place of the line, the sum over the taps
//! (channel, y, x) of a weight times the input that lies `y * row + x` further on in its channel; what falls into the gap between
//! two rows is computed and not used.

use super::super::simd::{self, Pass, fma};
use crate::convolution::InstructionSet;

/// Floats that a kernel computes beside each other, a multiple of every vector's.
const LANES: usize = 16;
/// Places of an output's line are a multiple of this.
const PLACES: usize = 2 * LANES;

type Lanes = [f32; LANES];

/// Shape of a convolution of stride 1: images `[images, inputs, height, width]`, weights `[outputs, inputs, kernel, kernel]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub images: usize,
    pub inputs: usize,
    pub outputs: usize,
    pub height: usize,
    pub width: usize,
    pub kernel: usize,
    /// Zeros on each side, fewer than `kernel`.
    pub padding: usize,
}

impl Shape {
    /// Whether the passes over the images are faster than libtorch's convolutions. Measured on a Xeon with AVX-512, one thread,
    /// forward and both gradients together, 5x5 kernels: 3 to 6 channels of 32x32, batch 4 to 128, 1.9 to 1.2 times oneDNN's or
    /// im2col's speed; 6 to 16 channels of 14x14, 1.7 times at batch 4, 1.1 at 32, 1.0 at 128. They compute on one thread: where
    /// libtorch has several `threads`, only the smallest batches are left to them.
    pub fn is_small(&self, threads: usize) -> bool {
        let channels = self.inputs <= 8 && self.outputs <= 16;
        let images = self.images <= 8 || threads == 1 && (self.images <= 32 || self.inputs <= 4);
        let size = self.height * self.width <= 32 * 32 && (1..=7).contains(&self.kernel) && self.padding < self.kernel;
        channels && images && size && self.height.min(self.width) + 2 * self.padding >= self.kernel && self.images > 0
    }

    /// Rows and columns of an output.
    pub fn output(&self) -> [usize; 2] {
        [self.height, self.width].map(|side| side + 2 * self.padding + 1 - self.kernel)
    }

    /// Floats of a row with its padding.
    fn row(&self) -> usize {
        self.width + 2 * self.padding
    }

    /// Floats of a padded image's channel.
    fn plane(&self) -> usize {
        (self.height + 2 * self.padding) * self.row()
    }

    /// Floats of an output's line, from the first output to the last, then whole vectors.
    fn line(&self) -> usize {
        let [rows, columns] = self.output();
        ((rows - 1) * self.row() + columns).next_multiple_of(PLACES)
    }

    /// Floats of a padded image, with what the last vectors read beyond it.
    fn padded_image(&self) -> usize {
        self.inputs * self.plane() + PLACES
    }

    fn taps(&self) -> usize {
        self.inputs * self.kernel * self.kernel
    }

    /// Distance of each tap's input from the output's place.
    fn offsets(&self) -> Vec<usize> {
        let mut offsets = Vec::with_capacity(self.taps());
        for channel in 0..self.inputs {
            for y in 0..self.kernel {
                let row = channel * self.plane() + y * self.row();
                offsets.extend(row..row + self.kernel);
            }
        }
        offsets
    }

    /// The convolution that makes the gradient of the images from that of the outputs.
    fn transposed(&self) -> Shape {
        let [height, width] = self.output();
        let padding = self.kernel - 1 - self.padding;
        Shape { inputs: self.outputs, outputs: self.inputs, height, width, padding, ..*self }
    }

    /// `images` in their padded form, which [`forward`](Self::forward) and [`weight_gradient`](Self::weight_gradient) read.
    pub fn padded(&self, images: &[f32]) -> Vec<f32> {
        let mut padded = vec![0.0; self.images * self.padded_image()];
        let (row, size) = (self.row(), self.height * self.width);
        let each = images.chunks_exact(self.inputs * size).zip(padded.chunks_exact_mut(self.padded_image()));
        for (image, padded) in each {
            if self.padding == 0 {
                padded[..image.len()].copy_from_slice(image);
                continue;
            }
            for (channel, padded) in image.chunks_exact(size).zip(padded.chunks_exact_mut(self.plane())) {
                let rows = padded[self.padding * row..].chunks_mut(row);
                for (from, to) in channel.chunks_exact(self.width).zip(rows) {
                    to[self.padding..][..self.width].copy_from_slice(from);
                }
            }
        }
        padded
    }

    /// Sets `outputs` `[images, outputs, ..]` to the convolution of the `padded` images plus `bias`, with ReLU if `rectified`.
    pub fn forward(
        &self,
        isa: InstructionSet,
        padded: &[f32],
        weights: &[f32],
        bias: Option<&[f32]>,
        rectified: bool,
        outputs: &mut [f32],
    ) {
        let by = match (isa, self.outputs) {
            #[cfg(target_arch = "x86_64")]
            (InstructionSet::Avx512, channels) if channels % 6 != 0 && channels > 4 => Self::forward_by::<8, 2>,
            #[cfg(target_arch = "x86_64")]
            (InstructionSet::Avx512, channels) if channels % 6 == 0 => Self::forward_by::<6, 2>,
            #[cfg(target_arch = "x86_64")]
            (InstructionSet::Avx512, _) => Self::forward_by::<4, 2>,
            (_, channels) if channels % 6 == 0 => Self::forward_by::<6, 1>,
            _ => Self::forward_by::<4, 1>,
        };
        by(self, isa, padded, weights, bias, rectified, outputs);
    }

    fn forward_by<const OUTPUTS: usize, const VECTORS: usize>(
        &self,
        isa: InstructionSet,
        padded: &[f32],
        weights: &[f32],
        bias: Option<&[f32]>,
        rectified: bool,
        outputs: &mut [f32],
    ) {
        let (taps, line) = (self.taps(), self.line());
        let mut by_tap = vec![[0.0; OUTPUTS]; self.outputs.div_ceil(OUTPUTS) * taps]; // [block of outputs][tap][output]
        for (output, weights) in weights.chunks_exact(taps).enumerate() {
            let block = &mut by_tap[output / OUTPUTS * taps..];
            block.iter_mut().zip(weights).for_each(|(by_tap, weight)| by_tap[output % OUTPUTS] = *weight);
        }
        let offsets = self.offsets();
        assert!(offsets.last().is_some_and(|last| last + line <= self.padded_image()));
        let mut lines = vec![0.0; OUTPUTS * line];
        let [rows, columns] = self.output();
        let size = rows * columns;
        for (image, outputs) in
            padded.chunks_exact(self.padded_image()).zip(outputs.chunks_exact_mut(self.outputs * size))
        {
            let blocks = by_tap.chunks_exact(taps).zip(outputs.chunks_mut(OUTPUTS * size));
            for (block, (weights, outputs)) in blocks.enumerate() {
                let (offsets, bias) = (&offsets, bias.map(|bias| &bias[block * OUTPUTS..]));
                let (extents, lines) = ([rows, columns, self.row()], &mut lines[..]);
                let sums = Sums::<OUTPUTS, VECTORS> {
                    image,
                    weights,
                    offsets,
                    line,
                    lines,
                    bias,
                    rectified,
                    extents,
                    outputs,
                };
                simd::once(isa, sums);
            }
        }
    }

    /// Sets `images` to their gradient, from that of the `outputs`.
    pub fn input_gradient(&self, isa: InstructionSet, outputs: &[f32], weights: &[f32], images: &mut [f32]) {
        let area = self.kernel * self.kernel;
        let mut turned = vec![0.0; weights.len()];
        for (output, weights) in weights.chunks_exact(self.taps()).enumerate() {
            for (input, weights) in weights.chunks_exact(area).enumerate() {
                let to = &mut turned[(input * self.outputs + output) * area..][..area];
                to.iter_mut().rev().zip(weights).for_each(|(to, weight)| *to = *weight);
            }
        }
        let transposed = self.transposed();
        transposed.forward(isa, &transposed.padded(outputs), &turned, None, false, images);
    }

    /// Sets `weights` to their gradient, from the `padded` images and the gradient of the `outputs`.
    pub fn weight_gradient(&self, isa: InstructionSet, padded: &[f32], outputs: &[f32], weights: &mut [f32]) {
        let by = match (isa, self.outputs) {
            #[cfg(target_arch = "x86_64")]
            (InstructionSet::Avx512, channels) if channels % 4 == 0 => Self::weight_gradient_by::<4, 5>,
            #[cfg(target_arch = "x86_64")]
            (InstructionSet::Avx512, _) => Self::weight_gradient_by::<3, 5>,
            _ => Self::weight_gradient_by::<2, 3>,
        };
        by(self, isa, padded, outputs, weights);
    }

    fn weight_gradient_by<const ROWS: usize, const TAPS: usize>(
        &self,
        isa: InstructionSet,
        padded: &[f32],
        outputs: &[f32],
        weights: &mut [f32],
    ) {
        let ([rows, columns], length) = (self.output(), self.line());
        let lines_of_image = self.outputs.next_multiple_of(ROWS);
        let mut lines = vec![0.0; self.images * lines_of_image * length]; // zero in the gaps
        let each =
            outputs.chunks_exact(self.outputs * rows * columns).zip(lines.chunks_exact_mut(lines_of_image * length));
        for (outputs, lines) in each {
            for (from, line) in outputs.chunks_exact(rows * columns).zip(lines.chunks_exact_mut(length)) {
                for (to, from) in line.chunks_mut(self.row()).zip(from.chunks_exact(columns)) {
                    to[..columns].copy_from_slice(from);
                }
            }
        }
        let mut offsets = self.offsets();
        assert!(offsets.last().is_some_and(|last| last + length <= self.padded_image()));
        let taps = self.taps();
        offsets.resize(taps.next_multiple_of(TAPS), 0);
        let products = Products::<ROWS, TAPS> {
            padded: padded.chunks_exact(self.padded_image()).collect(),
            lines: lines.chunks_exact(lines_of_image * length).collect(),
            length,
            offsets: &offsets,
            lanes: &mut vec![[0.0; LANES]; lines_of_image * offsets.len()],
            taps,
            weights,
        };
        simd::once(isa, products);
    }
}

/// Sum of the lanes by halving, in an order that no instruction set changes.
#[inline(always)]
fn sum(mut lanes: Lanes) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// `OUTPUTS` output channels of one image, `VECTORS` vectors of places at a time.
struct Sums<'a, const OUTPUTS: usize, const VECTORS: usize> {
    /// Padded; holds `line` floats from each offset on.
    image: &'a [f32],
    /// Weights of each tap.
    weights: &'a [[f32; OUTPUTS]],
    offsets: &'a [usize],
    /// Floats of an output's line.
    line: usize,
    /// Work space, `[OUTPUTS, line]`.
    lines: &'a mut [f32],
    bias: Option<&'a [f32]>,
    rectified: bool,
    /// Rows and columns of an output, floats of a row of the line.
    extents: [usize; 3],
    /// Channels `[.., rows, columns]`, at most `OUTPUTS`.
    outputs: &'a mut [f32],
}

impl<const OUTPUTS: usize, const VECTORS: usize> Sums<'_, OUTPUTS, VECTORS> {
    /// Sets the lines.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // of arrays that are to stay in registers
    fn sum<const FMA: bool>(&mut self) {
        for place in (0..self.line).step_by(LANES * VECTORS) {
            let mut sums = [[[0f32; LANES]; VECTORS]; OUTPUTS];
            for (offset, weights) in self.offsets.iter().zip(self.weights) {
                // SAFETY: `place` and a turn's vectors lie below `line`, which fits into the image from every offset on.
                let read = |vector: usize| unsafe {
                    self.image.as_ptr().add(offset + place + vector * LANES).cast::<Lanes>().read_unaligned()
                };
                let input: [Lanes; VECTORS] = std::array::from_fn(read);
                for output in 0..OUTPUTS {
                    for vector in 0..VECTORS {
                        for lane in 0..LANES {
                            let sum = &mut sums[output][vector][lane];
                            *sum = fma::<FMA>(weights[output], input[vector][lane], *sum);
                        }
                    }
                }
            }
            for output in 0..OUTPUTS {
                for vector in 0..VECTORS {
                    let at = output * self.line + place + vector * LANES;
                    *self.lines[at..].first_chunk_mut().expect("whole vectors") = sums[output][vector];
                }
            }
        }
    }
}

impl<const OUTPUTS: usize, const VECTORS: usize> Pass for Sums<'_, OUTPUTS, VECTORS> {
    #[inline(always)]
    fn run<const FMA: bool>(mut self) {
        self.sum::<FMA>();
        let [rows, columns, row] = self.extents;
        let channels = self.outputs.chunks_exact_mut(rows * columns).zip(self.lines.chunks_exact(self.line));
        for (channel, (output, line)) in channels.enumerate() {
            let bias = match self.bias {
                Some(bias) => bias[channel],
                None => 0.0,
            };
            for (to, from) in output.chunks_exact_mut(columns).zip(line.chunks(row)) {
                for (to, from) in to.iter_mut().zip(from) {
                    let value = from + bias;
                    *to = if self.rectified && value < 0.0 { 0.0 } else { value };
                }
            }
        }
    }
}

/// Products of the outputs' gradients with the inputs of each tap, summed over images and places: lane by lane, then over lanes.
struct Products<'a, const ROWS: usize, const TAPS: usize> {
    /// Padded images, each with `length` floats from each offset on.
    padded: Vec<&'a [f32]>,
    /// `[outputs, length]` of each image, whole `ROWS`.
    lines: Vec<&'a [f32]>,
    length: usize,
    /// Whole `TAPS`.
    offsets: &'a [usize],
    /// Work space, `[lines of an image, offsets]`.
    lanes: &'a mut [Lanes],
    taps: usize,
    /// `[outputs, taps]`.
    weights: &'a mut [f32],
}

impl<const ROWS: usize, const TAPS: usize> Pass for Products<'_, ROWS, TAPS> {
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // of arrays that are to stay in registers
    fn run<const FMA: bool>(self) {
        let blocks = self.offsets.len() / TAPS;
        for unit in 0..self.lanes.len() / (ROWS * TAPS) {
            let (row, tap) = (unit / blocks * ROWS, unit % blocks * TAPS);
            let offsets: [usize; TAPS] = std::array::from_fn(|of| self.offsets[tap + of]);
            let mut sums = [[[0f32; LANES]; TAPS]; ROWS];
            for (image, lines) in self.padded.iter().zip(&self.lines) {
                for place in (0..self.length).step_by(LANES) {
                    // SAFETY: `place` lies below `length`, which fits into the lines and into the image from every offset on.
                    let read = |from: &[f32], at: usize| unsafe {
                        from.as_ptr().add(at + place).cast::<Lanes>().read_unaligned()
                    };
                    let left: [Lanes; ROWS] = std::array::from_fn(|of| read(lines, (row + of) * self.length));
                    let right: [Lanes; TAPS] = std::array::from_fn(|of| read(image, offsets[of]));
                    for row in 0..ROWS {
                        for tap in 0..TAPS {
                            for lane in 0..LANES {
                                let sum = &mut sums[row][tap][lane];
                                *sum = fma::<FMA>(left[row][lane], right[tap][lane], *sum);
                            }
                        }
                    }
                }
            }
            for of_row in 0..ROWS {
                for of_tap in 0..TAPS {
                    self.lanes[(row + of_row) * self.offsets.len() + tap + of_tap] = sums[of_row][of_tap];
                }
            }
        }
        for (weights, lanes) in
            self.weights.chunks_exact_mut(self.taps).zip(self.lanes.chunks_exact(self.offsets.len()))
        {
            for (weight, lanes) in weights.iter_mut().zip(lanes) {
                *weight = sum(*lanes);
            }
        }
    }
}

/// Keeps of the gradient `given` of an output with ReLU what its gate lets through.
pub(super) struct Gate<'a> {
    pub given: &'a [f32],
    /// The output.
    pub output: &'a [f32],
    pub to: &'a mut [f32],
}

impl Pass for Gate<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        for ((to, given), output) in self.to.iter_mut().zip(self.given).zip(self.output) {
            *to = if *output > 0.0 { *given } else { 0.0 };
        }
    }
}
