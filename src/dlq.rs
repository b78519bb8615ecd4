//! Dead letters: events that could not be processed, kept with the reason until someone looks at them.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::crypto::EncryptedPayload;
use crate::error::{EventError, Result};
use crate::sink::EventSink;
use crate::subject::validate_subject;
use crate::types::{Event, ReceivedEvent, unix_millis};

/// Event type of what [`SinkDlqHandler`] forwards.
pub(crate) const DEAD_LETTER_TYPE: &str = "a3s.dlq.dead_letter";
/// Last token of the forwarded subject where the original one does not fit.
const LONG_SUBJECT: &str = "long-subject";

/// An event that could not be processed, and why.
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
    /// The event as it was delivered last.
    pub event: ReceivedEvent,
    /// Why it could not be processed.
    pub reason: String,
    /// When it was given up, in Unix milliseconds.
    pub dead_lettered_at: u64,
    /// The subject it was first published under, where that is not the event's own.
    pub original_subject: Option<String>,
    /// How often processing was tried.
    pub delivery_attempts: Option<u64>,
    /// When processing failed first, in Unix milliseconds.
    pub first_failure_at: Option<u64>,
}

impl DeadLetterEvent {
    /// Gives up an event now.
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

    /// Says under which subject the event was first published.
    #[must_use]
    pub fn with_original_subject(mut self, subject: impl Into<String>) -> Self {
        self.original_subject = Some(subject.into());
        self
    }

    /// Says how often processing was tried.
    #[must_use]
    pub fn with_delivery_attempts(mut self, attempts: u64) -> Self {
        self.delivery_attempts = Some(attempts);
        self
    }

    /// Says when processing failed first, in Unix milliseconds.
    #[must_use]
    pub fn with_first_failure_at(mut self, unix_millis: u64) -> Self {
        self.first_failure_at = Some(unix_millis);
        self
    }
}

/// A place for dead letters. Called from many tasks at once.
#[async_trait]
pub trait DlqHandler: Send + Sync {
    /// Takes a dead letter. `Ok` means that it is kept: only then may the source event be settled.
    ///
    /// # Errors
    ///
    /// The error of what stands behind the queue. The dead letter is then not kept.
    async fn handle(&self, event: DeadLetterEvent) -> Result<()>;

    /// How many dead letters there are.
    ///
    /// # Errors
    ///
    /// The error of what stands behind the queue.
    async fn count(&self) -> Result<usize>;

    /// The newest `limit` dead letters, newest first.
    ///
    /// # Errors
    ///
    /// The error of what stands behind the queue.
    async fn list(&self, limit: usize) -> Result<Vec<DeadLetterEvent>>;
}

/// Keeps dead letters in memory, for development and tests: they are gone with the process.
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
    /// Oldest first.
    letters: Mutex<VecDeque<DeadLetterEvent>>,
}

impl MemoryDlqHandler {
    /// An empty queue that keeps the newest `max_events` dead letters; 0 means no limit. Each one dropped is a warning
    /// in the log.
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
                "dead-letter queue is full, the oldest dead letter is dropped"
            );
        }
    }

    fn newest(&self, limit: usize) -> Vec<DeadLetterEvent> {
        self.letters().iter().rev().take(limit).cloned().collect()
    }

    /// No method panics half-way through a change, so that poison means nothing here.
    fn letters(&self) -> MutexGuard<'_, VecDeque<DeadLetterEvent>> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for MemoryDlqHandler {
    /// A queue of at most 10,000 dead letters.
    fn default() -> Self {
        Self::new(10_000)
    }
}

/// Shows how many dead letters there are, not their payloads.
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

    async fn count(&self) -> Result<usize> {
        Ok(self.letters().len())
    }

    async fn list(&self, limit: usize) -> Result<Vec<DeadLetterEvent>> {
        Ok(self.newest(limit))
    }
}

/// Forwards each dead letter to a sink, and keeps the newest in memory so that they can be listed.
///
/// What is forwarded is a new event: subject `events.dlq.` followed by the original subject, category `dlq`, type
/// `a3s.dlq.dead_letter` version 1, source `dlq-handler`, and the payload of the dead letter. Its metadata says the
/// rest: `dlq_reason`, `dlq_original_id`, `dlq_dead_lettered_at`, and where known `dlq_original_subject`,
/// `dlq_delivery_attempts` and `dlq_first_failure_at`. Where the payload is encrypted, `dlq_original_event_type` and
/// `dlq_original_version` are there as well: with them it opens in the forwarded event as it did in the original.
///
/// Where the new subject would be too long it is `events.dlq.long-subject`. Where the new event would be too large for the
/// sink its payload is left out, and `dlq_payload` says so.
///
/// ```
/// use std::sync::Arc;
/// use a3s_event::{MemoryProvider, SinkDlqHandler, TopicSink};
///
/// let provider = Arc::new(MemoryProvider::default());
/// let queue = SinkDlqHandler::new(Arc::new(TopicSink::new("dead-letters", provider)), 1_000);
/// ```
pub struct SinkDlqHandler {
    sink: Arc<dyn EventSink>,
    subject_prefix: String,
    forwarded: MemoryDlqHandler,
}

