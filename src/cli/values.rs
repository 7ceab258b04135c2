//! Values of options that clap has no parser for.

/// Parses `8`, `64K`, `256M`, `1G` into bytes, 1 to 64 GiB. Written by hand because clap's ranges know no suffixes.
pub(super) fn bytes(text: &str) -> Result<usize, String> {
    let (digits, unit) = match text.char_indices().next_back() {
        Some((at, 'K' | 'k')) => (&text[..at], 1 << 10),
        Some((at, 'M' | 'm')) => (&text[..at], 1 << 20),
        Some((at, 'G' | 'g')) => (&text[..at], 1 << 30),
        _ => (text, 1usize),
    };
    let bytes = digits.parse().ok().and_then(|number: usize| number.checked_mul(unit));
    bytes.filter(|bytes| (1..=64 << 30).contains(bytes)).ok_or_else(|| "must be 1 to 64G".to_owned())
}

/// Rank counts in the order given.
pub type RankCounts = std::sync::Arc<[usize]>;

/// Parses `8,64`, or `8..4096`, which doubles from 8 on and ends at 4096. Written by hand because clap has no such lists.
pub(super) fn rank_counts(text: &str) -> Result<RankCounts, String> {
    let number = |text: &str| text.trim().parse().ok().filter(|number| (1..=1 << 24).contains(number));
    let counts: Option<Vec<usize>> = match text.split_once("..") {
        Some((first, last)) => {
            number(first).zip(number(last)).filter(|(first, last)| first <= last).map(|(first, last)| {
                let doubled = std::iter::successors(Some(first), |count| Some(count * 2));
                doubled.take_while(|&count| count < last).chain([last]).collect()
            })
        }
        None => text.split(',').map(number).collect(),
    };
    counts.map(Into::into).ok_or_else(|| "must be rank counts from 1 to 16777216, as in 8,64 or 8..4096".to_owned())
}

/// Parses a number above 0. Written by hand, as the next two, because clap has ranges for integers only.
pub(super) fn positive(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|number: &f64| number.is_finite() && *number > 0.0)
        .ok_or_else(|| "must be a number above 0".to_owned())
}

/// Parses a number that is at least 0.
pub(super) fn not_negative(text: &str) -> Result<f64, String> {
    let given = text.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0);
    given.ok_or_else(|| "must be a number, at least 0".to_owned())
}

/// Parses a duration above 0, at most an hour, in seconds.
pub(super) fn seconds(text: &str) -> Result<f64, String> {
    let given = text.parse().ok().filter(|seconds: &f64| seconds.is_finite() && *seconds > 0.0 && *seconds <= 3600.0);
    given.ok_or_else(|| "must be a number above 0, at most 3600".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_counts_are_lists_or_doubling_ranges() {
        assert_eq!(*rank_counts("8..100").unwrap(), [8, 16, 32, 64, 100]);
        assert_eq!(*rank_counts("3, 5").unwrap(), [3, 5]);
        assert_eq!(*rank_counts("4..4").unwrap(), [4]);
        for wrong in ["", "0", "8..2", "a", "1,", "99999999999"] {
            assert!(rank_counts(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_take_binary_units() {
        assert_eq!((bytes("8"), bytes("64K"), bytes("256M")), (Ok(8), Ok(65_536), Ok(268_435_456)));
        for wrong in ["", "0", "K", "1T", "-8", "99999999999G"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
