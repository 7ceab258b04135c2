//! 3x3 convolutions of tensors by [`crate::convolution`], differentiable, on libtorch's threads.

use std::cell::RefCell;
use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::slice;

use tch::{Device, Kind, Tensor};

use super::libtorch::failure;
use super::threads::{parallel_for, thread_number, threads};
use crate::convolution::{Convolution, InstructionSet, OneThread, Shape, Threads, Workspace};

type Compute = extern "C" fn(c_int, *const Extents, *const f32, *const f32, *mut f32);

unsafe extern "C" {
    fn hpml_convolution_takes(input: *const torch_sys::C_tensor, weight: *const torch_sys::C_tensor) -> bool;
    fn hpml_convolution(
        input: *const torch_sys::C_tensor,
        weight: *const torch_sys::C_tensor,
        compute: Compute,
    ) -> *mut torch_sys::C_tensor;
    fn hpml_convolution_pass(
        pass: c_int,
        one: *const torch_sys::C_tensor,
        other: *const torch_sys::C_tensor,
        compute: Option<Compute>,
    ) -> *mut torch_sys::C_tensor;
}

/// Pass of a convolution, numbered as in convolution.cpp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConvolutionPass {
    /// Output `[n, o, h, w]`, from input `[n, c, h, w]` and weight `[o, c, 3, 3]`.
    Forward,
    /// Gradient of the input, from that of the output and the weight.
    InputGradient,
    /// Gradient of the weight, from the input and the gradient of the output.
    WeightGradient,
}

impl ConvolutionPass {
    /// All passes, in the order of a step.
    pub const ALL: [ConvolutionPass; 3] =
        [ConvolutionPass::Forward, ConvolutionPass::InputGradient, ConvolutionPass::WeightGradient];

    /// Computes the pass of a 3x3 convolution with stride 1 and padding 1, which autograd does not see, from its two operands: by
    /// `winograd`, or by libtorch without one.
    ///
    /// # Panics
    /// Panics with libtorch's message if the shapes do not fit; Winograd takes what [`Winograd::conv2d`] takes.
    pub fn compute(self, winograd: Option<Winograd>, one: &Tensor, other: &Tensor) -> Tensor {
        let compute = winograd.map(|winograd| winograd.compute);
        let is_float = |tensor: &Tensor| tensor.kind() == Kind::Float && tensor.device() == Device::Cpu;
        assert!(compute.is_none() || [one, other].into_iter().all(is_float), "Winograd computes float32 on the CPU");
        // SAFETY: live tensors for the length of the call; the result is a new tensor that is ours, or null. `compute` checks the
        // lengths.
        unsafe { owned(hpml_convolution_pass(self as c_int, one.as_ptr(), other.as_ptr(), compute)) }
    }
}

/// Extents of a convolution, as in convolution.cpp.
#[repr(C)]
struct Extents {
    images: i64,
    height: i64,
    width: i64,
    inputs: i64,
    outputs: i64,
}

/// Convolutions by Winograd's F(4x4, 3x3): 3x3, stride 1, padding 1, no bias, float32 on the CPU.
#[derive(Debug, Clone, Copy)]
pub struct Winograd {
    compute: Compute,
    instructions: InstructionSet,
}

impl Winograd {
    /// Winograd's convolutions by [`InstructionSet::fastest`]; `None` without AVX2, where libtorch's are faster.
    pub fn detected() -> Option<Winograd> {
        let fastest = InstructionSet::fastest();
        if fastest == InstructionSet::Scalar { None } else { Winograd::by(fastest) }
    }

    /// Winograd's convolutions by `instructions`; `None` if this CPU lacks them.
    pub fn by(instructions: InstructionSet) -> Option<Winograd> {
        let compute = match instructions {
            InstructionSet::Avx512 => compute_avx512 as Compute,
            InstructionSet::Avx2 => compute_avx2,
            InstructionSet::Scalar => compute_scalar,
        };
        instructions.is_detected().then_some(Winograd { compute, instructions })
    }

    /// The instructions.
    pub fn instructions(&self) -> InstructionSet {
        self.instructions
    }

    /// Convolves `input` `[n, c, h, w]` with `weight` `[o, c, 3, 3]`; autograd differentiates it. `None` for tensors that it does not
    /// compute: `input` must be channels-last float32 on the CPU, `c` and `o` multiples of 16.
    ///
    /// # Panics
    /// Panics with libtorch's message if memory cannot be allocated.
    pub fn conv2d(&self, input: &Tensor, weight: &Tensor) -> Option<Tensor> {
        // SAFETY: both are live tensors for the length of the call; the result is a new tensor that is ours, or null. `compute`
        // checks the lengths.
        unsafe {
            if !hpml_convolution_takes(input.as_ptr(), weight.as_ptr()) || !fits(input, weight) {
                return None;
            }
            Some(owned(hpml_convolution(input.as_ptr(), weight.as_ptr(), self.compute)))
        }
    }
}

