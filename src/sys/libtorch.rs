//! Calls of libtorch that tch lacks.

use std::sync::{Mutex, PoisonError};

use tch::Tensor;

unsafe extern "C" {
    fn hpml_im2col_conv2d(
        input: *const torch_sys::C_tensor,
        weight: *const torch_sys::C_tensor,
        kernel: i64,
        stride: i64,
        padding: i64,
    ) -> *mut torch_sys::C_tensor;
    fn hpml_failure() -> *const std::ffi::c_char;
}

/// First line of the message of the last call of this folder's C++ that failed on this thread.
pub(super) fn failure() -> String {
    failure_text().lines().next().unwrap_or_default().to_owned()
}

/// Whole message of the last call of this folder's C++ that failed on this thread.
pub(super) fn failure_text() -> String {
    // SAFETY: a text that ends in a 0 and is this thread's until its next call.
    unsafe { std::ffi::CStr::from_ptr(hpml_failure()) }.to_string_lossy().into_owned()
}

/// Convolution by im2col and a matrix product, libtorch's `thnn_conv2d`; differentiable.
///
/// `input` `[n, c, h, w]`, `weight` `[o, c, kernel, kernel]`, float32 on the CPU -> `[n, o, h', w']`. It computes the sums of
/// `conv2d` without oneDNN's set-up, which for a few images of a few channels costs more than the convolution.
///
/// # Panics
/// Panics with libtorch's message if the shapes do not fit.
pub fn im2col_conv2d(input: &Tensor, weight: &Tensor, stride: i64, padding: i64) -> Tensor {
    let kernel = weight.size()[3];
    // SAFETY: both pointers are live tensors for the length of the call; the result is a new tensor that is ours, or null.
    unsafe {
        let output = hpml_im2col_conv2d(input.as_ptr(), weight.as_ptr(), kernel, stride, padding);
        assert!(!output.is_null(), "conv2d takes [n, c, h, w] with the c of the weight: {}", failure());
        Tensor::from_ptr(output)
    }
}

/// Runs `draw` with libtorch's CPU generator seeded like `torch.manual_seed(seed)`. The generator belongs to the whole process,
/// so callers take turns: tests that draw numbers, by dropout too, run beside each other, and each must call this.
///
/// ```
/// use tch::{Device, Kind, Tensor};
/// let draw = || hpml::sys::seeded(1, || Tensor::rand([4], (Kind::Float, Device::Cpu)));
/// assert!(draw().equal(&draw()));
/// ```
pub fn seeded<T>(seed: u64, draw: impl FnOnce() -> T) -> T {
    static GENERATOR: Mutex<()> = Mutex::new(());
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    tch::manual_seed(seed as i64);
    draw()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn values_and_gradients_are_those_of_conv2d() {
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let (x, w) = seeded(1, || (random(&[3, 6, 14, 14]), random(&[16, 6, 5, 5])));
        let mut gradients = Vec::new();
        let mut outputs = Vec::new();
        for im2col in [false, true] {
            let (x, w) = (x.detach().copy().set_requires_grad(true), w.detach().copy().set_requires_grad(true));
            let y = if im2col {
                im2col_conv2d(&x, &w, 1, 2)
            } else {
                x.conv2d(&w, None::<&Tensor>, [1, 1], [2, 2], [1, 1], 1)
            };
            y.square().sum(Kind::Float).backward();
            outputs.push(y);
            gradients.push((x.grad(), w.grad()));
        }
        assert!(outputs[0].allclose(&outputs[1], 1e-4, 1e-4, false));
        assert!(gradients[0].0.allclose(&gradients[1].0, 1e-3, 1e-3, false));
        assert!(gradients[0].1.allclose(&gradients[1].1, 1e-3, 1e-3, false));
    }
}
