//! Rows of `/scaling`, one per case, computed from step times. Pure arithmetic.

use crate::metrics::{
    self, Part, StepTimes, algbw, all_reduce_busbw, all_reduce_volume, busbw_share, definitions, median_interval,
};
use crate::table::{Schema, Table};
use crate::units::{Bytes, Second, gigabytes_per_second};

use super::Case;
use super::visit::GpuUse;

/// State of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Measured.
    Ok,
    /// Out of memory on a rank.
    OutOfMemory,
    /// Not visited yet.
    Pending,
}

impl Status {
    /// Name in the run file.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::OutOfMemory => "out_of_memory",
            Status::Pending => "pending",
        }
    }
}

/// Measurements of one case.
#[derive(Debug, Clone)]
pub struct Measurement {
    /// The measured case.
    pub case: Case,
    /// Step times `[steps][ranks]`, warm-up left out.
    pub steps: Vec<Vec<StepTimes>>,
    /// Whether a rank ran out of memory.
    pub out_of_memory: bool,
    /// Greatest resident memory of a rank in bytes.
    pub peak_memory: Bytes,
    /// Bytes all-reduced per step.
    pub gradient_bytes: Bytes,
    /// Whether collectives can overlap the backward pass.
    pub overlaps: bool,
    /// Use of the GPUs, if there are any.
    pub gpu: Option<GpuUse>,
    /// Median busbw of the bare all-reduce of these bytes on these ranks, in bytes per second; NaN if it was not measured.
    pub bare_busbw: f64,
}

/// One row of `/scaling`. Figures that do not exist for a case are NaN.
#[derive(Debug, Clone)]
#[allow(missing_docs)] // `table` defines each field
pub struct Row {
    pub case: Case,
    pub status: Status,
    pub steps: usize,
    trimmed_means: [Second; StepTimes::PARTS],
    means: [Second; StepTimes::PARTS],
    pub step_p50: Second,
    pub step_low: Second,
    pub step_high: Second,
    pub images_per_second: f64,
    pub algbw: f64,
    pub busbw: f64,
    pub busbw_share: f64,
    pub overlaps: bool,
    pub overlap: f64,
    pub speedup: f64,
    pub efficiency: f64,
    pub epoch_seconds: Second,
    pub gradient_bytes: Bytes,
    pub volume: f64,
    pub peak_memory: Bytes,
    pub gpu: Option<GpuUse>,
    pub epoch_joules: f64,
}

impl Row {
    /// Trimmed mean of a part in seconds, see [`definitions::TRIMMED_MEAN`].
    pub fn trimmed_mean(&self, part: Part) -> Second {
        self.trimmed_means[part as usize]
    }

    fn of(measurement: &Measurement, samples: usize) -> Row {
        let case = measurement.case;
        let all: Vec<&Vec<StepTimes>> = measurement.steps.iter().collect();
        let trimmed_means = means(&middle_half(&all));
        let get = |part: Part| trimmed_means[part as usize];
        let mut slowest: Vec<Second> = measurement.steps.iter().map(|ranks| slowest(ranks)).collect();
        slowest.sort_by(f64::total_cmp);
        let (low, high) = median_interval(&slowest);
        let images_per_second = case.global_batch() as f64 / get(Part::Step);
        let several = |value: f64| if case.ranks > 1 { value } else { f64::NAN };
        let busbw = all_reduce_busbw(measurement.gradient_bytes, get(Part::Comm), case.ranks);
        Row {
            case,
            status: match measurement {
                _ if measurement.out_of_memory => Status::OutOfMemory,
                _ if measurement.steps.is_empty() => Status::Pending,
                _ => Status::Ok,
            },
            steps: measurement.steps.len(),
            trimmed_means,
            means: means(&all),
            step_p50: metrics::median(&slowest),
            step_low: low,
            step_high: high,
            images_per_second,
            algbw: several(gigabytes_per_second(algbw(measurement.gradient_bytes, get(Part::Comm)))),
            busbw: gigabytes_per_second(busbw),
            busbw_share: busbw_share(busbw, measurement.bare_busbw),
            overlaps: measurement.overlaps,
            overlap: if measurement.overlaps {
                metrics::overlap(get(Part::CommExposed), get(Part::CommWait), get(Part::Comm))
            } else {
                f64::NAN
            },
            speedup: f64::NAN,
            efficiency: f64::NAN,
            epoch_seconds: samples as f64 / images_per_second,
            gradient_bytes: measurement.gradient_bytes,
            volume: all_reduce_volume(measurement.gradient_bytes, case.ranks),
            peak_memory: measurement.peak_memory,
            gpu: measurement.gpu,
            epoch_joules: measurement.gpu.map_or(f64::NAN, |gpu| gpu.joules_per_image * samples as f64),
        }
    }
}

