//! Loops that the compiler makes vector instructions of, compiled once per instruction set and chosen when they are run.

use std::ops::Range;

use crate::convolution::InstructionSet;

/// A loop over a range of work, written without regard to the instruction set.
pub trait Kernel: Sync {
    /// Works on `range`. Implementations and what they call in loops must be `#[inline(always)]`, closures are not: else they are
    /// compiled for the least instruction set. `FMA`: whether there is an instruction for [`fma`].
    fn run<const FMA: bool>(&self, range: Range<usize>);
}

/// `a b + c`, rounded once with `FMA`.
#[inline(always)]
pub fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Runs `kernel` on `range` with these instructions.
///
/// # Panics
/// Panics if this processor lacks them.
#[inline]
pub fn run<K: Kernel>(instructions: InstructionSet, kernel: &K, range: Range<usize>) {
    assert!(instructions.is_detected(), "this processor lacks {}", instructions.as_str());
    match instructions {
        // SAFETY: the processor has the instructions.
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512 => unsafe { avx512(kernel, range) },
        // SAFETY: the processor has the instructions.
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2 => unsafe { avx2(kernel, range) },
        #[cfg(not(target_arch = "x86_64"))]
        InstructionSet::Avx512 | InstructionSet::Avx2 => unreachable!("not detected"),
        InstructionSet::Scalar => kernel.run::<false>(range),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx2,fma")]
fn avx512<K: Kernel>(kernel: &K, range: Range<usize>) {
    kernel.run::<true>(range);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<K: Kernel>(kernel: &K, range: Range<usize>) {
    kernel.run::<true>(range);
}
