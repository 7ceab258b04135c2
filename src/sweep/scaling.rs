//! From step times to `/scaling`: a row a case. Pure arithmetic.

use crate::config::Timing;
use crate::metrics::{Part, StepTimes, algbw, all_reduce_busbw};
use crate::store::{Column, Table, Values};
use crate::units::{Bytes, Second, gigabytes_per_second};

use super::Case;
use super::visit::GpuUse;

/// What became of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Measured.
    Ok,
    /// A rank had not enough memory.
    OutOfMemory,
    /// Not visited yet.
    Pending,
}

impl Status {
    /// Its name in the run file.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::OutOfMemory => "out_of_memory",
            Status::Pending => "pending",
        }
    }
}

/// All that was measured of one case.
#[derive(Debug, Clone)]
pub struct Measurement {
    /// Which one.
    pub case: Case,
    /// `[steps][ranks]`, warm-up left out.
    pub steps: Vec<Vec<StepTimes>>,
    /// Whether it ran out of memory.
    pub out_of_memory: bool,
    /// The most that a rank had resident.
    pub peak_memory: Bytes,
    /// What a step all-reduces.
    pub gradient_bytes: Bytes,
    /// What the GPUs took, if there are any.
    pub gpu: Option<GpuUse>,
    /// busbw of the bare all-reduce of these bytes on these ranks, bytes per second; NaN if it was not measured.
    pub bare_busbw: f64,
}

/// One row of `/scaling`. What has no meaning for a case is NaN.
#[derive(Debug, Clone)]
#[allow(missing_docs)] // `table` says what each is
pub struct Row {
    pub case: Case,
    pub status: Status,
    pub steps: usize,
    means: [Second; StepTimes::PARTS],
    pub step_p50: Second,
    pub step_low: Second,
    pub step_high: Second,
    pub images_per_second: f64,
    pub algbw: f64,
    pub busbw: f64,
    pub busbw_share: f64,
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
    /// Mean seconds of a part over the ranks and the typical steps.
    pub fn mean(&self, part: Part) -> Second {
        self.means[part as usize]
    }

    fn of(measurement: &Measurement, samples: usize) -> Row {
        let case = measurement.case;
        let typical = typical(&measurement.steps);
        let mean = |part: Part| {
            let values = typical.iter().flat_map(|ranks| ranks.iter().map(|time| f64::from(time.get(part))));
            values.sum::<f64>() / (typical.len() * case.ranks) as f64 // NaN of no steps
        };
        let means: [Second; StepTimes::PARTS] = Part::ALL.map(mean);
        let get = |part: Part| means[part as usize];
        let (low, middle, high) = median_interval(measurement.steps.iter().map(|ranks| slowest(ranks)).collect());
        let images_per_second = case.global_batch() as f64 / get(Part::Step);
        let several = |value: f64| if case.ranks > 1 { value } else { f64::NAN };
        let busbw = several(all_reduce_busbw(measurement.gradient_bytes, get(Part::Comm), case.ranks));
        let in_collectives = get(Part::CommWait) + get(Part::Comm);
        let overlapped = case.timing == Timing::Overlap && case.ranks > 1;
        Row {
            case,
            status: match measurement {
                _ if measurement.out_of_memory => Status::OutOfMemory,
                _ if measurement.steps.is_empty() => Status::Pending,
                _ => Status::Ok,
            },
            steps: measurement.steps.len(),
            means,
            step_p50: middle,
            step_low: low,
            step_high: high,
            images_per_second,
            algbw: several(gigabytes_per_second(algbw(measurement.gradient_bytes, get(Part::Comm)))),
            busbw: gigabytes_per_second(busbw),
            busbw_share: several(busbw / measurement.bare_busbw),
            // To six digits: what sums of float32 leave of nothing is nothing.
            overlap: if overlapped {
                ((1.0 - get(Part::CommExposed) / in_collectives) * 1e6).round() / 1e6
            } else {
                f64::NAN
            },
            speedup: f64::NAN,
            efficiency: f64::NAN,
            epoch_seconds: samples as f64 / images_per_second,
            gradient_bytes: measurement.gradient_bytes,
            volume: 2.0 * (case.ranks as f64 - 1.0) / case.ranks as f64 * measurement.gradient_bytes as f64,
            peak_memory: measurement.peak_memory,
            gpu: measurement.gpu,
            epoch_joules: measurement.gpu.map_or(f64::NAN, |gpu| gpu.joules_per_image * samples as f64),
        }
    }
}

