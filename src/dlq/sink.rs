//! Forwarding of dead letters to a sink.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use super::{DeadLetter, DeadLetterEvent, DeadLetterReceipt, DlqHandler, MemoryDlqHandler};
use crate::crypto::EncryptedPayload;
use crate::error::{EventError, Result};
use crate::reserved::{self, FORWARDED_TYPE};
use crate::sink::{DeliveryKey, EventSink};
use crate::subject::validate_subject;
use crate::types::Event;

/// Last token of the forwarded subject if the original one does not fit.
const LONG_SUBJECT: &str = "long-subject";

/// Forwards each dead letter to a sink, and keeps the newest in memory for listing.
///
/// The forwarded letter is a new event:
///
/// - subject: `events.dlq.` and the original subject, or `events.dlq.long-subject` if that would be too long;
/// - category `dlq`, type `a3s.dlq.dead_letter` version 1, source `dlq-handler`;
/// - payload: that of the dead letter. If the new event is too large for the sink, the payload is omitted, and the
///   metadata has `dlq_payload`;
/// - metadata: `dlq_reason`, `dlq_original_id`, `dlq_dead_lettered_at`, and if known `dlq_original_subject`,
///   `dlq_delivery_attempts` and `dlq_first_failure_at`.
///
/// If the payload is encrypted, the metadata also has `dlq_original_event_type` and `dlq_original_version`. With them a
/// bus decrypts the payload like that of the original, if the forwarded event is below `{prefix}.dlq.` of its stream.
/// For a copy from elsewhere, use [`original`](SinkDlqHandler::original).
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
    /// Creates a handler that forwards to `sink` and keeps the newest `max_events` in memory; 0 means no limit.
    pub fn new(sink: Arc<dyn EventSink>, max_events: usize) -> Self {
        Self { sink, subject_prefix: "events".to_owned(), forwarded: MemoryDlqHandler::new(max_events) }
    }

    /// Sets the subject prefix of the stream, `events` by default. The subject becomes
    /// `{prefix}.dlq.{original subject}`.
    #[must_use]
    pub fn with_subject_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.subject_prefix = prefix.into();
        self
    }

    /// Forwards a letter and returns its subject.
    async fn forward(&self, letter: DeadLetterEvent, key: Option<DeliveryKey>) -> Result<String> {
        let forwarded = Arc::new(self.forwarding(&letter));
        let subject = forwarded.subject.clone();
        match self.deliver(Arc::clone(&forwarded), key).await {
            Err(EventError::TooLarge { .. }) => {
                // With the added fields, the event is too large. Its payload is still in the original stream.
                let mut forwarded = Arc::unwrap_or_clone(forwarded);
                forwarded.payload = serde_json::Value::Null;
                forwarded.metadata.insert("dlq_payload".to_owned(), "omitted: too large".to_owned());
                self.deliver(Arc::new(forwarded), key).await?;
            }
            delivered => delivered?,
        }
        self.forwarded.push(letter);
        Ok(subject)
    }

    /// Returns the original of a forwarded letter, with its payload, and with id, subject, type and version from its
    /// metadata. An [`EventEncryptor`](crate::EventEncryptor) needs it to decrypt an encrypted payload. Returns `None`
    /// unless the event is a forwarded letter of an encrypted event.
    ///
    /// Any publisher can write such a letter. Call this only for letters from a source that you trust.
    pub fn original(letter: &Event) -> Option<Event> {
        let of = |key: &str| letter.metadata.get(key);
        if letter.event_type != FORWARDED_TYPE {
            return None;
        }
        let (id, subject) = (of("dlq_original_id")?, of("dlq_original_subject")?);
        let (event_type, version) =
            (of("dlq_original_event_type")?, of("dlq_original_version")?.parse().ok()?);
        let payload = letter.payload.clone();
        let mut original = Event::typed(subject, "", event_type, version, "", "", payload);
        original.id.clone_from(id);
        Some(original)
    }

    async fn deliver(&self, event: Arc<Event>, key: Option<DeliveryKey>) -> Result<()> {
        match key {
            Some(key) => self.sink.deliver_keyed(event, key).await,
            None => self.sink.deliver(&event).await,
        }
    }

    fn forwarding(&self, letter: &DeadLetterEvent) -> Event {
        let source = &letter.event.event;
        let original_subject = letter.original_subject.as_deref().unwrap_or(&source.subject);
        let mut subject = format!("{}.dlq.{original_subject}", self.subject_prefix);
        if validate_subject(&subject).is_err() {
            // With the prefix, the original is too long; it is in the metadata.
            subject = format!("{}.dlq.{LONG_SUBJECT}", self.subject_prefix);
        }
        let mut event = Event::typed(
            subject,
            "dlq",
            FORWARDED_TYPE,
            1,
            format!("Dead letter: {}", letter.reason),
            "dlq-handler",
            source.payload.clone(),
        );
        event.metadata = metadata_of(letter);
        event
    }
}

