//! Batch norm with a shortcut and ReLU on CPU cores, for tensors `[rows, channels]` in memory (NHWC). Memory bounds its speed, so
//! each of the two passes forward (statistics, result) and backward (sums, gradient) reads a tensor once, and the gradient of the
//! input overwrites that of the output where it can.
//!
//! Sums are float32 over a chunk of some 64 rows and float64 from chunk to chunk, in an order that depends on the shape alone:
//! equal inputs give equal results, bit for bit, on any number of threads.

use std::ops::Range;

use super::super::simd::{Kernel, fma};
use super::layout::{Element, Parts, Shape, fold};
use crate::convolution::InstructionSet;

/// Mean, and sum of the squared differences from it, of a channel over some rows.
///
/// Two sets are joined by Chan's formula. Source: Chan, Golub, LeVeque, Updating Formulae and a Pairwise Algorithm for Computing
/// Sample Variances (1979).
#[derive(Debug, Clone, Copy, Default)]
struct Moments {
    mean: f64,
    squares: f64,
}

impl Moments {
    /// Joins `other`, over `more` rows, to these over `rows`.
    #[inline(always)]
    fn join(&mut self, rows: f64, other: Moments, more: f64) {
        let (apart, share) = (other.mean - self.mean, more / (rows + more));
        self.mean += apart * share;
        self.squares += other.squares + apart * apart * share * rows;
    }
}

/// Moments of each block: `[blocks, channels]`.
struct Statistics<'a, T> {
    shape: Shape,
    x: &'a [T],
    moments: Parts<Moments>,
}

impl<T: Element> Kernel for Statistics<'_, T> {
    #[inline(always)]
    fn run<const FMA: bool>(&self, blocks: Range<usize>) {
        let Statistics { shape, x, moments } = self;
        let (channels, line) = (shape.channels, shape.line());
        let mut lanes = vec![0f32; 3 * line];
        let (pivot, sums) = lanes.split_at_mut(line);
        let (sums, squares) = sums.split_at_mut(line);
        for block in blocks.rev() {
            // SAFETY: blocks are visited once.
            let moments = unsafe { moments.part(block * channels..(block + 1) * channels) };
            moments.fill(Moments::default());
            let mut seen = 0.0;
            for rows in shape.chunks(block) {
                let count = rows.len() as f64;
                let chunk = &x[shape.elements(rows)];
                // Differences from one of the chunk's own rows: rounding errors are then relative to the chunk's own variance,
                // however far its mean is from 0.
                for row in pivot.chunks_exact_mut(channels) {
                    row.iter_mut().zip(chunk).for_each(|(pivot, first)| *pivot = first.read());
                }
                sums.fill(0.0);
                squares.fill(0.0);
                differences::<T, FMA>(chunk, pivot, sums, squares);
                fold(sums, channels);
                fold(squares, channels);
                for (channel, moments) in moments.iter_mut().enumerate() {
                    let (sum, square) = (f64::from(sums[channel]), f64::from(squares[channel]));
                    let mean = sum / count;
                    let own = Moments { mean: f64::from(pivot[channel]) + mean, squares: square - sum * mean };
                    moments.join(seen, own, count);
                }
                seen += count;
            }
        }
    }
}

/// Adds the differences of `chunk`'s elements from `pivot`, and their squares, to a line of sums each.
#[inline(always)]
fn differences<T: Element, const FMA: bool>(chunk: &[T], pivot: &[f32], sums: &mut [f32], squares: &mut [f32]) {
    let line = pivot.len();
    let (sums, squares) = (&mut sums[..line], &mut squares[..line]);
    let mut quads = chunk.chunks_exact(4 * line);
    for quad in &mut quads {
        let [a, b, c, d] = [0, 1, 2, 3].map(|row| &quad[row * line..][..line]);
        for i in 0..line {
            let (a, b) = (a[i].read() - pivot[i], b[i].read() - pivot[i]);
            let (c, d) = (c[i].read() - pivot[i], d[i].read() - pivot[i]);
            sums[i] += (a + b) + (c + d);
            squares[i] += fma::<FMA>(a, a, b * b) + fma::<FMA>(c, c, d * d);
        }
    }
    for row in quads.remainder().chunks(line) {
        for (i, value) in row.iter().enumerate() {
            let value = value.read() - pivot[i];
            sums[i] += value;
            squares[i] = fma::<FMA>(value, value, squares[i]);
        }
    }
}

