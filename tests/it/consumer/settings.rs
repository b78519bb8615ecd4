//! The settings in force are those of the consumer, whoever set them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use a3s_event::provider::group::ConsumerConfig;
use a3s_event::{
    DlqHandler, EventBus, EventError, EventProvider, MemoryDlqHandler, SubscribeOptions, Subscription,
    SubscriptionFilter,
};

use super::scripted::{Script, Scripted};
use super::support::{assert_settled, policy, publish, short_lease};
use crate::{event, eventually, next};

/// A bus with dead letters over a stream with a consumer for the worker that somebody has made with these options.
async fn adopting(options: SubscribeOptions) -> (Arc<Script>, EventBus, Arc<MemoryDlqHandler>) {
    let script = Arc::new(Script::default());
    let letters = Arc::new(MemoryDlqHandler::default());
    let mut bus = EventBus::new(Scripted(Arc::clone(&script)));
    bus.set_dlq_handler(letters.clone());
    bus.update_subscription(SubscriptionFilter {
        subscriber_id: "worker".into(),
        subjects: vec!["events.a".into()],
        durable: true,
        options: None,
    })
    .await
    .unwrap();
    let memory = script.memory();
    memory.subscribe_durable_with_options("worker-events-a", "events.a", &options).await.unwrap();
    script.set("events.a", &options);
    (script, bus, letters)
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_somebody_else_made_short_is_kept_alive() {
    let (_script, bus, letters) = adopting(short_lease()).await;
    let attempts = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&attempts);
    let consumer = bus
        .consumer("worker")
        .concurrency(4)
        // The second event waits for the first, and its lease has to be kept, too.
        .ordered_by_subject()
        .handle(move |_| {
            counting.fetch_add(1, Ordering::SeqCst);
            async {
                tokio::time::sleep(Duration::from_secs(10)).await;
                Ok(())
            }
        })
        .await
        .unwrap();
    publish(&bus, "events.a", 1..=2).await;
    eventually("both are handled", async || consumer.stats().handled == 2).await;
    assert_settled(&bus).await;
    assert_eq!((attempts.load(Ordering::SeqCst), letters.count().await.unwrap()), (2, 0));
    consumer.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_becomes_short_is_kept_alive_from_then_on() {
    let (script, bus, _letters) = adopting(SubscribeOptions::default()).await;
    let attempts = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&attempts);
    let consumer = bus
        .consumer("worker")
        .handle(move |_| {
            counting.fetch_add(1, Ordering::SeqCst);
            async {
                tokio::time::sleep(Duration::from_secs(10)).await;
                Ok(())
            }
        })
        .await
        .unwrap();
    let memory = script.memory();
    memory.subscribe_durable_with_options("worker-events-a", "events.a", &short_lease()).await.unwrap();
    script.set("events.a", &short_lease());
    publish(&bus, "events.a", 1..=2).await;
    eventually("both are handled", async || consumer.stats().handled == 2).await;
    assert_eq!(attempts.load(Ordering::SeqCst), 2);
    consumer.shutdown().await.unwrap();
}

/// Handles nothing successfully; waits for the letters.
async fn assert_all_attempts_are_made(bus: &EventBus, letters: &MemoryDlqHandler) {
    let attempts = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&attempts);
    let consumer = bus
        .consumer("worker")
        .policy(policy(4))
        .handle(move |_| {
            counting.fetch_add(1, Ordering::SeqCst);
            async { Err("no".into()) }
        })
        .await
        .unwrap();
    bus.publish_event(&event("events.a", 1)).await.unwrap();
    eventually("there is a letter", async || letters.count().await.unwrap() == 1).await;
    assert_eq!(attempts.load(Ordering::SeqCst), 4);
    consumer.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_somebody_else_set_is_taken_off_where_there_are_dead_letters() {
    let limited = SubscribeOptions {
        max_deliver: Some(2),
        backoff_secs: vec![0, 1],
        ack_wait_secs: Some(7),
        max_ack_pending: Some(50),
        ..SubscribeOptions::default()
    };
    let (script, bus, letters) = adopting(limited.clone()).await;
    assert_all_attempts_are_made(&bus, &letters).await;
    let opened = script.last_opened();
    let expected = SubscribeOptions { max_deliver: None, ..limited };
    assert_eq!(format!("{opened:?}"), format!("{expected:?}"), "everything else is as it was");
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_cannot_be_taken_off_alone_is_a_conflict() {
    let limited = SubscribeOptions { max_deliver: Some(2), ..SubscribeOptions::default() };
    let (script, bus, _letters) = adopting(limited.clone()).await;
    let mut settings = ConsumerConfig::new("events.a", &limited).unwrap();
    settings.ack_wait = Duration::from_millis(1_500);
    script.set_config(settings);
    let refused = |error: EventError| match error {
        EventError::Conflict { resource, field, existing, .. } => {
            assert_eq!((field.as_str(), existing.as_str()), ("max_deliver", "2"));
            assert!(resource.contains("worker-events-a"), "{resource}");
        }
        other => panic!("{other}"),
    };
    refused(bus.consumer("worker").handle(|_| async { Ok(()) }).await.unwrap_err());
    refused(bus.create_subscriber("worker").await.err().unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_appears_while_the_consumer_runs_is_taken_off() {
    let (script, bus, letters) = adopting(SubscribeOptions::default()).await;
    let consumer =
        bus.consumer("worker").policy(policy(4)).handle(|_| async { Err("no".into()) }).await.unwrap();
    let limited = SubscribeOptions { max_deliver: Some(2), ..SubscribeOptions::default() };
    let memory = script.memory();
    memory.subscribe_durable_with_options("worker-events-a", "events.a", &limited).await.unwrap();
    script.set("events.a", &limited);
    publish(&bus, "events.a", 1..=3).await;
    eventually("each has a letter", async || letters.count().await.unwrap() == 3).await;
    assert_settled(&bus).await;
    assert_eq!(script.last_opened().max_deliver, None);
    consumer.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_by_hand_gives_up_before_the_provider_drops() {
    let (script, bus, letters) = adopting(SubscribeOptions::default()).await;
    let mut subscription: Box<dyn Subscription> = bus.create_subscriber("worker").await.unwrap().remove(0);
    let limited = SubscribeOptions { max_deliver: Some(2), ..SubscribeOptions::default() };
    let memory = script.memory();
    memory.subscribe_durable_with_options("worker-events-a", "events.a", &limited).await.unwrap();
    script.set("events.a", &limited);
    publish(&bus, "events.a", 1..=1).await;
    for _ in 0..2 {
        assert_eq!(letters.count().await.unwrap(), 0);
        next(&mut subscription).await.nak().await.unwrap();
    }
    assert_eq!(letters.count().await.unwrap(), 1);
}
