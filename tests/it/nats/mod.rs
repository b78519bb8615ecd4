//! The NATS provider on real servers.

#![allow(clippy::unwrap_used, reason = "what cannot be set up fails the test, as it should")]

mod acks;
mod ahead;
mod batches;
mod cancelled;
mod consumer_process;
mod durations;
mod faults;
mod gone;
mod hostile;
mod ledger;
mod listings;
mod network;
mod overtaken;
mod resets;
mod security;
mod settings;
mod strays;
#[cfg(feature = "cloudevents")]
mod wire;

use std::time::{Duration, Instant};

use a3s_event::provider::nats::NatsProviderBuilder;
use a3s_event::provider::{HistoryQuery, PublishRequest};
use a3s_event::{
    ErrorKind, Event, EventBus, EventError, EventProvider, NatsConfig, NatsProvider, PublishOptions,
    StorageType, SubscribeOptions, Subscription, SubscriptionFilter,
};
use a3s_event_testkit::NatsServer;
use a3s_event_testkit::servers::nats::{OLDEST, unpacked};
use serde_json::json;

/// How long anything may take that waits for no lease, on the busiest machine.
const SOON: Duration = Duration::from_secs(30);
/// A call that outlives its deadline by more than this has none. A busy machine wakes it late, so that less decides nothing.
const SLACK: Duration = Duration::from_secs(2);

fn config(server: &NatsServer) -> NatsConfig {
    NatsConfig { url: server.url(), ..NatsConfig::default() }
}

async fn connect(server: &NatsServer) -> NatsProvider {
    NatsProvider::connect(config(server)).await.unwrap()
}

fn event(topic: &str, number: u64) -> Event {
    Event::new(format!("events.{topic}"), "it", number.to_string(), "it", json!(number))
}

fn numbers(events: &[Event]) -> Vec<u64> {
    events.iter().map(|event| event.payload.as_u64().unwrap()).collect()
}

async fn publish_all(provider: &NatsProvider, events: &[Event]) {
    for chunk in events.chunks(1_000) {
        let batch: Vec<_> = chunk.iter().map(PublishRequest::from).collect();
        for answer in provider.publish_batch(&batch).await {
            answer.unwrap();
        }
    }
}

/// Takes and acks the next event, which must come soon.
async fn ack_next(subscription: &mut dyn Subscription) -> u64 {
    let delivery = tokio::time::timeout(SOON, subscription.next_delivery()).await.unwrap().unwrap().unwrap();
    let number = delivery.event().payload.as_u64().unwrap();
    delivery.ack_confirmed().await.unwrap();
    number
}

/// A stream as the earlier versions made it: without direct reads.
async fn stream_of_an_earlier_version(server: &NatsServer) -> NatsProvider {
    let provider = connect(server).await;
    let jetstream = provider.client().jetstream_context();
    let subject = "STREAM.UPDATE.A3S_EVENTS";
    let update = json!({
        "name": "A3S_EVENTS", "subjects": ["events.>"], "retention": "limits", "storage": "file",
        "max_msgs": 100_000, "max_age": 604_800_000_000_000_u64, "max_bytes": -1, "num_replicas": 1,
        "discard": "old", "allow_direct": false, "duplicate_window": 120_000_000_000_u64
    });
    let answer: serde_json::Value = jetstream.request(subject, &update).await.unwrap();
    assert_eq!(answer.get("error"), None, "{answer}");
    connect(server).await
}

