//! Calls of libtorch's autograd that tch lacks: hooks on gradients, and operations whose gradient is computed in Rust.

use std::any::Any;
use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;

use tch::Tensor;
use torch_sys::C_tensor;

use super::libtorch::failure;

type Ready = extern "C" fn(*mut c_void, usize);
type Call = extern "C" fn(*mut c_void, *const C_tensor, *const bool, *mut *mut C_tensor, usize) -> bool;
type Free = extern "C" fn(*mut c_void);

unsafe extern "C" {
    fn hpml_hooks(parameters: *const *const C_tensor, count: usize) -> *mut c_void;
    fn hpml_hooks_free(hooks: *mut c_void);
    fn hpml_backward(loss: *const C_tensor, factor: f64) -> bool;
    fn hpml_hooks_backward(
        hooks: *mut c_void,
        loss: *const C_tensor,
        factor: f64,
        ready: Ready,
        context: *mut c_void,
    ) -> bool;
    fn hpml_operation(
        inputs: *const *const C_tensor,
        count: usize,
        output: *const C_tensor,
        closure: *mut c_void,
        call: Call,
        drop: Free,
    ) -> *mut C_tensor;
}

/// Runs the backward pass from `factor` times `loss`, a scalar: as that of the product, without its operation.
///
/// # Panics
/// Panics with libtorch's message if the pass fails.
pub fn backward(loss: &Tensor, factor: f64) {
    // SAFETY: a live tensor for the length of the call.
    let done = unsafe { hpml_backward(loss.as_ptr(), factor) };
    assert!(done, "Torch({})", failure());
}

/// Hooks on the gradients of parameters, which tell during a backward pass when each gradient is complete, as those of
/// DistributedDataParallel's reducer.
pub struct GradientHooks(NonNull<c_void>);

// SAFETY: the object behind the pointer belongs to no thread; the hooks run in `backward`, which borrows it mutably.
unsafe impl Send for GradientHooks {}

impl GradientHooks {
    /// Sets a hook on each of `parameters`, which require gradients; earlier hooks on them are replaced.
    ///
    /// # Panics
    /// Panics with libtorch's message if a parameter is not a leaf of the graph.
    pub fn new<'a>(parameters: impl IntoIterator<Item = &'a Tensor>) -> GradientHooks {
        let pointers: Vec<*const C_tensor> = parameters.into_iter().map(Tensor::as_ptr).collect();
        // SAFETY: live tensors for the length of the call; returns an object of ours, or null.
        let hooks = NonNull::new(unsafe { hpml_hooks(pointers.as_ptr(), pointers.len()) });
        GradientHooks(hooks.unwrap_or_else(|| panic!("hooks on gradients: {}", failure())))
    }

    /// Runs [`backward`]. Calls `ready` with the index of a parameter when its gradient is complete: once for each
    /// parameter on which the loss depends, in the order of the backward pass; on a CPU on the caller's thread, on a GPU on a
    /// thread of libtorch, when the gradient is enqueued.
    ///
    /// # Panics
    /// Panics with libtorch's message if the pass fails, and goes on with a panic of `ready`.
    pub fn backward(&mut self, loss: &Tensor, factor: f64, ready: &mut (dyn FnMut(usize) + Send)) {
        struct Context<'a> {
            ready: &'a mut (dyn FnMut(usize) + Send),
            panic: Option<Box<dyn Any + Send>>,
        }
        extern "C" fn call(context: *mut c_void, parameter: usize) {
            // SAFETY: the context of the call below, which is under way; libtorch computes a device's part of the graph on one
            // thread, so that no two hooks run at a time.
            let context = unsafe { &mut *context.cast::<Context>() };
            if context.panic.is_none() {
                context.panic = catch_unwind(AssertUnwindSafe(|| (context.ready)(parameter))).err();
            }
        }
        let mut context = Context { ready, panic: None };
        let context_pointer = (&raw mut context).cast();
        // SAFETY: an object of ours, a live tensor, and a context that lives as long as the call.
        let done = unsafe { hpml_hooks_backward(self.0.as_ptr(), loss.as_ptr(), factor, call, context_pointer) };
        if let Some(panic) = context.panic {
            resume_unwind(panic);
        }
        assert!(done, "Torch({})", failure());
    }
}

impl Drop for GradientHooks {
    fn drop(&mut self) {
        // SAFETY: an object of ours, freed once; hooks that are left on parameters keep their listener.
        unsafe { hpml_hooks_free(self.0.as_ptr()) };
    }
}

/// The computation of the gradients of an operation's inputs from that of its output, of those that are needed.
type Gradients = Box<dyn Fn(&Tensor, &[bool]) -> Vec<Option<Tensor>> + Send>;

/// Makes `output`, computed from `input` without a graph, the result of an operation that autograd differentiates by `gradient`:
/// given d loss / d output, it returns d loss / d input, of the input's shape. `gradient` must not hold `output` itself (its
/// `detach` may be held), which would keep both alive for ever.
///
/// # Panics
/// Panics with libtorch's message if the tensors do not suit.
pub fn differentiable(
    input: &Tensor,
    output: &Tensor,
    gradient: impl Fn(&Tensor) -> Tensor + Send + 'static,
) -> Tensor {
    operation(&[input], output, move |given, _| vec![Some(gradient(given))])
}