/// Computes the rows of all cases; speedups are relative to the case of one rank with equal network, batch and timing. `samples`
/// is the number of samples per epoch.
pub fn rows(measurements: &[Measurement], samples: usize) -> Vec<Row> {
    let mut rows: Vec<Row> = measurements.iter().map(|measurement| Row::of(measurement, samples)).collect();
    let alone: Vec<(Case, f64)> =
        rows.iter().filter(|row| row.case.ranks == 1).map(|row| (row.case, row.images_per_second)).collect();
    for row in &mut rows {
        let same = |case: &Case| Case { ranks: row.case.ranks, ..*case } == row.case;
        if let Some((_, throughput)) = alone.iter().find(|(case, _)| same(case)) {
            row.speedup = row.images_per_second / throughput;
            row.efficiency = row.speedup / row.case.ranks as f64;
        }
    }
    rows
}

/// Columns of `/scaling`, which has one row per case; with the columns of GPUs if `has_gpus`.
pub fn schema(has_gpus: bool) -> Schema<Row> {
    let mut schema = Schema::new("scaling", "case")
        .text(&definitions::MODEL, |row: &Row| row.case.model.as_str())
        .count(("ranks", "1", "number of ranks that trained, the first ones of the job"), |row| row.case.ranks)
        .count(&definitions::BATCH_PER_RANK, |row| row.case.batch_per_rank)
        .text(("timing", "1", "overlap, or profile: nothing overlaps"), |row| row.case.timing.as_str())
        .text(&definitions::STATUS, |row| row.status.as_str())
        .count(("steps", "1", "counted steps over all visits, warm-up left out"), |row| row.steps)
        .integer(&definitions::OVERLAPS, |row| i64::from(row.overlaps));
    for part in Part::ALL {
        let meaning = definitions::TRIMMED_MEAN.of_part(part.definition());
        schema = schema.float((part.as_str(), "s", meaning.as_str()), move |row| row.trimmed_mean(part));
    }
    for part in Part::ALL {
        let (name, meaning) = (format!("{}_mean", part.as_str()), definitions::PART_MEAN.of_part(part.definition()));
        schema = schema.float((name.as_str(), "s", meaning.as_str()), move |row| row.means[part as usize]);
    }
    schema = schema
        .float(&definitions::STEP_P50, |row| row.step_p50)
        .float(&definitions::STEP_LOW, |row| row.step_low)
        .float(&definitions::STEP_HIGH, |row| row.step_high)
        .float(&definitions::SWEEP_IMAGES_PER_SECOND, |row| row.images_per_second)
        .float(&definitions::ALGBW, |row| row.algbw)
        .float(&definitions::BUSBW, |row| row.busbw)
        .float(&definitions::BUSBW_SHARE, |row| row.busbw_share)
        .float(&definitions::OVERLAP, |row| row.overlap)
        .float(&definitions::SPEEDUP, |row| row.speedup)
        .float(&definitions::EFFICIENCY, |row| row.efficiency)
        .float(&definitions::EPOCH_SECONDS, |row| row.epoch_seconds)
        .float(&definitions::GRADIENT_BYTES, |row| row.gradient_bytes as f64)
        .float(&definitions::VOLUME, |row| row.volume)
        .float(&definitions::PEAK_MEMORY, |row| row.peak_memory as f64);
    if !has_gpus {
        return schema;
    }
    let of = |value: fn(&GpuUse) -> f64| move |row: &Row| row.gpu.as_ref().map_or(f64::NAN, value);
    schema
        .float(&definitions::GPU_UTILIZATION, of(|gpu| gpu.utilization))
        .float(&definitions::GPU_MEMORY, of(|gpu| gpu.memory as f64))
        .float(&definitions::EPOCH_JOULES, |row| row.epoch_joules)
        .float(&definitions::JOULES_PER_IMAGE, of(|gpu| gpu.joules_per_image))
}

/// The table `/scaling` of `rows`.
pub fn table(rows: &[Row]) -> Table {
    schema(rows.iter().any(|row| row.gpu.is_some())).table(rows)
}

/// Reads the use of the GPUs from row `number` of the table `/scaling`.
pub fn gpu_use(scaling: &Table, number: usize) -> Option<GpuUse> {
    let at = |name: &str| scaling.numbers(name).get(number).copied().filter(|value| value.is_finite());
    Some(GpuUse {
        utilization: at(definitions::GPU_UTILIZATION.name)?,
        memory: at(definitions::GPU_MEMORY.name)? as Bytes,
        joules_per_image: at(definitions::JOULES_PER_IMAGE.name)?,
    })
}

fn slowest(ranks: &[StepTimes]) -> Second {
    ranks.iter().map(|time| f64::from(time.get(Part::Step))).fold(0.0, f64::max)
}