#[tokio::test]
async fn history_is_the_newest_of_many_and_leaves_no_consumer() {
    let server = NatsServer::start().await;
    let direct = connect(&server).await;
    let events: Vec<_> =
        (1..=6_000).map(|n| event(if n % 1_000 == 7 { "rare.x" } else { "common.x" }, n)).collect();
    publish_all(&direct, &events).await;
    let through_consumer = stream_of_an_earlier_version(&server).await;
    for provider in [&direct, &through_consumer] {
        let newest = provider.history(None, 50).await.unwrap();
        assert_eq!(numbers(&newest), (5_951..=6_000).rev().collect::<Vec<_>>());
        let common = provider.history(Some("events.common.>"), 600).await.unwrap();
        let expected = (1..=6_000_u64).rev().filter(|n| n % 1_000 != 7).take(600).collect::<Vec<_>>();
        assert_eq!(numbers(&common), expected);
        let rare = provider.history(Some("events.rare.>"), 50).await.unwrap();
        assert_eq!(numbers(&rare), [5_007, 4_007, 3_007, 2_007, 1_007, 7]);
        let rare = provider.history(Some("events.rare.x"), 2).await.unwrap();
        assert_eq!(numbers(&rare), [5_007, 4_007]);
        let page = HistoryQuery::new(3).filter("events.rare.*").before_sequence(3_007);
        let page: Vec<_> =
            provider.query(&page).await.unwrap().iter().map(|stored| stored.sequence).collect();
        assert_eq!(page, [2_007, 1_007, 7]);
        let started = Instant::now();
        assert!(provider.history(Some("events.absent.>"), 50).await.unwrap().is_empty());
        assert!(started.elapsed() < SOON, "an absent category took {:?}", started.elapsed());
        assert_eq!(provider.info().await.unwrap().consumers, 0);
    }
}

#[tokio::test]
async fn a_poison_message_surfaces_once_and_the_events_behind_it_are_handled() {
    let server = NatsServer::start().await;
    let provider = connect(&server).await;
    let jetstream = provider.client().jetstream_context();
    provider.publish(&event("a", 1)).await.unwrap();
    let deep = "[".repeat(200);
    for raw in ["not json", "{\"id\":1}", &deep] {
        jetstream.publish("events.a", raw.to_owned().into()).await.unwrap().await.unwrap();
    }
    provider.publish(&event("a", 2)).await.unwrap();
    let options = SubscribeOptions { ack_wait_secs: Some(1), ..Default::default() };
    let mut subscription = provider.subscribe_with_options("events.>", &options).await.unwrap();
    assert_eq!(ack_next(&mut *subscription).await, 1);
    for sequence in 2..=4 {
        match subscription.next().await {
            Err(EventError::Undecodable { sequence: found, .. }) => assert_eq!(found, sequence),
            other => panic!("expected Undecodable, found {other:?}"),
        }
    }
    assert_eq!(ack_next(&mut *subscription).await, 2);
    let silence = tokio::time::timeout(Duration::from_millis(1_500), subscription.next()).await;
    assert!(silence.is_err(), "found {silence:?}");
    // History has the events only.
    assert_eq!(numbers(&provider.history(None, 10).await.unwrap()), [2, 1]);
}

#[tokio::test]
async fn subjects_that_look_alike_have_consumers_of_their_own() {
    let server = NatsServer::start().await;
    let bus = EventBus::new(connect(&server).await);
    let subjects = ["events.m.a.b", "events.m.a-b", "events.m.*", "events.m.>"];
    let filter = SubscriptionFilter {
        subscriber_id: "acme-eu".to_owned(),
        subjects: subjects.map(str::to_owned).to_vec(),
        durable: true,
        options: None,
    };
    bus.update_subscription(filter).await.unwrap();
    let mut subscriptions = bus.create_subscriber("acme-eu").await.unwrap();
    bus.publish_event(&event("m.a.b", 1)).await.unwrap();
    bus.publish_event(&event("m.a-b", 2)).await.unwrap();
    let expected: [&[u64]; 4] = [&[1], &[2], &[2], &[1, 2]];
    for (subscription, expected) in subscriptions.iter_mut().zip(expected) {
        for number in expected {
            assert_eq!(ack_next(&mut **subscription).await, *number);
        }
    }
    let names: Vec<_> = bus.consumers().await.unwrap().into_iter().map(|consumer| consumer.name).collect();
    assert_eq!(names.len(), 4);
    assert!(names.iter().any(|name| name == "acme-eu-events-m-a-b"), "{names:?}");
}

