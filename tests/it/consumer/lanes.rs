//! Ordered lanes: what fails holds up its own key only, and what the order is worth behind a crash.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use a3s_event::consumer::{Backoff, RetryPolicy};
use a3s_event::{Delivery, DlqHandler, EventBus, MemoryDlqHandler, MemoryProvider, SubscribeOptions};

use super::support::{Handled, assert_settled, policy, publish};
use crate::backend::{Backend, on_every_provider};
use crate::{bus, eventually, number};

fn patient() -> RetryPolicy {
    RetryPolicy::default().attempts(u64::MAX).backoff(Backoff::list([Duration::from_secs(5)]))
}

/// Lets one key fail that has this many events in front of those of the others, as long as it is told to.
async fn with_a_failing_key(backlog: u64, concurrency: usize, options: SubscribeOptions) {
    let bus = bus();
    publish(&bus, "events.bad", 1..=backlog).await;
    for key in 0..20 {
        publish(&bus, &format!("events.good.{key}"), 10_000 + 10 * key..=10_009 + 10 * key).await;
    }
    let (handled, fails) = (Arc::new(Handled::default()), Arc::new(AtomicBool::new(true)));
    let order = Arc::new(Mutex::new(BTreeMap::<String, Vec<u64>>::new()));
    let (counting, failing, noting) = (Arc::clone(&handled), Arc::clone(&fails), Arc::clone(&order));
    let consumer = bus
        .consumer("worker")
        .subject("events.>")
        .options(options)
        .ordered_by_subject()
        .concurrency(concurrency)
        .policy(patient())
        .handle(move |delivery: Delivery| {
            let is_bad = delivery.event().subject == "events.bad" && failing.load(Ordering::SeqCst);
            if !is_bad {
                counting.count(number(&delivery));
                let subject = delivery.event().subject.clone();
                noting.lock().unwrap().entry(subject).or_default().push(number(&delivery));
            }
            async move { if is_bad { Err("not yet".into()) } else { Ok(()) } }
        })
        .await
        .unwrap();
    eventually("all of the other keys are handled", async || handled.events() == 200).await;
    assert!(consumer.stats().failed > 0);
    assert!(consumer.stats().parked > 0, "{:?}", consumer.stats());
    fails.store(false, Ordering::SeqCst);
    let all = 200 + usize::try_from(backlog).unwrap();
    eventually("the failing key goes on", async || handled.events() == all).await;
    assert_settled(&bus).await;
    consumer.shutdown().await.unwrap();
    assert!(handled.all_once());
    assert!(order.lock().unwrap().values().all(|numbers| numbers.is_sorted()));
    assert_eq!(consumer.stats().parked, 0);
}

#[tokio::test(start_paused = true)]
async fn a_failing_key_with_a_backlog_stops_only_itself() {
    for concurrency in [1, 2, 8] {
        with_a_failing_key(200, concurrency, SubscribeOptions::default()).await;
    }
    // As many as may be unsettled, less what the others need.
    with_a_failing_key(900, 8, SubscribeOptions::default()).await;
    let more = SubscribeOptions { max_ack_pending: Some(5_000), ..SubscribeOptions::default() };
    with_a_failing_key(4_000, 8, more).await;
}

#[tokio::test(start_paused = true)]
async fn more_keys_may_fail_than_there_are_workers() {
    let bus = bus();
    for key in 0..50 {
        publish(&bus, &format!("events.bad.{key}"), key..=key).await;
    }
    publish(&bus, "events.good", 100..=120).await;
    let handled = Arc::new(Handled::default());
    let counting = Arc::clone(&handled);
    let consumer = bus
        .consumer("worker")
        .subject("events.>")
        .ordered_by_subject()
        .concurrency(2)
        .policy(patient())
        .handle(move |delivery: Delivery| {
            let is_bad = number(&delivery) < 100;
            if !is_bad {
                counting.count(number(&delivery));
            }
            async move { if is_bad { Err("never".into()) } else { Ok(()) } }
        })
        .await
        .unwrap();
    eventually("the good key is handled", async || handled.events() == 21).await;
    drop(consumer);
}

