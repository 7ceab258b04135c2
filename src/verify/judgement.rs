//! Judgement of differences from PyTorch: those that rounding explains, and those that it does not.
//!
//! Rounding errors do not stay small. A ReLU or max-pool unit whose inputs all but tie is switched by a last bit, which changes
//! a gradient by a thousandth at once, and training with batch norm multiplies any difference with every step. When that happens
//! is a matter of chance, drawn anew for each processor, thread count and memory layout. So the bound does not come from two
//! runs that happen to agree: the parity file holds float32 references whose weights were disturbed in every step by noise of
//! 256 to 1,024 times float32's rounding, enough to switch units in every step, beside PyTorch's plain runs (threads, layouts,
//! instruction sets, DDP). `scripts/parity.py` refuses a file in which a plain run reaches more than half of what the noise
//! allows. A healthy machine is one more draw, with noise that is smaller by two orders of magnitude:
//!
//! `bound(step) = FACTOR * (greatest difference of any reference from float64 until step) + FLOOR`
//!
//! A fault is not noise: a rate wrong by 1 % moves all parameters too far by 1 %, in the first step already, where the bound on
//! the movement is about a quarter of that.

use std::fmt;

use crate::store::Reference;

/// Multiple of the references' greatest difference that is allowed: a dozen references are drawn, a machine is one more draw.
const FACTOR: f64 = 4.0;
/// Relative difference allowed in any case: 16 last bits of a float32, since a reference can equal float64 by chance.
const FLOOR: f64 = 1e-6;
/// Relative difference allowed in the sum of a step's inputs, in which nothing is amplified.
const INPUTS: f64 = 1e-5;

/// Values that a model reached in this run, over S steps and P parameters.
#[derive(Debug, Clone, Default)]
pub(super) struct Reached {
    /// Mean loss before each update, S values.
    pub loss: Vec<f64>,
    /// L2 norm of each parameter's movement since the start, S rows of P values.
    pub update: Vec<Vec<f64>>,
    /// Greatest relative difference of a step's sum of inputs.
    pub input_difference: f64,
}

/// Differences and bounds of one quantity at every step.
struct Comparison {
    quantity: &'static str,
    differences: Vec<f64>,
    bounds: Vec<f64>,
}

impl Comparison {
    fn new(quantity: &'static str, differences: impl Iterator<Item = f64>, rounding: &[Vec<f64>]) -> Comparison {
        Comparison { quantity, differences: differences.collect(), bounds: bounds(rounding) }
    }

    fn is_outside(&self, step: usize) -> bool {
        is_outside(self.differences[step], self.bounds[step])
    }
}

/// The comparison of one model with one reference.
pub(super) struct Judgement<'a> {
    model: &'a str,
    expected: &'a [f64],
    reached: &'a Reached,
    loss: Comparison,
    update: Comparison,
    parameter: Comparison,
    /// Name of the parameter that differs most, by step.
    worst: Vec<&'a str>,
}

impl<'a> Judgement<'a> {
    /// Compares the values `reached` by parameters of these `names`, in the model's order.
    pub fn new(model: &'a str, reference: &'a Reference, reached: &'a Reached, names: &[&'a str]) -> Judgement<'a> {
        let steps = || reached.update.iter().zip(&reference.update);
        let loss = reached.loss.iter().zip(&reference.loss).map(|(found, expected)| relative(*found, *expected));
        let update = steps().map(|(found, expected)| relative(norm(found), norm(expected)));
        let worst: Vec<(f64, &str)> = steps().map(|(found, expected)| worst(found, expected, names)).collect();
        let parameter = worst.iter().map(|(difference, _)| *difference);
        Judgement {
            model,
            expected: &reference.loss,
            reached,
            loss: Comparison::new("loss", loss, &reference.loss_rounding),
            update: Comparison::new("movement of all parameters", update, &reference.update_rounding),
            parameter: Comparison::new("movement", parameter, &reference.parameter_rounding),
            worst: worst.into_iter().map(|(_, name)| name).collect(),
        }
    }

    fn comparisons(&self) -> [&Comparison; 3] {
        [&self.loss, &self.update, &self.parameter]
    }

    /// Describes what is out of bounds: the first such step of each quantity.
    pub fn failures(&self) -> Vec<String> {
        let Judgement { model, .. } = self;
        let mut failures = Vec::new();
        let inputs = self.reached.input_difference;
        if is_outside(inputs, INPUTS) {
            failures
                .push(format!("{model}: inputs differ by {inputs:.1e}, allowed {INPUTS:.1e}: made from other images"));
        }
        for comparison in self.comparisons() {
            let Some(step) = (0..comparison.differences.len()).find(|step| comparison.is_outside(*step)) else {
                continue;
            };
            let (difference, bound) = (comparison.differences[step], comparison.bounds[step]);
            let quantity = match std::ptr::eq(comparison, &self.parameter) {
                true => format!("movement of {}", self.worst[step]),
                false => comparison.quantity.into(),
            };
            failures
                .push(format!("{model}: {quantity} in step {step} differs by {difference:.1e}, allowed {bound:.1e}"));
        }
        failures
    }
}

