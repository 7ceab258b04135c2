//! Winograd's F(2x2, 3x3) in integers, for AVX2: 16 products where the plain convolution needs 36, and exactly.
//!
//! `4 Y = A^T [(2G) g (2G)^T * (B^T d B)] A` holds whole numbers throughout: the doubled `G` has no halves. Ranges: d in
//! [0, 255] gives transformed inputs in [-1020, 1020], w in [-127, 127] transformed weights in [-1143, 1143], both i16 as
//! AVX2 wants them anyway; sums over up to 1700 input channels stay below 2^31. The final shift by 2 drops zeros only.
//! With VNNI the plain form is faster: its u8 x i8 product does twice the work of an i16 one.
//! Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015, section 4.1.

use core::arch::x86_64::*;

use super::avx2::Avx2;
use super::{Convolution, Isa, Packing, Run, Scale};

/// Elements of a transformed 4x4 tile.
const ELEMENTS: usize = 16;
/// Bytes of transformed inputs and sums in use at once, so that they stay in the second-level cache.
const WORK: usize = 384 << 10;
/// Least tiles per block: with fewer, the weights would be read too often.
const LEAST_TILES: usize = 32;
/// Input channels above which a sum could leave i32.
const MOST_INPUTS: usize = i32::MAX as usize / (1020 * 1143);

/// A 3x3 convolution with stride 1, even height and width, no max-pool, input channels a multiple of 16, outputs of 8.
pub struct Winograd {
    products: Vec<Convolution<Avx2>>, // [16], each [tiles, inputs] x [inputs, outputs]
    inputs: usize,
    outputs: usize,
    row_stride: usize,
    size: [usize; 2],
    start: Vec<i32>,
    multiplier: Vec<i32>,
    scale: Scale,
    corners: Vec<u32>,   // as in `Packing`
    places: Vec<u32>,    // as in `Packing`
    residuals: Vec<u32>, // as in `Packing`
    reach: [usize; 3],
    tiles: usize,          // per block
    transformed: Vec<i16>, // [16, tiles, inputs]
    sums: Vec<i32>,        // [16, tiles, outputs]
}

impl Winograd {
    /// Whether this form can compute the layer.
    pub fn fits(packing: &Packing) -> bool {
        let outputs = packing.start.len();
        packing.kernel == [3, 3]
            && packing.stride == 1
            && packing.window.is_none()
            && packing.size.iter().all(|side| side.is_multiple_of(2))
            && !packing.multiplier.is_empty()
            && packing.input_channels.is_multiple_of(16)
            && packing.input_channels <= MOST_INPUTS
            && packing.output_channels == outputs
            && packing.weight.len() == outputs * packing.input_channels * 9
    }

    /// Transforms the weights.
    ///
    /// # Panics
    /// [`Self::fits`] is false.
    pub fn new(packing: Packing) -> Winograd {
        assert!(Winograd::fits(&packing) && packing.inputs.len() == packing.outputs.len());
        let (inputs, outputs) = (packing.input_channels, packing.start.len());
        let tiles = (WORK / (ELEMENTS * (2 * inputs + 4 * outputs))).max(LEAST_TILES);
        let transformed: Vec<[i16; ELEMENTS]> =
            packing.weight.as_chunks::<9>().0.iter().map(transform_weight).collect();
        let product = |element: usize| {
            let weight: Vec<i16> = transformed.iter().map(|weight| weight[element]).collect();
            Convolution::new(Packing {
                weight: &weight,
                start: vec![0; outputs],
                multiplier: &[],
                scale: Scale::default(),
                kernel: [1, 1],
                stride: 1,
                size: [1, 1],
                padding: 0,
                border: 0,
                input_size: [1, 1],
                input_channels: inputs,
                row_stride: inputs,
                window: None,
                inputs: (0..tiles).map(|tile| (tile * inputs) as u32).collect(),
                outputs: (0..tiles).map(|tile| (tile * outputs) as u32).collect(),
                residuals: Vec::new(),
                output_channels: outputs,
                per_image: 1,
            })
        };
        let furthest = |offsets: &[u32], more: usize| offsets.iter().max().map_or(0, |&offset| offset as usize + more);
        Winograd {
            products: (0..ELEMENTS).map(product).collect(),
            inputs,
            outputs,
            row_stride: packing.row_stride,
            size: packing.size,
            reach: [
                // The last pixel's taps are the last elements of the last tile.
                furthest(&packing.inputs, 2 * packing.row_stride + 3 * inputs),
                furthest(&packing.outputs, outputs),
                furthest(&packing.residuals, outputs),
            ],
            multiplier: packing.multiplier.to_vec(),
            start: packing.start,
            scale: packing.scale,
            corners: packing.inputs,
            places: packing.outputs,
            residuals: packing.residuals,
            tiles,
            transformed: vec![0; ELEMENTS * tiles * inputs],
            sums: vec![0; ELEMENTS * tiles * outputs],
        }
    }

