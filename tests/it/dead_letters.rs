//! What cannot be processed ends in the dead letters.

use std::sync::Arc;
use std::time::Duration;

use a3s_event::consumer::HandlerError;
use a3s_event::provider::{AckFuture, Settlement};
use a3s_event::{
    AckHandler, AckKind, CollectorSink, DeadLetter, DeadLetterEvent, Delivery, DlqHandler, Event, EventBus,
    EventError, EventProvider, FailureClass, MemoryDlqHandler, MemoryProvider, PendingEvent,
    ProviderDlqHandler, ProviderInfo, ReceivedEvent, Result, SinkDlqHandler, SubscribeOptions, Subscription,
    SubscriptionFilter, TopicSink,
};
use async_trait::async_trait;

use super::{assert_idle, event, next, number};

async fn bus_with(dlq: Arc<dyn DlqHandler>, durable: bool) -> EventBus {
    let bus = EventBus::builder(MemoryProvider::default()).dlq_handler(dlq).build().unwrap();
    let options =
        SubscribeOptions { max_deliver: Some(2), ack_wait_secs: Some(1), ..SubscribeOptions::default() };
    let filter = SubscriptionFilter {
        subscriber_id: "worker".into(),
        subjects: vec!["events.>".into()],
        durable,
        options: Some(options),
    };
    bus.update_subscription(filter).await.unwrap();
    bus
}

#[tokio::test(start_paused = true)]
async fn an_exhausted_event_is_dead_lettered_and_the_next_one_delivered() {
    for durable in [true, false] {
        let dlq = Arc::new(MemoryDlqHandler::default());
        let bus = bus_with(dlq.clone(), durable).await;
        let mut subscriptions = bus.create_subscriber("worker").await.unwrap();
        bus.publish_event(&event("events.a.b", 1)).await.unwrap();

        next(&mut subscriptions[0]).await.nak().await.unwrap();
        let last = next(&mut subscriptions[0]).await;
        assert_eq!(last.num_delivered(), 2);
        // The worker dies in its last attempt: the lease brings the event back, and nobody sees it again.
        drop(last);
        bus.publish_event(&event("events.a.b", 2)).await.unwrap();
        next(&mut subscriptions[0]).await.ack().await.unwrap();
        assert_idle(&mut subscriptions[0], Duration::from_secs(60)).await;

        let dead = dlq.list(10).await.unwrap();
        assert_eq!(dead.len(), 1);
        assert_eq!(dead[0].event.event.payload["number"], 1);
        assert_eq!(dead[0].delivery_attempts, Some(2));
        assert_eq!(dead[0].original_subject.as_deref(), Some("events.a.b"));
        assert_eq!(bus.metrics().snapshot().dlq_count, 1);
        assert_eq!(bus.consumers().await.unwrap()[0].pending, 0, "the source is settled");
    }
}

/// Fails until it is told to work.
#[derive(Default)]
struct Unavailable {
    works: std::sync::atomic::AtomicBool,
    inner: MemoryDlqHandler,
}

