//! The memory provider with one fault.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use a3s_event::provider::group::{ConsumerConfig, Lease};
use a3s_event::provider::{AckFuture, HistoryPage, PublishReceipt, Settlement, SubscriptionEnd};
use a3s_event::{
    AckHandler, AckKind, BackendError, Capabilities, ConsumerInfo, Delivery, ErrorKind, Event, EventProvider,
    HistoryQuery, MemoryProvider, PendingEvent, ProviderInfo, PublishOptions, ReceivedEvent, Result,
    SubscribeOptions, Subscription,
};
use async_trait::async_trait;

/// What the provider does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Acknowledges an event now and then without storing it.
    LosesAcknowledged,
    StoresTwice,
    /// Confirms an ack now and then without settling the event.
    ForgetsConfirmedAcks,
    /// Takes acks before the end without settling their events.
    ForgetsLastAcks,
    /// Hands one event out after many that follow it.
    HoldsOneBack,
    SkipsDeliveries,
    CountsNoAttempts,
    /// Refuses publishes for a while, and is healthy.
    RefusesForAWhile,
}

/// The inner provider stays open when this handle to it is closed.
pub(crate) struct Slipping {
    inner: Arc<MemoryProvider>,
    fault: Option<Fault>,
    publishes: AtomicU64,
}

impl Slipping {
    pub(crate) fn new(inner: Arc<MemoryProvider>, fault: Option<Fault>) -> Self {
        Self { inner, fault, publishes: AtomicU64::new(0) }
    }

    fn slipping(&self, subscription: Box<dyn Subscription>) -> Box<dyn Subscription> {
        Box::new(SlippingSubscription {
            inner: subscription,
            fault: self.fault,
            held: None,
            ready: VecDeque::new(),
            forgotten: Arc::default(),
        })
    }
}

#[async_trait]
impl EventProvider for Slipping {
    async fn publish(&self, event: &Event) -> Result<u64> {
        self.publish_with_options(event, &PublishOptions::default()).await
    }

    async fn publish_with_options(&self, event: &Event, options: &PublishOptions) -> Result<u64> {
        self.publish_with_receipt(event, options).await.map(|receipt| receipt.sequence)
    }

    async fn publish_with_receipt(&self, event: &Event, options: &PublishOptions) -> Result<PublishReceipt> {
        let number = self.publishes.fetch_add(1, Ordering::SeqCst);
        match self.fault {
            Some(Fault::LosesAcknowledged) if number % 5 == 1 => Ok(PublishReceipt::stored(number + 1)),
            Some(Fault::StoresTwice) if number % 5 == 1 => {
                let receipt = self.inner.publish_with_receipt(event, options).await?;
                self.inner.publish(event).await?;
                Ok(receipt)
            }
            Some(Fault::RefusesForAWhile) if (50..100).contains(&number) => {
                let cause = std::io::Error::other("refused");
                Err(BackendError::new("slipping", "publish", ErrorKind::Storage, cause).retryable().into())
            }
            _ => self.inner.publish_with_receipt(event, options).await,
        }
    }

    async fn subscribe_durable(&self, name: &str, filter: &str) -> Result<Box<dyn Subscription>> {
        Ok(self.slipping(self.inner.subscribe_durable(name, filter).await?))
    }

    async fn subscribe_durable_with_options(
        &self,
        name: &str,
        filter: &str,
        options: &SubscribeOptions,
    ) -> Result<Box<dyn Subscription>> {
        Ok(self.slipping(self.inner.subscribe_durable_with_options(name, filter, options).await?))
    }

    async fn subscribe(&self, filter: &str) -> Result<Box<dyn Subscription>> {
        self.inner.subscribe(filter).await
    }

    async fn history(&self, filter: Option<&str>, limit: usize) -> Result<Vec<Event>> {
        self.inner.history(filter, limit).await
    }

    async fn query_page(&self, query: &HistoryQuery) -> Result<HistoryPage> {
        self.inner.query_page(query).await
    }

    async fn consumers(&self) -> Result<Vec<ConsumerInfo>> {
        self.inner.consumers().await
    }

    async fn unsubscribe(&self, name: &str) -> Result<()> {
        self.inner.unsubscribe(name).await
    }

