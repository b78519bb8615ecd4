//! The work that this library does alike on every backend.

use std::sync::Arc;
use std::time::Duration;

use a3s_event::provider::PublishRequest;
use a3s_event::{DeliverPolicy, Event, EventProvider, SubscribeOptions, Subscription};

use crate::board::Board;
use crate::support::Receipts;
use crate::{BATCH, BURST, FAN_OUT, FILTER, ONE_TO_ONE, OURS, READERS};

const SOON: Duration = Duration::from_secs(5);

pub(crate) async fn publish(provider: &dyn EventProvider, event: &Event, count: usize) {
    for _ in 0..count {
        provider.publish(event).await.unwrap();
    }
}

pub(crate) async fn publish_in_batches(provider: &dyn EventProvider, event: &Event, count: usize) {
    let batch = vec![event.clone(); BATCH];
    let batch: Vec<_> = batch.iter().map(PublishRequest::from).collect();
    for _ in 0..count / BATCH {
        for answer in provider.publish_batch(&batch).await {
            answer.unwrap();
        }
    }
}

/// Publishes events and settles each before the next one.
pub(crate) async fn one_to_one(board: &mut Board, provider: &dyn EventProvider, event: &Event, count: usize) {
    let mut subscription = provider.subscribe_durable("pair", FILTER).await.unwrap();
    board
        .time(ONE_TO_ONE, OURS, count, async {
            for _ in 0..count {
                publish(provider, event, 1).await;
                subscription.next_delivery().await.unwrap().unwrap().ack().await.unwrap();
            }
        })
        .await;
    provider.unsubscribe("pair").await.unwrap();
}

/// Publishes bursts of events to `READERS` subscriptions, which settle each one.
pub(crate) async fn fan_out(board: &mut Board, provider: &dyn EventProvider, event: &Event, bursts: usize) {
    let receipts = Arc::new(Receipts::default());
    let mut readers = Vec::new();
    let from_now_on = SubscribeOptions { deliver_policy: DeliverPolicy::New, ..SubscribeOptions::default() };
    for _ in 0..READERS {
        let mut subscription = provider.subscribe_with_options(FILTER, &from_now_on).await.unwrap();
        let receipts = Arc::clone(&receipts);
        readers.push(tokio::spawn(async move {
            while let Ok(Some(delivery)) = subscription.next_delivery().await {
                delivery.ack().await.unwrap();
                receipts.one();
            }
        }));
    }
    board
        .time(FAN_OUT, OURS, bursts * BURST * READERS, async {
            for _ in 0..bursts {
                let publish = async || publish(provider, event, BURST).await;
                receipts.wait_for(READERS * BURST, publish).await;
            }
        })
        .await;
    readers.iter().for_each(tokio::task::JoinHandle::abort);
}

/// Receives and settles events one by one, and closes the subscription.
pub(crate) async fn receive(mut subscription: Box<dyn Subscription>, count: usize) {
    for _ in 0..count {
        subscription.next_delivery().await.unwrap().unwrap().ack().await.unwrap();
    }
    subscription.close().await.unwrap();
}

/// Receives and settles events in batches of at most `size`, and closes the subscription.
pub(crate) async fn receive_in_batches(mut subscription: Box<dyn Subscription>, size: usize, count: usize) {
    let mut left = count;
    while left > 0 {
        let batch = subscription.next_batch(size, SOON).await.unwrap();
        assert!(!batch.is_empty(), "{left} events are left");
        left -= batch.len();
        for delivery in batch {
            delivery.unwrap().ack().await.unwrap();
        }
    }
    subscription.close().await.unwrap();
}
