//! Dead letters of events that a trigger gives up.

use std::sync::Arc;

use async_trait::async_trait;

use super::hops::passed;
use super::lane::Lane;
use crate::clock::unix_millis;
use crate::dlq::{DeadLetter, DeadLetterEvent, DeadLetterReceipt, DlqHandler};
use crate::error::Result;
use crate::reserved;
use crate::sink::EventSink;
use crate::types::{Event, ReceivedEvent};

/// Creates the dead letter: the event itself, with the failure in its metadata.
pub(super) fn letter(lane: &Lane, event: &Event, reason: &str, attempts: u64, at: u64) -> Event {
    let mut letter = passed(event);
    for (key, value) in [
        ("dlq_reason", reason.to_owned()),
        ("dlq_trigger", lane.name().to_owned()),
        ("dlq_sink", lane.sink().name().to_owned()),
        ("dlq_delivery_attempts", attempts.to_string()),
        ("dlq_dead_lettered_at", at.to_string()),
    ] {
        letter.metadata.insert(key.to_owned(), value);
    }
    letter
}

pub(super) fn letter_now(lane: &Lane, event: &Event, reason: &str, attempts: u64) -> Event {
    letter(lane, event, reason, attempts, unix_millis())
}

/// Handler of all dead letters of a durable trigger. An event is settled when its letter is accepted.
pub(super) struct Letters {
    pub(super) lane: Arc<Lane>,
    pub(super) kept_by: KeptBy,
}

/// Destination of a trigger's dead letters.
pub(super) enum KeptBy {
    /// The dead-letter sink of the trigger or the broker.
    Sink(Arc<dyn EventSink>),
    /// The dead-letter handler of the bus.
    Bus(Arc<dyn DlqHandler>),
}

#[async_trait]
impl DlqHandler for Letters {
    async fn handle(&self, event: DeadLetterEvent) -> Result<()> {
        self.handle_letter(event.into()).await
    }

    async fn handle_letter(&self, dead: DeadLetter) -> Result<()> {
        self.keep_letter(dead).await.map(drop)
    }

    async fn keep_letter(&self, dead: DeadLetter) -> Result<DeadLetterReceipt> {
        let receipt = match &self.kept_by {
            KeptBy::Bus(handler) => handler.keep_letter(dead).await?,
            KeptBy::Sink(sink) => {
                let attempts = dead.attempts.unwrap_or(dead.event.num_delivered);
                let at = dead.dead_lettered_at;
                let ReceivedEvent { event, sequence, stream, .. } = &dead.event;
                let key = self.lane.key_of_stored(event, stream, *sequence).letter();
                let letter = letter(&self.lane, event, &dead.reason, attempts, at);
                let subject = letter.subject.clone();
                sink.deliver_keyed(Arc::new(letter), key).await?;
                DeadLetterReceipt::new(None, Some(subject))
            }
        };
        self.lane.count_failed();
        self.lane.count_dead_lettered();
        Ok(receipt)
    }

    fn is_letter(&self, event: &Event, prefix: &str) -> bool {
        match &self.kept_by {
            KeptBy::Bus(handler) => handler.is_letter(event, prefix),
            KeptBy::Sink(_) => reserved::is_letter(event, prefix),
        }
    }

    async fn count(&self) -> Result<usize> {
        match &self.kept_by {
            KeptBy::Bus(handler) => handler.count().await,
            KeptBy::Sink(_) => Ok(0),
        }
    }

    async fn list(&self, limit: usize) -> Result<Vec<DeadLetterEvent>> {
        match &self.kept_by {
            KeptBy::Bus(handler) => handler.list(limit).await,
            KeptBy::Sink(_) => Ok(Vec::new()),
        }
    }
}
