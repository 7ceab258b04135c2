//! Record of a training: rows of steps and epochs and the ledger, written to and read from tables of the run file.

mod rows;
#[cfg(test)]
mod simulated;

use std::collections::BTreeMap;

use super::kept_steps::{Choice, KeptSteps, gather_summaries};
use crate::collective::{Combine, Communicator};
use crate::config::{Config, Timing};
use crate::error::Result;
use crate::metrics::{Conditions, Entry, Kind, Ledger, Part, RankStep, StepTimes, Summaries, world_sizes};
use crate::table::{Attribute, Table};
use crate::units::Second;
use rows::{CommRow, StepRow};
pub use rows::{EpochRow, Score, comm, epochs, steps};

/// Attribute of `/steps`: the number of steps done, of which not each has rows.
pub const STEPS_DONE: &str = "steps_done";

/// Measurements of a training so far. Only rank 0 holds steps, and measurements from before a resumption.
pub struct Record {
    /// Number of ranks and timing of this process.
    conditions: Conditions,
    epochs: Vec<EpochRow>,
    steps: Vec<StepRow>, // by step, then by rank
    warmup_steps: usize,
    /// First step that does not count as warm-up; caches are cold whenever a job starts or resumes.
    warm_from: usize,
    /// Steps whose rows are kept.
    kept: KeptSteps,
    /// Times of all counted steps, where not each has a row.
    summaries: Option<Summaries>,
    /// Number of steps by conditions, warm-up and those without rows included.
    counted: BTreeMap<Conditions, usize>,
    /// Sums of the parts over the steps of this rank, in the epoch of this number.
    own: (usize, [f64; StepTimes::PARTS]),
    /// Number of epochs that earlier jobs of the run have done.
    own_from: usize,
    /// Seconds of training of the epoch under way that earlier jobs have done.
    seconds_before: Second,
    /// Wall time in which the peak was measured.
    peak_seconds: Second,
    /// Ledgers from before a resumption, one per conditions, the earliest first.
    sent_before: Vec<(Conditions, Ledger)>,
}

impl Record {
    /// An empty record of a training with `steps` steps in all.
    pub fn new(config: &Config, world_size: usize, steps: usize) -> Record {
        let warmup_steps = config.metrics.warmup_steps;
        let kept = KeptSteps::new(config.metrics.step_rows, world_size, steps, config.train.epochs);
        Record {
            conditions: Conditions { world_size, is_profile: config.metrics.timing == Timing::Profile },
            epochs: Vec::new(),
            steps: Vec::new(),
            warmup_steps,
            warm_from: warmup_steps,
            summaries: (!kept.all()).then(Summaries::default),
            kept,
            counted: BTreeMap::new(),
            own: Default::default(),
            own_from: 0,
            seconds_before: 0.0,
            peak_seconds: 0.0,
            sent_before: Vec::new(),
        }
    }

    /// Continues at `step`, after `seconds` of training of the epoch under way, with the earlier [`tables`](Self::tables), which are
    /// empty where they are not known. A collective.
    ///
    /// # Errors
    /// A rank is gone.
    pub fn resume(
        &mut self,
        communicator: &Communicator,
        step: usize,
        seconds: Second,
        tables: &[Table],
    ) -> Result<()> {
        self.seconds_before = seconds;
        let before = Summaries::find(tables);
        let mut is_summarized = [f64::from(before.is_some())];
        communicator.all_reduce(Kind::Control, Combine::Max, &mut is_summarized)?;
        self.take(step, tables);
        if is_summarized[0] > 0.0 || self.summaries.is_some() {
            let of_rows = || Summaries::of_rows(self.steps.iter().map(|row| &row.of_rank));
            self.summaries = Some(before.unwrap_or_else(of_rows));
        }
        Ok(())
    }

