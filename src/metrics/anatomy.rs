//! Step anatomy: statistics of the parts of steps that were measured under equal conditions.

use std::collections::BTreeMap;

use super::{Moments, Part, StepTimes, TimeHistogram, definitions};
use crate::table::Frame;
use crate::units::{Second, counted};

/// Conditions under which steps may be pooled: a resumed training may have other ranks and another timing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conditions {
    /// Number of ranks that trained.
    pub world_size: usize,
    /// Whether nothing overlapped (`metrics.timing = "profile"`).
    pub is_profile: bool,
}

/// One step of one rank.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RankStep {
    /// Number of the optimizer step, from 0.
    pub step: i64,
    /// Conditions of the measurement.
    pub conditions: Conditions,
    /// MPI rank.
    pub rank: i64,
    /// Whether the step is warm-up, left out of a group that has other steps.
    pub is_warmup: bool,
    /// Seconds by part.
    pub times: StepTimes,
}

/// Counted steps that were measured under equal conditions.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Conditions of all steps in the group.
    pub conditions: Conditions,
    /// Mean times of each rank's steps, in seconds in the order of [`Part::ALL`].
    pub ranks: BTreeMap<i64, PartMeans>,
    /// Number of counted steps.
    pub steps: usize,
    /// What was left out of the steps, and how exact their percentiles are.
    pub basis: Basis,
    /// Mean and percentiles of each part over all steps and ranks, in the order of [`Part::ALL`].
    parts: Vec<Summary>,
}

/// Mean seconds of each part, in the order of [`Part::ALL`].
pub type PartMeans = [Second; StepTimes::PARTS];

/// Steps that the figures of a [`Group`] are computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// Rows of all steps but this many of warm-up.
    WithoutWarmup(usize),
    /// Rows of steps that are all warm-up, since there are no others.
    OnlyWarmup,
    /// Moments and histograms of all steps but those of warm-up.
    Histogram,
}

/// Groups steps by their conditions, in order of first appearance. Warm-up is left out of a group that has other steps.
pub fn groups(steps: &[RankStep]) -> Vec<Group> {
    let mut places: BTreeMap<Conditions, usize> = BTreeMap::new();
    let mut parts: Vec<Vec<&RankStep>> = Vec::new();
    for step in steps {
        let place = *places.entry(step.conditions).or_insert(parts.len());
        if place == parts.len() {
            parts.push(Vec::new());
        }
        parts[place].push(step);
    }
    parts.iter().map(|steps| Group::of(steps)).collect()
}

/// Rows of a training's table `/steps`. Rows of older files lack the number of ranks and the timing: the first is the number of rows
/// of the step, the second `profile`.
pub fn rank_steps(frame: &Frame, profile: bool) -> Vec<RankStep> {
    let rows = frame.rows();
    let steps: Vec<i64> = rows.iter().map(|row| frame.integer("global_step", *row).unwrap_or(0)).collect();
    let counted = world_sizes(&steps);
    let of_row = |&row: &usize| {
        let seconds = Part::ALL.map(|part| frame.number(part.as_str(), row) as f32);
        // A part that an older file lacks counts as 0 s.
        let seconds = seconds.map(|seconds| if seconds.is_finite() { seconds } else { 0.0 });
        let ranks = frame.integer(definitions::WORLD_SIZE.name, row).and_then(|ranks| usize::try_from(ranks).ok());
        RankStep {
            step: steps[row],
            conditions: Conditions {
                world_size: ranks.unwrap_or(counted[row]),
                is_profile: frame.integer(definitions::PROFILE.name, row).map_or(profile, |profile| profile == 1),
            },
            rank: frame.integer("rank", row).unwrap_or(0),
            is_warmup: frame.integer(definitions::WARMUP.name, row) == Some(1),
            times: StepTimes::from_slice(&seconds),
        }
    };
    rows.iter().map(of_row).collect()
}

/// Ranks per step, for files without a column of it: the number of the step's rows. `steps` is the step of each row.
pub fn world_sizes(steps: &[i64]) -> Vec<usize> {
    let mut rows: BTreeMap<i64, usize> = BTreeMap::new();
    steps.iter().for_each(|step| *rows.entry(*step).or_default() += 1);
    steps.iter().map(|step| rows[step]).collect()
}