/// Factors of a channel in a line: `(x - center) factor + offset`.
struct Affine {
    center: Vec<f32>,
    factor: Vec<f32>,
    offset: Vec<f32>,
}

/// `y`: the affine image of `x`, plus the shortcut, then ReLU.
struct Normalize<'a, T, const SHORTCUT: bool, const RELU: bool> {
    affine: Affine,
    x: &'a [T],
    /// Not read without `SHORTCUT`.
    shortcut: &'a [T],
    y: Parts<T>,
}

impl<T: Element, const SHORTCUT: bool, const RELU: bool> Kernel for Normalize<'_, T, SHORTCUT, RELU> {
    #[inline(always)]
    fn run<const FMA: bool>(&self, elements: Range<usize>) {
        let Normalize { affine: Affine { center, factor, offset }, x, shortcut, y } = self;
        let line = center.len();
        let shortcut = if SHORTCUT { &shortcut[elements.clone()] } else { &x[elements.clone()] };
        // SAFETY: ranges of elements are visited once.
        let lines = unsafe { y.part(elements.clone()) }.chunks_mut(line);
        for ((y, x), shortcut) in lines.zip(x[elements].chunks(line)).zip(shortcut.chunks(line)) {
            let (center, factor, offset) = (&center[..y.len()], &factor[..y.len()], &offset[..y.len()]);
            let (x, shortcut) = (&x[..y.len()], &shortcut[..y.len()]);
            for i in 0..y.len() {
                let mut value = fma::<FMA>(x[i].read() - center[i], factor[i], offset[i]);
                if SHORTCUT {
                    value += shortcut[i].read();
                }
                y[i] = T::round(if RELU && value < 0.0 { 0.0 } else { value }); // NaN stays
            }
        }
    }
}

/// Which gradients of the output pass through ReLU.
mod gate {
    /// All: there is no ReLU.
    pub const OPEN: u8 = 0;
    /// Where the affine image of `x` is positive: there is no shortcut.
    pub const OWN: u8 = 1;
    /// Where `y` is positive.
    pub const RESULT: u8 = 2;
}

/// Sums per channel of the output's gradient through the gate, and of its products with `x - center`, in each block:
/// `[blocks, 2, channels]`. With `gate::RESULT` the gradient is replaced by what has passed, which is the shortcut's.
struct GradientSums<'a, T, const GATE: u8> {
    shape: Shape,
    affine: Affine,
    given: Parts<T>,
    x: &'a [T],
    /// Not read but with `gate::RESULT`.
    y: &'a [T],
    sums: Parts<f64>,
}

impl<T: Element, const GATE: u8> Kernel for GradientSums<'_, T, GATE> {
    #[inline(always)]
    fn run<const FMA: bool>(&self, blocks: Range<usize>) {
        let GradientSums { shape, affine, given, x, y, sums } = self;
        let (channels, line) = (shape.channels, shape.line());
        let mut lanes = vec![0f32; 2 * line];
        let (direct, along) = lanes.split_at_mut(line);
        for block in blocks.rev() {
            // SAFETY: blocks are visited once.
            let sums = unsafe { sums.part(block * 2 * channels..(block + 1) * 2 * channels) };
            sums.fill(0.0);
            let (total, total_along) = sums.split_at_mut(channels);
            for rows in shape.chunks(block) {
                let elements = shape.elements(rows);
                direct.fill(0.0);
                along.fill(0.0);
                // SAFETY: blocks are visited once.
                let given = unsafe { given.part(elements.clone()) };
                let y = if GATE == gate::RESULT { &y[elements.clone()] } else { &x[elements.clone()] };
                products::<T, GATE, FMA>(affine, given, &x[elements], y, direct, along);
                fold(direct, channels);
                fold(along, channels);
                total.iter_mut().zip(&*direct).for_each(|(total, sum)| *total += f64::from(*sum));
                total_along.iter_mut().zip(&*along).for_each(|(total, sum)| *total += f64::from(*sum));
            }
        }
    }
}

