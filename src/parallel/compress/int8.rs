//! 8-bit gradients with one scale per block, and error feedback.
//!
//! Sources: Seide et al., 1-Bit Stochastic Gradient Descent, 2014 (error feedback, and the two phases in which both the
//! gradients and their sums are quantized); Karimireddy et al., Error Feedback Fixes SignSGD, 2019.

use std::ops::Range;

use super::Compressor;
use super::half::magnitude;
use crate::collective::{AllReduce, Region, WaitPolicy, Waits};
use crate::error::Result;
use crate::metrics::Kind;

/// The greatest quantized value.
const QMAX: f32 = 127.0;
/// Magnitude below which a block is sent as zeros and kept for the next step: 127 / `LEAST` still fits float32.
const LEAST: f32 = 1e-36;
/// 1.5 * 2^23: added to a value below 2^22, it leaves the nearest integer in the lowest bits, ties to even.
const ROUND: f32 = 12_582_912.0;
const SCALE_BYTES: usize = size_of::<f32>();

/// Reduce-scatter of quantized gradients, sum in float32, all-gather of the quantized sums.
///
/// Every rank quantizes its bucket and sends slice r of it to rank r. Rank r adds the slices of all ranks, in rank order, and
/// quantizes the sum for all: `2 (n-1)/n` of the compressed bucket leaves each rank, for every n. All ranks dequantize the
/// same bytes. The rounding error of a gradient stays on its rank; that of a sum stays on the rank that added it. So all
/// results plus all kept errors sum to the sum of all gradients.
pub struct Int8 {
    /// `[elements]`: rounding errors still to be sent, of this rank's gradients and of the sums it made.
    error: Vec<f32>,
    /// Elements per scale.
    block: usize,
    /// The quantized bucket; this and the next two are kept so that no step allocates.
    packed: Vec<u8>,
    received: Vec<Vec<u8>>,
    sums: Vec<f32>,
}

impl Int8 {
    /// Creates the state for `elements` gradients, with one scale per `block` of them.
    pub fn new(elements: usize, block: usize) -> Int8 {
        let (packed, received, sums) = Default::default();
        Int8 { error: vec![0.0; elements], block, packed, received, sums }
    }

    /// Slice of a bucket that each rank sums: whole blocks.
    fn slices(&self, elements: usize, ranks: usize) -> Vec<Range<usize>> {
        let blocks = elements.div_ceil(self.block);
        let cut = |rank: usize| (blocks * rank / ranks * self.block).min(elements);
        (0..ranks).map(|rank| cut(rank)..cut(rank + 1)).collect()
    }
}

impl Compressor for Int8 {
    fn reduce(
        &mut self,
        all_reduce: &AllReduce,
        gradients: &mut Region,
        policy: WaitPolicy,
        waits: &mut Waits,
    ) -> Result<()> {
        let (ranks, block) = (all_reduce.communicator(), self.block);
        let slices = self.slices(gradients.as_slice().len(), ranks.size());
        let places: Vec<Range<usize>> =
            slices.iter().map(|slice| packed_len(slice.start, block)..packed_len(slice.end, block)).collect();
        let own = slices[ranks.rank()].clone();
        let Int8 { error, packed, received, sums, .. } = self;
        let error = &mut error[gradients.range()];

        add(gradients.as_slice(), error);
        packed.resize(packed_len(gradients.as_slice().len(), block), 0);
        pack(error, block, packed);
        waits.time(|| all_reduce.wait_for_all(packed.len(), policy))?;
        received.resize_with(ranks.size(), Vec::new);
        received.iter_mut().for_each(|part| part.resize(places[ranks.rank()].len(), 0));
        ranks.all_to_all(Kind::Gradients, packed, &places, received, policy)?;

        sums.clear();
        sums.resize(own.len(), 0.0);
        received.iter().for_each(|part| add_unpacked(part, block, sums));
        pack(sums, block, &mut packed[places[ranks.rank()].clone()]);
        add(sums, &mut error[own]);
        ranks.all_gather_slices(Kind::Gradients, packed, &places, policy)?;
        let gradients = gradients.as_mut_slice();
        gradients.fill(0.0);
        add_unpacked(packed, block, gradients);
        Ok(())
    }

