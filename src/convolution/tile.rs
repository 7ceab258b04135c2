//! Passes over images: tiles of 6x6 inputs, 4x4 outputs and 3x3 kernels to slabs of transformed values and back.
//!
//! A slab holds one of the 36 transformed elements of many tiles: `[tile][channel of the block]`. Slabs of an element follow each
//! other, those of the next block of 64 channels come after the 36 of the first. Each slab has a gap of 64 bytes behind it, since
//! strides of powers of two would put all 36 into the same sets of the cache.

use super::transform;
use super::vector::Vector;

/// Channels of a block.
pub const BLOCK: usize = 64;
/// Transformed elements of a tile.
pub const ELEMENTS: usize = 36;
/// Outputs on a side of a tile.
pub const SIDE: usize = 4;
/// Floats between two slabs.
const GAP: usize = 16;

/// Pixels outside of an image.
static ZEROS: [f32; BLOCK] = [0.0; BLOCK];

/// Number of blocks of `channels`.
pub fn blocks(channels: usize) -> usize {
    channels.div_ceil(BLOCK)
}

/// Channels of block `index`.
pub fn width(channels: usize, index: usize) -> usize {
    BLOCK.min(channels - index * BLOCK)
}

/// Floats from one slab to the next, for slabs of `rows` rows of `width` channels.
pub fn slab(rows: usize, width: usize) -> usize {
    rows * width + GAP
}

/// Floats of the slabs of all blocks before block `index`, all of whose channels are whole blocks.
pub fn before(rows: usize, index: usize) -> usize {
    index * ELEMENTS * slab(rows, BLOCK)
}

/// Floats of the slabs of all `channels`.
pub fn slabs(rows: usize, channels: usize) -> usize {
    let last = blocks(channels) - 1;
    before(rows, last) + ELEMENTS * slab(rows, width(channels, last))
}

/// Images `[images, height, width, channels]`.
#[derive(Clone, Copy)]
pub struct Images {
    /// Number of images.
    pub images: usize,
    /// Rows of an image.
    pub height: usize,
    /// Columns of an image.
    pub width: usize,
    /// Channels of a pixel.
    pub channels: usize,
}

/// Corner of a tile: image, row and column of its first output.
struct Corner {
    image: usize,
    y: usize,
    x: usize,
}

impl Images {
    /// Tiles of all images; those at the lower and right edge may lie partly outside.
    pub fn tiles(&self) -> usize {
        self.images * self.height.div_ceil(SIDE) * self.width.div_ceil(SIDE)
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.images * self.height * self.width * self.channels
    }

    fn corner(&self, tile: usize) -> Corner {
        let [rows, columns] = [self.height, self.width].map(|side| side.div_ceil(SIDE));
        Corner { image: tile / (rows * columns), y: tile / columns % rows * SIDE, x: tile % columns * SIDE }
    }

    /// Offset of a pixel's first channel.
    fn offset(&self, image: usize, y: usize, x: usize) -> usize {
        ((image * self.height + y) * self.width + x) * self.channels
    }
}

/// Tiles `first..first + count`, in the rows from `row` on of slabs of `rows` rows.
#[derive(Clone, Copy)]
pub struct Span {
    /// Index of the first tile.
    pub first: usize,
    /// Number of tiles.
    pub count: usize,
    /// Row of the first tile in the slabs.
    pub row: usize,
    /// Rows of a slab.
    pub rows: usize,
}

/// Pointers to channel `channel` of the `SIZE` x `SIZE` pixels from row `y` and column `x` on, [`ZEROS`] for those outside.
///
/// # Safety
/// `data` is valid for the images.
#[inline(always)]
unsafe fn pixels<const SIZE: usize>(
    data: *const f32,
    images: &Images,
    image: usize,
    y: isize,
    x: isize,
    channel: usize,
) -> [[*const f32; SIZE]; SIZE] {
    let mut found = [[ZEROS.as_ptr(); SIZE]; SIZE];
    for (row, y) in found.iter_mut().zip(y..) {
        for (pixel, x) in row.iter_mut().zip(x..) {
            if (0..images.height as isize).contains(&y) && (0..images.width as isize).contains(&x) {
                // SAFETY: the pixel lies inside of the image.
                *pixel = unsafe { data.add(images.offset(image, y as usize, x as usize) + channel) };
            }
        }
    }
    found
}

