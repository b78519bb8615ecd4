//! The counters of a bus and of its subscriptions.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use a3s_event::consumer::{Backoff, RetryPolicy};
use a3s_event::metrics::ConsumerMetricsSnapshot;
use a3s_event::{
    ConsumerInfo, Event, EventBus, EventProvider, MemoryDlqHandler, MemoryProvider, ProviderDlqHandler,
    ProviderInfo, Result, SubscribeOptions, Subscription, SubscriptionFilter,
};
use async_trait::async_trait;
use serde_json::json;
use tracing_subscriber::layer::SubscriberExt;

use super::on_every_provider;
use crate::traced::Log;
use crate::{bus, event, eventually, next};

async fn subscribe(bus: &EventBus, max_deliver: Option<i64>) -> Box<dyn Subscription> {
    let options = SubscribeOptions { max_deliver, ..SubscribeOptions::default() };
    let filter = SubscriptionFilter {
        subscriber_id: "worker".into(),
        subjects: vec!["events.>".into()],
        durable: true,
        options: Some(options),
    };
    bus.update_subscription(filter).await.unwrap();
    bus.create_subscriber("worker").await.unwrap().remove(0)
}

fn counts(bus: &EventBus) -> ConsumerMetricsSnapshot {
    let mut consumers = bus.telemetry().snapshot().consumers;
    assert_eq!(consumers.len(), 1);
    consumers.remove(0)
}

