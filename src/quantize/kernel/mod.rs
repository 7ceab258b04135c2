//! The integer convolution on vector registers. In: activations as NHWC with their borders in place, weights packed once.
//! Out: the requantized activations (or i32 logits), equal in every element to `quantize::reference`.
//!
//! [`tile`] is one loop over an [`Isa`]: AVX-512 VNNI multiplies u8 by i8 four at a time, AVX2 keeps i16 and multiplies two
//! at a time (its u8 x i8 instruction saturates at 16 bits, so it cannot be exact). [`zones`] lists the taps that lie in the
//! padding and need no product.
//! `unsafe` is allowed here for the intrinsics and the unchecked reads of that loop; bounds are asserted in
//! [`Convolution::convolve`]. This folder uses nothing but the standard library, so that Miri can run it (see
//! tests/kernel-miri).
#![allow(unsafe_code)]
// Where no instruction set here exists, `quantize::reference` computes and the loops have no caller.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code, unused_imports))]
#![allow(clippy::needless_range_loop)] // registers and lanes are counted, as in the drawing of a kernel

#[cfg(target_arch = "x86_64")]
pub mod avx2;
mod prepare;
mod tile;
#[cfg(target_arch = "x86_64")]
pub mod vnni;
#[cfg(target_arch = "x86_64")]
pub mod winograd;
mod zones;

pub use prepare::Prepare;
use tile::convolve;
use zones::Zones;

/// Pixels of the largest tile: with 4 (AVX-512) or 2 (AVX2) vectors of channels it fills the registers.
pub const TILE: usize = 6;

/// Bytes of a cache line.
const LINE: usize = 64;

/// A vector instruction set.
///
/// # Safety
/// The register functions may be called only from code that runs under [`Isa::convolve`], which enables the features;
/// pointers must be valid for the elements that each function names.
#[allow(clippy::missing_safety_doc)] // stated once, in the trait's Safety section
pub unsafe trait Isa: Sized + 'static {
    /// Stored form of an activation.
    type Input: Copy + Default + Ord + Send + std::fmt::Debug;
    /// Stored form of a weight.
    type Weight: Copy + Default + Send + std::fmt::Debug;
    /// A register of `LANES` i32.
    type Register: Copy;
    /// Output channels per register.
    const LANES: usize;
    /// Inputs multiplied and added by one instruction: 4 bytes of them.
    const GROUP: usize;
    /// Divisor of the channels stored per pixel.
    const CHANNELS: usize;
    /// Registers of output channels in the widest tile.
    const VECTORS: usize;

    /// Whether this CPU has the instruction set.
    fn detected() -> bool;
    /// Stores a u8 activation as `Input`.
    fn input(value: u8) -> Self::Input;
    /// The u8 activation stored as `input`; inverse of [`Self::input`].
    fn value(input: Self::Input) -> u8;
    /// Stores a quantized weight as `Weight`.
    fn weight(value: i16) -> Self::Weight;

    /// Loads `LANES` i32.
    unsafe fn load(from: *const i32) -> Self::Register;
    /// Loads `LANES * GROUP` weights.
    unsafe fn load_weights(from: *const Self::Weight) -> Self::Register;
    /// `sum` + the products of `GROUP` inputs with each lane's weights.
    unsafe fn dot(sum: Self::Register, inputs: *const Self::Input, weights: Self::Register) -> Self::Register;
    /// Prefetches the cache line at `weights`, which may be any address, unlike all other pointers here.
    #[inline(always)]
    unsafe fn prefetch(_weights: *const Self::Weight) {}
    /// Lane-wise maximum.
    unsafe fn max(a: Self::Register, b: Self::Register) -> Self::Register;
    /// (sum * multiplier + residual * residual_multiplier + offset) >> shift, clamped to [0, 255]. `multiplier`: `LANES`
    /// i32; `residual`: `lanes` inputs, or null for none.
    unsafe fn requantize(
        sum: Self::Register,
        multiplier: *const i32,
        residual: *const Self::Input,
        lanes: usize,
        scale: &Scale,
    ) -> Self::Register;
    /// Stores the first `lanes` lanes, each in [0, 255].
    unsafe fn store(to: *mut Self::Input, values: Self::Register, lanes: usize);
    /// Stores `LANES` i32.
    unsafe fn store_sums(to: *mut i32, sums: Self::Register);
    /// Runs [`convolve`] compiled for this instruction set.
    ///
    /// # Safety
    /// The CPU has it; `task` is within the bounds that [`Convolution::convolve`] checks.
    unsafe fn convolve(convolution: &Convolution<Self>, task: Task<Self>);
}