/// Adds a chunk's gradients through the gate, and their products with `x - center`, to a line of sums each.
#[inline(always)]
fn products<T: Element, const GATE: u8, const FMA: bool>(
    affine: &Affine,
    given: &mut [T],
    x: &[T],
    y: &[T],
    direct: &mut [f32],
    along: &mut [f32],
) {
    let line = direct.len();
    for ((given, x), y) in given.chunks_mut(line).zip(x.chunks(line)).zip(y.chunks(line)) {
        let count = given.len();
        let (x, y, direct, along) = (&x[..count], &y[..count], &mut direct[..count], &mut along[..count]);
        let [center, factor, offset] = [&affine.center, &affine.factor, &affine.offset].map(|of| &of[..count]);
        for i in 0..count {
            let centered = x[i].read() - center[i];
            let gradient = given[i].read();
            let gradient = match GATE {
                gate::OWN if fma::<FMA>(centered, factor[i], offset[i]) <= 0.0 => 0.0,
                gate::RESULT if y[i].read() <= 0.0 => 0.0,
                _ => gradient,
            };
            if GATE == gate::RESULT {
                given[i] = T::round(gradient);
            }
            direct[i] += gradient;
            along[i] = fma::<FMA>(gradient, centered, along[i]);
        }
    }
}

/// Gradient of `x` from that of the output: `factor g + slope (x - center) + level`. It replaces the output's, whose gate is
/// `gate::OPEN` or `gate::OWN`; with `gate::RESULT` it is made of `passed`, which has been through the gate.
struct InputGradient<'a, T, const GATE: u8> {
    affine: Affine,
    slope: Vec<f32>,
    level: Vec<f32>,
    x: &'a [T],
    /// Not read but with `gate::RESULT`.
    passed: &'a [T],
    gradient: Parts<T>,
}

impl<T: Element, const GATE: u8> Kernel for InputGradient<'_, T, GATE> {
    #[inline(always)]
    fn run<const FMA: bool>(&self, elements: Range<usize>) {
        let InputGradient { affine, slope, level, x, passed, gradient } = self;
        let line = slope.len();
        let passed = if GATE == gate::RESULT { &passed[elements.clone()] } else { &x[elements.clone()] };
        // SAFETY: ranges of elements are visited once.
        let lines = unsafe { gradient.part(elements.clone()) }.chunks_mut(line);
        for ((gradient, x), passed) in lines.zip(x[elements].chunks(line)).zip(passed.chunks(line)) {
            let count = gradient.len();
            let (x, passed, slope, level) = (&x[..count], &passed[..count], &slope[..count], &level[..count]);
            let [center, factor, offset] = [&affine.center, &affine.factor, &affine.offset].map(|of| &of[..count]);
            for i in 0..count {
                let centered = x[i].read() - center[i];
                let given = if GATE == gate::RESULT { passed[i].read() } else { gradient[i].read() };
                let given = match GATE {
                    gate::OWN if fma::<FMA>(centered, factor[i], offset[i]) <= 0.0 => 0.0,
                    _ => given,
                };
                let value = fma::<FMA>(factor[i], given, fma::<FMA>(slope[i], centered, level[i]));
                gradient[i] = T::round(value);
            }
        }
    }
}

/// A batch norm.
pub struct Norm<'a> {
    /// Instructions to compute it with.
    pub isa: InstructionSet,
    /// Scale per channel.
    pub weight: &'a [f32],
    /// Shift per channel.
    pub bias: &'a [f32],
    /// Constant added to the variance.
    pub epsilon: f64,
}

/// Statistics of a batch per channel, as the backward pass needs them.
pub struct Saved<'a> {
    /// Mean, rounded: subtracted from `x`.
    pub center: &'a mut [f32],
    /// `center` less the mean.
    pub rest: &'a mut [f32],
    /// 1 / standard deviation.
    pub scale: &'a mut [f32],
}

impl Saved<'_> {
    /// Sets a channel's statistics.
    pub fn set(&mut self, channel: usize, mean: f64, variance: f64, epsilon: f64) {
        self.center[channel] = mean as f32;
        self.rest[channel] = (f64::from(self.center[channel]) - mean) as f32;
        self.scale[channel] = (1.0 / (variance + epsilon).sqrt()) as f32;
    }
}

