//! Max-pooling of squares of 2x2, each of its own.

use std::ops::Range;

use super::super::simd::Kernel;

/// Places of a square, as libtorch counts them: the first of equal values is taken.
const PLACES: [[usize; 2]; 4] = [[0, 0], [0, 1], [1, 0], [1, 1]];

/// The greatest values of planes `[planes, height, width]`, and where they lie. A unit of work is a row of the result.
pub(super) struct Forward<'a> {
    pub from: &'a [f32],
    pub size: [usize; 2],
    /// `[planes, height / 2, width / 2]`.
    pub to: *mut f32,
    /// The place of each in its square, 0 to 3.
    pub places: *mut u8,
}

// SAFETY: units of work write different rows.
unsafe impl Sync for Forward<'_> {}

impl Kernel for Forward<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(&self, range: Range<usize>) {
        let ([height, width], columns) = (self.size, self.size[1] / 2);
        for row in range {
            let (plane, row_of_plane) = (row / (height / 2), row % (height / 2));
            let from = (plane * height + 2 * row_of_plane) * width;
            let (upper, lower) = (&self.from[from..][..2 * columns], &self.from[from + width..][..2 * columns]);
            // SAFETY: this unit's own rows.
            let (to, places) = unsafe {
                let at = row * columns;
                (
                    std::slice::from_raw_parts_mut(self.to.add(at), columns),
                    std::slice::from_raw_parts_mut(self.places.add(at), columns),
                )
            };
            for column in 0..columns {
                let (mut best, mut place) = (upper[2 * column], 0);
                for (at, value) in [(1, upper[2 * column + 1]), (2, lower[2 * column]), (3, lower[2 * column + 1])] {
                    let is_better = value > best || value.is_nan();
                    best = if is_better { value } else { best };
                    place = if is_better { at } else { place };
                }
                (to[column], places[column]) = (best, place);
            }
        }
    }
}

/// Sets `to` `[planes, height, width]`, of zeros, to the gradient of the input, from that of the result and the places.
pub(super) fn backward(gradient: &[f32], places: &[u8], [height, width]: [usize; 2], to: &mut [f32]) {
    let (rows, columns) = (height / 2, width / 2);
    let each = gradient.chunks_exact(rows * columns).zip(places.chunks_exact(rows * columns));
    for (to, (gradient, places)) in to.chunks_exact_mut(height * width).zip(each) {
        let each = gradient.chunks_exact(columns).zip(places.chunks_exact(columns));
        for (to, (gradient, places)) in to.chunks_exact_mut(2 * width).zip(each) {
            for (column, (gradient, place)) in gradient.iter().zip(places).enumerate() {
                let [down, right] = PLACES[usize::from(*place)];
                to[down * width + 2 * column + right] = *gradient;
            }
        }
    }
}