/// Scalars of a requantization.
#[derive(Debug, Clone, Copy, Default)]
pub struct Scale {
    /// Term added before the shift.
    pub offset: i64,
    /// Right shift in bits, 32 to 50.
    pub shift: u32,
    /// Multiplier of `residual << 8`.
    pub residual_multiplier: i32,
}

/// A layer to pack: its numbers in PyTorch's order, and the offsets of its pixels, in elements, image after image.
pub struct Packing<'a, W = i8> {
    /// Weights `[outputs, inputs, kernel, kernel]`.
    pub weight: &'a [W],
    /// Initial accumulators `[outputs]`.
    pub start: Vec<i32>,
    /// Multipliers `[outputs]`; empty for the last layer.
    pub multiplier: &'a [i32],
    /// Scalars of the requantization.
    pub scale: Scale,
    /// Rows and columns of the kernel.
    pub kernel: [usize; 2],
    /// Step between two outputs, in input pixels.
    pub stride: usize,
    /// Height and width of the output, in windows if there is a max-pool.
    pub size: [usize; 2],
    /// Rows and columns of padding stored on each side of the input.
    pub padding: usize,
    /// Value of the padding.
    pub border: u8,
    /// Height and width of the input without its padding.
    pub input_size: [usize; 2],
    /// Channels stored per input pixel.
    pub input_channels: usize,
    /// Elements from one image row to the next in the input.
    pub row_stride: usize,
    /// Offsets from a window's first pixel to its four, with a max-pool.
    pub window: Option<[usize; 4]>,
    /// Offset of the first tap of each pixel (or window).
    pub inputs: Vec<u32>,
    /// Offset of each result.
    pub outputs: Vec<u32>,
    /// Offset of each result's residual; empty without one.
    pub residuals: Vec<u32>,
    /// Channels stored per output pixel; the classes for the logits.
    pub output_channels: usize,
    /// Entries of `inputs` per image.
    pub per_image: usize,
}

/// A packed convolution.
pub struct Convolution<I: Isa> {
    weights: Vec<I::Weight>, // cache-line aligned; per block [kernel, kernel * input_channels / GROUP, vectors, LANES, GROUP]
    blocks: Vec<Block>,
    multiplier: Vec<i32>, // [vectors * LANES], or empty
    scale: Scale,
    rows: usize,
    groups: usize, // per kernel row
    row_stride: usize,
    window: Option<[usize; 4]>,
    zones: Zones,
    output_channels: usize,
    reach: [usize; 3], // least lengths of input, output and residual for the whole chunk
    next: usize,       // address of the weights that are read after these; 0 if unknown
}

/// A layer prepared to run on chunks of images.
pub trait Run<I: Isa> {
    /// Computes the first `images` images of the chunk.
    ///
    /// # Panics
    /// A slice is shorter than the tables' offsets need.
    fn run(&mut self, images: usize, input: &[I::Input], residual: Option<&[I::Input]>, output: &mut [I::Input]);

    /// Address of the packed weights, for [`followed_by`](Self::followed_by).
    fn address(&self) -> usize;

    /// Sets the address of the next layer's weights, which are prefetched while this layer computes its last channels.
    fn followed_by(&mut self, address: usize);
}

impl<I: Isa> Run<I> for Convolution<I> {
    fn run(&mut self, images: usize, input: &[I::Input], residual: Option<&[I::Input]>, output: &mut [I::Input]) {
        self.convolve(images, input, residual, output);
    }

    fn address(&self) -> usize {
        self.weights[self.blocks[0].weights..].as_ptr().addr()
    }

    fn followed_by(&mut self, address: usize) {
        self.next = address;
    }
}

/// Registers of output channels that are computed together.
struct Block {
    vectors: usize,
    first: usize,
    weights: usize,
}

/// Memory that results are stored to.
#[derive(Clone, Copy)]
enum Destination<I: Isa> {
    Activations(*mut I::Input),
    Logits(*mut i32),
}

/// Memory of one call. Public because it is in [`Isa`]; only [`Convolution::convolve`] and `run_last` make one.
pub struct Task<I: Isa> {
    input: *const I::Input,
    residual: *const I::Input,
    destination: Destination<I>,
    images: usize,
}

