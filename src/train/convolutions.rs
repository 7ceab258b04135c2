//! The choice between direct and Winograd's convolutions for each shape of a network: `/convolutions`. Rank 0 times both, all ranks
//! compute alike, and a resumed training as before; a sweep, all visits of a case.

use std::time::Instant;

use tch::{Device, Kind as Number, Tensor};

use crate::collective::{Combine, Communicator};
use crate::config::{Convolution, Plan};
use crate::convolution::Shape;
use crate::device::Target;
use crate::error::{Error, Result};
use crate::metrics::Kind;
use crate::model::Model;
use crate::sys::{ConvolutionPass, Winograd};
use crate::table::{Definition, Schema, Table};
use crate::units::Second;

/// Images of a trial at most: with more of them both take longer, and the ratio stays.
const MOST_IMAGES: usize = 32;
/// Repetitions of a trial, in turn; the fastest of each counts.
const REPETITIONS: usize = 5;
/// Factor by which direct must be faster to be chosen. Shapes with enough work are 1.2 to 3.5 times as fast by Winograd, so that with
/// this margin noise does not decide, and repeated runs choose alike.
const MARGIN: f64 = 1.15;
/// Multiplications of a direct pass below which a trial is not tried: it would measure noise.
const LEAST_WORK: usize = 1 << 22;
/// Tiles below which transforming the weights costs more than the products save.
const LEAST_TILES: usize = 4;

/// Choice for the convolution of one shape.
#[derive(Debug, Clone, Default, PartialEq)]
struct Choice {
    inputs: i64,
    outputs: i64,
    height: i64,
    width: i64,
    method: String,
    reason: String,
    /// Images of a batch that the choice is for; 0: of any.
    images: i64,
    /// Times of forward pass and both gradients in the trial, NaN without one.
    direct: Second,
    winograd: Second,
}

const DIRECT: &str = "direct";
const WINOGRAD: &str = "winograd";

const NO_TRIAL: &str = "not tried";
const DIRECT_SECONDS: Definition =
    Definition::new("direct_seconds", "s", "forward pass and both gradients by libtorch, fastest repetition")
        .unless(NO_TRIAL);
const WINOGRAD_SECONDS: Definition =
    Definition::new("winograd_seconds", "s", "forward pass and both gradients by Winograd, fastest repetition")
        .unless(NO_TRIAL);

/// Columns of `/convolutions`, which has one row per distinct convolution that Winograd can compute.
fn schema() -> Schema<Choice> {
    Schema::new("convolutions", "row")
        .integer(("inputs", "1", "input channels"), |row: &Choice| row.inputs)
        .put(|row, value| row.inputs = value as i64)
        .integer(("outputs", "1", "output channels"), |row| row.outputs)
        .put(|row, value| row.outputs = value as i64)
        .integer(("height", "1", "rows of an image"), |row| row.height)
        .put(|row, value| row.height = value as i64)
        .integer(("width", "1", "columns of an image"), |row| row.width)
        .put(|row, value| row.width = value as i64)
        .text(("method", "1", "computation in this run: direct or winograd"), |row| row.method.clone())
        .put_text(|row, text| row.method = text.to_owned())
        .text(("reason", "1", "how the method was chosen"), |row| row.reason.clone())
        .put_text(|row, text| row.reason = text.to_owned())
        .integer(("images", "1", "images per batch that it was chosen for, at most 32; 0: any number"), |row| {
            row.images
        })
        .put(|row, value| row.images = value as i64)
        .float(&DIRECT_SECONDS, |row| row.direct)
        .put(|row, value| row.direct = value)
        .float(&WINOGRAD_SECONDS, |row| row.winograd)
        .put(|row, value| row.winograd = value)
}

/// `/convolutions` without rows, for its documentation.
pub fn empty_table() -> Table {
    schema().table(&[])
}

impl Choice {
    fn new(shape: &Shape, method: &str, reason: &str) -> Choice {
        let [inputs, outputs, height, width] =
            [shape.inputs, shape.outputs, shape.height, shape.width].map(|extent| extent as i64);
        let (method, reason) = (method.to_owned(), reason.to_owned());
        Choice { inputs, outputs, height, width, method, reason, images: 0, direct: f64::NAN, winograd: f64::NAN }
    }

    /// Whether it holds for a batch of `shape`; `any`: for any number of images.
    fn is_for(&self, shape: &Shape, any: bool) -> bool {
        let extents = [shape.inputs, shape.outputs, shape.height, shape.width].map(|extent| extent as i64);
        let is_of_size = any || [0, shape.images as i64].contains(&self.images);
        [self.inputs, self.outputs, self.height, self.width] == extents && is_of_size
    }
}

