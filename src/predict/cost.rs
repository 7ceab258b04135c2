//! The cost model: the time of a step on n ranks with b samples each. Pure arithmetic.
//!
//! `step(n, b) = compute(n, b) + comm(n) + wait(n, b) - hidden(n, b)`
//!
//! - `compute` is separable: `f(b) g(n)`. f is the measured batches (linear between them, extrapolated along the last two), g
//!   the slowdown by sharing memory bandwidth and clock; beyond the largest measured n it is constant.
//! - `comm` is Hockney's alpha-beta model of a ring: `2 (n-1) alpha + 2 (n-1)/n bytes / beta`, fitted to the bare
//!   all-reduce, times the factor by which it is slower in training.
//!   Source: Thakur, Rabenseifner, Gropp, Optimization of Collective Communication Operations in MPICH, 2005.
//! - `wait` is the lag of the slowest of n ranks behind their mean: the expected maximum of n normal variables, times the
//!   spread of `compute`.
//! - `hidden` is a share of the collectives, but no more than a share of the compute they hide behind.

use super::points::{Collective, Point};
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

/// The fitted model of one network.
///
/// ```no_run
/// use hpml::predict::{Cost, Link, read};
/// let (mut points, collectives) = read("scaling.h5".as_ref())?;
/// points.retain(|point| point.model == "net" && point.timing == "overlap");
/// let cost = Cost::fit(&points, &collectives, Link::default()).expect("points of one rank and of several");
/// println!("step on 64 ranks: {:.1} ms, efficiency {:.2}", cost.step(64, 32) * 1e3, cost.efficiency(64, 32));
/// # Ok::<(), hpml::error::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Cost {
    /// Compute seconds by batch: (batch, seconds), ascending.
    by_batch: Known,
    /// Slowdown by ranks: (ranks, factor), ascending.
    by_ranks: Known,
    /// Latency of one message of the ring.
    pub alpha: Second,
    /// Bus bandwidth, bytes per second.
    pub beta: f64,
    /// Time of the collective in training / alone.
    pub in_training: f64,
    /// Standard deviation of compute between ranks / compute.
    pub spread: f64,
    /// Share of the collectives (and of the wait before them) that is hidden, if there is enough compute to hide behind.
    pub hidden: f64,
    /// Whether collectives can overlap the backward pass.
    pub overlaps: bool,
    /// Hidden time at most / compute: the largest observed, a lower bound.
    pub hidden_by: f64,
    /// Bytes of gradients.
    pub bytes: Bytes,
}

impl Cost {
    /// Fits the model to points of one network and timing mode; `None` without a point of one rank and one of several.
    pub fn fit(points: &[Point], collectives: &[Collective], link: Link) -> Option<Cost> {
        let several: Vec<&Point> = points.iter().filter(|point| point.ranks > 1).collect();
        let bytes = several.first()?.gradient_bytes;
        points.iter().find(|point| point.ranks == 1)?;
        let (by_batch, by_ranks) = separate(points);
        let (alpha, beta) = fit_ring(collectives, bytes)?;
        let foreign = link.busbw.is_some() || link.latency.is_some();
        let (alpha, beta) = (link.latency.unwrap_or(alpha), link.busbw.unwrap_or(beta));
        let mut cost = Cost {
            by_batch,
            by_ranks,
            alpha,
            beta,
            in_training: 1.0,
            spread: 0.0,
            hidden: 0.0,
            overlaps: false,
            hidden_by: 0.0,
            bytes,
        };
        // The slowdown of another link in training is not known.
        if !foreign {
            cost.in_training = median(several.iter().map(|point| point.comm / cost.comm(point.ranks)));
        }
        let spread = |point: &&Point| point.comm_wait / (point.compute() * expected_maximum(point.ranks));
        cost.spread = median(several.iter().map(spread));
        let hidden = |point: &&Point| (point.comm + point.comm_wait - point.comm_exposed).max(0.0);
        let overlaps = || several.iter().map(|point| point.overlap).filter(|overlap| overlap.is_finite());
        (cost.overlaps, cost.hidden) = (overlaps().next().is_some(), median(overlaps()).max(0.0));
        cost.hidden_by = several.iter().map(|point| hidden(point) / point.compute()).fold(0.0, f64::max);
        Some(cost)
    }

