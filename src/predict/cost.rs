//! The cost model: the time of a step on n ranks with b samples each. Pure arithmetic; docs/prediction.md has it in words.
//!
//! `step(n, b) = slowest(n, b) + exposed(n, slowest)`, `slowest(n, b) = compute(n, b) (1 + lag(n)) stragglers(n)`
//!
//! - `compute` is separable: `f(b) g(n)`. f is the measured batches (linear between them, extrapolated along the last two), g
//!   the slowdown by sharing memory bandwidth and clock; beyond the largest measured n it is constant.
//! - `lag` is that of the slowest of n ranks behind their mean, see [`Spread`].
//! - `exposed` is what the backward pass does not hide of the buckets' all-reduces, see [`overlap`](super::overlap), each of which
//!   takes what the [`Machine`] says: one that was given, or a ring fitted to the bare all-reduce, times the factor by which that is
//!   slower in training.

use super::machine::Machine;
use super::overlap::{Bucket, timeline};
use super::points::{Collective, Measured, Point};
use super::spread::Spread;
use crate::metrics;
use crate::units::{Bytes, Second};

/// Bandwidth and latency of a link that was not measured.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Link {
    /// Bus bandwidth in bytes per second.
    pub busbw: Option<f64>,
    /// Latency of one message.
    pub latency: Option<Second>,
}

/// The network between the ranks to predict for.
#[derive(Debug, Clone, PartialEq)]
pub enum Network {
    /// One ring over links of this latency and bandwidth; what is not given is fitted to the measured all-reduces.
    Ring(Link),
    /// A machine.
    Machine(Machine),
}

impl Network {
    /// Whether nothing of it has to be measured.
    pub fn is_given(&self) -> bool {
        match self {
            Network::Ring(link) => link.busbw.is_some() && link.latency.is_some(),
            Network::Machine(_) => true,
        }
    }

    /// The machine, fitted to `collectives` where it is not given; `None` if they do not suffice.
    fn machine(&self, collectives: &[Collective], bytes: Bytes) -> Option<Machine> {
        match self {
            Network::Machine(machine) => Some(machine.clone()),
            Network::Ring(Link { busbw: Some(busbw), latency: Some(latency) }) => Some(Machine::flat(*latency, *busbw)),
            Network::Ring(link) => {
                let (latency, bandwidth) = fit_ring(collectives, bytes)?;
                Some(Machine::flat(link.latency.unwrap_or(latency), link.busbw.unwrap_or(bandwidth)))
            }
        }
    }
}

impl Default for Network {
    fn default() -> Network {
        Network::Ring(Link::default())
    }
}

/// The fitted model of one network.
///
/// ```no_run
/// use hpml::predict::{Cost, Network, read};
/// let measured = read("scaling.h5".as_ref())?.only("net", "overlap");
/// let cost = Cost::fit(&measured, &Network::default()).expect("points of one rank and of several");
/// println!("step on 64 ranks: {:.1} ms, efficiency {:.2}", cost.step(64, 32) * 1e3, cost.efficiency(64, 32));
/// # Ok::<(), hpml::error::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Cost {
    /// Compute seconds by batch: (batch, seconds), ascending.
    by_batch: Known,
    /// Slowdown by ranks: (ranks, factor), ascending.
    by_ranks: Known,
    /// Share of compute that is the backward pass.
    backward: f64,
    /// The machine, or the ring fitted to the measured all-reduces.
    pub machine: Machine,
    /// Time of the collectives in training / alone; 1 for a network that was not measured.
    pub in_training: f64,
    /// Spread of the ranks' own work.
    pub spread: Spread,
    /// Buckets of gradients, in the order in which they are reduced.
    pub buckets: Vec<Bucket>,
    /// Whether collectives can overlap the backward pass.
    pub overlaps: bool,
}

