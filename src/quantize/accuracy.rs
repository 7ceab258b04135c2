//! Accuracy table: what each step of the quantization costs. Its cases are the float network, int8 weights, then activations
//! and biases, the naive step without rescaled biases, and last the integer network itself. All cases run on the rank's GPU
//! where it has one.

use std::ops::Range;

use tch::Kind;

use super::engine::{Engine, Kernel};
use super::float_network::{self, FloatTorch};
use super::gpu_engine::{self, GpuEngine};
use super::graph::FloatNet;
use super::integer::{IntNet, predictions};
use super::scheme;
use super::simulated::Simulated;
use crate::data::Dataset;
use crate::device::Target;
use crate::error::Result;
use crate::live::Live;

/// Images of 32x32 pixels computed together, on CPU cores and on a device.
const BATCH: [usize; 2] = [100, 500];

/// Correct predictions of every case, and agreement of simulation and kernels, over this rank's images. All counts are
/// integers below 2^53, so that sums over the ranks are exact.
#[derive(Debug, Clone, PartialEq)]
pub struct AccuracyTable {
    /// (case, correct predictions), from the float network to the integer one.
    pub cases: Vec<(&'static str, u64)>,
    /// Number of images.
    pub samples: u64,
    /// Elements of every layer's output compared between the simulated and the true integer network.
    pub compared: u64,
    /// Compared elements that differ.
    pub differing: u64,
}

impl AccuracyTable {
    /// The counts as numbers that ranks can add.
    pub fn to_sums(&self) -> Vec<f64> {
        let counts = [self.samples, self.compared, self.differing];
        counts.into_iter().chain(self.cases.iter().map(|(_, correct)| *correct)).map(|count| count as f64).collect()
    }

    /// The table with its counts replaced by `sums`; inverse of [`to_sums`](Self::to_sums).
    pub fn with_sums(&self, sums: &[f64]) -> AccuracyTable {
        let cases = self.cases.iter().zip(&sums[3..]).map(|((name, _), &correct)| (*name, correct as u64)).collect();
        AccuracyTable { cases, samples: sums[0] as u64, compared: sums[1] as u64, differing: sums[2] as u64 }
    }

    /// Appends the one case of `other`, which was measured over identical images.
    pub fn and(mut self, other: AccuracyTable) -> AccuracyTable {
        self.cases.extend(other.cases);
        self.compared += other.compared;
        self.differing += other.differing;
        self
    }

    /// Accuracies in percent, by case.
    pub fn accuracies(&self) -> Vec<(&'static str, f64)> {
        let percent = |correct: u64| 100.0 * correct as f64 / self.samples.max(1) as f64;
        self.cases.iter().map(|&(name, correct)| (name, percent(correct))).collect()
    }

    /// Percentage points that the integer network loses against float32.
    pub fn drop(&self) -> f64 {
        let accuracies = self.accuracies();
        accuracies[0].1 - accuracies[accuracies.len() - 1].1
    }
}

/// Runs every case over the images `own` of `test`, on `target`.
///
/// # Errors
/// An image cannot be read, or a simulated value is out of range.
pub fn measure(
    net: &FloatNet,
    integers: &IntNet,
    test: &Dataset,
    own: Range<usize>,
    target: Target,
    live: &mut Live,
) -> Result<AccuracyTable> {
    let torch = |net: &FloatNet| FloatTorch::on(net, target.device());
    let mut floats = vec![("float32", torch(net))];
    floats.push(("weights", torch(&scheme::with_quantized_weights(net, integers))));
    if net.has_bias() {
        floats.push(("weights, bias unscaled", torch(&scheme::with_unscaled_biases(net, integers))));
    }
    let last = if net.has_bias() { "weights+activations+bias" } else { "weights+activations" };
    run(&floats, last, integers, (test, own), target, live)
}

/// Measures the finetuned integer network as a table of one case.
///
/// # Errors
/// As [`measure`].
pub fn finetuned(
    integers: &IntNet,
    test: &Dataset,
    own: Range<usize>,
    target: Target,
    live: &mut Live,
) -> Result<AccuracyTable> {
    run(&[], "finetuned", integers, (test, own), target, live)
}

/// Two executions of one integer network: the simulated and the true one.
enum Executions {
    Cores(Simulated, Box<Engine>),
    Device(Simulated, Box<GpuEngine>),
}

impl Executions {
    fn on(target: Target, integers: &IntNet) -> Executions {
        match target.own_memory() {
            None => Executions::Cores(Simulated::new(integers), Box::new(Engine::new(integers, Kernel::best()))),
            Some(device) => {
                let matrices = Box::new(GpuEngine::new(integers, device));
                Executions::Device(Simulated::on(integers, device, Kind::Double), matrices)
            }
        }
    }

