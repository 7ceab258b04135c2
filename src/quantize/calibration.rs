//! Distributions of weights and activations. Calibration images are shared out over the ranks; the merged result is
//! bit-identical for every number of ranks, since everything that is added is an integer.
//!
//! Two passes: extremes first, then (with the range known) counts in bins and sums of the values as fixed-point integers.

use tch::Tensor;

use super::float_network::FloatTorch;
use crate::error::{Error, Result};
use crate::live::Live;

/// Bins of the histogram that is stored and plotted.
pub const BINS: usize = 100;
/// Finer bins per bin, for percentiles and the search for the least error.
const FINE: usize = 20;
/// Images of 32x32 pixels computed together. Fixed for every number of ranks, since another grouping may round differently.
pub const UNIT: usize = 20;
/// Fractional bits of the fixed-point sums below the greatest magnitude.
const FRACTION: i32 = 40;
/// Percentiles in the report.
pub const PERCENTILES: [f64; 7] = [0.1, 1.0, 25.0, 50.0, 75.0, 99.0, 99.9];

/// The distribution of one tensor's values.
#[derive(Debug, Clone, PartialEq)]
pub struct Distribution {
    /// Name of the layer; `input` is the normalized image.
    pub name: String,
    /// Values counted.
    pub count: u64,
    /// Arithmetic mean.
    pub mean: f64,
    /// Standard deviation of the whole population.
    pub std: f64,
    /// Least value.
    pub min: f64,
    /// Greatest value.
    pub max: f64,
    fine: Vec<u64>, // [BINS * FINE], equal widths from min to max
}

impl Distribution {
    /// Computes the distribution of `values`.
    ///
    /// # Errors
    /// `values` is empty or holds a NaN or infinity.
    pub fn of(name: &str, values: &[f32]) -> Result<Distribution> {
        let tensor = Tensor::from_slice(values);
        let extremes = Extremes::of(name, &tensor)?;
        let mut tally = Tally::new(extremes);
        tally.add(&tensor);
        Ok(tally.finish(name))
    }

    /// Width of the range, `max - min`.
    pub fn range(&self) -> f64 {
        self.max - self.min
    }

    /// Range (lower, upper): mean ± 3 standard deviations, cut at the extremes.
    pub fn sigma3(&self) -> (f64, f64) {
        ((self.mean - 3.0 * self.std).max(self.min), (self.mean + 3.0 * self.std).min(self.max))
    }

    /// Value below which `percent` percent of all values lie, to within a bin of range / 2000.
    pub fn percentile(&self, percent: f64) -> f64 {
        let wanted = percent / 100.0 * self.count as f64;
        let width = self.range() / self.fine.len() as f64;
        let mut below = 0.0;
        for (bin, &count) in self.fine.iter().enumerate() {
            let count = count as f64;
            if count > 0.0 && below + count >= wanted {
                return self.min + width * (bin as f64 + (wanted - below) / count);
            }
            below += count;
        }
        self.max
    }

    /// Counts of [`BINS`] equal bins from min to max.
    pub fn histogram(&self) -> Vec<u64> {
        self.fine.chunks(FINE).map(|bins| bins.iter().sum()).collect()
    }

    /// (center, count) of the fine bins that are not empty.
    pub fn bins(&self) -> impl Iterator<Item = (f64, u64)> {
        let width = self.range() / self.fine.len() as f64;
        let centre = move |bin: usize| self.min + width * (bin as f64 + 0.5);
        self.fine.iter().enumerate().filter(|(_, count)| **count > 0).map(move |(bin, &count)| (centre(bin), count))
    }
}

/// Number of values and their extremes.
#[derive(Debug, Clone, Copy)]
struct Extremes {
    min: f32,
    max: f32,
}

impl Extremes {
    const NONE: Extremes = Extremes { min: f32::INFINITY, max: f32::NEG_INFINITY };

    fn of(name: &str, values: &Tensor) -> Result<Extremes> {
        if values.numel() == 0 {
            return Err(Error::CalibrationEmpty);
        }
        let extremes =
            Extremes { min: values.min().double_value(&[]) as f32, max: values.max().double_value(&[]) as f32 };
        // `aminmax` of a tensor with a NaN is NaN.
        let bad = [extremes.min, extremes.max].into_iter().find(|value| !value.is_finite());
        let error = |value| Error::QuantizeNotFinite { name: name.into(), index: 0, value };
        bad.map_or(Ok(extremes), |value| Err(error(value)))
    }

