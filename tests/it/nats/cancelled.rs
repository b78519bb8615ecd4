//! Members that give up waiting at any moment, at any pace: what the server was about to send them goes to the next call
//! or to another member, and is not kept until its lease ends.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use a3s_event::{EventProvider, NatsProvider, SubscribeOptions};
use a3s_event_testkit::NatsServer;
use tokio::sync::Notify;

use super::super::random::Random;
use super::super::slow_tier;
use super::{connect, event};

/// A stranded event comes again only after this, long after the test has given up.
const ACK_WAIT_SECS: u64 = 120;
const EVERYTHING: Duration = Duration::from_secs(40);
const EVENTS: u64 = 400;
const MEMBERS: u64 = 4;

struct Seen {
    numbers: Mutex<BTreeSet<u64>>,
    complete: Notify,
}

async fn impatient_member(provider: Arc<NatsProvider>, seen: Arc<Seen>, mut random: Random) {
    let options = SubscribeOptions { ack_wait_secs: Some(ACK_WAIT_SECS), ..SubscribeOptions::default() };
    let mut member =
        provider.subscribe_durable_with_options("impatient", "events.>", &options).await.unwrap();
    loop {
        let patience = Duration::from_micros(random.below(3_000));
        let Ok(next) = tokio::time::timeout(patience, member.next_delivery()).await else { continue };
        let delivery = next.unwrap().expect("the provider is open");
        let number = delivery.event().payload.as_u64().unwrap();
        delivery.ack().await.unwrap();
        let mut numbers = seen.numbers.lock().unwrap();
        numbers.insert(number);
        if numbers.len() as u64 == EVENTS {
            seen.complete.notify_one();
        }
    }
}

async fn one_round(server: &NatsServer, seed: u64) {
    let provider = Arc::new(connect(server).await);
    let seen = Arc::new(Seen { numbers: Mutex::default(), complete: Notify::new() });
    let mut random = Random::new(seed);
    let mut members = tokio::task::JoinSet::new();
    for member in 1..=MEMBERS {
        let seed = Random::new(seed * 1_000 + member);
        members.spawn(impatient_member(Arc::clone(&provider), Arc::clone(&seen), seed));
    }
    for number in 0..EVENTS {
        provider.publish(&event("it", number)).await.unwrap();
        if random.below(2) == 0 {
            tokio::time::sleep(Duration::from_micros(random.below(2_000))).await;
        }
    }
    if tokio::time::timeout(EVERYTHING, seen.complete.notified()).await.is_err() {
        let numbers = seen.numbers.lock().unwrap();
        let missing: Vec<_> = (0..EVENTS).filter(|number| !numbers.contains(number)).collect();
        panic!("stranded with seed {seed}: {missing:?}");
    }
    members.shutdown().await;
    provider.unsubscribe("impatient").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_wait_strands_no_event() {
    let server = NatsServer::start().await;
    for seed in 1..=if slow_tier() { 100 } else { 3 } {
        one_round(&server, seed).await;
    }
}
