//! Taking an event out of circulation: written to the dead letters first, settled only when that succeeded.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::dlq::{DeadLetterEvent, DlqHandler};
use crate::error::{EventError, Result};
use crate::metrics::{BusMetrics, ConsumerMetrics};
use crate::provider::{AckHandler, Delivery};
use crate::types::{Event, ReceivedEvent};

/// Wait before an event is tried again that the dead-letter handler did not take.
const RETRY_DELAY: Duration = Duration::from_secs(5);

/// Where one subscription's failures go.
pub(super) struct DeadLetters {
    /// Without a handler, what cannot be processed is only terminated.
    pub(super) handler: Option<Arc<dyn DlqHandler>>,
    /// Deliveries after which an event is given up; the bus counts them when there is a handler.
    pub(super) max_deliver: Option<u64>,
    /// How long a delivery is leased; the lease is kept alive while the handler works.
    pub(super) ack_wait: Duration,
    /// How long the handler may take.
    pub(super) timeout: Duration,
    pub(super) metrics: Arc<BusMetrics>,
    pub(super) consumer: Arc<ConsumerMetrics>,
}

impl DeadLetters {
    /// Whether all allowed deliveries happened before this one.
    pub(super) fn is_exhausted(&self, delivery: &Delivery) -> bool {
        self.max_deliver.is_some_and(|max| delivery.num_delivered() > max)
    }

    /// The delivery of `event`, whose refusal is final if it is the last one allowed.
    pub(super) fn guard(self: &Arc<Self>, delivery: Delivery, event: Option<Arc<Event>>) -> Delivery {
        let is_last = self.max_deliver.is_some_and(|max| delivery.num_delivered() >= max);
        let event = event.unwrap_or_else(|| delivery.shared_event());
        if !is_last {
            return delivery.map_event(event);
        }
        let (sequence, attempt) = (delivery.sequence(), delivery.num_delivered());
        let stream = delivery.stream().into();
        Delivery::new(
            event,
            sequence,
            attempt,
            stream,
            LastAttempt { stored: delivery, letters: Arc::clone(self) },
        )
    }

    /// Takes an event out after all its deliveries.
    pub(super) async fn give_up(&self, delivery: &Delivery) -> Result<()> {
        let attempts = self.max_deliver.unwrap_or_else(|| delivery.num_delivered());
        self.take_out(delivery, attempts, &format!("not processed in {attempts} deliveries")).await
    }

    /// Takes an event out. Dropped half-way, the delivery keeps its lease and comes again.
    pub(super) async fn take_out(&self, delivery: &Delivery, attempts: u64, reason: &str) -> Result<()> {
        let Some(handler) = &self.handler else { return delivery.term_or_ack(reason).await };
        let letter = dead_letter(delivery, attempts, reason);
        let handled = tokio::time::timeout(self.timeout, handler.handle(letter));
        let handled = self.keep_alive(delivery, handled).await.unwrap_or_else(|_elapsed| {
            Err(EventError::Timeout(format!("the dead-letter handler did not end within {:?}", self.timeout)))
        });
        match handled {
            Ok(()) => {
                self.metrics.record_dlq();
                self.consumer.record_dead_letter();
                delivery.term_or_ack(reason).await
            }
            Err(error) => {
                let sequence = delivery.sequence();
                tracing::error!(sequence, %error, "event not dead-lettered; it will be tried again");
                match delivery.settlement().nak(Some(RETRY_DELAY)).await {
                    // Without delayed refusals the lease brings it back.
                    Err(EventError::Unsupported { .. }) => Ok(()),
                    refused => refused,
                }
            }
        }
    }

    /// Extends the lease as long as the work takes, or a second member would dead-letter the event again.
    async fn keep_alive<T>(&self, delivery: &Delivery, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = tokio::time::sleep(self.ack_wait / 2) => {
                    if let Err(error) = delivery.extend().await {
                        tracing::debug!(sequence = delivery.sequence(), %error, "lease not extended");
                    }
                }
            }
        }
    }
}

fn dead_letter(delivery: &Delivery, attempts: u64, reason: &str) -> DeadLetterEvent {
    let received = ReceivedEvent {
        event: delivery.event().clone(),
        sequence: delivery.sequence(),
        num_delivered: attempts,
        stream: delivery.stream().to_owned(),
    };
    DeadLetterEvent::new(received, reason)
        .with_original_subject(&delivery.event().subject)
        .with_delivery_attempts(attempts)
}

/// Settles the last allowed delivery: a refusal takes the event out instead of asking for another one.
struct LastAttempt {
    /// The delivery with the event as it is stored: dead letters of encrypted events stay encrypted.
    stored: Delivery,
    letters: Arc<DeadLetters>,
}

#[async_trait]
impl AckHandler for LastAttempt {
    async fn ack(&self) -> Result<()> {
        self.stored.settlement().ack().await
    }

    async fn nak(&self, _delay: Option<Duration>) -> Result<()> {
        self.letters.give_up(&self.stored).await
    }

    async fn term(&self, reason: &str) -> Result<()> {
        self.stored.settlement().term(reason).await
    }

    async fn extend(&self) -> Result<()> {
        self.stored.extend().await
    }

    async fn release(&self) -> Result<()> {
        self.stored.settlement().release().await
    }
}