/// The lag becomes this soon: a server may count what it has just stored a moment later.
async fn assert_lag(bus: &EventBus, expected: u64) {
    let seen = async {
        loop {
            bus.observe_lag().await.unwrap();
            if counts(bus).lag == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let seen = tokio::time::timeout(Duration::from_secs(10), seen).await;
    assert!(seen.is_ok(), "the lag is {} on {}", counts(bus).lag, bus.provider_name());
}

#[tokio::test]
async fn what_becomes_of_each_event_is_counted() {
    on_every_provider(async |provider| {
        let name = provider.name().to_owned();
        let mut bus = EventBus::from_provider(provider);
        bus.set_dlq_handler(Arc::new(MemoryDlqHandler::default()));
        let mut subscription = subscribe(&bus, Some(2)).await;
        for number in 1..=7 {
            bus.publish_event(&event("events.a.b", number)).await.unwrap();
        }
        assert_lag(&bus, 7).await;

        next(&mut subscription).await.ack().await.unwrap();
        let refused = next(&mut subscription).await;
        let kept = next(&mut subscription).await;
        assert_eq!(counts(&bus).in_flight, 2, "{name}");
        refused.nak().await.unwrap();
        // The refused one comes again, in whatever order, and is refused for good.
        let mut rest = Vec::new();
        for _ in 0..3 {
            rest.push(next(&mut subscription).await);
        }
        let again = rest.iter().position(|delivery| delivery.num_delivered() == 2).unwrap();
        rest.remove(again).nak().await.unwrap();
        drop(kept);
        rest.remove(0).term("of no use").await.unwrap();
        rest.remove(0).into_pending().ack().await.unwrap();
        let received = subscription.next().await.unwrap().unwrap();
        assert_eq!(received.num_delivered, 1);
        let batch = subscription.next_batch(5, Duration::from_secs(10)).await.unwrap();
        for delivery in batch {
            delivery.unwrap().release().await.unwrap();
        }

        let counts = counts(&bus);
        assert_eq!((counts.delivered, counts.redelivered), (8, 1), "{name}");
        assert_eq!((counts.acked, counts.nacked, counts.terminated), (3, 2, 1), "{name}");
        // The exhausted one and the terminated one.
        assert_eq!((counts.released, counts.dead_lettered), (1, 2), "{name}");
        assert_eq!((counts.in_flight, counts.settle_errors, counts.receive_errors), (0, 0, 0), "{name}");
        assert_eq!(bus.metrics().snapshot().dlq_count, 2, "{name}");
        let _ = bus.close().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_settlement_without_effect_is_counted_as_such() {
    let bus = bus();
    let mut subscription = subscribe(&bus, None).await;
    bus.publish_event(&event("events.a.b", 1)).await.unwrap();
    let late = next(&mut subscription).await;
    let second = next(&mut subscription).await;
    late.ack().await.unwrap_err();
    second.ack().await.unwrap();
    let counts = counts(&bus);
    assert_eq!((counts.acked, counts.settle_errors, counts.redelivered, counts.in_flight), (1, 1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn events_that_retention_took_are_counted() {
    let bus = EventBus::new(MemoryProvider::builder().max_events(2).build().unwrap());
    let mut subscription = subscribe(&bus, None).await;
    for number in 1..=10 {
        bus.publish_event(&event("events.a.b", number)).await.unwrap();
    }
    assert!(subscription.next_delivery().await.is_err());
    let counts = counts(&bus);
    assert_eq!((counts.lagged_events, counts.receive_errors), (8, 1));
}

#[tokio::test(start_paused = true)]
async fn every_counter_of_earlier_versions_moves() {
    let mut bus = bus();
    let mut subscription = subscribe(&bus, Some(1)).await;
    bus.remove_subscription("worker").await.unwrap();
    assert!(bus.telemetry().snapshot().consumers.is_empty(), "what is removed is forgotten");
    drop(subscription);
    bus.set_dlq_handler(Arc::new(MemoryDlqHandler::default()));
    subscription = subscribe(&bus, Some(1)).await;
    bus.publish_event(&event("events.a.b", 1)).await.unwrap();
    for result in bus.publish_batch(&[event("events.a.b", 2), event("events.a b", 3)]).await {
        let _ = result;
    }
    next(&mut subscription).await.nak().await.unwrap();
    let snapshot = bus.metrics().snapshot();
    assert_eq!((snapshot.publish_count, snapshot.publish_errors), (2, 1));
    assert_eq!((snapshot.subscribe_count, snapshot.unsubscribe_count, snapshot.dlq_count), (2, 1, 1));
    let latency = bus.telemetry().snapshot().publish_latency;
    assert_eq!(latency.count, 2);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_has_its_promised_json() {
    let bus = bus();
    let _subscription = subscribe(&bus, None).await;
    let snapshot = serde_json::to_value(bus.telemetry().snapshot()).unwrap();
    let latency = json!({"count": 0, "sumNs": 0, "buckets": []});
    assert_eq!(
        snapshot,
        json!({
            "system": "memory",
            "events": {
                "publishCount": 0, "publishErrors": 0, "subscribeCount": 1, "unsubscribeCount": 0, "dlqCount": 0,
                "validationErrors": 0, "encryptCount": 0, "decryptCount": 0, "avgPublishLatencyUs": 0,
                "maxPublishLatencyUs": 0
            },
            "publishLatency": latency,
            "consumers": [{
                "group": "worker", "filter": "events.>", "delivered": 0, "redelivered": 0, "acked": 0, "nacked": 0,
                "terminated": 0, "released": 0, "settleErrors": 0, "deadLettered": 0, "givenUp": 0,
                "receiveErrors": 0, "laggedEvents": 0, "inFlight": 0, "processing": 0, "lag": 0, "processLatency": latency
            }],
            "connected": null,
            "observedAt": null,
            "acksLost": 0,
            "staleAcks": 0
        })
    );
}

/// Memory that hangs when it is told to.
struct Hanging {
    inner: MemoryProvider,
    hangs: Arc<AtomicBool>,
}

#[async_trait]
impl EventProvider for Hanging {
    async fn publish(&self, event: &Event) -> Result<u64> {
        self.inner.publish(event).await
    }
    async fn subscribe_durable(&self, name: &str, filter: &str) -> Result<Box<dyn Subscription>> {
        self.inner.subscribe_durable(name, filter).await
    }
    async fn subscribe(&self, filter: &str) -> Result<Box<dyn Subscription>> {
        self.inner.subscribe(filter).await
    }
    async fn history(&self, filter: Option<&str>, limit: usize) -> Result<Vec<Event>> {
        self.inner.history(filter, limit).await
    }
    async fn unsubscribe(&self, name: &str) -> Result<()> {
        self.inner.unsubscribe(name).await
    }
    async fn consumers(&self) -> Result<Vec<ConsumerInfo>> {
        self.inner.consumers().await
    }
    async fn info(&self) -> Result<ProviderInfo> {
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        self.inner.info().await
    }
    fn name(&self) -> &str {
        "hanging"
    }
}

#[tokio::test(start_paused = true)]
async fn a_scrape_waits_for_nobody_and_shows_an_outage() {
    let hangs = Arc::new(AtomicBool::new(false));
    let provider = Hanging { inner: MemoryProvider::default(), hangs: Arc::clone(&hangs) };
    let bus = EventBus::builder(provider).operation_timeout(Duration::from_secs(10)).build().unwrap();
    let subscription = subscribe(&bus, None).await;
    assert!(!bus.telemetry().snapshot().to_prometheus().contains("connected"), "nobody knows yet");
    let observer = bus.observe_every(Duration::from_secs(15)).unwrap();
    bus.publish_event(&event("events.a.b", 1)).await.unwrap();
    let connected = |expected: bool| {
        let bus = &bus;
        eventually("it is known", async move || bus.telemetry().snapshot().connected == Some(expected))
    };
    connected(true).await;
    eventually("the lag is known", async || counts(&bus).lag == 1).await;
    let observed_at = bus.telemetry().snapshot().observed_at.unwrap();
    assert!(observed_at > 1_500_000_000);

    hangs.store(true, Ordering::SeqCst);
    connected(false).await;
    let asked = tokio::time::Instant::now();
    let text = bus.telemetry().snapshot().to_prometheus();
    assert_eq!(asked.elapsed(), Duration::ZERO);
    for line in ["a3s_event_connected{messaging_system=\"hanging\"} 0\n", "a3s_event_consumer_lag{"] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    hangs.store(false, Ordering::SeqCst);
    connected(true).await;

    drop(observer);
    hangs.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(bus.telemetry().snapshot().connected, Some(true), "nobody asks any more");
    drop(subscription);
}

#[tokio::test(start_paused = true)]
async fn what_is_given_up_is_counted_and_said_apart_from_what_is_tried_again() {
    for has_letters in [true, false] {
        let log = Log::default();
        let _logged = crate::traced::traced(tracing_subscriber::registry().with(log.clone()));
        let provider = Arc::new(MemoryProvider::builder().subject_prefix("letters").build().unwrap());
        let mut bus = bus();
        if has_letters {
            bus.set_dlq_handler(Arc::new(ProviderDlqHandler::new(provider).unwrap()));
        }
        bus.publish_event(&event("events.a.b", 1)).await.unwrap();
        let consumer = bus
            .consumer("worker")
            .subject("events.>")
            .policy(RetryPolicy::default().attempts(3).backoff(Backoff::list([Duration::from_secs(2)])))
            .handle(|_| async { Err("no stock".into()) })
            .await
            .unwrap();
        eventually("it is given up", async || consumer.stats().given_up == 1).await;
        consumer.shutdown().await.unwrap();
        assert_eq!(consumer.stats().dead_lettered, u64::from(has_letters));
        let counts = counts(&bus);
        assert_eq!((counts.given_up, counts.dead_lettered), (1, u64::from(has_letters)));
        let lines = log.lines();
        let failures: Vec<_> = lines.iter().filter(|line| line.contains("handler failed")).collect();
        assert_eq!(failures.len(), 3, "{lines:?}");
        for (attempt, line) in (1..).zip(&failures) {
            assert!(line.contains(&format!("attempt={attempt} of=\"3\"")), "{line}");
            let is_last = attempt == 3;
            assert_eq!(line.contains("next_in=2s"), !is_last, "{line}");
            assert_eq!(line.contains("is given up") && line.contains("class=exhausted"), is_last, "{line}");
        }
        let given_up: Vec<_> = lines.iter().filter(|line| line.contains("event given up")).collect();
        assert_eq!(given_up.len(), 1, "{lines:?}");
        for part in ["ERROR", "class=exhausted", "attempts=3", "sequence=1", "reason=\"no stock\""] {
            assert!(given_up[0].contains(part), "{part}: {}", given_up[0]);
        }
        assert_eq!(given_up[0].contains("letter=1"), has_letters, "{}", given_up[0]);
    }
}

#[cfg(feature = "metrics")]
mod facade {
    use std::collections::BTreeMap;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};

    use metrics::{
        Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    };

    use super::*;

    /// Keeps what it is told: counters as numbers, gauges as bits, and how many times were recorded.
    #[derive(Default)]
    struct Kept(Mutex<BTreeMap<String, Arc<AtomicU64>>>);

    struct Times(Arc<AtomicU64>);

    impl HistogramFn for Times {
        fn record(&self, _value: f64) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Kept {
        fn entry(&self, key: &Key) -> Arc<AtomicU64> {
            let labels: Vec<_> =
                key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
            let name = format!("{}{{{}}}", key.name(), labels.join(","));
            Arc::clone(self.0.lock().unwrap().entry(name).or_default())
        }

        fn get(&self, name: &str) -> u64 {
            let known = self.0.lock().unwrap();
            known
                .get(name)
                .unwrap_or_else(|| panic!("{name} is not in {:?}", known.keys()))
                .load(Ordering::Relaxed)
        }
    }

    impl Recorder for Kept {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
            Counter::from_arc(self.entry(key))
        }
        fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::from_arc(self.entry(key))
        }
        fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::from_arc(Arc::new(Times(self.entry(key))))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_recorder_of_the_program_gets_the_same_numbers() {
        let kept = Kept::default();
        let _recording = metrics::set_default_local_recorder(&kept);
        let bus = bus();
        let mut subscription = subscribe(&bus, None).await;
        for number in 1..=3 {
            bus.publish_event(&event("events.a.b", number)).await.unwrap();
        }
        next(&mut subscription).await.ack().await.unwrap();
        next(&mut subscription).await.nak().await.unwrap();
        let _held = next(&mut subscription).await;

        assert_eq!(kept.get("messaging.client.sent.messages{messaging.system=memory}"), 3);
        let publish = "messaging.system=memory,messaging.operation.name=publish";
        assert_eq!(kept.get(&format!("messaging.client.operation.duration{{{publish}}}")), 3);
        assert_eq!(kept.get("a3s_event.subscribes{messaging.system=memory}"), 1);
        let labels = "{messaging.system=memory,messaging.consumer.group.name=worker,messaging.destination.template=events.>}";
        assert_eq!(kept.get(&format!("messaging.client.consumed.messages{labels}")), 3);
        assert_eq!(kept.get(&format!("a3s_event.consumer.acked{labels}")), 1);
        assert_eq!(kept.get(&format!("a3s_event.consumer.nacked{labels}")), 1);
        assert_eq!(f64::from_bits(kept.get(&format!("a3s_event.consumer.in_flight{labels}"))), 1.0);
    }
}
