//! Random crop and flip of training images of any shape. In: an image of pixels as stored. Out: an image of equal size. Crop and flip depend on
//! (seed, epoch, index) alone, so that an image is the same on any number of ranks and in any order.

use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

/// Black pixels around an image before the crop, as torchvision's `RandomCrop(32, padding=4)`.
pub(super) const PADDING: usize = 4;
/// Places at which the crop can start, per axis.
const PLACES: usize = 2 * PADDING + 1;

/// Seed of an epoch's augmentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AugmentSeed {
    /// Seed of the run, `run.seed`.
    pub seed: u64,
    /// Epoch, from 0.
    pub epoch: u64,
}

/// Start of the crop in the padded image, and whether the result is mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Augmentation {
    pub(super) top: usize,
    pub(super) left: usize,
    pub(super) flip: bool,
}

impl Augmentation {
    /// Draws the augmentation of sample `index`: each of the 9 x 9 places equally likely, every second image mirrored.
    pub(super) fn draw(from: AugmentSeed, index: u32) -> Augmentation {
        let mix = |state: u64, part: u64| SplitMix64::seed_from_u64(state ^ part).next_u64();
        let bits = [from.seed, from.epoch, u64::from(index)].into_iter().fold(0, mix);
        // The high bits scaled to 0..162: no remainder, so no value is favored by more than 2^-56.
        let choice = ((u128::from(bits) * (2 * PLACES * PLACES) as u128) >> 64) as usize;
        Augmentation { top: choice / 2 / PLACES, left: choice / 2 % PLACES, flip: choice % 2 == 1 }
    }

    /// Writes the augmented `image` `[channels, height, width]` to `out`, of equal shape.
    pub(super) fn apply<T: Copy + Default>(self, image: &[T], [_, height, width]: [usize; 3], out: &mut [T]) {
        // Columns and rows of `out` that lie inside the image; `left` and `top` count from the padded image's corner.
        let first = PADDING.saturating_sub(self.left).min(width);
        let last = (width + PADDING).saturating_sub(self.left).clamp(first, width);
        out.fill(T::default());
        for (plane, out) in image.chunks_exact(height * width).zip(out.chunks_exact_mut(height * width)) {
            for (y, out) in out.chunks_exact_mut(width).enumerate() {
                let Some(row) = (y + self.top).checked_sub(PADDING).filter(|&row| row < height) else { continue };
                if first < last {
                    let start = row * width + first + self.left - PADDING;
                    out[first..last].copy_from_slice(&plane[start..start + last - first]);
                }
                if self.flip {
                    out.reverse();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: [usize; 3] = [3, 32, 32];

    fn numbered([channels, height, width]: [usize; 3]) -> Vec<u8> {
        (0..channels * height * width).map(|i| (i * 7 % 251 + 1) as u8).collect()
    }

    /// Augments pixel by pixel, from the definition.
    fn slowly(augmentation: Augmentation, image: &[u8], [_, height, width]: [usize; 3]) -> Vec<u8> {
        let pixel = |c: usize, y: usize, x: usize| {
            let x = if augmentation.flip { width - 1 - x } else { x };
            let (y, x) = (y + augmentation.top, x + augmentation.left);
            let inside = (PADDING..PADDING + height).contains(&y) && (PADDING..PADDING + width).contains(&x);
            if inside { image[(c * height + y - PADDING) * width + x - PADDING] } else { 0 }
        };
        let plane = height * width;
        (0..image.len()).map(|i| pixel(i / plane, i % plane / width, i % width)).collect()
    }

    #[test]
    fn each_crop_and_flip_is_that_of_the_padded_image() {
        for shape in [SHAPE, [1, 28, 20], [2, 3, 2], [1, 1, 1]] {
            let image = numbered(shape);
            let mut out = vec![9; image.len()];
            for (top, left, flip) in (0..PLACES * PLACES * 2).map(|i| (i / 2 / PLACES, i / 2 % PLACES, i % 2 == 1)) {
                let augmentation = Augmentation { top, left, flip };
                augmentation.apply(&image, shape, &mut out);
                assert_eq!(out, slowly(augmentation, &image, shape), "{shape:?} {augmentation:?}");
            }
            Augmentation { top: PADDING, left: PADDING, flip: false }.apply(&image, shape, &mut out);
            assert_eq!(out, image);
        }
    }

    #[test]
    fn all_places_are_drawn_about_equally_often_and_seed_epoch_and_index_all_matter() {
        let mut counts = [0; PLACES * PLACES * 2];
        for index in 0..16_200 {
            let Augmentation { top, left, flip } = Augmentation::draw(AugmentSeed { seed: 3, epoch: 1 }, index);
            counts[(top * PLACES + left) * 2 + usize::from(flip)] += 1;
        }
        // 100 expected, standard deviation 10: five of them leave room for 162 draws.
        assert!(counts.iter().all(|count| (50..150).contains(count)), "{counts:?}");
        let hundred = |seed, epoch, from| -> Vec<Augmentation> {
            (from..from + 100).map(|index| Augmentation::draw(AugmentSeed { seed, epoch }, index)).collect()
        };
        assert_eq!(hundred(3, 1, 0), hundred(3, 1, 0));
        for other in [hundred(4, 1, 0), hundred(3, 2, 0), hundred(1, 3, 0), hundred(3, 1, 100)] {
            assert_ne!(other, hundred(3, 1, 0));
        }
    }
}