#[tokio::test]
async fn a_durable_consumer_of_an_earlier_version_is_taken_over() {
    let server = NatsServer::start().await;
    let provider = stream_of_an_earlier_version(&server).await;
    // As the earlier versions made it: the server's own backoff, and none of our metadata.
    let made: serde_json::Value = provider
        .client()
        .jetstream_context()
        .request(
            "CONSUMER.CREATE.A3S_EVENTS.analyst-events-a.events.a",
            &json!({ "stream_name": "A3S_EVENTS", "config": {
                "durable_name": "analyst-events-a", "filter_subject": "events.a", "ack_policy": "explicit",
                "deliver_policy": "all", "replay_policy": "instant", "max_deliver": 5, "backoff": [1_000_000_000_u64]
            }}),
        )
        .await
        .unwrap();
    assert_eq!(made.get("error"), None, "{made}");
    provider.publish(&event("a", 1)).await.unwrap();
    let mut subscription = provider.subscribe_durable("analyst-events-a", "events.a").await.unwrap();
    assert_eq!(ack_next(&mut *subscription).await, 1);
    drop(subscription);
    provider.publish(&event("a", 2)).await.unwrap();
    let options =
        SubscribeOptions { max_deliver: Some(5), backoff_secs: vec![2], ..SubscribeOptions::default() };
    let opening = provider.subscribe_durable_with_options("analyst-events-a", "events.a", &options);
    assert_eq!(ack_next(&mut *opening.await.unwrap()).await, 2);
    let listed = provider.consumers().await.unwrap();
    assert_eq!((listed.len(), listed[0].durable, listed[0].filter.as_str()), (1, true, "events.a"));
    match provider.subscribe_durable("analyst-events-a", "events.b").await.map(drop) {
        Err(EventError::Conflict { field, .. }) => assert_eq!(field, "filter"),
        other => panic!("expected a conflict, found {other:?}"),
    }
}

#[tokio::test]
async fn the_message_is_the_json_of_the_event() {
    let server = NatsServer::start().await;
    let provider = connect(&server).await;
    let published = event("a.b", 1);
    let options =
        PublishOptions { msg_id: Some("m-1".to_owned()), expected_sequence: Some(0), ..Default::default() };
    let sequence = provider.publish_with_options(&published, &options).await.unwrap();
    let stream = provider.client().jetstream_context().get_stream("A3S_EVENTS").await.unwrap();
    let stored = stream.get_raw_message(sequence).await.unwrap();
    assert_eq!(stored.subject.as_str(), "events.a.b");
    assert_eq!(stored.payload, serde_json::to_vec(&published).unwrap());
    assert_eq!(stored.headers.get("Nats-Msg-Id").unwrap().as_str(), "m-1");
}

#[tokio::test]
async fn a_stream_that_differs_is_a_conflict_that_names_the_field() {
    let server = NatsServer::start().await;
    connect(&server).await;
    let conflict = async |builder: NatsProviderBuilder| match builder.connect().await.map(drop) {
        Err(EventError::Conflict { field, .. }) => field,
        other => panic!("expected a conflict, found {other:?}"),
    };
    let memory = NatsConfig { storage: StorageType::Memory, ..config(&server) };
    assert_eq!(conflict(NatsProvider::builder(memory)).await, "storage");
    let prefix = NatsConfig { subject_prefix: "other".to_owned(), ..config(&server) };
    assert_eq!(conflict(NatsProvider::builder(prefix)).await, "subjects");
    let builder = || NatsProvider::builder(config(&server));
    assert_eq!(conflict(builder().dedup_window(Duration::from_secs(7))).await, "dedup_window");
    assert_eq!(conflict(builder().compression(true)).await, "compression");
    // Other limits are no conflict: the stream keeps its own.
    NatsProvider::connect(NatsConfig { max_events: 7, ..config(&server) }).await.unwrap();
}

