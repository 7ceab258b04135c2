//! Sampler: the samples that a rank draws, and their order. In: sizes, seed, epoch. Out: the indices of PyTorch's
//! `torch.utils.data.DistributedSampler`, index for index, so that runs of both can be compared.

use rand_mt::Mt;

/// One rank's share of a data set, drawn anew each epoch.
#[derive(Debug, Clone)]
pub struct Sampler {
    samples: usize,
    world_size: usize,
    rank: usize,
    shuffle: bool,
    drop_last: bool,
    seed: u64,
    epoch: u64,
}

impl Sampler {
    /// Creates a sampler over `samples` samples, at epoch 0. All ranks pass equal values except for `rank`.
    ///
    /// If `samples` does not divide by `world_size`, the last samples are dropped (`drop_last`), or the first ones of the
    /// order are repeated so that every rank has the same number.
    ///
    /// # Panics
    /// `rank` is not below `world_size`, or `samples` does not fit u32.
    pub fn new(samples: usize, world_size: usize, rank: usize, shuffle: bool, drop_last: bool, seed: u64) -> Sampler {
        assert!(rank < world_size, "rank {rank} of {world_size}");
        assert!(u32::try_from(samples).is_ok(), "indices are u32");
        Sampler { samples, world_size, rank, shuffle, drop_last, seed, epoch: 0 }
    }

    /// Sets the epoch whose order [`Sampler::indices`] gives; equal seed and epoch give equal order.
    pub fn set_epoch(&mut self, epoch: u64) {
        self.epoch = epoch;
    }

    /// Indices of this rank, equally many on every rank; none if `drop_last` and there are fewer samples than ranks.
    ///
    /// Source: torch/utils/data/distributed.py, `__iter__`.
    pub fn indices(&self) -> Vec<u32> {
        self.share_of(&self.order())
    }

    /// Order of all samples in the epoch, identical on ranks with equal seed.
    pub fn order(&self) -> Vec<u32> {
        if self.shuffle {
            permutation(self.samples, self.seed.wrapping_add(self.epoch))
        } else {
            (0..self.samples as u32).collect()
        }
    }

    /// Indices of this rank out of the epoch's [`order`](Self::order).
    pub fn share_of(&self, order: &[u32]) -> Vec<u32> {
        let per_rank = samples_per_rank(self.samples, self.world_size, self.drop_last);
        // PyTorch pads the order by repeating it from its start, then takes every world_size-th from `rank` on.
        (0..per_rank).map(|number| order[(self.rank + number * self.world_size) % self.samples]).collect()
    }
}

/// Number of indices that each rank draws in an epoch: the length of [`Sampler::indices`].
pub fn samples_per_rank(samples: usize, world_size: usize, drop_last: bool) -> usize {
    if drop_last { samples / world_size } else { samples.div_ceil(world_size) }
}

/// `torch.randperm(n, generator=g)` on the CPU with `g.manual_seed(seed)`.
///
/// Source: aten/src/ATen/native/TensorFactories.cpp, `randperm_cpu`, and ATen/core/MT19937RNGEngine.h (mt19937, seeded with
/// the low 32 bits).
fn permutation(n: usize, seed: u64) -> Vec<u32> {
    let mut random = Mt::new(seed as u32);
    if n < u32::MAX as usize / 20 {
        let mut order: Vec<u32> = (0..n as u32).collect();
        for i in 0..n.saturating_sub(1) {
            order.swap(i, i + random.next_u32() as usize % (n - i));
        }
        return order;
    }
    // For large n the remainder of 32 random bits would not be uniform: 64 bits, the high half drawn first.
    let mut order: Vec<u32> = Vec::with_capacity(n);
    for i in 0..n as u64 {
        let bits = u64::from(random.next_u32()) << 32 | u64::from(random.next_u32());
        let other = (bits % (i + 1)) as usize;
        order.push(i as u32);
        order[i as usize] = order[other];
        order[other] = i as u32;
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Function `checksum` of tests/fixtures/sampler.py.
    fn checksum(indices: impl IntoIterator<Item = u32>) -> u32 {
        indices.into_iter().fold(0, |c: u32, index| c.wrapping_mul(31).wrapping_add(index))
    }

    #[test]
    fn every_rank_draws_what_pytorchs_distributed_sampler_draws() {
        let table = include_str!("../../tests/fixtures/sampler.txt");
        let mut cases = 0;
        for line in table.lines().filter(|line| !line.starts_with('#')) {
            let parts: Vec<Vec<u64>> = line
                .split(':')
                .map(|part| part.split_whitespace().map(|number| number.parse().unwrap()).collect())
                .collect();
            let [n, world_size, shuffle, drop_last, seed, epoch] = parts[0][..] else { panic!("{line}") };
            let ranks: Vec<Vec<u32>> = (0..world_size as usize)
                .map(|rank| {
                    let (shuffle, drop_last) = (shuffle == 1, drop_last == 1);
                    let mut sampler = Sampler::new(n as usize, world_size as usize, rank, shuffle, drop_last, seed);
                    sampler.set_epoch(epoch);
                    sampler.indices()
                })
                .collect();
            let last: Vec<u64> = ranks.last().unwrap().iter().take(6).map(|&index| u64::from(index)).collect();
            assert_eq!(last, parts[2], "{line}");
            assert!(ranks.iter().all(|rank| rank.len() as u64 == parts[1][0]), "{line}");
            assert_eq!(u64::from(checksum(ranks.concat())), parts[1][1], "{line}");
            cases += 1;
        }
        assert_eq!(cases, 352);
    }

    /// Tests the smallest permutation for which PyTorch takes its other algorithm; `sampler.py large` made the numbers.
    #[test]
    #[ignore = "1 GB of memory and some seconds"]
    fn a_permutation_of_214_million_is_pytorchs_too() {
        let order = permutation(214_748_364, 42);
        assert_eq!(order[..6], [85514504, 93417259, 199404010, 60269803, 87481865, 115296688]);
        assert_eq!(checksum(order), 3_353_795_648);
    }
}