/// The middle half of the steps by the slowest rank's time (all if fewer than four). Leaves out bursts of other processes on the
/// machine; the parts of a step still add up, since all are means over one set of steps.
fn middle_half<'a>(steps: &[&'a Vec<StepTimes>]) -> Vec<&'a Vec<StepTimes>> {
    let mut sorted = steps.to_vec();
    sorted.sort_by(|a, b| slowest(a).total_cmp(&slowest(b)));
    let cut = sorted.len() / 4;
    sorted[cut..sorted.len() - cut].to_vec()
}

/// Mean of each part over `[steps][ranks]`; NaN without steps.
fn means(steps: &[&Vec<StepTimes>]) -> [Second; StepTimes::PARTS] {
    Part::ALL
        .map(|part| metrics::mean(steps.iter().flat_map(|ranks| ranks.iter().map(|time| f64::from(time.get(part))))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ModelName, Timing};

    fn time(forward: f64, comm: f64) -> StepTimes {
        let mut time = StepTimes::default();
        time.add(Part::Forward, forward);
        time.add(Part::Comm, comm);
        time.add(Part::CommExposed, comm / 4.0);
        time.add(Part::Step, forward + comm);
        time
    }

    fn measurement(ranks: usize, steps: &[(f64, f64)]) -> Measurement {
        let case = Case { model: ModelName::Net, ranks, batch_per_rank: 8, timing: Timing::Overlap };
        let steps = steps.iter().map(|&(forward, comm)| vec![time(forward, comm); ranks]).collect();
        Measurement {
            case,
            steps,
            out_of_memory: false,
            peak_memory: 5,
            gpu: None,
            gradient_bytes: 1_000_000_000,
            overlaps: ranks > 1,
            bare_busbw: 4e9,
        }
    }

    #[test]
    fn speedup_bandwidth_and_overlap_follow_their_definitions() {
        let one = measurement(1, &[(1.0, 0.0); 8]);
        let four = measurement(4, &[(1.0, 0.5), (1.0, 0.5), (1.0, 0.5), (1.0, 9.0)]); // a burst in one step of four
        let rows = rows(&[four, one], 80);
        let (four, one) = (&rows[0], &rows[1]);
        assert_eq!((one.images_per_second, one.speedup, one.efficiency, one.epoch_seconds), (8.0, 1.0, 1.0, 10.0));
        assert!(one.busbw.is_nan() && one.overlap.is_nan() && one.volume == 0.0);
        // The mean includes the burst, the trimmed mean does not.
        assert_eq!((four.trimmed_mean(Part::Step), four.means[Part::Step as usize]), (1.5, (3.0 * 1.5 + 10.0) / 4.0));
        assert!((four.speedup - 4.0 / 1.5).abs() < 1e-9 && (four.efficiency - 1.0 / 1.5).abs() < 1e-9);
        assert!((four.algbw - 2.0).abs() < 1e-9 && (four.busbw - 3.0).abs() < 1e-9);
        assert!((four.busbw_share - 0.75).abs() < 1e-9 && (four.overlap - 0.75).abs() < 1e-9);
        assert_eq!(four.volume, 1.5e9);
    }

    #[test]
    fn what_does_not_exist_is_nan() {
        let mut one_bucket = measurement(2, &[(1.0, 0.5); 5]);
        one_bucket.overlaps = false;
        one_bucket.bare_busbw = 1e9; // slower than the 2 GB/s in training
        let row = &rows(&[one_bucket], 10)[0];
        assert!(row.overlap.is_nan() && row.busbw_share.is_nan() && row.busbw > 0.0);
        assert!(row.step_low.is_nan() && row.step_high.is_nan(), "no 95 % interval of 5 steps");
        assert!(row.speedup.is_nan() && row.efficiency.is_nan(), "without a case of 1 rank");
        let six = &rows(&[measurement(2, &[(1.0, 0.5); 6])], 10)[0];
        assert_eq!((six.step_low, six.step_p50, six.step_high), (1.5, 1.5, 1.5));
    }

    #[test]
    fn a_case_without_steps_is_pending_or_out_of_memory() {
        let mut none = measurement(2, &[]);
        assert_eq!(rows(std::slice::from_ref(&none), 10)[0].status, Status::Pending);
        none.out_of_memory = true;
        let rows = rows(&[none], 10);
        assert_eq!(rows[0].status, Status::OutOfMemory);
        assert!(rows[0].trimmed_mean(Part::Step).is_nan() && rows[0].images_per_second.is_nan());
        assert_eq!(
            table(&rows).column("status").unwrap().values,
            crate::table::Values::Text(vec!["out_of_memory".into()])
        );
    }
}
