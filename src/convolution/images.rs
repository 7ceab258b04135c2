//! A convolution of images: the output, or the gradient of the input.

use super::instructions::Functions;
use super::plan::Plan;
use super::product::Left;
use super::tile::{BLOCK, ELEMENTS, Images, Kernels, Span, before, blocks, slab, slabs, width};
use super::{Shared, Threads, Workspace};

/// Tiles that a thread transforms at a time.
const PART: usize = 8;

/// One convolution.
pub struct Task<'a> {
    /// Functions of an instruction set that this CPU has.
    pub functions: &'static Functions,
    /// Values of `source`.
    pub from: &'a [f32],
    /// Images that are read, with the channels of the kernels' rows.
    pub source: Images,
    /// Values of `kernels`.
    pub weight: &'a [f32],
    /// Kernels.
    pub kernels: Kernels,
    /// Memory for `target`.
    pub to: Shared,
    /// Images that are written, with the channels of the kernels' columns.
    pub target: Images,
}

impl Task<'_> {
    /// Computes it.
    pub fn run(&self, plan: &Plan, workspace: &mut Workspace, threads: &dyn Threads) {
        match *plan {
            Plan::TilesFirst { tiles } => self.tiles_first(tiles, workspace, threads),
            Plan::ColumnsFirst { tiles, depth } => self.columns_first(tiles, depth, workspace, threads),
        }
    }

    fn tiles_first(&self, count: usize, workspace: &mut Workspace, threads: &dyn Threads) {
        let (rows, columns, tiles) = (self.source.channels, self.target.channels, self.source.tiles());
        let (row_blocks, column_blocks) = (blocks(rows), blocks(columns));
        let kernel_slab = slab(BLOCK, BLOCK);
        let (inputs, products) = (slabs(count, rows), ELEMENTS * slab(count, BLOCK));
        let kernels = column_blocks * row_blocks * ELEMENTS * kernel_slab;
        let [kernels, inputs_of_all, products_of_all] =
            workspace.parts([kernels, threads.count() * inputs, threads.count() * products]).map(Shared);
        // [column block][element][row block]
        let place = |column: usize, element: usize, row: usize| {
            kernels.at(((column * ELEMENTS + element) * row_blocks + row) * kernel_slab)
        };
        threads.share(column_blocks * row_blocks, &|_, pairs| {
            for pair in pairs {
                let (column, row) = (pair / row_blocks, pair % row_blocks);
                let (from, to) = (self.weight.as_ptr(), place(column, 0, row));
                let (row, column) = ([row * BLOCK, width(rows, row)], [column * BLOCK, width(columns, column)]);
                // SAFETY: the weight has the kernels' length, and these blocks lie within; the pair's slabs are this thread's.
                unsafe {
                    (self.functions.spread_kernels)(from, &self.kernels, row, column, to, row_blocks * kernel_slab);
                }
            }
        });
        threads.share(tiles.div_ceil(count), &|thread, spans| {
            let (inputs, products) = (inputs_of_all.at(thread * inputs), products_of_all.at(thread * products));
            for first in spans.map(|span| span * count) {
                let span = Span { first, count: count.min(tiles - first), row: 0, rows: count };
                // SAFETY: `from` and `to` have the images' lengths; inputs and products are this thread's and have the slabs' lengths;
                // no other thread writes these tiles.
                unsafe {
                    (self.functions.spread_inputs)(self.from.as_ptr(), &self.source, span, inputs);
                    for column in 0..column_blocks {
                        let across = width(columns, column);
                        for element in 0..ELEMENTS {
                            for row in 0..row_blocks {
                                let depth = width(rows, row);
                                let data = inputs.add(before(count, row) + element * slab(count, depth));
                                let left = Left { data, row_stride: depth, term_stride: 1 };
                                let to = products.add(element * slab(count, across));
                                let kernels = place(column, element, row);
                                (self.functions.product)(span.count, depth, across, left, kernels, to, row > 0);
                            }
                        }
                        (self.functions.gather_outputs)(products, span, &self.target, column, self.to.at(0));
                    }
                }
            }
        });
    }

    fn columns_first(&self, count: usize, depth: usize, workspace: &mut Workspace, threads: &dyn Threads) {
        let (rows, columns, tiles) = (self.source.channels, self.target.channels, self.source.tiles());
        let column_blocks = blocks(columns);
        let spans = tiles.div_ceil(count);
        // Enough spans at a time for all threads.
        let round = threads.count().div_ceil(column_blocks).min(spans);
        let kernel_slab = slab(depth, BLOCK);
        let (inputs, products) = (slabs(count, rows), ELEMENTS * slab(count, BLOCK));
        let kernels = ELEMENTS * kernel_slab;
        let [kernels_of_all, inputs_of_all, products_of_all] =
            workspace.parts([threads.count() * kernels, round * inputs, threads.count() * products]).map(Shared);
        for start in (0..spans).step_by(round) {
            let slots = round.min(spans - start);
            let first = start * count;
            let here = (slots * count).min(tiles - first);
            let parts = count.div_ceil(PART); // per span
            threads.share(slots * parts, &|_, range| {
                for (slot, row) in range.map(|part| (part / parts, part % parts * PART)) {
                    let at = slot * count + row;
                    if at < here {
                        let count_here = PART.min(count - row).min(here - at);
                        let span = Span { first: first + at, count: count_here, row, rows: count };
                        let to = inputs_of_all.at(slot * inputs);
                        // SAFETY: `from` has the images' length; these rows of the slot's slabs are this thread's.
                        unsafe { (self.functions.spread_inputs)(self.from.as_ptr(), &self.source, span, to) };
                    }
                }
            });
            threads.share(slots * column_blocks, &|thread, range| {
                let (kernels, products) = (kernels_of_all.at(thread * kernels), products_of_all.at(thread * products));
                for (slot, column) in range.map(|task| (task / column_blocks, task % column_blocks)) {
                    let inputs = inputs_of_all.at(slot * inputs);
                    let across = width(columns, column);
                    let first = first + slot * count;
                    let span = Span { first, count: count.min(tiles - first), row: 0, rows: count };
                    // SAFETY: weight and `to` have the lengths of kernels and images; kernels and products are this thread's and have
                    // the slabs' lengths; all inputs are there; no other thread writes these channels of these tiles.
                    unsafe {
                        for row in (0..rows).step_by(depth) {
                            let (block, terms) = (row / BLOCK, depth.min(rows - row));
                            let (weight, across_all) = (self.weight.as_ptr(), [column * BLOCK, across]);
                            let of = &self.kernels;
                            (self.functions.spread_kernels)(weight, of, [row, terms], across_all, kernels, kernel_slab);
                            let row_stride = width(rows, block);
                            let inputs = inputs.add(before(count, block) + row % BLOCK);
                            for element in 0..ELEMENTS {
                                let data = inputs.add(element * slab(count, row_stride));
                                let left = Left { data, row_stride, term_stride: 1 };
                                let right = kernels.add(element * kernel_slab);
                                let to = products.add(element * slab(count, across));
                                (self.functions.product)(span.count, terms, across, left, right, to, row > 0);
                            }
                        }
                        (self.functions.gather_outputs)(products, span, &self.target, column, self.to.at(0));
                    }
                }
            });
        }
    }
}
