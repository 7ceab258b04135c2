//! libtorch's autocast.

use std::ffi::c_void;
use std::marker::PhantomData;

use tch::Device;

unsafe extern "C" {
    fn hpml_autocast_begin(gpu: bool, half: bool) -> *mut c_void;
    fn hpml_autocast_end(before: *mut c_void);
}

/// Autocast on the calling thread, until it is dropped: operations on libtorch's list (convolutions, matrix products)
/// cast their operands, others keep or raise their format. Weights that were cast are kept until the outermost one is dropped.
///
/// It belongs around a forward pass, not around a backward pass. Source: torch/amp/autocast_mode.py.
///
/// ```
/// use hpml::sys::Autocast;
/// use tch::{Device, Kind, Tensor};
///
/// let x = Tensor::ones([2, 2], (Kind::Float, Device::Cpu));
/// let product = {
///     let _autocast = Autocast::bf16(Device::Cpu);
///     x.matmul(&x)
/// };
/// assert_eq!(product.kind(), Kind::BFloat16);
/// assert_eq!(x.matmul(&x).kind(), Kind::Float);
/// ```
pub struct Autocast {
    before: *mut c_void,
    /// Autocast belongs to a thread.
    _thread: PhantomData<*const ()>,
}

impl Autocast {
    /// Autocast to bfloat16 for operations on `device`.
    pub fn bf16(device: Device) -> Autocast {
        Autocast::begin(device, false)
    }

    /// Autocast to IEEE half precision for operations on `device`.
    pub fn fp16(device: Device) -> Autocast {
        Autocast::begin(device, true)
    }

    fn begin(device: Device, half: bool) -> Autocast {
        // SAFETY: returns an object of ours.
        let before = unsafe { hpml_autocast_begin(device.is_cuda(), half) };
        Autocast { before, _thread: PhantomData }
    }
}

impl Drop for Autocast {
    fn drop(&mut self) {
        // SAFETY: an object of ours, given back once, on the thread that got it.
        unsafe { hpml_autocast_end(self.before) };
    }
}
