//! Times of steps that are too many to keep each: moments per rank, histograms over all ranks.

use std::collections::BTreeMap;

use super::{Conditions, Group, Moments, Part, RankStep, StepTimes, TimeHistogram, definitions};
use crate::table::{Schema, Table};

/// Moments of each part, in the order of [`Part::ALL`].
pub type PartMoments = [Moments; StepTimes::PARTS];

/// Times of counted steps (without warm-up), by the conditions of their measurement. They grow with the ranks, not with the steps.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summaries {
    groups: BTreeMap<Conditions, Pooled>,
}

/// Times under equal conditions.
#[derive(Debug, Clone, PartialEq)]
struct Pooled {
    ranks: BTreeMap<i64, PartMoments>,
    histograms: Vec<TimeHistogram>,
}

impl Default for Pooled {
    fn default() -> Pooled {
        Pooled { ranks: BTreeMap::new(), histograms: vec![TimeHistogram::new(); StepTimes::PARTS] }
    }
}

/// Times of some steps of one rank.
#[derive(Debug, Clone)]
pub struct RankSummary {
    /// Moments of each part.
    pub moments: PartMoments,
    /// Histogram of each part, in the order of [`Part::ALL`].
    pub histograms: Vec<TimeHistogram>,
}

impl RankSummary {
    /// Summarizes the steps of one rank.
    pub fn of(steps: &[StepTimes]) -> RankSummary {
        let mut moments = PartMoments::default();
        let mut histograms = vec![TimeHistogram::new(); StepTimes::PARTS];
        for (times, part) in steps.iter().flat_map(|times| Part::ALL.map(|part| (times, part))) {
            moments[part as usize].add(times.get(part).into());
            histograms[part as usize].add(times.get(part).into());
        }
        RankSummary { moments, histograms }
    }
}

/// A row of `/rank_times`.
#[derive(Debug, Clone, Default)]
struct RankRow {
    conditions: Conditions,
    rank: i64,
    part: String,
    count: u64,
    mean: f64,
    deviation: f64,
    min: f64,
    max: f64,
}

/// A row of `/time_histogram`.
#[derive(Debug, Clone, Default)]
struct BinRow {
    conditions: Conditions,
    part: String,
    bin: usize,
    count: f64,
}

/// Columns of `/rank_times`, which has a row per rank and part of a training with too many steps for a row each.
fn rank_times() -> Schema<RankRow> {
    Schema::new("rank_times", "row")
        .count(&definitions::WORLD_SIZE, |row: &RankRow| row.conditions.world_size)
        .put(|row, value| row.conditions.world_size = value as usize)
        .integer(&definitions::PROFILE, |row| i64::from(row.conditions.is_profile))
        .put(|row, value| row.conditions.is_profile = value != 0.0)
        .integer(&definitions::RANK, |row| row.rank)
        .put(|row, value| row.rank = value as i64)
        .text(("part", "1", "part of the step, a column of /steps"), |row| row.part.clone())
        .put_text(|row, text| row.part = text.to_owned())
        .integer(&definitions::COUNTED_STEPS, |row| row.count as i64)
        .put(|row, value| row.count = value as u64)
        .float(&definitions::RANK_MEAN, |row| row.mean)
        .put(|row, value| row.mean = value)
        .float(&definitions::RANK_DEVIATION, |row| row.deviation)
        .put(|row, value| row.deviation = value)
        .float(&definitions::RANK_LEAST, |row| row.min)
        .put(|row, value| row.min = value)
        .float(&definitions::RANK_MOST, |row| row.max)
        .put(|row, value| row.max = value)
}

/// Columns of `/time_histogram`, which has a row per part and bin that is not empty.
fn time_histogram() -> Schema<BinRow> {
    Schema::new("time_histogram", "row")
        .count(&definitions::WORLD_SIZE, |row: &BinRow| row.conditions.world_size)
        .put(|row, value| row.conditions.world_size = value as usize)
        .integer(&definitions::PROFILE, |row| i64::from(row.conditions.is_profile))
        .put(|row, value| row.conditions.is_profile = value != 0.0)
        .text(("part", "1", "part of the step, a column of /steps"), |row| row.part.clone())
        .put_text(|row, text| row.part = text.to_owned())
        .count(("bin", "1", "number of the bin"), |row| row.bin)
        .put(|row, value| row.bin = value as usize)
        .float(("upper", "s", "upper border of the bin; the lower one is that of the bin before, or 0"), |row| {
            TimeHistogram::border(row.bin)
        })
        .float(("count", "1", "counted steps of all ranks in the bin"), |row| row.count)
        .put(|row, value| row.count = value)
}

impl Summaries {
    /// The tables without rows, for their documentation.
    pub fn empty_tables() -> [Table; 2] {
        [rank_times().table(&[]), time_histogram().table(&[])]
    }

