//! All passes against a direct convolution in float64.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;

/// Error that is allowed, relative to the largest value: five times the largest seen.
const BOUND: f64 = 1e-5;

/// `count` numbers between -1 and 1, the same ones for the same `seed`.
fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// Inputs, weights and gradients of the output of one shape.
struct Case {
    shape: Shape,
    input: Vec<f32>,
    weight: Vec<f32>,
    gradient: Vec<f32>,
}

impl Case {
    fn new(shape: Shape, seed: u64) -> Case {
        let Shape { images, height, width, inputs, outputs } = shape;
        let pixels = images * height * width;
        // As after a ReLU: values of one sign, whose sums grow with the number of terms.
        let input = random(pixels * inputs, seed).into_iter().map(|value| value.max(0.0)).collect();
        let (weight, gradient) = (random(9 * inputs * outputs, seed + 1), random(pixels * outputs, seed + 2));
        Case { shape, input, weight, gradient }
    }

    /// Output and gradients of input and weight, by the definition.
    fn reference(&self) -> [Vec<f64>; 3] {
        let Shape { images, height, width, inputs, outputs } = self.shape;
        let mut found = [vec![0.0; self.gradient.len()], vec![0.0; self.input.len()], vec![0.0; self.weight.len()]];
        let [output, of_input, of_weight] = &mut found;
        let inside = |at: usize, tap: usize, side: usize| (at + tap).checked_sub(1).filter(|&from| from < side);
        for (image, y, x) in (0..images * height * width).map(|p| (p / (height * width), p / width % height, p % width))
        {
            for (tap, ty, tx) in (0..9).map(|tap| (tap, tap / 3, tap % 3)) {
                let (Some(from_y), Some(from_x)) = (inside(y, ty, height), inside(x, tx, width)) else { continue };
                let from = ((image * height + from_y) * width + from_x) * inputs;
                let to = ((image * height + y) * width + x) * outputs;
                for o in 0..outputs {
                    let (row, gradient) = ((o * 9 + tap) * inputs, f64::from(self.gradient[to + o]));
                    for i in 0..inputs {
                        let (value, weight) = (f64::from(self.input[from + i]), f64::from(self.weight[row + i]));
                        output[to + o] += value * weight;
                        of_input[from + i] += gradient * weight;
                        of_weight[row + i] += gradient * value;
                    }
                }
            }
        }
        found
    }

    /// Output and gradients of input and weight, by Winograd.
    fn winograd(
        &self,
        instructions: InstructionSet,
        workspace: &mut Workspace,
        threads: &dyn Threads,
    ) -> [Vec<f32>; 3] {
        let convolution = Convolution::new(self.shape, instructions);
        let nan = |like: &[f32]| vec![MaybeUninit::new(f32::NAN); like.len()];
        let mut found = [nan(&self.gradient), nan(&self.input), nan(&self.weight)];
        let [output, of_input, of_weight] = &mut found;
        convolution.forward(&self.input, &self.weight, output, workspace, threads);
        convolution.input_gradient(&self.gradient, &self.weight, of_input, workspace, threads);
        convolution.weight_gradient(&self.input, &self.gradient, of_weight, workspace, threads);
        // SAFETY: initialized, if only to NaN.
        found.map(|values| values.into_iter().map(|value| unsafe { value.assume_init() }).collect())
    }

    /// Compares all instruction sets with the reference, a repetition with a used workspace and several threads bit by bit.
    fn check(&self, workspace: &mut Workspace) {
        let expected = self.reference();
        for instructions in InstructionSet::ALL.into_iter().filter(|set| set.is_detected()) {
            let found = self.winograd(instructions, workspace, &OneThread);
            for (pass, (found, expected)) in ["output", "input", "weight"].iter().zip(found.iter().zip(&expected)) {
                let largest = expected.iter().fold(0.0f64, |most, value| most.max(value.abs()));
                let apart = |(&own, &other): (&f32, &f64)| (f64::from(own) - other).abs();
                let error = found.iter().zip(expected).map(apart).fold(0.0, |most: f64, error| match error.is_nan() {
                    true => f64::INFINITY,
                    false => most.max(error),
                });
                let shape = self.shape;
                assert!(error <= BOUND * largest, "{pass} of {shape:?} by {instructions:?}: {error} of {largest}");
            }
            for count in [1, 2, 3, 7] {
                let again = self.winograd(instructions, workspace, &InTurn(count));
                assert!(again == found, "{:?} by {instructions:?} on {count} threads", self.shape);
            }
        }
    }
}

/// As many threads, one after the other and the last first: what one of them does must not depend on another.
struct InTurn(usize);

impl Threads for InTurn {
    fn count(&self) -> usize {
        self.0
    }

    fn share(&self, tasks: usize, work: &(dyn Fn(usize, Range<usize>) + Sync)) {
        let each = tasks.div_ceil(self.0);
        for thread in (0..self.0).rev() {
            work(thread, (thread * each).min(tasks)..((thread + 1) * each).min(tasks));
        }
    }
}

#[test]
fn random_shapes_agree_with_float64() {
    let channels = || (1usize..=9).prop_map(|count| 16 * count);
    let shapes = (1usize..=3, 1usize..=14, 1usize..=14, channels(), channels())
        .prop_map(|(images, height, width, inputs, outputs)| Shape { images, height, width, inputs, outputs });
    // A bound of the work: the reference is slow.
    let shapes = shapes.prop_filter("too much work", |shape| {
        shape.images * shape.height * shape.width * shape.inputs * shape.outputs < 400_000
    });
    let config = Config { cases: 250, failure_persistence: None, ..Config::default() };
    let mut workspace = Workspace::new();
    let workspace = std::cell::RefCell::new(&mut workspace);
    let mut runner = TestRunner::new_with_rng(
        config,
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    runner
        .run(&(shapes, 0u64..1000), |(shape, seed)| {
            Case::new(shape, seed).check(&mut workspace.borrow_mut());
            Ok(())
        })
        .unwrap();
}

/// Shapes at which the plans differ: several rounds of tiles, few and many blocks of channels, blocks that are not whole.
#[test]
fn every_plan_agrees_with_float64() {
    let mut workspace = Workspace::new();
    for (images, height, width, inputs, outputs) in [
        (1, 29, 33, 16, 16),  // several rounds for the gradient of the weight
        (1, 30, 30, 80, 64),  // several blocks of tiles, two blocks of channels
        (2, 4, 4, 320, 80),   // kernels by 32 rows
        (1, 46, 46, 32, 336), // several rounds with many pairs
        (1, 46, 46, 272, 16), // as above, turned
    ] {
        Case::new(Shape { images, height, width, inputs, outputs }, 5).check(&mut workspace);
    }
}

#[test]
fn vectors_agree_with_each_other() {
    // The order of sums does not depend on the lanes; with FMA each step rounds alike.
    let sets = [InstructionSet::Avx512, InstructionSet::Avx2];
    if !sets.iter().all(|set| set.is_detected()) {
        crate::message::print("left out: this CPU lacks one of them");
        return;
    }
    let case = Case::new(Shape { images: 2, height: 9, width: 6, inputs: 48, outputs: 80 }, 9);
    let [one, other] = sets.map(|set| case.winograd(set, &mut Workspace::new(), &OneThread));
    assert!(one == other);
}
