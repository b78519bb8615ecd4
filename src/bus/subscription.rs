//! What the bus adds to a provider's subscription: decryption and dead letters.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::crypto::{EncryptedPayload, EventEncryptor};
use crate::dlq::{DeadLetterEvent, DlqHandler};
use crate::error::{EventError, Result};
use crate::metrics::EventMetrics;
use crate::provider::{Delivery, PendingEvent, Subscription};
use crate::types::{Event, ReceivedEvent};

/// Wait before an event is tried again that the dead-letter handler would not take.
const DLQ_RETRY_DELAY: Duration = Duration::from_secs(5);

/// A provider's subscription whose events come decrypted and whose failures end in the dead letters.
pub(super) struct BusSubscription {
    inner: Box<dyn Subscription>,
    encryptor: Option<Arc<dyn EventEncryptor>>,
    dlq: Option<Arc<dyn DlqHandler>>,
    max_deliver: Option<u64>,
    metrics: Arc<EventMetrics>,
}

impl BusSubscription {
    pub(super) fn new(
        inner: Box<dyn Subscription>,
        encryptor: Option<Arc<dyn EventEncryptor>>,
        dlq: Option<Arc<dyn DlqHandler>>,
        max_deliver: Option<u64>,
        metrics: Arc<EventMetrics>,
    ) -> Self {
        Self { inner, encryptor, dlq, max_deliver, metrics }
    }

    /// The event in clear, or `None` when it is not encrypted.
    fn open(&self, event: &Event) -> Result<Option<Arc<Event>>> {
        let Some(encryptor) =
            self.encryptor.as_ref().filter(|_| EncryptedPayload::is_encrypted(&event.payload))
        else {
            return Ok(None);
        };
        let payload = encryptor.decrypt(&event.payload)?;
        self.metrics.record_decrypt();
        Ok(Some(Arc::new(Event { payload, ..event.clone() })))
    }

    fn is_exhausted(&self, delivery: &Delivery) -> bool {
        self.max_deliver.is_some_and(|max| delivery.num_delivered() > max)
    }

    /// Takes a delivery out of circulation: written to the dead letters first, settled only when that succeeded. Dropped
    /// half-way, the delivery keeps its lease and comes again.
    async fn dead_letter(&self, delivery: Delivery, attempts: u64, reason: &str) -> Result<()> {
        let Some(dlq) = &self.dlq else { return delivery.term_or_ack(reason).await };
        let received = ReceivedEvent {
            event: delivery.event().clone(),
            sequence: delivery.sequence(),
            num_delivered: attempts,
            stream: delivery.stream().to_owned(),
        };
        let original_subject = received.event.subject.clone();
        let dead = DeadLetterEvent::new(received, reason)
            .with_original_subject(original_subject)
            .with_delivery_attempts(attempts);
        match dlq.handle(dead).await {
            Ok(()) => {
                self.metrics.record_dlq();
                delivery.term_or_ack(reason).await
            }
            Err(error) => {
                tracing::error!(sequence = delivery.sequence(), %error, "event not dead-lettered; it will be tried again");
                match delivery.nak_after(DLQ_RETRY_DELAY).await {
                    // Without delayed refusals the lease brings it back.
                    Err(EventError::Unsupported { .. }) | Ok(()) => Ok(()),
                    Err(error) => Err(error),
                }
            }
        }
    }
}

#[async_trait]
impl Subscription for BusSubscription {
    async fn next(&mut self) -> Result<Option<ReceivedEvent>> {
        let Some(delivery) = self.next_delivery().await? else { return Ok(None) };
        delivery.ack_into_received().await.map(Some)
    }

    async fn next_manual_ack(&mut self) -> Result<Option<PendingEvent>> {
        Ok(self.next_delivery().await?.map(Delivery::into_pending))
    }

    async fn next_delivery(&mut self) -> Result<Option<Delivery>> {
        loop {
            let Some(delivery) = self.inner.next_delivery().await? else { return Ok(None) };
            let opened = self.open(delivery.event());
            let clear = match opened {
                Ok(None) => delivery,
                Ok(Some(event)) => delivery.map_event(event),
                Err(error) => {
                    let attempts = delivery.num_delivered();
                    self.dead_letter(delivery, attempts, &format!("cannot be decrypted: {error}")).await?;
                    return Err(error);
                }
            };
            if !self.is_exhausted(&clear) {
                return Ok(Some(clear));
            }
            let attempts = clear.num_delivered() - 1;
            self.dead_letter(clear, attempts, &format!("not processed in {attempts} deliveries")).await?;
        }
    }

    async fn lag(&self) -> Result<u64> {
        self.inner.lag().await
    }

    async fn close(&mut self) -> Result<()> {
        self.inner.close().await
    }
}
