//! A replica replaces its primary, with and without the newest events.

use a3s_event::provider::redis::RedisConfig;
use a3s_event::{ErrorKind, EventProvider, PublishOptions};
use a3s_event_testkit::RedisPair;

use crate::load::{CONSUMER, Load};
use crate::stored::{assert_stored, intact, last};
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
        load.acknowledged(1).await;
        let acknowledged = load.end().await;
        let stored = intact(&pair.primary).await;
        assert_stored(&acknowledged, &stored);
        println!("{version}: {} events", stored.len());
    })
    .await;
}