/// The rows of all cases, speedups against the case of one rank with the same network, batch and timing. `samples`: an
/// epoch's.
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

/// `/scaling`.
pub fn table(rows: &[Row]) -> Table {
    let texts = |value: &dyn Fn(&Row) -> &'static str| Values::Text(rows.iter().map(|r| value(r).to_owned()).collect());
    let integers = |value: &dyn Fn(&Row) -> usize| Values::I64(rows.iter().map(|row| value(row) as i64).collect());
    let floats = |value: &dyn Fn(&Row) -> f64| Values::F64(rows.iter().map(value).collect());
    let mut columns = vec![
        Column::new("model", "1", "network", texts(&|row| row.case.model.as_str())),
        Column::new("ranks", "1", "ranks that trained, the first of the job", integers(&|row| row.case.ranks)),
        Column::new("batch_per_rank", "1", "samples per rank and step", integers(&|row| row.case.batch_per_rank)),
        Column::new("timing", "1", "overlap, or profile: nothing overlaps", texts(&|row| row.case.timing.as_str())),
        Column::new("status", "1", "ok, out_of_memory or pending", texts(&|row| row.status.as_str())),
        Column::new("steps", "1", "counted steps over all visits", integers(&|row| row.steps)),
    ];
    for part in Part::ALL {
        let meaning = format!("{}; mean over ranks and typical steps", part.long_name());
        columns.push(Column::new(part.as_str(), "s", meaning, floats(&|row| row.mean(part))));
    }
    let mut more = |name: &str, units: &str, meaning: &str, value: &dyn Fn(&Row) -> f64| {
        columns.push(Column::new(name, units, meaning, floats(value)));
    };
    more("step_p50", "s", "median over all counted steps of the slowest rank's step", &|row| row.step_p50);
    more("step_low", "s", "lower end of its 95 % interval", &|row| row.step_low);
    more("step_high", "s", "upper end of its 95 % interval", &|row| row.step_high);
    more("images_per_second", "1/s", "global batch / step", &|row| row.images_per_second);
    more("algbw", "GB/s", "gradient_bytes / comm", &|row| row.algbw);
    more("busbw", "GB/s", "algbw * 2 (n-1) / n", &|row| row.busbw);
    more("busbw_share", "1", "busbw / that of the bare all-reduce of these bytes on these ranks", &|row| {
        row.busbw_share
    });
    more("overlap", "1", "1 - comm_exposed / (comm_wait + comm)", &|row| row.overlap);
    more("speedup", "1", "images_per_second / that of 1 rank at this batch_per_rank", &|row| row.speedup);
    more("efficiency", "1", "speedup / ranks", &|row| row.efficiency);
    more("epoch_seconds", "s", "training samples / images_per_second", &|row| row.epoch_seconds);
    more("gradient_bytes", "B", "gradients of one rank: what a step all-reduces", &|row| row.gradient_bytes as f64);
    more("volume", "B", "2 (n-1) / n * gradient_bytes: least that a rank sends in a step", &|row| row.volume);
    more("peak_memory", "B", "most that a rank had resident", &|row| row.peak_memory as f64);
    if rows.iter().any(|row| row.gpu.is_some()) {
        let of = |value: fn(&GpuUse) -> f64| move |row: &Row| row.gpu.as_ref().map_or(f64::NAN, value);
        let busy = "mean over the GPUs of the share of time in which each computed anything (NVML)";
        more("gpu_utilization", "percent", busy, &of(|gpu| gpu.utilization));
        more("gpu_memory", "B", "the most that was taken of a GPU", &of(|gpu| gpu.memory as f64));
        more("epoch_joules", "J", "energy of all GPUs in an epoch of the training samples", &|row| row.epoch_joules);
        more("joules_per_image", "J", "energy of all GPUs by training image", &of(|gpu| gpu.joules_per_image));
    }
    Table::new("scaling", "case", columns)
}

