//! Cron expressions in a time zone.

use std::fmt;

use croner::Cron;
use croner::parser::CronParser;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::error::{EventError, Result, shorten, shorten_to};
use crate::types::unix_millis;

/// Longest expression in bytes.
const MAX_LEN: usize = 256;

/// The times that a cron expression names, in a time zone.
///
/// An expression has five fields (minute, hour, day of the month, month, day of the week) or six, with the second in front,
/// or seven, with the year at the end. Names (`Mon`, `Jan`), lists, ranges, steps, `L`, `W` and `#` are read, and
/// `@hourly`, `@daily`, `@weekly`, `@monthly` and `@yearly`. Where the day of the month and the day of the week are both
/// given, either one suffices, as cron has it.
///
/// Where clocks are set forward, a fixed time that does not exist that day comes at the first moment behind the gap; where
/// they are set back, a fixed time that exists twice comes once, at the first. Times with a wildcard or a step, such as
/// `*/15 * * * *`, go on evenly through both. The zone's rules come from the system, or from the copy that is built in.
///
/// ```
/// use a3s_event::source::Schedule;
///
/// # fn main() -> a3s_event::Result<()> {
/// let nightly = Schedule::new("30 2 * * *", "Europe/Berlin")?;
/// // 2026-01-15T00:00:00Z, and 02:30 in Berlin on that day.
/// assert_eq!(nightly.next_after(1_768_435_200_000), Some(1_768_440_600_000));
/// assert!(Schedule::new("60 * * * *", "UTC").is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Schedule {
    cron: Cron,
    expression: String,
    zone: TimeZone,
}

impl Schedule {
    /// The times of an expression in a zone of the time zone database, for instance `Europe/Berlin` or `UTC`.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] for an expression that cannot be read, one that names no time to come, and an unknown zone.
    pub fn new(expression: &str, zone: &str) -> Result<Self> {
        let wrong =
            |rule: String| EventError::Config(format!("cron expression \"{}\": {rule}", shorten(expression)));
        if expression.len() > MAX_LEN {
            return Err(wrong(format!("is {} bytes long, at most {MAX_LEN} are allowed", expression.len())));
        }
        if expression.trim_start().to_ascii_lowercase().starts_with("@every") {
            return Err(wrong("an interval is no expression; CronSource::new takes one".to_owned()));
        }
        let cron = CronParser::new().parse(expression).map_err(|error| wrong(rule_of(&error)))?;
        let zone = TimeZone::get(zone).map_err(|_| {
            EventError::Config(format!("time zone \"{}\": is not in the time zone database", shorten(zone)))
        })?;
        let schedule = Self { cron, expression: expression.to_owned(), zone };
        match schedule.next_after(unix_millis()) {
            Some(_) => Ok(schedule),
            None => Err(wrong("names no time to come".to_owned())),
        }
    }

    /// The first time behind this one, both in Unix milliseconds; `None` when there is none.
    pub fn next_after(&self, unix_ms: u64) -> Option<u64> {
        let from =
            Timestamp::from_millisecond(i64::try_from(unix_ms).ok()?).ok()?.to_zoned(self.zone.clone());
        let next = self.cron.find_next_occurrence(&from, false).ok()?;
        u64::try_from(next.timestamp().as_millisecond()).ok()
    }

    /// The last time up to this one.
    pub(super) fn last_until(&self, unix_ms: u64) -> Option<u64> {
        // The search works on whole seconds.
        let second = i64::try_from(unix_ms / 1_000).ok()?;
        let from = Timestamp::from_second(second).ok()?.to_zoned(self.zone.clone());
        let last = self.cron.find_previous_occurrence(&from, true).ok()?;
        u64::try_from(last.timestamp().as_millisecond()).ok()
    }
}