/// The choices of a training or sweep, on rank 0; empty on other ranks, and where Winograd can compute nothing.
#[derive(Debug, Default)]
pub struct Convolutions {
    choices: Vec<Choice>,
    /// Whether the choices are those of a training that goes on: it makes no others.
    closed: bool,
}

impl Convolutions {
    /// The choices in the `tables` of a sweep that goes on.
    pub fn of_sweep(tables: &[Table]) -> Convolutions {
        Convolutions { choices: schema().find(tables), closed: false }
    }

    /// The choices in the `tables` of a training that goes on.
    pub fn of_training(tables: &[Table]) -> Convolutions {
        Convolutions { closed: true, ..Convolutions::of_sweep(tables) }
    }

    /// Chooses for each shape of `model`, which computes so from now on, for batches of `images` images; what was chosen before for
    /// as many stays. The trial draws no random numbers. A collective.
    ///
    /// # Errors
    /// [`Error::ConfigValue`] if `model.convolution = "winograd"` and the CPU of a rank lacks AVX2; an MPI call failed.
    pub fn choose(
        &mut self,
        model: &mut Model,
        plan: &Plan,
        target: Target,
        ranks: &Communicator,
        images: usize,
    ) -> Result<()> {
        let shapes = model.convolutions();
        if target.is_gpu() || shapes.is_empty() || plan.model.convolution == Convolution::Direct {
            return Ok(());
        }
        let winograd = Winograd::detected();
        let mut detected = [f64::from(u8::from(winograd.is_some()))];
        ranks.all_reduce(Kind::Control, Combine::Min, &mut detected)?;
        let winograd = winograd.filter(|_| detected[0] > 0.0);
        if winograd.is_none() && plan.model.convolution == Convolution::Winograd {
            return Err(cannot());
        }
        let mut chosen = vec![0f32; shapes.len()];
        if ranks.rank() == 0 {
            let known = self.choices.len();
            for (chosen, shape) in chosen.iter_mut().zip(&shapes) {
                let shape = Shape { images: images.min(MOST_IMAGES), ..*shape };
                let is_winograd = self.method(&shape, plan.model.convolution, winograd) == WINOGRAD;
                *chosen = f32::from(u8::from(is_winograd));
            }
            if let (Some(winograd), new @ [_, ..]) = (winograd, &self.choices[known..]) {
                log::info!("{}", summary(winograd, new));
            }
        }
        ranks.broadcast(Kind::Control, &mut chosen)?;
        if let Some(winograd) = winograd {
            let chosen = shapes.iter().zip(&chosen).filter(|(_, chosen)| **chosen > 0.0);
            model.use_winograd(winograd, &chosen.map(|(shape, _)| *shape).collect::<Vec<Shape>>());
        }
        Ok(())
    }

    /// The method for `shape`, chosen now if it was not before.
    fn method(&mut self, shape: &Shape, wanted: Convolution, winograd: Option<Winograd>) -> &'static str {
        let choice = match self.choices.iter().find(|choice| choice.is_for(shape, self.closed)) {
            Some(choice) => choice,
            None => {
                self.choices.push(match winograd {
                    None => Choice::new(shape, DIRECT, "a CPU without AVX2"),
                    Some(_) if self.closed => Choice::new(shape, DIRECT, "the run began without a choice"),
                    Some(_) if wanted == Convolution::Winograd => Choice::new(shape, WINOGRAD, "model.convolution"),
                    Some(winograd) => tried(winograd, shape),
                });
                self.choices.last().expect("one was added")
            }
        };
        if winograd.is_some() && choice.method == WINOGRAD { WINOGRAD } else { DIRECT }
    }

    /// The table `/convolutions`; `None` without any row.
    pub fn table(&self) -> Option<Table> {
        (!self.choices.is_empty()).then(|| schema().table(&self.choices))
    }
}

/// The error for a CPU without AVX2.
fn cannot() -> Error {
    Error::ConfigValue {
        place: "this CPU".into(),
        key: "model.convolution".into(),
        value: "\"winograd\"".into(),
        expected: "needs AVX2 on every rank: set \"auto\" or \"direct\"".into(),
    }
}