/// [`differentiable`] of up to four inputs: `gradients` is also told which of them need a gradient, and returns one per input, or
/// `None`.
///
/// # Panics
/// Panics with libtorch's message if the tensors do not suit.
pub(super) fn operation(
    inputs: &[&Tensor],
    output: &Tensor,
    gradients: impl Fn(&Tensor, &[bool]) -> Vec<Option<Tensor>> + Send + 'static,
) -> Tensor {
    extern "C" fn call(
        closure: *mut c_void,
        gradient: *const C_tensor,
        needed: *const bool,
        gradients: *mut *mut C_tensor,
        inputs: usize,
    ) -> bool {
        // SAFETY: the closure made below, which the node of the graph owns; a live tensor, of which the clone is another handle; two
        // arrays with an element per input.
        let (closure, given, needed, gradients) = unsafe {
            (
                &*closure.cast::<Gradients>(),
                Tensor::clone_from_ptr(gradient.cast_mut()),
                std::slice::from_raw_parts(needed, inputs),
                std::slice::from_raw_parts_mut(gradients, inputs),
            )
        };
        let Ok(computed) = catch_unwind(AssertUnwindSafe(|| closure(&given, needed))) else { return false };
        for (gradient, computed) in gradients.iter_mut().zip(computed) {
            // The caller frees the tensors whose pointers it gets.
            *gradient = computed.map_or(std::ptr::null_mut(), |tensor| ManuallyDrop::new(tensor).as_ptr().cast_mut());
        }
        true
    }
    extern "C" fn drop_closure(closure: *mut c_void) {
        // SAFETY: made by `Box::into_raw` below, and dropped once.
        drop(unsafe { Box::from_raw(closure.cast::<Gradients>()) });
    }
    let closure: Box<Gradients> = Box::new(Box::new(gradients));
    let inputs: Vec<*const C_tensor> = inputs.iter().map(|input| input.as_ptr()).collect();
    // SAFETY: live tensors for the length of the call; the callee takes the closure; the result is a new tensor, or null.
    unsafe {
        let closure = Box::into_raw(closure).cast();
        let made = hpml_operation(inputs.as_ptr(), inputs.len(), output.as_ptr(), closure, call, drop_closure);
        assert!(!made.is_null(), "Torch({})", failure());
        Tensor::from_ptr(made)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use tch::{Device, Kind};

    fn random(shape: &[i64]) -> Tensor {
        crate::sys::seeded(3, || Tensor::randn(shape, (Kind::Float, Device::Cpu)))
    }

    #[test]
    fn hooks_tell_each_gradient_once_it_is_complete_and_no_unused_one() {
        let parameters: Vec<Tensor> = (0..4).map(|_| random(&[3, 3]).set_requires_grad(true)).collect();
        let mut hooks = GradientHooks::new(&parameters);
        let pass =
            |weights: &[&Tensor]| weights.iter().fold(random(&[2, 3]), |x, w| x.matmul(w).tanh()).sum(Kind::Float);
        for _ in 0..2 {
            // Parameter 2 is not used; parameter 0 is used twice, and complete after its first use.
            let loss = pass(&[&parameters[0], &parameters[1], &parameters[0], &parameters[3]]);
            let mut order = Vec::new();
            hooks.backward(&loss, 1.0, &mut |parameter| order.push(parameter));
            assert_eq!(order, [3, 1, 0]);
        }
        pass(&[&parameters[2]]).backward(); // without a listener
        let mut two = GradientHooks::new(&parameters[1..2]);
        let mut order = Vec::new();
        two.backward(&pass(&[&parameters[1]]), 1.0, &mut |parameter| order.push(parameter));
        assert_eq!(order, [0]);
    }

    #[test]
    fn a_factor_of_the_loss_is_that_of_its_gradients() {
        let (weight, x) = (random(&[3, 3]).set_requires_grad(true), random(&[2, 3]));
        let loss = || x.matmul(&weight).tanh().sum(Kind::Float);
        (loss() * 0.3).backward();
        let expected = weight.grad().copy();
        let _ = weight.grad().zero_();
        backward(&loss(), 0.3);
        assert!(weight.grad().equal(&expected) && !weight.grad().requires_grad());
    }

    #[test]
    fn a_panic_of_the_listener_comes_back_to_the_caller() {
        let weight = random(&[2]).set_requires_grad(true);
        let mut hooks = GradientHooks::new([&weight]);
        let loss = weight.sum(Kind::Float);
        let caught = catch_unwind(AssertUnwindSafe(|| hooks.backward(&loss, 1.0, &mut |_| panic!("here"))));
        assert_eq!(caught.unwrap_err().downcast_ref::<&str>(), Some(&"here"));
    }

    #[test]
    fn an_operation_has_the_gradient_it_is_given_and_frees_its_closure() {
        let held = Arc::new(());
        let x = random(&[4, 2]).set_requires_grad(true);
        let (output, kept) = (x.detach().exp(), held.clone());
        let saved = output.detach();
        let made = differentiable(&x, &output, move |gradient| {
            let _ = &kept;
            gradient * &saved
        });
        drop(output);
        (&made * &made).sum(Kind::Float).backward();
        let expected = x.detach().exp().square() * 2.0;
        assert!(x.grad().allclose(&expected, 1e-6, 1e-6, false));
        assert_eq!(Arc::strong_count(&held), 2);
        drop(made);
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
