//! Events that are handled: each once, in order where that is asked for, shared, paused, and with layers.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use a3s_event::consumer::layers::{self, MemoryIdempotencyStore, ProviderIdempotencyStore};
use a3s_event::consumer::{Backoff, ConsumerState};
use a3s_event::dlq::DeadLetterFilter;
use a3s_event::{
    Delivery, DlqHandler, ErrorKind, EventBus, MemoryDlqHandler, MemoryProvider, MemorySchemaRegistry,
    SubscribeOptions, SubscriptionFilter,
};

use super::support::{Handled, assert_settled, counted, is_settled, policy, publish};
use crate::backend::{Backend, on_every_provider};
use crate::{event, eventually, number};

on_every_provider! {
    everything_is_handled_once_and_settled
    a_lease_is_kept_alive_while_its_handler_runs
    events_of_a_key_keep_their_order_and_hold_no_other_key_up
    members_share_the_work
    a_paused_consumer_fetches_nothing
    what_is_settled_by_hand_is_left_alone
    events_handled_before_are_skipped_across_restarts
}

async fn everything_is_handled_once_and_settled(backend: Backend) {
    let bus = backend.bus().await;
    publish(&bus, "events.a.b", 1..=100).await;
    let handled = Arc::new(Handled::default());
    let counting = Arc::clone(&handled);
    let consumer = bus
        .consumer("worker")
        .subject("events.a.>")
        .subject("events.b.>")
        .concurrency(8)
        .handle(move |delivery: Delivery| {
            let handled = Arc::clone(&counting);
            async move {
                tokio::task::yield_now().await;
                handled.count(number(&delivery));
                Ok(())
            }
        })
        .await
        .unwrap();
    publish(&bus, "events.b.c", 101..=200).await;
    eventually("200 events are handled", async || handled.events() == 200).await;
    assert_settled(&bus).await;
    assert_eq!(consumer.lag().await.unwrap(), 0);
    consumer.shutdown().await.unwrap();
    assert!(handled.all_once());
    assert_eq!(consumer.stats().handled, 200);
    assert_eq!(consumer.state(), ConsumerState::Stopped);
    assert_eq!(backend.letters().await.count().await.unwrap(), 0);
}

async fn a_lease_is_kept_alive_while_its_handler_runs(backend: Backend) {
    let bus = backend.bus().await;
    let handled = Arc::new(Handled::default());
    let mut members = Vec::new();
    for _ in 0..2 {
        let handled = Arc::clone(&handled);
        let member = bus
            .consumer("worker")
            .subject("events.>")
            .options(SubscribeOptions { ack_wait_secs: Some(4), ..SubscribeOptions::default() })
            // In lanes, so that the second event waits for the first and its lease has to be kept too.
            .ordered_by_subject()
            .concurrency(2)
            .policy(policy(1))
            .handle(move |delivery: Delivery| {
                let handled = Arc::clone(&handled);
                async move {
                    handled.count(number(&delivery));
                    tokio::time::sleep(Duration::from_millis(5_000)).await;
                    Ok(())
                }
            })
            .await
            .unwrap();
        members.push(member);
    }
    publish(&bus, "events.a.b", 1..=2).await;
    eventually("both are handled", async || handled.events() == 2).await;
    assert_settled(&bus).await;
    for member in members {
        member.shutdown().await.unwrap();
    }
    assert!(handled.all_once());
    assert_eq!(backend.letters().await.count().await.unwrap(), 0);
}

async fn events_of_a_key_keep_their_order_and_hold_no_other_key_up(backend: Backend) {
    let bus = backend.bus().await;
    // The first event of the slow key fails twice, and takes its time.
    publish(&bus, "events.slow", 1..=3).await;
    publish(&bus, "events.quick", 11..=20).await;
    let order = Arc::new(Mutex::new(Vec::new()));
    let (noting, tries) = (Arc::clone(&order), Arc::new(AtomicUsize::new(0)));
    let consumer = bus
        .consumer("worker")
        .subject("events.>")
        .ordered_by_subject()
        .concurrency(2)
        .policy(policy(5).backoff(Backoff::list([Duration::from_millis(300)])))
        .handle(move |delivery: Delivery| {
            let (order, tries) = (Arc::clone(&noting), Arc::clone(&tries));
            async move {
                let number = number(&delivery);
                if number == 1 && tries.fetch_add(1, Ordering::SeqCst) < 2 {
                    return Err("not yet".into());
                }
                order.lock().unwrap().push(number);
                Ok(())
            }
        })
        .await
        .unwrap();
    assert_settled(&bus).await;
    consumer.shutdown().await.unwrap();
    let order = order.lock().unwrap().clone();
    assert_eq!(order, (11..=20).chain(1..=3).collect::<Vec<_>>());
}

