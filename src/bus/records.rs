//! Hides the library's own records from readers that have not asked for them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use crate::deadline::After;
use crate::error::Result;
use crate::provider::group::ConsumerConfig;
use crate::provider::{AckKind, Delivery, PendingEvent, Subscription, SubscriptionEnd};
use crate::reserved::{is_record, meets_records};
use crate::types::ReceivedEvent;

/// A provider's subscription that acknowledges and hides the records. Otherwise a handler that remembers in its own
/// stream what it has handled would also receive each record of its memory.
pub(super) struct WithoutRecords {
    inner: Box<dyn Subscription>,
    prefix: Arc<str>,
    /// Records that the next call acknowledges. They stay here until then, so that a cancelled call loses none.
    records: VecDeque<Delivery>,
}

impl WithoutRecords {
    /// Wraps a subscription whose filter covers records without naming their subjects; returns any other one as it is.
    pub(super) fn around(inner: Box<dyn Subscription>, filter: &str, prefix: &str) -> Box<dyn Subscription> {
        if !meets_records(filter, prefix) {
            return inner;
        }
        Box::new(Self { inner, prefix: prefix.into(), records: VecDeque::new() })
    }

    async fn acknowledge(&mut self) {
        while let Some(record) = self.records.front() {
            let acknowledged = record.settle(AckKind::Ack).await;
            let sequence = record.sequence();
            match acknowledged {
                Ok(()) => tracing::trace!(sequence, "internal record acknowledged"),
                Err(error) => {
                    tracing::debug!(sequence, %error, "acknowledging an internal record failed; it will be redelivered");
                }
            }
            self.records.pop_front();
        }
    }

    fn is_for_readers(&mut self, delivery: Delivery) -> Option<Delivery> {
        if delivery.undecodable_record().is_none() && is_record(delivery.event(), &self.prefix) {
            self.records.push_back(delivery);
            return None;
        }
        Some(delivery)
    }
}

#[async_trait]
impl Subscription for WithoutRecords {
    async fn next(&mut self) -> Result<Option<ReceivedEvent>> {
        self.acknowledge().await;
        loop {
            match self.inner.next().await? {
                Some(received) if is_record(&received.event, &self.prefix) => {}
                received => return Ok(received),
            }
        }
    }

    async fn next_manual_ack(&mut self) -> Result<Option<PendingEvent>> {
        Ok(self.next_delivery().await?.map(Delivery::into_pending))
    }

    async fn next_delivery(&mut self) -> Result<Option<Delivery>> {
        loop {
            self.acknowledge().await;
            let Some(delivery) = self.inner.next_delivery().await? else { return Ok(None) };
            if let Some(delivery) = self.is_for_readers(delivery) {
                return Ok(Some(delivery));
            }
        }
    }

    async fn next_batch(&mut self, max: usize, wait: Duration) -> Option<Vec<Result<Delivery>>> {
        let end = Instant::now().after(wait);
        loop {
            self.acknowledge().await;
            let fetched = self.inner.next_batch(max, end.saturating_duration_since(Instant::now())).await?;
            let is_empty = fetched.is_empty();
            let mut batch = Vec::with_capacity(fetched.len());
            for delivered in fetched {
                match delivered {
                    Ok(delivery) => batch.extend(self.is_for_readers(delivery).map(Ok)),
                    Err(error) => batch.push(Err(error)),
                }
            }
            if is_empty || !batch.is_empty() {
                return Some(batch);
            }
        }
    }

    fn keep_undecodable(&mut self) -> bool {
        self.inner.keep_undecodable()
    }

    async fn lag(&self) -> Result<u64> {
        self.inner.lag().await
    }

    fn settings(&self) -> Option<ConsumerConfig> {
        self.inner.settings()
    }

    fn end(&self) -> Option<SubscriptionEnd> {
        self.inner.end()
    }

    async fn flush(&mut self) -> Result<()> {
        self.inner.flush().await
    }

    async fn close(&mut self) -> Result<()> {
        self.acknowledge().await;
        self.inner.close().await
    }
}