    fn merge(self, other: Extremes) -> Extremes {
        Extremes { min: self.min.min(other.min), max: self.max.max(other.max) }
    }
}

/// Integer sums of one tensor's values.
struct Tally {
    extremes: Extremes,
    exponent: i32, // values are counted in steps of 2^(exponent - FRACTION)
    count: u64,
    sum: i128,
    squares: i128,
    fine: Vec<u64>,
}

impl Tally {
    /// Words of the integer form.
    const WORDS: usize = 5 + BINS * FINE;

    fn new(extremes: Extremes) -> Tally {
        let magnitude = extremes.min.abs().max(extremes.max.abs()).max(f32::MIN_POSITIVE) as f64;
        let exponent = magnitude.log2().ceil() as i32;
        Tally { extremes, exponent, count: 0, sum: 0, squares: 0, fine: vec![0; BINS * FINE] }
    }

    fn add(&mut self, values: &Tensor) {
        let mut flat = vec![0f32; values.numel()];
        values.contiguous().copy_data(&mut flat, values.numel());
        let (min, last) = (self.extremes.min as f64, self.fine.len() - 1);
        let bins_per_unit = self.fine.len() as f64 / (self.extremes.max as f64 - min).max(f64::MIN_POSITIVE);
        let steps_per_unit = 2f64.powi(FRACTION - self.exponent);
        for value in flat {
            let fixed = (value as f64 * steps_per_unit).round_ties_even() as i64;
            self.sum += fixed as i128;
            self.squares += fixed as i128 * fixed as i128;
            self.fine[(((value as f64 - min) * bins_per_unit) as usize).min(last)] += 1;
        }
        self.count += values.numel() as u64;
    }

    fn words(&self) -> Vec<u64> {
        let halves = |value: i128| [value as u64, (value >> 64) as u64];
        let mut words = vec![self.count];
        words.extend(halves(self.sum));
        words.extend(halves(self.squares));
        words.extend(&self.fine);
        words
    }

    fn add_words(&mut self, words: &[u64]) {
        let whole = |low: u64, high: u64| ((high as i64 as i128) << 64) | low as i128;
        self.count += words[0];
        self.sum += whole(words[1], words[2]);
        self.squares += whole(words[3], words[4]);
        self.fine.iter_mut().zip(&words[5..]).for_each(|(bin, word)| *bin += word);
    }

    fn finish(self, name: &str) -> Distribution {
        let (count, step) = (self.count as f64, 2f64.powi(self.exponent - FRACTION));
        let mean = self.sum as f64 / count * step;
        // n * squares - sum^2 would overflow; the subtraction in floating point loses nothing that matters for a width.
        let variance = (self.squares as f64 / count * step * step - mean * mean).max(0.0);
        let (min, max) = (self.extremes.min as f64, self.extremes.max as f64);
        Distribution { name: name.into(), count: self.count, mean, std: variance.sqrt(), min, max, fine: self.fine }
    }
}

/// Units of `unit` images that `rank` of `ranks` computes; all ranks together compute each unit once.
pub fn own_units(images: usize, unit: usize, rank: usize, ranks: usize) -> std::ops::Range<usize> {
    let units = images.div_ceil(unit);
    rank * units / ranks..(rank + 1) * units / ranks
}