/// Transforms input tiles of all channels: `B^T d B`.
///
/// # Safety
/// The vector's instruction set is enabled; `data` is valid for `images`, `to` for [`slabs`] of `span.rows` rows.
#[inline(always)]
pub unsafe fn spread_inputs<V: Vector>(data: *const f32, images: &Images, span: Span, to: *mut f32) {
    for tile in 0..span.count {
        let Corner { image, y, x } = images.corner(span.first + tile);
        for block in 0..blocks(images.channels) {
            let width = width(images.channels, block);
            // SAFETY: the caller's; a block ends within the channels, a tile within the slabs.
            unsafe {
                let from = pixels::<6>(data, images, image, y as isize - 1, x as isize - 1, block * BLOCK);
                let to = to.add(before(span.rows, block) + (span.row + tile) * width);
                for channel in (0..width).step_by(V::LANES) {
                    let at = |y: usize, x: usize| V::load(from[y][x].add(channel));
                    let mut half = [[V::splat(0.0); 6]; 6];
                    for x in 0..6 {
                        half[x] = transform::inputs([at(0, x), at(1, x), at(2, x), at(3, x), at(4, x), at(5, x)]);
                    }
                    for y in 0..6 {
                        let row = [half[0][y], half[1][y], half[2][y], half[3][y], half[4][y], half[5][y]];
                        for (x, value) in transform::inputs(row).into_iter().enumerate() {
                            value.store(to.add((y * 6 + x) * slab(span.rows, width) + channel));
                        }
                    }
                }
            }
        }
    }
}

/// Transforms tiles of the output's gradient, of all channels: `G d G^T`.
///
/// # Safety
/// See [`spread_inputs`].
#[inline(always)]
pub unsafe fn spread_gradients<V: Vector>(data: *const f32, images: &Images, span: Span, to: *mut f32) {
    for tile in 0..span.count {
        let Corner { image, y, x } = images.corner(span.first + tile);
        for block in 0..blocks(images.channels) {
            let width = width(images.channels, block);
            // SAFETY: the caller's; a block ends within the channels, a tile within the slabs.
            unsafe {
                let from = pixels::<4>(data, images, image, y as isize, x as isize, block * BLOCK);
                let to = to.add(before(span.rows, block) + (span.row + tile) * width);
                for channel in (0..width).step_by(V::LANES) {
                    let at = |y: usize, x: usize| V::load(from[y][x].add(channel));
                    let mut half = [[V::splat(0.0); 6]; 4];
                    for x in 0..4 {
                        half[x] = transform::gradients([at(0, x), at(1, x), at(2, x), at(3, x)]);
                    }
                    for y in 0..6 {
                        let row = [half[0][y], half[1][y], half[2][y], half[3][y]];
                        for (x, value) in transform::gradients(row).into_iter().enumerate() {
                            value.store(to.add((y * 6 + x) * slab(span.rows, width) + channel));
                        }
                    }
                }
            }
        }
    }
}