/// Returns the original of an encrypted event that was forwarded, if the letter is in its place: below `{prefix}.dlq.`,
/// under the subject of the original.
pub(crate) fn forwarded_original(letter: &Event, prefix: &str) -> Option<Event> {
    let place = reserved::below_dlq(&letter.subject, prefix)?;
    let original = SinkDlqHandler::original(letter)?;
    (place == original.subject || place == LONG_SUBJECT).then_some(original)
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
    // An encrypted payload is bound to these fields.
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
    /// Forwards first, so that a letter that the sink refused is not listed either.
    async fn handle(&self, event: DeadLetterEvent) -> Result<()> {
        self.forward(event, None).await.map(drop)
    }

    /// Forwards with a key of the failure. A topic then stores the letter once, even if its first answer was lost.
    async fn handle_letter(&self, letter: DeadLetter) -> Result<()> {
        self.keep_letter(letter).await.map(drop)
    }

    async fn keep_letter(&self, letter: DeadLetter) -> Result<DeadLetterReceipt> {
        let key = DeliveryKey::new(&[FORWARDED_TYPE, &letter.key()], letter.event.sequence);
        let subject = self.forward(letter.into(), Some(key)).await?;
        Ok(DeadLetterReceipt::new(None, Some(subject)))
    }

    /// Also returns true for events below this queue's own prefix.
    fn is_letter(&self, event: &Event, prefix: &str) -> bool {
        [prefix, &self.subject_prefix].iter().any(|prefix| reserved::is_letter(event, prefix))
    }

    async fn count(&self) -> Result<usize> {
        self.forwarded.count().await
    }

    async fn list(&self, limit: usize) -> Result<Vec<DeadLetterEvent>> {
        Ok(self.forwarded.newest(limit))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{letter, subjects};
    use super::*;
    use crate::provider::EventProvider;
    use crate::provider::memory::MemoryProvider;
    use crate::sink::{CollectorSink, FailingSink, TopicSink};
    use serde_json::json;

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
    async fn a_failure_that_is_forwarded_again_is_stored_once() {
        let provider = Arc::new(MemoryProvider::default());
        let queue = SinkDlqHandler::new(Arc::new(TopicSink::new("dead", provider.clone())), 10);
        let mut failure = DeadLetter::from(letter("events.a"));
        for (consumer, stored) in [("billing", 1), ("billing", 1), ("audit", 2)] {
            failure.consumer = Some(consumer.to_owned());
            queue.handle_letter(failure.clone()).await.unwrap();
            assert_eq!(provider.info().await.unwrap().messages, stored);
        }
        let by_hand = DeadLetterEvent::from(failure);
        for stored in [3, 4] {
            queue.handle(by_hand.clone()).await.unwrap();
            assert_eq!(provider.info().await.unwrap().messages, stored);
        }
    }

    #[tokio::test]
    async fn a_failing_sink_leaves_nothing_behind() {
        let queue = SinkDlqHandler::new(Arc::new(FailingSink::new("dead", "down")), 10);
        let error = queue.handle(letter("events.a")).await.unwrap_err();
        assert!(matches!(error, EventError::SinkDelivery { .. }));
        assert_eq!(queue.count().await.unwrap(), 0);
        assert!(queue.list(10).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_does_not_fit_is_forwarded_all_the_same() {
        let provider = Arc::new(MemoryProvider::builder().max_event_bytes(1_000).build().unwrap());
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
