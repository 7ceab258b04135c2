//! The rows as lines of the terminal and as a table of the run file.

use super::{Row, Timing};
use crate::collective::Universe;
use crate::launch::Job;
use crate::metrics::{algbw, all_reduce_busbw, definitions};
use crate::store::{Column, Table, Values};
use crate::units::{gigabytes_per_second, or_dash};

/// Who runs where, and the names and units of the columns.
pub fn print_header(job: &Job) {
    let (version, library) = (env!("CARGO_PKG_VERSION"), Universe::library_version());
    println!("# hpml {version}   {library}   world_size {}", job.world_size);
    job.describe().iter().for_each(|line| println!("# {line}"));
    let explained = [definitions::REDUCE_TIME, definitions::REDUCE_SKEW, definitions::BUSBW];
    explained.iter().for_each(|figure| println!("# {}: {}", figure.name, figure.text));
    if job.world_size == 1 {
        println!("# - in {}: {}", definitions::BUSBW.name, definitions::BUSBW.absent);
    }
    println!("# after the bars, in place: median, 99th percentile and least time, and skew");
    println!(
        "#                                           |              out of place              |                in place                |"
    );
    println!(
        "#      size      count    type redop  algor |     time    algbw    busbw      #wrong |     time    algbw    busbw      #wrong |      p50      p99      min     skew"
    );
    println!(
        "#       (B) (elements)                 ithm |     (us)   (GB/s)   (GB/s)             |     (us)   (GB/s)   (GB/s)             |     (us)     (us)     (us)     (us)"
    );
}

/// One row as a line.
pub fn print_row(row: &Row) {
    let microseconds = |seconds: f64| {
        let us = seconds * 1e6;
        let decimals = if us < 99.95 { 2 } else { usize::from(us < 99_999.5) };
        format!("{us:>8.decimals$}")
    };
    let gbs = |bytes_per_second: f64| {
        format!("{:>8}", or_dash(gigabytes_per_second(bytes_per_second), |value| format!("{value:.2}")))
    };
    let half = |timing: &Timing| {
        let (algorithm, bus) = (algbw(row.bytes, timing.time), all_reduce_busbw(row.bytes, timing.time, row.ranks));
        format!("{} {} {} {:>11}", microseconds(timing.time), gbs(algorithm), gbs(bus), timing.wrong)
    };
    let own = &row.in_place;
    println!(
        "{:>11} {:>10} {:>7}   sum {:>6} | {} | {} | {} {} {} {}",
        row.bytes,
        row.elements,
        row.element,
        row.algorithm,
        half(&row.out_of_place),
        half(own),
        microseconds(own.p50),
        microseconds(own.p99),
        microseconds(own.min),
        microseconds(own.skew)
    );
}

/// `/allreduce`: two rows a size, type and algorithm, first out of place, then in place.
pub fn table(rows: &[Row]) -> Table {
    let cells: Vec<(&Row, &'static str, &Timing)> = rows
        .iter()
        .flat_map(|row| [(row, "out_of_place", &row.out_of_place), (row, "in_place", &row.in_place)])
        .collect();
    let texts = |value: &dyn Fn(&Row, &'static str) -> &'static str| {
        Values::Text(cells.iter().map(|(row, place, _)| value(row, place).to_owned()).collect())
    };
    let integers = |value: &dyn Fn(&Row, &Timing) -> u64| {
        Values::I64(cells.iter().map(|(row, _, timing)| value(row, timing) as i64).collect())
    };
    let floats = |value: &dyn Fn(&Row, &Timing) -> f64| {
        Values::F64(cells.iter().map(|(row, _, timing)| value(row, timing)).collect())
    };
    let gbs = gigabytes_per_second;
    let columns = vec![
        Column::new("ranks", "1", "ranks that summed", integers(&|row, _| row.ranks as u64)),
        Column::new("size", "B", "buffer on one rank", integers(&|row, _| row.bytes)),
        Column::new("count", "1", "its elements", integers(&|row, _| row.elements as u64)),
        Column::new("type", "1", "of the elements", texts(&|row, _| row.element)),
        Column::new("redop", "1", "what became of them", texts(&|_, _| "sum")),
        Column::new("algorithm", "1", "as in parallel.all_reduce", texts(&|row, _| row.algorithm)),
        Column::new("place", "1", "in_place, or out_of_place: from one buffer into another", texts(&|_, place| place)),
        Column::new("iterations", "1", "timed iterations", integers(&|_, timing| timing.iterations as u64)),
        Column::of(&definitions::REDUCE_TIME, floats(&|_, timing| timing.time)),
        Column::of(&definitions::REDUCE_P50, floats(&|_, timing| timing.p50)),
        Column::of(&definitions::REDUCE_P99, floats(&|_, timing| timing.p99)),
        Column::of(&definitions::REDUCE_MIN, floats(&|_, timing| timing.min)),
        Column::of(&definitions::REDUCE_SKEW, floats(&|_, timing| timing.skew)),
        Column::of(&definitions::ALGBW, floats(&|row, timing| gbs(algbw(row.bytes, timing.time)))),
        Column::of(
            &definitions::BUSBW,
            floats(&|row, timing| gbs(all_reduce_busbw(row.bytes, timing.time, row.ranks))),
        ),
        Column::new(
            "wrong",
            "1",
            "elements that differ from the exact sum, all ranks",
            integers(&|_, timing| timing.wrong),
        ),
    ];
    Table::new("allreduce", "row", columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_both_places_of_every_row() {
        let timing = Timing { time: 1e-3, iterations: 5, ..Default::default() };
        let (element, algorithm) = ("float32", "shared");
        let row = Row {
            ranks: 4,
            bytes: 4_000_000,
            elements: 1_000_000,
            element,
            algorithm,
            out_of_place: timing,
            in_place: timing,
        };
        let table = table(&[row.clone(), row]);
        for column in &table.columns {
            let rows = match &column.values {
                Values::F64(values) => values.len(),
                Values::I64(values) => values.len(),
                Values::Text(values) => values.len(),
                _ => 0,
            };
            assert_eq!(rows, 4, "{}", column.name);
        }
        let busbw = table.columns.iter().find(|column| column.name == "busbw").unwrap();
        assert!(matches!(&busbw.values, Values::F64(values) if (values[0] - 6.0).abs() < 1e-12));
    }
}
