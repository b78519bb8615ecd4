//! The fields of a cron expression, and the next and last time that they name on a clock without a zone.

use croner::parser::CronParser;
use croner::{Cron, Weekday};

use crate::text::shorten_to;
use crate::timestamp::{SECONDS_PER_DAY, date_of, days_until};

const SHORTHANDS: [&str; 6] = ["@hourly", "@daily", "@weekly", "@monthly", "@yearly", "@annually"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];

/// The kind of a field.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Number,
    Day,
    Month,
    Weekday,
}

/// Times on a wall clock, in seconds as if the clock showed UTC.
#[derive(Clone)]
pub(super) struct Fields {
    cron: Cron,
    hours: Vec<i64>,
    minutes: Vec<i64>,
    seconds: Vec<i64>,
    /// If true, no field of the time of day begins with `*`.
    pub(super) is_fixed: bool,
}

impl Fields {
    pub(super) fn parse(expression: &str) -> Result<Self, String> {
        let expression = expression.trim_matches(|c: char| c.is_ascii_whitespace());
        let is_shorthand = SHORTHANDS.iter().any(|name| name.eq_ignore_ascii_case(expression));
        let texts: Vec<&str> = expression.split(is_blank).filter(|text| !text.is_empty()).collect();
        let mut is_fixed = !expression.eq_ignore_ascii_case(SHORTHANDS[0]);
        let mut is_and = false;
        if !is_shorthand {
            let (time, date) = match texts.len() {
                5..=7 => texts.split_at(if texts.len() == 5 { 2 } else { 3 }),
                found => return Err(format!("has {found} fields instead of 5 to 7")),
            };
            for text in time {
                check(text, Kind::Number)?;
            }
            for (text, kind) in date.iter().zip([Kind::Day, Kind::Month, Kind::Weekday, Kind::Number]) {
                check(text, kind)?;
            }
            is_fixed = !time.iter().any(|text| text.starts_with('*'));
            // As in cron, only two restricted fields add up, and a field that begins with `*` is not restricted.
            is_and =
                [date.first(), date.get(2)].into_iter().flatten().any(|text| text.starts_with(['*', '?']));
        }
        let cron = CronParser::builder().dom_and_dow(is_and).build().parse(expression).map_err(|error| {
            // The parser's reason becomes part of our sentence. It quotes the expression unchanged.
            let text = shorten_to(&error.to_string(), 200);
            let mut letters = text.trim_end_matches('.').chars();
            let first = letters.next().map(|first| first.to_ascii_lowercase());
            first.into_iter().chain(letters).collect::<String>()
        })?;
        let values = |values: Vec<u16>| values.into_iter().map(i64::from).collect();
        Ok(Self {
            hours: values(cron.pattern.hours.values()),
            minutes: values(cron.pattern.minutes.values()),
            seconds: values(cron.pattern.seconds.values()),
            cron,
            is_fixed,
        })
    }

    /// Returns the first time at or after this one.
    pub(super) fn first_from(&self, wall: i64) -> Option<i64> {
        let (mut day, mut least) = (wall.div_euclid(SECONDS_PER_DAY), wall.rem_euclid(SECONDS_PER_DAY));
        loop {
            let (year, month, of_month) = date_of(day);
            if year > i64::from(croner::YEAR_UPPER_LIMIT) {
                return None;
            }
            let next = if !self.has_year(year) {
                days_until(year + 1, 1, 1)
            } else if !self.has_month(month) {
                days_until(year + month / 12, month % 12 + 1, 1)
            } else {
                if self.has_day(year, month, of_month, day)
                    && let Some(second) = self.seconds_of_day().find(|second| *second >= least)
                {
                    return Some(day * SECONDS_PER_DAY + second);
                }
                day + 1
            };
            (day, least) = (next, 0);
        }
    }

