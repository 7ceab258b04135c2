//! What a run leaves behind: rows of steps and epochs, the ledger, the checkpoint, in the form of the run file.

use crate::collective::Communicator;
use crate::config::{Config, Timing};
use crate::error::Result;
use crate::metrics::{
    Conditions, Definition, Entry, Kind, Ledger, Part, RankStep, StepTimes, algbw, all_reduce_busbw, definitions,
    world_sizes,
};
use crate::parallel::StepResult;
use crate::store::{Column, Table, Values};
use crate::units::{Second, gigabytes_per_second};

/// One epoch over all ranks.
pub struct EpochRow {
    /// From 0.
    pub epoch: usize,
    /// Ranks at its end.
    pub world_size: usize,
    /// Training samples as they went by, with the parameters of their step.
    pub train: StepResult,
    /// The test set with the parameters of the epoch's end.
    pub test: StepResult,
    /// Training, without the test.
    pub seconds: f64,
    /// The test.
    pub test_seconds: f64,
    /// Training images over all ranks per second of `seconds`; NaN where these are of several numbers of ranks.
    pub images_per_second: f64,
    /// Learning rate of the epoch's last step.
    pub lr: f64,
    /// Of the parameters, equal on all ranks.
    pub checksum: u64,
}

/// Mean loss and share of hits in per cent.
pub fn loss_and_accuracy(result: &StepResult) -> (f64, f64) {
    let samples = result.samples.max(1) as f64;
    (result.loss_sum / samples, 100.0 * result.correct as f64 / samples)
}

/// Everything measured so far. Steps, and what was measured before a resumption, are on rank 0 only.
pub struct Record {
    /// How this process measures.
    conditions: Conditions,
    epochs: Vec<EpochRow>,
    steps: Vec<StepRow>, // by step, then by rank
    warmup_steps: usize,
    /// Steps before this one are warm-up: caches are cold whenever a job starts or goes on.
    warm_from: usize,
    /// What was sent before a resumption, by how it was measured, the earliest first.
    sent_before: Vec<(Conditions, Ledger)>,
}

/// One step of one rank.
#[derive(Debug, Clone, Copy, PartialEq)]
struct StepRow {
    epoch: i64,
    of_rank: RankStep,
}

impl Record {
    /// A record of a run that has not begun.
    pub fn new(config: &Config, world_size: usize) -> Record {
        let warmup_steps = config.metrics.warmup_steps;
        Record {
            conditions: Conditions { world_size, is_profile: config.metrics.timing == Timing::Profile },
            epochs: Vec::new(),
            steps: Vec::new(),
            warmup_steps,
            warm_from: warmup_steps,
            sent_before: Vec::new(),
        }
    }

    /// Goes on at `step` with the [`tables`](Self::tables) of before; none of them where they are not known.
    pub fn resume(&mut self, step: usize, tables: &[Table]) {
        self.warm_from = step + self.warmup_steps;
        let table = |group: &str| tables.iter().find(|table| table.group == group);
        self.steps = table("steps").map(step_rows).unwrap_or_default();
        self.epochs = table("epochs").map(epoch_rows).unwrap_or_default();
        let last = self.steps.last().map_or(self.conditions, |row| row.of_rank.conditions);
        self.sent_before = table("comm").map(|table| ledgers(table, last)).unwrap_or_default();
    }

    /// Gathers the times of the steps from `first` on from all ranks; a collective.
    pub fn add_steps(
        &mut self,
        communicator: &Communicator,
        epoch: usize,
        first: usize,
        times: &[StepTimes],
    ) -> Result<()> {
        let own: Vec<f32> = times.iter().flat_map(|time| *time.as_array()).collect();
        let all = communicator.gather(Kind::Metrics, &own)?; // [ranks, steps, parts]
        let (steps, ranks) = (times.len(), all.len() / own.len().max(1));
        for (step, rank) in (0..steps).flat_map(|step| (0..ranks).map(move |rank| (step, rank))) {
            let at = (rank * steps + step) * StepTimes::PARTS;
            self.steps.push(StepRow {
                epoch: epoch as i64,
                of_rank: RankStep {
                    step: (first + step) as i64,
                    conditions: self.conditions,
                    rank: rank as i64,
                    is_warmup: first + step < self.warm_from,
                    times: StepTimes::from_slice(&all[at..at + StepTimes::PARTS]),
                },
            });
        }
        Ok(())
    }

