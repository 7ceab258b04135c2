//! Ranks that are slower than the others in what each does by itself.

use std::collections::BTreeMap;

use super::{Part, PartMeans, median_of};
use crate::units::Second;

/// Parts of a step that a rank does without the others: in the rest a fast rank waits for a slow one.
const OWN: [Part; 4] = [Part::Data, Part::Forward, Part::Backward, Part::Optimizer];

/// Least ratio to the median that makes a rank a slow one: well above what ranks on equal cores differ by.
pub const LEAST_RATIO: f64 = 1.2;

/// A rank whose own work takes longer than that of most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SlowRank {
    /// MPI rank.
    pub rank: i64,
    /// Mean time per step of its own work: data, forward, backward, optimizer.
    pub own: Second,
    /// `own` over the median of all ranks' own work.
    pub ratio: f64,
    /// The part that takes most more than the median over the ranks.
    pub part: Part,
    /// What `part` takes more, per step.
    pub excess: Second,
}

/// Time per step of a rank's own work, of which `means` has the parts.
pub fn own_work(means: &PartMeans) -> Second {
    OWN.iter().map(|part| means[*part as usize]).sum()
}

/// The ranks whose own work takes at least 1.2 times the median over the ranks, the slowest first.
///
/// # Examples
/// ```
/// use hpml::metrics::{Part, slow_ranks};
///
/// let mut means: std::collections::BTreeMap<i64, [f64; 8]> = (0..4).map(|rank| (rank, [0.25; 8])).collect();
/// means.get_mut(&2).unwrap()[Part::Backward as usize] = 1.25;
/// let slow = slow_ranks(&means);
/// assert_eq!((slow.len(), slow[0].rank, slow[0].part, slow[0].ratio), (1, 2, Part::Backward, 2.0));
/// ```
pub fn slow_ranks(ranks: &BTreeMap<i64, PartMeans>) -> Vec<SlowRank> {
    let middle = |value: &dyn Fn(&PartMeans) -> f64| median_of(ranks.values().map(value));
    let (all, parts) = (middle(&own_work), OWN.map(|part| middle(&|means| means[part as usize])));
    let slow = |(rank, means): (&i64, &PartMeans)| {
        let excess = OWN.iter().zip(parts).map(|(part, middle)| (*part, means[*part as usize] - middle));
        let (part, excess) = excess.max_by(|a, b| a.1.total_cmp(&b.1))?;
        let own = own_work(means);
        let ratio = own / all;
        (ratio >= LEAST_RATIO).then_some(SlowRank { rank: *rank, own, ratio, part, excess })
    };
    let mut slow: Vec<SlowRank> = ranks.iter().filter_map(slow).collect();
    slow.sort_by(|a, b| b.own.total_cmp(&a.own));
    slow
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_a_thousand_is_found_and_equal_ranks_are_not_slow() {
        let mut ranks: BTreeMap<i64, PartMeans> =
            (0..1024).map(|rank| (rank, [1e-3 * (1.0 + 0.01 * (rank % 10) as f64); 8])).collect();
        assert_eq!(slow_ranks(&ranks), []);
        // Waiting for others makes nobody slow.
        ranks.get_mut(&3).unwrap()[Part::CommExposed as usize] = 1.0;
        assert_eq!(slow_ranks(&ranks), []);
        ranks.insert(700, [5e-3; 8]);
        ranks.get_mut(&5).unwrap()[Part::Data as usize] = 4e-3;
        let slow = slow_ranks(&ranks);
        assert_eq!(slow.iter().map(|slow| (slow.rank, slow.part)).collect::<Vec<_>>()[1..], [(5, Part::Data)]);
        assert!(slow[0].rank == 700 && (slow[0].ratio - 4.78).abs() < 0.03, "{:?}", slow[0]);
    }

    #[test]
    fn no_rank_and_one_rank_have_no_slow_one() {
        assert_eq!(slow_ranks(&BTreeMap::new()), []);
        assert_eq!(slow_ranks(&BTreeMap::from([(0, [1.0; 8])])), []);
    }
}
