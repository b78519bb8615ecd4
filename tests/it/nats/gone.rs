//! Streams and consumers that are gone, or replaced by others of the same name.

use a3s_event::{DeliverPolicy, SubscriptionEnd};

use super::*;

/// The end of a subscription: what it says, after it has said so.
async fn end_of(subscription: &mut dyn Subscription) -> Option<SubscriptionEnd> {
    loop {
        match tokio::time::timeout(SOON, subscription.next_delivery()).await.unwrap() {
            Ok(None) => return subscription.end(),
            Ok(Some(delivery)) => panic!("expected the end, found {delivery:?}"),
            Err(error) => assert!(error.is_closed() || error.is_retryable(), "{error:?}"),
        }
    }
}

async fn jetstream(server: &NatsServer) -> async_nats::jetstream::Context {
    async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap())
}

async fn delete_consumer(server: &NatsServer, name: &str) {
    let stream = jetstream(server).await.get_stream("A3S_EVENTS").await.unwrap();
    stream.delete_consumer(name).await.unwrap();
}

/// Deletes the stream at the server, and makes another one of the same name.
async fn replace_stream(server: &NatsServer) {
    let jetstream = jetstream(server).await;
    jetstream.delete_stream("A3S_EVENTS").await.unwrap();
    let config = async_nats::jetstream::stream::Config {
        name: "A3S_EVENTS".to_owned(),
        subjects: vec!["events.>".to_owned()],
        allow_direct: true,
        ..Default::default()
    };
    jetstream.create_stream(config).await.unwrap();
}

#[tokio::test]
async fn an_open_subscription_has_no_end_and_a_closed_one_says_closed() {
    let server = NatsServer::start().await;
    let provider = connect(&server).await;
    let mut first = provider.subscribe_durable("a", "events.>").await.unwrap();
    let mut second = provider.subscribe("events.>").await.unwrap();
    assert_eq!((first.end(), second.end()), (None, None));
    first.close().await.unwrap();
    assert_eq!(end_of(&mut *first).await, Some(SubscriptionEnd::Closed));
    provider.close().await.unwrap();
    assert_eq!(end_of(&mut *second).await, Some(SubscriptionEnd::Closed));
}

#[tokio::test]
async fn a_deleted_consumer_ends_its_subscription_as_deleted_and_is_not_made_again() {
    for server in servers().await {
        let provider = connect(&server).await;
        // Deleted by an operator while a call waits, while none does, and by another member.
        let mut waits = provider.subscribe_durable("waits", "events.>").await.unwrap();
        let (end, ()) = tokio::join!(end_of(&mut *waits), async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            delete_consumer(&server, "waits").await;
        });
        assert_eq!(end, Some(SubscriptionEnd::Deleted));
        let mut busy = provider.subscribe_durable("busy", "events.>").await.unwrap();
        delete_consumer(&server, "busy").await;
        assert_eq!(end_of(&mut *busy).await, Some(SubscriptionEnd::Deleted));
        let mut mine = provider.subscribe_durable("mine", "events.>").await.unwrap();
        provider.unsubscribe("mine").await.unwrap();
        assert_eq!(end_of(&mut *mine).await, Some(SubscriptionEnd::Deleted));
        assert_eq!(provider.info().await.unwrap().consumers, 0);
    }
}

#[tokio::test]
async fn a_consumer_that_was_made_again_by_others_is_another_one() {
    for server in servers().await {
        let (provider, other) = (connect(&server).await, connect(&server).await);
        publish_all(&provider, &[event("a", 1), event("a", 2)]).await;
        let mut subscription = provider.subscribe_durable("shared", "events.>").await.unwrap();
        assert_eq!(ack_next(&mut *subscription).await, 1);
        // Nobody waits, so that nobody is told. Servers before 2.10 do not tell consumers apart that are made within
        // 20 ms.
        tokio::time::sleep(Duration::from_millis(50)).await;
        other.unsubscribe("shared").await.unwrap();
        let mut successor = other.subscribe_durable("shared", "events.>").await.unwrap();
        assert_eq!(end_of(&mut *subscription).await, Some(SubscriptionEnd::Deleted));
        // What it got by mistake came back.
        let mut numbers = [ack_next(&mut *successor).await, ack_next(&mut *successor).await];
        numbers.sort_unstable();
        assert_eq!(numbers, [1, 2]);
    }
}

