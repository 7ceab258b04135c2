//! Matrix products of small blocks, which stay in the caches: most of the time of a convolution is spent here.

use super::vector::Vector;

/// Terms that are summed in registers before they are added to a sum in memory. Two levels of sums round less than one.
const DEPTH: usize = 64;

/// Left factor: element `[row, term]` at `data + row * row_stride + term * term_stride`.
#[derive(Clone, Copy)]
pub struct Left {
    /// Element `[0, 0]`.
    pub data: *const f32,
    /// Floats from a row to the next.
    pub row_stride: usize,
    /// Floats from a term to the next.
    pub term_stride: usize,
}

/// Computes `to[rows, width] (+)= left[rows, depth] x right[depth, width]`; `to` and `right` have no gaps, `width` is a multiple of
/// 16. `add`: adds to what `to` holds.
///
/// # Safety
/// The vector's instruction set is enabled; the pointers are valid for these shapes.
#[inline(always)]
pub unsafe fn product<V: Vector>(
    rows: usize,
    depth: usize,
    width: usize,
    left: Left,
    right: *const f32,
    to: *mut f32,
    add: bool,
) {
    let mut add = add;
    for term in (0..depth).step_by(DEPTH) {
        let depth = DEPTH.min(depth - term);
        let mut column = 0;
        while column < width {
            let vectors = V::COLUMNS.min((width - column) / V::LANES);
            // SAFETY: the caller's; `term` and `column` are within the factors.
            unsafe {
                let left = Left { data: left.data.add(term * left.term_stride), ..left };
                let block =
                    Block { depth, width, left, right: right.add(term * width + column), to: to.add(column), add };
                match (vectors, V::MANY_REGISTERS) {
                    (4, _) => block.rows::<V, 6, 4>(rows),
                    (3, _) => block.rows::<V, 8, 3>(rows),
                    (2, true) => block.rows::<V, 12, 2>(rows),
                    (2, false) => block.rows::<V, 6, 2>(rows),
                    _ => block.rows::<V, 12, 1>(rows),
                }
            }
            column += vectors * V::LANES;
        }
        add = true;
    }
}

/// Columns of a product that registers hold beside each other.
#[derive(Clone, Copy)]
struct Block {
    depth: usize,
    width: usize,
    left: Left,
    right: *const f32,
    to: *mut f32,
    add: bool,
}

impl Block {
    /// Computes all rows, `ROWS` at a time, the last ones in smaller tiles.
    ///
    /// # Safety
    /// See [`product`].
    #[inline(always)]
    unsafe fn rows<V: Vector, const ROWS: usize, const VECTORS: usize>(self, rows: usize) {
        let mut row = 0;
        // SAFETY: the caller's; each tile ends within `rows`.
        unsafe {
            while rows - row >= ROWS {
                self.tile::<V, ROWS, VECTORS>(row);
                row += ROWS;
            }
            while rows - row >= 4 {
                self.tile::<V, 4, VECTORS>(row);
                row += 4;
            }
            if rows - row >= 2 {
                self.tile::<V, 2, VECTORS>(row);
                row += 2;
            }
            if rows > row {
                self.tile::<V, 1, VECTORS>(row);
            }
        }
    }

    /// Computes `ROWS` rows of `VECTORS` vectors in registers.
    ///
    /// # Safety
    /// See [`product`].
    #[inline(always)]
    unsafe fn tile<V: Vector, const ROWS: usize, const VECTORS: usize>(self, row: usize) {
        // SAFETY: the caller's.
        unsafe {
            let Left { row_stride, term_stride, .. } = self.left;
            let mut left = self.left.data.add(row * row_stride);
            let mut right = self.right;
            let mut sums = [[V::splat(0.0); VECTORS]; ROWS];
            for _ in 0..self.depth {
                let mut columns = [V::splat(0.0); VECTORS];
                for vector in 0..VECTORS {
                    columns[vector] = V::load(right.add(vector * V::LANES));
                }
                for row in 0..ROWS {
                    let value = V::splat(*left.add(row * row_stride));
                    for vector in 0..VECTORS {
                        sums[row][vector] = value.mul_add(columns[vector], sums[row][vector]);
                    }
                }
                left = left.add(term_stride);
                right = right.add(self.width);
            }
            for (at, sums) in sums.into_iter().enumerate() {
                let to = self.to.add((row + at) * self.width);
                for (vector, mut sum) in sums.into_iter().enumerate() {
                    let to = to.add(vector * V::LANES);
                    if self.add {
                        sum = sum.add(V::load(to));
                    }
                    sum.store(to);
                }
            }
        }
    }
}