    /// Logits of the true execution for `pixels`, elements compared, and elements that differ.
    fn run(&mut self, pixels: &[u8]) -> Result<(Vec<i32>, u64, u64)> {
        match self {
            Executions::Cores(simulated, engine) => {
                let logits = engine.run(pixels);
                let (compared, differing) = compare(simulated, engine, pixels, &logits)?;
                Ok((logits, compared, differing))
            }
            Executions::Device(simulated, matrices) => {
                let (tensors, simulated_logits) = simulated.trace(pixels)?;
                let (own, logits) = matrices.trace(pixels);
                assert_eq!(tensors.len(), own.len(), "both executions make every tensor");
                let mut compared = logits.len() as u64;
                let mut differing = unequal(&simulated_logits, &logits);
                for (all, own) in tensors.iter().zip(&own) {
                    let own = own.to_kind(Kind::Float) + gpu_engine::HALF;
                    compared += all.numel() as u64;
                    differing += all.ne_tensor(&own.permute([0, 3, 1, 2])).sum(Kind::Int64).int64_value(&[]) as u64;
                }
                Ok((logits, compared, differing))
            }
        }
    }
}

fn run(
    floats: &[(&'static str, FloatTorch)],
    last: &'static str,
    integers: &IntNet,
    (test, own): (&Dataset, Range<usize>),
    target: Target,
    live: &mut Live,
) -> Result<AccuracyTable> {
    let names = floats.iter().map(|(name, _)| *name).chain([last]);
    let mut accuracy =
        AccuracyTable { cases: names.map(|name| (name, 0)).collect(), samples: 0, compared: 0, differing: 0 };
    let mut executions = Executions::on(target, integers);
    let batch = integers.spec.images_together(BATCH[usize::from(target.is_gpu())]);
    live.begin_whole("accuracy, batch", own.len().div_ceil(batch));
    for first in own.clone().step_by(batch) {
        let range = first..(first + batch).min(own.end);
        let (pixels, labels) = (&*test.images(range.clone())?, &test.labels(range)[..]);
        for ((_, net), (_, count)) in floats.iter().zip(&mut accuracy.cases) {
            *count += correct(&float_network::predictions(&net.logits(pixels)), labels);
        }
        let (logits, compared, differing) = executions.run(pixels)?;
        accuracy.cases.last_mut().expect("it was added").1 +=
            correct(&predictions(&logits, integers.spec.classes), labels);
        accuracy.compared += compared;
        accuracy.differing += differing;
        accuracy.samples += labels.len() as u64;
        live.step(String::new);
    }
    Ok(accuracy)
}

/// Number of predicted classes that are the labels.
pub fn correct(predicted: &[usize], labels: &[u32]) -> u64 {
    predicted.iter().zip(labels).filter(|(class, label)| **class == **label as usize).count() as u64
}

/// (elements compared, elements that differ) of all tensors and logits of `pixels`; `logits` are those of the kernels.
///
/// # Errors
/// A simulated value is out of range.
pub fn compare(simulated: &Simulated, engine: &mut Engine, pixels: &[u8], logits: &[i32]) -> Result<(u64, u64)> {
    let (tensors, simulated_logits) = simulated.trace(pixels)?;
    let mut compared = logits.len() as u64;
    let mut differing = unequal(&simulated_logits, logits);
    let tensors: Vec<Vec<u8>> = tensors.iter().map(channels_last).collect();
    let spec = simulated.spec();
    let images = spec.image_count(pixels);
    for (image, pixels) in pixels.chunks(spec.image_bytes()).enumerate() {
        for (all, own) in tensors.iter().zip(engine.trace(pixels).0) {
            let length = all.len() / images;
            compared += length as u64;
            differing += unequal(&all[image * length..][..length], &own);
        }
    }
    Ok((compared, differing))
}

fn unequal<T: PartialEq>(a: &[T], b: &[T]) -> u64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).filter(|(a, b)| a != b).count() as u64
}

/// Reorders `[n, channels, height, width]` whole numbers to `[n, height, width, channels]` u8.
fn channels_last(tensor: &tch::Tensor) -> Vec<u8> {
    let bytes = tensor.permute([0, 2, 3, 1]).contiguous().to_kind(Kind::Uint8);
    let mut values = vec![0; bytes.numel()];
    bytes.copy_data(&mut values, bytes.numel());
    values
}