impl Cost {
    /// Fits the model to measurements of one network and timing mode. `None` without a case, and without one of one rank and one of
    /// several unless `network` is given.
    pub fn fit(measured: &Measured, network: &Network) -> Option<Cost> {
        let points = &measured.points;
        let several: Vec<&Point> = points.iter().filter(|point| point.ranks > 1).collect();
        let alone = points.iter().any(|point| point.ranks == 1);
        if points.is_empty() || !network.is_given() && (several.is_empty() || !alone) {
            return None;
        }
        let bytes = several.first().copied().unwrap_or(&points[0]).gradient_bytes;
        let (by_batch, by_ranks) = separate(points);
        let buckets = measured.buckets_of(&points[0].model, bytes);
        let overlaps = match several.is_empty() {
            true => points[0].timing == "overlap" && buckets.len() > 1,
            false => several.iter().any(|point| point.overlap.is_finite()),
        };
        let mut cost = Cost {
            by_batch,
            by_ranks,
            backward: median(points.iter().map(|point| point.backward / point.compute())).clamp(0.0, 1.0),
            machine: network.machine(&measured.collectives, bytes)?,
            in_training: 1.0,
            spread: spread(&several, points),
            buckets,
            overlaps,
        };
        // The slowdown of another network in training is not known.
        if *network == Network::default() {
            cost.in_training = median(several.iter().map(|point| point.comm / cost.comm(point.ranks)));
        }
        Some(cost)
    }

    /// Seconds of a step on `ranks` ranks with `batch` samples each.
    pub fn step(&self, ranks: usize, batch: usize) -> Second {
        self.slowest(ranks, batch) + self.exposed(ranks, batch)
    }

    /// Seconds by which the slowest of `ranks` ranks ends its own work after their mean.
    pub fn lag(&self, ranks: usize, batch: usize) -> Second {
        self.slowest(ranks, batch) - self.compute(ranks, batch)
    }

    /// Seconds of the all-reduces of a step that the backward pass does not hide.
    pub fn exposed(&self, ranks: usize, batch: usize) -> Second {
        let backward = if self.overlaps { self.backward * self.slowest(ranks, batch) } else { 0.0 };
        timeline(&self.buckets, backward, |bytes| self.all_reduce(ranks, bytes)).1
    }

    /// Seconds of the all-reduces of a step, hidden or not.
    pub fn comm(&self, ranks: usize) -> Second {
        timeline(&self.buckets, 0.0, |bytes| self.all_reduce(ranks, bytes)).0
    }

    /// Throughput on `ranks` ranks / that of one rank at the same batch / ranks.
    pub fn efficiency(&self, ranks: usize, batch: usize) -> f64 {
        self.step(1, batch) / self.step(ranks, batch)
    }

    /// Least batch per rank with an efficiency of at least `wanted`; `None` if there is none up to a million.
    pub fn batch_for(&self, ranks: usize, wanted: f64) -> Option<usize> {
        const MOST: usize = 1 << 20;
        let enough = |batch: usize| self.efficiency(ranks, batch) >= wanted;
        let high = std::iter::successors(Some(1), |batch| Some(batch * 2))
            .take_while(|&batch| batch <= MOST)
            .find(|&b| enough(b))?;
        let (mut low, mut high) = (high / 2, high);
        while high - low > 1 {
            let middle = (low + high) / 2;
            if enough(middle) { high = middle } else { low = middle }
        }
        Some(high)
    }

    /// Largest of the buckets, in bytes.
    pub fn largest_bucket(&self) -> f64 {
        self.buckets.iter().map(|bucket| bucket.bytes).fold(0.0, f64::max)
    }

    fn all_reduce(&self, ranks: usize, bytes: f64) -> Second {
        self.in_training * self.machine.all_reduce(ranks, bytes).0
    }

    fn slowest(&self, ranks: usize, batch: usize) -> Second {
        self.compute(ranks, batch) * (1.0 + self.spread.lag(ranks)) * self.machine.stragglers.factor(ranks)
    }

    fn compute(&self, ranks: usize, batch: usize) -> Second {
        let factor = interpolate(&self.by_ranks, ranks, |ranks| (ranks as f64).log2(), Beyond::Stay);
        interpolate(&self.by_batch, batch, |batch| batch as f64, Beyond::GoOn) * factor
    }
}

