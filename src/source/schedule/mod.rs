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

/// Maximum length of an expression in bytes.
const MAX_LEN: usize = 256;

/// A cron expression in a time zone.
///
/// An expression has five fields: minute, hour, day of the month, month, day of the week. With six fields, the first
/// one is the seconds. With seven fields, the last one is the year in addition. The fields may have these forms:
///
/// - lists, ranges and steps of ranges in every field;
/// - names such as `Mon` and `Jan` in their fields;
/// - `L`, `LW` and `15W` for the day of the month;
/// - `5L` and `2#3` for the day of the week.
///
/// `@hourly`, `@daily`, `@weekly`, `@monthly` and `@yearly` replace all fields. Every other form is refused.
///
/// If the day of the month and the day of the week are both given, either one suffices, as in cron. A field that begins
/// with `*`, such as `*/2`, counts as not given and restricts the other one. With a `+` before the day of the week,
/// both must match.
///
/// The times of a schedule are **fixed** if none of its fields for second, minute and hour begins with `*`. The times
/// of all other schedules, such as `*/15 * * * *`, follow the clock.
///
/// - When clocks are set forward, the fixed times that they skip fire once, together, at the first moment after the
///   gap.
/// - When clocks are set back, a fixed time that they show twice fires once, the first time.
/// - Other times fire whenever the clock shows them: never in a gap, and twice if the clock shows them twice.
///
/// The rules of the zone come from the system or from the built-in copy.
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

/// A period in which the zone's clocks run evenly, in Unix seconds.
struct Span {
    /// First second; `None` if the period has no beginning.
    start: Option<i64>,
    /// First second after the period; `None` if it has no end.
    end: Option<i64>,
    /// Local time minus Unix time, in seconds.
    offset: i64,
}

impl Schedule {
    /// Parses an expression for a zone of the time zone database, for instance `Europe/Berlin` or `UTC`.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] for an invalid expression, an expression without a time in the future, or an unknown
    /// zone.
    pub fn new(expression: &str, zone: &str) -> Result<Self> {
        let wrong =
            |rule: String| EventError::Config(format!("cron expression \"{}\": {rule}", shorten(expression)));
        if expression.len() > MAX_LEN {
            return Err(wrong(format!("is {} bytes long, at most {MAX_LEN} are allowed", expression.len())));
        }
        if expression.trim_start().to_ascii_lowercase().starts_with("@every") {
            return Err(wrong("an interval is not an expression; use CronSource::new".to_owned()));
        }
        let fields = Fields::parse(expression).map_err(wrong)?;
        let zone = zone::named(zone)?;
        let schedule = Self { fields, expression: expression.to_owned(), zone };
        match schedule.next_after(unix_millis()) {
            Some(_) => Ok(schedule),
            None => Err(wrong("matches no future time".to_owned())),
        }
    }

    /// Returns the first time after this one, both in Unix milliseconds; `None` if there is none.
    pub fn next_after(&self, unix_ms: u64) -> Option<u64> {
        let mut from = i64::try_from(unix_ms / 1_000).ok()? + 1;
        loop {
            let span = self.span(from)?;
            // A fixed time in a gap is due at the end of the gap, and one that the clock shows again is past.
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
            // Times that the clock shows again after `end` were already checked, unless the search began less than a
            // day before it.
            let is_far = end - from > SECONDS_PER_DAY;
            from = if is_far { end.max(next - 2 * SECONDS_PER_DAY) } else { end };
        }
    }

    /// Returns the last time at or before this one.
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

    /// Returns the latest local time that clocks had reached when a period began.
    fn reached(&self, start: i64) -> Option<i64> {
        /// Number of changes within two days after which the search stops.
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
