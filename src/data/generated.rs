//! Synthetic sets of any form and size. In: a form and the index of a sample. Out: the sample, equal on every machine; none is held in
//! memory. They can be learned, so that a training on them is one, but their purpose is speed at a given size.
//!
//! Images show stripes whose direction and width are the class's, under noise. Nine of ten tokens follow from the one before.

use super::Form;
use super::source::{Counters, Source};
use crate::error::Result;

/// Seeds of the training and of the test set.
pub(super) const SEEDS: [u64; 2] = [0x68706d6c_c0000000, 0x68706d6c_e0000000]; // "hpml"
/// Brightness of the noise and of the stripes, of 255.
const NOISE: u8 = 0x7f;
const STRIPE: u8 = 0x80;
/// Share of the tokens that follow from the one before, as a multiple of 1/256.
const FOLLOWING: u64 = 230;

/// Samples of `form` by index.
pub(super) struct Generated {
    pub(super) form: Form,
    pub(super) seed: u64,
}

/// Class of sample `index` of a set of images with this `seed`.
pub(super) fn label(seed: u64, index: usize, classes: usize) -> u32 {
    below(mix(seed, index as u64), classes as u64) as u32
}

impl Source for Generated {
    fn read(&self, index: usize, out: &mut [u8], _: &Counters) -> Result<()> {
        match self.form {
            Form::Images { shape, classes } => image(self.seed, index, shape, classes, out),
            Form::Tokens { vocabulary, .. } => tokens(self.seed, index, vocabulary as u64, out),
        }
        Ok(())
    }
}

/// Writes image `index` as u8 `shape`.
fn image(seed: u64, index: usize, shape: [usize; 3], classes: usize, out: &mut [u8]) {
    let of_class = mix(!0, label(seed, index, classes).into());
    let of_sample = mix(!seed, index as u64);
    let (plane, width) = (shape[1] * shape[2], shape[2]);
    for (channel, out) in out.chunks_exact_mut(plane).enumerate() {
        // Fractions of 2^32: 4 to 12 stripes across 32 pixels, each way; their place is the sample's own.
        let [right, down] = [0, 32].map(|part| (1 << 29) + ((of_class >> part) as u32 >> 2));
        let start = (mix(of_sample, channel as u64) >> 32) as u32;
        let mut noise = Noise(mix(of_sample, !(channel as u64)));
        for (row, out) in out.chunks_exact_mut(width).enumerate() {
            let mut phase = start.wrapping_add(down.wrapping_mul(row as u32));
            for pixels in out.chunks_mut(8) {
                for (pixel, noise) in pixels.iter_mut().zip(noise.next().to_le_bytes()) {
                    let stripe = if phase >> 31 == 0 { 0 } else { STRIPE };
                    *pixel = (noise & NOISE) + stripe;
                    phase = phase.wrapping_add(right);
                }
            }
        }
    }
}

/// Writes the ids of sequence `index` as int64.
fn tokens(seed: u64, index: usize, vocabulary: u64, out: &mut [u8]) {
    let mut random = Noise(mix(seed, index as u64));
    let mut token = below(random.next(), vocabulary);
    for out in out.as_chunks_mut().0 {
        *out = (token as i64).to_ne_bytes();
        let drawn = random.next();
        token = match drawn & 0xff < FOLLOWING {
            true => (token * 5 + 7) % vocabulary,
            false => below(drawn, vocabulary),
        };
    }
}

/// A sequence of random numbers (SplitMix64).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        finish(self.0)
    }
}

/// A random number of `seed` and `number`.
fn mix(seed: u64, number: u64) -> u64 {
    finish(finish(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)) ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// Output function of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
fn finish(mut state: u64) -> u64 {
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

/// Scales a random number to `0..end` by its high bits.
fn below(random: u64, end: u64) -> u64 {
    ((u128::from(random) * u128::from(end)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(form: Form, seed: u64, index: usize, bytes: usize) -> Vec<u8> {
        let mut out = vec![0; bytes];
        Generated { form, seed }.read(index, &mut out, &Counters::default()).unwrap();
        out
    }

    #[test]
    fn images_of_a_class_share_their_stripes_and_nothing_else() {
        let form = Form::Images { shape: [2, 5, 11], classes: 3 };
        let all: Vec<Vec<u8>> = (0..50).map(|index| sample(form, SEEDS[0], index, 110)).collect();
        assert_eq!(all[7], sample(form, SEEDS[0], 7, 110));
        assert_ne!(all[7], sample(form, SEEDS[1], 7, 110));
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), 50);
        let counts = (0..3000).fold([0; 3], |mut counts, index| {
            counts[label(SEEDS[0], index, 3) as usize] += 1;
            counts
        });
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}"); // 6 standard deviations
    }

    #[test]
    fn nine_of_ten_tokens_follow_from_the_one_before() {
        let form = Form::Tokens { length: 1000, vocabulary: 50_257 };
        let bytes = sample(form, SEEDS[0], 3, 1001 * 8);
        let ids: Vec<i64> = bytes.as_chunks().0.iter().map(|bytes| i64::from_ne_bytes(*bytes)).collect();
        assert!(ids.iter().all(|id| (0..50_257).contains(id)));
        let follow = ids.windows(2).filter(|pair| pair[1] == (pair[0] * 5 + 7) % 50_257).count();
        assert!((850..950).contains(&follow), "{follow}");
    }

    /// Guards the values: figures of speed and loss on these sets are published with them.
    #[test]
    fn samples_are_those_of_the_first_release() {
        let images = sample(Form::Images { shape: [3, 4, 9], classes: 100 }, SEEDS[0], 5, 108);
        let tokens = sample(Form::Tokens { length: 7, vocabulary: 999 }, SEEDS[1], 5, 64);
        let hash = |bytes: Vec<u8>| blake3::hash(&bytes).to_hex()[..16].to_owned();
        assert_eq!([hash(images), hash(tokens)], ["0519e45ff131cf12", "1385601b8cf2aa6b"]);
    }
}
