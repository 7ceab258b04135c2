//! Zones: the taps of the kernel that each pixel needs. At an image's edge some taps lie in the padding, whose values are the
//! zero point. Their products add a constant, which is added once to the initial accumulators, and the taps are skipped. Of a
//! 3x3 kernel over 4x4 pixels 44 of 144 taps are padding, over 8x8 pixels 92 of 576.

use std::ops::Range;

use super::{Isa, Packing, TILE};

/// Pixels whose kernels skip the same taps. The tables have all images of a chunk, image after image.
pub(super) struct Zone {
    /// Kernel rows inside the image.
    pub rows: Range<usize>,
    /// Groups of inputs of one kernel row inside the image.
    pub groups: Range<usize>,
    /// Initial accumulators, `[vectors * LANES]`.
    pub start: Vec<i32>,
    /// Pixels (or windows) per image.
    pub per_image: usize,
    /// Offset of the first tap (even if it is skipped) of each pixel.
    pub inputs: Vec<u32>,
    /// Offset of each result.
    pub outputs: Vec<u32>,
    /// Offset of each result's residual; empty without one.
    pub residuals: Vec<u32>,
}

/// Divisions of an image: undivided; by kernel rows; by kernel rows and columns. A finer division needs fewer products, but
/// leaves fewer pixels for full tiles when images are few.
pub(super) struct Zones(Vec<Vec<Zone>>);

impl Zones {
    pub fn new<I: Isa, W: Copy + Into<i16>>(packing: &Packing<W>) -> Zones {
        let [rows, columns] = packing.kernel;
        let whole = |_: usize| (0..rows, 0..columns);
        if packing.padding == 0 || packing.window.is_some() {
            return Zones(vec![divided::<I, W>(packing, whole)]);
        }
        let inside = |axis: usize, at: usize| {
            let first = at * packing.stride; // in the padded image
            let end = (packing.input_size[axis] + packing.padding).saturating_sub(first);
            packing.padding.saturating_sub(first).min(packing.kernel[axis])..end.min(packing.kernel[axis])
        };
        let width = packing.size[1];
        let bands = |pixel: usize| (inside(0, pixel / width), 0..columns);
        let fields = |pixel: usize| (inside(0, pixel / width), inside(1, pixel % width));
        Zones(vec![divided::<I, W>(packing, whole), divided::<I, W>(packing, bands), divided::<I, W>(packing, fields)])
    }

    /// The cheapest division for `images` images.
    pub fn of(&self, images: usize) -> &[Zone] {
        let cost = |zones: &&Vec<Zone>| zones.iter().map(|zone| zone.cost(images)).sum::<usize>();
        self.0.iter().min_by_key(cost).expect("the undivided image is a candidate")
    }

    /// All pixels, undivided.
    pub fn whole(&self) -> &Zone {
        &self.0[0][0]
    }
}

impl Zone {
    /// Time in units of a pixel's time for one step of the inner loop.
    fn cost(&self, images: usize) -> usize {
        /// Pixels below which a tile waits for the weights.
        const LEAST: usize = 4;
        /// Steps that a tile's beginning and end take.
        const ENDS: usize = 8;
        let pixels = images * self.per_image;
        let tiles = pixels.div_ceil(TILE);
        (self.rows.len() * self.groups.len() + ENDS) * pixels.max(tiles * LEAST)
    }
}

fn divided<I: Isa, W: Copy + Into<i16>>(
    packing: &Packing<W>,
    taps: impl Fn(usize) -> (Range<usize>, Range<usize>),
) -> Vec<Zone> {
    let mut kinds: Vec<(Range<usize>, Range<usize>)> = Vec::new();
    for kind in (0..packing.per_image).map(&taps) {
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let zone = |(rows, columns): (Range<usize>, Range<usize>)| {
        let inside = |&place: &usize| taps(place % packing.per_image) == (rows.clone(), columns.clone());
        let places: Vec<usize> = (0..packing.inputs.len()).filter(inside).collect();
        let chosen = |table: &[u32]| places.iter().map(|&place| table[place]).collect();
        let groups = packing.input_channels / I::GROUP; // per tap; a group spans several taps only without padding
        Zone {
            groups: match columns == (0..packing.kernel[1]) {
                true => 0..packing.kernel[1] * packing.input_channels / I::GROUP,
                false => columns.start * groups..columns.end * groups,
            },
            start: start::<I, W>(packing, &rows, &columns),
            per_image: (0..packing.per_image).filter(inside).count(),
            inputs: chosen(&packing.inputs),
            outputs: chosen(&packing.outputs),
            residuals: if packing.residuals.is_empty() { Vec::new() } else { chosen(&packing.residuals) },
            rows,
        }
    };
    kinds.into_iter().map(zone).collect()
}

/// Initial accumulators: `packing.start` plus what the taps outside of `rows` and `columns` add, in whole registers.
fn start<I: Isa, W: Copy + Into<i16>>(packing: &Packing<W>, rows: &Range<usize>, columns: &Range<usize>) -> Vec<i32> {
    let outputs = packing.start.len();
    let (taps, [height, width]) = (packing.weight.len() / outputs, packing.kernel);
    let left_out = |&(at, _): &(usize, &W)| {
        let (y, x) = (at / width % height, at % width);
        !(rows.contains(&y) && columns.contains(&x))
    };
    let added = |weights: &[W]| -> i32 {
        let taps = weights.iter().enumerate().filter(left_out);
        taps.map(|(_, &weight)| packing.border as i32 * weight.into() as i32).sum()
    };
    let mut start: Vec<i32> =
        packing.start.iter().zip(packing.weight.chunks(taps)).map(|(start, weights)| start + added(weights)).collect();
    start.resize(outputs.next_multiple_of(I::LANES), 0);
    start
}
