//! Units: inside the program times are seconds and sizes are bytes; this module converts and formats them for people.
//!
//! ```
//! use hpml::units::{format_bytes, format_seconds};
//!
//! assert_eq!(format_seconds(0.04116), "41.2 ms");
//! assert_eq!(format_bytes(44_695_848), "44.7 MB");
//! ```

/// A duration in seconds.
pub type Second = f64;
/// A size in bytes.
pub type Bytes = u64;

/// Time now by this host's clock, ISO 8601 with the offset from UTC: `2026-11-28T12:04:53+01:00`.
pub fn now() -> String {
    jiff::Zoned::now().strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}

/// A duration with three significant digits and a fitting unit: `812 us`, `41.2 ms`, `12.4 s`, `8 min 20 s`.
pub fn format_seconds(seconds: Second) -> String {
    let magnitude = seconds.abs();
    if !seconds.is_finite() {
        "-".into()
    } else if magnitude == 0.0 {
        "0 s".into()
    } else if magnitude < 1e-3 {
        format!("{} us", three_digits(seconds * 1e6))
    } else if magnitude < 1.0 {
        format!("{} ms", three_digits(seconds * 1e3))
    } else if magnitude < 120.0 {
        format!("{} s", three_digits(seconds))
    } else {
        format!("{} min {:02.0} s", (seconds / 60.0).trunc(), (seconds % 60.0).trunc())
    }
}

/// The time until something ends, as exactly as such a time is known: `12 s`, `8 min`, `3 h 20 min`, `2 d 4 h`.
pub fn format_left(seconds: Second) -> String {
    if !seconds.is_finite() {
        return "-".into();
    }
    let seconds = seconds.max(0.0).round() as u64;
    let (minutes, hours) = ((seconds + 30) / 60, (seconds + 1800) / 3600);
    match seconds {
        0..=99 => format!("{seconds} s"),
        100..3570 => format!("{minutes} min"),
        3570..172_800 => format!("{} h {:02} min", minutes / 60, minutes % 60),
        _ => format!("{} d {} h", hours / 24, hours % 24),
    }
}

/// A size in decimal units, as network rates are: `44.7 MB`, `248 kB`.
pub fn format_bytes(bytes: Bytes) -> String {
    let bytes = bytes as f64;
    let (value, unit) = match bytes {
        b if b < 1e3 => return format!("{b} B"),
        b if b < 1e6 => (b / 1e3, "kB"),
        b if b < 1e9 => (b / 1e6, "MB"),
        b if b < 1e12 => (b / 1e9, "GB"),
        b => (b / 1e12, "TB"),
    };
    format!("{} {unit}", three_digits(value))
}

/// Converts bytes per second to decimal GB/s, the unit of nccl-tests.
pub fn gigabytes_per_second(bytes_per_second: f64) -> f64 {
    bytes_per_second / 1e9
}

/// Factor and unit in which a number of this `magnitude` in `units` reads well: `(1e3, "ms")` for `("s", 0.04)`.
///
/// `units` are those of the run file: `1` becomes empty, `percent` becomes `%`, and units without multiples stay.
pub fn fitting_unit(units: &str, magnitude: f64) -> (f64, &str) {
    match units {
        "s" if magnitude <= 0.0 => (1.0, "s"),
        "s" if magnitude < 1e-3 => (1e6, "us"),
        "s" if magnitude < 1.0 => (1e3, "ms"),
        "B" if magnitude >= 1e9 => (1e-9, "GB"),
        "B" if magnitude >= 1e6 => (1e-6, "MB"),
        "B" if magnitude >= 1e3 => (1e-3, "kB"),
        "FLOP/s" if magnitude >= 1e15 => (1e-15, "PFLOP/s"),
        "FLOP/s" if magnitude >= 1e12 => (1e-12, "TFLOP/s"),
        "FLOP/s" if magnitude >= 1e9 => (1e-9, "GFLOP/s"),
        "FLOP/s" if magnitude >= 1e6 => (1e-6, "MFLOP/s"),
        "percent" => (1.0, "%"),
        "1" => (1.0, ""),
        _ => (1.0, units),
    }
}

