//! Bandwidths with nccl-tests' definitions.

use crate::units::{Bytes, Second};

/// Algorithm bandwidth in bytes per second: the buffer on one rank over the time of the collective. NaN if nothing was
/// reduced: no bytes, or no time.
///
/// Source: nccl-tests, doc/PERFORMANCE.md, "Algorithm bandwidth".
pub fn algbw(bytes: Bytes, time: Second) -> f64 {
    if bytes > 0 && time > 0.0 { bytes as f64 / time } else { f64::NAN }
}

/// Bus bandwidth of an all-reduce, in bytes per second.
///
/// `bytes` is the size of the buffer on one rank, `time` the duration of the collective. Every point-to-point algorithm sends
/// at least `2 (n-1)/n` of the buffer per rank, so this compares with the speed of a link for every `world_size`. NaN for one
/// rank. Source: nccl-tests, doc/PERFORMANCE.md, "AllReduce".
///
/// ```
/// // 100 MB in 50 ms on 4 ranks: 2 GB/s algbw, 3 GB/s on the bus.
/// assert_eq!(hpml::metrics::all_reduce_busbw(100_000_000, 0.05, 4), 3e9);
/// ```
pub fn all_reduce_busbw(bytes: Bytes, time: Second, world_size: usize) -> f64 {
    if world_size > 1 { algbw(bytes, time) * bus_factor(world_size) } else { f64::NAN }
}

/// Least bytes that each of `world_size` ranks sends in an all-reduce of `bytes`.
pub fn all_reduce_volume(bytes: Bytes, world_size: usize) -> f64 {
    bus_factor(world_size) * bytes as f64
}

fn bus_factor(world_size: usize) -> f64 {
    let n = world_size as f64;
    2.0 * (n - 1.0) / n
}

/// Bandwidth utilization: `busbw` over `bare`, that of the bare all-reduce. NaN if either is missing, and if the bare
/// all-reduce was slower, since it is then no measure of what can be reached.
pub fn busbw_share(busbw: f64, bare: f64) -> f64 {
    let share = busbw / bare;
    if share <= 1.0 { share } else { f64::NAN }
}

/// Share of the time in collectives, waits for slower ranks included, that was hidden behind the backward pass.
///
/// Rounded to six digits, so that float32 rounding errors do not show as overlap.
pub fn overlap(comm_exposed: Second, comm_wait: Second, comm: Second) -> f64 {
    ((1.0 - comm_exposed / (comm_wait + comm)) * 1e6).round() / 1e6 + 0.0 // no -0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bus_carries_two_n_minus_one_over_n_of_the_buffer() {
        assert_eq!(all_reduce_busbw(1_000, 0.5, 2), 2_000.0);
        assert_eq!(all_reduce_busbw(1_000, 0.5, 4), 3_000.0);
        assert_eq!(all_reduce_volume(1_000, 4), 1_500.0);
    }

    #[test]
    fn what_was_not_sent_has_no_bandwidth() {
        assert!(all_reduce_busbw(1_000, 0.5, 1).is_nan());
        assert!(algbw(1_000, 0.0).is_nan() && algbw(0, 1.0).is_nan());
        assert_eq!(all_reduce_volume(1_000, 1), 0.0);
    }

    #[test]
    fn a_share_of_the_bare_all_reduce_is_none_where_that_was_slower() {
        assert_eq!(busbw_share(3.0, 4.0), 0.75);
        assert_eq!(busbw_share(4.0, 4.0), 1.0);
        assert!(busbw_share(7.504, 4.0).is_nan() && busbw_share(1.0, f64::NAN).is_nan());
    }

    #[test]
    fn overlap_is_of_waiting_and_reducing_together() {
        assert_eq!(overlap(1.0, 2.0, 2.0), 0.75);
        assert_eq!(overlap(4.0 + 1e-9, 2.0, 2.0).to_bits(), 0.0f64.to_bits());
        assert!(overlap(0.0, 0.0, 0.0).is_nan());
    }
}
