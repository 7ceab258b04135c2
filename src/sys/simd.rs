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

/// Work that is done once, written as a [`Kernel`] is: what it changes it may hold as `&mut`.
pub trait Pass {
    /// Does the work; `#[inline(always)]`, as in [`Kernel::run`].
    fn run<const FMA: bool>(self);
}

/// Part of the work of a kernel.
struct On<'a, K>(&'a K, Range<usize>);

impl<K: Kernel> Pass for On<'_, K> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        self.0.run::<FMA>(self.1);
    }
}

/// Runs `kernel` on `range` with these instructions.
///
/// # Panics
/// Panics if this processor lacks them.
#[inline]
pub fn run<K: Kernel>(instructions: InstructionSet, kernel: &K, range: Range<usize>) {
    once(instructions, On(kernel, range));
}

/// Runs `pass` with these instructions.
///
/// # Panics
/// Panics if this processor lacks them.
#[inline]
pub fn once<P: Pass>(instructions: InstructionSet, pass: P) {
    assert!(instructions.is_detected(), "this processor lacks {}", instructions.as_str());
    match instructions {
        // SAFETY: the processor has the instructions.
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512 => unsafe { avx512(pass) },
        // SAFETY: the processor has the instructions.
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2 => unsafe { avx2(pass) },
        #[cfg(not(target_arch = "x86_64"))]
        InstructionSet::Avx512 | InstructionSet::Avx2 => unreachable!("not detected"),
        InstructionSet::Scalar => pass.run::<false>(),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx2,fma")]
fn avx512<P: Pass>(pass: P) {
    pass.run::<true>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<P: Pass>(pass: P) {
    pass.run::<true>();
}
