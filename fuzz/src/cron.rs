//! Cron expressions: times increase and none is skipped. In UTC, the times of plain fields are those of a calendar.
//!
//! Input: a line with an expression, one with a time zone, then a time in Unix milliseconds as decimal digits.

use std::collections::BTreeSet;

use a3s_event::source::Schedule;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::check_error;

const MINUTE: u64 = 60_000;
/// Number of minutes that the calendar is searched.
const HORIZON: u64 = 2 * 24 * 60;
/// The start of the year 2100. Later times are not tested.
const LATEST: u64 = 4_102_444_800_000;

pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let [expression, zone, at] = [(); 3].map(|()| lines.next().unwrap_or_default());
    let schedule = match Schedule::new(expression, zone) {
        Ok(schedule) => schedule,
        Err(error) => return check_error(&error),
    };
    let from = at.trim().parse().unwrap_or(0) % LATEST;
    let mut at = from;
    for _ in 0..4 {
        let Some(next) = schedule.next_after(at) else { break };
        assert!(next > at, "{next} comes behind {at}");
        assert_eq!(next % 1_000, 0, "{next} is no whole second");
        // Any time in between has the same next time.
        for between in [at + (next - at) / 2, next - 1] {
            assert_eq!(schedule.next_after(between), Some(next), "behind {between}, between {at} and {next}");
        }
        at = next;
    }
    if let Some(calendar) = Calendar::read(expression).filter(|_| zone == "UTC") {
        let found = schedule.next_after(from).filter(|next| *next <= from + (HORIZON - 1) * MINUTE);
        assert_eq!(found, calendar.next_after(from), "behind {from}");
    }
}

/// Reference implementation: five fields with lists of numbers, ranges and `*`, with steps.
struct Calendar {
    fields: [Field; 5],
}

struct Field {
    values: BTreeSet<i8>,
    is_any: bool,
}

impl Calendar {
    fn read(expression: &str) -> Option<Self> {
        let texts: Vec<&str> = expression.split_ascii_whitespace().collect();
        let texts: [&str; 5] = texts.try_into().ok()?;
        let limits = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 7)];
        let mut fields = std::iter::zip(texts, limits).map(|(text, limits)| Field::read(text, limits));
        let fields = [fields.next()??, fields.next()??, fields.next()??, fields.next()??, fields.next()??];
        Some(Self { fields })
    }

    fn next_after(&self, from: u64) -> Option<u64> {
        (1..HORIZON).map(|minutes| from / MINUTE * MINUTE + minutes * MINUTE).find(|at| self.names(*at))
    }

    fn names(&self, unix_ms: u64) -> bool {
        let at = Timestamp::from_millisecond(unix_ms.try_into().expect("a time before 2101"));
        let at = at.expect("a time before 2101").to_zoned(TimeZone::UTC);
        let [minute, hour, day, month, weekday] = &self.fields;
        let sunday_first = at.weekday().to_sunday_zero_offset();
        let on_day = day.values.contains(&at.day());
        let on_weekday =
            weekday.values.contains(&sunday_first) || (sunday_first == 0 && weekday.values.contains(&7));
        // If both are restricted, either one suffices.
        let is_day = if day.is_any || weekday.is_any { on_day && on_weekday } else { on_day || on_weekday };
        minute.values.contains(&at.minute())
            && hour.values.contains(&at.hour())
            && month.values.contains(&at.month())
            && is_day
    }
}

impl Field {
    fn read(text: &str, (min, max): (i8, i8)) -> Option<Self> {
        let number =
            |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<i8>().ok())?;
        let mut values = BTreeSet::new();
        for entry in text.split(',') {
            let (range, step) = entry.split_once('/').unwrap_or((entry, "1"));
            let step = usize::try_from(number(step)?).ok().filter(|step| *step > 0)?;
            let (first, last) = match range.split_once('-') {
                _ if range == "*" => (min, max),
                Some((first, last)) => (number(first)?, number(last)?),
                // Programs disagree about a step after a single number.
                None if entry.contains('/') => return None,
                None => (number(range)?, number(range)?),
            };
            values.extend((first..=last).step_by(step));
        }
        Some(Self { values, is_any: text.starts_with('*') })
    }
}