#[tokio::test]
async fn a_lost_consumer_is_not_a_deleted_one() {
    let mut server = NatsServer::start().await;
    let provider = connect(&server).await;
    let made: serde_json::Value = provider
        .client()
        .jetstream_context()
        .request(
            "CONSUMER.CREATE.A3S_EVENTS.volatile.events.>",
            &json!({ "stream_name": "A3S_EVENTS", "config": {
                "durable_name": "volatile", "filter_subject": "events.>", "ack_policy": "explicit", "mem_storage": true
            }}),
        )
        .await
        .unwrap();
    assert_eq!(made.get("error"), None, "{made}");
    let mut volatile = provider.subscribe_durable("volatile", "events.>").await.unwrap();
    let mut kept = provider.subscribe_durable("kept", "events.>").await.unwrap();
    let mut ephemeral = provider.subscribe("events.>").await.unwrap();
    let reaped = provider.consumers().await.unwrap().into_iter().find(|info| !info.durable).unwrap().name;
    server.kill();
    server.start_again().await;
    let published = event("a", 1);
    let (end, _) = tokio::join!(end_of(&mut *volatile), publish_again(&provider, &published));
    // The server keeps a durable with memory storage over a restart as a new one, or not at all.
    assert_eq!(end, Some(SubscriptionEnd::Lost));
    assert_eq!(ack_next(&mut *kept).await, 1);
    assert_eq!(ack_next(&mut *ephemeral).await, 1);
    // As the server does it after a long time without a request.
    delete_consumer(&server, &reaped).await;
    assert_eq!(end_of(&mut *ephemeral).await, Some(SubscriptionEnd::Lost));
}

#[tokio::test]
async fn a_replaced_stream_ends_its_subscriptions_as_replaced() {
    for server in servers().await {
        let provider = connect(&server).await;
        publish_all(&provider, &(1..=50).map(|number| event("a", number)).collect::<Vec<_>>()).await;
        let mut durable = provider.subscribe_durable("reader", "events.>").await.unwrap();
        let mut ephemeral = provider.subscribe("events.>").await.unwrap();
        let mut waits = provider.subscribe("events.b").await.unwrap();
        for number in 1..=50 {
            assert_eq!(ack_next(&mut *durable).await, number);
            assert_eq!(ack_next(&mut *ephemeral).await, number);
        }
        let (end, ()) = tokio::join!(end_of(&mut *waits), async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            replace_stream(&server).await;
        });
        assert_eq!(end, Some(SubscriptionEnd::StreamReplaced));
        publish_all(&provider, &(51..=60).map(|number| event("a", number)).collect::<Vec<_>>()).await;
        assert_eq!(end_of(&mut *durable).await, Some(SubscriptionEnd::StreamReplaced));
        assert_eq!(end_of(&mut *ephemeral).await, Some(SubscriptionEnd::StreamReplaced));
        // Whoever opens it again gets the new stream from its start.
        let mut durable = provider.subscribe_durable("reader", "events.>").await.unwrap();
        for number in 51..=60 {
            assert_eq!(ack_next(&mut *durable).await, number);
        }
    }
}

#[tokio::test]
async fn a_stream_that_the_server_lost_is_made_again_by_a_publish_and_by_a_subscription() {
    for mut server in servers().await {
        let memory = NatsConfig { storage: StorageType::Memory, ..config(&server) };
        let provider = NatsProvider::connect(memory.clone()).await.unwrap();
        publish_all(&provider, &[event("a", 1), event("a", 2)]).await;
        let mut durable = provider.subscribe_durable("reader", "events.>").await.unwrap();
        server.kill();
        server.start_again().await;
        // The old one and its events are gone.
        assert_eq!(end_of(&mut *durable).await, Some(SubscriptionEnd::StreamReplaced));
        let batch: Vec<_> = (3..=40).map(|number| event("a", number)).collect();
        publish_all(&provider, &batch).await;
        assert!(provider.health().await.unwrap());
        let mut newest = numbers(&provider.history(None, 100).await.unwrap());
        newest.reverse();
        assert_eq!(newest, (3..=40).collect::<Vec<_>>(), "in order");
        server.kill();
        server.start_again().await;
        let started = Instant::now();
        let mut durable = loop {
            match provider.subscribe_durable("reader", "events.>").await {
                Ok(durable) => break durable,
                Err(error) => assert!(error.is_retryable() && started.elapsed() < SOON, "{error:?}"),
            }
        };
        provider.publish(&event("a", 41)).await.unwrap();
        assert_eq!(ack_next(&mut *durable).await, 41);
    }
}

