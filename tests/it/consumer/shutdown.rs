//! How a consumer ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use a3s_event::consumer::{ConsumerState, HandlerError};
use a3s_event::{Delivery, ErrorKind, EventBus, EventProvider, MemoryProvider};
use tokio::sync::Notify;

use super::support::{Handled, assert_settled, counted, policy, publish};
use crate::backend::{Backend, on_every_provider};
use crate::{eventually, number};

on_every_provider! {
    a_drain_ends_what_runs_and_gives_the_rest_back
    a_second_shutdown_interrupts_and_gives_back
    a_shutdown_waits_for_no_attempt_behind_its_deadline
    a_closed_provider_fails_the_consumer
}

async fn a_drain_ends_what_runs_and_gives_the_rest_back(backend: Backend) {
    let bus = backend.bus().await;
    publish(&bus, "events.a.b", 1..=50).await;
    let (handled, go_on) = (Arc::new(Handled::default()), Arc::new(Notify::new()));
    let (counting, waiting) = (Arc::clone(&handled), Arc::clone(&go_on));
    let consumer = bus
        .consumer("worker")
        .subject("events.>")
        .concurrency(4)
        .policy(policy(1))
        .handle(move |delivery: Delivery| {
            let (handled, go_on) = (Arc::clone(&counting), Arc::clone(&waiting));
            async move {
                go_on.notified().await;
                handled.count(number(&delivery));
                Ok(())
            }
        })
        .await
        .unwrap();
    eventually("four are running", async || consumer.stats().running == 4).await;
    let release = async {
        eventually("it drains", async || consumer.state() == ConsumerState::Draining).await;
        // However many are still to run: those that were given back need no permit.
        while consumer.state() == ConsumerState::Draining {
            go_on.notify_waiters();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let (ended, ()) = tokio::join!(consumer.shutdown(), release);
    ended.unwrap();
    assert!((4..50).contains(&handled.events()), "{}", handled.events());
    assert_eq!(consumer.stats().interrupted, 0);

    // One attempt is allowed, and none was used by what was given back.
    let bus = backend.bus().await;
    let next = counted(bus.consumer("worker").subject("events.>").policy(policy(1)), &handled).await;
    assert_settled(&bus).await;
    next.shutdown().await.unwrap();
    assert_eq!(handled.events(), 50);
    assert!(handled.all_once());
    assert_eq!(next.stats().dead_lettered, 0, "nothing is dead-lettered by a shutdown");
}

async fn a_second_shutdown_interrupts_and_gives_back(backend: Backend) {
    let bus = backend.bus().await;
    publish(&bus, "events.a.b", 1..=2).await;
    let consumer = bus
        .consumer("worker")
        .subject("events.>")
        .concurrency(2)
        .policy(policy(5).no_timeout())
        .drain_timeout(Duration::from_secs(600))
        .handle(|_| std::future::pending())
        .await
        .unwrap();
    eventually("both are running", async || consumer.stats().running == 2).await;
    let (first, second) = tokio::join!(consumer.shutdown(), consumer.shutdown());
    let errors = [first.unwrap_err(), second.unwrap_err()];
    assert!(errors.iter().any(|error| error.kind() == ErrorKind::Timeout), "{errors:?}");
    assert_eq!(consumer.stats().interrupted, 2);
    // They are there at once, long before their leases end.
    let next = bus.consumer("worker").subject("events.>").handle(|_| async { Ok(()) }).await.unwrap();
    assert_settled(&bus).await;
    // Counted after it is settled.
    next.shutdown().await.unwrap();
    assert_eq!(next.stats().handled, 2);
}

async fn a_shutdown_waits_for_no_attempt_behind_its_deadline(backend: Backend) {
    let bus = backend.bus().await;
    publish(&bus, "events.a.b", 1..=3).await;
    let consumer = bus
        .consumer("worker")
        .subject("events.>")
        .ordered_by_subject()
        .drain_timeout(Duration::from_secs(600))
        .handle(|_| async { Err(HandlerError::retry_after("later", Duration::MAX)) })
        .await
        .unwrap();
    eventually("the first has failed", async || consumer.stats().parked == 3).await;
    tokio::time::timeout(Duration::from_secs(60), consumer.shutdown()).await.expect("it waits").unwrap();

    let handled = Arc::new(Handled::default());
    let next = counted(bus.consumer("worker").subject("events.>").ordered_by_subject(), &handled).await;
    assert_settled(&bus).await;
    next.shutdown().await.unwrap();
    assert!(handled.events() == 3 && handled.all_once());
}

async fn a_closed_provider_fails_the_consumer(backend: Backend) {
    let bus = backend.bus().await;
    let consumer = bus.consumer("worker").subject("events.>").handle(|_| async { Ok(()) }).await.unwrap();
    bus.close().await.unwrap();
    let error = tokio::time::timeout(Duration::from_secs(20), consumer.stopped()).await.unwrap().unwrap_err();
    assert!(error.is_closed(), "{error:?}");
    assert_eq!(consumer.state(), ConsumerState::Failed);
    consumer.stopped().await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_does_not_end_is_interrupted_at_the_deadline() {
    let bus = EventBus::new(MemoryProvider::default());
    publish(&bus, "events.a", 1..=3).await;
    let consumer = bus
        .consumer("worker")
        .subject("events.>")
        .policy(policy(1).no_timeout())
        .drain_timeout(Duration::from_secs(5))
        .handle(|_| std::future::pending())
        .await
        .unwrap();
    eventually("one is running", async || consumer.stats().running == 1).await;
    let start = tokio::time::Instant::now();
    let error = consumer.shutdown().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(start.elapsed().as_secs(), 5);
    let mut subscription =
        bus.provider().subscribe_durable(&bus.consumers().await.unwrap()[0].name, "events.>").await.unwrap();
    for expected in 1..=3 {
        let delivery = crate::next(&mut subscription).await;
        assert_eq!((number(&delivery), delivery.num_delivered()), (expected, 1), "in order, and uncounted");
    }
}

#[tokio::test(start_paused = true)]
async fn a_consumer_without_an_owner_ends() {
    let provider = Arc::new(MemoryProvider::default());
    let bus = EventBus::from_provider(provider.clone());
    let calls = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&calls);
    let consumer = bus
        .consumer("worker")
        .subject("events.>")
        .ephemeral()
        .handle(move |_| {
            counting.fetch_add(1, Ordering::SeqCst);
            async { Ok(()) }
        })
        .await
        .unwrap();
    assert_eq!(provider.info().await.unwrap().consumers, 1);
    drop(consumer);
    eventually("its consumer is gone", async || provider.info().await.unwrap().consumers == 0).await;
    publish(&bus, "events.a", 1..=1).await;
    assert_eq!(calls.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn run_until_ends_with_what_it_waits_for() {
    let bus = EventBus::new(MemoryProvider::default());
    let start = || bus.consumer("worker").subject("events.>").handle(|_| std::future::pending());
    let consumer = start().await.unwrap();
    consumer.run_until(|| tokio::time::sleep(Duration::from_secs(3))).await.unwrap();
    assert_eq!(consumer.state(), ConsumerState::Stopped);

    // Asked a second time, it does not wait for what hangs.
    let consumer = start().await.unwrap();
    publish(&bus, "events.a", 1..=1).await;
    eventually("it is running", async || consumer.stats().running == 1).await;
    let begin = tokio::time::Instant::now();
    consumer.run_until(|| tokio::time::sleep(Duration::from_secs(3))).await.unwrap_err();
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_behind_the_drop_of_a_handle_waits_for_no_lease() {
    let bus = crate::bus();
    for round in 1..=300 {
        let handled = Arc::new(Handled::default());
        let dropped = counted(bus.consumer("worker").subject("events.>"), &handled).await;
        drop(dropped);
        publish(&bus, "events.a", round..=round).await;
        let handled_next = Arc::new(Handled::default());
        let next = counted(bus.consumer("worker").subject("events.>"), &handled_next).await;
        eventually("somebody handles it", async || handled.events() + handled_next.events() == 1).await;
        next.shutdown().await.unwrap();
    }
}