/// The parser's reason as part of a sentence of ours. It quotes the expression as it is.
fn rule_of(error: &croner::errors::CronError) -> String {
    let text = shorten_to(&error.to_string(), 200);
    let mut letters = text.trim_end_matches('.').chars();
    let first = letters.next().map(|first| first.to_ascii_lowercase());
    first.into_iter().chain(letters).collect()
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Schedule")
            .field("expression", &self.expression)
            .field("zone", &self.zone.iana_name())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(text: &str) -> u64 {
        u64::try_from(text.parse::<Timestamp>().unwrap().as_millisecond()).unwrap()
    }

    /// The times between two moments, as the zone's clocks show them.
    fn times(expression: &str, zone: &str, from: &str, to: &str) -> Vec<String> {
        let schedule = Schedule::new(expression, zone).unwrap();
        let mut found = Vec::new();
        let mut at = ms(from);
        while let Some(next) = schedule.next_after(at).filter(|next| *next <= ms(to)) {
            let shown = Timestamp::from_millisecond(i64::try_from(next).unwrap()).unwrap();
            found.push(shown.to_zoned(schedule.zone.clone()).strftime("%d %H:%M %z").to_string());
            at = next;
        }
        found
    }

    #[test]
    fn bad_expressions_are_refused_with_the_reason() {
        for wrong in [
            "",
            "* * * *",
            "* * * * * * * *",
            "60 * * * *",
            "*/0 * * * *",
            "5-1 * * * *",
            "* 25 * * *",
            "* * 32 * *",
            "* * * 13 *",
            "a * * * *",
            "30 2 30 2 *",
            "0 0 0 1 1 * 2001",
            "@every -5s",
            "@every 0s",
            "@nonsense",
            "* * * * *\0",
            "é * * * *",
            &"1,".repeat(10_000),
        ] {
            let error = Schedule::new(wrong, "UTC").unwrap_err();
            assert!(
                matches!(&error, EventError::Config(text) if text.contains("cron expression")),
                "{wrong}: {error}"
            );
            assert!(error.to_string().len() < 400 && !error.to_string().contains('\n'), "{error}");
        }
        for zone in ["", "Mars/Olympus", "../etc/passwd", "Europe/Berlin\0"] {
            let error = Schedule::new("* * * * *", zone).unwrap_err();
            assert!(matches!(&error, EventError::Config(text) if text.contains("time zone")), "{error}");
        }
    }

    #[test]
    fn five_six_and_seven_fields_and_names_are_read() {
        let noon = "2026-06-01T12:00:00Z";
        for (expression, expected) in [
            ("5 * * * *", "01 12:05 +0000"),
            ("30 5 * * * *", "01 12:05 +0000"),
            ("0 0 0 1 1 * 2027", "01 00:00 +0000"),
            ("0 9 * * Tue", "02 09:00 +0000"),
            ("@daily", "02 00:00 +0000"),
            ("0 0 L * *", "30 00:00 +0000"),
        ] {
            assert_eq!(times(expression, "UTC", noon, "2027-01-02T00:00:00Z")[0], expected, "{expression}");
        }
        let seconds = Schedule::new("*/10 * * * * *", "UTC").unwrap();
        assert_eq!(seconds.next_after(ms(noon) + 1), Some(ms(noon) + 10_000));
    }

    /// Clocks in Berlin go from 02:00 to 03:00 on 29 March 2026.
    #[test]
    fn a_time_in_the_gap_comes_once_on_that_day() {
        let (from, to) = ("2026-03-27T23:00:00Z", "2026-03-30T22:00:00Z");
        assert_eq!(
            times("30 2 * * *", "Europe/Berlin", from, to),
            ["28 02:30 +0100", "29 03:00 +0200", "30 02:30 +0200"]
        );
        let (from, to) = ("2026-03-29T00:20:00Z", "2026-03-29T02:00:00Z");
        assert_eq!(
            times("*/30 * * * *", "Europe/Berlin", from, to),
            ["29 01:30 +0100", "29 03:00 +0200", "29 03:30 +0200", "29 04:00 +0200"]
        );
    }

    /// Clocks in Berlin go from 03:00 back to 02:00 on 25 October 2026.
    #[test]
    fn a_time_in_the_fold_comes_once_and_steps_go_on() {
        let (from, to) = ("2026-10-23T22:00:00Z", "2026-10-26T23:00:00Z");
        assert_eq!(
            times("30 2 * * *", "Europe/Berlin", from, to),
            ["24 02:30 +0200", "25 02:30 +0200", "26 02:30 +0100"]
        );
        let (from, to) = ("2026-10-24T23:50:00Z", "2026-10-25T02:00:00Z");
        assert_eq!(
            times("*/30 * * * *", "Europe/Berlin", from, to),
            ["25 02:00 +0200", "25 02:30 +0200", "25 02:00 +0100", "25 02:30 +0100", "25 03:00 +0100"]
        );
    }

    #[test]
    fn the_last_time_is_found_backwards() {
        let schedule = Schedule::new("*/10 * * * * *", "Europe/Berlin").unwrap();
        let noon = ms("2026-06-01T12:00:00Z");
        assert_eq!(schedule.last_until(noon), Some(noon));
        assert_eq!(schedule.last_until(noon + 9_999), Some(noon));
        assert_eq!(schedule.last_until(noon - 1), Some(noon - 10_000));
        assert_eq!(schedule.next_after(u64::MAX), None);
    }
}