    /// Takes an epoch in, after its steps.
    pub fn add_epoch(&mut self, mut row: EpochRow) {
        let epoch = row.epoch as i64;
        let of_epoch = self.steps.iter().rev().take_while(|step| step.epoch == epoch);
        if of_epoch.into_iter().any(|step| step.of_rank.conditions.world_size != self.conditions.world_size) {
            row.images_per_second = f64::NAN;
        }
        self.epochs.push(row);
    }

    /// Takes the last epoch out.
    pub fn take_last(&mut self) -> Option<EpochRow> {
        self.epochs.pop()
    }

    /// The epochs so far.
    pub fn epochs(&self) -> &[EpochRow] {
        &self.epochs
    }

    /// Seconds of one part in the last epoch's steps on rank 0; 0 on the others.
    pub fn last_epoch(&self, part: Part) -> Second {
        let last = self.steps.last().map(|row| row.epoch);
        let rows = self.steps.iter().rev().take_while(|row| Some(row.epoch) == last).map(|row| row.of_rank);
        rows.filter(|row| row.rank == 0).map(|row| f64::from(row.times.get(part))).sum()
    }

    /// The tables of the run file; `ledger` is this process's.
    pub fn tables(&self, ledger: &Ledger) -> Vec<Table> {
        vec![self.step_table(), self.epoch_table(), self.comm(ledger)]
    }

    fn step_table(&self) -> Table {
        let integers =
            |value: &dyn Fn(&RankStep) -> i64| Values::I64(self.steps.iter().map(|row| value(&row.of_rank)).collect());
        let epochs = Values::I64(self.steps.iter().map(|row| row.epoch).collect());
        let mut columns = vec![
            column("global_step", "1", "optimiser step, from 0", integers(&|row| row.step)),
            column("epoch", "1", "epoch, from 0", epochs),
            column("rank", "1", "MPI rank", integers(&|row| row.rank)),
            Column::of(&definitions::WORLD_SIZE, integers(&|row| row.conditions.world_size as i64)),
            Column::of(&definitions::PROFILE, integers(&|row| i64::from(row.conditions.is_profile))),
            Column::of(&definitions::WARMUP, integers(&|row| i64::from(row.is_warmup))),
        ];
        for part in Part::ALL {
            let values = Values::F32(self.steps.iter().map(|row| row.of_rank.times.get(part)).collect());
            columns.push(Column::of(part.definition(), values));
        }
        Table::new("steps", "row", columns)
    }

    fn epoch_table(&self) -> Table {
        let integers = |value: &dyn Fn(&EpochRow) -> i64| Values::I64(self.epochs.iter().map(value).collect());
        let texts = |value: &dyn Fn(&EpochRow) -> String| Values::Text(self.epochs.iter().map(value).collect());
        let float = |definition: &Definition, value: &dyn Fn(&EpochRow) -> f64| {
            Column::of(definition, Values::F64(self.epochs.iter().map(value).collect()))
        };
        let columns = vec![
            column("epoch", "1", "epoch, from 0", integers(&|row| row.epoch as i64)),
            column("world_size", "1", "ranks at the epoch's end", integers(&|row| row.world_size as i64)),
            float(&definitions::TRAIN_LOSS, &|row| loss_and_accuracy(&row.train).0),
            float(&definitions::TRAIN_ACCURACY, &|row| loss_and_accuracy(&row.train).1),
            float(&definitions::TEST_LOSS, &|row| loss_and_accuracy(&row.test).0),
            float(&definitions::TEST_ACCURACY, &|row| loss_and_accuracy(&row.test).1),
            column("train_samples", "1", "training samples over all ranks", integers(&|row| row.train.samples as i64)),
            column("test_samples", "1", "test samples over all ranks", integers(&|row| row.test.samples as i64)),
            float(&definitions::TRAIN_SECONDS, &|row| row.seconds),
            float(&definitions::TEST_SECONDS, &|row| row.test_seconds),
            float(&definitions::IMAGES_PER_SECOND, &|row| row.images_per_second),
            float(&definitions::EPOCH_LR, &|row| row.lr),
            column(
                "parameter_checksum",
                "1",
                "blake3 (64 bits) of the parameters, equal on all ranks",
                texts(&|row| format!("{:016x}", row.checksum)),
            ),
        ];
        Table::new("epochs", "epoch", columns)
    }

