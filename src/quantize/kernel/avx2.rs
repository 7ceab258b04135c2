//! AVX2: `vpmaddwd` adds two products i16 x i16 to each of 8 i32 lanes, exactly. Activations and weights are stored as i16.

use core::arch::x86_64::*;

use super::{Convolution, Isa, Scale, Task};

/// AVX2 (Intel from Haswell, AMD from Excavator).
#[derive(Debug)]
pub struct Avx2;

// SAFETY: `convolve` enables AVX2, which is all the intrinsics below need, and is the only way in; each touches exactly
// the elements that the trait names. `CHANNELS` equals `LANES`, so stores of whole registers stay within a pixel.
unsafe impl Isa for Avx2 {
    type Input = i16;
    type Weight = i16;
    type Register = __m256i;
    const LANES: usize = 8;
    const GROUP: usize = 2;
    const CHANNELS: usize = 8;
    const VECTORS: usize = 2;

    fn detected() -> bool {
        is_x86_feature_detected!("avx2")
    }

    fn input(value: u8) -> i16 {
        value as i16
    }

    fn value(input: i16) -> u8 {
        input as u8
    }

    fn weight(value: i16) -> i16 {
        value
    }

    #[inline(always)]
    unsafe fn load(from: *const i32) -> __m256i {
        // SAFETY: the trait's contract.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn load_weights(from: *const i16) -> __m256i {
        // SAFETY: the trait's contract: 16 weights.
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn dot(sum: __m256i, inputs: *const i16, weights: __m256i) -> __m256i {
        // SAFETY: the trait's contract: 2 inputs, at any alignment.
        unsafe {
            let pair = _mm256_set1_epi32(inputs.cast::<i32>().read_unaligned());
            _mm256_add_epi32(sum, _mm256_madd_epi16(pair, weights))
        }
    }

    #[inline(always)]
    unsafe fn max(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: AVX2 is enabled.
        unsafe { _mm256_max_epi32(a, b) }
    }

    #[inline(always)]
    unsafe fn requantize(
        sum: __m256i,
        multiplier: *const i32,
        residual: *const i16,
        _: usize,
        scale: &Scale,
    ) -> __m256i {
        // SAFETY: the trait's contract: 8 multipliers, 8 residuals (a whole register: `CHANNELS`).
        unsafe {
            let multiplier = _mm256_loadu_si256(multiplier.cast());
            let offset = _mm256_set1_epi64x(scale.offset);
            // Products of the even lanes, then of the odd lanes, as 64 bits.
            let odd = |value| _mm256_srli_epi64::<32>(value);
            let mut low = _mm256_add_epi64(_mm256_mul_epi32(sum, multiplier), offset);
            let mut high = _mm256_add_epi64(_mm256_mul_epi32(odd(sum), odd(multiplier)), offset);
            if !residual.is_null() {
                let values = _mm256_slli_epi32::<8>(_mm256_cvtepi16_epi32(_mm_loadu_si128(residual.cast())));
                let by = _mm256_set1_epi32(scale.residual_multiplier);
                low = _mm256_add_epi64(low, _mm256_mul_epi32(values, by));
                high = _mm256_add_epi64(high, _mm256_mul_epi32(odd(values), by));
            }
            // The upper halves are the sums >> 32; `shift` is at least 32.
            let upper = _mm256_blend_epi32::<0xAA>(odd(low), high);
            let shifted = _mm256_sra_epi32(upper, _mm_cvtsi32_si128(scale.shift as i32 - 32));
            _mm256_min_epi32(_mm256_max_epi32(shifted, _mm256_setzero_si256()), _mm256_set1_epi32(255))
        }
    }

    #[inline(always)]
    unsafe fn store(to: *mut i16, values: __m256i, _: usize) {
        // SAFETY: the trait's contract: 8 values of 16 bits (`CHANNELS`).
        unsafe {
            let packed = _mm_packs_epi32(_mm256_castsi256_si128(values), _mm256_extracti128_si256::<1>(values));
            _mm_storeu_si128(to.cast(), packed);
        }
    }

    #[inline(always)]
    unsafe fn store_sums(to: *mut i32, sums: __m256i) {
        // SAFETY: the trait's contract.
        unsafe { _mm256_storeu_si256(to.cast(), sums) }
    }

    #[target_feature(enable = "avx2")]
    unsafe fn convolve(convolution: &Convolution<Self>, task: Task<Self>) {
        // SAFETY: the caller's promise.
        unsafe { super::convolve(convolution, task) }
    }
}