    /// Summarizes the rows of counted steps.
    pub fn of_rows<'a>(rows: impl IntoIterator<Item = &'a RankStep>) -> Summaries {
        let mut summaries = Summaries::default();
        for row in rows.into_iter().filter(|row| !row.is_warmup) {
            let RankSummary { moments, histograms } = RankSummary::of(&[row.times]);
            summaries.add(row.conditions, [(row.rank, moments)], &histograms);
        }
        summaries
    }

    /// Adds steps under these `conditions`: the moments of some ranks, and the `histograms` of all of them together.
    pub fn add(
        &mut self,
        conditions: Conditions,
        ranks: impl IntoIterator<Item = (i64, PartMoments)>,
        histograms: &[TimeHistogram],
    ) {
        let pooled = self.groups.entry(conditions).or_default();
        for (rank, moments) in ranks {
            let own = pooled.ranks.entry(rank).or_default();
            own.iter_mut().zip(&moments).for_each(|(own, moments)| own.merge(moments));
        }
        pooled.histograms.iter_mut().zip(histograms).for_each(|(own, more)| own.merge(more));
    }

    /// The steps by their conditions, as the report shows them.
    pub fn groups(&self) -> Vec<Group> {
        let group = |(conditions, Pooled { ranks, histograms }): (&Conditions, &Pooled)| {
            Group::of_summaries(*conditions, ranks, histograms)
        };
        self.groups.iter().map(group).filter(|group| group.steps > 0).collect()
    }

    /// The times of `part` under these `conditions`, over all ranks; `None` if no step was made under them.
    pub fn histogram(&self, conditions: Conditions, part: Part) -> Option<&TimeHistogram> {
        self.groups.get(&conditions).map(|pooled| &pooled.histograms[part as usize])
    }

    /// Tables `/rank_times` and `/time_histogram`.
    pub fn tables(&self) -> [Table; 2] {
        let (mut ranks, mut bins) = (Vec::new(), Vec::new());
        for (conditions, pooled) in &self.groups {
            let conditions = *conditions;
            for (rank, moments) in &pooled.ranks {
                ranks.extend(Part::ALL.map(|part| {
                    let of_part = moments[part as usize];
                    let (deviation, Moments { count, mean, min, max, .. }) = (of_part.deviation(), of_part);
                    let part = part.as_str().to_owned();
                    RankRow { conditions, rank: *rank, part, count, mean, deviation, min, max }
                }));
            }
            for part in Part::ALL {
                let counts = pooled.histograms[part as usize].counts().iter().enumerate();
                let row = |(bin, count): (usize, &f64)| BinRow {
                    conditions,
                    part: part.as_str().to_owned(),
                    bin,
                    count: *count,
                };
                bins.extend(counts.filter(|(_, count)| **count > 0.0).map(row));
            }
        }
        [rank_times().table(&ranks), time_histogram().table(&bins)]
    }

    /// The summaries that [`tables`](Self::tables) made; `None` if they are not among `tables`.
    pub fn find(tables: &[Table]) -> Option<Summaries> {
        let has = |name: &str| tables.iter().any(|table| table.group == name);
        if !has("rank_times") || !has("time_histogram") {
            return None;
        }
        let place = |name: &str| Part::ALL.into_iter().find(|part| part.as_str() == name).map(|part| part as usize);
        let mut summaries = Summaries::default();
        for row in rank_times().find(tables) {
            let Some(part) = place(&row.part) else { continue };
            let moments = Moments::from_summary(row.count, row.mean, row.deviation, [row.min, row.max]);
            summaries.groups.entry(row.conditions).or_default().ranks.entry(row.rank).or_default()[part] = moments;
        }
        for row in time_histogram().find(tables) {
            let Some(part) = place(&row.part) else { continue };
            let pooled = summaries.groups.entry(row.conditions).or_default();
            pooled.histograms[part].add_to_bin(row.bin, row.count);
        }
        Some(summaries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_hold_everything() {
        let mut summaries = Summaries::default();
        for (world_size, ranks) in [(4, 4), (2, 2)] {
            let conditions = Conditions { world_size, is_profile: world_size == 2 };
            for rank in 0..ranks {
                let steps: Vec<StepTimes> = (0..50)
                    .map(|step| StepTimes::from_slice(&[1e-3 * (step + rank) as f32; StepTimes::PARTS]))
                    .collect();
                let RankSummary { moments, histograms } = RankSummary::of(&steps);
                summaries.add(conditions, [(rank, moments)], &histograms);
            }
        }
        let again = Summaries::find(&summaries.tables()).unwrap();
        let (before, after) = (summaries.groups(), again.groups());
        assert_eq!(before.len(), 2);
        for (before, after) in before.iter().zip(&after) {
            assert_eq!((before.conditions, before.steps, &before.ranks), (after.conditions, after.steps, &after.ranks));
            assert_eq!(before.anatomy(), after.anatomy());
        }
        assert_eq!(Summaries::find(&[]), None);
        assert_eq!(Summaries::find(&Summaries::empty_tables()), Some(Summaries::default()));
    }
}