impl Group {
    /// Groups `steps` of equal conditions, one at least.
    fn of(steps: &[&RankStep]) -> Group {
        let is_warmup = steps.iter().all(|step| step.is_warmup);
        let mut ranks: BTreeMap<i64, Vec<StepTimes>> = BTreeMap::new();
        for step in steps.iter().filter(|step| is_warmup || !step.is_warmup) {
            ranks.entry(step.rank).or_default().push(step.times);
        }
        let warmup = steps.iter().filter(|step| step.is_warmup && step.rank == steps[0].rank).count();
        let part = |part: Part| Summary::of(ranks.values().flatten().map(|times| times.get(part)));
        let means =
            |times: &Vec<StepTimes>| Part::ALL.map(|part| mean(times.iter().map(|times| f64::from(times.get(part)))));
        Group {
            conditions: steps[0].conditions,
            steps: ranks.values().map(Vec::len).max().unwrap_or(0),
            basis: if is_warmup { Basis::OnlyWarmup } else { Basis::WithoutWarmup(warmup) },
            parts: Part::ALL.map(part).to_vec(),
            ranks: ranks.iter().map(|(rank, times)| (*rank, means(times))).collect(),
        }
    }

    /// Groups the steps whose moments each rank has in `ranks`, and which all ranks together have in `histograms`, in the order of
    /// [`Part::ALL`].
    pub fn of_summaries(
        conditions: Conditions,
        ranks: &BTreeMap<i64, [Moments; StepTimes::PARTS]>,
        histograms: &[TimeHistogram],
    ) -> Group {
        let mut all = [Moments::default(); StepTimes::PARTS];
        ranks.values().for_each(|parts| all.iter_mut().zip(parts).for_each(|(all, part)| all.merge(part)));
        let summary = |(all, histogram): (&Moments, &TimeHistogram)| Summary {
            mean: if all.count == 0 { f64::NAN } else { all.mean },
            p50: histogram.quantile(0.5),
            p99: histogram.quantile(0.99),
        };
        let steps = ranks.values().map(|parts| parts[Part::Step as usize].count).max().unwrap_or(0);
        Group {
            conditions,
            steps: steps as usize,
            basis: Basis::Histogram,
            parts: all.iter().zip(histograms).map(summary).collect(),
            ranks: ranks.iter().map(|(rank, parts)| (*rank, parts.map(|part| part.mean))).collect(),
        }
    }

    /// Describes the group in words: number of steps and ranks, warm-up left out, timing.
    pub fn describe(&self) -> String {
        let ranks = self.conditions.world_size;
        let basis = match self.basis {
            Basis::OnlyWarmup => "all of them warm-up, since there are no others".into(),
            Basis::WithoutWarmup(0) => "no warm-up".into(),
            Basis::WithoutWarmup(steps) => format!("{steps} of warm-up left out"),
            Basis::Histogram => {
                format!("without warm-up, p50 and p99 from a histogram within {:.0} %", 100.0 * TimeHistogram::ERROR)
            }
        };
        let timing = match self.conditions {
            Conditions { world_size: 1, .. } => "",
            Conditions { is_profile: true, .. } => "; profile: the parts add up",
            _ => "; overlap: comm and comm_wait are hidden or not",
        };
        format!("{} x {}, {basis}{timing}", counted(self.steps, "step"), counted(ranks, "rank"))
    }

    /// Statistics of each part; collectives are included only with several ranks.
    pub fn anatomy(&self) -> Vec<PartSummary> {
        let whole = self.parts[Part::Step as usize].mean;
        let summary = |part: Part| {
            let all = self.parts[part as usize];
            let slowest_rank = self.ranks.values().map(|means| means[part as usize]).fold(f64::NAN, f64::max);
            PartSummary { part, all, slowest_rank, share: all.mean / whole }
        };
        let parts = Part::ALL.into_iter().filter(|part| self.conditions.world_size > 1 || !part.is_comm());
        parts.map(summary).collect()
    }
}

/// Mean and percentiles of a set of times.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Arithmetic mean.
    pub mean: Second,
    /// Median.
    pub p50: Second,
    /// 99th percentile (nearest rank).
    pub p99: Second,
}

