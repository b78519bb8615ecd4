//! A replica replaces its primary, with and without the newest events.

use a3s_event::provider::redis::RedisConfig;
use a3s_event::{ErrorKind, EventProvider, PublishOptions};
use a3s_event_testkit::RedisPair;

use crate::load::{CONSUMER, Load};
use crate::stored::last;
use crate::{FILTER, event, eventually, next, on_each, open, short_leases};

fn config(pair: &RedisPair) -> RedisConfig {
    RedisConfig::at(format!("{},{}", pair.primary.address(), pair.replica.address()))
}

/// Kills the primary, promotes the replica, and starts the previous primary as its replica.
async fn fail_over(pair: &mut RedisPair) {
    pair.primary.kill();
    pair.promote().await;
    pair.replica.configure(&format!("replicaof 127.0.0.1 {}", pair.primary.port()));
    pair.replica.start_again().await;
    pair.in_sync().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_ack_of_a_lost_event_does_not_settle_the_one_that_has_its_sequence() {
    on_each(async |_, binary| {
        let mut pair = RedisPair::start_binary(&binary, "").await;
        let provider = open(config(&pair)).await;
        let options = short_leases();
        let mut subscription =
            provider.subscribe_durable_with_options(CONSUMER, FILTER, &options).await.unwrap();
        assert_eq!(provider.publish(&event("kept")).await.unwrap(), 1);
        next(&mut *subscription).await.ack_confirmed().await.unwrap();
        pair.in_sync().await;

        pair.detach().await;
        assert_eq!(provider.publish(&event("lost")).await.unwrap(), 2);
        let lost = next(&mut *subscription).await;
        assert_eq!((lost.sequence(), lost.event().subject.as_str()), (2, "events.test.lost"));
        fail_over(&mut pair).await;

        let other = event("other");
        let msg_id = Some(other.id.clone());
        eventually("a publish to the new primary", async || {
            let options = PublishOptions { msg_id: msg_id.clone(), ..PublishOptions::default() };
            match provider.publish_with_receipt(&other, &options).await {
                Ok(receipt) => {
                    assert_eq!(receipt.sequence, 2, "the sequence of the lost event");
                    true
                }
                Err(error) => {
                    assert!(error.is_retryable(), "{error}");
                    false
                }
            }
        })
        .await;
        let current = next(&mut *subscription).await;
        assert_eq!((current.sequence(), current.num_delivered()), (2, 1));
        assert_eq!(current.event().subject, "events.test.other");
        let error = lost.ack_confirmed().await.unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Ack, false), "{error}");
        assert!(error.to_string().contains("lost in a failover"), "{error}");
        let pending = async || provider.consumers().await.unwrap()[0].pending;
        assert_eq!(pending().await, 1);
        current.ack_confirmed().await.unwrap();
        assert_eq!(pending().await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promotion_loses_no_event_that_a_replica_has_confirmed() {
    on_each(async |version, binary| {
        let mut pair = RedisPair::start_binary(&binary, "").await;
        let load = Load::start(open(config(&pair).wait_replicas(1)).await, 4);
        for _ in 0..3 {
            load.acknowledged(20).await;
            pair.detach().await;
            let copied = last(&pair.replica).await;
            eventually("an event without a copy", async || last(&pair.primary).await > copied).await;
            fail_over(&mut pair).await;
        }
        let (_, stored) = load.all_stored(&pair.primary).await;
        println!("{version}: {} events", stored.len());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_durable_subscription_is_open_when_a_replica_has_its_consumer() {
    on_each(async |version, binary| {
        let mut pair = RedisPair::start_binary(&binary, "").await;
        let provider = open(config(&pair).wait_replicas(1)).await;
        eventually("a publish", async || provider.publish(&event("kept")).await.is_ok()).await;
        let subscribe =
            async || provider.subscribe_durable_with_options(CONSUMER, FILTER, &short_leases()).await;
        pair.detach().await;
        // Also a consumer that an earlier try has made.
        for _ in 0..2 {
            let error = subscribe().await.err().expect("no replica has it");
            assert!(error.is_retryable(), "{version}: {error}");
        }
        pair.follow().await;
        let mut subscription = None;
        eventually("a subscription", async || {
            subscription = subscribe().await.ok();
            subscription.is_some()
        })
        .await;
        let mut subscription = subscription.unwrap();
        pair.detach().await;
        fail_over(&mut pair).await;
        eventually("the event", async || match subscription.next_delivery().await {
            Ok(Some(delivery)) => delivery.sequence() == 1,
            Ok(None) => panic!("{version}: the subscription ended: {:?}", subscription.end()),
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                false
            }
        })
        .await;
    })
    .await;
}

/// A program that was silent during two failovers is still connected to the server that was the primary before, is the
/// primary again, and has lost the newest event in between.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_promoted_again_is_not_taken_for_the_primary_that_it_was() {
    on_each(async |_, binary| {
        let mut pair = RedisPair::start_binary(&binary, "").await;
        let silent = open(config(&pair)).await;
        let options = short_leases();
        let mut subscription =
            silent.subscribe_durable_with_options(CONSUMER, FILTER, &options).await.unwrap();
        pair.in_sync().await;
        pair.detach().await;
        silent.publish(&event("lost")).await.unwrap();
        let lost = next(&mut *subscription).await;
        let begin = tokio::time::Instant::now();
        drop(subscription);

        pair.promote().await;
        pair.follow().await;
        let other = open(config(&pair)).await;
        assert_eq!(other.publish(&event("other")).await.unwrap(), lost.sequence());
        let mut subscription =
            other.subscribe_durable_with_options(CONSUMER, FILTER, &options).await.unwrap();
        let current = next(&mut *subscription).await;
        assert_eq!((current.sequence(), current.num_delivered()), (lost.sequence(), lost.num_delivered()));
        pair.in_sync().await;
        pair.promote().await;
        pair.follow().await;

        // Operators need longer. A settlement that follows its delivery at once trusts the connection.
        tokio::time::sleep_until(begin + std::time::Duration::from_millis(200)).await;
        let error = lost.ack_confirmed().await.unwrap_err();
        assert!(error.to_string().contains("lost in a failover"), "{error}");
        assert_eq!(other.consumers().await.unwrap()[0].pending, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_was_silent_during_two_promotions_is_made_again() {
    on_each(async |version, binary| {
        let mut pair = RedisPair::start_binary(&binary, "").await;
        // It publishes on a connection of its own, and the other one is silent.
        let provider = open(config(&pair).wait_replicas(1)).await;
        for _ in 0..2 {
            pair.promote().await;
            pair.follow().await;
            eventually("a publish", async || provider.publish(&event("any")).await.is_ok()).await;
        }
        eventually("a subscription", async || {
            match provider.subscribe_durable_with_options(CONSUMER, FILTER, &short_leases()).await {
                Ok(_) => true,
                Err(error) => {
                    assert!(error.is_retryable(), "{version}: {error}");
                    false
                }
            }
        })
        .await;
    })
    .await;
}