    /// The ledger of each number of ranks and timing that there was, `now` being this process's.
    fn ledgers(&self, now: &Ledger) -> Vec<(Conditions, Ledger)> {
        let mut ledgers = self.sent_before.clone();
        match ledgers.iter_mut().find(|(conditions, _)| *conditions == self.conditions) {
            Some((_, before)) => *before = before.plus(now),
            None => ledgers.push((self.conditions, now.clone())),
        }
        ledgers
    }

    fn steps_under(&self, conditions: Conditions) -> usize {
        let own = self.steps.iter().filter(|row| row.of_rank.conditions == conditions && row.of_rank.rank == 0);
        own.count()
    }

    /// `/comm`: a row a kind, for each number of ranks and timing that there was.
    fn comm(&self, ledger: &Ledger) -> Table {
        let ledgers = self.ledgers(ledger);
        let rows: Vec<(Conditions, Kind, Entry)> = ledgers
            .iter()
            .flat_map(|(conditions, ledger)| Kind::ALL.map(|kind| (*conditions, kind, ledger.entry(kind))))
            .collect();
        let integers = |definition: &Definition, value: &dyn Fn(Conditions, &Entry) -> i64| {
            let values = rows.iter().map(|(conditions, _, entry)| value(*conditions, entry));
            Column::of(definition, Values::I64(values.collect()))
        };
        let bandwidth = |definition: &Definition, value: &dyn Fn(Conditions, &Entry) -> f64| {
            let value = |(conditions, kind, entry): &(Conditions, Kind, Entry)| match kind {
                Kind::Gradients => gigabytes_per_second(value(*conditions, entry)),
                _ => f64::NAN, // not all of them all-reduces
            };
            Column::of(definition, Values::F64(rows.iter().map(value).collect()))
        };
        let kinds = Values::Text(rows.iter().map(|(_, kind, _)| kind.as_str().to_owned()).collect());
        let columns = vec![
            column("kind", "1", "what the messages are for", kinds),
            integers(&definitions::WORLD_SIZE, &|conditions, _| conditions.world_size as i64),
            integers(&definitions::PROFILE, &|conditions, _| i64::from(conditions.is_profile)),
            integers(&definitions::LEDGER_STEPS, &|conditions, _| self.steps_under(conditions) as i64),
            integers(&definitions::MESSAGES, &|_, entry| entry.messages as i64),
            integers(&definitions::BYTES, &|_, entry| entry.bytes as i64),
            integers(&definitions::SENT_BYTES, &|_, entry| entry.sent as i64),
            Column::of(&definitions::SECONDS, Values::F64(rows.iter().map(|(_, _, entry)| entry.seconds).collect())),
            bandwidth(&definitions::ALGBW, &|_, entry| algbw(entry.bytes, entry.seconds)),
            bandwidth(&definitions::BUSBW, &|conditions, entry| {
                all_reduce_busbw(entry.bytes, entry.seconds, conditions.world_size)
            }),
        ];
        Table::new("comm", "kind", columns)
    }
}

/// The rows of `/steps`, as [`Record::tables`] wrote them. Those of older files do not say how many ranks there were.
fn step_rows(table: &Table) -> Vec<StepRow> {
    let integers = |name: &str| table.numbers(name).into_iter().map(|value| value as i64).collect::<Vec<i64>>();
    let [step, epoch, rank, warmup] = ["global_step", "epoch", "rank", "warmup"].map(integers);
    let (ranks, profile) = (integers(definitions::WORLD_SIZE.name), integers(definitions::PROFILE.name));
    let parts = Part::ALL.map(|part| table.numbers(part.as_str()));
    let counted = world_sizes(&step);
    let at = |values: &[i64], row: usize| values.get(row).copied().unwrap_or_default();
    let times = |row: usize| parts.each_ref().map(|part| part.get(row).copied().unwrap_or_default() as f32);
    (0..step.len())
        .map(|row| StepRow {
            epoch: at(&epoch, row),
            of_rank: RankStep {
                step: step[row],
                conditions: Conditions {
                    world_size: ranks.get(row).map_or(counted[row], |ranks| *ranks as usize),
                    is_profile: at(&profile, row) != 0,
                },
                rank: at(&rank, row),
                is_warmup: at(&warmup, row) != 0,
                times: StepTimes::from_slice(&times(row)),
            },
        })
        .collect()
}

