//! Dead letters: events that could not be processed, kept with the reason, so that you can inspect and replay them.

mod letter;
mod provider;
mod record;
mod replay;
mod sink;

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;

pub use letter::{DeadLetter, DeadLetterReceipt, FailureClass};
pub use provider::{DeadLetterFilter, DeadLetterStatus, ProviderDlqHandler, StoredDeadLetter};
pub use replay::{Replay, ReplayError, ReplayReport, ReplayedEvent};
pub use sink::SinkDlqHandler;
pub(crate) use sink::forwarded_original;

use crate::clock::unix_millis;
use crate::error::Result;
use crate::poison::IgnorePoison;
use crate::reserved;
use crate::types::{Event, ReceivedEvent};

/// Metadata key of a replayed event: the number of its replays so far.
pub const REPLAYS_KEY: &str = "dlq_replays";

/// An event that could not be processed, and the reason.
///
/// ```
/// use a3s_event::{DeadLetterEvent, Event, ReceivedEvent};
///
/// let event = Event::new("events.orders.new", "orders", "", "shop", serde_json::json!({"total": -1}));
/// let received = ReceivedEvent { event, sequence: 7, num_delivered: 5, stream: "memory".into() };
/// let dead = DeadLetterEvent::new(received, "negative total").with_delivery_attempts(5);
/// assert_eq!(dead.reason, "negative total");
/// ```
#[derive(Debug, Clone)]
pub struct DeadLetterEvent {
    /// Event as it was delivered last.
    pub event: ReceivedEvent,
    /// Reason why it could not be processed.
    pub reason: String,
    /// Time at which it was dead-lettered, in Unix milliseconds.
    pub dead_lettered_at: u64,
    /// Subject under which it was first published, if it differs from the event's own.
    pub original_subject: Option<String>,
    /// Number of attempts to process it.
    pub delivery_attempts: Option<u64>,
    /// Time of the first failure, in Unix milliseconds.
    pub first_failure_at: Option<u64>,
}

impl DeadLetterEvent {
    /// Creates a dead letter for an event, with the current time.
    pub fn new(event: ReceivedEvent, reason: impl Into<String>) -> Self {
        Self {
            event,
            reason: reason.into(),
            dead_lettered_at: unix_millis(),
            original_subject: None,
            delivery_attempts: None,
            first_failure_at: None,
        }
    }

    /// Sets the subject under which the event was first published.
    #[must_use]
    pub fn with_original_subject(mut self, subject: impl Into<String>) -> Self {
        self.original_subject = Some(subject.into());
        self
    }

    /// Sets the number of attempts to process it.
    #[must_use]
    pub fn with_delivery_attempts(mut self, attempts: u64) -> Self {
        self.delivery_attempts = Some(attempts);
        self
    }

    /// Sets the time of the first failure, in Unix milliseconds.
    #[must_use]
    pub fn with_first_failure_at(mut self, unix_millis: u64) -> Self {
        self.first_failure_at = Some(unix_millis);
        self
    }
}

/// A queue of dead letters. Its methods are called from many tasks at once.
#[async_trait]
pub trait DlqHandler: Send + Sync {
    /// Stores a dead letter. `Ok` means that it is stored; only then may the caller settle the source event.
    ///
    /// # Errors
    ///
    /// The error of the backend. The dead letter is then not stored.
    async fn handle(&self, event: DeadLetterEvent) -> Result<()>;

    /// Stores a dead letter with all that is known about it. The default passes the fields that
    /// [`handle`](DlqHandler::handle) takes to that method.
    ///
    /// # Errors
    ///
    /// Same as [`handle`](DlqHandler::handle).
    async fn handle_letter(&self, letter: DeadLetter) -> Result<()> {
        self.handle(letter.into()).await
    }

    /// Stores a dead letter and returns its place in the queue. The bus calls this method. The default calls
    /// [`handle_letter`](DlqHandler::handle_letter) and returns an empty receipt.
    ///
    /// # Errors
    ///
    /// Same as [`handle`](DlqHandler::handle).
    async fn keep_letter(&self, letter: DeadLetter) -> Result<DeadLetterReceipt> {
        self.handle_letter(letter).await.map(|()| DeadLetterReceipt::default())
    }

    /// Returns true if an event that cannot be processed is a dead letter itself. The bus then writes no other letter,
    /// because letters about letters would circulate forever. The event stays in its stream. `prefix` is the subject
    /// prefix of the stream in which the event failed.
    ///
    /// The default suits every queue whose letters are events. It checks for the library's own types below
    /// `{prefix}.dlq.`. The type alone proves nothing, because the publisher chooses it. A queue that writes no events
    /// returns `false`.
    fn is_letter(&self, event: &Event, prefix: &str) -> bool {
        reserved::is_letter(event, prefix)
    }

    /// Returns the number of dead letters.
    ///
    /// # Errors
    ///
    /// The error of the backend.
    async fn count(&self) -> Result<usize>;

    /// Returns the newest `limit` dead letters, newest first.
    ///
    /// # Errors
    ///
    /// The error of the backend.
    async fn list(&self, limit: usize) -> Result<Vec<DeadLetterEvent>>;
}