#[tokio::test]
async fn a_stream_that_is_gone_is_not_healthy_and_whoever_waits_for_health_does_not_wait_for_ever() {
    let server = NatsServer::start().await;
    let provider = connect(&server).await;
    assert!(provider.health().await.unwrap());
    jetstream(&server).await.delete_stream("A3S_EVENTS").await.unwrap();
    assert!(!provider.health().await.unwrap());
    assert!(provider.health().await.unwrap());
    assert_eq!(provider.publish(&event("a", 1)).await.unwrap(), 1);
}

#[tokio::test]
async fn a_stream_that_may_not_be_made_is_an_error_that_says_so() {
    let server = NatsServer::start().await;
    connect(&server).await;
    let provider = NatsProvider::builder(config(&server)).create_if_missing(false).connect().await.unwrap();
    jetstream(&server).await.delete_stream("A3S_EVENTS").await.unwrap();
    let publish = provider.publish(&event("a", 1)).await.unwrap_err();
    let subscribe = provider.subscribe("events.>").await.map(drop).unwrap_err();
    for error in [publish, subscribe] {
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::NotFound, false), "{error:?}");
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("stream 'A3S_EVENTS' no longer exists"), "{cause}");
    }
    assert!(!provider.health().await.unwrap());
}

#[tokio::test]
async fn a_full_stream_that_refuses_what_is_new_is_not_healthy() {
    let server = NatsServer::start().await;
    let limited = NatsConfig { max_events: 2, ..config(&server) };
    let provider = NatsProvider::builder(limited).discard_new(true).connect().await.unwrap();
    provider.publish(&event("a", 1)).await.unwrap();
    assert!(provider.health().await.unwrap());
    provider.publish(&event("a", 2)).await.unwrap();
    assert!(!provider.health().await.unwrap());
    provider.publish(&event("a", 3)).await.unwrap_err();
}

#[tokio::test]
async fn what_a_deleted_consumer_delivered_is_not_settled_for_its_successor() {
    for server in servers().await {
        let provider = connect(&server).await;
        let options = |deliver_policy| SubscribeOptions {
            deliver_policy,
            ack_wait_secs: Some(2),
            ..SubscribeOptions::default()
        };
        let mut first = provider
            .subscribe_durable_with_options("name", "events.>", &options(DeliverPolicy::All))
            .await
            .unwrap();
        publish_all(&provider, &[event("a", 1), event("a", 2)]).await;
        let old = first.next_delivery().await.unwrap().unwrap();
        let other_old = first.next_delivery().await.unwrap().unwrap();
        provider.unsubscribe("name").await.unwrap();
        let from_1 = DeliverPolicy::ByStartSequence { sequence: 1 };
        let mut second =
            provider.subscribe_durable_with_options("name", "events.>", &options(from_1)).await.unwrap();
        let new = tokio::time::timeout(SOON, second.next_delivery()).await.unwrap().unwrap().unwrap();
        assert_eq!((new.sequence(), new.num_delivered()), (1, 1));
        assert_eq!(ack_next(&mut *second).await, 2);
        // Nothing of the deleted one comes again, which is what an ack asks for.
        old.ack().await.unwrap();
        assert!(other_old.nak().await.unwrap_err().is_closed());
        drop(new);
        let again = tokio::time::timeout(SOON, second.next_delivery()).await.unwrap().unwrap().unwrap();
        assert_eq!((again.sequence(), again.num_delivered()), (1, 2));
        again.ack().await.unwrap();
    }
}

#[tokio::test]
async fn a_subscription_tells_the_settings_in_force() {
    for server in servers().await {
        let provider = connect(&server).await;
        let options = SubscribeOptions {
            max_deliver: Some(7),
            max_ack_pending: Some(9),
            ack_wait_secs: Some(11),
            backoff_secs: vec![1, 5],
            ..SubscribeOptions::default()
        };
        let opening = provider.subscribe_durable_with_options("a", "events.>", &options);
        let asked = opening.await.unwrap().settings().unwrap();
        // Without options it is taken as it is.
        let adopted = connect(&server).await.subscribe_durable("a", "events.>").await.unwrap();
        let adopted = adopted.settings().unwrap();
        for settings in [&asked, &adopted] {
            assert_eq!((settings.max_deliver, settings.max_ack_pending), (Some(7), 9));
            assert_eq!((settings.ack_wait.as_secs(), settings.filter.as_str()), (11, "events.>"));
        }
        assert_eq!(asked.backoff, [Duration::from_secs(1), Duration::from_secs(5)]);
    }
}
