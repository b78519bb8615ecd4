//! The form in which a dead letter or its mark is stored as an event.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::letter::{DeadLetter, FailureClass};
use super::provider::{DeadLetterStatus, StoredDeadLetter};
use crate::clock::unix_millis;
use crate::error::Result;
use crate::provider::StoredEvent;
use crate::reserved::{self, LETTER_TYPE, MARK_TYPE};
use crate::subject::validate_subject;
use crate::text::{shorten, without_values};
use crate::types::{Event, ReceivedEvent};

/// Last token of a letter's subject if the original one does not fit.
const LONG_SUBJECT: &str = "long-subject";
/// Maximum length of a key in bytes. Keys of the library have up to 53.
const MAX_KEY: usize = 64;
/// Maximum length of a reason in characters; the rest is cut off.
const MAX_REASON: usize = 2_000;

/// The payload of a stored letter.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Letter {
    key: String,
    /// Event; its payload is `null` if `omitted` is true.
    event: Event,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    omitted: bool,
    stream: String,
    sequence: u64,
    num_delivered: u64,
    reason: String,
    class: FailureClass,
    dead_lettered_at: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    consumer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subscriber: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_failure_at: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_failure_at: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    original_subject: Option<String>,
    /// Raw bytes that are UTF-8 text.
    #[serde(skip_serializing_if = "Option::is_none")]
    raw: Option<String>,
    /// Raw bytes that are not UTF-8 text, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    raw_hex: Option<String>,
}

/// The mark of a replayed or discarded letter.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Mark {
    pub(super) key: String,
    pub(super) status: DeadLetterStatus,
    /// Number of replays of the event since it was dead-lettered.
    pub(super) replays: u64,
}

/// A record of the queue, decoded.
pub(super) enum Record {
    Letter(Box<StoredDeadLetter>),
    Mark(Mark),
}

impl Record {
    /// Decodes a stored event. Returns `None` for one that does not belong to the queue: its place or type is another
    /// one.
    pub(super) fn of(stored: &StoredEvent, prefix: &str) -> Option<Self> {
        if !reserved::is_letter(&stored.event, prefix) {
            return None;
        }
        let payload = || stored.event.payload.clone();
        let read = match stored.event.event_type.as_str() {
            LETTER_TYPE => serde_json::from_value::<Letter>(payload())
                .map(|letter| stored_letter(letter, stored.sequence))
                .and_then(|letter| check_key(&letter.key).map(|()| Self::Letter(Box::new(letter)))),
            MARK_TYPE => serde_json::from_value::<Mark>(payload()).map(Self::Mark),
            _ => return None,
        };
        read.inspect_err(|error| {
            let error = without_values(error);
            tracing::warn!(sequence = stored.sequence, error, "unreadable record in the dead-letter queue");
        })
        .ok()
    }
}

/// Returns the subject of letters about events with this subject.
pub(super) fn place_of(prefix: &str, original_subject: &str) -> String {
    let subject = reserved::letter_subject(prefix, original_subject);
    if validate_subject(&subject).is_err() {
        // With the prefix, the original is too long; it is in the payload.
        return reserved::letter_subject(prefix, LONG_SUBJECT);
    }
    subject
}

/// Returns the event that stores a letter. `whole` is false if the payload does not fit.
pub(super) fn letter_event(letter: &DeadLetter, prefix: &str, whole: bool) -> Result<Event> {
    let source = &letter.event.event;
    let original_subject = letter.original_subject.as_deref().unwrap_or(&source.subject);
    let subject = place_of(prefix, original_subject);
    let key = letter.key();
    let (raw, raw_hex) = match letter.raw.as_deref().filter(|_| whole) {
        None => (None, None),
        Some(raw) => match std::str::from_utf8(raw) {
            Ok(text) => (Some(text.to_owned()), None),
            Err(_) => (None, Some(to_hex(raw))),
        },
    };
    let payload = if whole && letter.raw.is_none() { source.payload.clone() } else { Value::Null };
    let payload = serde_json::to_value(Letter {
        key: key.clone(),
        event: Event { payload, ..shell_of(source) },
        omitted: !whole,
        stream: letter.event.stream.clone(),
        sequence: letter.event.sequence,
        num_delivered: letter.event.num_delivered,
        reason: letter.reason.chars().take(MAX_REASON).collect(),
        class: letter.class,
        dead_lettered_at: letter.dead_lettered_at,
        consumer: letter.consumer.clone(),
        subscriber: letter.subscriber.clone(),
        attempts: letter.attempts,
        first_failure_at: letter.first_failure_at,
        last_failure_at: letter.last_failure_at,
        original_subject: letter.original_subject.clone(),
        raw,
        raw_hex,
    })?;
    let summary = format!("Dead letter: {}", shorten(&letter.reason));
    let mut event = Event::typed(subject, "dlq", LETTER_TYPE, 1, summary, "dlq", payload);
    event.id = format!("dlq-{key}");
    event.timestamp = letter.dead_lettered_at;
    Ok(event)
}

/// Returns the event without its payload, which may be large.
fn shell_of(event: &Event) -> Event {
    Event {
        id: event.id.clone(),
        subject: event.subject.clone(),
        category: event.category.clone(),
        event_type: event.event_type.clone(),
        version: event.version,
        payload: Value::Null,
        summary: event.summary.clone(),
        source: event.source.clone(),
        timestamp: event.timestamp,
        metadata: event.metadata.clone(),
    }
}

/// Returns the event that stores a mark.
pub(super) fn mark_event(mark: &Mark, prefix: &str) -> Result<Event> {
    let subject = reserved::mark_subject(prefix, &mark.key);
    let summary = format!("Dead letter {}", mark.status);
    let mut event = Event::typed(subject, "dlq", MARK_TYPE, 1, summary, "dlq", serde_json::to_value(mark)?);
    event.id = format!("dlq-{}-{}-{}", mark.key, mark.status, mark.replays);
    event.timestamp = unix_millis();
    Ok(event)
}

/// Refuses a key that no mark could have. Otherwise a foreign letter could be replayed forever.
fn check_key(key: &str) -> serde_json::Result<()> {
    use serde::de::Error;
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if (1..=MAX_KEY).contains(&key.len()) && key.bytes().all(is_token) {
        return Ok(());
    }
    Err(serde_json::Error::custom("the key is not one token"))
}

fn stored_letter(letter: Letter, id: u64) -> StoredDeadLetter {
    let received = ReceivedEvent {
        event: letter.event,
        sequence: letter.sequence,
        num_delivered: letter.num_delivered,
        stream: letter.stream,
    };
    let mut dead = DeadLetter::new(received, letter.class, letter.reason);
    dead.consumer = letter.consumer;
    dead.subscriber = letter.subscriber;
    dead.attempts = letter.attempts;
    dead.first_failure_at = letter.first_failure_at;
    dead.last_failure_at = letter.last_failure_at;
    dead.dead_lettered_at = letter.dead_lettered_at;
    dead.original_subject = letter.original_subject;
    dead.raw = match (letter.raw, letter.raw_hex) {
        (Some(text), _) => Some(text.into_bytes()),
        (None, Some(hex)) => from_hex(&hex),
        (None, None) => None,
    };
    StoredDeadLetter {
        id,
        key: letter.key,
        letter: dead,
        omitted: letter.omitted,
        status: DeadLetterStatus::Open,
        replays: 0,
    }
}

fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut hex, byte| {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn from_hex(hex: &str) -> Option<Vec<u8>> {
    hex.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_hexadecimal() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(from_hex(&to_hex(&bytes)), Some(bytes));
        assert_eq!(from_hex("zz"), None);
    }
}
