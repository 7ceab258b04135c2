//! 16-bit gradients (bf16, fp16): half the bytes, no state.

use std::ops::Range;

use super::Compressor;
use crate::collective::{AllReduce, Element, HostBuffer, Region, WaitPolicy, Waits};
use crate::error::Result;
use crate::metrics::Kind;

/// Rounds each rank's gradients to T, sends those, and adds in float32. Within a host the sum is rounded once; a ring between
/// hosts, or MPI, rounds it at every hop.
///
/// bf16 has float32's range. fp16 ends at 65504 and loses bits below 6e-5, where most gradients are: each bucket is first
/// multiplied by the power of two with which the sum over all ranks just fits, computed from the greatest magnitude on each
/// rank (4 bytes more per rank). Source of the idea: Micikevicius et al., Mixed Precision Training, 2017, section 3.2.
pub struct Half<T: Element> {
    /// `[elements]`, the rounded gradients as sent.
    sent: HostBuffer<T>,
}

impl<T: Element> Half<T> {
    /// Allocates the buffer for `elements` gradients.
    pub fn new(all_reduce: &AllReduce, elements: usize) -> Result<Half<T>> {
        Ok(Half { sent: all_reduce.buffer(elements)? })
    }

    fn needs_scale() -> bool {
        T::KIND == tch::Kind::Half
    }
}

impl<T: Element> Compressor for Half<T> {
    fn reduce(
        &mut self,
        all_reduce: &AllReduce,
        gradients: &mut Region,
        policy: WaitPolicy,
        waits: &mut Waits,
    ) -> Result<()> {
        let mut scale = 1.0;
        if Self::needs_scale() {
            let ranks = all_reduce.communicator();
            let mut greatest = vec![0.0; ranks.size()];
            greatest[ranks.rank()] = magnitude(gradients.as_slice());
            waits.time(|| all_reduce.wait_for_all(gradients.bytes(), policy))?;
            let slices: Vec<Range<usize>> = (0..ranks.size()).map(|rank| rank..rank + 1).collect();
            ranks.all_gather_slices(Kind::Gradients, &mut greatest, &slices, policy)?;
            scale = scale_for(&greatest);
        }
        let mut sent = self.sent.region(gradients.range());
        for (half, &gradient) in sent.as_mut_slice().iter_mut().zip(gradients.as_slice()) {
            *half = T::from_f32(scale * gradient);
        }
        waits.extend(&all_reduce.reduce(Kind::Gradients, &mut sent, policy)?.waits);
        let back = 1.0 / scale; // a power of two: exact
        for (gradient, half) in gradients.as_mut_slice().iter_mut().zip(sent.as_slice()) {
            *gradient = back * half.to_f32();
        }
        Ok(())
    }

    fn bytes(&self, elements: &Range<usize>) -> u64 {
        let greatest = if Self::needs_scale() { size_of::<f32>() } else { 0 };
        (elements.len() * size_of::<T>() + greatest) as u64
    }
}

/// Greatest magnitude of `values`; infinite or NaN where one of them is.
pub(super) fn magnitude(values: &[f32]) -> f32 {
    // Compared as integers, float magnitudes keep their order, with infinity and NaN above all, and the loop is vectorized.
    let bits = values.iter().fold(0, |most, value| most.max((value.to_bits() & 0x7fff_ffff) as i32));
    f32::from_bits(bits as u32)
}

/// Power of two that scales gradients so that their sum over the ranks stays below 65504; `greatest` holds each rank's
/// greatest magnitude. 1 if all are zero or one is infinite or NaN.
fn scale_for(greatest: &[f32]) -> f32 {
    let sum: f64 = greatest.iter().map(|&magnitude| f64::from(magnitude)).sum();
    if sum == 0.0 || !sum.is_finite() {
        return 1.0;
    }
    // Half of the range: rounding up must not carry the sum over the end. Both the scale and its inverse are float32 values.
    (32768.0 / sum).log2().floor().clamp(-126.0, 126.0).exp2() as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::Fp16;

    #[test]
    fn the_scaled_sum_fits_into_half_precision_and_uses_its_range() {
        for greatest in [[1e-9, 3e-9], [1.0, 1.0], [65504.0, 65504.0], [1e30, 0.0], [1e-40, 0.0]] {
            let scale = scale_for(&greatest);
            let sum: f32 = greatest.iter().map(|value| Fp16::from_f32(scale * value).to_f32()).sum();
            assert!(Fp16::from_f32(sum).to_f32().is_finite(), "{greatest:?} {scale} {sum}");
            assert!(sum > 16000.0 || scale == 2f32.powi(126), "{greatest:?} {scale} {sum}");
            assert_eq!(scale.log2().fract(), 0.0);
        }
        assert_eq!(
            (scale_for(&[0.0, 0.0]), scale_for(&[f32::INFINITY, 1.0]), scale_for(&[f32::NAN, 1.0])),
            (1.0, 1.0, 1.0)
        );
    }

    #[test]
    fn the_magnitude_of_what_is_no_number_is_none() {
        assert_eq!(magnitude(&[0.5, -3.0, 2.0]), 3.0);
        assert_eq!(magnitude(&[]), 0.0);
        assert_eq!(magnitude(&[1.0, f32::NEG_INFINITY]), f32::INFINITY);
        assert!(magnitude(&[f32::NAN, 1.0]).is_nan());
    }
}
