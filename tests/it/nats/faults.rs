//! Crashes and stand-stills of the server under load, checked with a ledger: nothing acknowledged may be lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use a3s_event::{EventProvider, PublishOptions, SubscribeOptions, Subscription};
use a3s_event_testkit::NatsServer;
use tokio::sync::Mutex;

use super::{connect, event};

const PRODUCERS: u64 = 4;
const ACK_WAIT: Duration = Duration::from_secs(2);
/// No call may outlive its deadline by more than this.
const SLACK: Duration = Duration::from_millis(250);
/// Consuming has to have resumed and caught up this long after the fault.
const RESUMED: Duration = Duration::from_secs(5);
/// Deadline of a publish in these tests.
const PUBLISH: Duration = Duration::from_secs(1);

/// What happened to each event, which is the number `producer * 1_000_000 + counter`.
#[derive(Default)]
struct Ledger {
    acknowledged: BTreeSet<u64>,
    delivered: BTreeMap<u64, usize>,
    longest_publish: Duration,
}

type Shared = Arc<Mutex<Ledger>>;

/// Publishes one event after the other until it is told to stop, each as often as it takes.
async fn produce(provider: Arc<dyn EventProvider>, producer: u64, stop: Arc<AtomicBool>, ledger: Shared) {
    for counter in 0.. {
        let number = producer * 1_000_000 + counter;
        let event = event("load", number);
        let options = PublishOptions {
            msg_id: Some(number.to_string()),
            timeout_secs: Some(PUBLISH.as_secs()),
            ..PublishOptions::default()
        };
        loop {
            let started = Instant::now();
            let published = provider.publish_with_options(&event, &options).await;
            let mut ledger = ledger.lock().await;
            ledger.longest_publish = ledger.longest_publish.max(started.elapsed());
            match published {
                Ok(_) => {
                    ledger.acknowledged.insert(number);
                    break;
                }
                Err(error) => assert!(error.is_retryable(), "{error:?}"),
            }
            drop(ledger);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if stop.load(Ordering::Relaxed) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Receives and acks for ever.
async fn consume(mut member: Box<dyn Subscription>, ledger: Shared) {
    loop {
        match member.next_delivery().await {
            Ok(Some(delivery)) => {
                let number = delivery.event().payload.as_u64().unwrap();
                *ledger.lock().await.delivered.entry(number).or_default() += 1;
                // Not confirmed means that it comes again.
                let _ = delivery.ack().await;
            }
            // Found out at the end of the test.
            Ok(None) => return,
            Err(error) => assert!(!error.is_closed(), "{error:?}"),
        }
    }
}

/// Runs producers and two members of a durable consumer while `fault` happens, and checks the ledger.
async fn under_load(fault: impl AsyncFnOnce(&mut NatsServer)) -> Ledger {
    let mut server = NatsServer::start().await;
    let provider: Arc<dyn EventProvider> = Arc::new(connect(&server).await);
    let elsewhere: Arc<dyn EventProvider> = Arc::new(connect(&server).await);
    let ledger = Shared::default();
    let stop = Arc::new(AtomicBool::new(false));
    let options = SubscribeOptions { ack_wait_secs: Some(ACK_WAIT.as_secs()), ..SubscribeOptions::default() };
    let mut members = Vec::new();
    for provider in [&provider, &elsewhere] {
        let member = provider.subscribe_durable_with_options("workers", "events.>", &options).await.unwrap();
        members.push(tokio::spawn(consume(member, Arc::clone(&ledger))));
    }
    let producers: Vec<_> = (1..=PRODUCERS)
        .map(|producer| {
            let provider = Arc::clone(if producer % 2 == 0 { &provider } else { &elsewhere });
            tokio::spawn(produce(provider, producer, Arc::clone(&stop), Arc::clone(&ledger)))
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    fault(&mut server).await;
    let over = Instant::now();
    stop.store(true, Ordering::Relaxed);
    for producer in producers {
        producer.await.unwrap();
    }
    // Everything acknowledged must be delivered.
    loop {
        let ledger = ledger.lock().await;
        let missing =
            ledger.acknowledged.iter().filter(|number| !ledger.delivered.contains_key(number)).count();
        if missing == 0 {
            break;
        }
        assert!(over.elapsed() < RESUMED, "{missing} acknowledged events were not delivered");
        drop(ledger);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let stored = provider.history(None, usize::MAX).await.unwrap();
    let distinct: BTreeSet<_> = stored.iter().map(|event| event.payload.as_u64().unwrap()).collect();
    for member in members {
        assert!(!member.is_finished(), "a member has ended");
        member.abort();
    }
    let ledger = std::mem::take(&mut *ledger.lock().await);
    let lost: Vec<_> = ledger.acknowledged.difference(&distinct).collect();
    assert!(lost.is_empty(), "acknowledged and not stored: {lost:?}");
    assert_eq!(stored.len(), distinct.len(), "events that were stored twice");
    assert!(ledger.delivered.keys().all(|number| distinct.contains(number)), "delivered and not stored");
    assert!(ledger.longest_publish < PUBLISH + SLACK, "a publish took {:?}", ledger.longest_publish);
    ledger
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_crashes_of_the_server_lose_nothing() {
    let ledger = under_load(async |server: &mut NatsServer| {
        for _ in 0..3 {
            server.kill();
            tokio::time::sleep(Duration::from_millis(300)).await;
            server.start_again().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    })
    .await;
    assert!(ledger.acknowledged.len() > 200, "only {} were published", ledger.acknowledged.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stand_still_of_twice_the_ack_wait_loses_nothing() {
    let ledger = under_load(async |server: &mut NatsServer| {
        server.freeze().await;
        tokio::time::sleep(2 * ACK_WAIT).await;
        server.thaw();
        tokio::time::sleep(Duration::from_millis(500)).await;
    })
    .await;
    assert!(ledger.acknowledged.len() > 100, "only {} were published", ledger.acknowledged.len());
}