async fn members_share_the_work(backend: Backend) {
    let handled = Arc::new(Handled::default());
    let is_busy = tokio::sync::watch::Sender::new([false; 2]);
    let mut members = Vec::new();
    for member in 0..2 {
        let bus = backend.bus().await;
        let (handled, is_busy) = (Arc::clone(&handled), is_busy.clone());
        let member = bus
            .consumer("worker")
            .subject("events.>")
            .concurrency(4)
            .handle(move |delivery: Delivery| {
                let (handled, is_busy) = (Arc::clone(&handled), is_busy.clone());
                async move {
                    is_busy.send_modify(|is_busy| is_busy[member] = true);
                    // However fast one is, it leaves something to the other.
                    is_busy.subscribe().wait_for(|is_busy| *is_busy == [true; 2]).await.unwrap();
                    handled.count(number(&delivery));
                    Ok(())
                }
            })
            .await
            .unwrap();
        members.push((bus, member));
    }
    publish(&members[0].0, "events.a.b", 1..=200).await;
    eventually("all are handled", async || handled.events() == 200).await;
    assert_settled(&members[0].0).await;
    assert!(handled.all_once());
    for (_, member) in members {
        member.shutdown().await.unwrap();
        assert!(member.stats().handled > 0, "{:?}", member.stats());
    }
}

async fn a_paused_consumer_fetches_nothing(backend: Backend) {
    let bus = backend.bus().await;
    let handled = Arc::new(Handled::default());
    let consumer = counted(bus.consumer("worker").subject("events.>"), &handled).await;
    consumer.pause();
    assert_eq!(consumer.state(), ConsumerState::Paused);
    // Its answer comes from the fetching task, which has then seen the pause.
    assert_eq!(consumer.lag().await.unwrap(), 0);
    publish(&bus, "events.a.b", 1..=3).await;
    eventually("three are behind", async || consumer.lag().await.unwrap() == 3).await;
    assert_eq!(handled.events(), 0);
    consumer.resume();
    assert_eq!(consumer.state(), ConsumerState::Running);
    eventually("all are handled", async || handled.events() == 3).await;
    consumer.shutdown().await.unwrap();
}

async fn what_is_settled_by_hand_is_left_alone(backend: Backend) {
    let bus = backend.bus().await;
    publish(&bus, "events.a.b", 1..=3).await;
    let released = Arc::new(AtomicBool::new(false));
    let releasing = Arc::clone(&released);
    let consumer = bus
        .consumer("worker")
        .subject("events.>")
        .policy(policy(1))
        .handle(move |delivery: Delivery| {
            let is_released = number(&delivery) == 3 && releasing.swap(true, Ordering::SeqCst);
            async move {
                match number(&delivery) {
                    // At most once.
                    1 => {
                        delivery.ack().await?;
                        Err("too late".into())
                    }
                    2 => Ok(delivery.term("not this one").await?),
                    _ if is_released => Ok(()),
                    _ => Ok(delivery.release().await?),
                }
            }
        })
        .await
        .unwrap();
    eventually("one was released", async || released.load(Ordering::SeqCst)).await;
    assert_settled(&bus).await;
    consumer.shutdown().await.unwrap();
    let letters = backend.letters().await.find(&DeadLetterFilter::default(), 10).await.unwrap();
    let reasons: Vec<_> = letters.iter().map(|stored| stored.letter.reason.as_str()).collect();
    // Where a release counts, the third one is exhausted.
    let expected = ["not processed in 1 deliveries", "not this one"];
    assert!(reasons == expected || reasons == expected[1..], "{reasons:?}");
}

async fn events_handled_before_are_skipped_across_restarts(backend: Backend) {
    let handled = Arc::new(Handled::default());
    for round in 0..2 {
        let bus = backend.bus().await;
        let memory = Arc::new(ProviderIdempotencyStore::new(backend.events().await, "mailer").unwrap());
        let counting = Arc::clone(&handled);
        let handler = layers::idempotent(memory, move |delivery: Delivery| {
            counting.count(number(&delivery));
            async { Ok(()) }
        });
        // Another consumer gets everything again.
        let consumer =
            bus.consumer(format!("round{round}")).subject("events.a.>").handle(handler).await.unwrap();
        if round == 0 {
            publish(&bus, "events.a.b", 1..=5).await;
        }
        eventually("five are handled", async || consumer.stats().handled == 5).await;
        consumer.shutdown().await.unwrap();
    }
    assert_eq!(handled.events(), 5);
    assert!(handled.all_once());
}