    /// Index of a tile's first pixel in the tables.
    fn pixel(&self, tile: usize) -> usize {
        let [height, width] = self.size.map(|side| side / 2);
        let (image, y, x) = (tile / (height * width), tile / width % height, tile % width);
        4 * image * height * width + 4 * y * width + 2 * x
    }

    /// Transforms tiles `first..first + count` of `input` to `transformed`.
    ///
    /// # Safety
    /// AVX2; `input` as long as `reach` says; the tiles are part of the chunk, at most `self.tiles` of them.
    #[target_feature(enable = "avx2")]
    unsafe fn transform(&mut self, input: *const i16, first: usize, count: usize) {
        let (inputs, plane) = (self.inputs, self.tiles * self.inputs);
        for tile in 0..count {
            let corner = self.corners[self.pixel(first + tile)] as usize;
            for channel in (0..inputs).step_by(16) {
                // SAFETY: a tile's 4x4 pixels are the taps of its four outputs, within `reach`; `inputs` is a multiple
                // of 16; the last store ends at 15 planes + (count - 1) * inputs + inputs.
                unsafe {
                    let from = input.add(corner + channel);
                    let pixel =
                        |y: usize, x: usize| _mm256_loadu_si256(from.add(y * self.row_stride + x * inputs).cast());
                    let columns: [[__m256i; 4]; 4] = [0, 1, 2, 3].map(|x| spread([0, 1, 2, 3].map(|y| pixel(y, x))));
                    let to = self.transformed.as_mut_ptr().add(tile * inputs + channel);
                    for y in 0..4 {
                        let row = spread([columns[0][y], columns[1][y], columns[2][y], columns[3][y]]);
                        for (x, value) in row.into_iter().enumerate() {
                            _mm256_storeu_si256(to.add((y * 4 + x) * plane).cast(), value);
                        }
                    }
                }
            }
        }
    }

    /// Transforms the `sums` of tiles `first..first + count` to pixels, requantized.
    ///
    /// # Safety
    /// AVX2; `residual` (null without one) and `output` as long as `reach` says; the tiles are part of the chunk.
    #[target_feature(enable = "avx2")]
    unsafe fn finish(&self, residual: *const i16, output: *mut i16, first: usize, count: usize) {
        let (outputs, plane) = (self.outputs, self.tiles * self.outputs);
        for tile in 0..count {
            let pixel = self.pixel(first + tile);
            let below = pixel + self.size[1];
            let pixels = [pixel, pixel + 1, below, below + 1];
            for channel in (0..outputs).step_by(8) {
                // SAFETY: as in `transform`; the pixels are in the tables, whose offsets plus `outputs` are within
                // `reach`; `start` and `multiplier` have `outputs` elements, a multiple of 8.
                unsafe {
                    let from = self.sums.as_ptr().add(tile * outputs + channel);
                    let element = |y: usize, x: usize| _mm256_loadu_si256(from.add((y * 4 + x) * plane).cast());
                    let columns: [[__m256i; 2]; 4] = [0, 1, 2, 3].map(|x| gather([0, 1, 2, 3].map(|y| element(y, x))));
                    let start = _mm256_loadu_si256(self.start.as_ptr().add(channel).cast());
                    let multiplier = self.multiplier.as_ptr().add(channel);
                    for y in 0..2 {
                        let row = gather([columns[0][y], columns[1][y], columns[2][y], columns[3][y]]);
                        for (x, four) in row.into_iter().enumerate() {
                            let sum = _mm256_add_epi32(_mm256_srai_epi32::<2>(four), start);
                            let pixel = pixels[2 * y + x];
                            let added = match residual.is_null() {
                                true => residual,
                                false => residual.add(self.residuals[pixel] as usize + channel),
                            };
                            let values = Avx2::requantize(sum, multiplier, added, 8, &self.scale);
                            Avx2::store(output.add(self.places[pixel] as usize + channel), values, 8);
                        }
                    }
                }
            }
        }
    }
}