impl<I: Isa> Convolution<I> {
    /// Packs the weights.
    ///
    /// # Panics
    /// Lengths do not fit together: the caller made them from different geometries.
    pub fn new<W: Copy + Into<i16>>(packing: Packing<W>) -> Convolution<I> {
        let Packing { kernel: [rows, columns], input_channels, .. } = packing;
        let area = rows * columns;
        assert!(packing.inputs.len() == packing.outputs.len() && input_channels % I::GROUP == 0);
        assert!(packing.residuals.is_empty() || packing.residuals.len() == packing.inputs.len());
        let outputs = packing.start.len();
        let vectors = outputs.div_ceil(I::LANES);
        let real_inputs = packing.weight.len() / (outputs * area);
        assert!(real_inputs <= input_channels && real_inputs * outputs * area == packing.weight.len());

        // A register of weights that lay across two cache lines would take two loads.
        let mut weights: Vec<I::Weight> = Vec::with_capacity(LINE + vectors * I::LANES * area * input_channels);
        weights.resize(weights.as_ptr().align_offset(LINE).min(LINE), I::Weight::default());
        let (mut blocks, mut first) = (Vec::new(), 0);
        let groups = columns * input_channels / I::GROUP;
        while first < vectors {
            let widest = if packing.window.is_some() { 1 } else { I::VECTORS };
            let fitting = [4, 2, 1].into_iter().find(|&width| width <= widest && width <= vectors - first);
            let block = Block { vectors: fitting.expect("1 always fits"), first, weights: weights.len() };
            for (ky, group) in (0..rows).flat_map(|ky| (0..groups).map(move |group| (ky, group))) {
                for lane in first * I::LANES..(first + block.vectors) * I::LANES {
                    weights.extend((0..I::GROUP).map(|at| {
                        let (kx, c) =
                            ((group * I::GROUP + at) / input_channels, (group * I::GROUP + at) % input_channels);
                        let inside = lane < outputs && c < real_inputs;
                        let index = ((lane * real_inputs + c) * rows + ky) * columns + kx;
                        I::weight(if inside { packing.weight[index].into() } else { 0 })
                    }));
                }
            }
            first += block.vectors;
            blocks.push(block);
        }
        let padded = |values: &[i32]| {
            let mut values = values.to_vec();
            values.resize(vectors * I::LANES, 0);
            values
        };
        let furthest = |offsets: &[u32]| offsets.iter().copied().max().unwrap_or(0) as usize;
        let window = packing.window.map_or(0, |window| window.into_iter().max().expect("four"));
        let last_row = (rows - 1) * packing.row_stride + groups * I::GROUP;
        let reach = [
            furthest(&packing.inputs) + window + last_row,
            furthest(&packing.outputs) + packing.output_channels,
            if packing.residuals.is_empty() { 0 } else { furthest(&packing.residuals) + packing.output_channels },
        ];
        Convolution {
            weights,
            blocks,
            zones: Zones::new::<I, W>(&packing),
            multiplier: if packing.multiplier.is_empty() { Vec::new() } else { padded(packing.multiplier) },
            scale: packing.scale,
            rows,
            groups,
            row_stride: packing.row_stride,
            window: packing.window,
            output_channels: packing.output_channels,
            reach,
            next: 0,
        }
    }

    /// Convolves the first `images` images of the chunk.
    ///
    /// # Panics
    /// The CPU lacks the instructions, or a slice is shorter than the tables' offsets need.
    pub fn convolve(&self, images: usize, input: &[I::Input], residual: Option<&[I::Input]>, output: &mut [I::Input]) {
        assert!(
            !self.multiplier.is_empty()
                && output.len() >= self.reach[1]
                && self.output_channels.is_multiple_of(I::CHANNELS)
        );
        assert_eq!(residual.is_some(), !self.zones.whole().residuals.is_empty());
        assert!(residual.map_or(0, <[_]>::len) >= self.reach[2]);
        let residual = residual.map_or(std::ptr::null(), <[_]>::as_ptr);
        self.start(images, input, residual, Destination::Activations(output.as_mut_ptr()));
    }

    /// Convolves the last layer: accumulators of the first `images` images into `logits` `[images, output_channels]`.
    ///
    /// # Panics
    /// The CPU lacks the instructions, or a slice is shorter than the tables' offsets need.
    pub fn run_last(&self, images: usize, input: &[I::Input], logits: &mut [i32]) {
        assert!(self.multiplier.is_empty() && self.window.is_none());
        let whole = self.zones.whole();
        let inside = |&at: &u32| at as usize + self.output_channels <= logits.len();
        assert!(whole.outputs[..images * whole.per_image].iter().all(inside));
        self.start(images, input, std::ptr::null(), Destination::Logits(logits.as_mut_ptr()));
    }

    fn start(&self, images: usize, input: &[I::Input], residual: *const I::Input, destination: Destination<I>) {
        let whole = self.zones.whole();
        assert!(images * whole.per_image <= whole.inputs.len() && input.len() >= self.reach[0] && I::detected());
        // SAFETY: the CPU has the instructions (checked). Every offset of the tables plus what is read or written from
        // there ends within the slices: `reach`, checked here and by both callers.
        unsafe { I::convolve(self, Task { input: input.as_ptr(), residual, destination, images }) }
    }
}
