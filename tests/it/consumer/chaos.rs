//! A thousand events through eight lanes, while handlers fail, panic and hang, and the consumer is shut down in the middle.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use a3s_event::consumer::{Backoff, ConsumerHandle, HandlerError, RetryPolicy};
use a3s_event::dlq::DeadLetterFilter;
use a3s_event::{Delivery, EventBus, FailureClass};

use tokio::sync::Notify;

use super::support::assert_settled;
use crate::backend::{Backend, on_every_provider};
use crate::{event, number};

const EVENTS: u64 = 1_000;
const LANES: u64 = 8;
/// Far more than any event needs, so that only a shutdown could use them up.
const ATTEMPTS: u64 = 12;
/// What is handled before the shutdown.
const BEFORE: usize = 300;

on_every_provider! {
    order_holds_and_nothing_is_lost_across_a_shutdown
}

/// Numbers that look random and are the same every time (the finalizer of MurmurHash3).
fn mixed(number: u64) -> u64 {
    let mut hash = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

/// Whether no attempt can succeed.
fn is_poison(number: u64) -> bool {
    number % 100 == 99
}

/// How often an event fails in each process before it succeeds.
fn failures(number: u64) -> u64 {
    match mixed(number) % 20 {
        0..=14 => 0,
        15..=17 => 1,
        18 => 2,
        _ => 3,
    }
}

fn subject(number: u64) -> String {
    format!("events.lane.{}", mixed(number + EVENTS) % LANES)
}

/// Starts the consumer; `report` is told of every event that is handled.
async fn start(bus: &EventBus, report: impl Fn(u64) + Send + Sync + 'static) -> ConsumerHandle {
    let tried = Arc::new(Mutex::new(BTreeMap::<u64, u64>::new()));
    let report = Arc::new(report);
    let policy = RetryPolicy::default()
        .attempts(ATTEMPTS)
        .backoff(Backoff::exponential(Duration::from_millis(1), Duration::from_millis(5)))
        .timeout(Duration::from_millis(500));
    bus.consumer("worker")
        .subject("events.lane.*")
        .concurrency(usize::try_from(LANES).unwrap())
        .ordered_by_subject()
        .policy(policy)
        .handle(move |delivery: Delivery| {
            let (tried, report) = (Arc::clone(&tried), Arc::clone(&report));
            async move {
                let number = number(&delivery);
                if is_poison(number) {
                    return Err(HandlerError::fatal("poison"));
                }
                let tries = {
                    let mut tried = tried.lock().unwrap();
                    let tries = tried.entry(number).or_default();
                    *tries += 1;
                    *tries
                };
                tokio::time::sleep(Duration::from_micros(mixed(number + tries) % 3_000)).await;
                if tries <= failures(number) {
                    match mixed(number * 7 + tries) % 12 {
                        0 => std::future::pending().await,
                        1..=4 => panic!("at random"),
                        _ => return Err("at random".into()),
                    }
                }
                report(number);
                Ok(())
            }
        })
        .await
        .unwrap()
}

/// Every event was handled or is a dead letter by right, and the events of each lane were handled in order.
async fn check(backend: &Backend, handled: &[u64]) {
    let mut first = BTreeSet::new();
    let mut last_of_lane = BTreeMap::new();
    for number in handled {
        if first.insert(*number) {
            let last = last_of_lane.insert(subject(*number), *number);
            assert!(last < Some(*number), "{number} was handled behind {last:?}");
        }
    }
    let good: BTreeSet<u64> = (0..EVENTS).filter(|number| !is_poison(*number)).collect();
    assert_eq!(first, good, "nothing is lost");
    println!("{} events handled, {} again", first.len(), handled.len() - first.len());

    let letters = backend.letters().await.find(&DeadLetterFilter::default(), usize::MAX).await.unwrap();
    let dead: Vec<_> = letters
        .iter()
        .rev()
        .map(|stored| stored.letter.event.event.payload["number"].as_u64().unwrap())
        .collect();
    let poison: BTreeSet<u64> = (0..EVENTS).filter(|number| is_poison(*number)).collect();
    assert_eq!(dead.len(), poison.len(), "each is kept once: {dead:?}");
    assert_eq!(dead.into_iter().collect::<BTreeSet<_>>(), poison, "only poison is dead-lettered");
    assert!(letters.iter().all(|stored| stored.letter.class == FailureClass::Fatal));
}

async fn publish_all(bus: &EventBus) {
    let events: Vec<_> = (0..EVENTS).map(|number| event(&subject(number), number)).collect();
    for stored in bus.publish_batch(&events).await {
        stored.unwrap();
    }
}

async fn order_holds_and_nothing_is_lost_across_a_shutdown(backend: Backend) {
    let handled = Arc::new(Mutex::new(Vec::new()));
    // Whoever looks from time to time may look too late on a busy machine.
    let enough = Arc::new(Notify::new());
    let report = |handled: &Arc<Mutex<Vec<u64>>>| {
        let (handled, enough) = (Arc::clone(handled), Arc::clone(&enough));
        move |number| {
            let mut handled = handled.lock().unwrap();
            handled.push(number);
            if handled.len() == BEFORE {
                enough.notify_one();
            }
        }
    };
    let bus = backend.bus().await;
    publish_all(&bus).await;
    let consumer = start(&bus, report(&handled)).await;
    tokio::time::timeout(Duration::from_secs(100), enough.notified()).await.expect("some are handled");
    consumer.shutdown().await.unwrap();
    let before = handled.lock().unwrap().len();
    assert!(before < usize::try_from(EVENTS).unwrap(), "{before} were handled before the shutdown");

    let bus = backend.bus().await;
    let consumer = start(&bus, report(&handled)).await;
    assert_settled(&bus).await;
    consumer.shutdown().await.unwrap();
    let handled = handled.lock().unwrap().clone();
    check(&backend, &handled).await;
}

#[cfg(all(unix, any(feature = "nats", feature = "sqlite")))]
mod processes {
    use super::super::killed::bus_of;
    use super::*;
    use crate::backend::on_every_server;
    use crate::process::{Process, Role, role_to_play, say};

    on_every_server! {
        a_sigterm_in_the_middle_loses_nothing
    }

    /// Handles events until it is told to end.
    #[test]
    #[ignore = "what the other process runs"]
    fn role() {
        let Some(Role { target, .. }) = role_to_play() else { return };
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let mut terminated =
                tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
            let bus = bus_of(&target).await;
            let consumer = start(&bus, |number| say(&format!("handled {number}"))).await;
            tokio::select! {
                ended = consumer.stopped() => ended.unwrap(),
                _ = terminated.recv() => consumer.shutdown().await.unwrap(),
            }
            say("drained");
        });
    }

    async fn a_sigterm_in_the_middle_loses_nothing(backend: Backend) {
        let bus = backend.bus().await;
        publish_all(&bus).await;
        let target = backend.urls.as_ref().unwrap().join(" ");
        let process = move || {
            let process = Process::start("consumer::chaos::processes::role", "handle", target, "");
            process.terminate_after("handled ", BEFORE)
        };
        let (said, ended_well) = tokio::task::spawn_blocking(process).await.unwrap();
        assert!(ended_well && said.iter().any(|line| line == "drained"), "{:?}", said.last());
        let handled: Vec<u64> =
            said.iter().filter_map(|line| line.strip_prefix("handled ")?.parse().ok()).collect();
        assert!(handled.len() < usize::try_from(EVENTS).unwrap() * 9 / 10, "{} were handled", handled.len());

        let handled = Arc::new(Mutex::new(handled));
        let noting = Arc::clone(&handled);
        let consumer = start(&bus, move |number| noting.lock().unwrap().push(number)).await;
        assert_settled(&bus).await;
        consumer.shutdown().await.unwrap();
        let handled = handled.lock().unwrap().clone();
        check(&backend, &handled).await;
    }
}
