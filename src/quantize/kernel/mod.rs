//! The integer convolution on vector registers. In: activations as NHWC with their borders in place, weights packed once.
//! Out: the requantized activations (or i32 logits), equal in every element to `quantize::reference`.
//!
//! One loop, [`tile`], over an [`Isa`]: AVX-512 VNNI multiplies u8 by i8 four at a time, AVX2 keeps i16 and multiplies two
//! at a time (its u8 x i8 instruction saturates at 16 bits, so it cannot be exact). A tile is 6 output pixels by up to 64
//! channels: the kernel row's taps lie side by side in NHWC, so the inner loop walks one pointer per pixel.
//! `unsafe` is allowed here for the intrinsics and the unchecked reads of that loop; bounds are asserted in
//! [`Convolution::convolve`]. This folder uses nothing but `core`, so that Miri can run it (see tests/kernel-miri).
#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop)] // registers and lanes are counted, as in the drawing of a kernel

use std::mem::MaybeUninit;

#[cfg(target_arch = "x86_64")]
pub mod avx2;
#[cfg(target_arch = "x86_64")]
pub mod vnni;
#[cfg(target_arch = "x86_64")]
pub mod winograd;

/// Pixels of a tile: with 4 (AVX-512) or 2 (AVX2) vectors of channels it fills the registers.
const TILE: usize = 6;
/// Pixels of the last tile where no more are left: 4x4 pixels of one image are tiles of 6, 6 and 4.
const NARROW: usize = 4;
/// 2x2 windows of a tile with a max-pool, one vector of channels.
const WINDOWS: usize = 3;

/// Sums of the greatest tile: 6 pixels, 4 registers, 16 lanes.
const MEMORY: usize = TILE * 4 * 16;

/// A vector instruction set.
///
/// # Safety
/// The register functions may be called only from code that runs under [`Isa::convolve`], which enables the features;
/// pointers must be valid for the elements that each function names.
#[allow(clippy::missing_safety_doc)] // said once, above
pub unsafe trait Isa: Sized + 'static {
    /// An activation as it lies in memory.
    type Input: Copy + Default + Send + std::fmt::Debug;
    /// A weight as it lies in memory.
    type Weight: Copy + Default + Send + std::fmt::Debug;
    /// A register of `LANES` i32.
    type Register: Copy;
    /// Output channels of a register.
    const LANES: usize;
    /// Inputs multiplied and added by one instruction: 4 bytes of them.
    const GROUP: usize;
    /// Stored pixels have a multiple of so many channels.
    const CHANNELS: usize;
    /// Registers of output channels in the widest tile.
    const VECTORS: usize;

    /// Whether this CPU has it.
    fn detected() -> bool;
    /// A quantized activation.
    fn input(value: u8) -> Self::Input;
    /// Back.
    fn value(input: Self::Input) -> u8;
    /// A quantized weight.
    fn weight(value: i16) -> Self::Weight;

    /// The fastest form of a layer.
    fn prepare(packing: Packing) -> Box<dyn Run<Self>> {
        Box::new(Convolution::new(packing))
    }

    /// `LANES` i32.
    unsafe fn load(from: *const i32) -> Self::Register;
    /// `LANES * GROUP` weights.
    unsafe fn load_weights(from: *const Self::Weight) -> Self::Register;
    /// `sum` + the products of `GROUP` inputs with each lane's weights.
    unsafe fn dot(sum: Self::Register, inputs: *const Self::Input, weights: Self::Register) -> Self::Register;
    /// Asks for the cache line at `weights`, which alone may be any address.
    #[inline(always)]
    unsafe fn prefetch(_weights: *const Self::Weight) {}
    /// The greater, lane by lane.
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
    /// The first `lanes` lanes, each in [0, 255].
    unsafe fn store(to: *mut Self::Input, values: Self::Register, lanes: usize);
    /// `LANES` i32.
    unsafe fn store_sums(to: *mut i32, sums: Self::Register);
    /// [`convolve`] compiled for this instruction set.
    ///
    /// # Safety
    /// The CPU has it; `task` is within the bounds that [`Convolution::convolve`] checks.
    unsafe fn convolve(convolution: &Convolution<Self>, task: Task<Self>);
}

