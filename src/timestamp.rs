//! Reading and writing RFC 3339 timestamps.
//!
//! The parser accepts exactly the grammar of the RFC: `T` or `t` between date and time, then `Z`, `z` or an offset, and
//! only days that exist. A leap second, `23:59:60` in UTC at the end of a month, counts as the millisecond before it.
//!
//! ```
//! use a3s_event::timestamp;
//!
//! assert_eq!(timestamp::parse_rfc3339("2024-02-29T14:34:56.789+02:00"), Some(1_709_210_096_789));
//! assert_eq!(timestamp::parse_rfc3339("1969-12-31T23:59:59Z"), Some(-1_000));
//! assert_eq!(timestamp::parse_rfc3339("2024-02-29 12:34:56Z"), None);
//! assert_eq!(timestamp::format_rfc3339(1_709_210_096_789).unwrap(), "2024-02-29T12:34:56.789Z");
//! ```

/// Last millisecond that RFC 3339 can express, because its years have four digits.
pub(crate) const MAX_MILLIS: u64 = 253_402_300_799_999;

pub(crate) const SECONDS_PER_DAY: i64 = 86_400;
const DAYS_PER_400_YEARS: i64 = 146_097;

/// Parses an RFC 3339 timestamp into Unix milliseconds, rounded down and negative before 1970. Returns `None` for any
/// other text.
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    read(text).map(|(millis, _)| millis)
}

/// Formats Unix milliseconds as an RFC 3339 timestamp, in UTC with milliseconds and `Z`. Returns `None` after the year
/// 9999.
pub fn format_rfc3339(unix_ms: u64) -> Option<String> {
    if unix_ms > MAX_MILLIS {
        return None;
    }
    let seconds = i64::try_from(unix_ms / 1000).ok()?;
    let (year, month, day) = date_of(seconds.div_euclid(SECONDS_PER_DAY));
    let second = seconds.rem_euclid(SECONDS_PER_DAY);
    let millis = i64::try_from(unix_ms % 1000).ok()?;
    let mut text = String::with_capacity("2026-02-03T10:11:12.345Z".len());
    for (number, digits, behind) in [
        (year, 4, '-'),
        (month, 2, '-'),
        (day, 2, 'T'),
        (second / 3600, 2, ':'),
        (second / 60 % 60, 2, ':'),
        (second % 60, 2, '.'),
        (millis, 3, 'Z'),
    ] {
        for digit in (0..digits).rev() {
            text.push(char::from_digit(u32::try_from(number / 10_i64.pow(digit) % 10).ok()?, 10)?);
        }
        text.push(behind);
    }
    Some(text)
}

/// An instant parsed from a text.
#[cfg(any(feature = "cloudevents", feature = "routing"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instant {
    /// Unix milliseconds, rounded down; 0 for instants before 1970.
    pub(crate) millis: u64,
    /// If true, `millis` differs from the text, which is more precise or before 1970.
    #[cfg_attr(not(feature = "cloudevents"), allow(dead_code, reason = "only a conversion asks"))]
    pub(crate) is_rounded: bool,
}

/// Parses the time of an event. Returns `None` if the text is not RFC 3339.
#[cfg(any(feature = "cloudevents", feature = "routing"))]
pub(crate) fn parse(text: &str) -> Option<Instant> {
    let (millis, is_rounded) = read(text)?;
    match u64::try_from(millis) {
        Ok(millis) => Some(Instant { millis, is_rounded }),
        Err(_) => Some(Instant { millis: 0, is_rounded: true }),
    }
}