    fn bytes(&self, elements: &Range<usize>) -> u64 {
        packed_len(elements.len(), self.block) as u64
    }

    fn state(&mut self) -> Vec<(&'static str, &mut [f32])> {
        vec![("int8.error", &mut self.error)]
    }
}

/// Packed bytes of `elements` elements: one each, and a scale for every block or part of one.
fn packed_len(elements: usize, block: usize) -> usize {
    elements + elements.div_ceil(block) * SCALE_BYTES
}

fn add(values: &[f32], sums: &mut [f32]) {
    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
}

/// Packs each block of `values` as its scale (float32, little endian) and quantized values; `values` keeps the rounding errors.
///
/// `q = round(value / scale)`, `scale = greatest magnitude / 127`, so the error is at most half a scale. A block with an
/// infinity or a NaN stays infinite or NaN, so that the loss shows it.
fn pack(values: &mut [f32], block: usize, packed: &mut [u8]) {
    debug_assert_eq!(packed.len(), packed_len(values.len(), block));
    for (values, packed) in values.chunks_mut(block).zip(packed.chunks_mut(SCALE_BYTES + block)) {
        let (scale_bytes, quantized) = packed.split_at_mut(SCALE_BYTES);
        let greatest = magnitude(values);
        let (scale, inverse) = if greatest < LEAST { (0.0, 0.0) } else { (greatest / QMAX, QMAX / greatest) };
        scale_bytes.copy_from_slice(&scale.to_le_bytes());
        for (value, quantized) in values.iter_mut().zip(quantized) {
            let rounded = *value * inverse + ROUND;
            *quantized = rounded.to_bits() as u8;
            *value -= (rounded - ROUND) * scale;
        }
    }
}

