//! Faults of the network between a program and a real server, through the fault proxy.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use a3s_event::provider::nats::NatsProviderBuilder;
use a3s_event::{ErrorKind, EventProvider, NatsConfig, NatsProvider, PublishOptions, SubscribeOptions};
use a3s_event_testkit::NatsServer;
use a3s_event_testkit::servers::fault_proxy::{Direction, FaultProxy, Frame, Verdict};
use a3s_event_testkit::servers::nats::protocol::{Message, frame_length};
use serde_json::Value;

use super::ledger::{Account, under_load};
use super::{SLACK, SOON, ack_next, event, numbers};

const SEED: u64 = 20_260_101;

/// A server and a proxy before it.
async fn proxied() -> (NatsServer, FaultProxy, NatsProviderBuilder) {
    let server = NatsServer::start().await;
    let proxy = FaultProxy::start(server.address(), frame_length, SEED).await;
    let config = NatsConfig {
        url: format!("nats://{}", proxy.address()),
        request_timeout_secs: 2,
        ..NatsConfig::default()
    };
    (server, proxy, NatsProvider::builder(config))
}

fn is_sent_to(frame: &Frame<'_>, subjects: &str) -> bool {
    frame.direction == Direction::ToServer
        && Message::parse(frame.bytes).is_some_and(|message| message.subject.starts_with(subjects))
}

fn is_settlement(frame: &Frame<'_>) -> bool {
    is_sent_to(frame, "$JS.ACK.")
}