/// Keeps dead letters in memory, for development and tests. They are lost when the process ends.
///
/// ```
/// use a3s_event::{DeadLetterEvent, DlqHandler, Event, MemoryDlqHandler, ReceivedEvent};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> a3s_event::Result<()> {
/// let queue = MemoryDlqHandler::default();
/// let event = Event::new("events.a", "a", "", "doc", serde_json::json!(null));
/// let received = ReceivedEvent { event, sequence: 1, num_delivered: 1, stream: "memory".into() };
/// queue.handle(DeadLetterEvent::new(received, "no handler")).await?;
/// assert_eq!(queue.count().await?, 1);
/// assert_eq!(queue.list(10).await?[0].reason, "no handler");
/// # Ok(())
/// # }
/// ```
pub struct MemoryDlqHandler {
    max_events: usize,
    /// Letters, oldest first.
    letters: Mutex<VecDeque<DeadLetterEvent>>,
}

impl MemoryDlqHandler {
    /// Creates an empty queue that keeps the newest `max_events` dead letters; 0 means no limit. Each dropped letter is
    /// a warning in the log.
    pub fn new(max_events: usize) -> Self {
        Self { max_events, letters: Mutex::default() }
    }

    fn push(&self, letter: DeadLetterEvent) {
        let mut letters = self.letters();
        letters.push_back(letter);
        if self.max_events == 0 || letters.len() <= self.max_events {
            return;
        }
        let dropped = letters.pop_front();
        drop(letters);
        if let Some(dropped) = dropped {
            tracing::warn!(
                id = dropped.event.event.id,
                subject = dropped.event.event.subject,
                max_events = self.max_events,
                "dead-letter queue is full; the oldest dead letter was dropped"
            );
        }
    }

    fn newest(&self, limit: usize) -> Vec<DeadLetterEvent> {
        self.letters().iter().rev().take(limit).cloned().collect()
    }

    /// Locks the letters. No method panics during a change, so a poisoned lock is harmless.
    fn letters(&self) -> MutexGuard<'_, VecDeque<DeadLetterEvent>> {
        self.letters.lock().ignore_poison()
    }
}

impl Default for MemoryDlqHandler {
    /// Creates a queue of at most 10,000 dead letters.
    fn default() -> Self {
        Self::new(10_000)
    }
}

/// Shows the number of dead letters, not their payloads.
impl fmt::Debug for MemoryDlqHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryDlqHandler")
            .field("max_events", &self.max_events)
            .field("count", &self.letters().len())
            .finish()
    }
}

#[async_trait]
impl DlqHandler for MemoryDlqHandler {
    async fn handle(&self, event: DeadLetterEvent) -> Result<()> {
        self.push(event);
        Ok(())
    }

    /// Returns false: its letters are not events, so they cannot circulate.
    fn is_letter(&self, _event: &Event, _prefix: &str) -> bool {
        false
    }

    async fn count(&self) -> Result<usize> {
        Ok(self.letters().len())
    }

    async fn list(&self, limit: usize) -> Result<Vec<DeadLetterEvent>> {
        Ok(self.newest(limit))
    }
}

/// Returns true if this delivery was the last that `max_deliver` allows. `max_deliver` 0 means unlimited.
///
/// ```
/// use a3s_event::dlq::should_dead_letter;
/// use a3s_event::{Event, ReceivedEvent};
///
/// let event = Event::new("events.a", "a", "", "doc", serde_json::json!(null));
/// let received = ReceivedEvent { event, sequence: 1, num_delivered: 3, stream: "memory".into() };
/// assert!(should_dead_letter(&received, 3));
/// assert!(!should_dead_letter(&received, 4));
/// assert!(!should_dead_letter(&received, 0));
/// ```
pub fn should_dead_letter(event: &ReceivedEvent, max_deliver: u64) -> bool {
    max_deliver != 0 && event.num_delivered >= max_deliver
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    pub(super) fn letter(subject: &str) -> DeadLetterEvent {
        let received = ReceivedEvent {
            event: Event::new(subject, "a", "", "test", json!({"n": 1})),
            sequence: 1,
            num_delivered: 3,
            stream: "memory".into(),
        };
        DeadLetterEvent::new(received, "because")
    }

    pub(super) fn subjects(letters: Vec<DeadLetterEvent>) -> Vec<String> {
        letters.into_iter().map(|letter| letter.event.event.subject).collect()
    }

    #[test]
    fn a_new_dead_letter_knows_its_time_and_nothing_else() {
        let before = unix_millis();
        let letter = letter("events.a");
        assert!((before..=unix_millis()).contains(&letter.dead_lettered_at));
        assert_eq!(letter.reason, "because");
        assert!(letter.original_subject.is_none());
        assert!(letter.delivery_attempts.is_none() && letter.first_failure_at.is_none());
    }

    #[tokio::test]
    async fn memory_lists_the_newest_first_and_drops_the_oldest() {
        let queue = MemoryDlqHandler::new(2);
        for subject in ["events.1", "events.2", "events.3"] {
            queue.handle(letter(subject)).await.unwrap();
        }
        assert_eq!(queue.count().await.unwrap(), 2);
        assert_eq!(subjects(queue.list(10).await.unwrap()), ["events.3", "events.2"]);
        assert_eq!(subjects(queue.list(1).await.unwrap()), ["events.3"]);
        assert!(queue.list(0).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn memory_without_a_limit_keeps_everything() {
        let queue = MemoryDlqHandler::new(0);
        for _ in 0..100 {
            queue.handle(letter("events.a")).await.unwrap();
        }
        assert_eq!(queue.count().await.unwrap(), 100);
        assert_eq!(MemoryDlqHandler::default().max_events, 10_000);
    }

    #[test]
    fn the_last_allowed_delivery_is_dead_lettered() {
        let received = letter("events.a").event;
        for (max_deliver, expected) in [(0, false), (1, true), (3, true), (4, false)] {
            assert_eq!(should_dead_letter(&received, max_deliver), expected, "{max_deliver}");
        }
    }
}
