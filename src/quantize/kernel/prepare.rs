//! Choice of the fastest form of a layer for each instruction set.

#[cfg(target_arch = "x86_64")]
use super::{Convolution, avx2::Avx2, vnni::Vnni, winograd::Winograd};
use super::{Isa, Packing, Run};

/// An instruction set with a choice of convolution.
pub trait Prepare: Isa {
    /// Packs a layer's weights for its fastest form.
    fn prepare(packing: Packing) -> Box<dyn Run<Self>>;
}

#[cfg(target_arch = "x86_64")]
impl Prepare for Vnni {
    fn prepare(packing: Packing) -> Box<dyn Run<Vnni>> {
        Box::new(Convolution::new(packing))
    }
}

#[cfg(target_arch = "x86_64")]
impl Prepare for Avx2 {
    fn prepare(packing: Packing) -> Box<dyn Run<Avx2>> {
        if Winograd::fits(&packing) { Box::new(Winograd::new(packing)) } else { Box::new(Convolution::new(packing)) }
    }
}