/// Computes the distributions of the input and of every layer's output as the next layer reads it.
///
/// `pixels` `[n, channels, height, width]` u8 are all calibration images, identical on every rank; this rank computes its
/// [`own_units`]. `gather` returns every rank's words in rank order (for one rank, [`alone`]). `live` shows how far it is.
///
/// # Errors
/// There are no images, or a value is NaN or infinite.
pub fn activations(
    net: &FloatTorch,
    pixels: &[u8],
    rank: usize,
    ranks: usize,
    gather: &dyn Fn(&[u64]) -> Result<Vec<u64>>,
    live: &mut Live,
) -> Result<Vec<Distribution>> {
    if pixels.is_empty() {
        return Err(Error::CalibrationEmpty);
    }
    let names = net.tensor_names();
    let (spec, unit) = (net.spec(), net.spec().images_together(UNIT));
    let own = own_units(spec.image_count(pixels), unit, rank, ranks);
    let units = || pixels.chunks(unit * spec.image_bytes()).skip(own.start).take(own.len());

    live.begin_whole("calibration", 2 * own.len());
    let mut extremes = vec![Extremes::NONE; names.len()];
    let mut failed = Ok(());
    for unit in units() {
        for ((tensor, extremes), name) in net.tensors(unit).iter().zip(&mut extremes).zip(&names) {
            match Extremes::of(name, tensor) {
                Ok(found) => *extremes = extremes.merge(found),
                // Returned after the exchange: a rank that left now would leave the others waiting in it.
                Err(error) => failed = failed.and(Err(error)),
            }
        }
        live.step(String::new);
    }
    let words: Vec<u64> = extremes.iter().map(|e| (e.min.to_bits() as u64) << 32 | e.max.to_bits() as u64).collect();
    for rank in gather(&words)?.chunks(words.len()) {
        for (extremes, &word) in extremes.iter_mut().zip(rank) {
            let other = Extremes { min: f32::from_bits((word >> 32) as u32), max: f32::from_bits(word as u32) };
            *extremes = extremes.merge(other);
        }
    }

    let mut tallies: Vec<Tally> = extremes.iter().map(|&extremes| Tally::new(extremes)).collect();
    if failed.is_ok() {
        for unit in units() {
            net.tensors(unit).iter().zip(&mut tallies).for_each(|(tensor, tally)| tally.add(tensor));
            live.step(String::new);
        }
    }
    let words: Vec<u64> = tallies.iter().flat_map(Tally::words).collect();
    let mut merged: Vec<Tally> = extremes.iter().map(|&extremes| Tally::new(extremes)).collect();
    for rank in gather(&words)?.chunks(words.len()) {
        merged.iter_mut().zip(rank.chunks(Tally::WORDS)).for_each(|(tally, words)| tally.add_words(words));
    }
    failed?;
    Ok(merged.into_iter().zip(&names).map(|(tally, name)| tally.finish(name)).collect())
}

/// Computes the distribution of every layer's (folded) weights.
///
/// # Errors
/// A weight is NaN or infinite.
pub fn weights(net: &super::graph::FloatNet) -> Result<Vec<Distribution>> {
    let layers = net.nodes.iter().filter_map(|node| node.layer().map(|layer| (node, layer)));
    layers.map(|(node, layer)| Distribution::of(&node.name, &layer.numbers.weight)).collect()
}

/// `gather` of [`activations`] for a single rank.
///
/// # Errors
/// None; a `gather` over several ranks can fail.
pub fn alone(words: &[u64]) -> Result<Vec<u64>> {
    Ok(words.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_and_percentiles_of_a_ramp() {
        let values: Vec<f32> = (0..=2000).map(|i| i as f32 / 1000.0 - 0.5).collect();
        let ramp = Distribution::of("ramp", &values).unwrap();
        assert_eq!((ramp.count, ramp.min, ramp.max), (2001, -0.5, 1.5));
        assert!((ramp.mean - 0.5).abs() < 1e-7);
        assert!((ramp.std - (2.0f64.powi(2) / 12.0).sqrt()).abs() < 1e-3);
        assert!((ramp.percentile(75.0) - 1.0).abs() < 2e-3);
        assert_eq!(ramp.histogram().iter().sum::<u64>(), 2001);
        assert!(ramp.histogram()[..99].iter().all(|&count| (19..=21).contains(&count)));
    }

    #[test]
    fn sums_do_not_depend_on_how_values_are_shared_out() {
        let values: Vec<f32> = (0..999).map(|i| ((i * 7919) % 1000) as f32 * 0.37e-3 - 0.1).collect();
        let whole = Distribution::of("x", &values).unwrap();
        let extremes = Extremes::of("x", &Tensor::from_slice(&values)).unwrap();
        for pieces in [2, 3, 7] {
            let mut merged = Tally::new(extremes);
            for piece in values.chunks(999usize.div_ceil(pieces)).rev() {
                let mut tally = Tally::new(extremes);
                tally.add(&Tensor::from_slice(piece));
                merged.add_words(&tally.words());
            }
            assert_eq!(merged.finish("x"), whole);
        }
    }

    #[test]
    fn every_unit_has_one_rank() {
        for (images, ranks) in [(400, 3), (20, 4), (21, 2), (1, 2)] {
            let all: Vec<usize> = (0..ranks).flat_map(|rank| own_units(images, UNIT, rank, ranks)).collect();
            assert_eq!(all, (0..images.div_ceil(UNIT)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_nan_is_refused() {
        assert!(matches!(Distribution::of("w", &[1.0, f32::NAN]), Err(Error::QuantizeNotFinite { .. })));
        assert!(matches!(Distribution::of("w", &[]), Err(Error::CalibrationEmpty)));
    }
}
