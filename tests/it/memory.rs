//! What is particular to the memory provider.

use std::time::Duration;

use a3s_event::{DeliverPolicy, ErrorKind, EventProvider, MemoryProvider, SubscribeOptions};

use super::{event, next, number};

#[tokio::test(start_paused = true)]
async fn without_its_provider_a_subscription_ends_with_the_last_settlement() {
    let provider = MemoryProvider::default();
    let mut one = provider.subscribe_durable("worker", "events.>").await.unwrap();
    let mut other = provider.subscribe_durable("worker", "events.>").await.unwrap();
    for number in 1..=2 {
        provider.publish(&event("events.a.b", number)).await.unwrap();
    }
    let first = next(&mut one).await;
    drop(provider);
    let second = next(&mut one).await;
    assert_eq!(number(&second), 2, "what is stored is still delivered");
    let start = tokio::time::Instant::now();
    let (ended, ()) = tokio::join!(other.next_delivery(), async {
        second.ack().await.unwrap();
        first.ack().await.unwrap();
    });
    assert!(ended.unwrap().is_none());
    assert!(one.next().await.unwrap().is_none());
    assert!(start.elapsed().is_zero(), "no lease is waited for");
}

#[tokio::test(start_paused = true)]
async fn a_start_in_the_future_missed_only_what_lies_behind_it() {
    let provider = MemoryProvider::builder().max_events(5).build().unwrap();
    let policy = DeliverPolicy::ByStartSequence { sequence: 10 };
    let options = SubscribeOptions { deliver_policy: policy, ..SubscribeOptions::default() };
    let mut subscription = provider.subscribe_with_options("events.>", &options).await.unwrap();
    for number in 1..=20 {
        provider.publish(&event("events.a.b", number)).await.unwrap();
    }
    let error = subscription.next_delivery().await.unwrap_err();
    assert!(matches!(error, a3s_event::EventError::Lagged { missed: 6, .. }), "{error}");
    assert_eq!(next(&mut subscription).await.sequence(), 16);
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_consumer_reports_no_lag_and_takes_nothing_back() {
    let provider = MemoryProvider::default();
    let mut subscription = provider.subscribe_durable("worker", "events.a.>").await.unwrap();
    provider.publish(&event("events.a.b", 1)).await.unwrap();
    let delivery = next(&mut subscription).await;
    provider.unsubscribe("worker").await.unwrap();
    let _reuses_the_slot = provider.subscribe("events.>").await.unwrap();
    assert_eq!(subscription.lag().await.unwrap(), 0);
    assert_eq!(delivery.extend().await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(delivery.release().await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn the_backlog_that_is_gone_is_no_lag() {
    let provider = MemoryProvider::builder().max_events(3).build().unwrap();
    for number in 0..3 {
        provider.publish(&event(&format!("events.a.{number}"), number)).await.unwrap();
    }
    let options =
        SubscribeOptions { deliver_policy: DeliverPolicy::LastPerSubject, ..SubscribeOptions::default() };
    let subscription = provider.subscribe_with_options("events.>", &options).await.unwrap();
    assert_eq!(subscription.lag().await.unwrap(), 3);
    for number in 3..6 {
        provider.publish(&event(&format!("events.b.{number}"), number)).await.unwrap();
    }
    assert_eq!(subscription.lag().await.unwrap(), 3);
}

#[tokio::test]
async fn an_age_below_a_millisecond_is_not_for_ever() {
    let provider = MemoryProvider::builder().max_age(Duration::from_nanos(1)).build().unwrap();
    provider.publish(&event("events.a.b", 1)).await.unwrap();
    let stored_at = provider
        .query(&a3s_event::HistoryQuery::new(1))
        .await
        .unwrap()
        .first()
        .map(|stored| stored.stored_at);
    while event("events.a.b", 1).timestamp <= stored_at.unwrap_or(0) + 1 {
        tokio::task::yield_now().await;
    }
    assert_eq!(provider.info().await.unwrap().messages, 0);
}