/// The scalars of a requantization.
#[derive(Debug, Clone, Copy, Default)]
pub struct Scale {
    /// Added before the shift.
    pub offset: i64,
    /// 32 to 50.
    pub shift: u32,
    /// Of `residual << 8`.
    pub residual_multiplier: i32,
}

/// What to pack: a layer in PyTorch's order and where its pixels lie. Offsets are in elements, image after image.
pub struct Packing<'a, W = i8> {
    /// `[outputs, inputs, kernel, kernel]`.
    pub weight: &'a [W],
    /// `[outputs]`: accumulators start here.
    pub start: Vec<i32>,
    /// `[outputs]`, empty: the last layer.
    pub multiplier: &'a [i32],
    /// The rest of the requantization.
    pub scale: Scale,
    /// Side of the kernel.
    pub kernel: usize,
    /// Pixels between two outputs.
    pub stride: usize,
    /// Side of the output (in windows).
    pub side: usize,
    /// Input channels as they lie in memory.
    pub input_channels: usize,
    /// From one image row to the next in the input.
    pub row_stride: usize,
    /// With a max-pool: the steps from a window's first pixel to its four.
    pub window: Option<[usize; 4]>,
    /// First tap of each pixel (each window).
    pub inputs: Vec<u32>,
    /// Where each result goes.
    pub outputs: Vec<u32>,
    /// Where its residual lies, empty without one.
    pub residuals: Vec<u32>,
    /// Channels stored per pixel; the logits: 10.
    pub output_channels: usize,
    /// Entries of `inputs` that are one image.
    pub per_image: usize,
}

/// A packed convolution.
pub struct Convolution<I: Isa> {
    weights: Vec<I::Weight>, // per block [kernel, kernel * input_channels / GROUP, vectors, LANES, GROUP]
    blocks: Vec<Block>,
    start: Vec<i32>,      // [vectors * LANES]
    multiplier: Vec<i32>, // the same, or empty
    scale: Scale,
    rows: usize,
    groups: usize, // of one kernel row
    row_stride: usize,
    window: Option<[usize; 4]>,
    inputs: Vec<u32>,
    outputs: Vec<u32>,
    residuals: Vec<u32>,
    output_channels: usize,
    per_image: usize,
    reach: [usize; 3], // least lengths of input, output and residual for the whole chunk
}

/// A layer prepared to run on chunks of images.
pub trait Run<I: Isa> {
    /// Computes the first `images` images of the chunk. Panics if a slice is shorter than the tables' offsets ask for.
    fn run(&mut self, images: usize, input: &[I::Input], residual: Option<&[I::Input]>, output: &mut [I::Input]);
}

impl<I: Isa> Run<I> for Convolution<I> {
    fn run(&mut self, images: usize, input: &[I::Input], residual: Option<&[I::Input]>, output: &mut [I::Input]) {
        self.convolve(images, input, residual, output);
    }
}

/// Registers of output channels that are computed together.
struct Block {
    vectors: usize,
    first: usize,
    weights: usize,
}

/// Where results go.
#[derive(Clone, Copy)]
enum Destination<I: Isa> {
    Activations(*mut I::Input),
    Logits(*mut i32),
}

/// The memory of one call. Public for the trait's sake; only [`Convolution::convolve`] and its sibling make one.
pub struct Task<I: Isa> {
    input: *const I::Input,
    residual: *const I::Input,
    destination: Destination<I>,
    positions: usize,
}

