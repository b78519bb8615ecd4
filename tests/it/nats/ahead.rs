//! What a member that reads fast has fetched ahead of its calls.

use std::time::Duration;

use a3s_event::{ConsumerPosition, EventProvider, NatsProvider, SubscribeOptions, Subscription};
use a3s_event_testkit::NatsServer;

use super::{SOON, connect, event, publish_all};

async fn publish(provider: &NatsProvider, numbers: std::ops::RangeInclusive<u64>) {
    publish_all(provider, &numbers.map(|number| event("a", number)).collect::<Vec<_>>()).await;
}

/// Its leases outlast the test.
async fn join(provider: &NatsProvider) -> impl Subscription + use<> {
    let options = SubscribeOptions { ack_wait_secs: Some(600), ..SubscribeOptions::default() };
    provider.client().subscribe_durable_with_options("worker", "events.>", &options).await.unwrap()
}

/// Reads and acks so many, fast enough for more to be fetched ahead.
async fn read(member: &mut impl Subscription, count: usize) {
    for _ in 0..count {
        let delivery = tokio::time::timeout(SOON, member.next_delivery()).await.unwrap().unwrap().unwrap();
        delivery.ack().await.unwrap();
    }
}

#[tokio::test]
async fn a_fast_member_that_gets_busy_holds_up_nobody() {
    let server = NatsServer::start().await;
    let (here, there) = (connect(&server).await, connect(&server).await);
    publish(&here, 1..=400).await;
    let mut busy = join(&here).await;
    read(&mut busy, 200).await;
    let in_work = busy.next_delivery().await.unwrap().unwrap();
    let mut idle = join(&there).await;
    read(&mut idle, 199).await;
    in_work.ack().await.unwrap();
    busy.flush().await.unwrap();
    idle.flush().await.unwrap();
    let consumers = here.consumers().await.unwrap();
    assert_eq!((consumers[0].pending, consumers[0].lag), (0, 0), "{consumers:?}");
    // It goes on as if nothing had been.
    publish(&here, 401..=402).await;
    drop(idle);
    read(&mut busy, 2).await;
}

#[tokio::test]
async fn a_call_that_is_dropped_in_a_fast_loop_strands_nothing() {
    let server = NatsServer::start().await;
    let (here, there) = (connect(&server).await, connect(&server).await);
    publish(&here, 1..=200).await;
    let mut gone = join(&here).await;
    read(&mut gone, 200).await;
    // Its request is open a moment longer than the call.
    assert!(tokio::time::timeout(Duration::from_millis(1), gone.next_delivery()).await.is_err());
    publish(&here, 201..=210).await;
    let mut idle = join(&there).await;
    read(&mut idle, 10).await;
}

#[tokio::test]
async fn what_was_fetched_ahead_of_a_reset_is_not_handed_out_behind_it() {
    let server = NatsServer::start().await;
    let provider = connect(&server).await;
    publish(&provider, 1..=1_000).await;
    let mut member = join(&provider).await;
    read(&mut member, 100).await;
    provider.reset_consumer("worker", ConsumerPosition::Last).await.unwrap();
    publish(&provider, 1_001..=1_003).await;
    for number in 1_001..=1_003_u64 {
        let delivery = tokio::time::timeout(SOON, member.next_delivery()).await.unwrap().unwrap().unwrap();
        assert_eq!(delivery.event().payload.as_u64(), Some(number));
        delivery.ack_confirmed().await.unwrap();
    }
}