/// Parses a text into Unix milliseconds, and true if the text is more precise.
fn read(text: &str) -> Option<(i64, bool)> {
    let mut rest = Reader(text.as_bytes());
    let year = rest.number(4)?;
    rest.take(b"-")?;
    let month = rest.number(2)?;
    rest.take(b"-")?;
    let day = rest.number(2)?;
    rest.take(b"Tt")?;
    let time = rest.time_of_day()?;
    let fraction = match rest.0.first() {
        Some(b'.') => {
            rest.take(b".")?;
            rest.digits()?
        }
        _ => &[],
    };
    let offset = match rest.take(b"Zz+-")? {
        b'Z' | b'z' => 0,
        sign => {
            let hours = rest.number(2).filter(|hours| *hours < 24)?;
            rest.take(b":")?;
            let minutes = rest.number(2).filter(|minutes| *minutes < 60)?;
            (hours * 60 + minutes) * 60 * if sign == b'-' { -1 } else { 1 }
        }
    };
    rest.end()?;
    let (seconds, is_leap) = seconds_of(year, month, day, time, offset)?;
    if is_leap {
        return Some((seconds * 1000 + 999, true));
    }
    let milli = |place: usize| fraction.get(place).map_or(0, |digit| i64::from(digit - b'0'));
    let millis = milli(0) * 100 + milli(1) * 10 + milli(2);
    Some((seconds * 1000 + millis, fraction.iter().skip(3).any(|digit| *digit != b'0')))
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Takes the next byte if it is one of these.
    fn take(&mut self, of: &[u8]) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        of.contains(first).then(|| self.0 = rest)?;
        Some(*first)
    }

    /// Takes all leading digits, at least one.
    fn digits(&mut self) -> Option<&'a [u8]> {
        let len = self.0.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (digits, rest) = self.0.split_at_checked(len).filter(|_| len > 0)?;
        self.0 = rest;
        Some(digits)
    }

    /// Takes a number of exactly `len` digits.
    fn number(&mut self, len: usize) -> Option<i64> {
        let (digits, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        digits.iter().try_fold(0, |number, digit| {
            digit.is_ascii_digit().then(|| number * 10 + i64::from(digit - b'0'))
        })
    }

    /// Takes `hh:mm:ss` as hours, minutes and seconds.
    fn time_of_day(&mut self) -> Option<(i64, i64, i64)> {
        let hour = self.number(2)?;
        self.take(b":")?;
        let minute = self.number(2)?;
        self.take(b":")?;
        Some((hour, minute, self.number(2)?))
    }

    fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

/// Returns the Unix seconds, and true if they precede a leap second. Returns `None` for a date or time that does not
/// exist.
fn seconds_of(
    year: i64,
    month: i64,
    day: i64,
    (hour, minute, second): (i64, i64, i64),
    offset: i64,
) -> Option<(i64, bool)> {
    let is_leap_year = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days_in_month = match month {
        2 if is_leap_year => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=days_in_month).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let days = days_until(year, month, day);
    let seconds = days * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second.min(59) - offset;
    if second < 60 {
        return Some((seconds, false));
    }
    // A leap second ends a month in UTC, regardless of the offset.
    let next_day = (seconds + 1).div_euclid(SECONDS_PER_DAY);
    let ends_month = (seconds + 1).rem_euclid(SECONDS_PER_DAY) == 0 && date_of(next_day).2 == 1;
    ends_month.then_some((seconds, true))
}

/// Returns the days from 1970-01-01 to this day of the Gregorian calendar. Internally years begin in March, so that the
/// leap day is their last.
pub(crate) fn days_until(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * DAYS_PER_400_YEARS + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Returns year, month and day of the Gregorian calendar, the given number of days after 1970-01-01.
pub(crate) fn date_of(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(DAYS_PER_400_YEARS), days.rem_euclid(DAYS_PER_400_YEARS));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + i64::from(month <= 2), month, day)
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
            assert_eq!(format_rfc3339(millis).unwrap(), text);
            assert_eq!(read(text).unwrap(), (i64::try_from(millis).unwrap(), false));
        }
        assert_eq!(format_rfc3339(MAX_MILLIS + 1), None);
        assert_eq!(format_rfc3339(u64::MAX), None);
    }

    #[test]
    fn every_form_of_rfc_3339_is_read() {
        for (text, millis, is_rounded) in [
            ("2024-02-29T14:34:56.789+02:00", 1_709_210_096_789, false),
            ("2024-02-29t12:34:56z", 1_709_210_096_000, false),
            ("2024-02-29T12:34:56.7Z", 1_709_210_096_700, false),
            ("2024-02-29T12:34:56.789000000000000000Z", 1_709_210_096_789, false),
            ("2024-02-29T12:34:56.7890000000000000001Z", 1_709_210_096_789, true),
            ("2024-02-29T12:34:56-00:00", 1_709_210_096_000, false),
            ("2024-02-28T12:35:56-23:59", 1_709_210_096_000, false),
            ("1969-12-31T23:59:59.9999Z", -1, true),
            ("1969-07-20T20:17:40Z", -14_182_940_000, false),
            ("0000-01-01T00:00:00Z", -62_167_219_200_000, false),
            ("9999-12-31T23:59:59-01:00", 253_402_304_399_000, false),
            // Leap seconds, at several offsets.
            ("2016-12-31T23:59:60Z", 1_483_228_799_999, true),
            ("2016-12-31T15:59:60.25-08:00", 1_483_228_799_999, true),
            ("2017-01-01T05:29:60+05:30", 1_483_228_799_999, true),
        ] {
            assert_eq!(read(text), Some((millis, is_rounded)), "{text}");
        }
    }

    #[test]
    fn what_is_not_rfc_3339_is_no_time() {
        for text in [
            "",
            "yesterday",
            "2024-02-29",
            "2024-02-29T12:34:56",
            "1709210096789",
            // Wrong separators.
            "2024-02-29 12:34:56Z",
            "2024-02-29_12:34:56Z",
            "2024-02-29\n12:34:56Z",
            "2024-02-29\u{2009}12:34:56Z",
            "2024-02-29T12:34:56,789Z",
            "2024-02-29T12:34:56.Z",
            "20240229T123456Z",
            "2024-W09-4T12:34:56Z",
            "2024-060T12:34:56Z",
            "2024-02-29T12:34Z",
            "24-02-29T12:34:56Z",
            "+2024-02-29T12:34:56Z",
            "2024-2-29T12:34:56Z",
            // Dates and times that do not exist.
            "2023-02-29T00:00:00Z",
            "1900-02-29T00:00:00Z",
            "2024-04-31T00:00:00Z",
            "2024-13-01T00:00:00Z",
            "2024-00-01T00:00:00Z",
            "2024-01-00T00:00:00Z",
            "2024-02-29T24:00:00Z",
            "2024-02-29T12:60:00Z",
            "2024-02-29T12:34:61Z",
            "2024-02-29T12:34:60Z",
            "2016-12-30T23:59:60Z",
            "2016-12-31T23:59:60+01:00",
            // Offsets.
            "2024-02-29T12:34:56+24:00",
            "2024-02-29T12:34:56+02:60",
            "2024-02-29T12:34:56+0200",
            "2024-02-29T12:34:56+02",
            "2024-02-29T12:34:56 +02:00",
            "2024-02-29T12:34:56Z[Europe/Berlin]",
            // Text around the timestamp.
            " 2024-02-29T12:34:56Z",
            "2024-02-29T12:34:56Z\n",
            "2024-02-29T12:34:56Z\0",
            "２024-02-29T12:34:56Z",
        ] {
            assert_eq!(parse_rfc3339(text), None, "{text:?}");
        }
    }

    /// Compares with the calendar of another library.
    #[cfg(feature = "cron")]
    #[test]
    fn every_day_of_four_hundred_years_is_that_of_the_calendar() {
        let mut date = jiff::civil::date(1899, 12, 31);
        for days in -25_568..=120_530_i64 {
            let (year, month, day) = date_of(days);
            assert_eq!((year, month, day), (date.year().into(), date.month().into(), date.day().into()));
            assert_eq!(days_until(year, month, day), days);
            date = date.tomorrow().unwrap();
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(millis in 0..=MAX_MILLIS) {
            prop_assert_eq!(read(&format_rfc3339(millis).unwrap()), Some((i64::try_from(millis).unwrap(), false)));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,40}", near in "[0-9]{4}-[0-1][0-9]-[0-3][0-9][Tt ][0-2][0-9]:[0-9]{2}:[0-6][0-9](\\.[0-9]{0,30})?([Zz]|[+-][0-9]{2}:[0-9]{2})") {
            let _ = parse_rfc3339(&text);
            if let Some(millis) = parse_rfc3339(&near) {
                prop_assert!(!near.contains(' '));
                prop_assert!((-62_167_305_540_000..=253_402_387_139_999).contains(&millis), "{}", millis);
            }
        }
    }
}
