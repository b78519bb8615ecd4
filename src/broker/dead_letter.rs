//! What becomes of an event that a trigger gives up.

use std::sync::Arc;

use async_trait::async_trait;

use super::hops::passed;
use super::lane::Lane;
use crate::dlq::{DeadLetterEvent, DlqHandler};
use crate::error::Result;
use crate::sink::EventSink;
use crate::types::{Event, ReceivedEvent, unix_millis};

/// The event itself, with what happened in its metadata.
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

/// The dead letters of a durable trigger: its source is settled when the sink has taken the letter.
pub(super) struct LetterSink {
    pub(super) lane: Arc<Lane>,
    pub(super) sink: Arc<dyn EventSink>,
}

#[async_trait]
impl DlqHandler for LetterSink {
    async fn handle(&self, event: DeadLetterEvent) -> Result<()> {
        let attempts = event.delivery_attempts.unwrap_or(event.event.num_delivered);
        let ReceivedEvent { event: given_up, sequence, stream, .. } = &event.event;
        let key = self.lane.key_of_stored(given_up, stream, *sequence).letter();
        let letter = letter(&self.lane, given_up, &event.reason, attempts, event.dead_lettered_at);
        self.sink.deliver_keyed(Arc::new(letter), key).await?;
        self.lane.count_failed();
        self.lane.count_dead_lettered();
        Ok(())
    }

    async fn count(&self) -> Result<usize> {
        Ok(0)
    }

    async fn list(&self, _limit: usize) -> Result<Vec<DeadLetterEvent>> {
        Ok(Vec::new())
    }
}