impl Summary {
    /// Summarizes `values`, in any order; NaN if there are none.
    pub fn of(values: impl IntoIterator<Item = f32>) -> Summary {
        let mut sorted: Vec<f64> = values.into_iter().map(f64::from).collect();
        sorted.sort_by(f64::total_cmp);
        Summary { mean: mean(sorted.iter().copied()), p50: median(&sorted), p99: percentile(&sorted, 0.99) }
    }
}

/// Arithmetic mean; NaN if there are no values.
pub fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, count) = values.into_iter().fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    sum / count
}

/// Median of `ascending` values: the middle one, or the mean of the middle two; NaN if there are none.
pub fn median(ascending: &[f64]) -> f64 {
    match ascending.len() {
        0 => f64::NAN,
        n => (ascending[(n - 1) / 2] + ascending[n / 2]) / 2.0,
    }
}

/// Median of `values` in any order; NaN if there are none.
pub fn median_of(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut ascending: Vec<f64> = values.into_iter().collect();
    ascending.sort_by(f64::total_cmp);
    median(&ascending)
}

/// Percentile of `ascending` values by nearest rank, `share` from 0 to 1; NaN if there are none.
pub fn percentile(ascending: &[f64], share: f64) -> f64 {
    let rank = (share * ascending.len() as f64).ceil() as usize;
    ascending.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// 95 % confidence interval of the median by order statistics, without assumptions on the distribution. Takes ascending values.
///
/// The interval runs from the `k`-th value to the `k`-th from the end, `k` being the greatest for which `2 P(B < k) <= 0.05`
/// with `B` binomial, n tries at 1/2. NaN for fewer than 6 values, whose extremes hold the median too rarely.
///
/// Source: Conover, Practical Nonparametric Statistics, confidence interval for a quantile.
pub fn median_interval(ascending: &[f64]) -> (f64, f64) {
    let n = ascending.len();
    // ln of C(n, i) / 2^n, summed for i = 0, 1, ...; 2^-n itself underflows float64 beyond 1074 steps.
    let mut logarithm = -(n as f64) * std::f64::consts::LN_2;
    let (mut below, mut k) = (logarithm.exp(), 0);
    while 2.0 * below <= 0.05 && k < n / 2 {
        k += 1;
        logarithm += ((n - k + 1) as f64 / k as f64).ln();
        below += logarithm.exp();
    }
    if k == 0 { (f64::NAN, f64::NAN) } else { (ascending[k - 1], ascending[n - k]) }
}

/// Statistics of one part over the steps of all ranks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PartSummary {
    /// Part of the step.
    pub part: Part,
    /// Statistics over all steps and ranks.
    pub all: Summary,
    /// Mean of the rank with the greatest mean.
    pub slowest_rank: Second,
    /// Mean over the mean of the whole step; NaN without steps.
    pub share: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(data: f64, step: f64) -> StepTimes {
        let mut times = StepTimes::default();
        times.add(Part::Data, data);
        times.add(Part::Step, step);
        times
    }

    fn row(step: i64, world_size: usize, rank: i64, is_warmup: bool) -> RankStep {
        let conditions = Conditions { world_size, is_profile: false };
        RankStep { step, conditions, rank, is_warmup, times: times(1.0, 4.0) }
    }

    #[test]
    fn the_anatomy_names_the_slowest_rank_and_the_share() {
        let conditions = Conditions { world_size: 2, is_profile: false };
        let of_rank = |rank, data| {
            let step = RankStep { step: 0, conditions, rank, is_warmup: false, times: times(data, 4.0) };
            [step; 2]
        };
        let group = &groups(&[of_rank(0, 1.0), of_rank(1, 3.0)].concat())[0];
        let all = Summary { mean: 2.0, p50: 2.0, p99: 3.0 };
        let data = PartSummary { part: Part::Data, all, slowest_rank: 3.0, share: 0.5 };
        assert_eq!((group.anatomy()[0], group.anatomy().len()), (data, Part::ALL.len()));
    }

    #[test]
    fn moments_and_histograms_give_the_figures_of_the_rows() {
        let conditions = Conditions { world_size: 3, is_profile: false };
        let step = |step: i64, rank: i64| {
            let seconds = 1e-3 * (1 + (step * 7 + rank * 3) % 11) as f64;
            RankStep { step, conditions, rank, is_warmup: false, times: times(seconds, 2.0 * seconds) }
        };
        let steps: Vec<RankStep> = (0..200).flat_map(|n| (0..3).map(move |rank| step(n, rank))).collect();
        let (mut ranks, mut histograms) = (BTreeMap::new(), vec![TimeHistogram::new(); StepTimes::PARTS]);
        for step in &steps {
            let own: &mut [Moments; StepTimes::PARTS] = ranks.entry(step.rank).or_default();
            for part in Part::ALL {
                own[part as usize].add(step.times.get(part).into());
                histograms[part as usize].add(step.times.get(part).into());
            }
        }
        let (exact, summary) = (&groups(&steps)[0], Group::of_summaries(conditions, &ranks, &histograms));
        assert_eq!((summary.steps, summary.ranks.len()), (200, 3));
        assert!(summary.describe().contains("from a histogram within 1 %"), "{}", summary.describe());
        for (exact, found) in exact.anatomy().iter().zip(summary.anatomy()) {
            let near = |exact: f64, found: f64, error: f64| (found - exact).abs() <= error * exact;
            assert!(near(exact.all.mean, found.all.mean, 1e-6) && near(exact.slowest_rank, found.slowest_rank, 1e-6));
            assert!(near(exact.all.p50, found.all.p50, 0.0101) && near(exact.all.p99, found.all.p99, 0.0101));
        }
    }

    #[test]
    fn steps_on_four_ranks_and_on_two_are_not_pooled() {
        let four = (0..3).flat_map(|step| (0..4).map(move |rank| row(step, 4, rank, step == 0)));
        let two = (3..5).flat_map(|step| (0..2).map(move |rank| row(step, 2, rank, true)));
        let steps: Vec<RankStep> = four.chain(two).collect();
        let groups = groups(&steps);
        assert_eq!(groups.len(), 2);
        assert_eq!((groups[0].steps, groups[0].ranks.len(), groups[0].basis), (2, 4, Basis::WithoutWarmup(1)));
        assert!(groups[0].describe().starts_with("2 steps x 4 ranks, 1 of warm-up left out"));
        assert_eq!((groups[1].steps, groups[1].ranks.len(), groups[1].basis), (2, 2, Basis::OnlyWarmup));
        assert!(groups[1].describe().starts_with("2 steps x 2 ranks, all of them warm-up"));
        let of_rows: Vec<i64> = steps.iter().map(|row| row.step).collect();
        let sizes: Vec<usize> = steps.iter().map(|row| row.conditions.world_size).collect();
        assert_eq!(world_sizes(&of_rows), sizes);
    }

    #[test]
    fn one_rank_has_no_collectives() {
        let group = &groups(&[row(0, 1, 0, false)])[0];
        assert!(group.anatomy().iter().all(|row| !row.part.is_comm()));
        assert!(group.describe().ends_with("no warm-up"));
    }

    #[test]
    fn a_median_lies_in_the_middle_and_percentiles_are_by_nearest_rank() {
        let summary = Summary::of((1..=200).rev().map(|value| value as f32));
        assert_eq!(summary, Summary { mean: 100.5, p50: 100.5, p99: 198.0 });
        assert!(Summary::of([]).mean.is_nan() && Summary::of([]).p50.is_nan() && Summary::of([]).p99.is_nan());
        assert_eq!(Summary::of([3.0]).p99, 3.0);
    }

    #[test]
    fn an_interval_of_the_median_holds_it_in_95_cases_of_100() {
        let ascending = |n: usize| (1..=n).map(|value| value as f64).collect::<Vec<f64>>();
        // Tables of the sign test: n, and the value's number from either end.
        for (n, k) in [(6, 1), (8, 1), (9, 2), (12, 3), (20, 6), (30, 10), (100, 40)] {
            assert_eq!(median_interval(&ascending(n)), (k as f64, (n + 1 - k) as f64), "{n}");
        }
        let (low, high) = median_interval(&ascending(5000));
        assert!((low + high - 5001.0).abs() < 1e-9 && (high - low) / 2.0 < 72.0 && (high - low) / 2.0 > 68.0);
        for n in 0..6 {
            let (low, high) = median_interval(&ascending(n));
            assert!(low.is_nan() && high.is_nan(), "{n}");
        }
    }
}
