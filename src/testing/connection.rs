//! The connection of one process to the provider, in which the faults happen.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::faults::{CallFault, CrashPoint};
use super::world::{Life, World, answer_lost, refused, unavailable};
use crate::deadline::After;
use crate::error::{EventError, Result};
use crate::provider::group::ConsumerConfig;
use crate::provider::{
    AckFailures, AckFuture, AckHandler, AckKind, Capabilities, ConsumerInfo, ConsumerPosition, Delivery,
    EventProvider, HistoryPage, HistoryQuery, PendingEvent, ProviderInfo, PublishReceipt, PublishRequest,
    Settlement, StreamSummary, Subscription, SubscriptionEnd,
};
use crate::types::{Event, PublishOptions, ReceivedEvent, SubscribeOptions};

/// A provider as one process sees it.
pub(super) struct Connection {
    pub(super) world: Arc<World>,
    pub(super) life: Arc<Life>,
    pub(super) provider: Arc<dyn EventProvider>,
    /// True for the provider of the dead letters.
    pub(super) is_for_letters: bool,
}

impl Connection {
    async fn enter(&self, call: &'static str) -> Result<()> {
        self.world.enter(&self.life, call).await
    }

    fn note(&self, what: std::fmt::Arguments<'_>) {
        self.world.note(&self.life.process, what);
    }

    async fn store(&self, event: &Event, options: &PublishOptions) -> Result<PublishReceipt> {
        self.enter("publish").await?;
        let stored = if self.is_for_letters {
            self.store_letter(event, options).await
        } else {
            self.store_event(event, options).await
        };
        self.world.stop_if_over(&self.life).await;
        match &stored {
            Ok(receipt) if receipt.duplicate => {
                self.note(format_args!("publish {} -> {} again", event.subject, receipt.sequence));
            }
            Ok(receipt) => self.note(format_args!("publish {} -> {}", event.subject, receipt.sequence)),
            Err(error) => self.note(format_args!("publish {}: {}", event.subject, told(error))),
        }
        stored
    }

    async fn store_letter(&self, event: &Event, options: &PublishOptions) -> Result<PublishReceipt> {
        if self.world.fails(CallFault::LetterRefused) {
            return Err(refused("publish"));
        }
        self.provider.publish_with_receipt(event, options).await
    }

    async fn store_event(&self, event: &Event, options: &PublishOptions) -> Result<PublishReceipt> {
        if self.world.fails(CallFault::PublishRefused) {
            return Err(refused("publish"));
        }
        let receipt = self.provider.publish_with_receipt(event, options).await?;
        if self.world.fails(CallFault::Duplicate) {
            let again = self.provider.publish_with_receipt(event, options).await;
            if let Ok(PublishReceipt { sequence, .. }) = again {
                self.note(format_args!("publish {} -> {sequence}, a repetition", event.subject));
            }
        }
        let delay = self.world.plan().answer_delay(&mut self.world.random());
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if self.world.fails(CallFault::AnswerLost) {
            self.note(format_args!("publish {} -> {}, answer lost", event.subject, receipt.sequence));
            return Err(answer_lost("publish"));
        }
        Ok(receipt)
    }

    fn member(&self, inner: Box<dyn Subscription>, consumer: &str) -> Box<dyn Subscription> {
        Box::new(Member {
            world: Arc::clone(&self.world),
            life: Arc::clone(&self.life),
            consumer: consumer.into(),
            inner: Some(inner),
            held: VecDeque::new(),
            due: Instant::now(),
        })
    }

    fn durable(&self, inner: Box<dyn Subscription>, consumer: &str) -> Box<dyn Subscription> {
        self.note(format_args!("open {consumer}"));
        self.life.opened(consumer);
        self.member(inner, consumer)
    }
}

/// Returns the words of an error for the trace.
fn told(error: &EventError) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

#[async_trait]
impl EventProvider for Connection {
    async fn publish(&self, event: &Event) -> Result<u64> {
        Ok(self.store(event, &PublishOptions::default()).await?.sequence)
    }

    async fn publish_with_options(&self, event: &Event, opts: &PublishOptions) -> Result<u64> {
        Ok(self.store(event, opts).await?.sequence)
    }

    async fn publish_with_receipt(&self, event: &Event, opts: &PublishOptions) -> Result<PublishReceipt> {
        self.store(event, opts).await
    }

