//! The loop over blocks of channels and tiles of pixels. A tile is up to 6 output pixels by up to 64 channels: the kernel
//! row's taps are adjacent in NHWC, so the inner loop advances one pointer per pixel. While it multiplies, it prefetches the
//! weights that come next: with one image each is read once, from far.

use std::mem::MaybeUninit;

use super::zones::Zone;
use super::{Block, Convolution, Destination, Isa, LINE, TILE, Task};

/// 2x2 windows of a tile with a max-pool, for one vector of channels.
const WINDOWS: usize = 3;

/// Cache lines of weights prefetched per step of the loop.
const AHEAD: usize = 2;

/// Sums of the largest tile: 6 pixels, 4 registers, 16 lanes.
const MEMORY: usize = TILE * 4 * 16;

/// Work of a tile: pixels `first..first + pixels` of a zone, the channels of a block. The tile prefetches the weights from
/// `ahead` on, by `line` elements.
struct Place<'a, I: Isa> {
    zone: &'a Zone,
    block: &'a Block,
    first: usize,
    pixels: usize,
    ahead: *const I::Weight,
    line: usize,
}

/// Computes all blocks of channels and all tiles of pixels.
///
/// # Safety
/// As [`Isa::convolve`]; inlined into it, so that it is compiled with its features.
#[inline(always)]
pub(super) unsafe fn convolve<I: Isa>(convolution: &Convolution<I>, task: Task<I>) {
    let zones = convolution.zones.of(task.images);
    for (number, block) in convolution.blocks.iter().enumerate() {
        // With few images a block's weights come from far and are used up soon, so the next block's are prefetched.
        let mut ahead = match convolution.blocks.get(number + 1) {
            Some(next) => convolution.weights.as_ptr().wrapping_add(next.weights),
            None => std::ptr::without_provenance(convolution.next),
        };
        let line = LINE / size_of::<I::Weight>();
        let end = ahead.wrapping_add(convolution.rows * convolution.groups * block.vectors * I::LANES * I::GROUP);
        for zone in zones {
            let positions = task.images * zone.per_image;
            // SAFETY: the caller's promise; `position + pixels` is at most `positions`.
            unsafe {
                if convolution.window.is_some() {
                    for position in (0..positions).step_by(WINDOWS) {
                        pooled_tile(convolution, &task, zone, block, position, positions);
                    }
                    continue;
                }
                // Tiles of equal size, or nearly: a narrow one at the end would wait for its weights.
                let tiles = positions.div_ceil(TILE);
                for tile in 0..tiles {
                    let (first, last) = (tile * positions / tiles, (tile + 1) * positions / tiles);
                    let place = Place {
                        zone,
                        block,
                        first,
                        pixels: last - first,
                        ahead,
                        line: if ahead < end { line } else { 0 },
                    };
                    ahead = ahead.wrapping_add(AHEAD * place.line * zone.rows.len() * zone.groups.len());
                    match block.vectors {
                        4 if I::VECTORS >= 4 => tile_of::<I, 4>(convolution, &task, &place),
                        2 => tile_of::<I, 2>(convolution, &task, &place),
                        _ => tile_of::<I, 1>(convolution, &task, &place),
                    }
                }
            }
        }
    }
}

/// Calls [`tile`] for `place.pixels`.
///
/// # Safety
/// As [`tile`], with at most `TILE` pixels.
#[inline(always)]
unsafe fn tile_of<I: Isa, const VECTORS: usize>(convolution: &Convolution<I>, task: &Task<I>, place: &Place<I>) {
    // SAFETY: the caller's promise.
    unsafe {
        match place.pixels {
            TILE => tile::<I, VECTORS, TILE>(convolution, task, place),
            5 => tile::<I, VECTORS, 5>(convolution, task, place),
            4 => tile::<I, VECTORS, 4>(convolution, task, place),
            3 => tile::<I, VECTORS, 3>(convolution, task, place),
            2 => tile::<I, VECTORS, 2>(convolution, task, place),
            _ => tile::<I, VECTORS, 1>(convolution, task, place),
        }
    }
}

