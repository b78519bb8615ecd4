//! Acks that are sent and confirmed later: what waits for them, and what becomes of them when the connection or the server ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use a3s_event::{ErrorKind, EventProvider, NatsConfig, NatsProvider, SubscribeOptions, Subscription};
use a3s_event_testkit::NatsServer;
use a3s_event_testkit::servers::fault_proxy::{Direction, FaultProxy, Verdict};
use a3s_event_testkit::servers::nats::protocol::{Message, frame_length};

use crate::eventually;

use super::{SOON, config, connect, event, publish_all};

/// How many events of `worker` are delivered and not settled, and how many were delivered again.
async fn unsettled(provider: &NatsProvider) -> (u64, u64) {
    let consumers = provider.consumers().await.unwrap();
    let worker = consumers.iter().find(|consumer| consumer.name == "worker").unwrap();
    (worker.pending, worker.redelivered)
}

async fn publish(provider: &NatsProvider, count: u64) {
    publish_all(provider, &(1..=count).map(|number| event("a", number)).collect::<Vec<_>>()).await;
}

async fn ack(subscription: &mut impl Subscription, count: usize) {
    for _ in 0..count {
        let delivery =
            tokio::time::timeout(SOON, subscription.next_delivery()).await.unwrap().unwrap().unwrap();
        tokio::time::timeout(SOON, delivery.ack()).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn an_ack_waits_neither_for_the_server_nor_for_ever() {
    let server = NatsServer::start().await;
    let provider = NatsProvider::builder(NatsConfig { request_timeout_secs: 2, ..config(&server) })
        .max_unconfirmed_acks(3)
        .connect()
        .await
        .unwrap();
    publish(&provider, 4).await;
    let client = provider.client();
    let mut subscription = client.subscribe_durable("worker", "events.>").await.unwrap();
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(subscription.next_delivery().await.unwrap().unwrap());
    }
    server.freeze().await;
    let last = held.pop().unwrap();
    for delivery in held {
        tokio::time::timeout(SOON, delivery.ack()).await.unwrap().unwrap();
    }
    // As many as may be are on their way: the next one waits, and not for ever.
    let error = last.ack().await.unwrap_err();
    assert!(error.kind() == ErrorKind::Ack && error.is_retryable(), "{error:?}");
    server.thaw();
    subscription.flush().await.unwrap();
    assert_eq!(unsettled(&provider).await, (1, 0));
}

#[tokio::test]
async fn what_a_lost_connection_swallowed_is_acked_again() {
    let server = NatsServer::start().await;
    let proxy = FaultProxy::start(server.address(), frame_length, 20_261_130).await;
    let through = NatsConfig { url: format!("nats://{}", proxy.address()), ..config(&server) };
    let provider = NatsProvider::connect(through).await.unwrap();
    publish(&provider, 20).await;
    let options = SubscribeOptions { ack_wait_secs: Some(3), ..SubscribeOptions::default() };
    let client = provider.client();
    let mut subscription =
        client.subscribe_durable_with_options("worker", "events.>", &options).await.unwrap();
    let swallowed = Arc::new(AtomicBool::new(false));
    let is_swallowed = Arc::clone(&swallowed);
    proxy.filter(move |frame| {
        let is_ack = frame.direction == Direction::ToServer
            && Message::parse(frame.bytes).is_some_and(|message| message.subject.starts_with("$JS.ACK."));
        is_swallowed.fetch_or(is_ack, Ordering::Relaxed);
        if is_ack { Verdict::Drop } else { Verdict::Forward }
    });
    ack(&mut subscription, 20).await;
    while !swallowed.load(Ordering::Relaxed) {
        tokio::task::yield_now().await;
    }
    proxy.forward_all();
    proxy.reset();
    tokio::time::timeout(SOON, subscription.flush()).await.unwrap().unwrap();
    let elsewhere = connect(&server).await;
    assert_eq!(unsettled(&elsewhere).await, (0, 0));
    // Behind the lease nothing of it comes again, here or elsewhere.
    let again = tokio::time::timeout(Duration::from_secs(4), subscription.next_delivery()).await;
    assert!(again.is_err(), "{again:?}");
}

#[tokio::test]
async fn what_comes_again_while_its_ack_is_on_its_way_is_not_handed_out() {
    let server = NatsServer::start().await;
    let proxy = FaultProxy::start(server.address(), frame_length, 20_261_201).await;
    let through = NatsConfig { url: format!("nats://{}", proxy.address()), ..config(&server) };
    let provider = NatsProvider::connect(through).await.unwrap();
    publish(&provider, 1).await;
    let options = SubscribeOptions { ack_wait_secs: Some(1), ..SubscribeOptions::default() };
    let client = provider.client();
    let mut subscription =
        client.subscribe_durable_with_options("worker", "events.>", &options).await.unwrap();
    // The first attempt to acknowledge is lost, as often as it is made.
    proxy.filter(|frame| {
        let is_ack = frame.direction == Direction::ToServer
            && Message::parse(frame.bytes)
                .is_some_and(|message| message.subject.starts_with("$JS.ACK.A3S_EVENTS.worker.1."));
        if is_ack { Verdict::Drop } else { Verdict::Forward }
    });
    ack(&mut subscription, 1).await;
    let again = tokio::time::timeout(Duration::from_secs(5), subscription.next_delivery()).await;
    assert!(again.is_err(), "{again:?}");
    let elsewhere = connect(&server).await;
    assert_eq!(unsettled(&elsewhere).await.0, 0, "its second delivery was acknowledged");
}

#[tokio::test]
async fn what_a_crashed_server_has_forgotten_comes_again() {
    let mut server = NatsServer::start().await;
    let provider = connect(&server).await;
    publish(&provider, 3).await;
    let client = provider.client();
    let options = SubscribeOptions { ack_wait_secs: Some(1), ..SubscribeOptions::default() };
    let mut subscription =
        client.subscribe_durable_with_options("worker", "events.>", &options).await.unwrap();
    ack(&mut subscription, 3).await;
    server.kill();
    server.start_again().await;
    // Whatever reached the disk: what flush says is true, and what it does not say comes again.
    eventually("the server is back", async || subscription.flush().await.is_ok()).await;
    while unsettled(&provider).await.0 + subscription.lag().await.unwrap() > 0 {
        ack(&mut subscription, 1).await;
        subscription.flush().await.unwrap();
    }
}

#[tokio::test]
async fn an_orderly_end_leaves_nothing_to_be_delivered_again() {
    let server = NatsServer::start().await;
    for ends in ["flush", "close", "provider"] {
        let provider = connect(&server).await;
        publish(&provider, 50).await;
        let mut subscription = provider.client().subscribe_durable("worker", "events.>").await.unwrap();
        ack(&mut subscription, 50).await;
        match ends {
            "flush" => subscription.flush().await.unwrap(),
            "close" => subscription.close().await.unwrap(),
            _ => provider.close().await.unwrap(),
        }
        assert_eq!(unsettled(&connect(&server).await).await, (0, 0), "{ends}");
    }
}
