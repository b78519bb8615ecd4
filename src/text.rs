//! External text, prepared for errors and logs.

/// Prepares a value for an error or a log line: at most 64 characters, with control and invisible characters escaped.
pub fn shorten(value: &str) -> String {
    shorten_to(value, 64)
}

/// Prepares a value like [`shorten`], with another limit.
pub(crate) fn shorten_to(value: &str, limit: usize) -> String {
    let mut out = String::new();
    for (count, c) in value.chars().enumerate() {
        if count == limit {
            out.push('…');
            break;
        }
        if c.is_control() || is_invisible(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// Returns the message of a serde error without the JSON values that it quotes. Errors end up in logs and dead letters,
/// and a payload may be secret. Text that may contain values is left out.
pub fn without_values(error: &serde_json::Error) -> String {
    let text = error.to_string();
    if !error.is_data() {
        return text;
    }
    let place = format!(" at line {} column {}", error.line(), error.column());
    let (text, place) = text.strip_suffix(&place).map_or((&*text, ""), |text| (text, &*place));
    let begins = |beginnings: &[&str]| beginnings.iter().any(|beginning| text.starts_with(beginning));
    // These name fields of the type, or a repeated key.
    if begins(&["missing field `", "duplicate field `", "data did not match any variant", "key \""]) {
        return format!("{text}{place}");
    }
    // Split at the last match: a quoted value may contain another one, but the expectation of the type contains none.
    match text.rsplit_once(", expected ") {
        Some((found, expected)) if begins(&["invalid ", "unknown "]) => {
            let found = found.split(['"', '`']).next().unwrap_or_default().trim_end();
            format!("{found}, expected {expected}{place}")
        }
        _ => format!("not of the expected form{place}"),
    }
}

/// Returns true for characters that print as nothing. Names that look the same must be the same.
pub(crate) fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_of_json_are_told_without_its_values() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        #[expect(dead_code, reason = "only read")]
        struct Card {
            number: u64,
            kind: Kind,
            last: Option<char>,
        }
        #[derive(Debug, serde::Deserialize)]
        enum Kind {
            Credit,
            Debit,
        }
        for (json, expected) in [
            (r#"{"number": "canary"}"#, "invalid type: string, expected u64 at line 1 column 19"),
            (
                r#"{"number": "canary\", expected \"canary"}"#,
                "invalid type: string, expected u64 at line 1 column 40",
            ),
            (r#"{"number": -4111}"#, "invalid value: integer, expected u64 at line 1 column 16"),
            (r#"{"number": {}}"#, "invalid type: map, expected u64 at line 1 column 11"),
            (r#"{"kind": "canary"}"#, "unknown variant, expected `Credit` or `Debit` at line 1 column 17"),
            (
                r#"{"canary": 1}"#,
                "unknown field, expected one of `number`, `kind`, `last` at line 1 column 9",
            ),
            (r#"{"last": "canary"}"#, "invalid value: string, expected a character at line 1 column 17"),
            (r#"{"number": 1}"#, "missing field `kind` at line 1 column 13"),
            (r#"{"number": 1, "number": 2}"#, "duplicate field `number` at line 1 column 22"),
            (r#"{"number": canary}"#, "expected value at line 1 column 12"),
            (r#"{"number": "cana"#, "EOF while parsing a string at line 1 column 16"),
        ] {
            let error = serde_json::from_str::<Card>(json).unwrap_err();
            assert_eq!(without_values(&error), expected, "{error}");
        }
        let value = serde_json::json!({"number": "canary"});
        let error = serde_json::from_value::<Card>(value).unwrap_err();
        assert_eq!(without_values(&error), "invalid type: string, expected u64");
        let custom = <serde_json::Error as serde::de::Error>::custom("canary");
        assert_eq!(without_values(&custom), "not of the expected form");
    }

    #[test]
    fn shortened_values_are_printable_and_bounded() {
        assert_eq!(shorten("a\r\nb"), "a\\u{d}\\u{a}b");
        assert_eq!(shorten(&"x".repeat(100)).chars().count(), 65);
        assert_eq!(shorten("é"), "é");
    }
}