/// Computes `PIXELS` pixels by `VECTORS` registers of channels.
///
/// # Safety
/// As [`convolve`]; `position + PIXELS` is at most the zone's pixels, `block.vectors == VECTORS`.
#[inline(always)]
unsafe fn tile<I: Isa, const VECTORS: usize, const PIXELS: usize>(
    convolution: &Convolution<I>,
    task: &Task<I>,
    place: &Place<I>,
) {
    let Place { zone, block, first: position, .. } = *place;
    // SAFETY: the offsets of the zone's pixels were checked like all others; `start`, `multiplier` and `weights` hold
    // whole registers for every vector of every block.
    unsafe {
        let mut taps: [*const I::Input; PIXELS] = [task.input; PIXELS];
        for (j, tap) in taps.iter_mut().enumerate() {
            *tap = task.input.add(*zone.inputs.get_unchecked(position + j) as usize);
        }
        let start = zone.start.as_ptr().add(block.first * I::LANES);
        let mut sums = [[I::load(start); VECTORS]; PIXELS];
        for v in 1..VECTORS {
            let value = I::load(start.add(v * I::LANES));
            for sum in &mut sums {
                sum[v] = value;
            }
        }
        let width = VECTORS * I::LANES * I::GROUP;
        let mut ahead = place.ahead;
        for row in zone.rows.clone() {
            let mut weights = convolution
                .weights
                .as_ptr()
                .add(block.weights + (row * convolution.groups + zone.groups.start) * width);
            for group in zone.groups.clone() {
                if place.line > 0 {
                    for line in 0..AHEAD {
                        I::prefetch(ahead.wrapping_add(line * place.line));
                    }
                }
                ahead = ahead.wrapping_add(AHEAD * place.line);
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
                weights = weights.add(width);
            }
        }
        let mut memory = [const { MaybeUninit::<i32>::uninit() }; MEMORY];
        for j in 0..PIXELS {
            for v in 0..VECTORS {
                I::store_sums(memory.as_mut_ptr().cast::<i32>().add((j * VECTORS + v) * I::LANES), sums[j][v]);
            }
        }
        finish::<I>(convolution, task, zone, block, position, PIXELS, memory.as_ptr().cast());
    }
}

/// Computes `WINDOWS` windows of 2x2 pixels by one register of channels. The greatest accumulator has the greatest output,
/// since multipliers are not negative: one requantization per window.
///
/// # Safety
/// As [`tile`], with `block.vectors == 1` and a window.
#[inline(always)]
unsafe fn pooled_tile<I: Isa>(
    convolution: &Convolution<I>,
    task: &Task<I>,
    zone: &Zone,
    block: &Block,
    position: usize,
    positions: usize,
) {
    let last = positions - 1;
    let Some(steps) = convolution.window else { return };
    // SAFETY: as in `tile`; the window's steps are part of `reach`.
    unsafe {
        let mut taps: [*const I::Input; WINDOWS] = [task.input; WINDOWS];
        for (j, tap) in taps.iter_mut().enumerate() {
            *tap = task.input.add(*zone.inputs.get_unchecked((position + j).min(last)) as usize);
        }
        let mut sums = [[I::load(zone.start.as_ptr().add(block.first * I::LANES)); 4]; WINDOWS];
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
        finish::<I>(
            convolution,
            task,
            zone,
            block,
            position,
            WINDOWS.min(positions - position),
            memory.as_ptr().cast(),
        );
    }
}

/// Requantizes and stores a tile's sums `[pixels, block.vectors, LANES]`. They are passed through memory on purpose: if they
/// were read here from the array of registers, the compiler would keep that array in memory through the whole inner loop.
///
/// # Safety
/// As [`tile`]; the zone has `pixels` pixels from `position` on; all of `sums` is there.
#[inline(always)]
unsafe fn finish<I: Isa>(
    convolution: &Convolution<I>,
    task: &Task<I>,
    zone: &Zone,
    block: &Block,
    position: usize,
    pixels: usize,
    sums: *const i32,
) {
    // SAFETY: the offsets at each position plus `output_channels` end within the memory of `task` (`reach`); no more
    // lanes than channels are left are read or written. The last logits go through a local, register-sized array.
    unsafe {
        for j in 0..pixels {
            let to = *zone.outputs.get_unchecked(position + j) as usize;
            for v in 0..block.vectors {
                let sum = I::load(sums.add((j * block.vectors + v) * I::LANES));
                let channel = (block.first + v) * I::LANES;
                let lanes = (convolution.output_channels - channel).min(I::LANES);
                match task.destination {
                    Destination::Activations(output) => {
                        let residual = match task.residual.is_null() {
                            true => task.residual,
                            false => task.residual.add(*zone.residuals.get_unchecked(position + j) as usize + channel),
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