#[tokio::test]
async fn no_server_is_an_error_in_time() {
    let mut server = NatsServer::start().await;
    let port = server.port();
    server.kill();
    // The credentials are not shown, and every server is named.
    let url = format!("nats://alice:canary@127.0.0.1:{port},nats://alice:canary@localhost:{port}");
    let started = Instant::now();
    let refused = NatsProvider::connect(NatsConfig { url, ..NatsConfig::default() }).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Connection, "{refused}");
    assert!(refused.is_retryable() && started.elapsed() < Duration::from_secs(5) + SLACK);
    let text = refused.to_string();
    let servers = format!("nats-server at nats://127.0.0.1:{port},nats://localhost:{port} cannot be reached");
    assert!(text.contains(&servers) && text.contains("a retry helps once the server runs"), "{text}");
    assert!(!format!("{refused} {refused:?}").contains("canary"), "{refused:?}");

    let url = "nats://no-such-host.invalid:4222".to_owned();
    let text =
        NatsProvider::connect(NatsConfig { url, ..NatsConfig::default() }).await.unwrap_err().to_string();
    assert!(text.contains("nats-server at nats://no-such-host.invalid:4222 cannot be reached"), "{text}");
    assert!(text.contains("a retry helps once the name resolves"), "{text}");

    // It accepts the connection and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", silent.local_addr().unwrap());
    let config = NatsConfig { url: url.clone(), connect_timeout_secs: 1, ..NatsConfig::default() };
    let late = NatsProvider::connect(config).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Connection, "{late}");
    assert!(late.to_string().contains(&format!("nats-server at {url}")), "{late}");
    assert!(late.to_string().contains("a retry helps"), "{late}");
}

#[tokio::test]
async fn a_publish_timeout_of_the_provider_ends_a_publish() {
    let server = NatsServer::start().await;
    let builder = NatsProvider::builder(config(&server)).publish_timeout(Duration::from_millis(300));
    let provider = builder.connect().await.unwrap();
    assert_eq!(provider.client().replicas(), 1);
    server.freeze().await;
    let started = Instant::now();
    let unknown = provider.publish(&event("a", 1)).await.unwrap_err();
    assert!(unknown.may_be_stored() && started.elapsed() < Duration::from_millis(300) + SLACK, "{unknown:?}");
    server.thaw();
}

#[tokio::test]
async fn a_frozen_server_leaves_the_outcome_open_and_the_retry_stores_once() {
    let server = NatsServer::start().await;
    let provider = connect(&server).await;
    provider.publish(&event("a", 1)).await.unwrap();
    let options = PublishOptions {
        msg_id: Some("order-2".to_owned()),
        timeout_secs: Some(1),
        ..PublishOptions::default()
    };
    server.freeze().await;
    let started = Instant::now();
    let unknown = provider.publish_with_options(&event("a", 2), &options).await.unwrap_err();
    let took = started.elapsed();
    assert!(unknown.may_be_stored() && unknown.is_retryable(), "{unknown:?}");
    assert!(took < Duration::from_secs(1) + SLACK, "the call outlived its deadline: {took:?}");
    server.thaw();
    let sequence = provider.publish_with_options(&event("a", 2), &options).await.unwrap();
    assert_eq!(sequence, 2);
    assert_eq!(numbers(&provider.history(None, 10).await.unwrap()), [2, 1]);
}