/// The answer to a publish: `{"stream": ..., "seq": ...}`.
fn is_publish_ack(frame: &Frame<'_>) -> bool {
    let answer = Message::parse(frame.bytes).and_then(|message| serde_json::from_slice(message.payload).ok());
    frame.direction == Direction::ToClient
        && answer.is_some_and(|answer: Value| answer["stream"].is_string() && answer["seq"].is_u64())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resets_in_the_middle_of_frames_lose_nothing() {
    let (_server, proxy, builder) = proxied().await;
    under_load(builder, async |account: &Account| {
        let cuts = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&cuts);
        proxy.filter(move |frame| {
            // What a connection begins with goes through, so that there is load on each.
            if frame.number > 50 && frame.one_in(300) {
                counted.fetch_add(1, Ordering::Relaxed);
                return Verdict::Cut;
            }
            Verdict::Forward
        });
        let started = Instant::now();
        while cuts.load(Ordering::Relaxed) < 20 {
            assert!(started.elapsed() < 6 * SOON, "only {cuts:?} connections were cut");
            account.resumes().await;
        }
        proxy.forward_all();
        println!("{cuts:?} of {} connections were cut", proxy.connections());
        account.resumes().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_longer_than_the_deadlines_loses_nothing() {
    let (_server, proxy, builder) = proxied().await;
    under_load(builder, async |account: &Account| {
        for held in [&[Direction::ToServer, Direction::ToClient][..], &[Direction::ToClient]] {
            for direction in held {
                proxy.hold(*direction);
            }
            // Longer than a publish, a settlement and a request may take.
            tokio::time::sleep(Duration::from_millis(3_500)).await;
            proxy.release();
            account.resumes().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_into_a_black_hole_ends_in_time() {
    let (_server, proxy, builder) = proxied().await;
    let deadline = Duration::from_secs(2);
    let provider = builder.connect().await.unwrap();
    let mut subscription = provider.subscribe_durable("a", "events.>").await.unwrap();
    for number in 1..=2 {
        provider.publish(&event("a", number)).await.unwrap();
    }
    let delivery = subscription.next_delivery().await.unwrap().unwrap();
    for direction in [Direction::ToServer, Direction::ToClient] {
        proxy.hold(direction);
    }
    let started = Instant::now();
    let third = event("a", 3);
    let (publish, ack, history, consumers, info, health, subscribe, unsubscribe) = tokio::join!(
        async { (provider.publish(&third).await.unwrap_err(), started.elapsed()) },
        async { (delivery.ack_confirmed().await.unwrap_err(), started.elapsed()) },
        async { (provider.history(None, 5).await.unwrap_err(), started.elapsed()) },
        async { (provider.consumers().await.unwrap_err(), started.elapsed()) },
        async { (provider.info().await.unwrap_err(), started.elapsed()) },
        async { (provider.health().await, started.elapsed()) },
        async {
            (provider.subscribe_durable("b", "events.>").await.map(drop).unwrap_err(), started.elapsed())
        },
        async { (provider.unsubscribe("c").await.unwrap_err(), started.elapsed()) },
    );
    for (what, (error, took)) in [
        ("publish", publish),
        ("ack", ack),
        ("history", history),
        ("consumers", consumers),
        ("info", info),
        ("subscribe", subscribe),
        ("unsubscribe", unsubscribe),
    ] {
        assert!(took < deadline + SLACK, "{what} took {took:?}: {error}");
        assert_eq!(
            error.may_be_stored(),
            what == "publish" || error.kind() == ErrorKind::Timeout,
            "{error:?}"
        );
        println!("{what} after {took:?}: {error}");
    }
    let (healthy, took) = health;
    assert!(!healthy.unwrap_or(false) && took < deadline + SLACK, "health took {took:?}");
    proxy.release();
    while !provider.health().await.unwrap_or(false) {
        assert!(started.elapsed() < SOON, "the provider does not get healthy again");
    }
}

/// A cluster that is choosing a leader drops questions like this.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_that_gets_no_answer_is_asked_again() {
    let (_server, proxy, builder) = proxied().await;
    let provider = builder.connect().await.unwrap();
    provider.publish(&event("a", 1)).await.unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    proxy.filter(move |frame| {
        let is_question = is_sent_to(frame, "$JS.API.STREAM.INFO.");
        let is_dropped = is_question && counted.fetch_add(1, Ordering::Relaxed) < 2;
        if is_dropped { Verdict::Drop } else { Verdict::Forward }
    });
    assert_eq!(provider.info().await.unwrap().messages, 1);
    assert_eq!(asked.load(Ordering::Relaxed), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_settlement_is_told_and_the_event_comes_again() {
    let (_server, proxy, builder) = proxied().await;
    let provider = builder.connect().await.unwrap();
    let options = SubscribeOptions { ack_wait_secs: Some(3), ..SubscribeOptions::default() };
    let mut subscription = provider.subscribe_durable_with_options("a", "events.>", &options).await.unwrap();
    provider.publish(&event("a", 1)).await.unwrap();
    proxy.filter(|frame| if is_settlement(frame) { Verdict::Drop } else { Verdict::Forward });
    let delivery = subscription.next_delivery().await.unwrap().unwrap();
    let started = Instant::now();
    let told = delivery.ack_confirmed().await.unwrap_err();
    assert_eq!(told.kind(), ErrorKind::Ack, "{told:?}");
    assert!(started.elapsed() < Duration::from_secs(2) + SLACK, "{told} after {:?}", started.elapsed());
    proxy.forward_all();
    let again = tokio::time::timeout(SOON, subscription.next_delivery()).await.unwrap().unwrap().unwrap();
    assert_eq!(again.num_delivered(), 2);
    again.ack_confirmed().await.unwrap();
    assert_eq!(provider.consumers().await.unwrap()[0].pending, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_confirmation_is_told_and_the_settlement_counts() {
    let (_server, proxy, builder) = proxied().await;
    let provider = builder.connect().await.unwrap();
    let mut subscription = provider.subscribe_durable("a", "events.>").await.unwrap();
    for number in 1..=2 {
        provider.publish(&event("a", number)).await.unwrap();
    }
    let delivery = subscription.next_delivery().await.unwrap().unwrap();
    let confirmation = Mutex::new(None);
    proxy.filter(move |frame| {
        let Some(message) = Message::parse(frame.bytes) else { return Verdict::Forward };
        let mut inbox = confirmation.lock().unwrap();
        if is_settlement(frame) {
            *inbox = message.reply.map(str::to_owned);
        }
        let is_lost = frame.direction == Direction::ToClient && inbox.as_deref() == Some(message.subject);
        if is_lost { Verdict::Drop } else { Verdict::Forward }
    });
    let told = delivery.ack_confirmed().await.unwrap_err();
    assert_eq!(told.kind(), ErrorKind::Ack, "{told:?}");
    proxy.forward_all();
    // It is settled, and so not delivered again.
    assert_eq!(ack_next(&mut *subscription).await, 2);
    assert_eq!(provider.consumers().await.unwrap()[0].pending, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_in_ten_settlements_and_confirmations_lost_loses_no_event() {
    let (_server, proxy, builder) = proxied().await;
    under_load(builder, async |account: &Account| {
        let lost = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&lost);
        proxy.filter(move |frame| {
            if is_settlement(frame) && frame.one_in(10) {
                counted.fetch_add(1, Ordering::Relaxed);
                return Verdict::Drop;
            }
            Verdict::Forward
        });
        let started = Instant::now();
        while lost.load(Ordering::Relaxed) < 4 {
            assert!(started.elapsed() < 6 * SOON, "only {lost:?} settlements were lost");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        proxy.forward_all();
        account.resumes().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_whose_answer_is_lost_is_stored_once_by_its_retry() {
    let (_server, proxy, builder) = proxied().await;
    let provider = builder.connect().await.unwrap();
    assert_eq!(provider.publish(&event("a", 1)).await.unwrap(), 1);
    let lost = Arc::new(AtomicBool::new(false));
    let noted = Arc::clone(&lost);
    proxy.filter(move |frame| {
        let is_first = is_publish_ack(frame) && !noted.swap(true, Ordering::Relaxed);
        if is_first { Verdict::Drop } else { Verdict::Forward }
    });
    let options = PublishOptions {
        msg_id: Some("order-2".to_owned()),
        timeout_secs: Some(1),
        ..PublishOptions::default()
    };
    let started = Instant::now();
    let unknown = provider.publish_with_options(&event("a", 2), &options).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(1) + SLACK, "{:?}", started.elapsed());
    assert!(unknown.may_be_stored() && unknown.is_retryable(), "{unknown:?}");
    assert!(lost.load(Ordering::Relaxed), "no answer was lost");
    assert_eq!(provider.publish_with_options(&event("a", 2), &options).await.unwrap(), 2);
    assert_eq!(provider.publish(&event("a", 3)).await.unwrap(), 3);
    assert_eq!(numbers(&provider.history(None, 10).await.unwrap()), [3, 2, 1]);
}
