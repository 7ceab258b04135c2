//! Thousands of ranks in one process: what rank 0 records, writes and reports of them, without MPI and without training.

use std::path::Path;

use super::{EpochRow, Record};
use crate::config::Config;
use crate::metrics::{Ledger, Part, RankSummary, StepTimes};
use crate::report;
use crate::store::{FileKind, Identity, RunFile, read_table, table_names};

/// Ranks and steps, unless `HPML_SIMULATED_SIZE=RANKS,STEPS` gives others.
const SIZE: [usize; 2] = [4096, 100_000];
const EPOCHS: usize = 20;
/// The slow rank, where there are as many.
const SLOW: usize = 700;

/// Times of a step: about 100 ms, five times as much own work on the slow rank.
fn times(rank: usize, step: usize) -> StepTimes {
    let jitter = 1.0 + 0.1 * ((rank * 31 + step * 17) % 23) as f64 / 23.0;
    let own = if rank == SLOW { 5.0 } else { 1.0 };
    let mut times = StepTimes::default();
    for (part, seconds) in
        [(Part::Data, 0.001), (Part::Forward, 0.02), (Part::Backward, 0.05), (Part::Optimizer, 0.002)]
    {
        times.set(part, seconds * own * jitter);
    }
    times.set(Part::CommExposed, 0.4 - 0.073 * own);
    times.set(Part::Step, 0.4 * jitter);
    times
}

impl Record {
    /// What [`add_steps`](Self::add_steps) does on rank 0, with the summaries of all ranks and `times(rank, step)` instead of messages;
    /// `slowest` has the slowest rank's time of each step.
    fn add_simulated(
        &mut self,
        epoch: usize,
        first: usize,
        slowest: &[f64],
        ranks: impl Iterator<Item = RankSummary>,
        times: &dyn Fn(usize, usize) -> StepTimes,
    ) {
        let summaries = self.summaries.as_mut().expect("too many steps for a row each");
        let mut world_size = 0;
        for (rank, RankSummary { moments, histograms }) in ranks.enumerate() {
            summaries.add(self.conditions, [(rank as i64, moments)], &histograms);
            world_size = rank + 1;
        }
        *self.counted.entry(self.conditions).or_default() += slowest.len();
        let kept = self.choose(epoch, first, slowest);
        let rows = (0..world_size).flat_map(|rank| kept.iter().map(move |step| (rank, *step)));
        let all: Vec<f32> = rows.flat_map(|(rank, step)| *times(rank, step).as_array()).collect();
        self.add_rows(epoch, &kept, &all);
    }
}

/// Ranks and steps to simulate.
fn size() -> [usize; 2] {
    let given = std::env::var("HPML_SIMULATED_SIZE").ok();
    given.map_or(SIZE, |text| {
        let mut numbers = text.split(',').map(|number| number.parse().expect("RANKS,STEPS"));
        [(); 2].map(|()| numbers.next().expect("RANKS,STEPS"))
    })
}

/// Trains on paper and writes the run file after each epoch. Returns the greatest number of seconds that a write took.
fn simulate(out: &Path, [ranks, steps]: [usize; 2]) -> f64 {
    let steps_per_epoch = steps / EPOCHS;
    let mut config = Config::default();
    config.train.epochs = EPOCHS;
    let mut record = Record::new(&config, ranks, steps);
    let identity = Identity::new(FileKind::Training);
    let mut file = RunFile::create(out, false, identity, &config, Vec::new(), Vec::new()).unwrap();
    let mut longest: f64 = 0.0;
    for epoch in 0..EPOCHS {
        let first = epoch * steps_per_epoch;
        let slowest: Vec<f64> =
            (0..steps_per_epoch).map(|step| times(SLOW, first + step).get(Part::Step).into()).collect();
        // A rank's summary has the same size for any number of steps: few are enough here.
        let of_rank =
            |rank: usize| RankSummary::of(&[times(rank, first), times(rank, first + 1), times(rank, first + 2)]);
        record.add_simulated(epoch, first, &slowest, (0..ranks).map(of_rank), &times);
        record.add_epoch(EpochRow { epoch, world_size: ranks, ..EpochRow::default() });
        let started = std::time::Instant::now();
        file.flush(&record.tables(&Ledger::default()), None).unwrap();
        longest = longest.max(started.elapsed().as_secs_f64());
    }
    longest
}

/// With `HPML_SIMULATED=FILE.h5` the run file stays there, for measurements.
#[test]
#[allow(clippy::print_stderr)] // the measurement
fn four_thousand_ranks_and_a_hundred_thousand_steps_fit_into_a_small_file_that_names_the_slow_rank() {
    let folder = tempfile::tempdir().unwrap();
    let out = std::env::var_os("HPML_SIMULATED").map_or(folder.path().join("run.h5"), Into::into);
    let (size, started) = (size(), std::time::Instant::now());
    let longest = simulate(&out, size);
    let bytes = std::fs::metadata(&out).unwrap().len();
    let seconds = started.elapsed().as_secs_f64();
    eprintln!("{size:?} ranks, steps: {seconds:.2} s, {} kB, at most {longest:.2} s per write", bytes / 1000);
    assert!(bytes < 200_000_000, "{bytes} bytes");
    let rows = read_table(&out, "steps").unwrap().len();
    assert!(rows <= Config::default().metrics.step_rows + EPOCHS * size[0], "{rows} rows");
    if size != SIZE {
        return;
    }
    let tables: Vec<_> = table_names(&out).unwrap().iter().map(|name| read_table(&out, name).unwrap()).collect();
    let shown = report::tables(None, &tables, &["steps-anatomy", "slow-ranks"]);
    assert!(
        shown.contains("1 of 4096 ranks at 1.2 times the median") && shown.contains("4096  overlap   700"),
        "{shown}"
    );
}
