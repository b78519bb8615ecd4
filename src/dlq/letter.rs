//! A dead letter with everything that is known about it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{DeadLetterEvent, REPLAYS_KEY};
use crate::clock::unix_millis;
use crate::hash::fnv1a_128;
use crate::text::shorten;
use crate::types::ReceivedEvent;

/// Why an event was given up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FailureClass {
    /// All allowed deliveries failed, were refused, or ended with the death of their process.
    Exhausted,
    /// The handler said that no retry helps, or the subscriber terminated it.
    Fatal,
    /// The payload is not of the type that the handler takes.
    Mismatch,
    /// The stored record is not an event.
    Undecodable,
    /// The payload cannot be decrypted.
    Undecryptable,
    /// The payload does not follow its schema.
    SchemaInvalid,
    /// Nobody said, or a later version of this library did.
    #[default]
    #[serde(other)]
    Unclassified,
}

/// One identifier per class, as it is stored, and fit for a metric's label.
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

/// Where a letter is kept, as far as its queue says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetterReceipt {
    /// Its number in a queue that has numbers, by which [`ProviderDlqHandler::show`](super::ProviderDlqHandler::show) finds it.
    pub id: Option<u64>,
    /// The subject under which it is kept or was forwarded.
    pub subject: Option<String>,
}

impl DeadLetterReceipt {
    /// A letter with this number, under this subject.
    pub fn new(id: Option<u64>, subject: Option<String>) -> Self {
        Self { id, subject }
    }
}

/// `dead letter 17`, or as much of it as is known.
impl fmt::Display for DeadLetterReceipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.id, &self.subject) {
            (Some(id), _) => write!(f, "dead letter {id}"),
            (None, Some(subject)) => write!(f, "dead letter under {}", shorten(subject)),
            (None, None) => f.write_str("dead letter"),
        }
    }
}

/// A dead letter with everything that is known about it. [`DeadLetterEvent`] is the part of it that every
/// [`DlqHandler`](super::DlqHandler) takes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The event as it is stored: an encrypted one is still encrypted. For a record that is not an event, a stand-in with
    /// its sequence.
    pub event: ReceivedEvent,
    /// Why it was given up.
    pub reason: String,
    /// The class of the reason.
    pub class: FailureClass,
    /// Name of the consumer that gave it up.
    pub consumer: Option<String>,
    /// The name by which the program called that consumer: of its [`EventBus::consumer`](crate::EventBus::consumer), or the
    /// `subscriber_id` of its subscription. The consumer's own name is made of it and the subject filter.
    pub subscriber: Option<String>,
    /// How often processing was tried.
    pub attempts: Option<u64>,
    /// When processing failed first, in Unix milliseconds, as far as the process that gave it up knows.
    pub first_failure_at: Option<u64>,
    /// When it failed last, in Unix milliseconds.
    pub last_failure_at: Option<u64>,
    /// When it was given up, in Unix milliseconds.
    pub dead_lettered_at: u64,
    /// The subject it was published under.
    pub original_subject: Option<String>,
    /// The bytes of a record that is not an event.
    pub raw: Option<Vec<u8>>,
}

impl DeadLetter {
    /// Gives up an event now.
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

    /// How often its event was replayed before it was given up, as its metadata [`REPLAYS_KEY`] says.
    /// [`StoredDeadLetter::event_replays`](super::StoredDeadLetter::event_replays) also counts what came after that.
    pub fn replays(&self) -> u64 {
        let counted = self.event.event.metadata.get(REPLAYS_KEY);
        counted.and_then(|replays| replays.parse().ok()).unwrap_or_default()
    }

    /// Identifies the failure: the same for everyone who gives up this event of this stream for this consumer, so that it
    /// is kept once.
    ///
    /// The event's id takes part, so that a stream that was made anew does not repeat the keys of the one before.
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
