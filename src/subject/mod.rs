//! Subjects, filters and names: grammar, matching, and an index from filters to values.
//!
//! A subject is a sequence of tokens joined by dots, for instance `events.market.forex`. A filter is a subject that may
//! contain wildcards: `*` matches exactly one token, and `>` as the last token matches one or more. The rules are the
//! same on every provider and are checked before any I/O. Matching follows the [NATS subject
//! rules](https://docs.nats.io/nats-concepts/subjects).

mod index;

pub use index::SubjectIndex;

use crate::error::{EventError, Result};
use crate::text::{is_invisible, shorten};

/// Maximum length of a subject, filter or prefix in bytes.
pub const MAX_SUBJECT_LEN: usize = 256;
/// Maximum number of tokens in a subject or filter.
pub const MAX_SUBJECT_TOKENS: usize = 32;
/// Maximum length of a consumer name in bytes.
pub const MAX_NAME_LEN: usize = 255;

/// First tokens that brokers reserve.
const RESERVED_FIRST_TOKENS: [&str; 3] = ["$JS", "$SYS", "_INBOX"];

/// Returns true if `filter` matches `subject`.
///
/// `*` matches exactly one token; `>` in the last position matches one or more. A filter that breaks the grammar
/// matches nothing.
///
/// ```
/// use a3s_event::subject::subject_matches;
///
/// assert!(subject_matches("events.market.forex", "events.*.forex"));
/// assert!(subject_matches("events.market.forex.usd", "events.market.>"));
/// assert!(!subject_matches("events.market", "events.market.>"));
/// ```
pub fn subject_matches(subject: &str, filter: &str) -> bool {
    let mut tokens = subject.split('.');
    let mut patterns = filter.split('.').peekable();
    while let Some(pattern) = patterns.next() {
        if pattern == ">" {
            return patterns.peek().is_none() && tokens.next().is_some_and(|first| !first.is_empty());
        }
        match tokens.next() {
            Some(token) if !token.is_empty() && (pattern == "*" || pattern == token) => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

/// Checks the subject of an event to publish.
///
/// # Errors
///
/// [`EventError::InvalidSubject`] if the subject
/// - is empty,
/// - is longer than [`MAX_SUBJECT_LEN`] bytes or [`MAX_SUBJECT_TOKENS`] tokens,
/// - has an empty token, white space, a control or invisible character, or a wildcard, or
/// - begins with a token that brokers reserve (`$JS`, `$SYS`, `_INBOX`).
pub fn validate_subject(subject: &str) -> Result<()> {
    match check_grammar("subject", subject)? {
        Wildcards::None => Ok(()),
        Wildcards::Some => Err(invalid("subject", subject, "a published subject must have no wildcard")),
    }
}

/// Checks a subject filter: a subject in which whole tokens may be wildcards.
///
/// # Errors
///
/// [`EventError::InvalidSubject`] with the field `filter`, for the reasons of [`validate_subject`] other than
/// wildcards. Also if `*` or `>` is only part of a token, or `>` is not the last token.
pub fn validate_filter(filter: &str) -> Result<()> {
    if check_grammar("filter", filter)? == Wildcards::None {
        return Ok(());
    }
    let mut tokens = filter.split('.').peekable();
    while let Some(token) = tokens.next() {
        match token {
            "*" => {}
            ">" if tokens.peek().is_none() => {}
            ">" => return Err(invalid("filter", filter, "'>' must be the last token")),
            _ if token.contains(['*', '>']) => {
                return Err(invalid("filter", filter, "a wildcard must be a whole token"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Checks a subject prefix, with which every subject of a stream begins.
///
/// # Errors
///
/// [`EventError::Config`] that names the prefix and the broken rule of [`validate_subject`].
pub fn validate_prefix(prefix: &str) -> Result<()> {
    validate_subject(prefix).map_err(|error| match error {
        EventError::InvalidSubject { value, rule, .. } => {
            EventError::Config(format!("subject_prefix \"{value}\": {rule}"))
        }
        other => other,
    })
}

/// Checks that an event may be published under `subject` on a stream with this prefix.
///
/// # Errors
///
/// As [`validate_subject`], and if the subject is not under the prefix.
pub fn validate_published(subject: &str, prefix: &str) -> Result<()> {
    validate_subject(subject)?;
    let under = subject.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.'));
    if under { Ok(()) } else { Err(invalid("subject", subject, outside(prefix, subject))) }
}

/// Checks that `filter` is well formed and can match a subject under this prefix.
///
/// # Errors
///
/// As [`validate_filter`], and if no subject under the prefix can match.
pub fn validate_filter_under(filter: &str, prefix: &str) -> Result<()> {
    validate_filter(filter)?;
    let mut wanted = prefix.split('.');
    for pattern in filter.split('.') {
        match wanted.next() {
            None => return Ok(()),
            Some(_) if pattern == ">" => return Ok(()),
            Some(token) if pattern == "*" || pattern == token => {}
            Some(_) => return Err(invalid("filter", filter, outside(prefix, filter))),
        }
    }
    // The filter is no longer than the prefix, but every subject is.
    Err(invalid("filter", filter, outside(prefix, filter)))
}

/// Checks one token that becomes part of a subject, such as a category.
///
/// # Errors
///
/// [`EventError::InvalidName`] if it is empty or has a dot; [`EventError::InvalidSubject`] if it breaks another rule of
/// [`validate_subject`].
pub fn validate_category(category: &str) -> Result<()> {
    if category.is_empty() || category.contains('.') {
        return Err(EventError::InvalidName {
            field: "category",
            value: shorten(category),
            rule: "must be one token, without a dot".to_owned(),
        });
    }
    match check_grammar("category", category)? {
        Wildcards::None => Ok(()),
        Wildcards::Some => Err(invalid("category", category, "must have no wildcard")),
    }
}

/// Checks a consumer name.
///
/// # Errors
///
/// [`EventError::InvalidName`] if the name is empty, longer than [`MAX_NAME_LEN`] bytes, or has white space, a control
/// or invisible character, or one of `. * > / \`.
pub fn validate_consumer_name(name: &str) -> Result<()> {
    let rule = if name.is_empty() {
        "must not be empty".to_owned()
    } else if name.len() > MAX_NAME_LEN {
        format!("is {} bytes long, at most {MAX_NAME_LEN} are allowed", name.len())
    } else if name.chars().any(|c| c.is_whitespace() || c.is_control() || is_invisible(c)) {
        "must have no white space, control or invisible character".to_owned()
    } else if name.contains(['.', '*', '>', '/', '\\']) {
        "must have none of . * > / \\".to_owned()
    } else {
        return Ok(());
    };
    Err(EventError::InvalidName { field: "consumer_name", value: shorten(name), rule })
}

#[derive(PartialEq)]
enum Wildcards {
    None,
    Some,
}

/// Checks the common rules of subjects and filters, in one pass over the bytes because every publish calls it.
fn check_grammar(field: &'static str, value: &str) -> Result<Wildcards> {
    if value.is_empty() {
        return Err(invalid(field, value, "must not be empty"));
    }
    if value.len() > MAX_SUBJECT_LEN {
        let rule = format!("is {} bytes long, at most {MAX_SUBJECT_LEN} are allowed", value.len());
        return Err(invalid(field, value, rule));
    }
    let mut tokens = 1;
    let mut before = b'.';
    let mut wildcards = Wildcards::None;
    let mut is_ascii = true;
    for byte in value.bytes() {
        match byte {
            b'.' if before == b'.' => return Err(invalid(field, value, "has an empty token")),
            b'.' => tokens += 1,
            b'*' | b'>' => wildcards = Wildcards::Some,
            0..=b' ' | 0x7f => {
                return Err(invalid(field, value, "must have no white space or control character"));
            }
            0x80.. => is_ascii = false,
            _ => {}
        }
        before = byte;
    }
    if before == b'.' {
        return Err(invalid(field, value, "has an empty token"));
    }
    if tokens > MAX_SUBJECT_TOKENS {
        let rule = format!("has {tokens} tokens, at most {MAX_SUBJECT_TOKENS} are allowed");
        return Err(invalid(field, value, rule));
    }
    if !is_ascii && value.chars().any(|c| c.is_whitespace() || c.is_control() || is_invisible(c)) {
        return Err(invalid(field, value, "must have no white space, control or invisible character"));
    }
    if value.starts_with(['$', '_']) {
        let first = value.split('.').next().unwrap_or_default();
        if RESERVED_FIRST_TOKENS.contains(&first) {
            return Err(invalid(field, value, format!("the first token {first} is reserved")));
        }
    }
    Ok(wildcards)
}

/// The rule that a subject or filter outside of the stream breaks, with what was probably meant.
fn outside(prefix: &str, value: &str) -> String {
    format!(
        "must begin with '{prefix}.', the prefix of the stream (setting subject_prefix), such as {prefix}.{}",
        shorten(value)
    )
}

fn invalid(field: &'static str, value: &str, rule: impl Into<String>) -> EventError {
    EventError::InvalidSubject { field, value: shorten(value), rule: rule.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rule_of(result: Result<()>) -> String {
        match result.unwrap_err() {
            EventError::InvalidSubject { rule, .. } | EventError::InvalidName { rule, .. } => rule,
            other => panic!("unexpected error {other}"),
        }
    }

    #[test]
    fn matching_follows_the_token_rules() {
        for (subject, filter, expected) in [
            ("events.a", "events.a", true),
            ("events.a", "events.b", false),
            ("events.a.b", "events.*", false),
            ("events.a.b", "events.*.b", true),
            ("events.a.b.c", "events.>", true),
            ("events.a", ">", true),
            ("events.market", "events.market.>", false),
            ("events.a.b", "events.>.b", false),
            ("events.a", "events.a.b", false),
            ("events..a", "events.*.a", false),
            ("", ">", false),
        ] {
            assert_eq!(subject_matches(subject, filter), expected, "{subject} against {filter}");
        }
    }

    #[test]
    fn bad_subjects_are_refused_with_their_rule() {
        let long = "a".repeat(257);
        let longer = format!("events.{}", "a".repeat(5_000));
        let many = vec!["a"; 33].join(".");
        for (subject, rule) in [
            ("", "empty"),
            ("events..forex", "empty token"),
            (".events.a", "empty token"),
            ("events.a.", "empty token"),
            ("..", "empty token"),
            ("events.a b", "white space"),
            ("events.a\u{3000}b", "white space"),
            ("events.a\r\nPUB x 0", "control character"),
            ("events.a\u{0}", "control character"),
            ("events.a\u{200d}b", "invisible"),
            ("events.*", "no wildcard"),
            ("events.>", "no wildcard"),
            ("events.ma*", "no wildcard"),
            (&long, "257 bytes"),
            (&longer, "5007 bytes"),
            (&many, "33 tokens"),
            ("$JS.API.STREAM.DELETE.X", "reserved"),
            ("$SYS.x", "reserved"),
            ("_INBOX.x", "reserved"),
        ] {
            let found = rule_of(validate_subject(subject));
            assert!(found.contains(rule), "{subject:?}: {found}");
        }
        for subject in ["events.a", "events.-", "events.~", "events.市场.forex", "events.$price"] {
            validate_subject(subject).unwrap();
        }
        validate_subject(&"a".repeat(256)).unwrap();
        validate_subject(&vec!["a"; 32].join(".")).unwrap();
    }

    #[test]
    fn bad_filters_are_refused_with_their_rule() {
        for (filter, rule) in [
            ("events.ma*", "whole token"),
            ("events.>x", "whole token"),
            ("events.>.x", "last token"),
            ("a..c", "empty token"),
            ("", "empty"),
        ] {
            let found = rule_of(validate_filter(filter));
            assert!(found.contains(rule), "{filter:?}: {found}");
        }
        for filter in [">", "*", "events.*.x", "events.>", "*.*.>"] {
            validate_filter(filter).unwrap();
        }
    }

    #[test]
    fn subjects_and_filters_keep_to_the_prefix() {
        validate_published("events.a", "events").unwrap();
        validate_published("acme.events.a", "acme.events").unwrap();
        for (subject, prefix) in [("events", "events"), ("eventsx.a", "events"), ("other.a", "events")] {
            assert!(rule_of(validate_published(subject, prefix)).contains("subject_prefix"), "{subject}");
        }
        for filter in [">", "events.>", "events.a", "*.a", "*.>"] {
            validate_filter_under(filter, "events").unwrap();
        }
        for filter in ["events", "other.>", "*", "other"] {
            assert!(rule_of(validate_filter_under(filter, "events")).contains("subject_prefix"), "{filter}");
        }
        validate_filter_under("acme.>", "acme.events").unwrap();
        validate_filter_under("acme.events", "acme.events").unwrap_err();
    }

    #[test]
    fn bad_consumer_names_are_refused() {
        let long = "n".repeat(256);
        for name in [
            "",
            "a.b",
            "a b",
            "a*",
            "a>",
            "a/b",
            "a\\b",
            ".",
            "..",
            "x'; DROP TABLE events;--",
            "a\u{200b}",
            &long,
        ] {
            assert!(matches!(validate_consumer_name(name), Err(EventError::InvalidName { .. })), "{name:?}");
        }
        validate_consumer_name("analyst-events-market-1_x").unwrap();
        validate_consumer_name(&"n".repeat(255)).unwrap();
    }

    #[test]
    fn a_category_is_one_token() {
        assert!(matches!(validate_category("market.forex"), Err(EventError::InvalidName { .. })));
        assert!(matches!(validate_category(""), Err(EventError::InvalidName { .. })));
        assert!(matches!(validate_category("*"), Err(EventError::InvalidSubject { .. })));
        validate_category("market").unwrap();
    }

    proptest! {
        #[test]
        fn validation_never_panics_and_errors_are_printable(text in any::<String>()) {
            for error in [validate_subject(&text), validate_filter(&text), validate_consumer_name(&text)]
                .into_iter()
                .filter_map(Result::err)
            {
                prop_assert!(!error.to_string().chars().any(char::is_control));
            }
            subject_matches(&text, &text);
        }

        #[test]
        fn a_valid_subject_matches_itself_and_everything(tokens in prop::collection::vec("[a-z]{1,3}", 1..6)) {
            let subject = tokens.join(".");
            validate_subject(&subject).unwrap();
            prop_assert!(subject_matches(&subject, &subject));
            prop_assert!(subject_matches(&subject, ">"));
            let below = format!("{subject}.>");
            prop_assert!(!subject_matches(&subject, &below));
        }
    }
}
