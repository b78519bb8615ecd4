//! Events that the library itself writes into a stream. They are recognized by subject and type together, because any
//! publisher can choose a type.
//!
//! | subject | type | content |
//! |---|---|---|
//! | `{prefix}.dlq.letters.>` | [`LETTER_TYPE`] | letters of a [`ProviderDlqHandler`](crate::ProviderDlqHandler) |
//! | `{prefix}.dlq.marks.*` | [`MARK_TYPE`] | marks of replayed or discarded letters |
//! | `{prefix}.dlq.>` | [`FORWARDED_TYPE`] | letters that a [`SinkDlqHandler`](crate::SinkDlqHandler) forwards |
//! | `{prefix}.handled.*.*` | [`HANDLED_TYPE`] | handled markers of a [`ProviderIdempotencyStore`](crate::consumer::layers::ProviderIdempotencyStore) |
//!
//! Letters are for readers. Marks and handled markers are *records*, which only the library uses.

use serde_json::Value;

use crate::hash::fnv1a_128;
use crate::types::Event;

/// Event type of a letter.
pub(crate) const LETTER_TYPE: &str = "a3s.dlq.letter";
/// Event type of a mark, which says that a letter was replayed or discarded.
pub(crate) const MARK_TYPE: &str = "a3s.dlq.mark";
/// Event type of a letter that was forwarded to a sink.
pub(crate) const FORWARDED_TYPE: &str = "a3s.dlq.dead_letter";
/// Event type of a handled marker, which says that an event was handled.
pub(crate) const HANDLED_TYPE: &str = "a3s.consumer.handled";

/// Returns the subject of the letter for an event with this subject.
pub(crate) fn letter_subject(prefix: &str, original_subject: &str) -> String {
    format!("{prefix}.dlq.letters.{original_subject}")
}

/// Returns the subject of the marks of a letter.
pub(crate) fn mark_subject(prefix: &str, key: &str) -> String {
    format!("{prefix}.dlq.marks.{key}")
}

/// Returns the subject of the handled marker of an event.
pub(crate) fn handled_subject(prefix: &str, scope: &str, event_id: &str) -> String {
    format!("{prefix}.handled.{scope}.{:032x}", fnv1a_128(&[event_id]))
}

/// Returns the part of a subject after `{prefix}.dlq.`.
pub(crate) fn below_dlq<'a>(subject: &'a str, prefix: &str) -> Option<&'a str> {
    below(subject, prefix)?.strip_prefix("dlq.")
}

fn below<'a>(subject: &'a str, prefix: &str) -> Option<&'a str> {
    subject.strip_prefix(prefix)?.strip_prefix('.')
}

/// Returns true if an event of a stream with this prefix is a letter or a mark.
pub(crate) fn is_letter(event: &Event, prefix: &str) -> bool {
    let place = || below_dlq(&event.subject, prefix);
    match event.event_type.as_str() {
        LETTER_TYPE => place().is_some_and(|rest| rest.starts_with("letters.")),
        FORWARDED_TYPE => place().is_some(),
        _ => is_mark(event, prefix),
    }
}

/// Returns true if an event of a stream with this prefix is a record.
pub(crate) fn is_record(event: &Event, prefix: &str) -> bool {
    is_mark(event, prefix) || is_handled_record(event, prefix)
}

fn is_mark(event: &Event, prefix: &str) -> bool {
    event.event_type == MARK_TYPE
        && below_dlq(&event.subject, prefix)
            .and_then(|rest| rest.strip_prefix("marks."))
            .is_some_and(|key| event.payload.get("key").and_then(Value::as_str) == Some(key))
}

/// Returns true if an event of a stream with this prefix is a handled marker.
pub(crate) fn is_handled_record(event: &Event, prefix: &str) -> bool {
    let Some(id) = event.payload.as_str().filter(|_| event.event_type == HANDLED_TYPE) else { return false };
    let scope = below(&event.subject, prefix)
        .and_then(|rest| rest.strip_prefix("handled."))
        .and_then(|rest| rest.split('.').next());
    scope.is_some_and(|scope| event.subject == handled_subject(prefix, scope, id))
}

