//! Counts the deliveries and settlements of a subscription.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::error::Result;
use crate::metrics::ConsumerMetrics;
use crate::provider::group::ConsumerConfig;
use crate::provider::{Delivery, PendingEvent, SettlementObserver, Subscription, SubscriptionEnd};
use crate::types::ReceivedEvent;

/// Subscription wrapper that counts. It adds no await point, so it is as cancel-safe as the inner one.
pub(super) struct Metered {
    inner: Box<dyn Subscription>,
    metrics: Arc<ConsumerMetrics>,
}

impl Metered {
    pub(super) fn new(inner: Box<dyn Subscription>, metrics: Arc<ConsumerMetrics>) -> Self {
        Self { inner, metrics }
    }

    fn observer(&self) -> Arc<dyn SettlementObserver> {
        Arc::clone(&self.metrics) as Arc<dyn SettlementObserver>
    }

    fn delivered(&self, delivery: Delivery) -> Delivery {
        self.metrics.record_delivery(delivery.num_delivered());
        delivery.observed_by(self.observer())
    }
}

#[async_trait]
impl Subscription for Metered {
    async fn next(&mut self) -> Result<Option<ReceivedEvent>> {
        let next = self.inner.next().await.inspect_err(|error| self.metrics.record_failed_delivery(error))?;
        Ok(next.inspect(|received| self.metrics.record_delivery_and_ack(received.num_delivered)))
    }

    async fn next_manual_ack(&mut self) -> Result<Option<PendingEvent>> {
        let next = self
            .inner
            .next_manual_ack()
            .await
            .inspect_err(|error| self.metrics.record_failed_delivery(error))?;
        Ok(next.map(|pending| {
            self.metrics.record_delivery(pending.received.num_delivered);
            pending.observed_by(self.observer())
        }))
    }

    async fn next_delivery(&mut self) -> Result<Option<Delivery>> {
        let next = self
            .inner
            .next_delivery()
            .await
            .inspect_err(|error| self.metrics.record_failed_delivery(error))?;
        Ok(next.map(|delivery| self.delivered(delivery)))
    }

    async fn next_batch(&mut self, max: usize, wait: Duration) -> Option<Vec<Result<Delivery>>> {
        let batch = self.inner.next_batch(max, wait).await?;
        let count = |item: Result<Delivery>| match item {
            Ok(delivery) => Ok(self.delivered(delivery)),
            Err(error) => {
                self.metrics.record_failed_delivery(&error);
                Err(error)
            }
        };
        Some(batch.into_iter().map(count).collect())
    }

    async fn lag(&self) -> Result<u64> {
        self.inner.lag().await.inspect(|lag| self.metrics.record_lag(*lag))
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
        self.inner.close().await
    }
}
