//! Times: an accepted text has the form of RFC 3339, and a round trip preserves the time.
//!
//! Input: a text.

use a3s_event::timestamp::{format_rfc3339, parse_rfc3339};

pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Some(millis) = parse_rfc3339(text) else { return };
    let shape: String =
        text.chars().map(|c| if c.is_ascii_digit() { '9' } else { c.to_ascii_uppercase() }).collect();
    let rest = shape.strip_prefix("9999-99-99T99:99:99").expect("date and time");
    let fraction = rest.strip_prefix('.');
    let offset = fraction.unwrap_or(rest).trim_start_matches('9');
    assert!(
        fraction.is_none_or(|fraction| fraction.len() > offset.len()),
        "a fraction without digits: {text}"
    );
    assert!(["Z", "+99:99", "-99:99"].contains(&offset), "{text}");
    let Ok(unix_ms) = u64::try_from(millis) else { return };
    if let Some(written) = format_rfc3339(unix_ms) {
        assert_eq!(parse_rfc3339(&written), Some(millis), "{text} is written {written}");
    }
}