#[async_trait]
impl DlqHandler for Unavailable {
    async fn handle(&self, event: DeadLetterEvent) -> Result<()> {
        if !self.works.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(EventError::Connection("no dead-letter queue".into()));
        }
        self.inner.handle(event).await
    }
    async fn count(&self) -> Result<usize> {
        self.inner.count().await
    }
    async fn list(&self, limit: usize) -> Result<Vec<DeadLetterEvent>> {
        self.inner.list(limit).await
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_dead_letter_the_source_is_not_settled() {
    let dlq = Arc::new(Unavailable::default());
    let bus = bus_with(dlq.clone(), true).await;
    let mut subscriptions = bus.create_subscriber("worker").await.unwrap();
    bus.publish_event(&event("events.a.b", 7)).await.unwrap();
    for _ in 0..2 {
        assert_eq!(number(&next(&mut subscriptions[0]).await), 7);
    }
    assert_idle(&mut subscriptions[0], Duration::from_secs(60)).await;
    assert_eq!(bus.consumers().await.unwrap()[0].pending, 1);
    dlq.works.store(true, std::sync::atomic::Ordering::SeqCst);
    assert_idle(&mut subscriptions[0], Duration::from_secs(60)).await;
    assert_eq!(dlq.count().await.unwrap(), 1);
    assert_eq!(bus.consumers().await.unwrap()[0].pending, 0);
}

#[tokio::test(start_paused = true)]
async fn the_last_refusal_dead_letters_at_once_and_holds_no_other_up() {
    let dlq = Arc::new(MemoryDlqHandler::default());
    let bus = EventBus::builder(MemoryProvider::default()).dlq_handler(dlq.clone()).build().unwrap();
    let options = SubscribeOptions {
        max_deliver: Some(1),
        max_ack_pending: Some(1),
        backoff_secs: vec![3_600],
        ..SubscribeOptions::default()
    };
    let filter = SubscriptionFilter {
        subscriber_id: "worker".into(),
        subjects: vec!["events.>".into()],
        durable: true,
        options: Some(options),
    };
    bus.update_subscription(filter).await.unwrap();
    let mut subscriptions = bus.create_subscriber("worker").await.unwrap();
    for number in 1..=2 {
        bus.publish_event(&event("events.a.b", number)).await.unwrap();
    }
    next(&mut subscriptions[0]).await.nak().await.unwrap();
    assert_eq!(dlq.count().await.unwrap(), 1);
    let start = tokio::time::Instant::now();
    assert_eq!(number(&next(&mut subscriptions[0]).await), 2);
    assert!(start.elapsed().is_zero());
}

/// Takes its time.
struct Slow(Duration, MemoryDlqHandler);

#[async_trait]
impl DlqHandler for Slow {
    async fn handle(&self, event: DeadLetterEvent) -> Result<()> {
        tokio::time::sleep(self.0).await;
        self.1.handle(event).await
    }
    async fn count(&self) -> Result<usize> {
        self.1.count().await
    }
    async fn list(&self, limit: usize) -> Result<Vec<DeadLetterEvent>> {
        self.1.list(limit).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_handler_is_finished_by_the_calls_that_follow_and_called_once() {
    // Longer than the lease of 1 s, and than every single call waits.
    let dlq = Arc::new(Slow(Duration::from_millis(3_500), MemoryDlqHandler::default()));
    let bus = bus_with(dlq.clone(), true).await;
    let mut subscriptions = bus.create_subscriber("worker").await.unwrap();
    let mut other_member = bus.create_subscriber("worker").await.unwrap();
    bus.publish_event(&event("events.a.b", 1)).await.unwrap();
    for _ in 0..2 {
        drop(next(&mut subscriptions[0]).await);
    }
    for _ in 0..60 {
        for member in [&mut subscriptions[0], &mut other_member[0]] {
            let batch = member.next_batch(10, Duration::from_millis(50)).await.unwrap();
            assert!(batch.is_empty(), "{batch:?}");
        }
    }
    assert_eq!(dlq.count().await.unwrap(), 1);
    assert_eq!(bus.consumers().await.unwrap()[0].pending, 0);
    assert_eq!(dlq.list(1).await.unwrap()[0].delivery_attempts, Some(2));
}

/// A memory provider whose acknowledgements take a while.
struct SlowAcks(MemoryProvider);

struct SlowAckSubscription(Box<dyn Subscription>);

struct SlowAck(Delivery);

impl AckHandler for SlowAck {
    fn settle(&self, asked: Settlement) -> AckFuture<'_> {
        AckFuture::new(async move {
            if asked.kind == AckKind::Ack {
                tokio::time::sleep(Duration::from_millis(20)).await;
                self.0.extend().await?;
            }
            Ok(())
        })
    }
}

#[async_trait]
impl Subscription for SlowAckSubscription {
    async fn next(&mut self) -> Result<Option<ReceivedEvent>> {
        self.0.next().await
    }
    async fn next_manual_ack(&mut self) -> Result<Option<PendingEvent>> {
        let Some(delivery) = self.0.next_delivery().await? else { return Ok(None) };
        let received = ReceivedEvent {
            event: delivery.event().clone(),
            sequence: delivery.sequence(),
            num_delivered: delivery.num_delivered(),
            stream: delivery.stream().to_owned(),
        };
        Ok(Some(PendingEvent::with_handler(received, SlowAck(delivery))))
    }
}

#[async_trait]
impl EventProvider for SlowAcks {
    async fn publish(&self, event: &Event) -> Result<u64> {
        self.0.publish(event).await
    }
    async fn subscribe_durable(&self, name: &str, filter: &str) -> Result<Box<dyn Subscription>> {
        Ok(Box::new(SlowAckSubscription(self.0.subscribe_durable(name, filter).await?)))
    }
    async fn subscribe(&self, filter: &str) -> Result<Box<dyn Subscription>> {
        Ok(Box::new(SlowAckSubscription(self.0.subscribe(filter).await?)))
    }
    async fn history(&self, filter: Option<&str>, limit: usize) -> Result<Vec<Event>> {
        self.0.history(filter, limit).await
    }
    async fn unsubscribe(&self, name: &str) -> Result<()> {
        self.0.unsubscribe(name).await
    }
    async fn info(&self) -> Result<ProviderInfo> {
        self.0.info().await
    }
    fn name(&self) -> &str {
        "slow-acks"
    }
}

#[tokio::test(start_paused = true)]
async fn next_hands_over_what_a_cancelled_call_had_acknowledged() {
    let dlq = Arc::new(MemoryDlqHandler::default());
    let bus = EventBus::builder(SlowAcks(MemoryProvider::default())).dlq_handler(dlq).build().unwrap();
    let filter = SubscriptionFilter {
        subscriber_id: "worker".into(),
        subjects: vec!["events.>".into()],
        durable: false,
        options: None,
    };
    bus.update_subscription(filter).await.unwrap();
    let mut subscription = bus.create_subscriber("worker").await.unwrap().remove(0);
    for number in 1..=2 {
        bus.publish_event(&event("events.a.b", number)).await.unwrap();
    }
    let cancelled = tokio::time::timeout(Duration::from_millis(5), subscription.next()).await;
    assert!(cancelled.is_err());
    assert_eq!(subscription.next().await.unwrap().unwrap().event.payload["number"], 1);

    let cancelled = tokio::time::timeout(Duration::from_millis(5), subscription.next()).await;
    assert!(cancelled.is_err());
    let handed_over = next(&mut subscription).await;
    assert_eq!(number(&handed_over), 2);
    handed_over.ack().await.unwrap();
}

/// Types that the library gives to what it writes; whoever publishes may choose them.
const OWN_TYPES: [&str; 4] =
    ["a3s.dlq.dead_letter", "a3s.dlq.letter", "a3s.dlq.mark", "a3s.consumer.handled"];

fn of_type(subject: &str, event_type: &str) -> Event {
    Event { event_type: event_type.to_owned(), ..event(subject, 1) }
}

#[tokio::test]
async fn no_type_keeps_an_event_from_the_dead_letters() {
    let stored = || Arc::new(ProviderDlqHandler::new(Arc::new(MemoryProvider::default())).unwrap());
    let forwarding = || SinkDlqHandler::new(Arc::new(CollectorSink::new("dead")), 0);
    let handlers: [Arc<dyn DlqHandler>; 3] =
        [Arc::new(MemoryDlqHandler::default()), stored(), Arc::new(forwarding())];
    for dlq in handlers {
        let bus = bus_with(dlq.clone(), true).await;
        let consumer = bus
            .consumer("all")
            .subject("events.>")
            .handle(|_| async { Err(HandlerError::fatal("no")) })
            .await
            .unwrap();
        for subject in ["events.orders.a", "events.orders.dlq.letters.a", "events.handled.a"] {
            for event_type in OWN_TYPES {
                bus.publish_event(&of_type(subject, event_type)).await.unwrap();
            }
        }
        super::eventually("all are given up", async || consumer.stats().dead_lettered == 12).await;
        consumer.shutdown().await.unwrap();
        assert_eq!(dlq.count().await.unwrap(), 12);
        assert_eq!(bus.metrics().snapshot().dlq_count, 12);

        // By hand as well.
        let mut subscriptions = bus.create_subscriber("worker").await.unwrap();
        next(&mut subscriptions[0]).await.term("no").await.unwrap();
        assert_eq!(bus.metrics().snapshot().dlq_count, 13);
    }
}

#[tokio::test]
async fn letters_that_fail_make_no_letters_wherever_they_are_forwarded() {
    for (prefix, place) in
        [("events", "events.dlq.events.a"), ("events.failed", "events.failed.dlq.events.a")]
    {
        let provider = Arc::new(MemoryProvider::default());
        let sink = Arc::new(TopicSink::new("dead", provider.clone()));
        let dlq = SinkDlqHandler::new(sink, 0).with_subject_prefix(prefix);
        let mut bus = EventBus::from_provider(provider.clone());
        bus.set_dlq_handler(Arc::new(dlq));
        let consumer = bus
            .consumer("all")
            .subject("events.>")
            .handle(|_| async { Err(HandlerError::fatal("no")) })
            .await
            .unwrap();
        bus.publish_event(&event("events.a", 1)).await.unwrap();
        super::eventually("both are given up", async || consumer.stats().given_up >= 2).await;
        consumer.shutdown().await.unwrap();
        let subjects: Vec<_> =
            provider.history(None, 10).await.unwrap().into_iter().map(|event| event.subject).collect();
        assert_eq!(subjects, [place, "events.a"]);
    }
}

#[tokio::test]
async fn a_queue_says_where_it_keeps_a_letter() {
    let provider = Arc::new(MemoryProvider::default());
    let received = |event: Event| ReceivedEvent { event, sequence: 1, num_delivered: 1, stream: "s".into() };
    let letter = DeadLetter::new(received(event("events.a", 1)), FailureClass::Fatal, "no");
    let letters = ProviderDlqHandler::new(provider.clone()).unwrap();
    for _ in 0..2 {
        let receipt = letters.keep_letter(letter.clone()).await.unwrap();
        assert_eq!((receipt.id, receipt.to_string()), (Some(1), "dead letter 1".to_owned()));
        assert_eq!(receipt.subject.as_deref(), Some("events.dlq.letters.events.a"));
    }
    assert_eq!(letters.show(1).await.unwrap().letter.reason, "no");
    let forwarding = SinkDlqHandler::new(Arc::new(TopicSink::new("dead", provider)), 10);
    let receipt = forwarding.keep_letter(letter.clone()).await.unwrap();
    assert_eq!(receipt.to_string(), "dead letter under events.dlq.events.a");
    let receipt = MemoryDlqHandler::default().keep_letter(letter).await.unwrap();
    assert_eq!(receipt.to_string(), "dead letter");
}
