//! The table of measured sizes in the run file, and the lines printed while measuring.

use super::bench::Place;
use super::{Row, Timing};
use crate::collective::{Collective, Levels, Network, library_version};
use crate::environment;
use crate::launch::Job;
use crate::metrics::{algbw, all_reduce_busbw, definitions};
use crate::table::{Schema, Table};
use crate::units::{format_bytes, format_seconds, gigabytes_per_second};

/// Prints versions and ranks on stdout; on several hosts their `levels`, and which sizes take which algorithm between them, if
/// the `network` was measured.
pub fn print_header(job: &Job, levels: Option<&Levels>, network: Option<&Network>) {
    let (version, library) = (env!("CARGO_PKG_VERSION"), library_version());
    println!("# hpml {version}   {library}   world_size {}", job.world_size);
    job.describe().iter().for_each(|line| println!("# {line}"));
    if let Some(levels) = levels.filter(|levels| levels.hosts > 1) {
        println!("# levels: {}", environment::describe_levels(levels));
    }
    if let Some(network) = network {
        println!("# {}", environment::describe_crossovers(network.hosts, network.crossovers(), Some(network)));
    }
    println!();
}

/// Logs one row while measuring.
pub fn log_row(row: &Row) {
    let Some((_, place, timing)) = halves(row).last() else { return };
    let busbw = gigabytes_per_second(row.collective.busbw(row.bytes, timing.time, row.ranks));
    log::info!(
        "{} of {} {} by {}: {} {}{}",
        row.collective.as_str(),
        format_bytes(row.bytes),
        row.element,
        row.algorithm,
        format_seconds(timing.time),
        place.replace('_', " "),
        if busbw.is_finite() { format!(", busbw {busbw:.2} GB/s") } else { String::new() }
    );
}

/// One collective, size, type and algorithm, out of place or in place.
type Half<'a> = (&'a Row, &'static str, &'a Timing);

/// What was measured of a row: out of place, in place, or both.
fn halves(row: &Row) -> impl Iterator<Item = Half<'_>> {
    let timings = [(Place::Out, &row.out_of_place), (Place::In, &row.in_place)];
    timings.into_iter().filter_map(move |(place, timing)| Some((row, place.as_str(), timing.as_ref()?)))
}

/// Columns of `/allreduce`, named as in nccl-tests but in SI units. Up to two rows per collective, size, type and algorithm: out of
/// place, in place. The table has the name that it had before it held other collectives.
fn schema<'a>() -> Schema<Half<'a>> {
    let gbs = gigabytes_per_second;
    Schema::new("allreduce", "row")
        .text(
            ("collective", "1", "all_reduce, all_gather, reduce_scatter, broadcast or all_to_all"),
            |(row, ..): &Half| row.collective.as_str(),
        )
        .count(("ranks", "1", "number of ranks in the collective"), |(row, ..)| row.ranks)
        .integer(
            ("size", "B", "the larger buffer on one rank, as in nccl-tests: the result of an all_gather, the input of the others"),
            |(row, ..)| row.bytes as i64,
        )
        .count(("count", "1", "elements of size"), |(row, ..)| row.elements)
        .text(("type", "1", "type of the elements"), |(row, ..)| row.element)
        .text(("redop", "1", "reduction of the elements: sum or none"), |(row, ..)| match row.collective {
            Collective::AllReduce | Collective::ReduceScatter => "sum",
            _ => "none",
        })
        .text(
            ("algorithm", "1", "as in parallel.all_reduce; pairwise: hpml's exchange with all ranks at once; nccl; host: a GPU's through the host"),
            |(row, ..)| row.algorithm,
        )
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
        .float(&definitions::BUSBW, move |(row, _, timing)| {
            gbs(row.collective.busbw(row.bytes, timing.time, row.ranks))
        })
        .integer(("wrong", "1", "elements that differ from the exact result, over all ranks"), |(.., timing)| {
            timing.wrong as i64
        })
        .float(&definitions::WITHIN, |(.., timing)| timing.time - timing.between)
        .float(&definitions::WITHIN_ALGBW, move |(row, _, timing)| {
            gbs(algbw(row.bytes, timing.time - timing.between))
        })
        .float(&definitions::BETWEEN, |(.., timing)| timing.between)
        .float(&definitions::BETWEEN_BUSBW, move |(row, _, timing)| {
            gbs(all_reduce_busbw(row.bytes, timing.between, row.hosts))
        })
        .float(&definitions::BETWEEN_RACKS, |(.., timing)| timing.between_racks)
}

/// The table without rows, which its documentation is generated from.
pub fn empty_table() -> Table {
    schema().table(&[])
}

/// The table `/allreduce` of `rows`.
pub fn table(rows: &[Row]) -> Table {
    schema().table(&rows.iter().flat_map(halves).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_both_places_of_every_row() {
        let timing = Some(Timing { time: 1e-3, between: 0.6e-3, iterations: 5, ..Default::default() });
        let (element, algorithm) = ("float32", "shared");
        let row = Row {
            collective: Collective::AllReduce,
            ranks: 4,
            hosts: 2,
            bytes: 4_000_000,
            elements: 1_000_000,
            element,
            algorithm,
            out_of_place: timing,
            in_place: timing,
        };
        let scattered = Row { collective: Collective::ReduceScatter, in_place: None, ..row.clone() };
        let table = table(&[row, scattered]);
        assert!(table.columns.iter().all(|column| column.values.len() == 3));
        let near = |name: &str, row: usize, expected: f64| (table.numbers(name)[row] - expected).abs() < 1e-9;
        assert!(near("busbw", 0, 6.0) && near("busbw", 2, 3.0));
        assert!(near("within", 0, 0.4e-3) && near("within_algbw", 0, 10.0));
        assert!(near("between", 0, 0.6e-3) && near("between_busbw", 0, 4e-3 / 0.6e-3));
    }
}
