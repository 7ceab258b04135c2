//! Vectors of float32: AVX-512's, AVX2's, and an array that every CPU computes with.

#[cfg(target_arch = "x86_64")]
use core::arch::x86_64::*;

/// Channels that one step of a transform handles at most; every width of a channel block is a multiple of it.
pub const CHANNELS: usize = 16;

/// A vector of `LANES` float32.
///
/// # Safety
/// The functions may be called only from code that is compiled for the instruction set; pointers are valid for `LANES` floats, at
/// any alignment.
#[allow(clippy::missing_safety_doc)] // stated once, in the trait's Safety section
pub unsafe trait Vector: Copy {
    /// Floats per vector, a divisor of [`CHANNELS`].
    const LANES: usize;
    /// Vectors of columns in the widest tile of a product.
    const COLUMNS: usize;
    /// Whether there are 32 registers; 16 otherwise.
    const MANY_REGISTERS: bool;

    /// Loads a vector.
    unsafe fn load(from: *const f32) -> Self;
    /// Stores a vector.
    unsafe fn store(self, to: *mut f32);
    /// `value` in every lane.
    unsafe fn splat(value: f32) -> Self;
    /// `self + other`.
    unsafe fn add(self, other: Self) -> Self;
    /// `self - other`.
    unsafe fn sub(self, other: Self) -> Self;
    /// `self * other`.
    unsafe fn mul(self, other: Self) -> Self;
    /// `self * other + sum`.
    unsafe fn mul_add(self, other: Self, sum: Self) -> Self;
    /// `sum - self * other`.
    unsafe fn neg_mul_add(self, other: Self, sum: Self) -> Self;
    /// Transposes a square: `to[c * to_stride + r] = from[r * from_stride + c]` for `LANES` rows and columns.
    unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize);
}

/// Eight floats without intrinsics, for every CPU: the reference of the others.
#[derive(Clone, Copy)]
pub struct Scalar([f32; 8]);

impl Scalar {
    #[inline(always)]
    fn zip(self, other: Scalar, operation: impl Fn(f32, f32) -> f32) -> Scalar {
        Scalar(std::array::from_fn(|lane| operation(self.0[lane], other.0[lane])))
    }
}

