//! Times as people write and read them.

use std::time::Duration;

use a3s_event::{Event, duration, timestamp};
use serde_json::Value;

/// Now, in Unix milliseconds, by the clock that stamps events.
pub(crate) fn now() -> u64 {
    Event::new("", "", "", "", Value::Null).timestamp
}

/// Unix milliseconds as RFC 3339 in UTC, with milliseconds also where they are zero, so that times stand in columns.
pub(crate) fn show(unix_ms: u64) -> String {
    timestamp::format_rfc3339(unix_ms).unwrap_or_else(|| unix_ms.to_string())
}

/// A time: RFC 3339, Unix milliseconds, or how long ago (`90s`, `15m`, `6h`, `7d`).
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    if let Ok(unix_ms) = text.parse() {
        return Ok(unix_ms);
    }
    if let Some(ago) = duration::parse(text) {
        let ago = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
        return Ok(now().saturating_sub(ago));
    }
    let unix_ms = timestamp::parse_rfc3339(text).ok_or_else(|| {
        "is no time: write 2018-02-07T01:26:13Z, Unix milliseconds, or how long ago, such as 15m".to_owned()
    })?;
    u64::try_from(unix_ms).map_err(|_| "lies before 1970".to_owned())
}

/// A duration: a number and its unit.
pub(crate) fn span(text: &str) -> Result<Duration, &'static str> {
    duration::parse(text).ok_or(duration::RULE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_every_form() {
        assert_eq!(parse("1517966773840"), Ok(1_517_966_773_840));
        assert_eq!(parse("2018-02-07T01:26:13.840Z"), Ok(1_517_966_773_840));
        assert_eq!(show(1_517_966_773_840), "2018-02-07T01:26:13.840Z");
        assert_eq!(show(1_517_966_773_000), "2018-02-07T01:26:13.000Z");
        let an_hour_ago = parse("1h").unwrap();
        assert!((3_600_000..4_000_000).contains(&(now() - an_hour_ago)));
        for wrong in [
            "",
            "h",
            "yesterday",
            "1w",
            "99999999999999999999d",
            "1969-01-01T00:00:00Z",
            "2018-04-05_17:31:00Z",
            "2018-04-05\n17:31:00Z",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