/// Adds the values packed by [`pack`] to `sums`.
fn add_unpacked(packed: &[u8], block: usize, sums: &mut [f32]) {
    for (sums, packed) in sums.chunks_mut(block).zip(packed.chunks(SCALE_BYTES + block)) {
        let (scale, quantized) = packed.split_at(SCALE_BYTES);
        let scale = f32::from_le_bytes(scale.try_into().expect("a scale has four bytes"));
        for (sum, &quantized) in sums.iter_mut().zip(quantized) {
            *sum += f32::from(quantized as i8) * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values, made by `tests/fixtures/compression.py` with NumPy.
    const EXPECTED: &str = include_str!("../../../tests/fixtures/compression.txt");

    /// Gradient of the test: the script's function.
    fn gradient(rank: usize, step: usize, index: usize) -> f32 {
        ((step * 7 + index * 13 + rank * 5 + index * index) % 64) as f32 / 32.0 - 1.0
    }

    /// Runs one step of `ranks` without the wire; returns the gradients' sum as every rank gets it.
    fn step(ranks: &mut [Int8], gradient: impl Fn(usize, usize) -> f32) -> Vec<f32> {
        let (count, block, elements) = (ranks.len(), ranks[0].block, ranks[0].error.len());
        let slices = ranks[0].slices(elements, count);
        let packed: Vec<Vec<u8>> = ranks
            .iter_mut()
            .enumerate()
            .map(|(rank, state)| {
                let own: Vec<f32> = (0..elements).map(|index| gradient(rank, index)).collect();
                let mut packed = vec![0; packed_len(elements, block)];
                add(&own, &mut state.error);
                pack(&mut state.error, block, &mut packed);
                packed
            })
            .collect();
        let mut result = vec![0.0; elements];
        for (state, slice) in ranks.iter_mut().zip(slices) {
            let place = packed_len(slice.start, block)..packed_len(slice.end, block);
            let (mut sums, mut sent) = (vec![0.0; slice.len()], vec![0; place.len()]);
            packed.iter().for_each(|packed| add_unpacked(&packed[place.clone()], block, &mut sums));
            pack(&mut sums, block, &mut sent);
            add(&sums, &mut state.error[slice.clone()]);
            add_unpacked(&sent, block, &mut result[slice]);
        }
        result
    }

    #[test]
    fn five_steps_of_two_ranks_equal_numpys_bit_for_bit() {
        let mut ranks = [Int8::new(22, 4), Int8::new(22, 4)];
        let lines = EXPECTED.lines().filter_map(|line| line.strip_prefix("int8 : "));
        let mut steps = 0;
        for (number, line) in lines.enumerate() {
            let expected: Vec<f32> = line.split(' ').map(|value| value.parse().unwrap()).collect();
            assert_eq!(step(&mut ranks, |rank, index| gradient(rank, number, index)), expected, "step {number}");
            steps += 1;
        }
        assert_eq!(steps, 5);
    }

    #[test]
    fn half_a_scale_is_the_most_that_is_lost() {
        let values: Vec<f32> = (0..1000).map(|index| gradient(1, index, index * 3) * 1e-3).collect();
        for block in [64, 100, 1000] {
            let (mut lost, mut packed) = (values.clone(), vec![0; packed_len(1000, block)]);
            pack(&mut lost, block, &mut packed);
            let mut restored = vec![0.0; 1000];
            add_unpacked(&packed, block, &mut restored);
            for ((value, restored), lost) in values.iter().zip(&restored).zip(&lost) {
                assert!((value - restored).abs() <= 1e-3 / 127.0 * 0.5001, "{value} {restored}");
                assert!((value - restored - lost).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn what_was_sent_and_what_is_kept_back_are_all_the_gradients() {
        for count in [1, 2, 3, 4] {
            let mut ranks: Vec<Int8> = (0..count).map(|_| Int8::new(1000, 64)).collect();
            let mut owed = vec![0f64; 1000];
            for number in 0..50 {
                let result = step(&mut ranks, |rank, index| gradient(rank, number, index));
                for (index, owed) in owed.iter_mut().enumerate() {
                    *owed += (0..count).map(|rank| f64::from(gradient(rank, number, index))).sum::<f64>();
                    *owed -= f64::from(result[index]);
                }
            }
            for (index, owed) in owed.iter().enumerate() {
                let kept: f64 = ranks.iter().map(|rank| f64::from(rank.error[index])).sum();
                assert!((owed - kept).abs() < 1e-4, "{count} ranks, {index}: {owed} {kept}"); // rounding of 50 sums
                assert!(kept.abs() < 0.1 * count as f64, "{count} ranks: the rest must not grow: {kept}");
            }
        }
    }

    #[test]
    fn zeros_stay_zeros_tiny_values_wait_and_no_number_shows() {
        let mut values = vec![0.0, 1e-40, -1e-38, 0.0, f32::INFINITY, 1.0, f32::NAN, 2.0];
        let mut packed = vec![0; packed_len(8, 4)];
        pack(&mut values, 4, &mut packed);
        assert_eq!(values[..4], [0.0, 1e-40, -1e-38, 0.0]);
        let mut restored = vec![0.0; 8];
        add_unpacked(&packed, 4, &mut restored);
        assert_eq!(restored[..4], [0.0; 4]);
        assert!(restored[4..].iter().all(|value| !value.is_finite()), "{restored:?}");
    }

    #[test]
    fn slices_are_whole_blocks_and_the_bytes_a_quarter() {
        let int8 = Int8::new(61_770, 256);
        for ranks in [1, 2, 3, 4, 7] {
            let slices = int8.slices(61_770, ranks);
            assert_eq!((slices[0].start, slices[ranks - 1].end), (0, 61_770));
            assert!(slices.windows(2).all(|pair| pair[0].end == pair[1].start && pair[0].end % 256 == 0));
        }
        assert!(int8.bytes(&(0..61_770)) as f64 <= 0.255 * 4.0 * 61_770.0);
        assert_eq!(int8.slices(5, 3), [0..0, 0..0, 0..5]); // fewer blocks than ranks
    }
}
