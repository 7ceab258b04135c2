//! The element types of an all-reduce: float32, and the 16-bit types, whose sums are taken in float32.

use std::ffi::{c_int, c_void};

use mpi::ffi;

/// A number type that MPI can send.
pub trait MpiType: Copy + Default {
    /// The MPI data type with this memory layout.
    fn mpi_type() -> ffi::MPI_Datatype;
}

macro_rules! mpi_type {
    // A macro, since the types differ in a constant that only exists at link time.
    ($($rust:ty => $mpi:ident),*) => {$(
        impl MpiType for $rust {
            fn mpi_type() -> ffi::MPI_Datatype {
                // SAFETY: reads a constant that rsmpi's C part initializes at load time.
                unsafe { ffi::$mpi }
            }
        }
    )*};
}
mpi_type!(u8 => RSMPI_UINT8_T, u64 => RSMPI_UINT64_T, f32 => RSMPI_FLOAT, f64 => RSMPI_DOUBLE, Bf16 => RSMPI_UINT16_T,
    Fp16 => RSMPI_UINT16_T);

/// A number type that can be all-reduced: sums are taken in float32 and rounded once to the type.
pub trait Element: MpiType + Send + Sync + PartialEq + 'static {
    /// Name of the type in tables.
    const NAME: &'static str;
    /// libtorch's name of the type.
    const KIND: tch::Kind;
    /// The value in float32, exact.
    fn to_f32(self) -> f32;
    /// The nearest number of this type; ties to even.
    fn from_f32(value: f32) -> Self;
}

impl Element for f32 {
    const NAME: &'static str = "float32";
    const KIND: tch::Kind = tch::Kind::Float;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(value: f32) -> f32 {
        value
    }
}

/// bfloat16: the upper half of a float32. Not crate `half` (2.7), which makes signaling NaNs quiet and is not faster: two arrays
/// of 10M summed in 8.3 ms against 8.1 ms (best of 30, AVX-512, one thread).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[repr(transparent)]
pub struct Bf16(u16);

impl Element for Bf16 {
    const NAME: &'static str = "bf16";
    const KIND: tch::Kind = tch::Kind::BFloat16;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits((self.0 as u32) << 16)
    }

    /// Rounds to the nearest, ties to even; a NaN stays NaN.
    #[inline(always)]
    fn from_f32(value: f32) -> Bf16 {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet_nan = (bits >> 16) | 0x40;
        Bf16(if value.is_nan() { quiet_nan } else { rounded } as u16)
    }
}

/// IEEE half precision: 11 significant bits, 6e-8 to 65504. Not crate `half` (2.7), whose conversions a vector loop cannot
/// inline: two arrays of 10M summed in 20.1 ms, or 11.3 ms by slices, against 7.4 ms (best of 30, AVX-512, one thread).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[repr(transparent)]
pub struct Fp16(u16);

impl Element for Fp16 {
    const NAME: &'static str = "fp16";
    const KIND: tch::Kind = tch::Kind::Half;

    // Neither conversion branches, so that a loop over them is vectorized.
    // Source: Giesen, Float->half variants, 2012 (gist.github.com/rygorous/2156668), with ties to even.

    #[inline(always)]
    fn to_f32(self) -> f32 {
        let bits = u32::from(self.0);
        let exponent = bits & 0x7c00;
        // Exponent and fraction moved to their places in a float32 are 2^112 too small, also for subnormal numbers.
        let finite = (f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23)).to_bits();
        let special = 0x7f80_0000 | (bits & 0x03ff) << 13;
        f32::from_bits(if exponent == 0x7c00 { special } else { finite } | (bits & 0x8000) << 16)
    }

    /// Rounds to the nearest, ties to even; too large a value becomes infinite, a NaN stays NaN.
    #[inline(always)]
    fn from_f32(value: f32) -> Fp16 {
        let bits = value.to_bits();
        let magnitude = bits & 0x7fff_ffff;
        // Adding 0.5 moves a subnormal half's last place to the last place of the float32: the addition rounds.
        let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
        let odd = (magnitude >> 13) & 1;
        let rounded = magnitude.wrapping_sub(112 << 23).wrapping_add(0xfff + odd) >> 13;
        let small = if magnitude < 113 << 23 { subnormal } else { rounded };
        let finite = if magnitude >= (127 + 16) << 23 { 0x7c00 } else { small };
        let half = if magnitude > 0x7f80_0000 { 0x7e00 } else { finite };
        Fp16((half | (bits >> 16) & 0x8000) as u16)
    }
}