/// Formats a finite `value` by `show`, and NaN or an infinite one as "-".
pub fn or_dash(value: f64, show: impl Fn(f64) -> String) -> String {
    if value.is_finite() { show(value) } else { "-".into() }
}

/// A count with its noun: `1 rank`, `2 ranks`, `0 ranks`.
pub fn counted(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

fn three_digits(value: f64) -> String {
    let decimals = match value.abs() {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}

/// Ascending numbers as ranges: `0-3,8` for 0, 1, 2, 3, 8.
pub fn ranges(numbers: &[usize]) -> String {
    numbers.chunk_by(is_next).map(range).collect::<Vec<_>>().join(",")
}

/// Most ranges that [`few_ranges`] names.
const MOST_RANGES: usize = 8;

/// Ascending numbers as ranges, for a message: `3`, `0-63, 70`; beyond 8 ranges how many numbers are left.
pub fn few_ranges(numbers: &[usize]) -> String {
    let named: Vec<&[usize]> = numbers.chunk_by(is_next).take(MOST_RANGES).collect();
    let left = numbers.len() - named.iter().map(|range| range.len()).sum::<usize>();
    let text = named.into_iter().map(range).collect::<Vec<_>>().join(", ");
    if left == 0 { text } else { format!("{text} and {left} more") }
}

fn is_next(number: &usize, next: &usize) -> bool {
    number + 1 == *next
}

fn range(numbers: &[usize]) -> String {
    match numbers {
        [one] => one.to_string(),
        [first, .., last] => format!("{first}-{last}"),
        [] => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_take_the_unit_that_fits() {
        for (seconds, shown) in
            [(8.124e-4, "812 us"), (0.04116, "41.2 ms"), (12.4, "12.4 s"), (500.0, "8 min 20 s"), (0.0, "0 s")]
        {
            assert_eq!(format_seconds(seconds), shown);
        }
    }

    #[test]
    fn the_time_left_is_rounded_as_it_grows() {
        for (seconds, shown) in [
            (0.2, "0 s"),
            (99.4, "99 s"),
            (100.0, "2 min"),
            (3569.0, "59 min"),
            (3570.0, "1 h 00 min"),
            (12_000.0, "3 h 20 min"),
            (172_799.0, "48 h 00 min"),
            (187_300.0, "2 d 4 h"),
            (f64::NAN, "-"),
        ] {
            assert_eq!(format_left(seconds), shown);
        }
    }

    #[test]
    fn a_column_takes_one_unit() {
        assert_eq!((fitting_unit("s", 0.04), fitting_unit("s", 0.0)), ((1e3, "ms"), (1.0, "s")));
        assert_eq!((fitting_unit("B", 4e7), fitting_unit("B", 8.0)), ((1e-6, "MB"), (1.0, "B")));
        assert_eq!((fitting_unit("percent", 5.0), fitting_unit("GB/s", 1e9)), ((1.0, "%"), (1.0, "GB/s")));
    }

    #[test]
    fn bytes_are_decimal() {
        assert_eq!(format_bytes(44_695_848), "44.7 MB");
        assert_eq!(format_bytes(999), "999 B");
    }

    #[test]
    fn many_numbers_are_a_few_stretches() {
        let few = |numbers: &[usize]| few_ranges(numbers);
        assert_eq!((few(&[]), few(&[3]), few(&[0, 1, 2, 5])), ("".into(), "3".into(), "0-2, 5".into()));
        assert_eq!(few(&(8..4096).collect::<Vec<_>>()), "8-4095");
        assert_eq!(few(&(0..40).step_by(2).collect::<Vec<_>>()), "0, 2, 4, 6, 8, 10, 12, 14 and 12 more");
        assert_eq!((ranges(&[]), ranges(&[0, 1, 2, 3, 8])), ("".into(), "0-3,8".into()));
    }
}
