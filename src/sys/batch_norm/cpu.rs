//! `kernels` as an operation of libtorch's, by cpu.cpp.

use std::ffi::c_void;
use std::slice::{from_raw_parts, from_raw_parts_mut};
use std::sync::Once;

use tch::Tensor;
use torch_sys::C_tensor;

use super::super::libtorch::failure;
use super::BatchNorm;
use super::kernels::{Norm, Saved};
use super::layout::{Bf16, Element};
use crate::convolution::InstructionSet;

/// Shape and parameters of a pass; equal to cpu.cpp's, as the two below.
#[repr(C)]
struct Form {
    rows: i64,
    channels: i64,
    is_float: bool,
    rectified: bool,
    epsilon: f64,
    weight: *const f32,
    bias: *const f32,
    /// `[3, channels]`, see [`Saved`].
    statistics: *mut f32,
}

#[repr(C)]
struct Forward {
    form: Form,
    x: *const c_void,
    /// Null without a shortcut.
    shortcut: *const c_void,
    y: *mut c_void,
    running_mean: *mut f32,
    running_variance: *mut f32,
    momentum: f64,
    train: bool,
}

#[repr(C)]
struct Backward {
    form: Form,
    x: *const c_void,
    /// Null without a shortcut or ReLU.
    y: *const c_void,
    given: *mut c_void,
    /// Null exactly if `y` is.
    x_gradient: *mut c_void,
    weight_gradient: *mut f32,
    bias_gradient: *mut f32,
}

unsafe extern "C" {
    fn hpml_batch_norm_cpu_kernels(
        forward: unsafe extern "C" fn(*const Forward),
        backward: unsafe extern "C" fn(*const Backward),
    );
    fn hpml_batch_norm_cpu_takes(input: *const C_tensor, rows: *const *const C_tensor, train: bool) -> bool;
    fn hpml_batch_norm_cpu(
        input: *const C_tensor,
        rows: *const *const C_tensor,
        shortcut: *const C_tensor,
        rectified: bool,
        momentum: f64,
        epsilon: f64,
        train: bool,
    ) -> *mut C_tensor;
}

/// [`BatchNorm::apply`], or without `train` [`BatchNorm::evaluate`], on CPU cores.
pub(super) fn apply(
    norm: &BatchNorm,
    input: &Tensor,
    shortcut: Option<&Tensor>,
    rectified: bool,
    train: bool,
) -> Option<Tensor> {
    static KERNELS: Once = Once::new();
    // SAFETY: the functions have the signatures that cpu.cpp calls them with.
    KERNELS.call_once(|| unsafe { hpml_batch_norm_cpu_kernels(forward, backward) });
    let rows = [norm.weight, norm.bias, norm.running_mean, norm.running_variance].map(Tensor::as_ptr);
    // SAFETY: all pointers are live tensors for the length of the call, or null where that is allowed; the result is a new
    // tensor that is ours, or null.
    unsafe {
        if !hpml_batch_norm_cpu_takes(input.as_ptr(), rows.as_ptr(), train) {
            return None;
        }
        let output = hpml_batch_norm_cpu(
            input.as_ptr(),
            rows.as_ptr(),
            shortcut.map_or(std::ptr::null(), Tensor::as_ptr),
            rectified,
            norm.momentum,
            norm.epsilon,
            train,
        );
        assert!(!output.is_null(), "Torch({})", failure());
        Some(Tensor::from_ptr(output))
    }
}

/// # Safety
/// `pass` has tensors of its form, of which the written ones overlap nothing.
unsafe extern "C" fn forward(pass: *const Forward) {
    // SAFETY: as the caller promises.
    unsafe {
        if (*pass).form.is_float {
            forward_as::<f32>(&*pass);
        } else {
            forward_as::<Bf16>(&*pass);
        }
    }
}

/// # Safety
/// As [`forward`]; the elements are stored as `T`.
unsafe fn forward_as<T: Element>(pass: &Forward) {
    let Form { channels, epsilon, rectified, .. } = pass.form;
    let (channels, elements) = (channels as usize, (pass.form.rows * channels) as usize);
    // SAFETY: as the caller promises.
    unsafe {
        let (norm, mut saved) = parts(&pass.form);
        let x = from_raw_parts(pass.x.cast::<T>(), elements);
        let shortcut = (!pass.shortcut.is_null()).then(|| from_raw_parts(pass.shortcut.cast::<T>(), elements));
        let y = from_raw_parts_mut(pass.y.cast::<T>(), elements);
        let [mean, variance] =
            [pass.running_mean, pass.running_variance].map(|running| from_raw_parts_mut(running, channels));
        if pass.train {
            let toward = |running: &mut f32, value: f64| {
                *running = (f64::from(*running) * (1.0 - pass.momentum) + value * pass.momentum) as f32;
            };
            norm.train(x, shortcut, rectified, y, &mut saved, |channel, batch_mean, batch_variance| {
                toward(&mut mean[channel], batch_mean);
                toward(&mut variance[channel], batch_variance);
            });
        } else {
            for channel in 0..channels {
                saved.set(channel, f64::from(mean[channel]), f64::from(variance[channel]), epsilon);
            }
            norm.normalize(x, shortcut, rectified, y, &saved);
        }
    }
}

/// # Safety
/// `pass` has tensors of its form, of which the written ones overlap nothing.
unsafe extern "C" fn backward(pass: *const Backward) {
    // SAFETY: as the caller promises.
    unsafe {
        if (*pass).form.is_float {
            backward_as::<f32>(&*pass);
        } else {
            backward_as::<Bf16>(&*pass);
        }
    }
}

/// # Safety
/// As [`backward`]; the elements are stored as `T`.
unsafe fn backward_as<T: Element>(pass: &Backward) {
    let (channels, elements) = (pass.form.channels as usize, (pass.form.rows * pass.form.channels) as usize);
    // SAFETY: as the caller promises.
    unsafe {
        let (norm, saved) = parts(&pass.form);
        let x = from_raw_parts(pass.x.cast::<T>(), elements);
        let given = from_raw_parts_mut(pass.given.cast::<T>(), elements);
        let own = [pass.weight_gradient, pass.bias_gradient].map(|gradient| from_raw_parts_mut(gradient, channels));
        if pass.y.is_null() {
            norm.backward(x, pass.form.rectified, given, &saved, own);
        } else {
            let y = from_raw_parts(pass.y.cast::<T>(), elements);
            let x_gradient = from_raw_parts_mut(pass.x_gradient.cast::<T>(), elements);
            norm.backward_with_shortcut(x, y, given, x_gradient, &saved, own);
        }
    }
}

/// # Safety
/// `form` has live rows of its number of channels, and nobody else uses the statistics.
unsafe fn parts<'a>(form: &Form) -> (Norm<'a>, Saved<'a>) {
    let channels = form.channels as usize;
    // SAFETY: as the caller promises.
    let (weight, bias, statistics) = unsafe {
        let row = |row: *const f32| from_raw_parts(row, channels);
        (row(form.weight), row(form.bias), from_raw_parts_mut(form.statistics, 3 * channels))
    };
    let (center, others) = statistics.split_at_mut(channels);
    let (rest, scale) = others.split_at_mut(channels);
    (Norm { isa: InstructionSet::fastest(), weight, bias, epsilon: form.epsilon }, Saved { center, rest, scale })
}
