//! libtorch's fused optimizers: one step on lists of tensors of one device, in one pass over their memory.

use std::ffi::{c_int, c_void};

use tch::Tensor;

use super::libtorch::failure;
use crate::error::{Error, Result};

unsafe extern "C" {
    fn hpml_fused_sgd(
        count: usize,
        parameters: *const *const c_void,
        gradients: *const *const c_void,
        velocities: *const *const c_void,
        weight_decay: f64,
        momentum: f64,
        lr: f64,
        nesterov: bool,
        divisor: *const c_void,
    ) -> bool;
    fn hpml_fused_adam(
        count: usize,
        parameters: *const *const c_void,
        gradients: *const *const c_void,
        firsts: *const *const c_void,
        seconds: *const *const c_void,
        number: i64,
        weight_decay: f64,
        beta1: f64,
        beta2: f64,
        epsilon: f64,
        lr: f64,
        decoupled: bool,
        divisor: *const c_void,
    ) -> bool;
    fn hpml_unscale(gradients: *const c_void, factor: f64) -> c_int;
}

/// Multiplies `gradients` by `factor`, in one pass. Returns whether all are finite; waits for the device.
///
/// # Errors
/// Returns [`Error::Gpu`] if the GPU has failed.
pub fn unscale(gradients: &Tensor, factor: f64) -> Result<bool> {
    // SAFETY: a live tensor for the length of the call.
    let found = unsafe { hpml_unscale(gradients.as_ptr().cast(), factor) };
    ok(found >= 0).map(|()| found == 1)
}

/// SGD: `g = g / divisor + weight_decay p; v = momentum v + g; p -= lr v` (with Nesterov `lr (g + momentum v)`).
pub struct FusedSgd<'a> {
    /// Factor of the parameters in the gradient.
    pub weight_decay: f64,
    /// Factor of the velocity.
    pub momentum: f64,
    /// Learning rate.
    pub lr: f64,
    /// Whether to use Nesterov's form.
    pub nesterov: bool,
    /// Divisor of the gradient, one float32 on the device; `None` stands for 1.
    pub divisor: Option<&'a Tensor>,
}

impl FusedSgd<'_> {
    /// Updates `parameters` and `velocities` in place; the lists have equal lengths and shapes.
    ///
    /// # Errors
    /// Returns [`Error::Gpu`] if libtorch refuses the tensors, or the GPU has failed.
    pub fn step(&self, parameters: &[Tensor], gradients: &[Tensor], velocities: &[Tensor]) -> Result<()> {
        if parameters.is_empty() {
            return Ok(());
        }
        let lists = Lists::new([parameters, gradients, velocities]);
        let [parameters, gradients, velocities] = lists.pointers();
        // SAFETY: all pointers are live tensors for the length of the call, or null where that is allowed; the lists have `count`.
        ok(unsafe {
            hpml_fused_sgd(
                lists.count(),
                parameters,
                gradients,
                velocities,
                self.weight_decay,
                self.momentum,
                self.lr,
                self.nesterov,
                pointer(self.divisor),
            )
        })
    }
}

/// AdamW, or Adam if it is not `decoupled`, with `g / divisor` as the gradient.
pub struct FusedAdam<'a> {
    /// Number of the step, from 1.
    pub number: i64,
    /// Factor of the parameters in the step (`decoupled`: times the learning rate) or in the gradient.
    pub weight_decay: f64,
    /// Factor of the first moment.
    pub beta1: f64,
    /// Factor of the second moment.
    pub beta2: f64,
    /// Constant added to the root of the second moment.
    pub epsilon: f64,
    /// Learning rate.
    pub lr: f64,
    /// Whether weight decay is kept out of the gradient, as in AdamW.
    pub decoupled: bool,
    /// Divisor of the gradient, one float32 on the device; `None` stands for 1.
    pub divisor: Option<&'a Tensor>,
}

