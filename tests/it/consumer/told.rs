//! What a consumer says of itself: in the log at its start, in its counts, and at its end.

use std::sync::Arc;
use std::time::Duration;

use a3s_event::consumer::{ConsumerHandle, ConsumerState, HandlerError};
use a3s_event::{
    Delivery, DlqHandler, Event, EventBus, EventProvider, MemoryDlqHandler, MemoryProvider,
    SubscriptionFilter,
};
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::layer::SubscriberExt;

use crate::traced::{Log, traced};
use crate::{bus, event, eventually};

fn logged() -> (Log, DefaultGuard) {
    let log = Log::default();
    let guard = traced(tracing_subscriber::registry().with(log.clone()));
    (log, guard)
}

fn warnings(log: &Log, of: &str) -> Vec<String> {
    log.lines().into_iter().filter(|line| line.starts_with("WARN") && line.contains(of)).collect()
}

async fn idle(bus: &EventBus, name: &str, subject: &str) -> ConsumerHandle {
    bus.consumer(name).subject(subject).handle(|_: Delivery| async { Ok(()) }).await.unwrap()
}

#[tokio::test]
async fn a_consumer_without_dead_letters_warns_and_counts_what_it_loses() {
    const WARNING: &str = "events that this consumer gives up are lost";
    for (has_letters, opts_out) in [(false, false), (false, true), (true, false), (true, true)] {
        let (log, _guard) = logged();
        let letters = Arc::new(MemoryDlqHandler::default());
        let mut bus = bus();
        if has_letters {
            bus.set_dlq_handler(letters.clone());
        }
        let mut consumer = bus.consumer("billing").subject("events.>");
        if opts_out {
            consumer = consumer.without_dead_letters();
        }
        let consumer = consumer.handle_typed(|_: u64, _| async { Ok(()) }).await.unwrap();
        bus.publish_event(&event("events.a", 1)).await.unwrap();
        eventually("it is given up", async || consumer.stats().given_up == 1).await;
        let is_kept = u64::from(has_letters && !opts_out);
        assert_eq!(consumer.stats().dead_lettered, is_kept);
        assert_eq!(letters.count().await.unwrap() as u64, is_kept);
        consumer.shutdown().await.unwrap();
        let metrics = bus.telemetry().snapshot().consumers.remove(0);
        assert_eq!((metrics.given_up, metrics.dead_lettered), (1, is_kept));
        let warned = warnings(&log, WARNING);
        assert_eq!(warned.len(), usize::from(!has_letters && !opts_out), "{warned:?}");
        assert!(warned.iter().all(|line| line.contains("subscriber=\"billing\"")), "{warned:?}");
    }
}

