//! Whether the ranks still hold the same network: how far their parameters lie apart, and how good each one's is. Costs
//! messages and time, so it is measured where `metrics.spread_steps` asks for it.

use crate::collective::{Combine, Communicator};
use crate::config::Config;
use crate::error::Result;
use crate::metrics::Kind;
use crate::parallel::{FlatState, StepResult};
use crate::store::{Column, Table, Values};

use super::record::loss_and_accuracy;
use super::sampling::SEED_STRIDE;

/// The seed of this rank's first parameters: `run.seed`, unless the ranks are to have different ones.
pub fn model_seed(config: &Config, rank: usize) -> u64 {
    if config.parallel.same_seed { config.run.seed } else { config.run.seed.wrapping_add(SEED_STRIDE * rank as u64) }
}

/// What was measured so far.
pub struct Divergence {
    every: usize,
    spreads: Vec<Spread>,
    ranks: Vec<RankRow>,
}

/// After a step, over all ranks.
struct Spread {
    epoch: usize,
    /// Steps done.
    step: usize,
    parameters: f64,
    buffers: f64,
}

/// One rank at an epoch's end.
struct RankRow {
    epoch: usize,
    rank: usize,
    test_loss: f64,
    test_accuracy: f64,
    distance: f64,
}

impl Divergence {
    /// Nothing measured yet; `every` so many steps (`metrics.spread_steps`), 0: never.
    pub fn new(every: usize) -> Divergence {
        Divergence { every, spreads: Vec::new(), ranks: Vec::new() }
    }

    /// Goes on with the [`tables`](Self::tables) of before.
    pub fn resume(&mut self, tables: &[Table]) {
        let table = |group: &str| tables.iter().find(|table| table.group == group);
        let spread = |[epoch, step, parameters, buffers]: [f64; 4]| Spread {
            epoch: epoch as usize,
            step: step as usize,
            parameters,
            buffers,
        };
        if let Some(table) = table("spread") {
            let rows = table.rows(["epoch", "steps_done", "parameter_spread", "buffer_spread"]);
            self.spreads = rows.into_iter().map(spread).collect();
        }
        let rank = |[epoch, rank, test_loss, test_accuracy, distance]: [f64; 5]| RankRow {
            epoch: epoch as usize,
            rank: rank as usize,
            test_loss,
            test_accuracy,
            distance,
        };
        if let Some(table) = table("ranks") {
            let rows = table.rows(["epoch", "rank", "test_loss", "test_accuracy", "parameter_distance"]);
            self.ranks = rows.into_iter().map(rank).collect();
        }
    }

    /// Whether anything is measured at all.
    pub fn is_measured(&self) -> bool {
        self.every > 0
    }

    /// Measures if it is time to, after so many `steps` of the training; a collective.
    pub fn after_step(&mut self, ranks: &Communicator, state: &FlatState, epoch: usize, steps: usize) -> Result<()> {
        if self.every == 0 || !steps.is_multiple_of(self.every) {
            return Ok(());
        }
        let mut greatest = [distance(ranks, &state.parameters.read())?, distance(ranks, &state.buffers.read())?];
        ranks.all_reduce(Kind::Metrics, Combine::Max, &mut greatest)?;
        self.spreads.push(Spread { epoch, step: steps, parameters: greatest[0], buffers: greatest[1] });
        Ok(())
    }

    /// Takes in what this rank's own network reached on the whole test set; a collective.
    pub fn after_epoch(
        &mut self,
        ranks: &Communicator,
        state: &FlatState,
        epoch: usize,
        test: &StepResult,
    ) -> Result<()> {
        let (loss, accuracy) = loss_and_accuracy(test);
        let own = [loss, accuracy, distance(ranks, &state.parameters.read())?];
        for (rank, row) in ranks.all_gather(Kind::Metrics, &own)?.chunks(own.len()).enumerate() {
            self.ranks.push(RankRow { epoch, rank, test_loss: row[0], test_accuracy: row[1], distance: row[2] });
        }
        Ok(())
    }

    /// `/spread`, a row a measured step, and `/ranks`, a row an epoch and rank; none if nothing is measured.
    pub fn tables(&self) -> Vec<Table> {
        if self.every == 0 {
            return Vec::new();
        }
        let integers = |values: Vec<usize>| Values::I64(values.into_iter().map(|value| value as i64).collect());
        let (spreads, ranks) = (&self.spreads, &self.ranks);
        let apart = "greatest distance of a rank's parameters from the mean over the ranks, over the mean's norm";
        let statistics = "the same of batch norm's running statistics";
        let spread = vec![
            Column::new("epoch", "1", "epoch, from 0", integers(spreads.iter().map(|row| row.epoch).collect())),
            Column::new(
                "steps_done",
                "1",
                "optimiser steps before",
                integers(spreads.iter().map(|row| row.step).collect()),
            ),
            Column::new(
                "parameter_spread",
                "1",
                apart,
                Values::F64(spreads.iter().map(|row| row.parameters).collect()),
            ),
            Column::new("buffer_spread", "1", statistics, Values::F64(spreads.iter().map(|row| row.buffers).collect())),
        ];
        let float = |value: fn(&RankRow) -> f64| Values::F64(ranks.iter().map(value).collect());
        let rank = vec![
            Column::new("epoch", "1", "epoch, from 0", integers(ranks.iter().map(|row| row.epoch).collect())),
            Column::new("rank", "1", "MPI rank", integers(ranks.iter().map(|row| row.rank).collect())),
            Column::new("test_loss", "1", "of this rank's network on the whole test set", float(|row| row.test_loss)),
            Column::new(
                "test_accuracy",
                "percent",
                "of this rank's network on the whole test set",
                float(|row| row.test_accuracy),
            ),
            Column::new(
                "parameter_distance",
                "1",
                "of its parameters from the mean over the ranks, over the mean's norm",
                float(|row| row.distance),
            ),
        ];
        vec![Table::new("spread", "row", spread), Table::new("ranks", "row", rank)]
    }
}

/// Euclidean distance of this rank's `values` from their mean over the ranks, over the mean's norm; 0 of nothing, and where
/// the bits are equal.
fn distance(ranks: &Communicator, values: &[f32]) -> Result<f64> {
    if values.is_empty() {
        return Ok(0.0);
    }
    // From rank 0's instead of the mean itself, so that equal values give exactly 0 whatever their sum rounds to.
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
