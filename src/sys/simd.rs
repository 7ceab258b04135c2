//! Loops that the compiler makes vector instructions of, compiled once per instruction set and chosen when they are run.

use std::ops::Range;
use std::sync::OnceLock;

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

/// An instruction set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512: registers of 16 float32.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX2 and FMA: registers of 8 float32.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// What every processor of the target has.
    Plain,
}

impl Isa {
    /// The instruction sets that this processor has, best first.
    pub fn all() -> Vec<Isa> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let has_avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if has_avx2 && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
                all.push(Isa::Avx512);
            }
            if has_avx2 {
                all.push(Isa::Avx2);
            }
        }
        all.push(Isa::Plain);
        all
    }

    /// The best of this processor.
    pub fn best() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Isa::all()[0])
    }

    /// Runs `kernel` on `range` with these instructions, which must be of [`Isa::all`].
    #[inline]
    pub(super) fn run<K: Kernel>(self, kernel: &K, range: Range<usize>) {
        match self {
            // SAFETY: `all` has found the instructions.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { avx512(kernel, range) },
            // SAFETY: `all` has found the instructions.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { avx2(kernel, range) },
            Isa::Plain => kernel.run::<false>(range),
        }
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
