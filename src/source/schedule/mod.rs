//! Cron expressions in a time zone.

mod fields;
mod zone;

use std::fmt;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use self::fields::Fields;
use crate::clock::unix_millis;
use crate::error::{EventError, Result};
use crate::text::shorten;
use crate::timestamp::SECONDS_PER_DAY;

/// Longest expression in bytes.
const MAX_LEN: usize = 256;

/// The times that a cron expression names, in a time zone.
///
/// An expression has five fields (minute, hour, day of the month, month, day of the week) or six, with the second in front,
/// or seven, with the year at the end. Lists, ranges and steps of ranges are read everywhere, names (`Mon`, `Jan`) in their
/// fields, `L`, `LW` and `15W` for the day of the month, `5L` and `2#3` for the day of the week, and `@hourly`, `@daily`,
/// `@weekly`, `@monthly` and `@yearly`; what is written in another way is refused. Where the day of the month and the day of
/// the week are both given, either one suffices, as cron has it: a field that begins with `*`, such as `*/2`, counts as not
/// given, and restricts the other. With a `+` before the day of the week, both are needed.
///
/// The times of a schedule are **fixed** when none of its fields for second, minute and hour begins with `*`, and follow the
/// clock's own course otherwise, as `*/15 * * * *` does. Where clocks are set forward, fixed times that do not exist that day
/// come once, at the first moment behind the gap; where they are set back, a fixed time that exists twice comes once, at the
/// first. Times that are not fixed come whenever the clock shows them: not at all in a gap, and twice where it shows them
/// twice. The zone's rules come from the system, or from the copy that is built in.
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
    fields: Fields,
    expression: String,
    zone: TimeZone,
}

/// A time in which the zone's clocks run evenly, in Unix seconds.
struct Span {
    /// The first second; `None` where it has no beginning.
    start: Option<i64>,
    /// The first second behind it.
    end: Option<i64>,
    /// What clocks show, less Unix seconds.
    offset: i64,
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
        let fields = Fields::parse(expression).map_err(wrong)?;
        let zone = zone::named(zone)?;
        let schedule = Self { fields, expression: expression.to_owned(), zone };
        match schedule.next_after(unix_millis()) {
            Some(_) => Ok(schedule),
            None => Err(wrong("names no time to come".to_owned())),
        }
    }

    /// The first time behind this one, both in Unix milliseconds; `None` when there is none.
    pub fn next_after(&self, unix_ms: u64) -> Option<u64> {
        let mut from = i64::try_from(unix_ms / 1_000).ok()? + 1;
        loop {
            let span = self.span(from)?;
            // A fixed time that clocks jumped over is due where they landed, and one that they show again is past.
            let reached = span.start.filter(|_| self.fields.is_fixed).and_then(|start| self.reached(start));
            let least = match reached {
                Some(reached) if span.start == Some(from) => reached,
                reached => reached.unwrap_or(i64::MIN).max(from + span.offset),
            };
            let wall = self.fields.first_from(least)?;
            let next = (wall - span.offset).max(from);
            let Some(end) = span.end.filter(|end| next >= *end) else {
                return u64::try_from(next).ok()?.checked_mul(1_000);
            };
            // What clocks show again after `end` has been looked at, unless the search began less than that before it.
            let is_far = end - from > SECONDS_PER_DAY;
            from = if is_far { end.max(next - 2 * SECONDS_PER_DAY) } else { end };
        }
    }

    /// The last time up to this one.
    pub(super) fn last_until(&self, unix_ms: u64) -> Option<u64> {
        let mut to = i64::try_from(unix_ms / 1_000).ok()?;
        loop {
            let span = self.span(to)?;
            let start = span.start.unwrap_or(i64::MIN);
            let first = start.saturating_add(span.offset);
            let reached = span.start.filter(|_| self.fields.is_fixed).and_then(|start| self.reached(start));
            let wall = self.fields.last_to(to + span.offset)?;
            if wall >= first.max(reached.unwrap_or(i64::MIN)) {
                return u64::try_from(wall - span.offset).ok()?.checked_mul(1_000);
            }
            if reached.is_some_and(|reached| reached < first && wall >= reached) {
                return u64::try_from(start).ok()?.checked_mul(1_000);
            }
            to = span.start? - 1;
        }
    }

    fn span(&self, at: i64) -> Option<Span> {
        let moment = Timestamp::from_second(at).ok()?;
        let behind = Timestamp::from_second(at + 1).ok()?;
        let second = |transition: jiff::tz::TimeZoneTransition<'_>| transition.timestamp().as_second();
        Some(Span {
            start: self.zone.preceding(behind).next().map(second),
            end: self.zone.following(moment).next().map(second),
            offset: self.zone.to_offset(moment).seconds().into(),
        })
    }

    /// The latest time that clocks had come to when a span began.
    fn reached(&self, start: i64) -> Option<i64> {
        /// Clocks that are changed more often than this within two days are not looked behind.
        const MOST: usize = 4;
        let mut latest = i64::MIN;
        let mut at = start;
        for _ in 0..MOST {
            let before = self.span(at - 1)?;
            latest = latest.max(at + before.offset);
            match before.start {
                Some(earlier) if start - earlier < 2 * SECONDS_PER_DAY => at = earlier,
                _ => break,
            }
        }
        Some(latest)
    }
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
mod tests;