/// Transforms products of channel block `block` to outputs, `A^T m A`; those outside of the image are not written.
///
/// # Safety
/// The vector's instruction set is enabled; `from` is valid for the block's slabs, `data` for `images`, whose block `block` of these
/// tiles no other thread touches.
#[inline(always)]
pub unsafe fn gather_outputs<V: Vector>(from: *const f32, span: Span, images: &Images, block: usize, data: *mut f32) {
    let width = width(images.channels, block);
    let slab = slab(span.rows, width);
    for tile in 0..span.count {
        let corner = images.corner(span.first + tile);
        let rows = SIDE.min(images.height - corner.y);
        let columns = SIDE.min(images.width - corner.x);
        // SAFETY: the caller's; only pixels inside of the image are written.
        unsafe {
            let to = data.add(images.offset(corner.image, corner.y, corner.x) + block * BLOCK);
            for channel in (0..width).step_by(V::LANES) {
                let from = from.add((span.row + tile) * width + channel);
                let at = |y: usize, x: usize| V::load(from.add((y * 6 + x) * slab));
                let mut half = [[V::splat(0.0); 4]; 6];
                for x in 0..6 {
                    half[x] = transform::outputs([at(0, x), at(1, x), at(2, x), at(3, x), at(4, x), at(5, x)]);
                }
                for y in 0..4 {
                    let row = [half[0][y], half[1][y], half[2][y], half[3][y], half[4][y], half[5][y]];
                    let values = transform::outputs(row);
                    if y < rows {
                        for (x, value) in values.into_iter().enumerate() {
                            if x < columns {
                                value.store(to.add((y * images.width + x) * images.channels + channel));
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Kernels `[outputs][3][3][inputs]`, read as the matrix of a product: its rows are summed over, its columns are results.
#[derive(Clone, Copy)]
pub struct Kernels {
    /// Output channels.
    pub outputs: usize,
    /// Input channels.
    pub inputs: usize,
    /// Whether rows are output channels and columns input channels, with the taps turned by 180 degrees: for the gradient of the
    /// input.
    pub back: bool,
}

impl Kernels {
    /// Number of values.
    pub fn len(&self) -> usize {
        9 * self.outputs * self.inputs
    }

    /// Channels that are summed over.
    pub fn rows(&self) -> usize {
        if self.back { self.outputs } else { self.inputs }
    }

    /// Channels of the result.
    pub fn columns(&self) -> usize {
        if self.back { self.inputs } else { self.outputs }
    }
}

/// Transforms the kernels of rows `row..row + rows` and of columns `column..column + columns` to slabs `[row][column]` that lie
/// `stride` floats apart: `G g G^T`.
///
/// # Safety
/// The vector's instruction set is enabled; `from` is valid for the kernels, which have these rows and columns, `to` for the slabs.
#[inline(always)]
pub unsafe fn spread_kernels<V: Vector>(
    from: *const f32,
    kernels: &Kernels,
    [row, rows]: [usize; 2],
    [column, columns]: [usize; 2],
    to: *mut f32,
    stride: usize,
) {
    let inputs = kernels.inputs;
    // Taps as [3 * 3][row][column of a vector].
    let mut turned = [0.0; 9 * 16 * 16];
    let step = if kernels.back { 1 } else { V::LANES };
    for first in (0..rows).step_by(step) {
        for across in (0..columns).step_by(V::LANES) {
            // SAFETY: the caller's; `turned` has room for 9 squares of LANES rows and columns.
            unsafe {
                if !kernels.back {
                    for tap in 0..9 {
                        let from = from.add(((column + across) * 9 + tap) * inputs + row + first);
                        let to = turned.as_mut_ptr().add(tap * V::LANES * V::LANES);
                        V::transpose(from, 9 * inputs, to, V::LANES);
                    }
                }
                for at in 0..step {
                    let tap = |tap: usize| {
                        V::load(match kernels.back {
                            true => from.add(((row + first) * 9 + 8 - tap) * inputs + column + across),
                            false => turned.as_ptr().add((tap * V::LANES + at) * V::LANES),
                        })
                    };
                    let mut half = [[V::splat(0.0); 6]; 3];
                    for x in 0..3 {
                        half[x] = transform::taps([tap(x), tap(3 + x), tap(6 + x)]);
                    }
                    let to = to.add((first + at) * columns + across);
                    for y in 0..6 {
                        let values = transform::taps([half[0][y], half[1][y], half[2][y]]);
                        for (x, value) in values.into_iter().enumerate() {
                            value.store(to.add((y * 6 + x) * stride));
                        }
                    }
                }
            }
        }
    }
}

/// Transforms products `[output][input]` of two channel blocks, in slabs `stride` floats apart, to gradients of the kernels:
/// `A^T m A`. `outputs`: first output channel and their number; `inputs` alike.
///
/// # Safety
/// The vector's instruction set is enabled; `from` is valid for the slabs, `to` for the kernels, of which no other thread touches
/// these.
#[inline(always)]
pub unsafe fn gather_kernels<V: Vector>(
    from: *const f32,
    stride: usize,
    kernels: &Kernels,
    outputs: [usize; 2],
    inputs: [usize; 2],
    to: *mut f32,
) {
    let ([output, outputs], [input, width]) = (outputs, inputs);
    for row in 0..outputs {
        for channel in (0..width).step_by(V::LANES) {
            // SAFETY: the caller's; channels are within the blocks.
            unsafe {
                let from = from.add(row * width + channel);
                let to = to.add((output + row) * 9 * kernels.inputs + input + channel);
                let at = |y: usize, x: usize| V::load(from.add((y * 6 + x) * stride));
                let mut half = [[V::splat(0.0); 3]; 6];
                for x in 0..6 {
                    half[x] = transform::tap_gradients([at(0, x), at(1, x), at(2, x), at(3, x), at(4, x), at(5, x)]);
                }
                for y in 0..3 {
                    let row = [half[0][y], half[1][y], half[2][y], half[3][y], half[4][y], half[5][y]];
                    for (x, value) in transform::tap_gradients(row).into_iter().enumerate() {
                        value.store(to.add((y * 3 + x) * kernels.inputs));
                    }
                }
            }
        }
    }
}
