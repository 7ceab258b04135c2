//! Small operations against libtorch's in float64.

use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

use super::convolution::Shape;
use super::{convolution, filled, max_pool_2x2, values};
use crate::convolution::InstructionSet;
use crate::sys::seeded;

fn random(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu))
}

/// Greatest difference, relative to the greatest value.
fn apart(found: &Tensor, expected: &Tensor) -> f64 {
    let difference = (found.to_kind(Kind::Double) - expected).abs().max().double_value(&[]);
    difference / expected.abs().max().double_value(&[]).max(1e-30)
}

/// A convolution and its gradients in float64.
fn reference(
    input: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    padding: i64,
    relu: bool,
    given: &Tensor,
) -> Vec<Tensor> {
    let leaf = |tensor: &Tensor| tensor.detach().to_kind(Kind::Double).set_requires_grad(true);
    let (input, weight, bias) = (leaf(input), leaf(weight), bias.map(leaf));
    let output = input.conv2d(&weight, bias.as_ref(), [1, 1], [padding; 2], [1, 1], 1);
    let output = if relu { output.relu() } else { output };
    (&output * given.to_kind(Kind::Double)).sum(Kind::Double).backward();
    let leaves = [Some(input), Some(weight), bias].into_iter().flatten();
    std::iter::once(output.detach()).chain(leaves.map(|leaf| leaf.grad())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_small_convolution_and_its_gradients_are_libtorchs(
        images in 1i64..6, inputs in 1i64..=8, outputs in 1i64..=16, height in 1i64..=32, width in 1i64..=32,
        kernel in 1i64..=7, padding in 0i64..7, relu: bool, with_bias: bool, seed in 0u64..1000,
    ) {
        let padding = padding.min(kernel - 1);
        prop_assume!(height.min(width) + 2 * padding >= kernel);
        let (input, weight, bias, given) = seeded(seed, || {
            let size = [height, width].map(|side| side + 2 * padding + 1 - kernel);
            let given = random(&[images, outputs, size[0], size[1]]);
            (random(&[images, inputs, height, width]), random(&[outputs, inputs, kernel, kernel]), random(&[outputs]), given)
        });
        let [input, weight, bias] = [input, weight, bias].map(|tensor| tensor.set_requires_grad(true));
        let bias = with_bias.then_some(bias);
        let output = convolution(&input, &weight, bias.as_ref(), padding, relu).unwrap();
        (&output * &given).sum(Kind::Float).backward();
        let leaves = [Some(&input), Some(&weight), bias.as_ref()].into_iter().flatten();
        let found: Vec<Tensor> = std::iter::once(output.detach()).chain(leaves.map(|leaf| leaf.grad())).collect();
        let expected = reference(&input, &weight, bias.as_ref(), padding, relu, &given);
        // A sum may come out near zero, so its error is held against the sum of the magnitudes of what was added.
        let [x, w, g] = [&input, &weight, &given].map(|tensor| tensor.detach().abs());
        let magnitudes = reference(&x, &w, bias.map(|bias| bias.detach().abs()).as_ref(), padding, false, &g);
        for (number, (found, expected)) in found.iter().zip(&expected).enumerate() {
            // With ReLU an output within rounding of zero may have the other gate; none of the seeds has one.
            let error = (found - expected).abs().max().double_value(&[]) / magnitudes[number].max().double_value(&[]);
            prop_assert!(error < 1e-6, "{number}: {error}");
        }
    }
}

#[test]
fn every_instruction_set_computes_the_same_convolution() {
    for (inputs, outputs, padding) in [(3, 6, 0), (6, 16, 2), (8, 5, 1), (1, 3, 0)] {
        let shape = Shape { images: 3, inputs, outputs, height: 13, width: 17, kernel: 3, padding };
        let [rows, columns] = shape.output().map(|side| side as i64);
        let (channels, images) = ([inputs, outputs].map(|count| count as i64), shape.images as i64);
        let (input, weight, given) = seeded(1, || {
            (
                random(&[images, channels[0], 13, 17]),
                random(&[channels[1], channels[0], 3, 3]),
                random(&[images, channels[1], rows, columns]),
            )
        });
        let expected = reference(&input, &weight, None, padding as i64, false, &given);
        for isa in InstructionSet::ALL.into_iter().filter(|set| set.is_detected()) {
            let compute = || {
                let (x, w, g) = (&shape.padded(values(&input)), values(&weight), values(&given));
                [
                    filled(&expected[0].size(), |to| shape.forward(isa, x, w, None, false, to)),
                    filled(&expected[1].size(), |to| shape.input_gradient(isa, g, w, to)),
                    filled(&expected[2].size(), |to| shape.weight_gradient(isa, x, g, to)),
                ]
            };
            let (found, again) = (compute(), compute());
            for (number, expected) in expected.iter().enumerate() {
                assert!(apart(&found[number], expected) < 1e-5, "{isa:?} {number}");
                assert!(found[number].equal(&again[number]), "{isa:?} {number}");
            }
        }
    }
}

#[test]
fn what_libtorch_computes_faster_is_left_to_it() {
    let (input, weight) = seeded(1, || (random(&[2, 3, 32, 32]), random(&[6, 3, 5, 5])));
    assert!(convolution(&input, &weight, None, 0, false).is_some());
    assert!(convolution(&input.to_kind(Kind::Double), &weight, None, 0, false).is_none());
    assert!(convolution(&input.transpose(2, 3), &weight, None, 0, false).is_none());
    assert!(convolution(&input, &random(&[64, 3, 3, 3]), None, 1, false).is_none());
    assert!(convolution(&random(&[2, 3, 96, 96]), &weight, None, 0, false).is_none());
    assert!(convolution(&random(&[2, 3, 4, 32]), &weight, None, 0, false).is_none());
}

#[test]
fn max_pooling_is_libtorchs_with_ties_and_nan() {
    for (height, width) in [(2, 2), (28, 28), (7, 9), (5, 34)] {
        let input = seeded(2, || random(&[3, 4, height, width]).g_mul_scalar(2.0).round());
        let _ = input.get(0).get(0).get(1).get(1).fill_(f64::NAN);
        let [own, other] = [&input, &input].map(|input| input.copy().set_requires_grad(true));
        let (found, expected) = (max_pool_2x2(&own).unwrap(), other.max_pool2d([2, 2], [2, 2], [0, 0], [1, 1], false));
        assert!(found.isnan().any().int64_value(&[]) == 1);
        assert!(found.nan_to_num(1e9, None, None).equal(&expected.nan_to_num(1e9, None, None)));
        let given = seeded(3, || random(&expected.size()));
        (found * &given).sum(Kind::Float).backward();
        (expected * &given).sum(Kind::Float).backward();
        assert!(own.grad().equal(&other.grad()), "{height} x {width}");
    }
}