#[tokio::test]
async fn a_second_stored_consumer_of_a_name_is_told_once() {
    const WARNING: &str = "another consumer of this subscriber is stored";
    let provider: Arc<dyn EventProvider> = Arc::new(MemoryProvider::default());
    let bus = EventBus::from_provider(Arc::clone(&provider));
    let first = idle(&bus, "billing", "events.orders.placed").await;
    idle(&bus, "other", "events.orders.paid").await.shutdown().await.unwrap();
    let (log, _guard) = logged();
    // The first one is read: both subjects are handled.
    let second = idle(&bus, "billing", "events.orders.paid").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(warnings(&log, WARNING), Vec::<String>::new());
    first.shutdown().await.unwrap();
    second.shutdown().await.unwrap();
    bus.publish_event(&Event::new("events.orders.placed", "", "", "", serde_json::json!(1))).await.unwrap();

    // Another program, which has the second subject only.
    let bus = EventBus::from_provider(Arc::clone(&provider));
    let second = idle(&bus, "billing", "events.orders.paid").await;
    eventually("it is told", async || !warnings(&log, WARNING).is_empty()).await;
    second.shutdown().await.unwrap();
    let warned = warnings(&log, WARNING);
    assert_eq!(warned.len(), 1, "{warned:?}");
    for part in [
        "subscriber=\"billing\" consumer=\"billing-events-orders-placed\"",
        "subject=\"events.orders.placed\" lag=1",
        "a3s-event consumers rm billing-events-orders-placed",
    ] {
        assert!(warned[0].contains(part), "{part}: {warned:?}");
    }

    // A subscription that is read by hand says the same, once.
    let by_hand = EventBus::from_provider(Arc::clone(&provider));
    let filter = SubscriptionFilter {
        subscriber_id: "billing".into(),
        subjects: vec!["events.orders.paid".into()],
        durable: true,
        options: None,
    };
    by_hand.update_subscription(filter).await.unwrap();
    for _ in 0..2 {
        by_hand.create_subscriber("billing").await.unwrap();
    }
    assert_eq!(warnings(&log, WARNING).len(), 2);

    // What is registered is wanted, and what was removed is not told of any more.
    let both = SubscriptionFilter {
        subscriber_id: "billing".into(),
        subjects: vec!["events.orders.placed".into(), "events.orders.paid".into()],
        durable: true,
        options: None,
    };
    bus.update_subscription(both).await.unwrap();
    let second = idle(&bus, "billing", "events.orders.paid").await;
    provider.unsubscribe("billing-events-orders-placed").await.unwrap();
    second.shutdown().await.unwrap();
    let bus = EventBus::from_provider(Arc::clone(&provider));
    let second = idle(&bus, "billing", "events.orders.paid").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    second.shutdown().await.unwrap();
    assert_eq!(warnings(&log, WARNING).len(), 2);
}

#[tokio::test]
async fn log_lines_name_the_consumer_as_the_program_does_and_as_it_is_stored() {
    let (log, _guard) = logged();
    let bus = bus();
    let consumer = bus.consumer("billing").subject("events.>");
    let consumer = consumer.handle(|_| async { Err(HandlerError::fatal("no stock")) }).await.unwrap();
    bus.publish_event(&event("events.a", 1)).await.unwrap();
    eventually("it is given up", async || consumer.stats().given_up == 1).await;
    let stored = bus.consumers().await.unwrap().remove(0).name;
    assert!(stored.starts_with("billing-events---"), "{stored}");
    bus.provider().unsubscribe(&stored).await.unwrap();
    let error = consumer.stopped().await.unwrap_err().to_string();
    assert!(error.contains(&format!("consumer 'billing' (stored as '{stored}') was deleted")), "{error}");
    let names = format!("subscriber=\"billing\" consumer=\"{stored}\"");
    for said in ["handler failed; the event is given up", "event given up and lost", "subscription ended"] {
        let lines: Vec<_> = log.lines().into_iter().filter(|line| line.contains(said)).collect();
        assert_eq!(lines.len(), 1, "{said}: {:?}", log.lines());
        assert!(lines[0].contains(&names), "{lines:?}");
    }
}

#[tokio::test]
async fn a_failed_consumer_has_the_error_that_ended_it() {
    let bus = bus();
    let consumer = idle(&bus, "billing", "events.a").await;
    assert_eq!((consumer.state(), consumer.last_error()), (ConsumerState::Running, None));
    bus.provider().unsubscribe("billing-events-a").await.unwrap();
    eventually("it has failed", async || consumer.state() == ConsumerState::Failed).await;
    let last = consumer.last_error().unwrap();
    assert!(last.contains("was deleted"), "{last}");
    assert_eq!(consumer.stopped().await.unwrap_err().to_string(), last);
    assert_eq!(consumer.last_error(), Some(last), "also after the error was taken");

    let consumer = idle(&bus, "other", "events.a").await;
    consumer.shutdown().await.unwrap();
    assert_eq!((consumer.state(), consumer.last_error()), (ConsumerState::Stopped, None));
}

/// The tasks of a consumer end with their runtime, while a thread of another one still holds the handle.
#[test]
fn a_consumer_whose_runtime_is_gone_has_failed() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let consumer = runtime.block_on(async { idle(&bus(), "billing", "events.a").await });
    drop(runtime);
    assert_eq!(consumer.state(), ConsumerState::Failed);
    assert!(consumer.last_error().unwrap().contains("the consumer's task has ended"));
}
