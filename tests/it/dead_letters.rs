//! What cannot be processed ends in the dead letters.

use std::sync::Arc;
use std::time::Duration;

use a3s_event::{
    DeadLetterEvent, DlqHandler, EventBus, EventError, MemoryDlqHandler, MemoryProvider, Result,
    SubscribeOptions, SubscriptionFilter,
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
