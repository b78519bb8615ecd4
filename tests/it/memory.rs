//! What is particular to the memory provider.

use std::time::Duration;

use a3s_event::provider::DiscardPolicy;
use a3s_event::{
    DeliverPolicy, Delivery, ErrorKind, EventError, EventProvider, MemoryProvider, SubscribeOptions,
    Subscription,
};

use super::{event, next, number};

#[tokio::test]
async fn its_stream_has_counts_and_limits() {
    let limited =
        MemoryProvider::builder().stream_name("lab").max_bytes(9_000).max_age(Duration::from_millis(1));
    let provider = limited.build().unwrap();
    let streams = provider.streams().await.unwrap();
    assert_eq!(
        (&*streams[0].name, &*streams[0].subjects, streams[0].is_own),
        ("lab", &["events.>".to_owned()][..], true)
    );
    let limits = streams[0].limits.unwrap();
    assert_eq!((limits.max_events, limits.max_bytes), (Some(100_000), Some(9_000)));
    assert_eq!((limits.max_age, limits.discard), (Some(Duration::from_millis(1)), DiscardPolicy::Old));

    let provider = MemoryProvider::builder().max_events(0).build().unwrap();
    provider.publish(&event("events.a.b", 1)).await.unwrap();
    let _consumer = provider.subscribe_durable("worker", "events.>").await.unwrap();
    let (stream, info) = (provider.streams().await.unwrap().remove(0), provider.info().await.unwrap());
    assert!(stream.limits.unwrap().is_unlimited());
    assert_eq!((stream.events, stream.bytes, stream.consumers), (1, info.bytes, 1));
}

#[tokio::test]
async fn a_purge_drops_all_events_and_consumers_go_on() {
    let provider = MemoryProvider::default();
    let mut durable = provider.subscribe_durable("worker", "events.a.*").await.unwrap();
    for number in 1..=5 {
        provider.publish(&event("events.a.b", number)).await.unwrap();
    }
    next(&mut durable).await.ack().await.unwrap();
    let refused = provider.purge(Some("events.a.b")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert_eq!(provider.purge(None).await.unwrap(), 5);
    assert_eq!(provider.info().await.unwrap().messages, 0);
    assert_eq!(provider.publish(&event("events.a.b", 6)).await.unwrap(), 6, "sequences go on");
    match durable.next_delivery().await {
        Err(EventError::Lagged { missed, .. }) => assert_eq!(missed, 4),
        other => panic!("expected Lagged, found {other:?}"),
    }
    assert_eq!(number(&next(&mut durable).await), 6);
    assert_eq!(provider.purge(Some("events.>")).await.unwrap(), 1);
}

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
    assert!(matches!(error, EventError::Lagged { missed: 6, .. }), "{error}");
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

type Waiting<'a> = std::pin::Pin<Box<dyn Future<Output = a3s_event::Result<Option<Delivery>>> + Send + 'a>>;

async fn members(provider: &MemoryProvider, count: usize) -> Vec<Box<dyn Subscription>> {
    let mut members = Vec::new();
    for _ in 0..count {
        members.push(provider.subscribe_durable("workers", "events.>").await.unwrap());
    }
    members
}

/// Begins to wait, or goes on waiting after a wake-up; nothing is delivered yet.
fn keep_waiting(waiting: &mut Waiting<'_>) {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(waiting.as_mut().poll(&mut context).is_pending());
}

async fn delivered(waiting: Waiting<'_>) -> u64 {
    let delivery = tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("stranded");
    number(&delivery.unwrap().unwrap())
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_waiting_for_a_lease_leaves_it_to_one_who_never_saw_it() {
    let provider = MemoryProvider::default();
    let mut quick = members(&provider, 1).await;
    let mut others = members(&provider, 4).await;
    let mut waiting: Vec<Waiting<'_>> = others.iter_mut().map(|member| member.next_delivery()).collect();
    waiting.iter_mut().for_each(keep_waiting);
    // The publish wakes the first, the taking of the event the second; the others do not know of the lease.
    provider.publish(&event("events.a.b", 1)).await.unwrap();
    drop(next(&mut quick[0]).await);
    waiting.iter_mut().take(2).for_each(keep_waiting);
    drop(waiting.drain(..2));
    assert_eq!(delivered(waiting.remove(0)).await, 1);
}

#[tokio::test(start_paused = true)]
async fn one_wake_up_is_enough_for_all_who_wait() {
    let provider = MemoryProvider::default();
    let narrow = SubscribeOptions { max_ack_pending: Some(1), ..SubscribeOptions::default() };
    let mut first = provider.subscribe_durable_with_options("workers", "events.>", &narrow).await.unwrap();
    for number in 1..=3 {
        provider.publish(&event("events.a.b", number)).await.unwrap();
    }
    let _held = next(&mut first).await;
    let mut others = members(&provider, 2).await;
    let mut waiting: Vec<Waiting<'_>> = others.iter_mut().map(|member| member.next_delivery()).collect();
    waiting.iter_mut().for_each(keep_waiting);
    let start = tokio::time::Instant::now();
    let _opened = provider
        .subscribe_durable_with_options("workers", "events.>", &SubscribeOptions::default())
        .await
        .unwrap();
    let (one, other) = (waiting.remove(0), waiting.remove(0));
    let (one, other) = tokio::join!(delivered(one), delivered(other));
    assert_eq!([one.min(other), one.max(other)], [2, 3]);
    assert!(start.elapsed().is_zero(), "nobody waits for a lease to end");
}

#[tokio::test(start_paused = true)]
async fn settling_one_of_several_makes_room_at_once() {
    let provider = MemoryProvider::default();
    let two = SubscribeOptions { max_ack_pending: Some(2), ..SubscribeOptions::default() };
    let mut first = provider.subscribe_durable_with_options("workers", "events.>", &two).await.unwrap();
    for number in 1..=3 {
        provider.publish(&event("events.a.b", number)).await.unwrap();
    }
    let (one, _other) = (next(&mut first).await, next(&mut first).await);
    let mut others = members(&provider, 1).await;
    let mut waiting: Waiting<'_> = others[0].next_delivery();
    // Twice, because the first look may meet a wake-up from before.
    keep_waiting(&mut waiting);
    keep_waiting(&mut waiting);
    let start = tokio::time::Instant::now();
    one.ack().await.unwrap();
    assert_eq!(delivered(waiting).await, 3);
    assert!(start.elapsed().is_zero());
}