fn fits(input: &Tensor, weight: &Tensor) -> bool {
    let extent = |extent: i64| extent as usize; // never negative
    let ([images, inputs, height, width], outputs) = (input.size()[..].try_into().expect("four"), weight.size()[0]);
    let [images, inputs, height, width, outputs] = [images, inputs, height, width, outputs].map(extent);
    Shape { images, height, width, inputs, outputs }.fits()
}

/// # Safety
/// `result` is a new tensor or null.
unsafe fn owned(result: *mut torch_sys::C_tensor) -> Tensor {
    assert!(!result.is_null(), "convolution: {}", failure());
    // SAFETY: the caller's.
    unsafe { Tensor::from_ptr(result) }
}

extern "C" fn compute_avx512(pass: c_int, shape: *const Extents, one: *const f32, other: *const f32, to: *mut f32) {
    compute(InstructionSet::Avx512, pass, shape, one, other, to);
}

extern "C" fn compute_avx2(pass: c_int, shape: *const Extents, one: *const f32, other: *const f32, to: *mut f32) {
    compute(InstructionSet::Avx2, pass, shape, one, other, to);
}

extern "C" fn compute_scalar(pass: c_int, shape: *const Extents, one: *const f32, other: *const f32, to: *mut f32) {
    compute(InstructionSet::Scalar, pass, shape, one, other, to);
}

thread_local! {
    /// Workspace of the thread that computes, forward and (on the CPU) backward: the one that calls both.
    static WORKSPACE: RefCell<Workspace> = const { RefCell::new(Workspace::new()) };
}

/// Computes a pass over the tensors' memory; called by convolution.cpp alone. A panic ends the process: C++ is in between.
fn compute(
    instructions: InstructionSet,
    pass: c_int,
    shape: *const Extents,
    one: *const f32,
    other: *const f32,
    to: *mut f32,
) {
    // SAFETY: a live variable of the caller.
    let Extents { images, height, width, inputs, outputs } = unsafe { shape.read() };
    let [images, height, width, inputs, outputs] =
        [images, height, width, inputs, outputs].map(|extent| usize::try_from(extent).expect("an extent"));
    let pixels = images * height * width;
    let (input, output, weight) = (pixels * inputs, pixels * outputs, 9 * inputs * outputs);
    let pass = ConvolutionPass::ALL[pass as usize];
    let lengths = match pass {
        ConvolutionPass::Forward => [input, weight, output],
        ConvolutionPass::InputGradient => [output, weight, input],
        ConvolutionPass::WeightGradient => [input, output, weight],
    };
    // SAFETY: dense tensors of these numbers of values, of which `to` is new and not yet shared.
    let (one, other, to) = unsafe {
        (
            slice::from_raw_parts(one, lengths[0]),
            slice::from_raw_parts(other, lengths[1]),
            slice::from_raw_parts_mut(to.cast::<MaybeUninit<f32>>(), lengths[2]),
        )
    };
    let convolution = Convolution::new(Shape { images, height, width, inputs, outputs }, instructions);
    WORKSPACE.with_borrow_mut(|workspace| {
        let threads: &dyn Threads = if threads() == 1 { &OneThread } else { &LibtorchThreads };
        match pass {
            ConvolutionPass::Forward => convolution.forward(one, other, to, workspace, threads),
            ConvolutionPass::InputGradient => convolution.input_gradient(one, other, to, workspace, threads),
            ConvolutionPass::WeightGradient => convolution.weight_gradient(one, other, to, workspace, threads),
        }
    });
}

/// The threads on which libtorch's own operations run.
struct LibtorchThreads;

impl Threads for LibtorchThreads {
    fn count(&self) -> usize {
        threads()
    }

