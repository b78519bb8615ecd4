//! Every duration of the bus, its consumers, brokers and sources: none at all, a nanosecond, and the longest there is.

use std::sync::Arc;
use std::time::Duration;

use a3s_event::consumer::{Backoff, HandlerError, RetryPolicy, layers};
use a3s_event::source::SourceRunner;
use a3s_event::{
    CronSource, Delivery, ErrorKind, EventBus, EventSource, MemoryProvider, PublishOptions, ThresholdSource,
};

use super::support::publish;
use crate::{bus, event, eventually};

const NANOSECOND: Duration = Duration::from_nanos(1);
const EDGES: [Duration; 3] = [Duration::ZERO, NANOSECOND, Duration::MAX];

/// A handler that takes a while, so that timers are needed.
async fn slow(_delivery: Delivery) -> a3s_event::consumer::HandlerResult {
    tokio::time::sleep(Duration::from_millis(20)).await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_timeout_and_a_drain_timeout_may_be_of_any_length() {
    for timeout in [Duration::MAX, Duration::from_secs(100 * 365 * 86_400)] {
        let bus = bus();
        let policy = RetryPolicy::default().timeout(timeout);
        let consumer = bus.consumer("worker").subject("events.>").policy(policy).handle(slow).await.unwrap();
        publish(&bus, "events.a", 1..=1).await;
        eventually("it is handled", async || consumer.stats().handled == 1).await;
        consumer.shutdown().await.unwrap();
    }
    let bus = bus();
    let too_short =
        bus.consumer("w").subject("events.>").policy(RetryPolicy::default().timeout(Duration::ZERO));
    let error = too_short.handle(slow).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Config && error.to_string().contains("timeout"), "{error}");
    let policy = RetryPolicy::default().timeout(NANOSECOND).attempts(1);
    let consumer = bus.consumer("w").subject("events.>").policy(policy).handle(slow).await.unwrap();
    publish(&bus, "events.a", 1..=1).await;
    eventually("it has failed", async || consumer.stats().given_up == 1).await;

    for deadline in EDGES {
        let bus = crate::bus();
        let consumer =
            bus.consumer("w").subject("events.>").drain_timeout(deadline).handle(slow).await.unwrap();
        publish(&bus, "events.a", 1..=1).await;
        eventually("it runs", async || consumer.stats().running == 1).await;
        let ended = consumer.shutdown().await;
        assert_eq!(ended.is_ok(), deadline == Duration::MAX, "{deadline:?}: {ended:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_delay_may_be_of_any_length() {
    for is_ordered in [true, false] {
        for is_said_by_handler in [true, false] {
            for delay in EDGES {
                let bus = bus();
                let policy = RetryPolicy::default().attempts(3).backoff(Backoff::list([delay]));
                let mut consumer = bus.consumer("worker").subject("events.>").policy(policy);
                if is_ordered {
                    consumer = consumer.ordered_by_subject();
                }
                let handler = move |_| async move {
                    Err(match is_said_by_handler {
                        true => HandlerError::retry_after("later", delay),
                        false => HandlerError::retry("later"),
                    })
                };
                let consumer = consumer.handle(handler).await.unwrap();
                publish(&bus, "events.a", 1..=1).await;
                if delay == Duration::MAX {
                    eventually("it has failed", async || consumer.stats().failed == 1).await;
                    tokio::time::sleep(Duration::from_secs(3_600)).await;
                    assert_eq!(consumer.stats().failed, 1, "long is not at once");
                } else {
                    eventually("it is given up", async || consumer.stats().given_up == 1).await;
                    assert_eq!(consumer.stats().failed, 3);
                }
                consumer.shutdown().await.unwrap();
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_layer_and_a_batch_may_wait_for_any_time() {
    for limit in EDGES {
        let bus = bus();
        let handler = layers::timeout(limit, slow);
        let policy = RetryPolicy::default().attempts(1);
        let consumer = bus.consumer("w").subject("events.>").policy(policy).handle(handler).await.unwrap();
        publish(&bus, "events.a", 1..=1).await;
        let done = || (consumer.stats().handled, consumer.stats().given_up);
        eventually("it is done", async || done() != (0, 0)).await;
        assert_eq!(done(), if limit == Duration::MAX { (1, 0) } else { (0, 1) }, "{limit:?}");

        let provider = bus.provider();
        let mut subscription = provider.subscribe("events.>").await.unwrap();
        assert_eq!(subscription.next_batch(10, limit).await.map(|batch| batch.len()), Some(1), "{limit:?}");
        if limit < Duration::MAX {
            assert_eq!(subscription.next_batch(10, limit).await.map(|batch| batch.len()), Some(0));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_of_the_bus_may_be_of_any_length() {
    let build = |timeout| EventBus::builder(MemoryProvider::default()).operation_timeout(timeout).build();
    let error = build(Duration::ZERO).unwrap_err();
    assert!(error.to_string().contains("operation_timeout"), "{error}");
    for timeout in [NANOSECOND, Duration::MAX] {
        let bus = build(timeout).unwrap();
        bus.publish_event(&event("events.a", 1)).await.unwrap();
        assert!(bus.health().await.unwrap());
        let consumer = bus.consumer("worker").subject("events.>").handle(slow).await.unwrap();
        eventually("it is handled", async || consumer.stats().handled == 1).await;
        consumer.shutdown().await.unwrap();
    }
    let bus = bus();
    for seconds in [0, 1, u64::MAX] {
        let options = PublishOptions { timeout_secs: Some(seconds), ..PublishOptions::default() };
        let published = bus.publish_event_with_options(&event("events.a", 1), &options).await;
        assert_eq!(published.is_ok(), seconds > 0, "{seconds}: {published:?}");
    }
    for every in EDGES {
        let observer = bus.observe_every(every);
        match every {
            Duration::MAX => {
                let _observer = observer.unwrap();
                eventually("it has observed", async || bus.telemetry().snapshot().connected == Some(true))
                    .await;
            }
            _ => assert!(observer.unwrap_err().to_string().contains("at least 100ms")),
        }
    }
}

#[cfg(feature = "routing")]
#[tokio::test(start_paused = true)]
async fn a_broker_may_wait_for_any_time() {
    use a3s_event::broker::DeliverySettings;
    use a3s_event::{Broker, CollectorSink, Trigger, TriggerFilter};

    for wait in EDGES {
        let broker = Broker::new().with_route_timeout(wait);
        let sink = Arc::new(CollectorSink::new("sink"));
        let trigger = |settings| {
            Trigger::new("t", TriggerFilter::by_subject("events.>"), sink.clone()).with_delivery(settings)
        };
        let settings = DeliverySettings::fire_and_forget().timeout(wait).backoff(Backoff::list([wait]));
        let added = broker.put_trigger(trigger(settings)).await;
        assert_eq!(added.is_err(), wait.is_zero(), "{wait:?}");
        let lease =
            broker.put_trigger(trigger(DeliverySettings::durable().ack_wait(wait))).await.unwrap_err();
        assert!(lease.to_string().contains("ack_wait"), "{lease}");
        if added.is_ok() {
            let result = broker.route(&event("events.a", 1)).await;
            assert_eq!(result.matched, 1);
            let _ = broker.shutdown(wait).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_may_wait_for_any_time() {
    let tick = || event("events.a", 1);
    for interval in EDGES {
        let cron = Arc::new(CronSource::new("tick", interval, tick));
        let threshold = ThresholdSource::new("high", "value", 1.0, || 2.0).interval(interval);
        let sources: [Arc<dyn EventSource>; 2] = [cron, Arc::new(threshold)];
        for source in sources {
            let bus = Arc::new(bus());
            let (sender, _events) = tokio::sync::mpsc::channel(1);
            if interval < Duration::MAX {
                let error = source.start(sender).await.unwrap_err();
                assert!(error.to_string().contains("at least 1 ms"), "{error}");
                continue;
            }
            for deadline in EDGES {
                let backoff = Backoff::list([Duration::MAX]);
                let running = SourceRunner::new(Arc::clone(&source)).backoff(backoff).start(Arc::clone(&bus));
                tokio::time::sleep(Duration::from_secs(1)).await;
                assert_eq!(running.status().restarts, 0, "{:?}", running.status());
                assert_eq!(running.status().last_error, None);
                let stopped = running.shutdown(deadline).await;
                assert!(stopped.is_ok() || deadline < Duration::MAX, "{stopped:?}");
            }
        }
    }
}