    /// Seconds of a step on `ranks` ranks with `batch` samples each.
    pub fn step(&self, ranks: usize, batch: usize) -> Second {
        let compute = self.compute(ranks, batch);
        if ranks <= 1 {
            return compute;
        }
        let collectives = self.comm(ranks) + self.spread * compute * expected_maximum(ranks);
        compute + collectives - (self.hidden * collectives).min(self.hidden_by * compute)
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

    /// Seconds of the gradients' all-reduce in training.
    pub fn comm(&self, ranks: usize) -> Second {
        let (messages, share) = ring(ranks);
        self.in_training * (messages * self.alpha + share * self.bytes as f64 / self.beta)
    }

    fn compute(&self, ranks: usize, batch: usize) -> Second {
        let factor = interpolate(&self.by_ranks, ranks, |ranks| (ranks as f64).log2(), Beyond::Stay);
        interpolate(&self.by_batch, batch, |batch| batch as f64, Beyond::GoOn) * factor
    }
}

/// Number of consecutive messages, and share of the buffer that a rank sends.
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

/// Expected greatest of n standard normal variables, within 2 % (n >= 2).
///
/// Source: Blom, Statistical Estimates and Transformed Beta-Variables, 1958: the quantile of (n - 0.375)/(n + 0.25).
fn expected_maximum(n: usize) -> f64 {
    normal_quantile((n as f64 - 0.375) / (n as f64 + 0.25))
}

/// Quantile of the standard normal distribution for p above 0.5, within 4.5e-4.
///
/// Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.2.23.
fn normal_quantile(p: f64) -> f64 {
    let t = (-2.0 * (1.0 - p).ln()).sqrt();
    let above = 2.515517 + t * (0.802853 + t * 0.010328);
    let below = 1.0 + t * (1.432788 + t * (0.189269 + t * 0.001308));
    t - above / below
}

/// Median of the finite `values`; 0 if there are none.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.filter(|value| value.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    if sorted.is_empty() { 0.0 } else { metrics::median(&sorted) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring_time(ranks: usize, bytes: u64, alpha: f64, beta: f64) -> f64 {
        let (messages, share) = ring(ranks);
        messages * alpha + share * bytes as f64 / beta
    }

    /// Makes points that follow the model exactly.
    fn points(ranks: &[usize], batches: &[usize]) -> Vec<Point> {
        let mut points = Vec::new();
        for &ranks in ranks {
            for &batch_per_rank in batches {
                let compute = (0.01 + 0.002 * batch_per_rank as f64) * (1.0 + 0.1 * (ranks as f64).log2());
                let several = ranks > 1;
                let comm = if several { 1.5 * ring_time(ranks, 40_000_000, 1e-4, 1e9) } else { 0.0 };
                let comm_wait = if several { 0.02 * compute * expected_maximum(ranks) } else { 0.0 };
                let comm_exposed = 0.4 * (comm + comm_wait);
                let (model, timing) = ("net".into(), "overlap".into());
                let step = compute + comm_exposed;
                let gradient_bytes = 40_000_000;
                points.push(Point {
                    model,
                    timing,
                    ranks,
                    batch_per_rank,
                    step,
                    comm,
                    comm_wait,
                    comm_exposed,
                    overlap: if several { 0.6 } else { f64::NAN },
                    gradient_bytes,
                });
            }
        }
        points
    }

    fn collectives(ranks: &[usize]) -> Vec<Collective> {
        let sizes = [1_000, 1_000_000, 40_000_000];
        let one = |ranks: usize, bytes| Collective { ranks, bytes, seconds: ring_time(ranks, bytes, 1e-4, 1e9) };
        ranks.iter().flat_map(|&ranks| sizes.map(|bytes| one(ranks, bytes))).collect()
    }

    #[test]
    fn a_model_fitted_to_its_own_points_gives_them_back_and_those_left_out() {
        let fitted = Cost::fit(&points(&[1, 2, 4], &[32, 128, 512]), &collectives(&[2, 4]), Link::default()).unwrap();
        assert!((fitted.alpha - 1e-4).abs() < 1e-9 && (fitted.beta / 1e9 - 1.0).abs() < 1e-6, "{fitted:?}");
        assert!((fitted.in_training - 1.5).abs() < 1e-6 && (fitted.spread - 0.02).abs() < 1e-9, "{fitted:?}");
        assert!(fitted.overlaps && (fitted.hidden - 0.6).abs() < 1e-9, "{fitted:?}");
        for point in points(&[1, 2, 4], &[32, 64, 256, 1024]) {
            let predicted = fitted.step(point.ranks, point.batch_per_rank);
            let bound = if point.batch_per_rank == 32 || point.ranks == 1 { 1e-6 } else { 0.02 };
            assert!((predicted / point.step - 1.0).abs() < bound, "{point:?}: {predicted}");
        }
    }

    #[test]
    fn where_nothing_can_overlap_nothing_is_hidden() {
        let mut points = points(&[1, 2], &[32, 128]);
        for point in &mut points {
            (point.comm_exposed, point.overlap) = (point.comm + point.comm_wait, f64::NAN);
            point.step = 0.1 + point.comm_exposed;
        }
        let fitted = Cost::fit(&points, &collectives(&[2]), Link::default()).unwrap();
        assert!(!fitted.overlaps && fitted.hidden == 0.0 && fitted.hidden_by < 1e-9, "{fitted:?}");
    }

    #[test]
    fn more_ranks_need_larger_batches_and_a_faster_link_smaller_ones() {
        let (points, collectives) = (points(&[1, 2], &[32, 128]), collectives(&[2]));
        let fitted = Cost::fit(&points, &collectives, Link::default()).unwrap();
        let fast = Cost::fit(&points, &collectives, Link { busbw: Some(1e12), latency: Some(0.0) }).unwrap();
        let (few, many) = (fitted.batch_for(2, 0.8).unwrap(), fitted.batch_for(64, 0.8).unwrap());
        assert!(few < many && fast.batch_for(64, 0.8).unwrap() < many, "{few} {many}");
        assert!(fitted.efficiency(64, many) >= 0.8 && fitted.efficiency(64, many - 1) < 0.8);
        assert_eq!(fitted.batch_for(64, 1.0), None);
    }

    #[test]
    fn without_one_rank_or_several_nothing_is_fitted() {
        assert!(Cost::fit(&points(&[2, 4], &[32]), &collectives(&[2]), Link::default()).is_none());
        assert!(Cost::fit(&points(&[1], &[32]), &collectives(&[2]), Link::default()).is_none());
        assert!(Cost::fit(&points(&[1, 2], &[32]), &[], Link::default()).is_none());
    }

    #[test]
    fn the_expected_maximum_is_that_of_the_tables() {
        // Harter, Expected values of normal order statistics, 1961.
        for (n, expected) in [(2, 0.5642), (4, 1.0294), (10, 1.5388), (100, 2.5076)] {
            assert!((expected_maximum(n) / expected - 1.0).abs() < 0.05, "{n}: {}", expected_maximum(n));
        }
    }
}