/// Adds `input` to `sum`: the MPI_User_function for types that MPI itself cannot add.
///
/// # Safety
/// `length` points to the number of valid elements of T in both arrays, which do not overlap.
pub(super) unsafe extern "C" fn add<T: Element>(
    input: *mut c_void,
    sum: *mut c_void,
    length: *mut c_int,
    _: *mut ffi::MPI_Datatype,
) {
    // SAFETY: as the caller promises. `sum` is both a source and the target, which `sum_into` allows.
    unsafe {
        let (input, sum) = (input.cast::<T>(), sum.cast::<T>());
        super::sum::sum_into(&[sum.cast_const(), input.cast_const()], &[sum], *length as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_itself_again_and_float32_rounds_to_it_as_in_libtorch() {
        let halves: Vec<u16> = (0..=u16::MAX).collect();
        let widened: Vec<f32> = halves.iter().map(|&bits| Fp16(bits).to_f32()).collect();
        let reference: Vec<f32> = {
            let half = tch::Tensor::from_slice(&widened).to_kind(tch::Kind::Half);
            half.to_kind(tch::Kind::Float).try_into().unwrap()
        };
        for ((&bits, &value), &expected) in halves.iter().zip(&widened).zip(&reference) {
            assert!(value == expected || value.is_nan() && expected.is_nan(), "{bits:04x}: {value} {expected}");
            assert!(Fp16::from_f32(value).0 == bits || value.is_nan(), "{bits:04x}");
        }
        // Between two halves: a quarter, the middle and three quarters of the way, and beyond the largest.
        let between = widened.windows(2).filter(|pair| pair[0].is_finite() && pair[1].is_finite());
        let mut values: Vec<f32> =
            between.flat_map(|pair| [0.25, 0.5, 0.75].map(|way| pair[0] + way * (pair[1] - pair[0]))).collect();
        values.extend([65519.0, 65520.0, 1e30, -1e9, f32::INFINITY, f32::NEG_INFINITY, 1e-45, 2e-8, 3.1e-8]);
        let rounded = tch::Tensor::from_slice(&values).to_kind(tch::Kind::Half).to_kind(tch::Kind::Float);
        let rounded: Vec<f32> = rounded.try_into().unwrap();
        for (&value, &expected) in values.iter().zip(&rounded) {
            assert_eq!(Fp16::from_f32(value).to_f32(), expected, "{value}");
        }
        assert!(Fp16::from_f32(f32::NAN).to_f32().is_nan());
    }

    #[test]
    fn every_bf16_is_itself_again_and_float32_rounds_to_it_as_in_libtorch() {
        let widened: Vec<f32> = (0..=u16::MAX).map(|bits| Bf16(bits).to_f32()).collect();
        for (bits, &value) in (0..=u16::MAX).zip(&widened) {
            assert_eq!(value.to_bits(), u32::from(bits) << 16);
            assert!(Bf16::from_f32(value).0 == bits || value.is_nan() && Bf16::from_f32(value).to_f32().is_nan());
        }
        // A sample of all float32, and the ties between two bf16 with their neighbors.
        let ties = (0..=u16::MAX).flat_map(|bits| [0x7fff, 0x8000, 0x8001].map(|low| u32::from(bits) << 16 | low));
        let values: Vec<f32> = (0..=u32::MAX).step_by(65_521).chain(ties).map(f32::from_bits).collect();
        let rounded = tch::Tensor::from_slice(&values).to_kind(tch::Kind::BFloat16).to_kind(tch::Kind::Float);
        let rounded: Vec<f32> = rounded.try_into().unwrap();
        for (&value, &expected) in values.iter().zip(&rounded) {
            let found = Bf16::from_f32(value).to_f32();
            assert!(found == expected || found.is_nan() && expected.is_nan(), "{value}: {found} {expected}");
        }
    }
}