#[tokio::test]
async fn a_waiting_subscription_goes_on_after_a_crash_of_the_server() {
    let mut server = NatsServer::start().await;
    let provider = connect(&server).await;
    let mut durable = provider.subscribe_durable("survivor", "events.>").await.unwrap();
    provider.publish(&event("a", 1)).await.unwrap();
    assert_eq!(ack_next(&mut *durable).await, 1);
    let waiting = tokio::spawn(async move {
        let mut received = Vec::new();
        while received.last() != Some(&2) {
            received.push(ack_next(&mut *durable).await);
        }
        received
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.kill();
    server.start_again().await;
    let ready = Instant::now();
    let options = PublishOptions { msg_id: Some("two".to_owned()), ..PublishOptions::default() };
    while provider.publish_with_options(&event("a", 2), &options).await.is_err() {
        assert!(ready.elapsed() < SOON, "publishing did not resume");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let received = waiting.await.unwrap();
    assert!(ready.elapsed() < SOON, "consuming resumed after {:?}", ready.elapsed());
    // The position may be behind after a crash: the first event can come again.
    assert!(received == [2] || received == [1, 2], "{received:?}");
    assert!(provider.health().await.unwrap());
}

/// The reference and, where it could be had, the oldest supported server: what ends there without a word is noticed too.
async fn servers() -> Vec<NatsServer> {
    let mut servers = vec![NatsServer::start().await];
    if let Some(oldest) = unpacked(OLDEST) {
        servers.push(NatsServer::start_binary(&oldest, "").await);
    }
    servers
}

#[tokio::test]
async fn a_consumer_deleted_by_hand_ends_its_subscription() {
    for server in servers().await {
        let provider = connect(&server).await;
        let stream = provider.client().jetstream_context().get_stream("A3S_EVENTS").await.unwrap();
        let mut ephemeral = provider.subscribe("events.>").await.unwrap();
        let name = provider.consumers().await.unwrap().remove(0).name;
        stream.delete_consumer(&name).await.unwrap();
        let gone = tokio::time::timeout(SOON, ephemeral.next()).await.unwrap().unwrap_err();
        assert!(gone.is_closed(), "{gone}");
        assert!(matches!(ephemeral.next().await, Ok(None)));
    }
}

#[tokio::test]
async fn a_stream_deleted_by_hand_ends_what_waits_on_it_and_can_be_made_again() {
    for server in servers().await {
        connect(&server).await;
        // One that may make the stream does so at its next publish; this one may not.
        let provider =
            NatsProvider::builder(config(&server)).create_if_missing(false).connect().await.unwrap();
        let mut durable = provider.subscribe_durable("reader", "events.>").await.unwrap();
        let waiting = tokio::spawn(async move { durable.next_delivery().await.map(|next| next.is_none()) });
        provider.client().jetstream_context().delete_stream("A3S_EVENTS").await.unwrap();
        // The end, after which a program subscribes again.
        assert!(tokio::time::timeout(SOON, waiting).await.unwrap().unwrap().unwrap());
        assert!(!provider.health().await.unwrap());
        let lost = provider.publish(&event("a", 1)).await.unwrap_err();
        assert!(!lost.may_be_stored() || lost.kind() == ErrorKind::Timeout, "{lost:?}");
        let provider = connect(&server).await;
        let mut durable = provider.subscribe_durable("reader", "events.>").await.unwrap();
        provider.publish(&event("a", 2)).await.unwrap();
        assert_eq!(ack_next(&mut *durable).await, 2);
    }
}

#[tokio::test]
async fn a_consumer_of_the_whole_stream_learns_what_retention_dropped() {
    let server = NatsServer::start().await;
    let limited = NatsConfig { max_events: 5, ..config(&server) };
    let provider = NatsProvider::connect(limited).await.unwrap();
    let mut durable = provider.subscribe_durable("overtaken", "events.>").await.unwrap();
    provider.publish(&event("a", 1)).await.unwrap();
    assert_eq!(ack_next(&mut *durable).await, 1);
    for number in 2..=12 {
        provider.publish(&event("a", number)).await.unwrap();
    }
    match tokio::time::timeout(SOON, durable.next_delivery()).await.unwrap() {
        // 8 to 12 are left.
        Err(EventError::Lagged { missed, .. }) => assert_eq!(missed, 6),
        other => panic!("expected Lagged, found {other:?}"),
    }
    for number in 8..=12 {
        assert_eq!(ack_next(&mut *durable).await, number);
    }
}

#[test]
fn a_subscription_can_be_dropped_outside_a_runtime() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (server, provider, subscription) = runtime.block_on(async {
        let server = NatsServer::start().await;
        let provider = connect(&server).await;
        let subscription = provider.subscribe("events.>").await.unwrap();
        (server, provider, subscription)
    });
    drop(subscription);
    runtime.block_on(async {
        let started = Instant::now();
        while provider.info().await.unwrap().consumers > 0 {
            assert!(started.elapsed() < SOON, "the consumer is still there");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    drop(runtime);
    drop(provider);
    drop(server);
}

/// Publishes until it succeeds, as a program does that retries.
async fn publish_again(provider: &NatsProvider, event: &Event) -> u64 {
    let options = PublishOptions { msg_id: Some(event.id.clone()), ..PublishOptions::default() };
    let started = Instant::now();
    loop {
        match provider.publish_with_options(event, &options).await {
            Ok(sequence) => return sequence,
            Err(error) => assert!(error.is_retryable() && started.elapsed() < SOON, "{error:?}"),
        }
    }
}