    /// Returns the last time at or before this one, from 1970 on.
    pub(super) fn last_to(&self, wall: i64) -> Option<i64> {
        let (mut day, mut most) = (wall.div_euclid(SECONDS_PER_DAY), wall.rem_euclid(SECONDS_PER_DAY));
        loop {
            let (year, month, of_month) = date_of(day);
            if year < 1970 {
                return None;
            }
            let before = if !self.has_year(year) {
                days_until(year, 1, 1)
            } else if !self.has_month(month) {
                days_until(year, month, 1)
            } else {
                if self.has_day(year, month, of_month, day)
                    && let Some(second) = self.seconds_of_day().take_while(|second| *second <= most).last()
                {
                    return Some(day * SECONDS_PER_DAY + second);
                }
                day
            };
            (day, most) = (before - 1, SECONDS_PER_DAY);
        }
    }

    fn seconds_of_day(&self) -> impl Iterator<Item = i64> {
        self.hours.iter().flat_map(move |hour| {
            self.minutes.iter().flat_map(move |minute| {
                self.seconds.iter().map(move |second| hour * 3600 + minute * 60 + second)
            })
        })
    }

    fn has_year(&self, year: i64) -> bool {
        i32::try_from(year).is_ok_and(|year| self.cron.pattern.year_match(year).unwrap_or(false))
    }

    fn has_month(&self, month: i64) -> bool {
        u32::try_from(month).is_ok_and(|month| self.cron.pattern.month_match(month).unwrap_or(false))
    }

    fn has_day(&self, year: i64, month: i64, of_month: i64, day: i64) -> bool {
        // The first day of 1970 was a Thursday.
        let weekday = u32::try_from((day + 4).rem_euclid(7)).map(Weekday::from_days_from_sunday);
        let (Ok(year), Ok(month), Ok(of_month), Ok(weekday)) =
            (i32::try_from(year), u32::try_from(month), u32::try_from(of_month), weekday)
        else {
            return false;
        };
        self.cron.pattern.day_match(year, month, of_month, weekday).unwrap_or(false)
    }
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t')
}

/// Checks that a field has a documented form. The parser would ignore parts of some other forms, and would accept names
/// of months as days of the week.
fn check(field: &str, kind: Kind) -> Result<(), String> {
    let entries = match (field, kind) {
        ("?", Kind::Day | Kind::Weekday) => return Ok(()),
        (field, Kind::Weekday) => field.strip_prefix('+').unwrap_or(field),
        (field, _) => field,
    };
    match entries.split(',').find(|entry| !is_entry(entry, kind)) {
        None => Ok(()),
        Some(entry) => {
            Err(format!("\"{}\" cannot be read in \"{}\"", shorten_to(entry, 20), shorten_to(field, 40)))
        }
    }
}

fn is_entry(entry: &str, kind: Kind) -> bool {
    let is_number =
        |text: &str| !text.is_empty() && text.len() <= 4 && text.bytes().all(|b| b.is_ascii_digit());
    let is_value = |text: &str| {
        let names: &[&str] = match kind {
            Kind::Month => &MONTHS,
            Kind::Weekday => &WEEKDAYS,
            Kind::Number | Kind::Day => &[],
        };
        is_number(text) || names.iter().any(|name| name.eq_ignore_ascii_case(text))
    };
    let is_range =
        |text: &str| text.split_once('-').is_some_and(|(first, last)| is_value(first) && is_value(last));
    if let Some((range, step)) = entry.split_once('/') {
        return (range == "*" || is_range(range))
            && is_number(step)
            && step.bytes().any(|digit| digit != b'0');
    }
    let ends = |text: &str, end: char| text.strip_suffix([end, end.to_ascii_lowercase()]).map(str::to_owned);
    match kind {
        Kind::Day if entry.eq_ignore_ascii_case("L") || entry.eq_ignore_ascii_case("LW") => true,
        Kind::Day if ends(entry, 'W').is_some_and(|day| is_number(&day)) => true,
        Kind::Weekday
            if ends(entry, 'L')
                .is_some_and(|day| is_value(&day) || day.strip_suffix('#').is_some_and(is_value)) =>
        {
            true
        }
        Kind::Weekday if entry.split_once('#').is_some_and(|(day, nth)| is_value(day) && is_number(nth)) => {
            true
        }
        _ => entry == "*" || is_value(entry) || is_range(entry),
    }
}