    /// Takes the rows of `tables` over.
    fn take(&mut self, step: usize, tables: &[Table]) {
        self.warm_from = step + self.warmup_steps;
        self.epochs = epochs().find(tables);
        self.own_from = self.epochs.len();
        self.steps = steps().find(tables);
        // Files of hpml 0.1 lack the number of ranks of a step; it is the number of rows of the step.
        let counted = world_sizes(&self.steps.iter().map(|row| row.of_rank.step).collect::<Vec<_>>());
        for (row, counted) in self.steps.iter_mut().zip(counted) {
            let ranks = &mut row.of_rank.conditions.world_size;
            *ranks = if *ranks == 0 { counted } else { *ranks };
        }
        let last = self.steps.last().map_or(self.conditions, |row| row.of_rank.conditions);
        self.sent_before = Vec::new();
        for CommRow { kind, conditions, entry, steps } in comm().find(tables) {
            let conditions = if conditions.world_size == 0 { last } else { conditions };
            let rows = self.steps.iter().filter(|row| row.of_rank.rank == 0 && row.of_rank.conditions == conditions);
            self.counted.insert(conditions, steps.max(rows.count())); // earlier builds do not say how many
            let ledger = Ledger::of(|own| if own == kind { entry } else { Entry::default() });
            match self.sent_before.iter_mut().find(|(known, _)| *known == conditions) {
                Some((_, before)) => *before = before.plus(&ledger),
                None => self.sent_before.push((conditions, ledger)),
            }
        }
    }

    /// Gathers the times of the steps from `first` on over all ranks. A collective.
    ///
    /// # Errors
    /// An MPI call failed.
    pub fn add_steps(
        &mut self,
        communicator: &Communicator,
        epoch: usize,
        first: usize,
        times: &[StepTimes],
    ) -> Result<()> {
        if self.own.0 != epoch {
            self.own = (epoch, Default::default());
        }
        for (times, part) in times.iter().flat_map(|times| Part::ALL.map(|part| (times, part))) {
            self.own.1[part as usize] += f64::from(times.get(part));
        }
        *self.counted.entry(self.conditions).or_default() += times.len();
        let mut kept: Vec<usize> = (first..first + times.len()).collect();
        if let Some(summaries) = &mut self.summaries {
            let warmup = self.warm_from.saturating_sub(first).min(times.len());
            gather_summaries(communicator, summaries, self.conditions, &times[warmup..])?;
            let mut slowest: Vec<f64> = times.iter().map(|times| times.get(Part::Step).into()).collect();
            communicator.all_reduce(Kind::Metrics, Combine::Max, &mut slowest)?;
            kept = self.choose(epoch, first, &slowest);
        }
        let own: Vec<f32> = kept.iter().flat_map(|step| *times[step - first].as_array()).collect();
        let all = communicator.gather(Kind::Metrics, &own)?; // [ranks, kept steps, parts]
        self.add_rows(epoch, &kept, &all);
        Ok(())
    }

    /// Chooses which of the steps from `first` on keep rows, and removes the rows of those that keep theirs no longer.
    fn choose(&mut self, epoch: usize, first: usize, slowest_rank: &[f64]) -> Vec<usize> {
        let Choice { kept, dropped } = self.kept.choose(epoch, first, slowest_rank);
        if !dropped.is_empty() {
            self.steps.retain(|row| !dropped.contains(&(row.of_rank.step as usize)));
        }
        kept
    }

    /// Adds rows of these `steps`, with the times `all` of shape `[ranks, steps, parts]`.
    fn add_rows(&mut self, epoch: usize, steps: &[usize], all: &[f32]) {
        let ranks = all.len() / (steps.len() * StepTimes::PARTS).max(1);
        for (place, rank) in (0..steps.len()).flat_map(|place| (0..ranks).map(move |rank| (place, rank))) {
            let (at, step) = ((rank * steps.len() + place) * StepTimes::PARTS, steps[place]);
            self.steps.push(StepRow {
                epoch: epoch as i64,
                of_rank: RankStep {
                    step: step as i64,
                    conditions: self.conditions,
                    rank: rank as i64,
                    is_warmup: step < self.warm_from,
                    times: StepTimes::from_slice(&all[at..at + StepTimes::PARTS]),
                },
            });
        }
    }

    /// Adds an epoch, whose steps must have been added before.
    pub fn add_epoch(&mut self, mut row: EpochRow) {
        let epoch = row.epoch as i64;
        let of_epoch = self.steps.iter().rev().take_while(|step| step.epoch == epoch);
        if of_epoch.into_iter().any(|step| step.of_rank.conditions.world_size != self.conditions.world_size) {
            (row.images_per_second, row.flops) = (f64::NAN, f64::NAN);
        }
        self.epochs.push(row);
    }

