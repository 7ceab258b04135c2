//! The numbers that can be all-reduced: float32, and bfloat16 with sums taken in float32.

use std::ffi::{c_int, c_void};

use mpi::ffi;

/// A number that MPI can send.
pub trait Wire: Copy + Default {
    /// Its MPI type.
    fn mpi_type() -> ffi::MPI_Datatype;
}

macro_rules! wire {
    // A macro, since the types differ in a constant that only exists at link time.
    ($($rust:ty => $mpi:ident),*) => {$(
        impl Wire for $rust {
            fn mpi_type() -> ffi::MPI_Datatype {
                // SAFETY: reads a constant that rsmpi's C part initialises at load time.
                unsafe { ffi::$mpi }
            }
        }
    )*};
}
wire!(u8 => RSMPI_UINT8_T, u64 => RSMPI_UINT64_T, f32 => RSMPI_FLOAT, f64 => RSMPI_DOUBLE, Bf16 => RSMPI_UINT16_T);

/// A number that can be all-reduced: what is summed is its float32 value, rounded once to the type again.
pub trait Element: Wire + Send + Sync + PartialEq + 'static {
    /// Its name in tables, as nccl-tests has it.
    const NAME: &'static str;
    /// As libtorch calls it.
    const KIND: tch::Kind;
    /// Its value.
    fn to_f32(self) -> f32;
    /// The nearest number of this type.
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

/// bfloat16: the upper half of a float32.
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

    /// To the nearest, ties to even; a NaN stays one.
    #[inline(always)]
    fn from_f32(value: f32) -> Bf16 {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet_nan = (bits >> 16) | 0x40;
        Bf16(if value.is_nan() { quiet_nan } else { rounded } as u16)
    }
}

/// MPI's reduction for bfloat16, which MPI itself does not know.
///
/// # Safety
/// MPI calls it with `length` valid elements of [`Bf16`] in both arrays, which do not overlap.
pub(super) unsafe extern "C" fn add_bf16(
    input: *mut c_void,
    sum: *mut c_void,
    length: *mut c_int,
    _: *mut ffi::MPI_Datatype,
) {
    // SAFETY: as the caller promises. `sum` is both a source and the target, which `sum_into` allows.
    unsafe {
        let (input, sum) = (input.cast::<Bf16>(), sum.cast::<Bf16>());
        super::sum::sum_into(&[sum.cast_const(), input.cast_const()], &[sum], *length as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_as_libtorch_does() {
        let values = [0.0, -1.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 3.0e38, f32::MAX, f32::INFINITY, 1e-40, 0.1];
        let rounded = tch::Tensor::from_slice(&values).to_kind(tch::Kind::BFloat16).to_kind(tch::Kind::Float);
        let expected: Vec<f32> = rounded.try_into().unwrap();
        assert_eq!(values.map(|value| Bf16::from_f32(value).to_f32()).as_slice(), expected);
        assert!(Bf16::from_f32(f32::NAN).to_f32().is_nan());
    }
}
