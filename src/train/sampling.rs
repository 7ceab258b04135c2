//! Samples that the ranks draw in each epoch, and how well the epochs mix the data set, counted from the sampler's indices.

use std::collections::HashMap;

use crate::config::{Config, Shares};
use crate::data::{BatchPlan, Sampler};
use crate::metrics::definitions;
use crate::table::{Schema, Table};

/// Distance of the seeds of two ranks that do not share one; above the number of epochs, since a sampler adds the epoch.
pub const SEED_STRIDE: u64 = 1_000_000;

/// The sampler of `rank` for `data.shares`.
pub fn sampler(config: &Config, samples: usize, world_size: usize, rank: usize) -> Sampler {
    let (share, seed) = match config.data.shares {
        Shares::Disjoint => (rank, config.run.seed),
        Shares::OwnOrder => (rank, config.run.seed.wrapping_add(SEED_STRIDE * rank as u64)),
        Shares::Same => (0, config.run.seed),
    };
    Sampler::new(samples, world_size, share, config.data.shuffle, config.data.drop_last, seed)
}

/// Counts of the samples drawn so far.
pub struct Sampling {
    last: Held,
    seen: Vec<bool>, // [samples]
    epochs: Vec<SamplingRow>,
}

/// Batches of an epoch that held each sample. Nearly always that is one, so that a number per sample suffices.
struct Held {
    first: Vec<u32>, // [samples], NONE without a batch
    more: HashMap<u32, Vec<u32>>,
}

const NONE: u32 = u32::MAX;

impl Held {
    fn new(samples: usize) -> Held {
        Held { first: vec![NONE; samples], more: HashMap::new() }
    }

    fn add(&mut self, sample: u32, batch: u32) {
        match &mut self.first[sample as usize] {
            first if *first == NONE => *first = batch,
            _ => self.more.entry(sample).or_default().push(batch),
        }
    }

    fn of(&self, sample: u32) -> impl Iterator<Item = u32> {
        let first = Some(self.first[sample as usize]).filter(|first| *first != NONE);
        first.into_iter().chain(self.more.get(&sample).into_iter().flatten().copied())
    }

    /// Number of samples that a batch held.
    fn samples(&self) -> usize {
        self.first.iter().filter(|first| **first != NONE).count()
    }
}

/// Counts of one epoch over all ranks; shares are between 0 and 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingRow {
    epoch: usize,
    drawn: usize,
    seen: f64,
    seen_so_far: f64,
    repeated: f64,
    met_before: f64,
}

impl Sampling {
    /// Empty counts for a data set of `samples` samples.
    pub fn new(samples: usize) -> Sampling {
        Sampling { last: Held::new(samples), seen: vec![false; samples], epochs: Vec::new() }
    }

    /// Replays the draws of all ranks in the first `steps` steps of `epoch`, and counts them.
    pub fn draw(&mut self, config: &Config, world_size: usize, epoch: usize, steps: usize) {
        let sampler_of = |rank| {
            let mut sampler = sampler(config, self.seen.len(), world_size, rank);
            sampler.set_epoch(if config.data.set_epoch { epoch as u64 } else { 0 });
            sampler
        };
        // Drawn once if all ranks share the order, since the other ranks wait meanwhile.
        let shared = (config.data.shares != Shares::OwnOrder).then(|| sampler_of(0).order());
        let of_rank = |rank| {
            let sampler = sampler_of(rank);
            let indices = shared.as_ref().map_or_else(|| sampler.indices(), |order| sampler.share_of(order));
            let plan = BatchPlan::even(indices, config.train.batch_per_rank);
            let of_step: Vec<usize> =
                plan.sizes.chunks(config.train.accumulate).map(|sizes| sizes.iter().sum()).collect();
            (plan.indices, of_step)
        };
        let ranks: Vec<(Vec<u32>, Vec<usize>)> = (0..world_size).map(of_rank).collect();
        let mut batches = vec![Vec::new(); steps];
        for (indices, of_step) in &ranks {
            let mut indices = indices.as_slice();
            for (batch, size) in batches.iter_mut().zip(of_step) {
                let (own, rest) = indices.split_at(*size);
                batch.extend_from_slice(own);
                indices = rest;
            }
        }
        self.add(epoch, batches);
    }

    /// Adds an epoch; `batches` holds the samples of each step over all ranks.
    fn add(&mut self, epoch: usize, mut batches: Vec<Vec<u32>>) {
        let drawn: usize = batches.iter().map(Vec::len).sum();
        let (mut pairs, mut met) = (0.0, 0.0);
        for batch in &mut batches {
            batch.sort_unstable();
            batch.dedup(); // a sample does not meet itself
            pairs += pairs_of(batch.len());
            met += self.pairs_that_met(batch);
        }
        self.last = Held::new(self.seen.len());
        for (number, batch) in batches.iter().enumerate() {
            for &sample in batch {
                self.last.add(sample, number as u32);
                self.seen[sample as usize] = true;
            }
        }
        let samples = self.seen.len() as f64;
        let distinct = self.last.samples() as f64;
        self.epochs.push(SamplingRow {
            epoch,
            drawn,
            seen: distinct / samples,
            seen_so_far: self.seen.iter().filter(|seen| **seen).count() as f64 / samples,
            repeated: 1.0 - distinct / drawn as f64,
            met_before: if self.epochs.is_empty() { f64::NAN } else { met / pairs },
        });
    }

