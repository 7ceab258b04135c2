//! The vector instruction sets, the choice of one at run time, and the passes and products compiled for each.

use std::sync::OnceLock;

use super::product::{self, Left};
use super::tile::{self, Images, Kernels, Span};
use super::vector;

/// A vector instruction set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstructionSet {
    /// AVX-512 (AVX512F), 16 floats.
    Avx512,
    /// AVX2 with FMA, 8 floats.
    Avx2,
    /// None in particular: the reference for tests, slower than a direct convolution by the library.
    Scalar,
}

impl InstructionSet {
    /// All of them, fastest first.
    pub const ALL: [InstructionSet; 3] = [InstructionSet::Avx512, InstructionSet::Avx2, InstructionSet::Scalar];

    /// Whether this CPU has it.
    pub fn is_detected(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw"),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(not(target_arch = "x86_64"))]
            InstructionSet::Avx512 | InstructionSet::Avx2 => false,
            InstructionSet::Scalar => true,
        }
    }

    /// The fastest that this CPU has. As oneDNN does, it heeds `ONEDNN_MAX_CPU_ISA`, by which AVX-512 or all can be left out.
    pub fn fastest() -> InstructionSet {
        static FASTEST: OnceLock<InstructionSet> = OnceLock::new();
        *FASTEST.get_or_init(|| {
            let most = std::env::var("ONEDNN_MAX_CPU_ISA").unwrap_or_default().to_uppercase();
            let is_allowed = |set: InstructionSet| match set {
                InstructionSet::Avx512 => !["SSE41", "AVX"].contains(&&*most) && !most.starts_with("AVX2"),
                InstructionSet::Avx2 => !["SSE41", "AVX"].contains(&&*most),
                InstructionSet::Scalar => true,
            };
            let found = InstructionSet::ALL.into_iter().find(|set| is_allowed(*set) && set.is_detected());
            found.expect("every CPU computes scalars")
        })
    }

    /// Name in run files and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            InstructionSet::Avx512 => "avx512",
            InstructionSet::Avx2 => "avx2",
            InstructionSet::Scalar => "scalar",
        }
    }

    /// The functions compiled for it.
    pub(super) fn functions(self) -> &'static Functions {
        match self {
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => &avx512::FUNCTIONS,
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => &avx2::FUNCTIONS,
            #[cfg(not(target_arch = "x86_64"))]
            InstructionSet::Avx512 | InstructionSet::Avx2 => unreachable!("not detected"),
            InstructionSet::Scalar => &scalar::FUNCTIONS,
        }
    }
}

/// The functions of [`tile`] and [`product`] for one instruction set, which the CPU must have; see there for what they ask of
/// their pointers.
#[allow(clippy::type_complexity)] // signatures, each used once
pub(super) struct Functions {
    pub spread_inputs: unsafe fn(*const f32, &Images, Span, *mut f32),
    pub spread_gradients: unsafe fn(*const f32, &Images, Span, *mut f32),
    pub gather_outputs: unsafe fn(*const f32, Span, &Images, usize, *mut f32),
    pub spread_kernels: unsafe fn(*const f32, &Kernels, [usize; 2], [usize; 2], *mut f32, usize),
    pub gather_kernels: unsafe fn(*const f32, usize, &Kernels, [usize; 2], [usize; 2], *mut f32),
    pub product: unsafe fn(usize, usize, usize, Left, *const f32, *mut f32, bool),
}

/// Compiles the generic functions with the given target features.
macro_rules! compile_for {
    ($module:ident, $vector:ident $(, $features:literal)?) => {
        mod $module {
            use super::*;
            type V = vector::$vector;

            pub static FUNCTIONS: Functions =
                Functions { spread_inputs, spread_gradients, gather_outputs, spread_kernels, gather_kernels, product };

            $(#[target_feature(enable = $features)])?
            unsafe fn spread_inputs(data: *const f32, images: &Images, span: Span, to: *mut f32) {
                // SAFETY: the caller's, here and below; the features are enabled.
                unsafe { tile::spread_inputs::<V>(data, images, span, to) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn spread_gradients(data: *const f32, images: &Images, span: Span, to: *mut f32) {
                // SAFETY: as above.
                unsafe { tile::spread_gradients::<V>(data, images, span, to) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn gather_outputs(from: *const f32, span: Span, images: &Images, block: usize, data: *mut f32) {
                // SAFETY: as above.
                unsafe { tile::gather_outputs::<V>(from, span, images, block, data) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn spread_kernels(
                from: *const f32,
                kernels: &Kernels,
                rows: [usize; 2],
                columns: [usize; 2],
                to: *mut f32,
                stride: usize,
            ) {
                // SAFETY: as above.
                unsafe { tile::spread_kernels::<V>(from, kernels, rows, columns, to, stride) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn gather_kernels(
                from: *const f32,
                stride: usize,
                kernels: &Kernels,
                outputs: [usize; 2],
                inputs: [usize; 2],
                to: *mut f32,
            ) {
                // SAFETY: as above.
                unsafe { tile::gather_kernels::<V>(from, stride, kernels, outputs, inputs, to) }
            }
            $(#[target_feature(enable = $features)])?
            unsafe fn product(
                rows: usize,
                depth: usize,
                width: usize,
                left: Left,
                right: *const f32,
                to: *mut f32,
                add: bool,
            ) {
                // SAFETY: as above.
                unsafe { product::product::<V>(rows, depth, width, left, right, to, add) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
compile_for!(avx512, Avx512, "avx512f");
#[cfg(target_arch = "x86_64")]
compile_for!(avx2, Avx2, "avx2,fma");
compile_for!(scalar, Scalar);
