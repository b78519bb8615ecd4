//! Consumers that are moved to another position.

use a3s_event::{ConsumerPosition, DeliverPolicy};

use super::*;

async fn next(subscription: &mut dyn Subscription) -> a3s_event::Delivery {
    tokio::time::timeout(SOON, subscription.next_delivery()).await.unwrap().unwrap().unwrap()
}

#[tokio::test]
async fn a_consumer_moves_and_its_open_subscriptions_go_on_there() {
    let server = NatsServer::start().await;
    let (provider, other) = (connect(&server).await, connect(&server).await);
    publish_all(&provider, &(1..=10).map(|number| event("a", number)).collect::<Vec<_>>()).await;
    let options = SubscribeOptions { ack_wait_secs: Some(20), max_deliver: Some(3), ..Default::default() };
    let mut subscription =
        provider.subscribe_durable_with_options("mover", "events.>", &options).await.unwrap();
    for number in 1..=5 {
        assert_eq!(ack_next(&mut *subscription).await, number);
    }
    let pending = next(&mut *subscription).await;
    // By this program and by another one, which this one is not told of.
    provider.reset_consumer("mover", ConsumerPosition::First).await.unwrap();
    let stale = pending.ack_confirmed().await.unwrap_err();
    assert_eq!(stale.kind(), ErrorKind::Ack, "{stale:?}");
    for number in 1..=3 {
        assert_eq!(ack_next(&mut *subscription).await, number);
    }
    other.reset_consumer("mover", ConsumerPosition::Sequence(8)).await.unwrap();
    for number in 8..=10 {
        assert_eq!(ack_next(&mut *subscription).await, number);
    }
    other.reset_consumer("mover", ConsumerPosition::Last).await.unwrap();
    provider.publish(&event("a", 11)).await.unwrap();
    assert_eq!(ack_next(&mut *subscription).await, 11);
    let stored = provider.query(&HistoryQuery::new(100)).await.unwrap();
    // Several may be stored in the same millisecond.
    let time = stored[4].stored_at;
    let first = stored.iter().filter(|stored| stored.stored_at >= time).map(|stored| stored.sequence).min();
    provider.reset_consumer("mover", ConsumerPosition::Time(time)).await.unwrap();
    assert_eq!(Some(ack_next(&mut *subscription).await), first);
    let info = provider.consumers().await.unwrap().remove(0);
    assert_eq!((info.name.as_str(), info.pending), ("mover", 0));
    assert_eq!(subscription.settings().unwrap().max_deliver, Some(3));
}

/// A reset looks at its consumer once more before it ends; by then the name can be that of another one.
#[tokio::test]
async fn a_consumer_that_is_made_anew_during_a_reset_is_not_moved() {
    let server = NatsServer::start().await;
    let (provider, other) = (connect(&server).await, connect(&server).await);
    publish_all(&provider, &[event("a", 1), event("a", 2)]).await;
    let mut subscription = provider.subscribe_durable("mover", "events.>").await.unwrap();
    for number in 1..=2 {
        assert_eq!(ack_next(&mut *subscription).await, number);
    }
    drop(subscription);
    let (_, new) = tokio::join!(provider.reset_consumer("mover", ConsumerPosition::Sequence(2)), async {
        while other.consumers().await.unwrap()[0].lag == 0 {}
        other.unsubscribe("mover").await.unwrap();
        other.subscribe_durable("mover", "events.>").await.unwrap()
    });
    assert_eq!(other.consumers().await.unwrap()[0].lag, 2);
    drop(new);
}

#[tokio::test]
async fn a_waiting_member_gets_what_a_reset_brings_and_can_settle_it() {
    let server = NatsServer::start().await;
    let provider = connect(&server).await;
    publish_all(&provider, &[event("a", 1), event("a", 2)]).await;
    let mut first = provider.subscribe_durable("mover", "events.>").await.unwrap();
    let mut second = provider.subscribe_durable("mover", "events.>").await.unwrap();
    for number in 1..=2 {
        assert_eq!(ack_next(&mut *first).await, number);
    }
    let (received, _) = tokio::join!(next(&mut *second), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        provider.reset_consumer("mover", ConsumerPosition::First).await.unwrap();
    });
    assert_eq!((received.sequence(), received.num_delivered()), (1, 1));
    received.ack_confirmed().await.unwrap();
    assert_eq!(ack_next(&mut *first).await, 2);
    assert_eq!(provider.consumers().await.unwrap()[0].pending, 0);
}

#[tokio::test]
async fn what_retention_took_behind_a_new_position_is_told() {
    let server = NatsServer::start().await;
    let provider = NatsProvider::connect(NatsConfig { max_events: 5, ..config(&server) }).await.unwrap();
    publish_all(&provider, &(1..=5).map(|number| event("a", number)).collect::<Vec<_>>()).await;
    let mut subscription = provider.subscribe_durable("mover", "events.>").await.unwrap();
    for number in 1..=5 {
        assert_eq!(ack_next(&mut *subscription).await, number);
    }
    provider.reset_consumer("mover", ConsumerPosition::Sequence(3)).await.unwrap();
    publish_all(&provider, &(6..=10).map(|number| event("a", number)).collect::<Vec<_>>()).await;
    match tokio::time::timeout(SOON, subscription.next_delivery()).await.unwrap() {
        Err(EventError::Lagged { missed, .. }) => assert_eq!(missed, 3),
        other => panic!("expected Lagged, found {other:?}"),
    }
    assert_eq!(ack_next(&mut *subscription).await, 6);
}

#[tokio::test]
async fn what_the_server_cannot_do_is_refused_and_nothing_is_deleted() {
    for server in servers().await {
        let provider = connect(&server).await;
        let unknown = provider.reset_consumer("nobody", ConsumerPosition::First).await.unwrap_err();
        let options = SubscribeOptions { deliver_policy: DeliverPolicy::New, ..Default::default() };
        provider.subscribe_durable_with_options("new", "events.>", &options).await.unwrap();
        provider.subscribe_durable("all", "events.>").await.unwrap();
        let refused = provider.reset_consumer("new", ConsumerPosition::First).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused:?}");
        let can = provider.capabilities().reset_consumer.is_yes();
        let moved = provider.reset_consumer("all", ConsumerPosition::Time(u64::MAX)).await;
        assert_eq!(moved.is_ok(), can, "{moved:?}");
        let expected = if can { ErrorKind::NotFound } else { ErrorKind::Unsupported };
        assert_eq!(unknown.kind(), expected, "{unknown:?}");
        assert_eq!(provider.consumers().await.unwrap().len(), 2);
    }
}