impl SinkDlqHandler {
    /// Forwards to `sink` and keeps the newest `max_events` in memory; 0 means no limit.
    pub fn new(sink: Arc<dyn EventSink>, max_events: usize) -> Self {
        Self { sink, subject_prefix: "events".to_owned(), forwarded: MemoryDlqHandler::new(max_events) }
    }

    /// For streams with another subject prefix than `events`: the subject becomes `{prefix}.dlq.{original subject}`.
    #[must_use]
    pub fn with_subject_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.subject_prefix = prefix.into();
        self
    }

    fn forwarding(&self, letter: &DeadLetterEvent) -> Event {
        let source = &letter.event.event;
        let original_subject = letter.original_subject.as_deref().unwrap_or(&source.subject);
        let mut subject = format!("{}.dlq.{original_subject}", self.subject_prefix);
        if validate_subject(&subject).is_err() {
            // With what stands before it, the original is too long; it is in the metadata.
            subject = format!("{}.dlq.{LONG_SUBJECT}", self.subject_prefix);
        }
        let mut event = Event::typed(
            subject,
            "dlq",
            DEAD_LETTER_TYPE,
            1,
            format!("Dead letter: {}", letter.reason),
            "dlq-handler",
            source.payload.clone(),
        );
        event.metadata = metadata_of(letter);
        event
    }
}

fn metadata_of(letter: &DeadLetterEvent) -> HashMap<String, String> {
    let always = [
        ("dlq_reason", Some(letter.reason.clone())),
        ("dlq_original_id", Some(letter.event.event.id.clone())),
        ("dlq_dead_lettered_at", Some(letter.dead_lettered_at.to_string())),
    ];
    let source = &letter.event.event;
    let sealed = EncryptedPayload::is_encrypted(&source.payload);
    let subject = || sealed.then(|| source.subject.clone());
    let where_known = [
        ("dlq_original_subject", letter.original_subject.clone().or_else(subject)),
        ("dlq_delivery_attempts", letter.delivery_attempts.map(|attempts| attempts.to_string())),
        ("dlq_first_failure_at", letter.first_failure_at.map(|at| at.to_string())),
    ];
    // What a sealed payload is bound to.
    let where_sealed = [
        ("dlq_original_event_type", sealed.then(|| source.event_type.clone())),
        ("dlq_original_version", sealed.then(|| source.version.to_string())),
    ];
    always
        .into_iter()
        .chain(where_known)
        .chain(where_sealed)
        .filter_map(|(key, value)| Some((key.to_owned(), value?)))
        .collect()
}

impl fmt::Debug for SinkDlqHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SinkDlqHandler")
            .field("sink", &self.sink.name())
            .field("subject_prefix", &self.subject_prefix)
            .field("forwarded", &self.forwarded)
            .finish()
    }
}

#[async_trait]
impl DlqHandler for SinkDlqHandler {
    /// Forwards first: what the sink did not take is not listed either.
    async fn handle(&self, event: DeadLetterEvent) -> Result<()> {
        let mut forwarded = self.forwarding(&event);
        match self.sink.deliver(&forwarded).await {
            Err(EventError::TooLarge { .. }) => {
                // With what is added to it the event is too large; its payload is still in the stream.
                forwarded.payload = serde_json::Value::Null;
                forwarded.metadata.insert("dlq_payload".to_owned(), "omitted: too large".to_owned());
                self.sink.deliver(&forwarded).await?;
            }
            delivered => delivered?,
        }
        self.forwarded.push(event);
        Ok(())
    }

    async fn count(&self) -> Result<usize> {
        self.forwarded.count().await
    }

    async fn list(&self, limit: usize) -> Result<Vec<DeadLetterEvent>> {
        Ok(self.forwarded.newest(limit))
    }
}