/// The spread of the ranks' own work: the shape of the recorded deviations, the size of the measured lag. Where lags are not known,
/// as of summaries, deviations have their own size, and a lag is at most what was exposed.
fn spread(several: &[&Point], points: &[Point]) -> Spread {
    let source: Vec<f64> = match several.is_empty() {
        true => points.iter().flat_map(|point| &point.deviations).copied().collect(),
        false => several.iter().flat_map(|point| &point.deviations).copied().collect(),
    };
    let shape = Spread::of(&source);
    if several.is_empty() {
        return if shape.is_recorded() { shape } else { Spread::normal(0.0) };
    }
    let lag = |point: &&Point| {
        let known = match (point.lag.is_finite(), shape.is_recorded()) {
            (true, _) => point.lag,
            (false, true) => (shape.lag(point.ranks) * point.compute()).min(point.comm_exposed),
            (false, false) => point.comm_wait.min(point.comm_exposed),
        };
        (point.ranks, known / point.compute())
    };
    let lags: Vec<(usize, f64)> = several.iter().map(lag).collect();
    shape.fitted(&lags)
}

/// Number of consecutive messages of a ring, and share of the buffer that a rank sends.
fn ring(ranks: usize) -> (f64, f64) {
    let n = ranks as f64;
    (2.0 * (n - 1.0), 2.0 * (n - 1.0) / n)
}

/// Separates `compute = f g` into f(b) and g(n), g(1) = 1, by alternating means of the logarithms (two-way analysis of
/// variance with gaps).
fn separate(points: &[Point]) -> (Known, Known) {
    let mut batches: Vec<usize> = points.iter().map(|point| point.batch_per_rank).collect();
    let mut ranks: Vec<usize> = points.iter().map(|point| point.ranks).collect();
    for keys in [&mut batches, &mut ranks] {
        keys.sort_unstable();
        keys.dedup();
    }
    let (mut by_batch, mut by_ranks) = (vec![0.0; batches.len()], vec![0.0; ranks.len()]);
    let known: Vec<(usize, usize, f64)> = points
        .iter()
        .map(|point| {
            let batch = batches.partition_point(|&batch| batch < point.batch_per_rank);
            let rank = ranks.partition_point(|&rank| rank < point.ranks);
            (batch, rank, point.compute().max(1e-9).ln())
        })
        .collect();
    let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
    for _ in 0..200 {
        for (index, value) in by_batch.iter_mut().enumerate() {
            *value = mean(known.iter().filter(|k| k.0 == index).map(|k| k.2 - by_ranks[k.1]).collect());
        }
        for (index, value) in by_ranks.iter_mut().enumerate() {
            *value = mean(known.iter().filter(|k| k.1 == index).map(|k| k.2 - by_batch[k.0]).collect());
        }
    }
    let alone = by_ranks[0];
    let by_batch = batches.into_iter().zip(by_batch.into_iter().map(|value| (value + alone).exp())).collect();
    (by_batch, ranks.into_iter().zip(by_ranks.into_iter().map(|value| (value - alone).exp())).collect())
}

/// A function of whole numbers known at some of them, ascending.
type Known = Vec<(usize, f64)>;

/// Extrapolation beyond the last entry of a table.
#[derive(Clone, Copy, PartialEq)]
enum Beyond {
    /// Keeps the last value.
    Stay,
    /// Continues the line through the last two values; proportional if there is only one.
    GoOn,
}

fn interpolate(table: &[(usize, f64)], at: usize, scale: impl Fn(usize) -> f64, beyond: Beyond) -> f64 {
    if let [(key, value)] = table {
        return if beyond == Beyond::Stay { *value } else { value * at as f64 / *key as f64 };
    }
    let last = table.len() - 1;
    let upper = table.partition_point(|&(key, _)| key < at).clamp(1, last);
    let ((first, low), (second, high)) = (table[upper - 1], table[upper]);
    let share = (scale(at) - scale(first)) / (scale(second) - scale(first));
    let share = if beyond == Beyond::Stay { share.clamp(0.0, 1.0) } else { share };
    // Below the first batch the line may reach 0, which a step never does.
    (low + share * (high - low)).max(table[0].1 * 0.01)
}