impl FusedAdam<'_> {
    /// Updates `parameters` and both moments in place; the lists have equal lengths and shapes.
    ///
    /// # Errors
    /// Returns [`Error::Gpu`] if libtorch refuses the tensors, or the GPU has failed.
    pub fn step(&self, parameters: &[Tensor], gradients: &[Tensor], [first, second]: [&[Tensor]; 2]) -> Result<()> {
        if parameters.is_empty() {
            return Ok(());
        }
        let lists = Lists::new([parameters, gradients, first, second]);
        let [parameters, gradients, first, second] = lists.pointers();
        // SAFETY: as in `FusedSgd::step`.
        ok(unsafe {
            hpml_fused_adam(
                lists.count(),
                parameters,
                gradients,
                first,
                second,
                self.number,
                self.weight_decay,
                self.beta1,
                self.beta2,
                self.epsilon,
                self.lr,
                self.decoupled,
                pointer(self.divisor),
            )
        })
    }
}

/// Pointers to the tensors of `N` lists of equal length.
struct Lists<const N: usize>([Vec<*const c_void>; N]);

impl<const N: usize> Lists<N> {
    /// # Panics
    /// The lists do not fit each other: libtorch's kernels for the CPU do not look, and read beyond the shorter tensor.
    fn new(lists: [&[Tensor]; N]) -> Lists<N> {
        let form = |tensor: &Tensor| (tensor.size(), tensor.kind(), tensor.device(), tensor.is_contiguous());
        let forms = lists.map(|list| list.iter().map(form).collect::<Vec<_>>());
        assert!(
            forms.iter().all(|list| *list == forms[0]),
            "tensors of an optimizer have equal shapes, types and devices"
        );
        Lists(lists.map(|list| list.iter().map(|tensor| tensor.as_ptr().cast()).collect()))
    }

    fn count(&self) -> usize {
        self.0[0].len()
    }

    fn pointers(&self) -> [*const *const c_void; N] {
        self.0.each_ref().map(|list| list.as_ptr())
    }
}

fn pointer(tensor: Option<&Tensor>) -> *const c_void {
    tensor.map_or(std::ptr::null(), |tensor| tensor.as_ptr().cast())
}

fn ok(done: bool) -> Result<()> {
    if done { Ok(()) } else { Err(Error::Gpu { reason: failure() }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn the_fused_step_is_sgds() {
        let tensor = |from: f64| Tensor::arange(8, (Kind::Float, Device::Cpu)) * 0.125 + from;
        let (parameters, gradients, velocity) = (tensor(0.5), tensor(-1.0), tensor(0.0));
        let divisor = Tensor::from(2f32);
        let gradient = &gradients / 2.0 + &parameters * 0.1;
        let moved = &velocity * 0.9 + gradient;
        let expected = &parameters - &moved * 0.25;
        let rule = FusedSgd { weight_decay: 0.1, momentum: 0.9, lr: 0.25, nesterov: false, divisor: Some(&divisor) };
        let one = |tensor: &Tensor| [tensor.shallow_clone()];
        rule.step(&one(&parameters), &one(&gradients), &one(&velocity)).unwrap();
        assert!(parameters.allclose(&expected, 1e-6, 1e-6, false) && velocity.allclose(&moved, 1e-6, 1e-6, false));
        assert!(rule.step(&[], &[], &[]).is_ok());
    }

    #[test]
    #[should_panic = "equal shapes"]
    fn tensors_that_do_not_fit_are_refused() {
        let rule = FusedSgd { weight_decay: 0.0, momentum: 0.9, lr: 0.1, nesterov: false, divisor: None };
        let zeros = |elements: i64| [Tensor::zeros([elements], (Kind::Float, Device::Cpu))];
        let _ = rule.step(&zeros(3), &zeros(3), &zeros(2));
    }

    #[test]
    fn a_gradient_that_is_not_finite_is_found_and_the_others_are_unscaled() {
        let gradients = Tensor::from_slice(&[2f32, -4.0, 0.0]);
        assert!(unscale(&gradients, 0.5).unwrap());
        assert!(gradients.equal(&Tensor::from_slice(&[1f32, -2.0, 0.0])));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(!unscale(&Tensor::from_slice(&[1.0, bad]), 1.0).unwrap());
        }
    }
}
