//! 3x3 convolutions of float32 by Winograd's F(4x4, 3x3), which takes a quarter of the products of a direct convolution: forward,
//! and the gradients of input and weight. In: images `[n, height, width, channels]` and kernels `[outputs, 3, 3, inputs]` as slices,
//! which is how channels-last tensors lie in memory. Out: the same. Knows no tensors and no networks.
//!
//! [`transform`] has the formulas, [`tile`] applies them to images and kernels, [`product`] multiplies; each is written once over a
//! [`vector`] and compiled for every instruction set by [`instructions`]. [`plan`] says how the work is cut, [`images`] and
//! [`kernels`] do it. Sums have an order that depends on the shape alone: results are bit-identical on repeat and for every number of
//! threads.
//! `unsafe` is allowed here for the intrinsics and for memory that threads share; lengths are asserted by [`Convolution`].
//!
//! ```
//! use hpml::convolution::{Convolution, InstructionSet, OneThread, Shape, Workspace};
//!
//! let shape = Shape { images: 2, height: 5, width: 7, inputs: 16, outputs: 32 };
//! let convolution = Convolution::new(shape, InstructionSet::Scalar);
//! let (input, weight) = (vec![1.0; 2 * 5 * 7 * 16], vec![0.5; 32 * 9 * 16]);
//! let mut output = vec![std::mem::MaybeUninit::uninit(); 2 * 5 * 7 * 32];
//! convolution.forward(&input, &weight, &mut output, &mut Workspace::new(), &OneThread);
//! ```
#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop)] // registers and elements are counted, as in the formulas

mod images;
mod instructions;
mod kernels;
mod plan;
mod product;
mod tile;
mod transform;
mod vector;
mod workspace;

use std::mem::MaybeUninit;
use std::ops::Range;

use self::images::Task;
pub use self::instructions::InstructionSet;
use self::plan::Plan;
use self::tile::{Images, Kernels};
use self::vector::CHANNELS;
pub use self::workspace::Workspace;

/// Threads that share the work of a convolution.
pub trait Threads {
    /// Number of threads.
    fn count(&self) -> usize;

    /// Calls `work` for ranges that together are `0..tasks`, and returns when all are done. Its first argument is the thread's number,
    /// below [`count`](Self::count), which no two calls have at one time.
    fn share(&self, tasks: usize, work: &(dyn Fn(usize, Range<usize>) + Sync));
}

/// The calling thread alone.
pub struct OneThread;

impl Threads for OneThread {
    fn count(&self) -> usize {
        1
    }

    fn share(&self, tasks: usize, work: &(dyn Fn(usize, Range<usize>) + Sync)) {
        work(0, 0..tasks);
    }
}

/// Shape of a 3x3 convolution with stride 1 and padding 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Number of images.
    pub images: usize,
    /// Rows of an image.
    pub height: usize,
    /// Columns of an image.
    pub width: usize,
    /// Input channels.
    pub inputs: usize,
    /// Output channels.
    pub outputs: usize,
}

impl Shape {
    /// Whether [`Convolution`] computes it: channels are multiples of 16, and nothing is empty.
    pub fn fits(&self) -> bool {
        let channels = [self.inputs, self.outputs];
        channels.iter().all(|&channels| channels > 0 && channels.is_multiple_of(CHANNELS))
            && self.images * self.height * self.width > 0
    }

    /// Tiles of 4x4 outputs; those at the lower and right edges may lie partly outside.
    pub fn tiles(&self) -> usize {
        self.images(1).tiles()
    }

    fn images(&self, channels: usize) -> Images {
        Images { images: self.images, height: self.height, width: self.width, channels }
    }
}

/// A convolution of one shape.
///
/// Results are `MaybeUninit` because they are written without being read. Each call takes a [`Workspace`], whose size it sets on the
/// first use.
pub struct Convolution {
    shape: Shape,
    instructions: InstructionSet,
}

impl Convolution {
    /// Convolution of `shape` by `instructions`.
    ///
    /// # Panics
    /// [`Shape::fits`] is false, or this CPU lacks the instructions.
    pub fn new(shape: Shape, instructions: InstructionSet) -> Convolution {
        assert!(shape.fits() && instructions.is_detected(), "{shape:?} by {}", instructions.as_str());
        Convolution { shape, instructions }
    }

    /// Computes the output from `input` and `weight`.
    ///
    /// # Panics
    /// A slice has not the length that the shape gives it.
    pub fn forward(
        &self,
        input: &[f32],
        weight: &[f32],
        output: &mut [MaybeUninit<f32>],
        workspace: &mut Workspace,
        threads: &dyn Threads,
    ) {
        self.convolve(false, input, weight, output, workspace, threads);
    }

    /// Computes the gradient of the input from the output's `gradient` and `weight`: a convolution with turned kernels.
    ///
    /// # Panics
    /// A slice has not the length that the shape gives it.
    pub fn input_gradient(
        &self,
        gradient: &[f32],
        weight: &[f32],
        to: &mut [MaybeUninit<f32>],
        workspace: &mut Workspace,
        threads: &dyn Threads,
    ) {
        self.convolve(true, gradient, weight, to, workspace, threads);
    }

    fn convolve(
        &self,
        back: bool,
        from: &[f32],
        weight: &[f32],
        to: &mut [MaybeUninit<f32>],
        workspace: &mut Workspace,
        threads: &dyn Threads,
    ) {
        let kernels = self.kernels(back);
        let [source, target] = [kernels.rows(), kernels.columns()].map(|channels| self.shape.images(channels));
        assert_eq!([from.len(), weight.len(), to.len()], [source.len(), kernels.len(), target.len()]);
        let functions = self.instructions.functions();
        let task = Task { functions, from, source, weight, kernels, to: Shared(to.as_mut_ptr().cast()), target };
        task.run(&Plan::of_images(source.tiles(), &kernels), workspace, threads);
    }

    /// Computes the gradient of the weight from `input` and the output's `gradient`.
    ///
    /// # Panics
    /// A slice has not the length that the shape gives it.
    pub fn weight_gradient(
        &self,
        input: &[f32],
        gradient: &[f32],
        to: &mut [MaybeUninit<f32>],
        workspace: &mut Workspace,
        threads: &dyn Threads,
    ) {
        let kernels = self.kernels(false);
        let [source, target] = [self.shape.inputs, self.shape.outputs].map(|channels| self.shape.images(channels));
        assert_eq!([input.len(), gradient.len(), to.len()], [source.len(), target.len(), kernels.len()]);
        let functions = self.instructions.functions();
        let task =
            kernels::Task { functions, input, source, gradient, target, kernels, to: Shared(to.as_mut_ptr().cast()) };
        task.run(plan::tiles_of_kernels(source.tiles(), &kernels), workspace, threads);
    }

    fn kernels(&self, back: bool) -> Kernels {
        Kernels { outputs: self.shape.outputs, inputs: self.shape.inputs, back }
    }
}

/// Memory that threads share, each of which writes to its own part.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

// SAFETY: a pointer alone; every access through it says which part it touches and why no other thread does.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Pointer to the float at `offset`, which must lie inside before it is used.
    fn at(self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

#[cfg(test)]
mod tests;
