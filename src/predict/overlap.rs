//! Buckets of gradients against the backward pass: what of their all-reduces is left when it ends. Pure arithmetic.

use crate::units::Second;

/// A bucket of gradients that is all-reduced as one buffer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bucket {
    /// Bytes as they are sent.
    pub bytes: f64,
    /// Share of the backward pass after which its gradients are complete, 0 to 1.
    pub ready: f64,
}

/// Buckets of about `least` bytes, `bytes` together, that become complete evenly: for runs that did not record theirs.
pub fn even(bytes: f64, least: f64) -> Vec<Bucket> {
    let count = (bytes / least).floor().clamp(1.0, 1000.0) as usize;
    let part = |number: usize| (number + 1) as f64 / count as f64;
    (0..count).map(|number| Bucket { bytes: bytes / count as f64, ready: part(number) }).collect()
}

/// Seconds of all all-reduces, and those of them that end after a backward pass of `backward` seconds. A bucket starts when it is
/// complete and the one before it is reduced.
pub fn timeline(buckets: &[Bucket], backward: Second, all_reduce: impl Fn(f64) -> Second) -> (Second, Second) {
    let (mut all, mut free) = (0.0, 0.0f64);
    for bucket in buckets {
        let seconds = all_reduce(bucket.bytes);
        all += seconds;
        free = free.max(bucket.ready * backward) + seconds;
    }
    (all, (free - backward).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bucket_is_exposed_and_a_slow_link_exposes_more() {
        let buckets = even(100.0, 25.0);
        assert_eq!(buckets.len(), 4);
        // Four buckets of 1 s each, complete at 2, 4, 6 and 8 s.
        assert_eq!(timeline(&buckets, 8.0, |bytes| bytes / 25.0), (4.0, 1.0));
        // 3 s each: the first starts at 2 s, and the link is busy from then on.
        assert_eq!(timeline(&buckets, 8.0, |bytes| bytes * 3.0 / 25.0), (12.0, 6.0));
        // Without a backward pass nothing is hidden; one bucket is never hidden.
        assert_eq!(timeline(&buckets, 0.0, |bytes| bytes / 25.0), (4.0, 4.0));
        assert_eq!(timeline(&even(10.0, 25.0), 8.0, |_| 1.0), (1.0, 1.0));
    }
}
