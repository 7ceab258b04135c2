//! How the kernels cut a tensor `[rows, channels]`: into blocks for the threads, chunks for the sums, lines for the registers; and
//! how its elements are stored.

use std::ops::Range;

use super::super::simd::{self, Kernel};
use super::super::threads::parallel_for;
use crate::convolution::InstructionSet;

/// Elements of a line at least: as many rows side by side as make the inner loops long whatever the number of channels.
const LINE: usize = 256;
/// Rows of a chunk at least.
const CHUNK_ROWS: usize = 64;
/// Blocks at most, into which the rows are cut for the threads.
const BLOCKS: usize = 64;
/// Elements that are worth a thread.
const GRAIN: usize = 1 << 15;

/// Stored form of a float.
pub trait Element: Copy + Send + Sync {
    /// The value.
    fn read(self) -> f32;
    /// The nearest stored form, ties to even.
    fn round(value: f32) -> Self;
}

impl Element for f32 {
    #[inline(always)]
    fn read(self) -> f32 {
        self
    }
    #[inline(always)]
    fn round(value: f32) -> f32 {
        value
    }
}

/// The upper half of a float32.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub struct Bf16(pub u16);

impl Element for Bf16 {
    #[inline(always)]
    fn read(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
    #[inline(always)]
    fn round(value: f32) -> Bf16 {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        Bf16(if value.is_nan() { 0x7fc0 } else { rounded as u16 })
    }
}

/// How the lines of `[rows, channels]` are cut: a line has `fold` rows side by side, a chunk whole quads of lines, a block whole
/// chunks.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Rows of the tensor.
    pub rows: usize,
    /// Channels of the tensor.
    pub channels: usize,
    fold: usize,
    chunk_rows: usize,
    /// Rows of a block but the last.
    pub block_rows: usize,
}

impl Shape {
    /// The cut of `rows` rows of `channels` channels.
    pub fn new(rows: usize, channels: usize) -> Shape {
        let fold = LINE.div_ceil(channels);
        let quad = 4 * fold;
        let chunk_rows = quad * CHUNK_ROWS.div_ceil(quad);
        let block_rows = chunk_rows * rows.div_ceil(chunk_rows * BLOCKS);
        Shape { rows, channels, fold, chunk_rows, block_rows }
    }

    /// Elements of a line.
    pub fn line(&self) -> usize {
        self.fold * self.channels
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.rows.div_ceil(self.block_rows)
    }

    /// The chunks of a block, as ranges of rows.
    pub fn chunks(self, block: usize) -> impl Iterator<Item = Range<usize>> {
        let end = ((block + 1) * self.block_rows).min(self.rows);
        (block * self.block_rows..end).step_by(self.chunk_rows).map(move |row| row..(row + self.chunk_rows).min(end))
    }

    /// The elements of some rows.
    pub fn elements(&self, rows: Range<usize>) -> Range<usize> {
        rows.start * self.channels..rows.end * self.channels
    }

    /// A value per channel, repeated for each row of a line.
    pub fn line_of(&self, value: impl Fn(usize) -> f64) -> Vec<f32> {
        let one: Vec<f32> = (0..self.channels).map(|channel| value(channel) as f32).collect();
        one.repeat(self.fold)
    }

    /// Runs `kernel` on all elements, cut between lines, first part first.
    pub fn each_line<K: Kernel>(&self, isa: InstructionSet, kernel: &K) {
        let (rows, fold) = (self.rows, self.fold);
        parallel_for(rows.div_ceil(fold), GRAIN.div_ceil(self.line()), &|lines| {
            simd::run(isa, kernel, self.elements(lines.start * fold..(lines.end * fold).min(rows)));
        });
    }

    /// Runs `kernel` on all blocks, last block first: its end is what the caches still hold of a tensor just written.
    pub fn each_block<K: Kernel>(&self, isa: InstructionSet, kernel: &K) {
        let grain = GRAIN.div_ceil(self.block_rows * self.channels);
        parallel_for(self.blocks(), grain, &|blocks| simd::run(isa, kernel, blocks));
    }
}

/// Memory that threads write in parts that do not overlap.
pub struct Parts<T>(*mut T, usize);

// SAFETY: `part` is called by several threads on ranges that do not overlap.
unsafe impl<T: Send> Sync for Parts<T> {}

impl<T> Parts<T> {
    /// The memory of `all`.
    pub fn new(all: &mut [T]) -> Parts<T> {
        Parts(all.as_mut_ptr(), all.len())
    }

    /// A part of the memory.
    ///
    /// # Safety
    /// No other part that is in use overlaps `range`.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.1, "within the memory");
        // SAFETY: within the memory, which the caller alone uses.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(range.start), range.len()) }
    }
}

/// Adds the rows side by side in `lanes` onto the first, in pairs.
#[inline(always)]
pub fn fold(lanes: &mut [f32], channels: usize) {
    let mut rows = lanes.len() / channels;
    while rows > 1 {
        let half = rows.div_ceil(2);
        let (sums, others) = lanes[..rows * channels].split_at_mut(half * channels);
        sums.iter_mut().zip(others).for_each(|(sum, other)| *sum += *other);
        rows = half;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_to_nearest_even() {
        let half = 1.0 / 256.0; // of the last place of a number from 1 to 2
        let cases =
            [(1.0, 0x3f80), (1.0 + half, 0x3f80), (1.0 + 3.0 * half, 0x3f82), (f32::NAN, 0x7fc0), (f32::MAX, 0x7f80)];
        for (value, bits) in cases {
            assert_eq!(Bf16::round(value).0, bits, "{value}");
        }
        assert_eq!(Bf16(0xc040).read(), -3.0);
    }
}
