//! Times in the forms that people write and read.

use std::time::Duration;

use a3s_event::{Event, duration, timestamp};
use serde_json::Value;

const MS_PER_DAY: u64 = 86_400_000;

/// The forms of a time, for error messages.
const FORMS: &str = "write a time such as 2018-02-07T01:26:13Z, a date such as 2018-02-07, now, today, yesterday, \
                     '2 hours ago', 15m (ago) or Unix milliseconds";

/// Returns the current Unix milliseconds, by the clock that stamps events.
pub(crate) fn now() -> u64 {
    Event::new("", "", "", "", Value::Null).timestamp
}

/// Formats Unix milliseconds as RFC 3339 in UTC. The milliseconds are always there, so that columns align.
pub(crate) fn show(unix_ms: u64) -> String {
    timestamp::format_rfc3339(unix_ms).unwrap_or_else(|| unix_ms.to_string())
}

/// Formats Unix milliseconds as a minute in UTC, such as `2018-02-07 01:26`, for narrow tables.
pub(crate) fn show_minute(unix_ms: u64) -> String {
    let full = show(unix_ms);
    match full.get(.."2018-02-07T01:26".len()) {
        Some(minute) if full.ends_with('Z') => minute.replacen('T', " ", 1),
        _ => full,
    }
}

/// Reads a time as Unix milliseconds. Dates, `today` and `yesterday` are midnight UTC.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let wrong = || format!("is not a time: {FORMS}");
    if let Ok(number) = text.parse() {
        return milliseconds(number);
    }
    if let Some(ago) = duration::parse(text).or_else(|| span_ago(text)) {
        return now().checked_sub(millis(ago)).ok_or_else(|| "is before 1970".to_owned());
    }
    let midnight = now() / MS_PER_DAY * MS_PER_DAY;
    let unix_ms = match text {
        "now" => return Ok(now()),
        "today" => return Ok(midnight),
        "yesterday" => return Ok(midnight - MS_PER_DAY),
        text => timestamp::parse_rfc3339(text).or_else(|| civil(text)).ok_or_else(wrong)?,
    };
    u64::try_from(unix_ms).map_err(|_| "is before 1970".to_owned())
}

/// A place in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Sequence(u64),
    /// Unix milliseconds.
    Time(u64),
}

/// Reads a sequence or a time.
pub(crate) fn sequence_or_time(text: &str) -> Result<Place, String> {
    match text.parse() {
        // A current time in milliseconds has 13 digits; no sequence reaches that.
        Ok(sequence) if sequence < 1_000_000_000_000 => Ok(Place::Sequence(sequence)),
        _ => parse(text).map(Place::Time),
    }
}

/// Checks that a number is Unix milliseconds, not a recent time in another unit.
fn milliseconds(number: u64) -> Result<u64, String> {
    let (unit, fitting) = match number {
        // As seconds 1973 to 2286, as milliseconds January to April 1970.
        100_000_000..10_000_000_000 => ("seconds", number * 1_000),
        // As milliseconds the year 5138 and later.
        100_000_000_000_000..100_000_000_000_000_000 => ("microseconds", number / 1_000),
        100_000_000_000_000_000.. => ("nanoseconds", number / 1_000_000),
        plausible => return Ok(plausible),
    };
    Err(format!("looks like {unit}; write milliseconds: {fitting}"))
}

/// Parses a span and `ago`, such as `2 hours ago`.
fn span_ago(text: &str) -> Option<Duration> {
    let mut words = text.strip_suffix("ago")?.split_whitespace();
    let (number, unit) = (words.next()?, words.next());
    if words.next().is_some() {
        return None;
    }
    let Some(unit) = unit else { return duration::parse(number) };
    let (factor, unit) = match unit.strip_suffix('s').unwrap_or(unit) {
        "second" | "sec" => (1, "s"),
        "minute" | "min" => (1, "m"),
        "hour" => (1, "h"),
        "day" => (1, "d"),
        "week" => (7, "d"),
        _ => return None,
    };
    let number = match number {
        "a" | "an" => 1,
        number => number.parse::<u64>().ok()?,
    };
    duration::parse(&format!("{}{unit}", number.checked_mul(factor)?))
}

