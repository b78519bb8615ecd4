//! Consumers that retention overtakes before they were delivered anything.

use a3s_event::DeliverPolicy;

use super::*;

/// The next error must tell of what was missed.
async fn missed(subscription: &mut dyn Subscription) -> u64 {
    match tokio::time::timeout(SOON, subscription.next_delivery()).await.unwrap() {
        Err(EventError::Lagged { missed, .. }) => missed,
        other => panic!("expected Lagged, found {other:?}"),
    }
}

async fn limited(server: &NatsServer) -> NatsProvider {
    NatsProvider::connect(NatsConfig { max_events: 10, ..config(server) }).await.unwrap()
}

fn events(numbers: std::ops::RangeInclusive<u64>) -> Vec<Event> {
    numbers.map(|number| event("a", number)).collect()
}

#[tokio::test]
async fn a_consumer_overtaken_before_its_first_delivery_is_told() {
    for server in servers().await {
        let provider = limited(&server).await;
        publish_all(&provider, &events(1..=30)).await;
        // Each begins at 21, or where its policy says; what was dropped before that was never to be delivered.
        let mut durable = provider.subscribe_durable("durable", "events.>").await.unwrap();
        let mut ephemeral = provider.subscribe("events.>").await.unwrap();
        let options = SubscribeOptions { deliver_policy: DeliverPolicy::New, ..SubscribeOptions::default() };
        let mut new = provider.subscribe_with_options("events.>", &options).await.unwrap();
        let options = SubscribeOptions {
            deliver_policy: DeliverPolicy::ByStartSequence { sequence: 25 },
            ..SubscribeOptions::default()
        };
        let mut from_25 = provider.subscribe_with_options("events.>", &options).await.unwrap();
        let options =
            SubscribeOptions { deliver_policy: DeliverPolicy::LastPerSubject, ..SubscribeOptions::default() };
        let mut newest = provider.subscribe_with_options("events.>", &options).await.unwrap();
        publish_all(&provider, &events(31..=130)).await;
        // 121 to 130 are left.
        for (subscription, expected) in [
            (&mut durable, 100),
            (&mut ephemeral, 100),
            (&mut new, 90),
            (&mut from_25, 96),
            // The newest one of the subject, 30, may have been among them; nobody knows.
            (&mut newest, 90),
        ] {
            assert_eq!(missed(&mut **subscription).await, expected);
            for number in 121..=130 {
                assert_eq!(ack_next(&mut **subscription).await, number);
            }
        }
    }
}

#[tokio::test]
async fn a_durable_that_nobody_has_open_is_told_when_somebody_opens_it_and_once() {
    let server = NatsServer::start().await;
    let provider = limited(&server).await;
    drop(provider.subscribe_durable("waits", "events.>").await.unwrap());
    publish_all(&provider, &events(1..=40)).await;
    // Another program, which knows nothing of the first.
    let other = connect(&server).await;
    let mut first = other.subscribe_durable("waits", "events.>").await.unwrap();
    let mut second = other.subscribe_durable("waits", "events.>").await.unwrap();
    assert_eq!(missed(&mut *first).await, 30);
    assert_eq!(ack_next(&mut *first).await, 31);
    assert_eq!(ack_next(&mut *second).await, 32);
    for number in 33..=40 {
        assert_eq!(ack_next(&mut *first).await, number);
    }
}