    /// Holds the epochs of this job against `peak`, the operations per second of all ranks at most.
    pub fn set_peak(&mut self, peak: f64) {
        self.epochs[self.own_from..].iter_mut().for_each(|row| row.peak_share = 100.0 * row.flops / peak);
    }

    /// Sets how long measuring the peak took.
    pub fn peak_took(&mut self, seconds: Second) {
        self.peak_seconds = seconds;
    }

    /// Sets how long writing the run file after the last epoch took, and the checkpoint that followed.
    pub fn end_of_epoch_took(&mut self, write: Second, checkpoint: Second) {
        if let Some(row) = self.epochs.last_mut() {
            (row.write_seconds, row.checkpoint_seconds) = (write, checkpoint);
        }
    }

    /// Wall time of this job by what it was spent on.
    pub fn spent(&self) -> [(&'static str, Second); 6] {
        let sum = |seconds: fn(&EpochRow) -> Second| -> Second {
            self.epochs[self.own_from..].iter().map(seconds).filter(|seconds| seconds.is_finite()).sum()
        };
        [
            ("training", (sum(|row| row.seconds) - self.seconds_before).max(0.0)),
            ("test", sum(|row| row.test_seconds)),
            ("gathering", sum(|row| row.gather_seconds)),
            ("run file", sum(|row| row.write_seconds)),
            ("checkpoints", sum(|row| row.checkpoint_seconds)),
            ("peak", self.peak_seconds),
        ]
    }

    /// Removes and returns the last epoch.
    pub fn take_last(&mut self) -> Option<EpochRow> {
        self.epochs.pop()
    }

    /// The epochs so far.
    pub fn epochs(&self) -> &[EpochRow] {
        &self.epochs
    }

    /// Sum of one part over this rank's steps of the last epoch since the job began, in seconds.
    pub fn last_epoch(&self, part: Part) -> Second {
        self.own.1[part as usize]
    }

    /// Tables for the run file; `ledger` is that of this process.
    pub fn tables(&self, ledger: &Ledger) -> Vec<Table> {
        let ledgers = self.ledgers(ledger);
        let of_ledger = |(conditions, ledger): &(Conditions, Ledger)| {
            let (conditions, steps) = (*conditions, self.steps_under(*conditions));
            Kind::ALL.map(|kind| CommRow { kind, conditions, steps, entry: ledger.entry(kind) })
        };
        let messages: Vec<CommRow> = ledgers.iter().flat_map(of_ledger).collect();
        let mut steps = steps().table(&self.steps);
        let done = self.counted.values().sum::<usize>() as i64;
        steps.attributes.push((STEPS_DONE.to_owned(), Attribute::Int(done)));
        let tables = [steps, epochs().table(&self.epochs), comm().table(&messages)].into_iter();
        tables.chain(self.summaries.iter().flat_map(Summaries::tables)).collect()
    }

    /// Ledgers of the run, one per number of ranks and timing; `now` is that of this process.
    fn ledgers(&self, now: &Ledger) -> Vec<(Conditions, Ledger)> {
        let mut ledgers = self.sent_before.clone();
        match ledgers.iter_mut().find(|(conditions, _)| *conditions == self.conditions) {
            Some((_, before)) => *before = before.plus(now),
            None => ledgers.push((self.conditions, now.clone())),
        }
        ledgers
    }

    fn steps_under(&self, conditions: Conditions) -> usize {
        self.counted.get(&conditions).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANKS: Conditions = Conditions { world_size: 4, is_profile: false };

    fn record(world_size: usize) -> Record {
        let mut record = Record::new(&Config::default(), world_size, 100);
        (record.warmup_steps, record.warm_from) = (0, 0);
        record
    }

    /// Adds steps with zero times on all ranks of `record`, as if gathered.
    fn add_steps(record: &mut Record, epoch: i64, steps: std::ops::Range<i64>) {
        let conditions = record.conditions;
        for (step, rank) in steps.flat_map(|step| (0..conditions.world_size as i64).map(move |rank| (step, rank))) {
            let of_rank = RankStep { step, conditions, rank, is_warmup: false, times: StepTimes::default() };
            record.steps.push(StepRow { epoch, of_rank });
            *record.counted.entry(conditions).or_default() += usize::from(rank == 0);
        }
    }

    fn epoch(epoch: usize, world_size: usize) -> EpochRow {
        let result = Score { loss: 0.5, accuracy: 25.0, samples: 4 };
        let (seconds, test_seconds, images_per_second) = (2.0, 1.0, 2.0);
        EpochRow {
            epoch,
            world_size,
            train: result,
            test: result,
            seconds,
            test_seconds,
            images_per_second,
            flops: 2e9,
            peak_share: f64::NAN,
            gather_seconds: 0.5,
            write_seconds: 0.25,
            checkpoint_seconds: 0.0,
            lr: 0.1,
            loss_scale: f64::NAN,
            skipped_steps: f64::NAN,
            checksum: 7,
        }
    }

    fn gradients(bytes: u64, seconds: Second) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.record(Kind::Gradients, bytes, 0, seconds);
        ledger
    }

    #[test]
    fn after_a_resumption_on_other_ranks_nothing_is_pooled_that_does_not_belong_together() {
        let mut before = record(4);
        add_steps(&mut before, 0, 0..3);
        before.add_epoch(epoch(0, 4));
        add_steps(&mut before, 1, 3..4);
        let tables = before.tables(&gradients(4_000_000_000, 2.0));

        let mut after = record(2);
        after.take(4, &tables);
        add_steps(&mut after, 1, 4..6);
        after.add_epoch(epoch(1, 2));
        assert_eq!(after.epochs[0].images_per_second, 2.0);
        assert!(after.epochs[1].images_per_second.is_nan(), "an epoch of 4 and 2 ranks");
        let tables = after.tables(&gradients(1_000_000_000, 1.0));
        let table = |group: &str| tables.iter().find(|table| table.group == group).unwrap();
        assert_eq!(table("steps").numbers("world_size"), [vec![4.0; 16], vec![2.0; 4]].concat());
        let comm = table("comm");
        assert_eq!(comm.numbers("world_size"), [[4.0; 5], [2.0; 5]].concat());
        assert_eq!(comm.numbers("steps"), [[4.0; 5], [2.0; 5]].concat());
        let rows = [Kind::Gradients as usize, 5 + Kind::Gradients as usize];
        assert_eq!(rows.map(|row| comm.numbers("algbw")[row]), [2.0, 1.0]);
        assert_eq!(rows.map(|row| comm.numbers("busbw")[row]), [3.0, 1.0]);
        assert!(comm.numbers("busbw")[0].is_nan(), "parameters are broadcast");

        // On 4 ranks again: what was counted on 4 ranks goes on.
        let mut again = record(4);
        again.take(6, &tables);
        add_steps(&mut again, 2, 6..7);
        let tables = again.tables(&gradients(2_000_000_000, 1.0));
        let comm = tables.iter().find(|table| table.group == "comm").unwrap();
        assert_eq!(comm.numbers("steps"), [[5.0; 5], [2.0; 5]].concat());
        assert_eq!((comm.numbers("bytes")[rows[0]], comm.numbers("bytes")[rows[1]]), (6e9, 1e9));
    }

    #[test]
    fn steps_that_do_not_say_on_how_many_ranks_are_counted() {
        let mut before = record(4);
        add_steps(&mut before, 0, 0..2);
        let mut tables = before.tables(&gradients(8, 1.0));
        for table in &mut tables {
            table.columns.retain(|column| !["world_size", "profile"].contains(&column.name.as_str()));
        }
        let mut after = record(2);
        after.take(2, &tables);
        assert!(after.steps.iter().all(|row| row.of_rank.conditions == RANKS));
        assert_eq!(after.sent_before.len(), 1);
        assert_eq!(after.sent_before[0].0, RANKS);
    }

    #[test]
    fn one_rank_has_no_bandwidth() {
        let tables = record(1).tables(&Ledger::default());
        let comm = tables.iter().find(|table| table.group == "comm").unwrap();
        assert!(["algbw", "busbw"].iter().all(|name| comm.numbers(name).iter().all(|value| value.is_nan())));
    }
}
