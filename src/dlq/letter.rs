//! A dead letter with all that is known about it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{DeadLetterEvent, REPLAYS_KEY};
use crate::clock::unix_millis;
use crate::hash::fnv1a_128;
use crate::text::shorten;
use crate::types::ReceivedEvent;

/// Class of the reason why an event was dead-lettered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FailureClass {
    /// All allowed deliveries failed, were nacked, or ended when their process died.
    Exhausted,
    /// The handler returned a fatal error, or the subscriber terminated the event.
    Fatal,
    /// The payload is not of the type that the handler takes.
    Mismatch,
    /// The stored record is not an event.
    Undecodable,
    /// The payload cannot be decrypted.
    Undecryptable,
    /// The payload does not follow its schema.
    SchemaInvalid,
    /// No class was given, or a later version of this library defined it.
    #[default]
    #[serde(other)]
    Unclassified,
}

/// Writes the stored identifier of the class, which can also be the label of a metric.
impl fmt::Display for FailureClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exhausted => "exhausted",
            Self::Fatal => "fatal",
            Self::Mismatch => "mismatch",
            Self::Undecodable => "undecodable",
            Self::Undecryptable => "undecryptable",
            Self::SchemaInvalid => "schema_invalid",
            Self::Unclassified => "unclassified",
        })
    }
}

/// Place where a letter is stored, as far as its queue reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetterReceipt {
    /// Number of the letter, if its queue has numbers. [`ProviderDlqHandler::show`](super::ProviderDlqHandler::show)
    /// finds the letter by it.
    pub id: Option<u64>,
    /// Subject under which the letter is stored or was forwarded.
    pub subject: Option<String>,
}

impl DeadLetterReceipt {
    /// Creates the receipt of a letter with this number, under this subject.
    pub fn new(id: Option<u64>, subject: Option<String>) -> Self {
        Self { id, subject }
    }
}

/// Writes `dead letter 17`, or as much as is known.
impl fmt::Display for DeadLetterReceipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.id, &self.subject) {
            (Some(id), _) => write!(f, "dead letter {id}"),
            (None, Some(subject)) => write!(f, "dead letter under {}", shorten(subject)),
            (None, None) => f.write_str("dead letter"),
        }
    }
}

/// A dead letter with all that is known about it. [`DeadLetterEvent`] is the part that every
/// [`DlqHandler`](super::DlqHandler) takes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DeadLetter {
    /// Event as it is stored: an encrypted one is still encrypted. A record that is not an event has a placeholder with
    /// its sequence here.
    pub event: ReceivedEvent,
    /// Reason why it was dead-lettered.
    pub reason: String,
    /// Class of the reason.
    pub class: FailureClass,
    /// Name of the consumer that dead-lettered it.
    pub consumer: Option<String>,
    /// Name by which the program called that consumer: of its [`EventBus::consumer`](crate::EventBus::consumer), or the
    /// `subscriber_id` of its subscription. The consumer's own name is derived from it and the subject filter.
    pub subscriber: Option<String>,
    /// Number of attempts to process it.
    pub attempts: Option<u64>,
    /// Time of the first failure, in Unix milliseconds, as far as the process that dead-lettered it knows.
    pub first_failure_at: Option<u64>,
    /// Time of the last failure, in Unix milliseconds.
    pub last_failure_at: Option<u64>,
    /// Time at which it was dead-lettered, in Unix milliseconds.
    pub dead_lettered_at: u64,
    /// Subject under which it was published.
    pub original_subject: Option<String>,
    /// Bytes of a record that is not an event.
    pub raw: Option<Vec<u8>>,
}

impl DeadLetter {
    /// Creates a dead letter for an event, with the current time.
    pub fn new(event: ReceivedEvent, class: FailureClass, reason: impl Into<String>) -> Self {
        Self {
            original_subject: Some(event.event.subject.clone()),
            event,
            reason: reason.into(),
            class,
            consumer: None,
            subscriber: None,
            attempts: None,
            first_failure_at: None,
            last_failure_at: None,
            dead_lettered_at: unix_millis(),
            raw: None,
        }
    }

    /// Returns how often the event was replayed before it was dead-lettered, from its metadata [`REPLAYS_KEY`].
    /// [`StoredDeadLetter::event_replays`](super::StoredDeadLetter::event_replays) also counts later replays.
    pub fn replays(&self) -> u64 {
        let counted = self.event.event.metadata.get(REPLAYS_KEY);
        counted.and_then(|replays| replays.parse().ok()).unwrap_or_default()
    }

    /// Returns a key that identifies the failure. It is the same for every process that dead-letters this event of this
    /// stream for this consumer, so that the letter is stored once.
    ///
    /// The key includes the event's id, so that a recreated stream does not repeat the keys of the previous one.
    pub fn key(&self) -> String {
        let sequence = self.event.sequence;
        let consumer = self.consumer.as_deref().unwrap_or_default();
        let hash = fnv1a_128(&[&self.event.stream, consumer, &self.event.event.id]);
        format!("{sequence}-{hash:032x}")
    }
}

impl From<DeadLetter> for DeadLetterEvent {
    fn from(letter: DeadLetter) -> Self {
        Self {
            event: letter.event,
            reason: letter.reason,
            dead_lettered_at: letter.dead_lettered_at,
            original_subject: letter.original_subject,
            delivery_attempts: letter.attempts,
            first_failure_at: letter.first_failure_at,
        }
    }
}

impl From<DeadLetterEvent> for DeadLetter {
    fn from(letter: DeadLetterEvent) -> Self {
        Self {
            event: letter.event,
            reason: letter.reason,
            class: FailureClass::Unclassified,
            consumer: None,
            subscriber: None,
            attempts: letter.delivery_attempts,
            first_failure_at: letter.first_failure_at,
            last_failure_at: None,
            dead_lettered_at: letter.dead_lettered_at,
            original_subject: letter.original_subject,
            raw: None,
        }
    }
}
