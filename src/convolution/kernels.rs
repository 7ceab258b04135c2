//! The gradient of the kernels: by F(3x3, 4x4), three taps of four values of the output's gradient.

use super::instructions::Functions;
use super::product::Left;
use super::tile::{BLOCK, ELEMENTS, Images, Kernels, Span, before, blocks, slab, slabs, width};
use super::{Shared, Threads, Workspace};

/// Tiles that a thread transforms at a time.
const PART: usize = 8;

/// One gradient.
pub struct Task<'a> {
    /// Functions of an instruction set that this CPU has.
    pub functions: &'static Functions,
    /// Values of `source`.
    pub input: &'a [f32],
    /// Input images.
    pub source: Images,
    /// Values of `target`.
    pub gradient: &'a [f32],
    /// Output images.
    pub target: Images,
    /// Kernels.
    pub kernels: Kernels,
    /// Memory for the gradient of `kernels`.
    pub to: Shared,
}

/// Transformed inputs and gradients of the output, in slabs.
#[derive(Clone, Copy)]
struct Slabs {
    inputs: Shared,
    gradients: Shared,
    /// Rows per slab.
    rows: usize,
}

impl Task<'_> {
    /// Computes it, `count` tiles at a time.
    pub fn run(&self, count: usize, workspace: &mut Workspace, threads: &dyn Threads) {
        if count == self.source.tiles() {
            self.at_once(workspace, threads);
        } else {
            self.in_rounds(count, workspace, threads);
        }
    }

    fn pairs(&self) -> usize {
        blocks(self.kernels.outputs) * blocks(self.kernels.inputs)
    }

    /// All tiles are transformed, then each pair of channel blocks is computed from first to last.
    fn at_once(&self, workspace: &mut Workspace, threads: &dyn Threads) {
        let tiles = self.source.tiles();
        let sums = ELEMENTS * slab(BLOCK, BLOCK);
        let (inputs, gradients) = (slabs(tiles, self.kernels.inputs), slabs(tiles, self.kernels.outputs));
        let [inputs, gradients, sums_of_all] = workspace.parts([inputs, gradients, threads.count() * sums]).map(Shared);
        let slabs = Slabs { inputs, gradients, rows: tiles };
        threads.share(tiles.div_ceil(PART), &|_, parts| {
            for row in parts.map(|part| part * PART) {
                let span = Span { first: row, count: PART.min(tiles - row), row, rows: tiles };
                // SAFETY: these rows of the slabs are this thread's.
                unsafe { self.spread(span, slabs) };
            }
        });
        threads.share(self.pairs(), &|thread, pairs| {
            let sums = sums_of_all.at(thread * sums);
            for pair in pairs {
                // SAFETY: all tiles have been transformed; the sums and the pair are this thread's.
                unsafe {
                    (0..ELEMENTS).for_each(|element| self.multiply(pair, element, slabs, tiles, sums, false));
                    self.gather(pair, sums);
                }
            }
        });
    }

    /// A block of tiles per thread is transformed, then all pairs of channel blocks add its products to their sums, and so on.
    fn in_rounds(&self, count: usize, workspace: &mut Workspace, threads: &dyn Threads) {
        let tiles = self.source.tiles();
        let spans = tiles.div_ceil(count);
        let round = threads.count().min(spans);
        let sums = ELEMENTS * slab(BLOCK, BLOCK); // per pair
        let (inputs, gradients) = (slabs(count, self.kernels.inputs), slabs(count, self.kernels.outputs));
        let [all_inputs, all_gradients, all_sums] =
            workspace.parts([round * inputs, round * gradients, self.pairs() * sums]).map(Shared);
        let slot = |slot: usize| Slabs {
            inputs: Shared(all_inputs.at(slot * inputs)),
            gradients: Shared(all_gradients.at(slot * gradients)),
            rows: count,
        };
        let rows = |span: usize| count.min(tiles - span * count);
        for start in (0..spans).step_by(round) {
            let slots = round.min(spans - start);
            threads.share(slots, &|_, range| {
                for at in range {
                    let span = start + at;
                    let span = Span { first: span * count, count: rows(span), row: 0, rows: count };
                    // SAFETY: the slot is this thread's.
                    unsafe { self.spread(span, slot(at)) };
                }
            });
            threads.share(self.pairs() * ELEMENTS, &|_, range| {
                for (pair, element) in range.map(|task| (task / ELEMENTS, task % ELEMENTS)) {
                    for at in 0..slots {
                        let span = start + at;
                        // SAFETY: these tiles have been transformed; the pair's sums of this element are this thread's.
                        unsafe {
                            self.multiply(pair, element, slot(at), rows(span), all_sums.at(pair * sums), span > 0)
                        };
                    }
                }
            });
        }
        threads.share(self.pairs(), &|_, range| {
            // SAFETY: the sums are complete; the pair is this thread's.
            range.for_each(|pair| unsafe { self.gather(pair, all_sums.at(pair * sums)) });
        });
    }

    /// Transforms the tiles of `span`.
    ///
    /// # Safety
    /// The span's rows of the slabs are the thread's own.
    unsafe fn spread(&self, span: Span, to: Slabs) {
        // SAFETY: input and gradient have the images' lengths; the caller's for the slabs.
        unsafe {
            (self.functions.spread_inputs)(self.input.as_ptr(), &self.source, span, to.inputs.at(0));
            (self.functions.spread_gradients)(self.gradient.as_ptr(), &self.target, span, to.gradients.at(0));
        }
    }

    /// First channel and width of the pair's blocks, of outputs and of inputs, with their indices.
    fn blocks(&self, pair: usize) -> [(usize, [usize; 2]); 2] {
        let (output, input) = (pair / blocks(self.kernels.inputs), pair % blocks(self.kernels.inputs));
        let block = |channels: usize, index: usize| (index, [index * BLOCK, width(channels, index)]);
        [block(self.kernels.outputs, output), block(self.kernels.inputs, input)]
    }

    /// Sums the products of an element over the first `tiles` rows of the slabs; with `add` to what the pair's `sums` hold.
    ///
    /// # Safety
    /// The rows have been written; the element's sums are the thread's own.
    unsafe fn multiply(&self, pair: usize, element: usize, from: Slabs, tiles: usize, sums: *mut f32, add: bool) {
        let [(output, [_, outputs]), (input, [_, inputs])] = self.blocks(pair);
        let gradients = from.gradients.at(before(from.rows, output) + element * slab(from.rows, outputs));
        let left = Left { data: gradients, row_stride: 1, term_stride: outputs };
        let right = from.inputs.at(before(from.rows, input) + element * slab(from.rows, inputs));
        // SAFETY: the caller's.
        unsafe {
            let sums = sums.add(element * slab(BLOCK, BLOCK));
            (self.functions.product)(outputs, tiles, inputs, left, right, sums, add);
        }
    }

    /// Transforms the pair's sums to its part of the gradient.
    ///
    /// # Safety
    /// The sums are complete, the pair the thread's own.
    unsafe fn gather(&self, pair: usize, sums: *mut f32) {
        let [(_, outputs), (_, inputs)] = self.blocks(pair);
        // SAFETY: the caller's; `to` has the kernels' length.
        unsafe {
            (self.functions.gather_kernels)(sums, slab(BLOCK, BLOCK), &self.kernels, outputs, inputs, self.to.at(0))
        };
    }
}