    async fn publish_batch(&self, batch: &[PublishRequest<'_>]) -> Vec<Result<PublishReceipt>> {
        let mut receipts = Vec::with_capacity(batch.len());
        for request in batch {
            receipts.push(self.store(request.event, &request.options).await);
        }
        receipts
    }

    async fn subscribe_durable(
        &self,
        consumer_name: &str,
        filter_subject: &str,
    ) -> Result<Box<dyn Subscription>> {
        self.enter("subscribe").await?;
        let inner = self.provider.subscribe_durable(consumer_name, filter_subject).await?;
        Ok(self.durable(inner, consumer_name))
    }

    async fn subscribe_durable_with_options(
        &self,
        consumer_name: &str,
        filter_subject: &str,
        opts: &SubscribeOptions,
    ) -> Result<Box<dyn Subscription>> {
        self.enter("subscribe").await?;
        let opening = self.provider.subscribe_durable_with_options(consumer_name, filter_subject, opts);
        Ok(self.durable(opening.await?, consumer_name))
    }

    async fn subscribe(&self, filter_subject: &str) -> Result<Box<dyn Subscription>> {
        self.enter("subscribe").await?;
        let inner = self.provider.subscribe(filter_subject).await?;
        Ok(self.member(inner, filter_subject))
    }

    async fn subscribe_with_options(
        &self,
        filter_subject: &str,
        opts: &SubscribeOptions,
    ) -> Result<Box<dyn Subscription>> {
        self.enter("subscribe").await?;
        let inner = self.provider.subscribe_with_options(filter_subject, opts).await?;
        Ok(self.member(inner, filter_subject))
    }

    async fn history(&self, filter_subject: Option<&str>, limit: usize) -> Result<Vec<Event>> {
        self.enter("history").await?;
        self.provider.history(filter_subject, limit).await
    }

    async fn query_page(&self, query: &HistoryQuery) -> Result<HistoryPage> {
        self.enter("query").await?;
        self.provider.query_page(query).await
    }

    async fn unsubscribe(&self, consumer_name: &str) -> Result<()> {
        self.enter("unsubscribe").await?;
        self.note(format_args!("unsubscribe {consumer_name}"));
        self.provider.unsubscribe(consumer_name).await
    }

    async fn reset_consumer(&self, consumer_name: &str, position: ConsumerPosition) -> Result<()> {
        self.enter("reset_consumer").await?;
        self.note(format_args!("reset {consumer_name} to {position:?}"));
        self.provider.reset_consumer(consumer_name, position).await
    }

    async fn consumers(&self) -> Result<Vec<ConsumerInfo>> {
        self.enter("consumers").await?;
        self.provider.consumers().await
    }

    async fn streams(&self) -> Result<Vec<StreamSummary>> {
        self.enter("streams").await?;
        self.provider.streams().await
    }

    async fn delete_stream(&self) -> Result<()> {
        self.enter("delete_stream").await?;
        self.provider.delete_stream().await
    }

    async fn purge(&self, filter_subject: Option<&str>) -> Result<u64> {
        self.enter("purge").await?;
        self.provider.purge(filter_subject).await
    }

    async fn info(&self) -> Result<ProviderInfo> {
        self.enter("info").await?;
        self.provider.info().await
    }

    async fn health(&self) -> Result<bool> {
        match self.enter("health").await {
            Ok(()) => self.provider.health().await,
            Err(_unavailable) => Ok(false),
        }
    }

    fn name(&self) -> &str {
        self.provider.name()
    }

    fn subject_prefix(&self) -> &str {
        self.provider.subject_prefix()
    }

    fn capabilities(&self) -> Capabilities {
        self.provider.capabilities()
    }

    fn ack_failures(&self) -> Option<Arc<AckFailures>> {
        self.provider.ack_failures()
    }

    /// Does nothing: the provider belongs to all processes of the test.
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

/// A subscription as one process sees it.
struct Member {
    world: Arc<World>,
    life: Arc<Life>,
    consumer: Arc<str>,
    /// `None` only while it is dropped.
    inner: Option<Box<dyn Subscription>>,
    /// Deliveries that were fetched and are on their way.
    held: VecDeque<Result<Delivery>>,
    /// The time at which they arrive.
    due: Instant,
}

impl Member {
    fn inner(&mut self) -> Result<&mut Box<dyn Subscription>> {
        self.inner.as_mut().ok_or_else(|| EventError::Closed("the subscription was dropped".to_owned()))
    }

    /// Fetches into `held`. Returns `false` at the end of the subscription.
    async fn fetch(&mut self, max: usize, wait: Duration) -> Result<bool> {
        let (world, life) = (Arc::clone(&self.world), Arc::clone(&self.life));
        world.enter(&life, "fetch").await?;
        if world.fails(CallFault::FetchRefused) {
            return Err(refused("fetch"));
        }
        let outage = world.outage.notified();
        let fetched = tokio::select! {
            biased;
            () = outage => return Err(unavailable("fetch")),
            fetched = self.inner()?.next_batch(max, wait) => fetched,
        };
        let Some(fetched) = fetched else { return Ok(false) };
        let delay = world.plan().delivery_delay(&mut world.random());
        self.due = Instant::now().after(delay);
        for delivery in fetched {
            let delivery = delivery.map(|delivery| self.guarded(delivery));
            self.held.push_back(delivery);
        }
        Ok(true)
    }

    /// Takes the delivery that arrives next.
    async fn arrived(&mut self) -> Option<Result<Delivery>> {
        if self.held.is_empty() {
            return None;
        }
        if Instant::now() < self.due {
            tokio::time::sleep_until(self.due).await;
        }
        self.world.crash_here(&self.life, CrashPoint::BeforeHandling).await;
        let arrived = self.held.pop_front()?;
        match &arrived {
            Ok(delivery) => self.world.note(
                &self.life.process,
                format_args!(
                    "receive {} {} (delivery {})",
                    delivery.sequence(),
                    delivery.event().subject,
                    delivery.num_delivered()
                ),
            ),
            Err(error) => self.world.note(&self.life.process, format_args!("receive: {}", told(error))),
        }
        Some(arrived)
    }

    fn guarded(&self, delivery: Delivery) -> Delivery {
        let (world, life) = (Arc::clone(&self.world), Arc::clone(&self.life));
        let consumer = Arc::clone(&self.consumer);
        delivery.settled_by(|inner| Arc::new(Settler { world, life, consumer, inner }))
    }
}

#[async_trait]
impl Subscription for Member {
    async fn next(&mut self) -> Result<Option<ReceivedEvent>> {
        match self.next_delivery().await? {
            Some(delivery) => delivery.ack_into_received().await.map(Some),
            None => Ok(None),
        }
    }

    async fn next_manual_ack(&mut self) -> Result<Option<PendingEvent>> {
        Ok(self.next_delivery().await?.map(Delivery::into_pending))
    }

    async fn next_delivery(&mut self) -> Result<Option<Delivery>> {
        loop {
            if let Some(arrived) = self.arrived().await {
                return arrived.map(Some);
            }
            if !self.fetch(1, Duration::MAX).await? {
                return Ok(None);
            }
        }
    }

    async fn next_batch(&mut self, max: usize, wait: Duration) -> Option<Vec<Result<Delivery>>> {
        let until = Instant::now().after(wait);
        if self.held.is_empty() && max > 0 {
            match self.fetch(max, wait).await {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(vec![Err(error)]),
            }
        }
        let mut batch = Vec::new();
        if self.due > until {
            // Late deliveries stay for the next call.
            tokio::time::sleep_until(until).await;
            return Some(batch);
        }
        while batch.len() < max {
            match self.arrived().await {
                Some(arrived) => {
                    batch.push(arrived);
                    if batch.last().is_some_and(Result::is_err) {
                        break;
                    }
                }
                None => break,
            }
        }
        Some(batch)
    }

    fn keep_undecodable(&mut self) -> bool {
        self.inner.as_mut().is_some_and(|inner| inner.keep_undecodable())
    }

    async fn lag(&self) -> Result<u64> {
        self.world.enter(&self.life, "lag").await?;
        match &self.inner {
            Some(inner) => inner.lag().await,
            None => Ok(0),
        }
    }

    fn settings(&self) -> Option<ConsumerConfig> {
        self.inner.as_ref().and_then(|inner| inner.settings())
    }

    fn end(&self) -> Option<SubscriptionEnd> {
        self.inner.as_ref().and_then(|inner| inner.end())
    }

    async fn flush(&mut self) -> Result<()> {
        self.world.enter(&self.life, "flush").await?;
        self.inner()?.flush().await
    }

    async fn close(&mut self) -> Result<()> {
        self.world.enter(&self.life, "close").await?;
        while let Some(held) = self.held.pop_front() {
            if let Ok(delivery) = held {
                // A lease that was lost needs no release.
                let _ = delivery.acker().settle(AckKind::Release).await;
            }
        }
        self.inner()?.close().await
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.take().filter(|_| self.life.is_over()) {
            self.world.bury(inner);
        }
    }
}

/// Settles the deliveries of one process.
struct Settler {
    world: Arc<World>,
    life: Arc<Life>,
    consumer: Arc<str>,
    inner: Arc<dyn AckHandler>,
}

impl Settler {
    fn note(&self, sequence: u64, kind: &AckKind, error: Option<&EventError>) {
        let (verb, consumer) = (kind.verb(), &self.consumer);
        let process = &self.life.process;
        match error {
            None => self.world.note(process, format_args!("{verb} {sequence} of {consumer}")),
            Some(error) => {
                self.world.note(process, format_args!("{verb} {sequence} of {consumer}: {}", told(error)));
            }
        }
    }
}

impl AckHandler for Settler {
    fn settle(&self, asked: Settlement) -> AckFuture<'_> {
        AckFuture::new(async move {
            let (sequence, kind) = (asked.lease.sequence, asked.kind.clone());
            let is_last = matches!(kind, AckKind::Ack | AckKind::Term(_));
            if is_last {
                self.world.crash_here(&self.life, CrashPoint::BeforeAck).await;
            }
            self.world.enter(&self.life, "settle").await?;
            let settled = self.inner.settle(asked).await;
            self.note(sequence, &kind, settled.as_ref().err());
            if is_last {
                self.world.crash_here(&self.life, CrashPoint::AfterAck).await;
            }
            settled
        })
    }
}