impl<I: Isa> Convolution<I> {
    /// Packs the weights. Panics if lengths do not fit together: the caller made them from one geometry.
    pub fn new<W: Copy + Into<i16>>(packing: Packing<W>) -> Convolution<I> {
        let Packing { kernel, input_channels, .. } = packing;
        assert!(packing.inputs.len() == packing.outputs.len() && input_channels % I::GROUP == 0);
        assert!(packing.residuals.is_empty() || packing.residuals.len() == packing.inputs.len());
        let outputs = packing.start.len();
        let vectors = outputs.div_ceil(I::LANES);
        let real_inputs = packing.weight.len() / (outputs * kernel * kernel);
        assert!(real_inputs <= input_channels && real_inputs * outputs * kernel * kernel == packing.weight.len());

        let (mut weights, mut blocks, mut first) = (Vec::new(), Vec::new(), 0);
        let groups = kernel * input_channels / I::GROUP;
        while first < vectors {
            let widest = if packing.window.is_some() { 1 } else { I::VECTORS };
            let fitting = [4, 2, 1].into_iter().find(|&width| width <= widest && width <= vectors - first);
            let block = Block { vectors: fitting.expect("1 always fits"), first, weights: weights.len() };
            for (ky, group) in (0..kernel).flat_map(|ky| (0..groups).map(move |group| (ky, group))) {
                for lane in first * I::LANES..(first + block.vectors) * I::LANES {
                    weights.extend((0..I::GROUP).map(|at| {
                        let (kx, c) =
                            ((group * I::GROUP + at) / input_channels, (group * I::GROUP + at) % input_channels);
                        let inside = lane < outputs && c < real_inputs;
                        let index = ((lane * real_inputs + c) * kernel + ky) * kernel + kx;
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
        let last_row = (kernel - 1) * packing.row_stride + groups * I::GROUP;
        let reach = [
            furthest(&packing.inputs) + window + last_row,
            furthest(&packing.outputs) + packing.output_channels,
            if packing.residuals.is_empty() { 0 } else { furthest(&packing.residuals) + packing.output_channels },
        ];
        Convolution {
            weights,
            blocks,
            start: padded(&packing.start),
            multiplier: if packing.multiplier.is_empty() { Vec::new() } else { padded(packing.multiplier) },
            scale: packing.scale,
            rows: kernel,
            groups,
            row_stride: packing.row_stride,
            window: packing.window,
            inputs: packing.inputs,
            outputs: packing.outputs,
            residuals: packing.residuals,
            output_channels: packing.output_channels,
            per_image: packing.per_image,
            reach,
        }
    }

    /// Convolves the first `images` images of the chunk.
    pub fn convolve(&self, images: usize, input: &[I::Input], residual: Option<&[I::Input]>, output: &mut [I::Input]) {
        assert!(
            !self.multiplier.is_empty()
                && output.len() >= self.reach[1]
                && self.output_channels.is_multiple_of(I::CHANNELS)
        );
        assert_eq!(residual.is_some(), !self.residuals.is_empty());
        assert!(residual.map_or(0, <[_]>::len) >= self.reach[2]);
        let residual = residual.map_or(std::ptr::null(), <[_]>::as_ptr);
        self.start(images, input, residual, Destination::Activations(output.as_mut_ptr()));
    }

    /// The last layer: accumulators of the first `images` images into `logits` `[images, output_channels]`.
    pub fn run_last(&self, images: usize, input: &[I::Input], logits: &mut [i32]) {
        assert!(self.multiplier.is_empty() && self.window.is_none());
        assert!(
            self.outputs[..images * self.per_image]
                .iter()
                .all(|&at| at as usize + self.output_channels <= logits.len())
        );
        self.start(images, input, std::ptr::null(), Destination::Logits(logits.as_mut_ptr()));
    }

    fn start(&self, images: usize, input: &[I::Input], residual: *const I::Input, destination: Destination<I>) {
        let positions = images * self.per_image;
        assert!(positions <= self.inputs.len() && input.len() >= self.reach[0] && I::detected());
        // SAFETY: the CPU has the instructions (checked). Every offset of the tables plus what is read or written from
        // there ends within the slices: `reach`, checked here and by both callers.
        unsafe { I::convolve(self, Task { input: input.as_ptr(), residual, destination, positions }) }
    }
}

/// All blocks of channels, all tiles of pixels.
///
/// # Safety
/// As [`Isa::convolve`]; inlined into it, so that it is compiled with its features.
#[inline(always)]
unsafe fn convolve<I: Isa>(convolution: &Convolution<I>, task: Task<I>) {
    // SAFETY: the caller's promise, for every tile: `position` and `position + size` are at most `positions`.
    unsafe {
        for block in &convolution.blocks {
            let mut position = 0;
            if convolution.window.is_some() {
                while position < task.positions {
                    pooled_tile(convolution, &task, block, position);
                    position += WINDOWS;
                }
                continue;
            }
            // Narrow tails (and batch 1 of fully connected layers) would waste most of a full tile.
            while position < task.positions {
                let pixels = match task.positions - position {
                    1 | 2 => 1,
                    left if left <= NARROW => NARROW,
                    _ => TILE,
                };
                match (block.vectors, pixels) {
                    (4, TILE) if I::VECTORS >= 4 => tile::<I, 4, TILE>(convolution, &task, block, position),
                    (4, NARROW) if I::VECTORS >= 4 => tile::<I, 4, NARROW>(convolution, &task, block, position),
                    (4, _) if I::VECTORS >= 4 => tile::<I, 4, 1>(convolution, &task, block, position),
                    (2, TILE) => tile::<I, 2, TILE>(convolution, &task, block, position),
                    (2, NARROW) => tile::<I, 2, NARROW>(convolution, &task, block, position),
                    (2, _) => tile::<I, 2, 1>(convolution, &task, block, position),
                    (_, TILE) => tile::<I, 1, TILE>(convolution, &task, block, position),
                    (_, NARROW) => tile::<I, 1, NARROW>(convolution, &task, block, position),
                    (_, _) => tile::<I, 1, 1>(convolution, &task, block, position),
                }
                position += pixels;
            }
        }
    }
}

/// `PIXELS` pixels (fewer at the end) by `VECTORS` registers of channels.
///
/// # Safety
/// As [`convolve`]; `position < task.positions`, `block.vectors == VECTORS`.
#[inline(always)]
unsafe fn tile<I: Isa, const VECTORS: usize, const PIXELS: usize>(
    convolution: &Convolution<I>,
    task: &Task<I>,
    block: &Block,
    position: usize,
) {
    let last = task.positions - 1;
    // SAFETY: positions are clamped to the last one, whose offsets were checked like all others; `start`, `multiplier`
    // and `weights` hold whole registers for every vector of every block.
    unsafe {
        let mut taps: [*const I::Input; PIXELS] = [task.input; PIXELS];
        for (j, tap) in taps.iter_mut().enumerate() {
            *tap = task.input.add(*convolution.inputs.get_unchecked((position + j).min(last)) as usize);
        }
        let start = convolution.start.as_ptr().add(block.first * I::LANES);
        let mut sums = [[I::load(start); VECTORS]; PIXELS];
        for v in 1..VECTORS {
            let value = I::load(start.add(v * I::LANES));
            for sum in &mut sums {
                sum[v] = value;
            }
        }
        let mut weights = convolution.weights.as_ptr().add(block.weights);
        // Few images have few tiles a block, and then the weights come from far: the first tiles ask for the next block's,
        // a cache line for each step of the loop.
        let (number, steps) = (position / TILE, convolution.rows * convolution.groups);
        let line = if number < VECTORS { 64 / size_of::<I::Weight>() } else { 0 };
        let mut ahead = weights.wrapping_add(steps * (VECTORS * I::LANES * I::GROUP + number * line));
        for row in 0..convolution.rows {
            for group in 0..convolution.groups {
                I::prefetch(ahead);
                ahead = ahead.wrapping_add(line);
                let mut registers = [I::load_weights(weights); VECTORS];
                for (v, register) in registers.iter_mut().enumerate().skip(1) {
                    *register = I::load_weights(weights.add(v * I::LANES * I::GROUP));
                }
                for j in 0..PIXELS {
                    let inputs = taps[j].add(row * convolution.row_stride + group * I::GROUP);
                    for v in 0..VECTORS {
                        sums[j][v] = I::dot(sums[j][v], inputs, registers[v]);
                    }
                }
                weights = weights.add(VECTORS * I::LANES * I::GROUP);
            }
        }
        let mut memory = [const { MaybeUninit::<i32>::uninit() }; MEMORY];
        for j in 0..PIXELS {
            for v in 0..VECTORS {
                I::store_sums(memory.as_mut_ptr().cast::<i32>().add((j * VECTORS + v) * I::LANES), sums[j][v]);
            }
        }
        finish::<I>(convolution, task, block, position, PIXELS, memory.as_ptr().cast());
    }
}

/// `WINDOWS` windows of 2x2 pixels by one register of channels. The greatest accumulator has the greatest output, since
/// multipliers are not negative: one requantization a window.
///
/// # Safety
/// As [`tile`], with `block.vectors == 1` and a window.
#[inline(always)]
unsafe fn pooled_tile<I: Isa>(convolution: &Convolution<I>, task: &Task<I>, block: &Block, position: usize) {
    let last = task.positions - 1;
    let Some(steps) = convolution.window else { return };
    // SAFETY: as in `tile`; the window's steps are part of `reach`.
    unsafe {
        let mut taps: [*const I::Input; WINDOWS] = [task.input; WINDOWS];
        for (j, tap) in taps.iter_mut().enumerate() {
            *tap = task.input.add(*convolution.inputs.get_unchecked((position + j).min(last)) as usize);
        }
        let mut sums = [[I::load(convolution.start.as_ptr().add(block.first * I::LANES)); 4]; WINDOWS];
        let mut weights = convolution.weights.as_ptr().add(block.weights);
        for row in 0..convolution.rows {
            for group in 0..convolution.groups {
                let register = I::load_weights(weights);
                for j in 0..WINDOWS {
                    let corner = taps[j].add(row * convolution.row_stride + group * I::GROUP);
                    for k in 0..4 {
                        sums[j][k] = I::dot(sums[j][k], corner.add(steps[k]), register);
                    }
                }
                weights = weights.add(I::LANES * I::GROUP);
            }
        }
        let mut memory = [const { MaybeUninit::<i32>::uninit() }; MEMORY];
        for j in 0..WINDOWS {
            let greatest = I::max(I::max(sums[j][0], sums[j][1]), I::max(sums[j][2], sums[j][3]));
            I::store_sums(memory.as_mut_ptr().cast::<i32>().add(j * I::LANES), greatest);
        }
        finish::<I>(convolution, task, block, position, WINDOWS, memory.as_ptr().cast());
    }
}

/// Requantizes and stores a tile's sums `[pixels, block.vectors, LANES]`. They come through memory on purpose: were they
/// read here from the array of registers, the compiler would keep that array in memory through the whole inner loop.
///
/// # Safety
/// As [`tile`]; `position < task.positions`; all of `sums` is there.
#[inline(always)]
unsafe fn finish<I: Isa>(
    convolution: &Convolution<I>,
    task: &Task<I>,
    block: &Block,
    position: usize,
    pixels: usize,
    sums: *const i32,
) {
    // SAFETY: the offsets at each position plus `output_channels` end within the memory of `task` (`reach`); no more
    // lanes than channels are left are read or written. The last logits go through a register-sized array of our own.
    unsafe {
        for j in 0..pixels.min(task.positions - position) {
            let to = *convolution.outputs.get_unchecked(position + j) as usize;
            for v in 0..block.vectors {
                let sum = I::load(sums.add((j * block.vectors + v) * I::LANES));
                let channel = (block.first + v) * I::LANES;
                let lanes = (convolution.output_channels - channel).min(I::LANES);
                match task.destination {
                    Destination::Activations(output) => {
                        let residual = match task.residual.is_null() {
                            true => task.residual,
                            false => {
                                task.residual.add(*convolution.residuals.get_unchecked(position + j) as usize + channel)
                            }
                        };
                        let multiplier = convolution.multiplier.as_ptr().add(channel);
                        let values = I::requantize(sum, multiplier, residual, lanes, &convolution.scale);
                        I::store(output.add(to + channel), values, lanes);
                    }
                    Destination::Logits(logits) if lanes == I::LANES => I::store_sums(logits.add(to + channel), sum),
                    Destination::Logits(logits) => {
                        let mut all = [0i32; 16];
                        I::store_sums(all.as_mut_ptr(), sum);
                        std::ptr::copy_nonoverlapping(all.as_ptr(), logits.add(to + channel), lanes);
                    }
                }
            }
        }
    }
}
