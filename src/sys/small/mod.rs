//! Operations on CPU tensors so small that a library's set-up for them costs more than their arithmetic: convolutions of few
//! channels, and max-pooling.

mod convolution;
mod pool;

use tch::{Device, Kind, Tensor};

use super::autograd::operation;
use super::simd;
use super::threads::{parallel_for, threads};
use crate::convolution::InstructionSet;
use convolution::{Gate, Shape};

/// Results of a pooling that a thread has at least.
const VALUES_PER_THREAD: usize = 1 << 14;

/// The values of a contiguous float32 tensor on the CPU.
fn values(tensor: &Tensor) -> &[f32] {
    debug_assert!(is_plain(tensor));
    // SAFETY: the tensor lives as long as the slice, and holds that many floats without gaps.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), tensor.numel()) }
}

/// A new contiguous float32 tensor, which `fill` sets.
fn filled(shape: &[i64], fill: impl FnOnce(&mut [f32])) -> Tensor {
    let tensor = Tensor::empty(shape, (Kind::Float, Device::Cpu));
    // SAFETY: nobody else has the tensor yet; float32 has no invalid bits.
    fill(unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), tensor.numel()) });
    tensor
}

fn is_plain(tensor: &Tensor) -> bool {
    tensor.device() == Device::Cpu && tensor.kind() == Kind::Float && tensor.is_contiguous()
}

/// Convolution of stride 1 of `input` `[n, c, h, w]` with `weight` `[o, c, k, k]`, plus `bias` `[o]`, then ReLU if `rectified`.
/// Autograd differentiates it.
///
/// Returns `None` for what libtorch computes faster: anything but contiguous float32 on the CPU, more than a few channels, large images.
pub fn convolution(
    input: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    padding: i64,
    rectified: bool,
) -> Option<Tensor> {
    let (&[images, inputs, height, width], &[outputs, of, kernel, across]) = (&input.size()[..], &weight.size()[..])
    else {
        return None;
    };
    let [images, inputs, outputs, height, width, kernel, padding] =
        [images, inputs, outputs, height, width, kernel, padding].map(|extent| extent as usize);
    let shape = Shape { images, inputs, outputs, height, width, kernel, padding };
    let fits = of as usize == inputs && across as usize == kernel && shape.is_small(threads());
    if !fits || ![Some(input), Some(weight), bias].into_iter().flatten().all(is_plain) {
        return None;
    }
    let isa = InstructionSet::fastest();
    let size = shape.output().map(|side| side as i64);
    let padded = shape.padded(values(input));
    let output = filled(&[images as i64, outputs as i64, size[0], size[1]], |output| {
        shape.forward(isa, &padded, values(weight), bias.map(values), rectified, output);
    });
    let (input_size, weights, result) = (input.size(), weight.detach(), rectified.then(|| output.detach()));
    let gradients = move |given: &Tensor, needed: &[bool]| {
        let mut given = given.contiguous();
        if let Some(result) = &result {
            given = filled(&given.size(), |to| {
                simd::once(isa, Gate { given: values(&given), output: values(result), to });
            });
        }
        let wanted = |input: usize| needed.get(input).is_some_and(|needed| *needed);
        let of_input = wanted(0)
            .then(|| filled(&input_size, |to| shape.input_gradient(isa, values(&given), values(&weights), to)));
        let of_weight =
            wanted(1).then(|| filled(&weights.size(), |to| shape.weight_gradient(isa, &padded, values(&given), to)));
        let of_bias = wanted(2).then(|| given.sum_dim_intlist([0, 2, 3].as_slice(), false, Kind::Float));
        let mut all = vec![of_input, of_weight, of_bias];
        all.truncate(needed.len());
        all
    };
    let all: Vec<&Tensor> = [Some(input), Some(weight), bias].into_iter().flatten().collect();
    Some(operation(&all, &output, gradients))
}

/// Max-pooling of `input` `[n, c, h, w]` over squares of 2x2 with stride 2. Autograd differentiates it.
///
/// Returns `None` for anything but contiguous float32 on the CPU.
pub fn max_pool_2x2(input: &Tensor) -> Option<Tensor> {
    let &[images, channels, height, width] = &input.size()[..] else { return None };
    if !is_plain(input) || images * channels == 0 || height < 2 || width < 2 {
        return None;
    }
    let size = [height as usize, width as usize];
    let shape = [images, channels, height / 2, width / 2];
    let mut places = vec![0u8; shape.iter().product::<i64>() as usize];
    let output = filled(&shape, |to| {
        let rows = (shape[0] * shape[1] * shape[2]) as usize;
        let forward = pool::Forward { from: values(input), size, to: to.as_mut_ptr(), places: places.as_mut_ptr() };
        parallel_for(rows, VALUES_PER_THREAD.div_ceil(size[1]), &|rows| {
            simd::run(InstructionSet::fastest(), &forward, rows)
        });
    });
    let input_shape = input.size();
    let gradients = move |given: &Tensor, _: &[bool]| {
        let given = given.contiguous();
        let gradient = filled(&input_shape, |to| {
            to.fill(0.0);
            pool::backward(values(&given), &places, size, to);
        });
        vec![Some(gradient)]
    };
    Some(operation(&[input], &output, gradients))
}

#[cfg(test)]
mod tests;