impl Run<Avx2> for Winograd {
    fn run(&mut self, images: usize, input: &[i16], residual: Option<&[i16]>, output: &mut [i16]) {
        let all = images * self.size[0] * self.size[1] / 4;
        assert!(Avx2::detected() && all * 4 <= self.corners.len());
        assert!(input.len() >= self.reach[0] && output.len() >= self.reach[1]);
        assert_eq!(residual.is_some(), !self.residuals.is_empty());
        assert!(residual.map_or(0, <[_]>::len) >= self.reach[2]);
        let residual = residual.map_or(std::ptr::null(), <[_]>::as_ptr);
        for first in (0..all).step_by(self.tiles) {
            let count = self.tiles.min(all - first);
            // SAFETY: AVX2 is there and the lengths are right (both checked above), for all tiles of the chunk.
            unsafe { self.transform(input.as_ptr(), first, count) };
            let planes =
                self.transformed.chunks(self.tiles * self.inputs).zip(self.sums.chunks_mut(self.tiles * self.outputs));
            for (product, (transformed, sums)) in self.products.iter().zip(planes) {
                product.run_last(count, transformed, sums);
            }
            // SAFETY: as above.
            unsafe { self.finish(residual, output.as_mut_ptr(), first, count) };
        }
    }

    fn address(&self) -> usize {
        self.products[0].address()
    }

    /// Ignores the address: the weights are read once for many tiles.
    fn followed_by(&mut self, _address: usize) {}
}

/// Multiplies `B^T` by four vectors of i16.
#[inline]
#[target_feature(enable = "avx2")]
fn spread(d: [__m256i; 4]) -> [__m256i; 4] {
    [
        _mm256_sub_epi16(d[0], d[2]),
        _mm256_add_epi16(d[1], d[2]),
        _mm256_sub_epi16(d[2], d[1]),
        _mm256_sub_epi16(d[1], d[3]),
    ]
}

/// Multiplies `A^T` by four vectors of i32.
#[inline]
#[target_feature(enable = "avx2")]
fn gather(m: [__m256i; 4]) -> [__m256i; 2] {
    let middle = _mm256_sub_epi32(m[1], m[2]);
    [_mm256_add_epi32(_mm256_add_epi32(m[0], m[1]), m[2]), _mm256_sub_epi32(middle, m[3])]
}

/// Transforms a 3x3 kernel: `(2G) g (2G)^T`.
fn transform_weight(g: &[i8; 9]) -> [i16; ELEMENTS] {
    let four = |a: i16, b: i16, c: i16| [2 * a, a + b + c, a - b + c, 2 * c];
    let rows = [0, 1, 2].map(|y| four(g[3 * y] as i16, g[3 * y + 1] as i16, g[3 * y + 2] as i16));
    let columns = [0, 1, 2, 3].map(|x| four(rows[0][x], rows[1][x], rows[2][x]));
    std::array::from_fn(|at| columns[at % 4][at / 4])
}