    /// Number of sample pairs of `batch` that shared a batch in the last epoch.
    fn pairs_that_met(&self, batch: &[u32]) -> f64 {
        let mut numbers: Vec<u32> = batch.iter().flat_map(|sample| self.last.of(*sample)).collect();
        numbers.sort_unstable();
        let mut met: f64 = numbers.chunk_by(|a, b| a == b).map(|same| pairs_of(same.len())).sum();
        // Samples in several batches (overlapping ranks) may have met more than once; each pair counts once.
        let in_several = batch.iter().filter(|sample| self.last.more.contains_key(sample));
        let several: Vec<Vec<u32>> = in_several.map(|sample| self.last.of(*sample).collect()).collect();
        for (index, one) in several.iter().enumerate() {
            for other in &several[index + 1..] {
                met -= one.iter().filter(|number| other.contains(number)).count().saturating_sub(1) as f64;
            }
        }
        met
    }

    /// The table `/sampling` of the epochs so far.
    pub fn table(&self) -> Table {
        sampling().table(&self.epochs)
    }
}

/// Columns of `/sampling`, which has one row per epoch.
pub fn sampling() -> Schema<SamplingRow> {
    Schema::new("sampling", "row")
        .count(&definitions::EPOCH, |row: &SamplingRow| row.epoch)
        .count(("drawn", "1", "samples drawn over all ranks"), |row| row.drawn)
        .float(("seen", "percent", "share of the data set drawn in this epoch"), |row| 100.0 * row.seen)
        .float(("seen_so_far", "percent", "share of the data set drawn in any epoch so far"), |row| {
            100.0 * row.seen_so_far
        })
        .float(("repeated", "percent", "share of the draws whose sample had been drawn before in the epoch"), |row| {
            100.0 * row.repeated
        })
        .float(&definitions::MET_BEFORE, |row| 100.0 * row.met_before)
}

fn pairs_of(samples: usize) -> f64 {
    (samples as f64) * (samples as f64 - 1.0) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_and_shares_are_counted_by_hand() {
        let mut sampling = Sampling::new(8);
        sampling.add(0, vec![vec![0, 1, 2, 3], vec![4, 5, 5, 1]]);
        sampling.add(1, vec![vec![0, 1, 2, 4], vec![6, 7, 6, 7]]);
        let [first, second] = sampling.epochs[..] else { panic!() };
        assert_eq!((first.drawn, first.seen, first.repeated), (8, 0.75, 0.25));
        assert!(first.met_before.is_nan());
        // The pairs 0-1, 0-2, 1-2 and 1-4 of six met before, the pair 6-7 did not.
        assert_eq!((second.seen, second.seen_so_far, second.met_before), (0.75, 1.0, 4.0 / 7.0));
    }

    #[test]
    fn a_pair_that_met_twice_counts_once() {
        let mut sampling = Sampling::new(4);
        sampling.add(0, vec![vec![0, 1, 2], vec![0, 1, 3]]);
        sampling.add(1, vec![vec![0, 1]]);
        assert_eq!(sampling.epochs[1].met_before, 1.0);
    }

    /// Figures of `configs/set-epoch.toml` on CIFAR-10 with 2 ranks, as published under results/.
    #[test]
    fn the_published_figures_of_cifar10_are_these() {
        // Percent: seen in the fifth epoch, seen in all five, repeated in the fifth, met in the fourth.
        for (set, expected) in [
            ("data.set_epoch=true", [100.0, 100.0, 0.0, 0.254]),
            ("data.set_epoch=false", [100.0, 100.0, 0.0, 100.0]),
            ("data.shuffle=false", [100.0, 100.0, 0.0, 100.0]),
            ("data.shares=own_order", [75.0, 99.9, 25.0, 0.255]),
            ("data.shares=same", [50.0, 96.9, 50.0, 0.063]),
        ] {
            let set = [set, "train.batch_per_rank=64"].map(str::to_owned);
            let config = Config::load(None, &set).unwrap();
            let mut sampling = Sampling::new(50_000);
            (0..5).for_each(|epoch| sampling.draw(&config, 2, epoch, 391));
            let last = sampling.epochs[4];
            let found = [last.seen, last.seen_so_far, last.repeated, last.met_before].map(|share| 100.0 * share);
            println!("{set:?} {found:.3?}");
            // Each bound is five standard deviations of chance.
            for ((found, expected), bound) in found.into_iter().zip(expected).zip([0.6, 0.4, 0.6, 0.02]) {
                assert!((found - expected).abs() < bound, "{set:?}: {found} {expected}");
            }
        }
    }

    /// Two samples of a batch of b meet again with probability (b-1)/(n-1) if all orders are equally likely.
    #[test]
    fn shares_of_the_ranks_and_the_epoch_show_in_the_figures() {
        let epochs = |set: &[&str]| {
            let set: Vec<String> = set.iter().map(|text| text.to_string()).collect();
            let config = Config::load(None, &set).unwrap();
            let mut sampling = Sampling::new(4000);
            (0..2).for_each(|epoch| sampling.draw(&config, 4, epoch, 125)); // batches of 4 x 8
            sampling.epochs
        };
        let by_chance = 31.0 / 3999.0;
        // About 480 of 62,000 pairs meet, give or take 22.
        let close = |value: f64, expected: f64| assert!((value / expected - 1.0).abs() < 0.2, "{value} {expected}");
        let on = epochs(&[]);
        assert_eq!((on[1].seen, on[1].repeated), (1.0, 0.0));
        close(on[1].met_before, by_chance);
        assert_eq!(epochs(&["data.set_epoch=false"])[1].met_before, 1.0);
        let same = epochs(&["data.shares=same"]);
        assert_eq!((same[1].seen, same[1].repeated), (0.25, 0.75));
        close(same[1].seen_so_far, 1.0 - 0.75f64.powi(2));
        let own = epochs(&["data.shares=own_order"]);
        close(own[1].seen, 1.0 - 0.75f64.powi(4)); // missed by all four ranks with (3/4)^4
    }
}