/// Returns true if a consumer with this filter would receive records without asking for them: its filter matches them
/// but names none of the library's subjects.
pub(crate) fn meets_records(filter: &str, prefix: &str) -> bool {
    let mut tokens = filter.split('.');
    for expected in prefix.split('.') {
        match tokens.next() {
            Some(">") => return true,
            Some(token) if token == "*" || token == expected => {}
            _ => return false,
        }
    }
    match tokens.next() {
        Some("*") => tokens.next().is_some(),
        token => token == Some(">"),
    }
}

/// Returns true if the library reserves this subject.
#[cfg(feature = "webhook")]
pub(crate) fn is_reserved(subject: &str, prefix: &str) -> bool {
    let place = below(subject, prefix).and_then(|rest| rest.split('.').next());
    matches!(place, Some("dlq" | "handled"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(subject: &str, event_type: &str, payload: Value) -> Event {
        Event::typed(subject, "a", event_type, 1, "", "", payload)
    }

    #[test]
    fn a_letter_is_one_by_its_place_and_its_type() {
        for (subject, event_type, expected) in [
            ("acme.dlq.letters.acme.a", LETTER_TYPE, true),
            ("acme.dlq.acme.a", FORWARDED_TYPE, true),
            ("acme.dlq.letters.acme.a", "order.placed", false),
            ("acme.orders.a", LETTER_TYPE, false),
            ("acme.orders.a", FORWARDED_TYPE, false),
            ("acme.orders.dlq.a", FORWARDED_TYPE, false),
            ("acme.dlqs.a", FORWARDED_TYPE, false),
            ("acme.dlq.marks.k", LETTER_TYPE, false),
            ("acmes.dlq.letters.a", LETTER_TYPE, false),
            ("events.dlq.a", FORWARDED_TYPE, false),
        ] {
            assert_eq!(is_letter(&event(subject, event_type, json!(null)), "acme"), expected, "{subject}");
        }
    }

    #[test]
    fn a_record_is_one_by_its_place_its_type_and_its_content() {
        let mark = |key: &str| event("events.dlq.marks.1-a", MARK_TYPE, json!({"key": key}));
        assert!(is_record(&mark("1-a"), "events"));
        assert!(!is_record(&mark("1-b"), "events") && !is_record(&mark("1-a"), "acme"));
        let handled = |subject: &str, id: &str| event(subject, HANDLED_TYPE, json!(id));
        let subject = handled_subject("events", "mail", "evt-1");
        assert!(is_record(&handled(&subject, "evt-1"), "events"));
        assert!(!is_record(&handled(&subject, "evt-2"), "events"));
        assert!(!is_record(&handled("events.orders.placed", "evt-1"), "events"));
        assert!(!is_record(&event(&subject, "order.placed", json!("evt-1")), "events"));
    }

    #[test]
    fn records_are_met_by_who_has_not_named_their_place() {
        for (filter, expected) in [
            (">", true),
            ("events.>", true),
            ("events.*.>", true),
            ("*.*.marks.*", true),
            ("*.>", true),
            ("events.*", false),
            ("events.orders.>", false),
            ("events.dlq.>", false),
            ("events.dlq.marks.*", false),
            ("events.handled.>", false),
            ("*.handled.>", false),
            ("other.>", false),
        ] {
            assert_eq!(meets_records(filter, "events"), expected, "{filter}");
        }
        assert!(meets_records("acme.eu.>", "acme.eu") && meets_records("acme.>", "acme.eu"));
        assert!(!meets_records("acme.eu.dlq.>", "acme.eu"));
    }

    #[cfg(feature = "webhook")]
    #[test]
    fn places_are_below_the_prefix() {
        for (subject, expected) in [
            ("events.dlq", true),
            ("events.dlq.letters.a", true),
            ("events.handled.a", true),
            ("events.dlqs.a", false),
            ("events.a.dlq", false),
        ] {
            assert_eq!(is_reserved(subject, "events"), expected, "{subject}");
        }
    }
}