/// What row `number` of a file's `/scaling` says of its GPUs.
pub fn gpu_use(scaling: &Table, number: usize) -> Option<GpuUse> {
    let at = |name: &str| scaling.numbers(name).get(number).copied().filter(|value| value.is_finite());
    Some(GpuUse {
        utilization: at("gpu_utilization")?,
        memory: at("gpu_memory")? as Bytes,
        joules_per_image: at("joules_per_image")?,
    })
}

fn slowest(ranks: &[StepTimes]) -> Second {
    ranks.iter().map(|time| f64::from(time.get(Part::Step))).fold(0.0, f64::max)
}

/// The middle half of the steps by the slowest rank's time (all, of fewer than four): a neighbour's burst of work on the
/// machine is left out, and the parts of a step still add up, since all are means over the same steps.
fn typical(steps: &[Vec<StepTimes>]) -> Vec<&Vec<StepTimes>> {
    let mut sorted: Vec<&Vec<StepTimes>> = steps.iter().collect();
    sorted.sort_by(|a, b| slowest(a).total_cmp(&slowest(b)));
    let cut = sorted.len() / 4;
    sorted[cut..sorted.len() - cut].to_vec()
}

/// The median and its 95 % interval by order statistics, which assumes nothing of the distribution:
/// ranks n/2 -+ 1.96 sqrt(n)/2 of the sorted values, or the extremes where that lies outside (below 6 values). NaN of none.
///
/// Source: Conover, Practical Nonparametric Statistics, confidence interval for a quantile.
fn median_interval(mut values: Vec<Second>) -> (Second, Second, Second) {
    if values.is_empty() {
        return (f64::NAN, f64::NAN, f64::NAN);
    }
    values.sort_by(f64::total_cmp);
    let n = values.len();
    let half_width = 1.96 * (n as f64).sqrt() / 2.0;
    let low = (n as f64 / 2.0 - half_width).floor().max(0.0) as usize;
    let high = ((n as f64 / 2.0 + half_width).ceil() as usize).min(n - 1);
    (values[low.min(n - 1)], (values[(n - 1) / 2] + values[n / 2]) / 2.0, values[high])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelName;

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
        assert_eq!(four.mean(Part::Step), 1.5);
        assert!((four.speedup - 4.0 / 1.5).abs() < 1e-9 && (four.efficiency - 1.0 / 1.5).abs() < 1e-9);
        assert!((four.algbw - 2.0).abs() < 1e-9 && (four.busbw - 3.0).abs() < 1e-9);
        assert!((four.busbw_share - 0.75).abs() < 1e-9 && (four.overlap - 0.75).abs() < 1e-9);
        assert_eq!(four.volume, 1.5e9);
    }

    #[test]
    fn an_interval_of_the_median_holds_it_and_shrinks() {
        let (low, middle, high) = median_interval((0..100).map(f64::from).collect());
        assert_eq!((low, middle, high), (40.0, 49.5, 60.0));
        assert_eq!(median_interval(vec![3.0, 1.0, 2.0]), (1.0, 2.0, 3.0));
        assert_eq!(median_interval(vec![2.0]), (2.0, 2.0, 2.0));
        assert!(median_interval(Vec::new()).1.is_nan());
    }

    #[test]
    fn a_case_without_steps_is_pending_or_out_of_memory() {
        let mut none = measurement(2, &[]);
        assert_eq!(rows(std::slice::from_ref(&none), 10)[0].status, Status::Pending);
        none.out_of_memory = true;
        let rows = rows(&[none], 10);
        assert_eq!(rows[0].status, Status::OutOfMemory);
        assert!(rows[0].mean(Part::Step).is_nan() && rows[0].images_per_second.is_nan());
        assert_eq!(table(&rows).column("status").unwrap().values, Values::Text(vec!["out_of_memory".into()]));
    }
}