/// The choice for `shape` by a trial, if there is enough work for one.
fn tried(winograd: Winograd, shape: &Shape) -> Choice {
    let Shape { images, height, width, inputs, outputs } = *shape;
    if shape.tiles() < LEAST_TILES || images * height * width * 9 * inputs * outputs < LEAST_WORK {
        return Choice { images: images as i64, ..Choice::new(shape, DIRECT, "too little work for a trial") };
    }
    let [direct, own] = seconds(winograd, shape);
    let method = if own > MARGIN * direct { DIRECT } else { WINOGRAD };
    Choice { images: images as i64, direct, winograd: own, ..Choice::new(shape, method, "trial") }
}

/// Seconds of forward pass and both gradients, by libtorch and by Winograd.
fn seconds(winograd: Winograd, shape: &Shape) -> [Second; 2] {
    let [images, height, width, inputs, outputs] =
        [shape.images, shape.height, shape.width, shape.inputs, shape.outputs].map(|extent| extent as i64);
    // Values do not change the time; NHWC does.
    let full = |shape: [i64; 4]| Tensor::full(shape, 0.5, (Number::Float, Device::Cpu)).permute([0, 3, 1, 2]);
    let input = full([images, height, width, inputs]);
    let weight = full([outputs, 3, 3, inputs]);
    let gradient = full([images, height, width, outputs]);
    let once = |winograd: Option<Winograd>| {
        let started = Instant::now();
        let [forward, of_input, of_weight] = ConvolutionPass::ALL;
        drop(forward.compute(winograd, &input, &weight));
        drop(of_input.compute(winograd, &gradient, &weight));
        drop(of_weight.compute(winograd, &input, &gradient));
        started.elapsed().as_secs_f64()
    };
    let mut fastest = [f64::INFINITY; 2];
    for repetition in 0..=REPETITIONS {
        for (fastest, winograd) in fastest.iter_mut().zip([None, Some(winograd)]) {
            let taken = once(winograd);
            if repetition > 0 {
                *fastest = fastest.min(taken); // the first sets up what later ones find
            }
        }
    }
    fastest
}

/// The choices in a line.
fn summary(winograd: Winograd, choices: &[Choice]) -> String {
    let named = |method: &str| {
        let of_method = choices.iter().filter(|choice| choice.method == method);
        let name = |choice: &Choice| {
            let Choice { inputs, outputs, height, width, direct, winograd, .. } = choice;
            let ratio = if direct.is_nan() { String::new() } else { format!(" ({:.1}x direct)", direct / winograd) };
            format!("{inputs} to {outputs} channels {height}x{width}{ratio}")
        };
        let names: Vec<String> = of_method.map(name).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    };
    format!(
        "3x3 convolutions by Winograd ({}): {}; direct: {} (model.convolution)",
        winograd.instructions().as_str(),
        named(WINOGRAD),
        named(DIRECT)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convolution::InstructionSet;

    #[test]
    fn little_work_is_direct_and_choices_come_back_from_their_table() {
        let shape = Shape { images: 1, height: 4, width: 4, inputs: 512, outputs: 512 };
        let little = tried(Winograd::by(InstructionSet::Scalar).expect("every CPU"), &shape);
        assert!(little.method == DIRECT && little.images == 1 && little.direct.is_nan());
        let other = Choice {
            images: 8,
            direct: 0.5,
            winograd: 0.25,
            ..Choice::new(&Shape { images: 8, height: 32, width: 16, inputs: 64, outputs: 48 }, WINOGRAD, "trial")
        };
        let shape = |images: usize| Shape { images, height: 32, width: 16, inputs: 64, outputs: 48 };
        assert!(other.is_for(&shape(8), false) && !other.is_for(&shape(1), false) && other.is_for(&shape(1), true));
        let record = Convolutions { choices: vec![other.clone()], closed: false };
        let tables = [record.table().expect("a row")];
        assert_eq!(schema().find(&tables), [other]);
        let line = summary(Winograd::by(InstructionSet::Scalar).expect("every CPU"), &record.choices);
        assert!(line.contains("64 to 48 channels 32x16 (2.0x direct)") && line.contains("direct: none"), "{line}");
    }

    #[test]
    fn a_trial_times_both_and_leaves_the_generator_as_it_was() {
        let shape = Shape { images: 2, height: 16, width: 16, inputs: 64, outputs: 64 };
        let draw = |between: bool| {
            crate::sys::seeded(3, || {
                if between {
                    let choice = tried(Winograd::by(InstructionSet::Scalar).expect("every CPU"), &shape);
                    assert!(choice.direct > 0.0 && choice.winograd > 0.0 && choice.images == 2);
                }
                Tensor::rand([4], (Number::Float, Device::Cpu))
            })
        };
        assert!(draw(true).equal(&draw(false)));
    }
}