impl fmt::Display for Judgement<'_> {
    /// Writes a table of one row per step; differences and bounds are relative.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(
            f,
            "# {:>4} {:>12} {:>12} {:>10} {:>9} {:>12} {:>9} {:>10} {:>9}",
            "step", "loss", "reached", "difference", "bound", "all moved by", "bound", "worst", "bound"
        )?;
        for (step, (expected, reached)) in self.expected.iter().zip(&self.reached.loss).enumerate() {
            let [loss, update, parameter] =
                self.comparisons().map(|comparison| (comparison.differences[step], comparison.bounds[step]));
            let outside = self.comparisons().iter().any(|comparison| comparison.is_outside(step));
            writeln!(
                f,
                "{step:>6} {expected:>12.7} {reached:>12.7} {:>10.1e} {:>9.1e} {:>12.1e} {:>9.1e} {:>10.1e} {:>9.1e}{}",
                loss.0,
                loss.1,
                update.0,
                update.1,
                parameter.0,
                parameter.1,
                if outside { "  OUT OF BOUND" } else { "" }
            )?;
        }
        writeln!(f, "# inputs differ by at most {:.1e} (relative, of each step's sum)", self.reached.input_difference)
    }
}

/// Bound on a quantity's relative difference at every step, from the differences of the references.
fn bounds(rounding: &[Vec<f64>]) -> Vec<f64> {
    let steps = 0..rounding.first().map_or(0, Vec::len);
    let greatest = steps.map(|step| rounding.iter().map(|reference| reference[step]).fold(0.0, f64::max));
    // An earlier difference persists in the parameters, even where it happens not to show in a later loss.
    let until = greatest.scan(0.0, |most, here| {
        *most = f64::max(*most, here);
        Some(*most)
    });
    until.map(|most| FACTOR * most + FLOOR).collect()
}

/// Relative difference of `found` from `expected`.
pub(super) fn relative(found: f64, expected: f64) -> f64 {
    (found - expected).abs() / expected.abs().max(f64::MIN_POSITIVE)
}

/// Whether a difference exceeds its bound; a NaN exceeds every bound.
fn is_outside(difference: f64, bound: f64) -> bool {
    difference.is_nan() || difference > bound
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// Greatest relative difference, NaN above all, and the name of its parameter.
fn worst<'a>(found: &[f64], expected: &[f64], names: &[&'a str]) -> (f64, &'a str) {
    let differences = found.iter().zip(expected).map(|(found, expected)| relative(*found, *expected));
    let greater = |one: (f64, &'a str), other: (f64, &'a str)| if is_outside(other.0, one.0) { other } else { one };
    differences.zip(names.iter().copied()).fold((0.0, ""), greater)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two parameters, three steps, two float32 references.
    fn reference() -> Reference {
        Reference {
            ranks: 1,
            loss: vec![2.0, 1.0, 0.5],
            update: vec![vec![3.0, 4.0], vec![6.0, 8.0], vec![9.0, 12.0]],
            loss_rounding: vec![vec![1e-6, 1e-4, 1e-5], vec![2e-6, 1e-5, 3e-4]],
            update_rounding: vec![vec![1e-3; 3]; 2],
            parameter_rounding: vec![vec![1e-2; 3]; 2],
        }
    }

    fn reached() -> Reached {
        let Reference { loss, update, .. } = reference();
        Reached { loss, update, input_difference: 0.0 }
    }

    fn failures(reached: &Reached) -> Vec<String> {
        Judgement::new("net", &reference(), reached, &["first", "second"]).failures()
    }

    #[test]
    fn a_bound_is_never_below_an_earlier_one() {
        let expected = [2e-6, 1e-4, 3e-4].map(|most| 4.0 * most + 1e-6);
        let found = bounds(&reference().loss_rounding);
        assert!(found.iter().zip(expected).all(|(found, expected)| relative(*found, expected) < 1e-12), "{found:?}");
        assert_eq!(bounds(&[vec![3e-4, 0.0]])[0], bounds(&[vec![3e-4, 0.0]])[1]);
    }

    #[test]
    fn what_equals_the_reference_passes_and_so_does_its_rounding() {
        assert!(failures(&reached()).is_empty());
        let mut rounded = reached();
        rounded.loss[1] *= 1.0 + 4e-4;
        rounded.update[0] = vec![3.0 * 1.003, 4.0 * 1.003];
        assert!(failures(&rounded).is_empty());
    }

    #[test]
    fn each_quantity_out_of_bound_is_named_with_its_step() {
        type Change = fn(&mut Reached);
        let changes: [(Change, &str); 6] = [
            (|reached| reached.loss[1] *= 1.0 + 5e-4, "net: loss in step 1 differs by 5.0e-4, allowed 4.0e-4"),
            (|reached| reached.loss[2] = f64::NAN, "net: loss in step 2 differs by NaN"),
            (
                |reached| reached.update[2] = vec![9.09, 12.12],
                "net: movement of all parameters in step 2 differs by 1.0e-2",
            ),
            (
                |reached| reached.update[1][0] = 6.0 * 1.05,
                "net: movement of first in step 1 differs by 5.0e-2, allowed 4.0e-2",
            ),
            (|reached| reached.update[0][1] = f64::NAN, "net: movement of second in step 0 differs by NaN"),
            (|reached| reached.input_difference = 2e-5, "net: inputs differ by 2.0e-5, allowed 1.0e-5"),
        ];
        for (change, expected) in changes {
            let mut wrong = reached();
            change(&mut wrong);
            let found = failures(&wrong);
            assert!(found.iter().any(|failure| failure.starts_with(expected)), "{found:?}, expected {expected}");
        }
    }
}