#[tokio::test]
async fn a_builder_refuses_what_cannot_be() {
    let bus = EventBus::new(MemoryProvider::default());
    let handler = |_: Delivery| async { Ok(()) };
    let refused = [
        (bus.consumer("worker").handle(handler).await, ErrorKind::NotFound),
        (bus.consumer("worker").subject("a..b").handle(handler).await, ErrorKind::InvalidInput),
        (bus.consumer("").subject("events.>").handle(handler).await, ErrorKind::InvalidInput),
        (bus.consumer("worker").subject("events.>").concurrency(0).handle(handler).await, ErrorKind::Config),
        (
            bus.consumer("worker").subject("events.>").policy(policy(0)).handle(handler).await,
            ErrorKind::Config,
        ),
    ];
    for (result, kind) in refused {
        assert_eq!(result.unwrap_err().kind(), kind);
    }
    let error = bus.consumer("").handle(handler).await.unwrap_err().to_string();
    assert_eq!(error, "invalid name \"\": the name of a consumer must not be empty");
}

#[tokio::test]
async fn validation_without_schemas_is_refused_where_it_would_take_effect() {
    let mut bus = EventBus::new(MemoryProvider::default());
    bus.update_subscription(SubscriptionFilter {
        subscriber_id: "worker".into(),
        subjects: vec!["events.a".into()],
        durable: true,
        options: None,
    })
    .await
    .unwrap();
    bus.set_validate_on_consume(true);
    let built = EventBus::builder(MemoryProvider::default()).validate_on_consume(true).build();
    let refused = [
        built.err(),
        bus.create_subscriber("worker").await.err(),
        bus.consumer("worker").handle(|_| async { Ok(()) }).await.err(),
    ];
    for error in refused {
        let error = error.unwrap();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("validate_on_consume: needs a schema registry"), "{error}");
    }
    // The setters work in any order.
    bus.set_schema_registry(Arc::new(MemorySchemaRegistry::new()));
    bus.create_subscriber("worker").await.unwrap();
    let schemas = Arc::new(MemorySchemaRegistry::new());
    let built = EventBus::builder(MemoryProvider::default()).validate_on_consume(true);
    built.schema_registry(schemas).build().unwrap();
}

#[tokio::test]
async fn a_registered_subscription_is_handled_under_its_name() {
    let bus = EventBus::new(MemoryProvider::default());
    bus.update_subscription(SubscriptionFilter {
        subscriber_id: "worker".into(),
        subjects: vec!["events.a".into(), "events.b".into()],
        durable: true,
        options: None,
    })
    .await
    .unwrap();
    let consumer = bus.consumer("worker").handle(|_| async { Ok(()) }).await.unwrap();
    for subject in ["events.a", "events.b", "events.c"] {
        bus.publish_event(&event(subject, 1)).await.unwrap();
    }
    eventually("two are handled", async || consumer.stats().handled == 2).await;
    assert!(is_settled(&bus).await);
}

#[tokio::test(start_paused = true)]
async fn layers_limit_and_time_and_remember() {
    let bus = EventBus::builder(MemoryProvider::default())
        .dlq_handler(Arc::new(MemoryDlqHandler::default()))
        .build()
        .unwrap();
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (now, peak) = (Arc::clone(&running), Arc::clone(&most));
    let handler = move |delivery: Delivery| {
        let (now, peak) = (Arc::clone(&now), Arc::clone(&peak));
        async move {
            peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let seconds = if number(&delivery) == 7 { 100 } else { 1 };
            let _ended = scopeguard(&now);
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            Ok(())
        }
    };
    let handler = layers::timeout(Duration::from_secs(10), handler);
    let handler = layers::idempotent(Arc::new(MemoryIdempotencyStore::new(100)), handler);
    let handler = layers::traced("work", layers::concurrency_limit(3, handler));
    let consumer = bus
        .consumer("worker")
        .subject("events.>")
        .concurrency(10)
        .policy(policy(2).no_timeout())
        .handle(handler)
        .await
        .unwrap();
    publish(&bus, "events.a", 1..=10).await;
    eventually("all is done", async || is_settled(&bus).await).await;
    assert_eq!(most.load(Ordering::SeqCst), 3);
    assert_eq!((consumer.stats().handled, consumer.stats().dead_lettered), (9, 1));
    consumer.shutdown().await.unwrap();
}

/// Counts down when it is dropped, also with a handler that is interrupted.
fn scopeguard(counter: &AtomicUsize) -> impl Drop + '_ {
    struct Down<'a>(&'a AtomicUsize);
    impl Drop for Down<'_> {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    Down(counter)
}
