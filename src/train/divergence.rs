//! Divergence of the ranks: the distance between their parameters, and the accuracy of each rank's network. It costs messages
//! and time, so it is measured only with `metrics.spread_steps`.

use crate::collective::{Combine, Communicator};
use crate::config::Config;
use crate::error::Result;
use crate::metrics::{Kind, definitions};
use crate::parallel::FlatState;
use crate::table::{Schema, Table};

use super::record::Score;
use super::sampling::SEED_STRIDE;

/// Seed of this rank's initial parameters: `run.seed`, or one of its own if `parallel.same_seed` is off.
pub fn model_seed(config: &Config, rank: usize) -> u64 {
    if config.parallel.same_seed { config.run.seed } else { config.run.seed.wrapping_add(SEED_STRIDE * rank as u64) }
}

/// Measurements of the distances between the ranks' networks.
pub struct Divergence {
    every: usize,
    spreads: Vec<Spread>,
    ranks: Vec<RankRow>,
}

/// Divergence of the ranks after one step.
#[derive(Default)]
pub struct Spread {
    epoch: usize,
    /// Number of steps done.
    step: usize,
    parameters: f64,
    buffers: f64,
}

/// The network of one rank at an epoch's end.
#[derive(Default)]
pub struct RankRow {
    epoch: usize,
    rank: usize,
    test_loss: f64,
    test_accuracy: f64,
    distance: f64,
}

/// Columns of `/spread`, which has one row per measured step.
pub fn spread() -> Schema<Spread> {
    let greatest = "greatest distance of a rank's parameters from the mean over the ranks / norm of that mean";
    let buffers =
        "greatest distance of a rank's batch-norm statistics from the mean over the ranks / norm of that mean";
    Schema::new("spread", "row")
        .count(&definitions::EPOCH, |row: &Spread| row.epoch)
        .put(|row, value| row.epoch = value as usize)
        .count(("steps_done", "1", "optimizer steps done before"), |row| row.step)
        .put(|row, value| row.step = value as usize)
        .float(("parameter_spread", "1", greatest), |row| row.parameters)
        .put(|row, value| row.parameters = value)
        .float(("buffer_spread", "1", buffers), |row| row.buffers)
        .put(|row, value| row.buffers = value)
}

/// Columns of `/ranks`, which has one row per epoch and rank.
pub fn ranks() -> Schema<RankRow> {
    Schema::new("ranks", "row")
        .count(&definitions::EPOCH, |row: &RankRow| row.epoch)
        .put(|row, value| row.epoch = value as usize)
        .count(&definitions::RANK, |row| row.rank)
        .put(|row, value| row.rank = value as usize)
        .float(("test_loss", "1", "mean cross-entropy of this rank's network on the whole test set"), |row| {
            row.test_loss
        })
        .put(|row, value| row.test_loss = value)
        .float(
            ("test_accuracy", "percent", "share of correct predictions of this rank's network on the whole test set"),
            |row| row.test_accuracy,
        )
        .put(|row, value| row.test_accuracy = value)
        .float(
            (
                "parameter_distance",
                "1",
                "distance of this rank's parameters from the mean over the ranks / norm of that mean",
            ),
            |row| row.distance,
        )
        .put(|row, value| row.distance = value)
}

impl Divergence {
    /// A divergence without measurements; it measures every `every` steps (`metrics.spread_steps`), never if 0.
    pub fn new(every: usize) -> Divergence {
        Divergence { every, spreads: Vec::new(), ranks: Vec::new() }
    }

    /// Continues with the earlier [`tables`](Self::tables).
    pub fn resume(&mut self, tables: &[Table]) {
        self.spreads = spread().find(tables);
        self.ranks = ranks().find(tables);
    }

    /// Whether the divergence is measured at all.
    pub fn is_measured(&self) -> bool {
        self.every > 0
    }

    /// Measures after `steps` steps of the training if `metrics.spread_steps` divides them. A collective.
    ///
    /// # Errors
    /// An MPI call failed.
    pub fn after_step(&mut self, ranks: &Communicator, state: &FlatState, epoch: usize, steps: usize) -> Result<()> {
        if self.every == 0 || !steps.is_multiple_of(self.every) {
            return Ok(());
        }
        let mut greatest = [distance(ranks, &state.parameters.read())?, distance(ranks, &state.buffers.read())?];
        ranks.all_reduce(Kind::Metrics, Combine::Max, &mut greatest)?;
        self.spreads.push(Spread { epoch, step: steps, parameters: greatest[0], buffers: greatest[1] });
        Ok(())
    }

    /// Adds the test result and the distance of each rank's own network. A collective.
    ///
    /// # Errors
    /// An MPI call failed.
    pub fn after_epoch(&mut self, ranks: &Communicator, state: &FlatState, epoch: usize, test: Score) -> Result<()> {
        let own = [test.loss, test.accuracy, distance(ranks, &state.parameters.read())?];
        for (rank, row) in ranks.all_gather(Kind::Metrics, &own)?.chunks(own.len()).enumerate() {
            self.ranks.push(RankRow { epoch, rank, test_loss: row[0], test_accuracy: row[1], distance: row[2] });
        }
        Ok(())
    }

    /// The tables `/spread` and `/ranks`; none if the divergence is not measured.
    pub fn tables(&self) -> Vec<Table> {
        match self.every {
            0 => Vec::new(),
            _ => vec![spread().table(&self.spreads), ranks().table(&self.ranks)],
        }
    }
}

/// Euclidean distance of this rank's `values` from their mean over the ranks / norm of that mean; 0 for no values and for values
/// equal to the last bit.
fn distance(ranks: &Communicator, values: &[f32]) -> Result<f64> {
    if values.is_empty() {
        return Ok(0.0);
    }
    // Differences from rank 0's values, not from the mean: equal values then give exactly 0 whatever their sum rounds to.
    let mut first = values.to_vec();
    ranks.broadcast(Kind::Metrics, &mut first)?;
    let mut mean: Vec<f64> = values.iter().zip(&first).map(|(own, first)| f64::from(own - first)).collect();
    let own = mean.clone();
    ranks.all_reduce(Kind::Metrics, Combine::Sum, &mut mean)?;
    let count = ranks.size() as f64;
    let (mut apart, mut norm) = (0.0, 0.0);
    for ((own, sum), first) in own.into_iter().zip(mean).zip(first) {
        apart += (own - sum / count).powi(2);
        norm += (f64::from(first) + sum / count).powi(2);
    }
    Ok(if apart == 0.0 { 0.0 } else { (apart / norm).sqrt() })
}
