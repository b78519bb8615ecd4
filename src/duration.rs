//! Durations as text with one unit: `250ms`, `5s`, `7d`.
//!
//! Provider URLs and the command-line tool use the same parser.
//!
//! ```
//! use std::time::Duration;
//! use a3s_event::duration;
//!
//! assert_eq!(duration::parse("250ms"), Some(Duration::from_millis(250)));
//! assert_eq!(duration::parse("250"), None, "the unit is missing");
//! assert_eq!(duration::format(Duration::from_secs(7 * 24 * 3_600)), "7d");
//! ```

use std::time::Duration;

/// Rule for durations, for an error that follows an invalid text.
pub const RULE: &str = "must be a duration with its unit (us, ms, s, m, h or d), such as 250ms, 5s or 7d";

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// Units with their nanoseconds, longest first.
const UNITS: [(&str, u128); 6] = [
    ("d", 86_400 * NANOS_PER_SECOND),
    ("h", 3_600 * NANOS_PER_SECOND),
    ("m", 60 * NANOS_PER_SECOND),
    ("s", NANOS_PER_SECOND),
    ("ms", NANOS_PER_SECOND / 1_000),
    ("us", NANOS_PER_SECOND / 1_000_000),
];

/// Parses a whole number and its unit. Zero needs no unit. Returns `None` for any other text, and for more than
/// [`Duration::MAX`].
pub fn parse(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(digits)?;
    let (_, unit) = UNITS.iter().find(|(name, _)| *name == unit)?;
    let nanos = number.parse::<u128>().ok()?.checked_mul(*unit)?;
    let below_a_second = u32::try_from(nanos % NANOS_PER_SECOND).ok()?;
    Some(Duration::new(u64::try_from(nanos / NANOS_PER_SECOND).ok()?, below_a_second))
}

/// Formats a duration in the longest unit that divides it, so that [`parse`] can read it. A duration with a fraction of
/// a microsecond has its `Debug` form.
pub fn format(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    match UNITS.iter().find(|(_, unit)| nanos.is_multiple_of(*unit)) {
        Some((name, unit)) => format!("{}{name}", nanos / unit),
        None => format!("{duration:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_a_whole_number_and_a_unit() {
        for (text, millis) in [
            ("0", 0),
            ("0s", 0),
            ("250ms", 250),
            ("5s", 5_000),
            ("15m", 900_000),
            ("6h", 21_600_000),
            ("7d", 604_800_000),
        ] {
            assert_eq!(parse(text), Some(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(parse("100us"), Some(Duration::from_micros(100)));
        assert_eq!(parse("18446744073709551615s"), Some(Duration::from_secs(u64::MAX)));
        for wrong in [
            "",
            "s",
            "5",
            "-5s",
            "+5s",
            "1.5s",
            "5 s",
            "5S",
            "1w",
            "1m30s",
            "18446744073709551616s",
            "18446744073709551615d",
            "340282366920938463463374607431768211456us",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        for (duration, text) in [
            (Duration::ZERO, "0s"),
            (Duration::from_micros(1), "1us"),
            (Duration::from_millis(1_500), "1500ms"),
            (Duration::from_secs(90), "90s"),
            (Duration::from_secs(120), "2m"),
            (Duration::from_secs(u64::MAX), "18446744073709551615s"),
        ] {
            assert_eq!(format(duration), text);
            assert_eq!(parse(text), Some(duration));
        }
        assert_eq!(format(Duration::from_nanos(1)), "1ns");
        assert_eq!(format(Duration::MAX), "18446744073709551615.999999999s");
    }
}
