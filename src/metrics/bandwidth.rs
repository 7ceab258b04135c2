//! Bandwidths with nccl-tests' definitions.

use crate::units::{Bytes, Second};

/// Algorithm bandwidth in bytes per second: the buffer on one rank over the time of the collective.
///
/// Source: nccl-tests, doc/PERFORMANCE.md, "Algorithm bandwidth".
pub fn algbw(bytes: Bytes, time: Second) -> f64 {
    if time > 0.0 { bytes as f64 / time } else { 0.0 }
}

/// Bus bandwidth of an all-reduce, in bytes per second.
///
/// `bytes` is the buffer on one rank, `time` that of the collective. Any point-to-point algorithm sends at least
/// `2 (n-1)/n` of the buffer per rank, so this compares with the link's speed for every `world_size`. One rank: 0.
/// Source: nccl-tests, doc/PERFORMANCE.md, "AllReduce".
pub fn all_reduce_busbw(bytes: Bytes, time: Second, world_size: usize) -> f64 {
    let n = world_size as f64;
    algbw(bytes, time) * 2.0 * (n - 1.0) / n
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bus_carries_two_n_minus_one_over_n_of_the_buffer() {
        assert_eq!(all_reduce_busbw(1_000, 0.5, 1), 0.0);
        assert_eq!(all_reduce_busbw(1_000, 0.5, 2), 2_000.0);
        assert_eq!(all_reduce_busbw(1_000, 0.5, 4), 3_000.0);
        assert_eq!(algbw(1_000, 0.0), 0.0);
    }
}