/// Parses a date in UTC, with or without a time: `2018-02-07`, `2018-02-07 13:00`, `2018-02-07 13:00:05`.
fn civil(text: &str) -> Option<i64> {
    let (date, time) = text.split_once([' ', 'T']).unwrap_or((text, "00:00"));
    let seconds = if time.len() == "13:00".len() { ":00" } else { "" };
    let has_zone = time.contains(['Z', 'z', '+', '-']);
    (!has_zone).then(|| timestamp::parse_rfc3339(&format!("{date}T{time}{seconds}Z")))?
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Reads a duration: a number and its unit.
pub(crate) fn span(text: &str) -> Result<Duration, &'static str> {
    duration::parse(text).ok_or(duration::RULE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_every_form() {
        for (text, time) in [
            ("1517966773840", "2018-02-07T01:26:13.840Z"),
            ("2018-02-07T01:26:13.840Z", "2018-02-07T01:26:13.840Z"),
            ("2018-02-07T01:26:13+01:00", "2018-02-07T00:26:13.000Z"),
            ("2018-02-07", "2018-02-07T00:00:00.000Z"),
            ("2018-02-07 13:00", "2018-02-07T13:00:00.000Z"),
            ("2018-02-07 13:00:05", "2018-02-07T13:00:05.000Z"),
            ("2018-02-07T13:00:05.5", "2018-02-07T13:00:05.500Z"),
            ("0", "1970-01-01T00:00:00.000Z"),
            ("1000", "1970-01-01T00:00:01.000Z"),
        ] {
            assert_eq!(parse(text).map(show).as_deref(), Ok(time), "{text}");
        }
        let minute = show_minute(1_517_966_773_840);
        assert_eq!((minute.as_str(), parse(&minute)), ("2018-02-07 01:26", Ok(1_517_966_760_000)));
        const MINUTE: u64 = 60_000;
        for (text, ago) in [
            ("now", 0),
            ("1h", 60 * MINUTE),
            ("15m", 15 * MINUTE),
            ("90s ago", 90_000),
            ("an hour ago", 60 * MINUTE),
            ("2 hours ago", 120 * MINUTE),
            ("1 minute ago", MINUTE),
            ("3 days ago", 3 * MS_PER_DAY),
            ("2 weeks ago", 14 * MS_PER_DAY),
        ] {
            let time = parse(text).unwrap();
            assert!((ago..ago + MINUTE).contains(&(now() - time)), "{text}: {time}");
        }
        let (today, yesterday) = (parse("today").unwrap(), parse("yesterday").unwrap());
        assert!(today % MS_PER_DAY == 0 && now() - today <= MS_PER_DAY && today - yesterday == MS_PER_DAY);
    }

    #[test]
    fn other_texts_are_refused() {
        for wrong in [
            "",
            "h",
            "ago",
            "someday",
            "1w",
            "hours ago",
            "2 ago",
            "2 years ago",
            "2 hours 3 ago",
            "99999999999999999999 days ago",
            "99999999999999999999d",
            "99999999999999999999",
            "-5",
            "1969-01-01T00:00:00Z",
            "1969-01-01",
            "2018-02-30",
            "2018-04-05_17:31:00Z",
            "2018-04-05\n17:31:00Z",
            "2018-04-05 17:31Z",
            "2018-04-05 25:00",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse("20000000h").unwrap_err(), "is before 1970");
    }

    #[test]
    fn a_sequence_differs_from_a_time() {
        for (text, place) in [
            ("17", Place::Sequence(17)),
            ("1517966773", Place::Sequence(1_517_966_773)),
            ("1517966773840", Place::Time(1_517_966_773_840)),
            ("2018-02-07", Place::Time(1_517_961_600_000)),
        ] {
            assert_eq!(sequence_or_time(text), Ok(place));
        }
        assert!(sequence_or_time("someday").is_err());
    }

    #[test]
    fn a_number_in_another_unit_is_refused_with_the_milliseconds() {
        for (text, why) in [
            ("1517966773", "looks like seconds; write milliseconds: 1517966773000"),
            ("1517966773840000", "looks like microseconds; write milliseconds: 1517966773840"),
            ("1517966773840000000", "looks like nanoseconds; write milliseconds: 1517966773840"),
        ] {
            assert_eq!(parse(text).unwrap_err(), why);
        }
    }
}