/// The rows of `/epochs`; sums are made of means and counts again, which may cost a last digit.
fn epoch_rows(table: &Table) -> Vec<EpochRow> {
    let checksums = match table.column("parameter_checksum").map(|column| &column.values) {
        Some(Values::Text(texts)) => texts.clone(),
        _ => Vec::new(),
    };
    let at = |name: &str, row: usize| table.numbers(name).get(row).copied().unwrap_or_default();
    let result = |which: &str, row: usize| {
        let samples = at(&format!("{which}_samples"), row);
        StepResult {
            loss_sum: at(&format!("{which}_loss"), row) * samples,
            correct: (at(&format!("{which}_accuracy"), row) * samples / 100.0).round() as usize,
            samples: samples as usize,
        }
    };
    (0..table.numbers("epoch").len())
        .map(|row| EpochRow {
            epoch: at("epoch", row) as usize,
            world_size: at("world_size", row) as usize,
            train: result("train", row),
            test: result("test", row),
            seconds: at("seconds", row),
            test_seconds: at("test_seconds", row),
            images_per_second: at("images_per_second", row),
            lr: at("lr", row),
            checksum: checksums.get(row).and_then(|text| u64::from_str_radix(text, 16).ok()).unwrap_or_default(),
        })
        .collect()
}

/// What `/comm` counted, by how it was measured: of a file that does not say, as the `last` step before.
fn ledgers(table: &Table, last: Conditions) -> Vec<(Conditions, Ledger)> {
    let numbers = |name: &str| table.numbers(name);
    let [messages, bytes, sent, seconds] = ["messages", "bytes", "sent_bytes", "seconds"].map(numbers);
    let (ranks, profile) = (numbers(definitions::WORLD_SIZE.name), numbers(definitions::PROFILE.name));
    let at = |values: &[f64], row: usize| values.get(row).copied().unwrap_or_default();
    // A row a kind, in their order.
    let blocks = messages.len().div_ceil(Kind::ALL.len());
    let block = |block: usize| {
        let first = block * Kind::ALL.len();
        let conditions = match (ranks.get(first), profile.get(first)) {
            (Some(ranks), Some(profile)) => Conditions { world_size: *ranks as usize, is_profile: *profile != 0.0 },
            _ => last,
        };
        let entry = |kind: Kind| {
            let row = first + kind as usize;
            Entry {
                messages: at(&messages, row) as u64,
                bytes: at(&bytes, row) as u64,
                sent: at(&sent, row) as u64,
                seconds: at(&seconds, row),
            }
        };
        (conditions, Ledger::of(entry))
    };
    (0..blocks).map(block).collect()
}

fn column(name: &'static str, units: &'static str, long_name: &'static str, values: Values) -> Column {
    Column::new(name, units, long_name, values)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANKS: Conditions = Conditions { world_size: 4, is_profile: false };

    fn record(world_size: usize) -> Record {
        let mut record = Record::new(&Config::default(), world_size);
        (record.warmup_steps, record.warm_from) = (0, 0);
        record
    }

    /// Takes in steps of `record`'s own ranks, as gathered.
    fn add_steps(record: &mut Record, epoch: i64, steps: std::ops::Range<i64>) {
        let conditions = record.conditions;
        for (step, rank) in steps.flat_map(|step| (0..conditions.world_size as i64).map(move |rank| (step, rank))) {
            let of_rank = RankStep { step, conditions, rank, is_warmup: false, times: StepTimes::default() };
            record.steps.push(StepRow { epoch, of_rank });
        }
    }

    fn epoch(epoch: usize, world_size: usize) -> EpochRow {
        let result = StepResult { loss_sum: 2.0, correct: 1, samples: 4 };
        let (seconds, test_seconds, images_per_second) = (2.0, 1.0, 2.0);
        EpochRow {
            epoch,
            world_size,
            train: result,
            test: result,
            seconds,
            test_seconds,
            images_per_second,
            lr: 0.1,
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
        after.resume(4, &tables);
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

        // On 4 ranks again, their counts go on.
        let mut again = record(4);
        again.resume(6, &tables);
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
        after.resume(2, &tables);
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
