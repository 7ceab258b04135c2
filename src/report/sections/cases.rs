//! Rows of `/scaling`, each identified by its case: model, number of ranks, batch per rank.

use std::collections::BTreeSet;

use crate::table::Frame;
use crate::units::counted;

/// Identity of a case: model, number of ranks, batch per rank.
pub type Key = (String, i64, i64);

/// The table `/scaling` with access by case.
pub struct Cases {
    /// The table as read from the run file.
    pub frame: Frame,
}

impl Cases {
    /// Model, ranks and batch per rank of a row; `None` if one of the numbers is missing.
    pub fn key(&self, row: usize) -> Option<Key> {
        let (ranks, batch) = (self.frame.integer("ranks", row)?, self.frame.integer("batch_per_rank", row)?);
        Some((self.frame.text("model", row).to_owned(), ranks, batch))
    }

    /// Rows measured with `timing`, sorted by model, ranks and batch.
    pub fn timed(&self, timing: &str) -> Vec<(Key, usize)> {
        let rows = self.frame.rows_where(|row| self.frame.text("timing", row) == timing);
        self.keyed(rows)
    }

    /// Rows that resemble a user's training: for each model those with overlap timing or, without any, all of them.
    pub fn as_trained(&self) -> Vec<(Key, usize)> {
        let overlapped: BTreeSet<String> = self.timed("overlap").into_iter().map(|((model, ..), _)| model).collect();
        let mut rows = self.keyed(self.frame.rows());
        rows.retain(|((model, ..), row)| !overlapped.contains(model) || self.frame.text("timing", *row) == "overlap");
        rows
    }

    /// Pairs each row with its key, sorted by key; rows without a key are left out.
    pub fn keyed(&self, rows: Vec<usize>) -> Vec<(Key, usize)> {
        let mut rows: Vec<(Key, usize)> = rows.into_iter().filter_map(|row| Some((self.key(row)?, row))).collect();
        rows.sort();
        rows
    }

    /// Names of the models; each has its own panel, since their times differ by orders of magnitude.
    pub fn models(&self) -> BTreeSet<&str> {
        self.frame.rows().iter().map(|row| self.frame.text("model", *row)).collect()
    }

    /// Interval of `images_per_second`, `speedup` or `efficiency` in a row, from the 95 % interval of the median step; the two ratios
    /// take the outer ends of two such intervals, which hold with at least 90 %. `None` where the file knows none.
    pub fn interval(&self, column: &str, row: usize) -> Option<(f64, f64)> {
        let number = |name: &str, row: usize| Some(self.frame.number(name, row)).filter(|value| *value > 0.0);
        let (step, low, high) = (number("step", row)?, number("step_low", row)?, number("step_high", row)?);
        let value = number(column, row)?;
        if column == "images_per_second" {
            return Some((value * step / high, value * step / low));
        }
        let (model, ranks, batch) = self.key(row)?;
        let rows = self.as_trained();
        let (_, first) = rows.iter().find(|(key, _)| ranks > 1 && *key == (model.clone(), 1, batch))?;
        let work = value * step / number("step", *first)?;
        Some((work * number("step_low", *first)? / high, work * number("step_high", *first)? / low))
    }
}

/// What the error bars of [`Cases::interval`] mean, for notes.
pub const INTERVALS: &str = "Error bars: from the 95 % interval of the median step";

/// What the error bars of a ratio to one rank mean, for notes.
pub const RATIO_INTERVALS: &str =
    "Error bars: outer ends of the 95 % intervals of both median steps, together at least 90 %";

/// Text for a number of ranks: `1 rank`, `2 ranks`.
pub fn ranks_label(ranks: i64) -> String {
    counted(usize::try_from(ranks).unwrap_or(0), "rank")
}
