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

    /// Legend text of a model and batch: `net, batch 32` if the table has several models, else `batch 32`.
    pub fn label(&self, model: &str, batch: i64) -> String {
        let models: BTreeSet<&str> = self.frame.rows().iter().map(|row| self.frame.text("model", *row)).collect();
        if models.len() > 1 { format!("{model}, batch {batch}") } else { format!("batch {batch}") }
    }
}

/// Text for a number of ranks: `1 rank`, `2 ranks`.
pub fn ranks_label(ranks: i64) -> String {
    counted(usize::try_from(ranks).unwrap_or(0), "rank")
}
