//! AVX-512 VNNI: `vpdpbusd` adds four products u8 x i8 to each of 16 i32 lanes, exactly.

use core::arch::x86_64::*;

use super::{Convolution, Isa, Scale, Task};

/// AVX-512 with VNNI (Intel from Ice Lake and Cascade Lake, AMD from Zen 4).
#[derive(Debug)]
pub struct Vnni;

/// Mask of lanes 0 to `lanes` - 1.
#[inline(always)]
fn mask(lanes: usize) -> __mmask16 {
    if lanes >= 16 { !0 } else { (1 << lanes) - 1 }
}

// SAFETY: `convolve` enables the features that the intrinsics below need and is the only way in; each touches exactly
// the elements that the trait names (masked for fewer lanes).
unsafe impl Isa for Vnni {
    type Input = u8;
    type Weight = i8;
    type Register = __m512i;
    const LANES: usize = 16;
    const GROUP: usize = 4;
    const CHANNELS: usize = 4;
    const VECTORS: usize = 4;

    fn detected() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
    }

    fn input(value: u8) -> u8 {
        value
    }

    fn value(input: u8) -> u8 {
        input
    }

    fn weight(value: i16) -> i8 {
        debug_assert!(i8::try_from(value).is_ok());
        value as i8
    }

    #[inline(always)]
    unsafe fn load(from: *const i32) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn load_weights(from: *const i8) -> __m512i {
        // SAFETY: the trait's contract: 64 weights.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn dot(sum: __m512i, inputs: *const u8, weights: __m512i) -> __m512i {
        // SAFETY: the trait's contract: 4 inputs, at any alignment.
        unsafe { _mm512_dpbusd_epi32(sum, _mm512_set1_epi32(inputs.cast::<i32>().read_unaligned()), weights) }
    }

    #[inline(always)]
    unsafe fn prefetch(weights: *const i8) {
        // SAFETY: a hint that may name any address.
        #[cfg(not(miri))]
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(weights)
        }
        #[cfg(miri)]
        let _ = weights;
    }

    #[inline(always)]
    unsafe fn max(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the features are enabled.
        unsafe { _mm512_max_epi32(a, b) }
    }

    #[inline(always)]
    unsafe fn requantize(
        sum: __m512i,
        multiplier: *const i32,
        residual: *const u8,
        lanes: usize,
        scale: &Scale,
    ) -> __m512i {
        // SAFETY: the trait's contract: 16 multipliers, `lanes` residuals.
        unsafe {
            let multiplier = _mm512_loadu_si512(multiplier.cast());
            let offset = _mm512_set1_epi64(scale.offset);
            // Products of the even lanes, then of the odd lanes, as 64 bits.
            let odd = |value| _mm512_srli_epi64::<32>(value);
            let mut low = _mm512_add_epi64(_mm512_mul_epi32(sum, multiplier), offset);
            let mut high = _mm512_add_epi64(_mm512_mul_epi32(odd(sum), odd(multiplier)), offset);
            if !residual.is_null() {
                let bytes = _mm_maskz_loadu_epi8(mask(lanes), residual.cast());
                let values = _mm512_slli_epi32::<8>(_mm512_cvtepu8_epi32(bytes));
                let by = _mm512_set1_epi32(scale.residual_multiplier);
                low = _mm512_add_epi64(low, _mm512_mul_epi32(values, by));
                high = _mm512_add_epi64(high, _mm512_mul_epi32(odd(values), by));
            }
            // The upper halves are the sums >> 32; `shift` is at least 32.
            let upper = _mm512_mask_blend_epi32(0xAAAA, odd(low), high);
            let shifted = _mm512_srav_epi32(upper, _mm512_set1_epi32(scale.shift as i32 - 32));
            _mm512_min_epi32(_mm512_max_epi32(shifted, _mm512_setzero_si512()), _mm512_set1_epi32(255))
        }
    }

    #[inline(always)]
    unsafe fn store(to: *mut u8, values: __m512i, lanes: usize) {
        // SAFETY: the trait's contract: `lanes` bytes, the mask keeps the others untouched.
        unsafe { _mm_mask_storeu_epi8(to.cast(), mask(lanes), _mm512_cvtepi32_epi8(values)) }
    }

    #[inline(always)]
    unsafe fn store_sums(to: *mut i32, sums: __m512i) {
        // SAFETY: the trait's contract.
        unsafe { _mm512_storeu_si512(to.cast(), sums) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn convolve(convolution: &Convolution<Self>, task: Task<Self>) {
        // SAFETY: the caller's promise.
        unsafe { super::convolve(convolution, task) }
    }
}
