//! The rows of `/scaling` by what makes a case: model, number of ranks, batch per rank.

use std::collections::BTreeSet;

use crate::table::Frame;

/// What makes a case: model, ranks and batch per rank.
pub type Key = (String, i64, i64);

/// The rows of `/scaling`.
pub struct Cases {
    /// The table.
    pub frame: Frame,
}

impl Cases {
    /// Model, ranks and batch per rank of a row; `None` if the row has no numbers there.
    pub fn key(&self, row: usize) -> Option<Key> {
        let (ranks, batch) = (self.frame.integer("ranks", row)?, self.frame.integer("batch_per_rank", row)?);
        Some((self.frame.text("model", row).to_owned(), ranks, batch))
    }

    /// The rows with one timing, by model, ranks and batch.
    pub fn timed(&self, timing: &str) -> Vec<(Key, usize)> {
        let rows = self.frame.rows_where(|row| self.frame.text("timing", row) == timing);
        self.keyed(rows)
    }

    /// The rows that a user's training is like: of each model the overlapped ones if there are any, else all.
    pub fn as_trained(&self) -> Vec<(Key, usize)> {
        let overlapped: BTreeSet<String> = self.timed("overlap").into_iter().map(|((model, ..), _)| model).collect();
        let mut rows = self.keyed(self.frame.rows());
        rows.retain(|((model, ..), row)| !overlapped.contains(model) || self.frame.text("timing", *row) == "overlap");
        rows
    }

    /// `rows` with their keys, in the order of the keys; rows without one are left out.
    pub fn keyed(&self, rows: Vec<usize>) -> Vec<(Key, usize)> {
        let mut rows: Vec<(Key, usize)> = rows.into_iter().filter_map(|row| Some((self.key(row)?, row))).collect();
        rows.sort();
        rows
    }

    /// `net, batch 32` where there are several models, else `batch 32`.
    pub fn label(&self, model: &str, batch: i64) -> String {
        let models: BTreeSet<&str> = self.frame.rows().iter().map(|row| self.frame.text("model", *row)).collect();
        if models.len() > 1 { format!("{model}, batch {batch}") } else { format!("batch {batch}") }
    }
}

/// `1 rank`, `2 ranks`.
pub fn ranks_label(ranks: i64) -> String {
    if ranks == 1 { "1 rank".into() } else { format!("{ranks} ranks") }
}