impl Norm<'_> {
    /// Factors of a line for statistics as saved.
    fn affine(&self, shape: Shape, saved: &Saved) -> Affine {
        let factor = |channel: usize| f64::from(self.weight[channel]) * f64::from(saved.scale[channel]);
        let offset = |channel: usize| f64::from(self.bias[channel]) + factor(channel) * f64::from(saved.rest[channel]);
        Affine {
            center: shape.line_of(|channel| f64::from(saved.center[channel])),
            factor: shape.line_of(factor),
            offset: shape.line_of(offset),
        }
    }

    /// Writes `y` from `x` with the batch's statistics, which are saved; `update` gets each channel's mean and unbiased variance.
    pub fn train<T: Element>(
        &self,
        x: &[T],
        shortcut: Option<&[T]>,
        relu: bool,
        y: &mut [T],
        saved: &mut Saved,
        mut update: impl FnMut(usize, f64, f64),
    ) {
        let channels = self.weight.len();
        let rows = x.len() / channels;
        let shape = Shape::new(rows, channels);
        let mut moments = vec![Moments::default(); shape.blocks() * channels];
        shape.each_block(self.isa, &Statistics { shape, x, moments: Parts::new(&mut moments) });
        let (first, others) = moments.split_at_mut(channels);
        for (block, others) in others.chunks_exact(channels).enumerate() {
            let seen = (block + 1) * shape.block_rows;
            let more = shape.block_rows.min(rows - seen);
            first.iter_mut().zip(others).for_each(|(one, other)| one.join(seen as f64, *other, more as f64));
        }
        for (channel, Moments { mean, squares }) in first.iter().enumerate() {
            update(channel, *mean, squares / (rows - 1) as f64);
            saved.set(channel, *mean, squares / rows as f64, self.epsilon);
        }
        self.normalize(x, shortcut, relu, y, saved);
    }

    /// Writes `y` from `x` with statistics as saved.
    pub fn normalize<T: Element>(&self, x: &[T], shortcut: Option<&[T]>, relu: bool, y: &mut [T], saved: &Saved) {
        let channels = self.weight.len();
        let shape = Shape::new(x.len() / channels, channels);
        let (affine, y, other) = (self.affine(shape, saved), Parts::new(y), shortcut.unwrap_or(x));
        match (shortcut.is_some(), relu) {
            (false, false) => {
                shape.each_line(self.isa, &Normalize::<T, false, false> { affine, x, shortcut: other, y })
            }
            (false, true) => shape.each_line(self.isa, &Normalize::<T, false, true> { affine, x, shortcut: other, y }),
            (true, false) => shape.each_line(self.isa, &Normalize::<T, true, false> { affine, x, shortcut: other, y }),
            (true, true) => shape.each_line(self.isa, &Normalize::<T, true, true> { affine, x, shortcut: other, y }),
        }
    }

    /// Backward pass without a gate or with `x`'s own: the output's gradient `given` becomes that of `x`. Writes the gradients of
    /// weight and bias.
    pub fn backward<T: Element>(&self, x: &[T], relu: bool, given: &mut [T], saved: &Saved, own: [&mut [f32]; 2]) {
        if relu {
            self.gradients::<T, { gate::OWN }>(x, given, None, saved, own);
        } else {
            self.gradients::<T, { gate::OPEN }>(x, given, None, saved, own);
        }
    }

    /// Backward pass through a ReLU that made `y` of the sum with a shortcut: the output's gradient `given` becomes the
    /// shortcut's, and `x_gradient` is written. Writes the gradients of weight and bias.
    pub fn backward_with_shortcut<T: Element>(
        &self,
        x: &[T],
        y: &[T],
        given: &mut [T],
        x_gradient: &mut [T],
        saved: &Saved,
        own: [&mut [f32]; 2],
    ) {
        self.gradients::<T, { gate::RESULT }>(x, given, Some((y, x_gradient)), saved, own);
    }

    fn gradients<T: Element, const GATE: u8>(
        &self,
        x: &[T],
        given: &mut [T],
        result: Option<(&[T], &mut [T])>,
        saved: &Saved,
        [weight_gradient, bias_gradient]: [&mut [f32]; 2],
    ) {
        let channels = self.weight.len();
        let rows = x.len() / channels;
        let shape = Shape::new(rows, channels);
        let mut sums = vec![0f64; shape.blocks() * 2 * channels];
        let affine = self.affine(shape, saved);
        let (y, x_gradient) = match result {
            Some((y, x_gradient)) => (y, Some(x_gradient)),
            None => (x, None),
        };
        let kernel =
            GradientSums::<T, GATE> { shape, affine, given: Parts::new(given), x, y, sums: Parts::new(&mut sums) };
        shape.each_block(self.isa, &kernel);
        let affine = kernel.affine;
        let (first, others) = sums.split_at_mut(2 * channels);
        for other in others.chunks_exact(2 * channels) {
            first.iter_mut().zip(other).for_each(|(sum, value)| *sum += value);
        }
        let (direct, along) = first.split_at_mut(channels);
        for (channel, along) in along.iter_mut().enumerate() {
            // Sum of g xhat.
            *along = f64::from(saved.scale[channel]) * (*along + f64::from(saved.rest[channel]) * direct[channel]);
            weight_gradient[channel] = *along as f32;
            bias_gradient[channel] = direct[channel] as f32;
        }
        // w / std (g - mean of g - xhat mean of (g xhat)), xhat = (x - center + rest) / std
        let factor = |channel: usize| f64::from(self.weight[channel]) * f64::from(saved.scale[channel]) / rows as f64;
        let slope = |channel: usize| -factor(channel) * along[channel] * f64::from(saved.scale[channel]);
        let level =
            |channel: usize| slope(channel) * f64::from(saved.rest[channel]) - factor(channel) * direct[channel];
        let (slope, level) = (shape.line_of(slope), shape.line_of(level));
        let (passed, gradient) = match x_gradient {
            Some(x_gradient) => (&*given, Parts::new(x_gradient)),
            None => (x, Parts::new(given)),
        };
        shape.each_line(self.isa, &InputGradient::<T, GATE> { affine, slope, level, x, passed, gradient });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::threads;

    /// Results of both passes: y, gradients of x and of the shortcut, of weight and bias, the batch's statistics.
    type Results = [Vec<f32>; 6];

    /// Numbers from -1 to 1 that repeat for equal `seed`.
    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    fn run(isa: InstructionSet, rows: usize, channels: usize, with_shortcut: bool) -> Results {
        let numbers = |seed: u32| numbers(rows * channels, seed);
        let (x, shortcut, mut given) = (numbers(1), numbers(2), numbers(3));
        let (weight, bias) = (vec![0.7; channels], vec![0.2; channels]);
        let (mut y, mut x_gradient) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        let mut rows = [const { Vec::new() }; 5];
        rows.iter_mut().for_each(|row| row.resize(channels, 0.0));
        let [center, rest, scale, weight_gradient, bias_gradient] = &mut rows;
        let mut saved = Saved { center, rest, scale };
        let norm = Norm { isa, weight: &weight, bias: &bias, epsilon: 1e-5 };
        norm.train(&x, with_shortcut.then_some(&shortcut[..]), true, &mut y, &mut saved, |_, _, _| ());
        if with_shortcut {
            let own = [&mut weight_gradient[..], &mut bias_gradient[..]];
            norm.backward_with_shortcut(&x, &y, &mut given, &mut x_gradient, &saved, own);
        } else {
            norm.backward(&x, true, &mut given, &saved, [weight_gradient, bias_gradient]);
        }
        [y, x_gradient, given, weight_gradient.clone(), bias_gradient.clone(), scale.clone()]
    }

    const SHAPES: [(usize, usize); 7] =
        [(5, 1), (63, 5), (1000, 64), (70_000, 16), (20_000, 24), (300, 257), (17, 2048)];

    #[test]
    fn results_are_the_same_bits_on_repeat_and_on_any_number_of_threads() {
        let before = threads::threads();
        for (rows, channels) in SHAPES {
            for with_shortcut in [false, true] {
                let results = [1, 2, 3, 1].map(|threads| {
                    tch::set_num_threads(threads);
                    run(InstructionSet::fastest(), rows, channels, with_shortcut)
                });
                assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "{rows} {channels} {with_shortcut}");
            }
        }
        tch::set_num_threads(before as i32);
    }

    #[test]
    fn instruction_sets_differ_by_rounding_alone() {
        for (rows, channels) in SHAPES {
            for isa in InstructionSet::ALL.into_iter().filter(|set| set.is_detected()) {
                let (own, plain) = (run(isa, rows, channels, true), run(InstructionSet::Scalar, rows, channels, true));
                for (index, (own, plain)) in own.iter().zip(&plain).enumerate() {
                    let largest = plain.iter().fold(0.0f32, |most, value| most.max(value.abs()));
                    let far = own.iter().zip(plain).filter(|(own, plain)| (*own - *plain).abs() > 1e-5 * largest);
                    // Where rounding decides whether a value is positive, its gradient passes or does not.
                    assert!(far.count() <= own.len() / 10_000, "{isa:?} {rows} {channels}, result {index}");
                }
            }
        }
    }
}
