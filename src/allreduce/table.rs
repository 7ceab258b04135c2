//! The table of measured sizes in the run file, and the lines printed while measuring.

use super::{Row, Timing};
use crate::collective::{Network, library_version};
use crate::environment;
use crate::launch::Job;
use crate::metrics::{algbw, all_reduce_busbw, definitions};
use crate::table::{Schema, Table};
use crate::units::{format_bytes, format_seconds, gigabytes_per_second};

/// Prints versions and ranks on stdout, and which sizes take which algorithm between hosts, if the `network` was measured.
pub fn print_header(job: &Job, network: Option<&Network>) {
    let (version, library) = (env!("CARGO_PKG_VERSION"), library_version());
    println!("# hpml {version}   {library}   world_size {}", job.world_size);
    job.describe().iter().for_each(|line| println!("# {line}"));
    if let Some(network) = network {
        println!("# {}", environment::describe_crossovers(network.hosts, network.crossovers(), Some(network)));
    }
    println!();
}

/// Logs one row while measuring.
pub fn log_row(row: &Row) {
    let busbw = gigabytes_per_second(all_reduce_busbw(row.bytes, row.in_place.time, row.ranks));
    log::info!(
        "{} {} by {}: {} in place{}",
        format_bytes(row.bytes),
        row.element,
        row.algorithm,
        format_seconds(row.in_place.time),
        if busbw.is_finite() { format!(", busbw {busbw:.2} GB/s") } else { String::new() }
    );
}

/// One size, type and algorithm, out of place or in place.
type Half<'a> = (&'a Row, &'static str, &'a Timing);

/// Columns of `/allreduce`, named as in nccl-tests but in SI units. Two rows per size, type and algorithm: out of place, in
/// place.
fn schema<'a>() -> Schema<Half<'a>> {
    let gbs = gigabytes_per_second;
    Schema::new("allreduce", "row")
        .count(("ranks", "1", "number of ranks in the all-reduce"), |(row, ..): &Half| row.ranks)
        .integer(("size", "B", "buffer on one rank"), |(row, ..)| row.bytes as i64)
        .count(("count", "1", "elements of the buffer"), |(row, ..)| row.elements)
        .text(("type", "1", "type of the elements"), |(row, ..)| row.element)
        .text(("redop", "1", "reduction of the elements"), |_| "sum")
        .text(("algorithm", "1", "algorithm as in parallel.all_reduce"), |(row, ..)| row.algorithm)
        .text(
            ("place", "1", "in_place (one buffer) or out_of_place (from one buffer into another)"),
            |(_, place, _)| *place,
        )
        .count(("iterations", "1", "timed iterations"), |(.., timing)| timing.iterations)
        .float(&definitions::REDUCE_TIME, |(.., timing)| timing.time)
        .float(&definitions::REDUCE_P50, |(.., timing)| timing.p50)
        .float(&definitions::REDUCE_P99, |(.., timing)| timing.p99)
        .float(&definitions::REDUCE_MIN, |(.., timing)| timing.min)
        .float(&definitions::REDUCE_SKEW, |(.., timing)| timing.skew)
        .float(&definitions::ALGBW, move |(row, _, timing)| gbs(algbw(row.bytes, timing.time)))
        .float(&definitions::BUSBW, move |(row, _, timing)| gbs(all_reduce_busbw(row.bytes, timing.time, row.ranks)))
        .integer(("wrong", "1", "elements that differ from the exact sum, over all ranks"), |(.., timing)| {
            timing.wrong as i64
        })
}

/// The table without rows, which its documentation is generated from.
pub fn empty_table() -> Table {
    schema().table(&[])
}

/// The table `/allreduce` of `rows`.
pub fn table(rows: &[Row]) -> Table {
    let mut halves: Vec<Half> = Vec::with_capacity(2 * rows.len());
    for row in rows {
        halves.extend([(row, "out_of_place", &row.out_of_place), (row, "in_place", &row.in_place)]);
    }
    schema().table(&halves)
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
        assert!(table.columns.iter().all(|column| column.values.len() == 4));
        assert!((table.numbers("busbw")[0] - 6.0).abs() < 1e-12);
    }
}