// SAFETY: plain Rust that needs no instruction set.
unsafe impl Vector for Scalar {
    const LANES: usize = 8;
    const COLUMNS: usize = 2;
    const MANY_REGISTERS: bool = false;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the trait's contract.
        Scalar(unsafe { from.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the trait's contract.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Scalar([value; 8])
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn mul_add(self, other: Self, sum: Self) -> Self {
        self.zip(other, |a, b| a * b).zip(sum, |product, sum| product + sum)
    }
    #[inline(always)]
    unsafe fn neg_mul_add(self, other: Self, sum: Self) -> Self {
        self.zip(other, |a, b| a * b).zip(sum, |product, sum| sum - product)
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        for row in 0..8 {
            for column in 0..8 {
                // SAFETY: the trait's contract.
                unsafe { *to.add(column * to_stride + row) = *from.add(row * from_stride + column) };
            }
        }
    }
}

/// Eight floats of AVX2 with FMA (Intel from Haswell, AMD from Excavator).
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub struct Avx2(__m256);

// SAFETY: the intrinsics need AVX2 and FMA, which the trait's contract asks of the caller.
#[cfg(target_arch = "x86_64")]
unsafe impl Vector for Avx2 {
    const LANES: usize = 8;
    const COLUMNS: usize = 2;
    const MANY_REGISTERS: bool = false;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the trait's contract.
        Avx2(unsafe { _mm256_loadu_ps(from) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the trait's contract.
        unsafe { _mm256_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the trait's contract.
        Avx2(unsafe { _mm256_set1_ps(value) })
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the trait's contract.
        Avx2(unsafe { _mm256_add_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: the trait's contract.
        Avx2(unsafe { _mm256_sub_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: the trait's contract.
        Avx2(unsafe { _mm256_mul_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn mul_add(self, other: Self, sum: Self) -> Self {
        // SAFETY: the trait's contract.
        Avx2(unsafe { _mm256_fmadd_ps(self.0, other.0, sum.0) })
    }
    #[inline(always)]
    unsafe fn neg_mul_add(self, other: Self, sum: Self) -> Self {
        // SAFETY: the trait's contract.
        Avx2(unsafe { _mm256_fnmadd_ps(self.0, other.0, sum.0) })
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: the trait's contract.
        unsafe {
            let row = |row: usize| _mm256_loadu_ps(from.add(row * from_stride));
            let pair = |a: __m256, b: __m256| [_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)];
            let four = |low: [__m256; 2], high: [__m256; 2]| {
                [
                    _mm256_shuffle_ps::<0x44>(low[0], high[0]),
                    _mm256_shuffle_ps::<0xee>(low[0], high[0]),
                    _mm256_shuffle_ps::<0x44>(low[1], high[1]),
                    _mm256_shuffle_ps::<0xee>(low[1], high[1]),
                ]
            };
            let upper = four(pair(row(0), row(1)), pair(row(2), row(3)));
            let lower = four(pair(row(4), row(5)), pair(row(6), row(7)));
            for column in 0..4 {
                let (a, b) = (upper[column], lower[column]);
                _mm256_storeu_ps(to.add(column * to_stride), _mm256_permute2f128_ps::<0x20>(a, b));
                _mm256_storeu_ps(to.add((column + 4) * to_stride), _mm256_permute2f128_ps::<0x31>(a, b));
            }
        }
    }
}

/// Sixteen floats of AVX-512 (its foundation, AVX512F).
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub struct Avx512(__m512);

// SAFETY: the intrinsics need AVX512F, which the trait's contract asks of the caller.
#[cfg(target_arch = "x86_64")]
unsafe impl Vector for Avx512 {
    const LANES: usize = 16;
    const COLUMNS: usize = 4;
    const MANY_REGISTERS: bool = true;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the trait's contract.
        Avx512(unsafe { _mm512_loadu_ps(from) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the trait's contract.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the trait's contract.
        Avx512(unsafe { _mm512_set1_ps(value) })
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the trait's contract.
        Avx512(unsafe { _mm512_add_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: the trait's contract.
        Avx512(unsafe { _mm512_sub_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: the trait's contract.
        Avx512(unsafe { _mm512_mul_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn mul_add(self, other: Self, sum: Self) -> Self {
        // SAFETY: the trait's contract.
        Avx512(unsafe { _mm512_fmadd_ps(self.0, other.0, sum.0) })
    }
    #[inline(always)]
    unsafe fn neg_mul_add(self, other: Self, sum: Self) -> Self {
        // SAFETY: the trait's contract.
        Avx512(unsafe { _mm512_fnmadd_ps(self.0, other.0, sum.0) })
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: the trait's contract.
        unsafe {
            let row = |row: usize| _mm512_loadu_ps(from.add(row * from_stride));
            let pair = |a: __m512, b: __m512| [_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)];
            // Four rows: vector k has their column k of each quarter.
            let four = |first: usize| {
                let low = pair(row(first), row(first + 1));
                let high = pair(row(first + 2), row(first + 3));
                [
                    _mm512_shuffle_ps::<0x44>(low[0], high[0]),
                    _mm512_shuffle_ps::<0xee>(low[0], high[0]),
                    _mm512_shuffle_ps::<0x44>(low[1], high[1]),
                    _mm512_shuffle_ps::<0xee>(low[1], high[1]),
                ]
            };
            let quarters = [four(0), four(4), four(8), four(12)];
            for column in 0..4 {
                let [a, b, c, d] = [0, 1, 2, 3].map(|quarter| quarters[quarter][column]);
                let (even, odd) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d));
                let (even1, odd1) = (_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(c, d));
                _mm512_storeu_ps(to.add(column * to_stride), _mm512_shuffle_f32x4::<0x88>(even, odd));
                _mm512_storeu_ps(to.add((column + 8) * to_stride), _mm512_shuffle_f32x4::<0xdd>(even, odd));
                _mm512_storeu_ps(to.add((column + 4) * to_stride), _mm512_shuffle_f32x4::<0x88>(even1, odd1));
                _mm512_storeu_ps(to.add((column + 12) * to_stride), _mm512_shuffle_f32x4::<0xdd>(even1, odd1));
            }
        }
    }
}