/// Fits alpha and beta by least squares of the relative error, weighting sizes near `bytes` most: MPI changes its algorithm with
/// the size, and only sizes near the gradients' matter.
fn fit_ring(collectives: &[Collective], bytes: Bytes) -> Option<(Second, f64)> {
    let (mut aa, mut ab, mut bb, mut at, mut bt) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for one in collectives {
        let (messages, share) = ring(one.ranks);
        let sent = share * one.bytes as f64;
        let distance = (one.bytes as f64 / bytes as f64).ln();
        let weight = 1.0 / (one.seconds * one.seconds * (1.0 + distance * distance));
        aa += weight * messages * messages;
        ab += weight * messages * sent;
        bb += weight * sent * sent;
        at += weight * messages * one.seconds;
        bt += weight * sent * one.seconds;
    }
    let determinant = aa * bb - ab * ab;
    let (alpha, inverse) = ((at * bb - bt * ab) / determinant, (bt * aa - at * ab) / determinant);
    // If the two cannot be distinguished, or one would be negative, the other explains all.
    match () {
        () if !(aa > 0.0 && bb > 0.0) => None,
        () if determinant > 0.0 && alpha >= 0.0 && inverse > 0.0 => Some((alpha, 1.0 / inverse)),
        () => Some((0.0, bb / bt)),
    }
}