/// Whether this delivery was the last that `max_deliver` allows; never when `max_deliver` is 0, which means unlimited.
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
    use crate::provider::EventProvider;
    use crate::provider::memory::MemoryProvider;
    use crate::sink::{CollectorSink, FailingSink, TopicSink};
    use serde_json::json;

    fn letter(subject: &str) -> DeadLetterEvent {
        let received = ReceivedEvent {
            event: Event::new(subject, "a", "", "test", json!({"n": 1})),
            sequence: 1,
            num_delivered: 3,
            stream: "memory".into(),
        };
        DeadLetterEvent::new(received, "because")
    }

    fn subjects(letters: Vec<DeadLetterEvent>) -> Vec<String> {
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

    #[tokio::test]
    async fn a_sink_queue_forwards_what_is_promised() {
        let sink = Arc::new(CollectorSink::new("dead"));
        let queue = SinkDlqHandler::new(sink.clone(), 10);
        let plain = letter("events.a.b");
        let id = plain.event.event.id.clone();
        let at = plain.dead_lettered_at.to_string();
        queue.handle(plain).await.unwrap();

        let forwarded = &sink.events().await[0];
        assert_eq!(forwarded.subject, "events.dlq.events.a.b");
        assert_eq!(forwarded.category, "dlq");
        assert_eq!((forwarded.event_type.as_str(), forwarded.version), ("a3s.dlq.dead_letter", 1));
        assert_eq!(forwarded.summary, "Dead letter: because");
        assert_eq!(forwarded.source, "dlq-handler");
        assert_eq!(forwarded.payload, json!({"n": 1}));
        assert_ne!(forwarded.id, id);
        assert_eq!(
            forwarded.metadata,
            HashMap::from([
                ("dlq_reason".to_owned(), "because".to_owned()),
                ("dlq_original_id".to_owned(), id),
                ("dlq_dead_lettered_at".to_owned(), at),
            ])
        );
    }

    #[tokio::test]
    async fn a_sink_queue_forwards_what_is_known_besides() {
        let sink = Arc::new(CollectorSink::new("dead"));
        let queue = SinkDlqHandler::new(sink.clone(), 10).with_subject_prefix("acme");
        let known = letter("acme.retry.a")
            .with_original_subject("acme.a")
            .with_delivery_attempts(5)
            .with_first_failure_at(1_700_000_000_000);
        queue.handle(known).await.unwrap();

        let forwarded = &sink.events().await[0];
        assert_eq!(forwarded.subject, "acme.dlq.acme.a");
        assert_eq!(forwarded.metadata["dlq_original_subject"], "acme.a");
        assert_eq!(forwarded.metadata["dlq_delivery_attempts"], "5");
        assert_eq!(forwarded.metadata["dlq_first_failure_at"], "1700000000000");
        assert_eq!(queue.count().await.unwrap(), 1);
        assert_eq!(subjects(queue.list(10).await.unwrap()), ["acme.retry.a"]);
    }

    #[tokio::test]
    async fn a_failing_sink_leaves_nothing_behind() {
        let queue = SinkDlqHandler::new(Arc::new(FailingSink::new("dead", "down")), 10);
        let error = queue.handle(letter("events.a")).await.unwrap_err();
        assert!(matches!(error, EventError::SinkDelivery { .. }));
        assert_eq!(queue.count().await.unwrap(), 0);
        assert!(queue.list(10).await.unwrap().is_empty());
    }

    #[test]
    fn the_last_allowed_delivery_is_dead_lettered() {
        let received = letter("events.a").event;
        for (max_deliver, expected) in [(0, false), (1, true), (3, true), (4, false)] {
            assert_eq!(should_dead_letter(&received, max_deliver), expected, "{max_deliver}");
        }
    }

    #[tokio::test]
    async fn what_does_not_fit_is_forwarded_all_the_same() {
        let provider = Arc::new(MemoryProvider::builder().max_payload(1_000).build().unwrap());
        let queue = SinkDlqHandler::new(Arc::new(TopicSink::new("dead", provider.clone())), 10);
        let long = format!("events.{}", "x".repeat(245));
        queue.handle(letter(&long)).await.unwrap();
        let mut large = letter("events.a");
        large.event.event.payload = json!("x".repeat(800));
        queue.handle(large).await.unwrap();

        let forwarded = provider.history(None, 2).await.unwrap();
        assert_eq!(forwarded[1].subject, "events.dlq.long-subject");
        assert!(!forwarded[1].metadata["dlq_original_id"].is_empty());
        assert_eq!(
            (&forwarded[0].payload, forwarded[0].metadata["dlq_payload"].as_str()),
            (&json!(null), "omitted: too large")
        );
        assert_eq!(queue.count().await.unwrap(), 2);
    }
}
