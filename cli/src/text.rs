//! Text for people: escapes text for a terminal, and formats numbers in human units.

use indicatif::{DecimalBytes, HumanCount};

/// Escapes control characters and those that change the direction of text.
pub(crate) fn escape(text: &str) -> String {
    if !text.chars().any(acts_on_terminal) {
        return text.to_owned();
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if acts_on_terminal(c) && c != '\n' {
            escaped.extend(c.escape_unicode());
        } else {
            escaped.push(c);
        }
    }
    escaped
}

/// Escapes for one line of output.
pub(crate) fn line(text: &str) -> String {
    escape(text).replace('\n', "\\n")
}

/// Escapes the control characters beyond ASCII in JSON, where they may be raw. The value stays the same.
pub(crate) fn json(text: String) -> String {
    if !text.chars().any(|c| c != '\n' && acts_on_terminal(c)) {
        return text;
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if c != '\n' && acts_on_terminal(c) {
            escaped.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            escaped.push(c);
        }
    }
    escaped
}

/// Shortens text to `limit` characters.
pub(crate) fn shorten(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        None => text.to_owned(),
        Some((end, _)) => text.get(..end).map(|head| format!("{head}…")).unwrap_or_default(),
    }
}

/// Formats a number and its noun, such as `1,707 events`.
pub(crate) fn count(number: u64, name: &str) -> String {
    format!("{} {name}{}", self::number(number), if number == 1 { "" } else { "s" })
}

/// Formats a number with separated thousands, such as `1,707`.
pub(crate) fn number(number: u64) -> String {
    HumanCount(number).to_string()
}

/// Formats a number of bytes in the largest decimal unit, such as `4.5 MB`.
pub(crate) fn bytes(bytes: u64) -> String {
    let text = DecimalBytes(bytes).to_string();
    match text.split_once(' ') {
        // One decimal is enough for people.
        Some((number, unit)) if number.contains('.') => {
            format!("{} {unit}", number.get(..number.len() - 1).unwrap_or(number))
        }
        _ => text,
    }
}

fn acts_on_terminal(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_acts_on_is_escaped() {
        assert_eq!(escape("\u{1b}[31mred\u{7}"), "\\u{1b}[31mred\\u{7}");
        assert_eq!(line("a\nb\u{202e}"), "a\\nb\\u{202e}");
        assert_eq!(line("\u{feff}a\u{61c}\u{2060}"), "\\u{feff}a\\u{61c}\\u{2060}");
        assert_eq!(escape("größe 東京"), "größe 東京");
        assert_eq!(shorten("größe", 3), "grö…");
    }

    #[test]
    fn numbers_have_human_units() {
        for (size, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (4_524_384, "4.5 MB"),
            (123_456_789_012, "123.4 GB"),
        ] {
            assert_eq!(bytes(size), text);
        }
        assert_eq!(
            (count(1, "event"), count(1_707, "event")),
            ("1 event".to_owned(), "1,707 events".to_owned())
        );
    }

    #[test]
    fn escaped_json_means_the_same() {
        let value = serde_json::json!({"text": "a\u{9b}31m\u{7f}\u{202e}b"});
        let escaped = json(value.to_string());
        assert!(!escaped.chars().any(acts_on_terminal), "{escaped}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).unwrap(), value);
    }
}