    fn share(&self, tasks: usize, work: &(dyn Fn(usize, Range<usize>) + Sync)) {
        parallel_for(tasks, 1, &|range| work(thread_number(), range));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::seeded;

    fn channels_last(tensor: &Tensor) -> Tensor {
        tensor.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
    }

    fn random(seed: u64, shape: [i64; 4]) -> Tensor {
        seeded(seed, || Tensor::randn(shape, (Kind::Float, Device::Cpu)))
    }

    fn largest_difference(own: &Tensor, expected: &Tensor) -> f64 {
        let apart = (own.to_kind(Kind::Double) - expected).abs().max() / expected.abs().max();
        apart.double_value(&[])
    }

    #[test]
    fn values_and_gradients_are_those_of_conv2d_in_either_layout_of_the_weight() {
        for instructions in InstructionSet::ALL {
            let Some(winograd) = Winograd::by(instructions) else { continue };
            for (x, w) in [([3, 16, 9, 6], [32, 16, 3, 3]), ([2, 80, 5, 8], [48, 80, 3, 3])] {
                let (x, w) = (channels_last(&random(1, x)).relu(), random(2, w));
                for weight in [w.shallow_clone(), channels_last(&w)] {
                    let leaf = |tensor: &Tensor| tensor.detach().copy().set_requires_grad(true);
                    let (own_x, own_w) = (leaf(&x), leaf(&weight));
                    let y = winograd.conv2d(&own_x, &own_w).expect("it fits");
                    let weights = y.detach().sin();
                    (&y * &weights).sum(Kind::Float).backward();

                    let (x, w) = (leaf(&x.to_kind(Kind::Double)), leaf(&weight.to_kind(Kind::Double)));
                    let expected = x.conv2d(&w, None::<&Tensor>, [1, 1], [1, 1], [1, 1], 1);
                    (&expected * &weights).sum(Kind::Double).backward();
                    for (own, expected) in [(&y, &expected), (&own_x.grad(), &x.grad()), (&own_w.grad(), &w.grad())] {
                        let apart = largest_difference(own, expected);
                        assert!(apart < 1e-5, "{instructions:?}: {apart}");
                    }
                    assert_eq!(own_w.grad().stride(), own_w.stride());
                    assert_eq!(y.stride(), channels_last(&y).stride());
                }
            }
        }
    }

    #[test]
    fn only_the_gradients_that_are_needed_are_computed() {
        let winograd = Winograd::by(InstructionSet::Scalar).expect("every CPU");
        let (x, w) = (channels_last(&random(1, [1, 16, 4, 4])), random(2, [16, 16, 3, 3]).set_requires_grad(true));
        winograd.conv2d(&x, &w).expect("it fits").sum(Kind::Float).backward();
        assert!(w.grad().defined() && !x.grad().defined());
        let _no_grad = tch::no_grad_guard();
        assert!(!winograd.conv2d(&x, &w).expect("it fits").requires_grad());
    }

    #[test]
    fn other_tensors_are_left_to_libtorch() {
        let winograd = Winograd::by(InstructionSet::Scalar).expect("every CPU");
        let (x, w) = (channels_last(&random(1, [2, 16, 4, 6])), random(2, [16, 16, 3, 3]));
        assert!(winograd.conv2d(&x, &w).is_some());
        assert!(winograd.conv2d(&x.contiguous(), &w).is_none());
        assert!(winograd.conv2d(&x.to_kind(Kind::Double), &w.to_kind(Kind::Double)).is_none());
        assert!(winograd.conv2d(&x, &random(2, [16, 16, 1, 1])).is_none());
        assert!(winograd.conv2d(&x, &random(2, [12, 16, 3, 3])).is_none());
    }

    #[test]
    fn passes_by_libtorch_are_its_gradients() {
        let (x, w) =
            (random(1, [2, 16, 5, 7]).set_requires_grad(true), random(2, [32, 16, 3, 3]).set_requires_grad(true));
        let y = x.conv2d(&w, None::<&Tensor>, [1, 1], [1, 1], [1, 1], 1);
        let gradient = random(3, [2, 32, 5, 7]);
        (&y * &gradient).sum(Kind::Float).backward();
        for (pass, one, other, expected) in [
            (ConvolutionPass::Forward, &x, &w, &y),
            (ConvolutionPass::InputGradient, &gradient, &w, &x.grad()),
            (ConvolutionPass::WeightGradient, &x, &gradient, &w.grad()),
        ] {
            let found = pass.compute(None, one, other);
            assert!(largest_difference(&found, &expected.to_kind(Kind::Double)) < 1e-5, "{pass:?}");
        }
    }

    #[test]
    fn work_is_shared_once_and_results_do_not_depend_on_threads() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let before = tch::get_num_threads();
        let (x, w) = (channels_last(&random(1, [4, 64, 20, 20])), random(2, [64, 64, 3, 3]));
        let winograd = Winograd::by(InstructionSet::Scalar).expect("every CPU");
        let pass = |pass: ConvolutionPass, other: &Tensor| pass.compute(Some(winograd), &x, other);
        let all = || {
            let [output, of_input, of_weight] = ConvolutionPass::ALL;
            [pass(output, &w), pass(of_input, &w), pass(of_weight, &x)]
        };
        tch::set_num_threads(1);
        let alone = all();
        tch::set_num_threads(3);
        let together = all();
        let calls: Vec<AtomicUsize> = (0..100).map(|_| AtomicUsize::new(0)).collect();
        let most = AtomicUsize::new(0);
        LibtorchThreads.share(100, &|thread, range| {
            most.fetch_max(thread, Ordering::Relaxed);
            for task in range {
                calls[task].fetch_add(1, Ordering::Relaxed);
            }
        });
        tch::set_num_threads(before);
        assert!(calls.iter().all(|calls| calls.load(Ordering::Relaxed) == 1));
        assert_eq!(most.load(Ordering::Relaxed), 2, "three threads took part");
        assert!(alone.iter().zip(&together).all(|(one, other)| one.equal(other)));
    }
}