/// Median of the finite `values`; 0 if there are none.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let middle = metrics::median_of(values.filter(|value| value.is_finite()));
    if middle.is_nan() { 0.0 } else { middle }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predict::overlap::even;

    const BYTES: u64 = 40_000_000;

    fn ring_time(ranks: usize, bytes: f64, alpha: f64, beta: f64) -> f64 {
        let (messages, share) = ring(ranks);
        messages * alpha + share * bytes / beta
    }

    /// Makes measurements that follow the model exactly: 8 buckets, in training 1.5 times slower than alone.
    fn measured(ranks: &[usize], batches: &[usize]) -> Measured {
        let mut points = Vec::new();
        let all_reduce = |ranks, bytes| 1.5 * ring_time(ranks, bytes, 1e-4, 1e9);
        for &ranks in ranks {
            for &batch_per_rank in batches {
                let mut compute = (0.01 + 0.002 * batch_per_rank as f64) * (1.0 + 0.1 * (ranks as f64).log2());
                let several = ranks > 1;
                let lag = if several { Spread::normal(0.02).lag(ranks) * compute } else { 0.0 };
                let backward = 0.6 * (compute + lag);
                let (comm, exposed) = match several {
                    true => timeline(&even(BYTES as f64, 5e6), backward, |bytes| all_reduce(ranks, bytes)),
                    false => (0.0, 0.0),
                };
                let step = compute + lag + exposed;
                compute = step - lag - exposed;
                points.push(Point {
                    model: "net".into(),
                    timing: "overlap".into(),
                    ranks,
                    batch_per_rank,
                    step,
                    backward: 0.6 * compute,
                    comm,
                    comm_wait: lag,
                    comm_exposed: lag + exposed,
                    lag,
                    overlap: if several { 0.6 } else { f64::NAN },
                    gradient_bytes: BYTES,
                    deviations: Vec::new(),
                });
            }
        }
        Measured { points, collectives: collectives(&[2, 4]), bucket_bytes: 5e6, ..Measured::default() }
    }

    fn collectives(ranks: &[usize]) -> Vec<Collective> {
        let sizes = [1_000, 1_000_000, BYTES];
        let one = |ranks: usize, bytes| Collective { ranks, bytes, seconds: ring_time(ranks, bytes as f64, 1e-4, 1e9) };
        ranks.iter().flat_map(|&ranks| sizes.map(|bytes| one(ranks, bytes))).collect()
    }

    #[test]
    fn a_model_fitted_to_its_own_points_gives_them_back_and_those_left_out() {
        let fitted = Cost::fit(&measured(&[1, 2, 4], &[32, 128, 512]), &Network::default()).unwrap();
        let level = &fitted.machine.levels[0];
        assert!((level.latency_us - 100.0).abs() < 1e-3 && (level.bandwidth_gbs - 1.0).abs() < 1e-6, "{fitted:?}");
        assert!((fitted.in_training - 1.5).abs() < 1e-6, "{fitted:?}");
        assert!(fitted.overlaps && fitted.buckets.len() == 8, "{fitted:?}");
        for point in measured(&[1, 2, 4], &[32, 64, 256, 1024]).points {
            let predicted = fitted.step(point.ranks, point.batch_per_rank);
            let bound = if point.batch_per_rank == 32 || point.ranks == 1 { 1e-6 } else { 0.02 };
            assert!((predicted / point.step - 1.0).abs() < bound, "{point:?}: {predicted}");
        }
    }

    #[test]
    fn where_nothing_can_overlap_nothing_is_hidden() {
        let mut measured = measured(&[1, 2], &[32, 128]);
        for point in &mut measured.points {
            (point.comm_exposed, point.overlap) = (point.comm + point.comm_wait, f64::NAN);
            point.step = 0.1 + point.comm_exposed;
        }
        let fitted = Cost::fit(&measured, &Network::default()).unwrap();
        assert!(!fitted.overlaps && (fitted.exposed(2, 32) - fitted.comm(2)).abs() < 1e-12, "{fitted:?}");
    }

    #[test]
    fn what_is_hidden_grows_with_the_batch_beyond_what_was_seen_hidden() {
        // At the measured batches a bucket in eight is exposed at most. A tenth of the bandwidth fills the backward pass of the
        // largest batch, and all of it is hidden but the last bucket.
        let slow = Network::Ring(Link { busbw: Some(1e8), latency: Some(0.0) });
        let cost = Cost::fit(&measured(&[1, 2], &[32, 128]), &slow).unwrap();
        let bucket = ring_time(2, 5e6, 0.0, 1e8);
        assert!((cost.comm(2) - 8.0 * bucket).abs() < 1e-9);
        assert!((cost.exposed(2, 4096) - bucket).abs() < 1e-9, "{}", cost.exposed(2, 4096));
        assert!(cost.exposed(2, 8) > 7.0 * bucket);
    }

    #[test]
    fn more_ranks_need_larger_batches_and_a_faster_link_smaller_ones() {
        let measured = measured(&[1, 2], &[32, 128]);
        let fitted = Cost::fit(&measured, &Network::default()).unwrap();
        let (few, many) = (fitted.batch_for(2, 0.8).unwrap(), fitted.batch_for(1024, 0.8).unwrap());
        assert!(few < many, "{few}, {many}");
        assert!(fitted.efficiency(1024, many) >= 0.8 && fitted.efficiency(1024, many - 1) < 0.8);
        let fast = Network::Ring(Link { busbw: Some(50e9), latency: Some(1e-6) });
        let fast = Cost::fit(&measured, &fast).unwrap();
        assert!(fast.batch_for(1024, 0.8).unwrap() < many && fast.in_training == 1.0);
        assert_eq!(fitted.batch_for(1024, 0.999), None);
    }

    #[test]
    fn points_that_do_not_suffice_give_no_model_unless_the_network_is_given() {
        let two = measured(&[2], &[32]);
        assert!(Cost::fit(&two, &Network::default()).is_none());
        let one = measured(&[1], &[32]);
        assert!(Cost::fit(&one, &Network::default()).is_none());
        assert!(Cost::fit(&Measured::default(), &Network::Machine(Machine::flat(0.0, 1e9))).is_none());
        let mut none = measured(&[1, 2], &[32]);
        none.collectives.clear();
        assert!(Cost::fit(&none, &Network::default()).is_none());
        let given = Network::Machine(Machine::flat(1e-5, 1e9));
        for measured in [two, one, none] {
            let cost = Cost::fit(&measured, &given).unwrap();
            assert!(cost.step(64, 32) > cost.step(1, 32));
        }
    }

    #[test]
    fn a_link_without_latency_or_without_bandwidth_is_fitted_too() {
        let of = |alpha: f64, beta: f64| {
            let one = |bytes: u64| Collective { ranks: 2, bytes, seconds: ring_time(2, bytes as f64, alpha, beta) };
            fit_ring(&[one(1000), one(1_000_000), one(40_000_000)], 40_000_000).unwrap()
        };
        assert!(of(0.0, 1e9).0 < 1e-9);
        assert!((of(1e-3, 1e15).0 / 1e-3 - 1.0).abs() < 1e-3);
    }
}
