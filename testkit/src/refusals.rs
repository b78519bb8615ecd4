//! Checks that absent capabilities are refused.

use std::time::Duration;

use a3s_event::provider::{ConsumerPosition, PublishRequest};
use a3s_event::{DeliverPolicy, Delivery, ErrorKind, HistoryQuery, PublishOptions, Result, SubscribeOptions};

use crate::Need;
use crate::world::World;

/// Checks that calls that need an absent capability are refused with `Unsupported`.
pub(crate) async fn check(world: &World<'_>, need: Need) {
    match need {
        Need::Durable => {
            let name = world.name("refused");
            let opened = world.provider.subscribe_durable(&name, &world.all()).await;
            refused(world, "subscribe_durable", opened);
        }
        Need::SharedConsumers => second_member(world).await,
        Need::Redelivery => {
            for (name, options) in redelivery_options() {
                refused_option(world, name, options).await;
            }
            let answer = one_delivery(world).await.nak().await;
            refused(world, "nak", answer);
        }
        Need::NakWithDelay => {
            let options = SubscribeOptions { backoff_secs: vec![1], ..Default::default() };
            refused_option(world, "backoff_secs", options).await;
            let delivery = one_delivery(world).await;
            let answer = delivery.nak_after(Duration::from_secs(1)).await;
            refused(world, "nak_after", answer);
        }
        Need::Term => {
            let answer = one_delivery(world).await.term("refused").await;
            refused(world, "term", answer);
        }
        Need::Extend => {
            let answer = one_delivery(world).await.extend().await;
            refused(world, "extend", answer);
        }
        Need::Dedup => {
            let options = PublishOptions { msg_id: Some(world.name("refused")), ..Default::default() };
            refused_publish(world, "msg_id", options).await;
        }
        Need::ExpectedSequence => {
            let options = PublishOptions { expected_sequence: Some(0), ..Default::default() };
            refused_publish(world, "expected_sequence", options).await;
        }
        Need::StartPolicies => {
            let options = SubscribeOptions { deliver_policy: DeliverPolicy::New, ..Default::default() };
            refused_option(world, "deliver_policy", options).await;
        }
        Need::MaxAckPending => {
            let options = SubscribeOptions { max_ack_pending: Some(1), ..Default::default() };
            refused_option(world, "max_ack_pending", options).await;
        }
        Need::HistoryQuery => {
            let answer = world.provider.query(&HistoryQuery::new(1)).await;
            refused(world, "query", answer);
        }
        Need::ConsumerInfo => {
            refused(world, "consumers", world.provider.consumers().await);
            let reader = world.subscribe().await;
            refused(world, "lag", reader.subscription.lag().await);
        }
        Need::ResetConsumer => {
            let answer = world.provider.reset_consumer(&world.name("refused"), ConsumerPosition::First).await;
            refused(world, "reset_consumer", answer);
        }
        // These describe how an existing call behaves: there is no call to refuse.
        Need::FencedSettlement
        | Need::ReleaseKeepsAttempt
        | Need::ReportsGaps
        | Need::TotalOrder
        | Need::EventSharing => {}
    }
}

fn redelivery_options() -> [(&'static str, SubscribeOptions); 2] {
    let max_deliver = SubscribeOptions { max_deliver: Some(1), ..Default::default() };
    let ack_wait = SubscribeOptions { ack_wait_secs: Some(1), ..Default::default() };
    [("max_deliver", max_deliver), ("ack_wait_secs", ack_wait)]
}

async fn second_member(world: &World<'_>) {
    if world.provider.capabilities().durable.is_no() {
        // Without durable consumers there is no name to share.
        return;
    }
    let name = world.name("refused");
    let _first = world.durable(&name).await;
    let second = world.provider.subscribe_durable(&name, &world.all()).await;
    refused(world, "a second member of a durable consumer", second);
}

async fn refused_publish(world: &World<'_>, what: &str, options: PublishOptions) {
    refused(world, what, world.publish_with("refused", options.clone()).await);
    let event = world.event("refused");
    let batch = [PublishRequest::new(&event, options)];
    let answers = world.call("publish_batch", world.provider.publish_batch(&batch)).await;
    world.check_eq("answers to a batch of one", &answers.len(), &1);
    for answer in answers {
        refused(world, &format!("{what} in a batch"), answer);
    }
    world.check_eq("stored events", &world.stored().await, &0);
}

async fn refused_option(world: &World<'_>, what: &str, options: SubscribeOptions) {
    let opened = world.provider.subscribe_with_options(&world.all(), &options).await;
    refused(world, what, opened);
    // Without durable consumers this is refused as well.
    let (name, filter) = (world.name("refused"), world.all());
    let opened = world.provider.subscribe_durable_with_options(&name, &filter, &options).await;
    refused(world, &format!("{what} of a durable consumer"), opened);
}

async fn one_delivery(world: &World<'_>) -> Delivery {
    world.publish("refused").await;
    world.subscribe().await.next().await
}

fn refused<T>(world: &World<'_>, what: &str, result: Result<T>) {
    let error = world.refused(&format!("{what}, a capability that is declared absent"), result);
    world.check_eq(what, &error.kind(), &ErrorKind::Unsupported);
}