    async fn info(&self) -> Result<ProviderInfo> {
        self.inner.info().await
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn name(&self) -> &str {
        "slipping"
    }
}

struct SlippingSubscription {
    inner: Box<dyn Subscription>,
    fault: Option<Fault>,
    /// The event that is held back.
    held: Option<Delivery>,
    ready: VecDeque<Delivery>,
    /// Sequences whose ack was forgotten once.
    forgotten: Arc<Mutex<HashSet<u64>>>,
}

impl SlippingSubscription {
    async fn take(&mut self) -> Result<Option<Delivery>> {
        loop {
            if let Some(delivery) = self.ready.pop_front() {
                return Ok(Some(delivery));
            }
            let Some(delivery) = self.inner.next_delivery().await? else { return Ok(None) };
            let sequence = delivery.sequence();
            match (self.fault, &self.held) {
                (Some(Fault::SkipsDeliveries), _) if sequence % 50 == 7 => delivery.ack().await?,
                (Some(Fault::HoldsOneBack), None) if sequence == 20 => self.held = Some(delivery),
                (Some(Fault::HoldsOneBack), Some(_)) if sequence == 100 => {
                    self.ready.push_back(delivery);
                    self.ready.extend(self.held.take());
                }
                _ => return Ok(Some(delivery)),
            }
        }
    }

    fn wrap(&self, delivery: Delivery) -> Delivery {
        let (event, sequence, stream) =
            (delivery.shared_event(), delivery.sequence(), delivery.stream().into());
        let counted = u32::try_from(delivery.num_delivered()).unwrap();
        let attempt = if self.fault == Some(Fault::CountsNoAttempts) { 1 } else { counted };
        let forgotten = Arc::clone(&self.forgotten);
        let delivery = tokio::sync::Mutex::new(Some(delivery));
        let handler = SlippingAcks { delivery, sequence, fault: self.fault, forgotten };
        Delivery::new(event, Lease::new(sequence, attempt), stream, Arc::new(handler))
    }
}

#[async_trait]
impl Subscription for SlippingSubscription {
    async fn next(&mut self) -> Result<Option<ReceivedEvent>> {
        unreachable!("the runtime asks for deliveries")
    }

    async fn next_manual_ack(&mut self) -> Result<Option<PendingEvent>> {
        unreachable!("the runtime asks for deliveries")
    }

    async fn next_delivery(&mut self) -> Result<Option<Delivery>> {
        let taken = self.take().await?;
        Ok(taken.map(|delivery| self.wrap(delivery)))
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
        self.inner.close().await
    }
}

struct SlippingAcks {
    /// The delivery of the inner provider until it is settled.
    delivery: tokio::sync::Mutex<Option<Delivery>>,
    sequence: u64,
    fault: Option<Fault>,
    forgotten: Arc<Mutex<HashSet<u64>>>,
}

impl SlippingAcks {
    fn forgets(&self, asked: &Settlement) -> bool {
        let picked = match self.fault {
            Some(Fault::ForgetsConfirmedAcks) => asked.is_confirmed && self.sequence.is_multiple_of(7),
            // Those of the last moments of the first life.
            Some(Fault::ForgetsLastAcks) => (190..200).contains(&self.sequence),
            _ => false,
        };
        picked && asked.kind == AckKind::Ack && self.forgotten.lock().unwrap().insert(self.sequence)
    }

    async fn settle_inner(&self, asked: Settlement) -> Result<()> {
        if self.forgets(&asked) {
            return Ok(());
        }
        let mut slot = self.delivery.lock().await;
        if asked.kind == AckKind::Extend {
            return match &*slot {
                Some(delivery) => delivery.extend().await,
                None => Ok(()),
            };
        }
        let Some(delivery) = slot.take() else { return Ok(()) };
        match asked.kind {
            AckKind::Ack if asked.is_confirmed => delivery.ack_confirmed().await,
            AckKind::Ack => delivery.ack().await,
            AckKind::Nak(None) => delivery.nak().await,
            AckKind::Nak(Some(delay)) => delivery.nak_after(delay).await,
            AckKind::Term(reason) => delivery.term(&reason).await,
            _ => delivery.release().await,
        }
    }
}

impl AckHandler for SlippingAcks {
    fn settle(&self, asked: Settlement) -> AckFuture<'_> {
        AckFuture::new(self.settle_inner(asked))
    }
}