#[tokio::test(start_paused = true)]
async fn what_is_held_for_failing_keys_is_bounded_by_what_may_be_unsettled() {
    let bus = bus();
    publish(&bus, "events.bad", 1..=300).await;
    publish(&bus, "events.good", 301..=301).await;
    let (handled, fails) = (Arc::new(Handled::default()), Arc::new(AtomicBool::new(true)));
    let (counting, failing) = (Arc::clone(&handled), Arc::clone(&fails));
    let consumer = bus
        .consumer("worker")
        .subject("events.>")
        .options(SubscribeOptions { max_ack_pending: Some(100), ..SubscribeOptions::default() })
        .ordered_by_subject()
        .concurrency(4)
        .policy(patient())
        .handle(move |delivery: Delivery| {
            let is_bad = delivery.event().subject == "events.bad" && failing.load(Ordering::SeqCst);
            if !is_bad {
                counting.count(number(&delivery));
            }
            async move { if is_bad { Err("not yet".into()) } else { Ok(()) } }
        })
        .await
        .unwrap();
    eventually("as many are held as may be", async || consumer.stats().waiting == 100).await;
    // Leases are kept meanwhile, longer than they last.
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!((consumer.stats().waiting, consumer.stats().parked, handled.events()), (100, 100, 0));
    fails.store(false, Ordering::SeqCst);
    eventually("all are handled", async || handled.events() == 301).await;
    assert!(handled.all_once());
    consumer.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_handler_sees_which_attempt_it_is() {
    let letters = Arc::new(MemoryDlqHandler::default());
    let bus = EventBus::builder(MemoryProvider::default()).dlq_handler(letters.clone()).build().unwrap();
    for is_ordered in [true, false] {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noting = Arc::clone(&seen);
        let name = format!("worker{is_ordered}");
        let mut consumer = bus.consumer(&name).subject("events.>").policy(policy(4));
        if is_ordered {
            consumer = consumer.ordered_by_subject();
        }
        let handler = move |delivery: Delivery| {
            noting.lock().unwrap().push(delivery.num_delivered());
            async { Err("no".into()) }
        };
        let consumer = consumer.handle(handler).await.unwrap();
        if is_ordered {
            publish(&bus, "events.a", 1..=1).await;
        }
        eventually("it is given up", async || consumer.stats().dead_lettered == 1).await;
        assert_eq!(*seen.lock().unwrap(), [1, 2, 3, 4]);
        consumer.shutdown().await.unwrap();
    }
    let found = letters.list(10).await.unwrap();
    assert!(found.iter().all(|letter| letter.event.num_delivered == 4));
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_another_attempt_is_given_back_by_a_shutdown_and_counts() {
    let bus = bus();
    publish(&bus, "events.a", 1..=3).await;
    let first = bus
        .consumer("worker")
        .subject("events.>")
        .ordered_by_subject()
        .policy(patient())
        .handle(|_| async { Err("not yet".into()) })
        .await
        .unwrap();
    eventually("one has failed", async || first.stats().failed == 1).await;
    first.shutdown().await.unwrap();
    assert_eq!(first.stats().interrupted, 0, "nothing runs while it waits");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noting = Arc::clone(&seen);
    let second = bus
        .consumer("worker")
        .subject("events.>")
        .ordered_by_subject()
        .handle(move |delivery: Delivery| {
            noting.lock().unwrap().push((number(&delivery), delivery.num_delivered()));
            async { Ok(()) }
        })
        .await
        .unwrap();
    eventually("all are handled", async || seen.lock().unwrap().len() == 3).await;
    assert_eq!(*seen.lock().unwrap(), [(1, 2), (2, 1), (3, 1)], "in order, without a wait");
    second.shutdown().await.unwrap();
}

on_every_provider! {
    behind_a_crash_nothing_is_lost_and_newer_events_may_come_first
}

async fn behind_a_crash_nothing_is_lost_and_newer_events_may_come_first(backend: Backend) {
    let bus = backend.bus().await;
    publish(&bus, "events.a", 1..=5).await;
    let started = Arc::new(AtomicUsize::new(0));
    let starting = Arc::clone(&started);
    let crashed = bus
        .consumer("worker")
        .subject("events.>")
        // Longer than a slow machine takes for what has to happen within it.
        .options(SubscribeOptions { ack_wait_secs: Some(8), ..SubscribeOptions::default() })
        .ordered_by_subject()
        .concurrency(2)
        .handle(move |_| {
            starting.fetch_add(1, Ordering::SeqCst);
            std::future::pending()
        })
        .await
        .unwrap();
    eventually("one runs, and the others are fetched", async || {
        started.load(Ordering::SeqCst) == 1 && crashed.stats().waiting == 4
    })
    .await;
    // As when its process is killed: nothing is settled or given back.
    drop(crashed);
    publish(&bus, "events.a", 6..=6).await;
    let order = Arc::new(Mutex::new(Vec::new()));
    let noting = Arc::clone(&order);
    let next = bus
        .consumer("worker")
        .subject("events.>")
        .ordered_by_subject()
        .concurrency(2)
        .handle(move |delivery: Delivery| {
            noting.lock().unwrap().push(number(&delivery));
            async { Ok(()) }
        })
        .await
        .unwrap();
    eventually("all are handled", async || order.lock().unwrap().len() == 6).await;
    assert_settled(&bus).await;
    next.shutdown().await.unwrap();
    let mut order = order.lock().unwrap().clone();
    assert_eq!(order[0], 6, "what nobody holds comes at once: {order:?}");
    order.sort_unstable();
    assert_eq!(order, [1, 2, 3, 4, 5, 6], "and what the dead one held when its leases end");
}
