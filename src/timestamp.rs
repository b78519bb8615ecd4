//! The `time` of a CloudEvent: RFC 3339.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The last millisecond that RFC 3339 can say: its years have four digits.
pub(crate) const MAX_MILLIS: u64 = 253_402_300_799_999;

/// An instant as a text says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instant {
    /// Unix milliseconds, rounded down; 0 for what lies before 1970.
    pub(crate) millis: u64,
    /// Whether the text says more than `millis` can hold.
    #[cfg_attr(not(feature = "cloudevents"), allow(dead_code, reason = "only a conversion asks"))]
    pub(crate) is_rounded: bool,
}

/// Writes the time in UTC with milliseconds and `Z`. `None` after the year 9999.
pub(crate) fn format(millis: u64) -> Option<String> {
    if millis > MAX_MILLIS {
        return None;
    }
    let seconds = i64::try_from(millis / 1000).ok()?;
    let at = OffsetDateTime::from_unix_timestamp(seconds).ok()?;
    let mut text = String::with_capacity("2026-02-03T10:11:12.345Z".len());
    for (number, digits, behind) in [
        (at.year().unsigned_abs(), 4, '-'),
        (u32::from(u8::from(at.month())), 2, '-'),
        (u32::from(at.day()), 2, 'T'),
        (u32::from(at.hour()), 2, ':'),
        (u32::from(at.minute()), 2, ':'),
        (u32::from(at.second()), 2, '.'),
        (u32::try_from(millis % 1000).ok()?, 3, 'Z'),
    ] {
        for digit in (0..digits).rev() {
            text.push(char::from_digit(number / 10_u32.pow(digit) % 10, 10)?);
        }
        text.push(behind);
    }
    Some(text)
}

/// Reads a time. `None` when the text is not RFC 3339.
pub(crate) fn parse(text: &str) -> Option<Instant> {
    let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    let nanos = at.unix_timestamp_nanos();
    let millis = u64::try_from(nanos.div_euclid(1_000_000)).unwrap_or(0);
    Some(Instant { millis, is_rounded: i128::from(millis) * 1_000_000 != nanos })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_times_are_written_and_read() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (1_709_210_096_789, "2024-02-29T12:34:56.789Z"),
            (MAX_MILLIS, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(format(millis).unwrap(), text);
            assert_eq!(parse(text).unwrap(), Instant { millis, is_rounded: false });
        }
        assert_eq!(format(MAX_MILLIS + 1), None);
        assert_eq!(format(u64::MAX), None);
    }

    #[test]
    fn other_forms_of_rfc_3339_are_read() {
        for (text, millis, is_rounded) in [
            ("2024-02-29T14:34:56.789+02:00", 1_709_210_096_789, false),
            ("2024-02-29T12:34:56Z", 1_709_210_096_000, false),
            ("2024-02-29T12:34:56.789012Z", 1_709_210_096_789, true),
            ("1969-12-31T23:59:59.999Z", 0, true),
            ("0000-01-01T00:00:00Z", 0, true),
        ] {
            assert_eq!(parse(text), Some(Instant { millis, is_rounded }), "{text}");
        }
        for text in
            ["", "yesterday", "2024-02-30T00:00:00Z", "2024-02-29", "2024-02-29T12:34:56", "1709210096789"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
        // A leap second is read as the last moment before it.
        assert_eq!(parse("2016-12-31T23:59:60Z").unwrap().millis, 1_483_228_799_999);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(millis in 0..=MAX_MILLIS) {
            prop_assert_eq!(parse(&format(millis).unwrap()), Some(Instant { millis, is_rounded: false }));
        }
    }
}
