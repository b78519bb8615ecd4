//! Subscriptions that are dropped while the server sends them something.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::super::random::Random;
use super::*;

/// A stranded event comes again only after this, long after the test has given up.
const ACK_WAIT_SECS: u64 = 120;
const EVENTS: u64 = 300;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_subscription_strands_no_event() {
    let server = NatsServer::start().await;
    let provider = Arc::new(connect(&server).await);
    let options = SubscribeOptions { ack_wait_secs: Some(ACK_WAIT_SECS), ..SubscribeOptions::default() };
    provider.subscribe_durable_with_options("dropped", "events.>", &options).await.unwrap();
    let publishing = {
        let provider = Arc::clone(&provider);
        tokio::spawn(async move {
            for number in 0..EVENTS {
                provider.publish(&event("it", number)).await.unwrap();
                tokio::time::sleep(Duration::from_micros(500)).await;
            }
        })
    };
    let (mut random, mut seen) = (Random::new(7), BTreeSet::new());
    let started = Instant::now();
    while (seen.len() as u64) < EVENTS {
        let mut member = provider.subscribe_durable("dropped", "events.>").await.unwrap();
        let patience = Duration::from_micros(random.below(4_000));
        if let Ok(next) = tokio::time::timeout(patience, member.next_delivery()).await {
            let delivery = next.unwrap().unwrap();
            seen.insert(delivery.event().payload.as_u64().unwrap());
            delivery.ack().await.unwrap();
        }
        drop(member);
        if started.elapsed() > 2 * SOON {
            let missing: Vec<_> = (0..EVENTS).filter(|number| !seen.contains(number)).collect();
            panic!("stranded: {missing:?}");
        }
    }
    publishing.await.unwrap();
    // What the last ones left behind is looked after before the provider is closed.
    let closing = tokio::time::timeout(SOON, provider.close()).await;
    closing.unwrap().unwrap();
}
