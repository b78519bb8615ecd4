//! Start positions of a new consumer.

use a3s_event::{DeliverPolicy, Event, SubscribeOptions};

use crate::world::{A_WHILE, Reader, World, ms};

fn from(deliver_policy: DeliverPolicy) -> SubscribeOptions {
    SubscribeOptions { deliver_policy, ..Default::default() }
}

/// Checks that the consumer receives exactly `expected`, and then a live event. Returns the sequence of that event.
async fn receives(w: &World<'_>, mut reader: Reader<'_>, expected: &[u64]) -> u64 {
    let live = w.publish("a").await;
    let expected = [expected, &[live]].concat();
    w.check_eq("received sequences", &reader.ack_many(expected.len()).await, &expected);
    reader.silent_for(A_WHILE, "every event was received").await;
    live
}

pub(super) async fn without_a_policy_everything_retained_comes_first(w: &World<'_>) {
    let published = w.publish_many("a", 3).await;
    let live = receives(w, w.subscribe().await, &published).await;
    let all = [&published[..], &[live]].concat();
    receives(w, w.subscribe_with(SubscribeOptions::default()).await, &all).await;
}

pub(super) async fn last_starts_with_the_newest_match(w: &World<'_>) {
    let published = w.publish_many("a", 3).await;
    receives(w, w.subscribe_with(from(DeliverPolicy::Last)).await, &published[2..]).await;
}

pub(super) async fn new_skips_what_is_stored(w: &World<'_>) {
    w.publish_many("a", 3).await;
    receives(w, w.subscribe_with(from(DeliverPolicy::New)).await, &[]).await;
}

pub(super) async fn by_start_sequence_starts_there(w: &World<'_>) {
    let published = w.publish_many("a", 5).await;
    let policy = DeliverPolicy::ByStartSequence { sequence: published[2] };
    receives(w, w.subscribe_with(from(policy)).await, &published[2..]).await;
}

pub(super) async fn by_start_time_means_the_time_of_storage(w: &World<'_>) {
    let stored_with_timestamp =
        async |timestamp: u64| w.publish_event(&Event { timestamp, ..w.event("a") }).await;
    let far_future = 4_000_000_000_000;
    stored_with_timestamp(far_future).await;
    let start = w.storage_time_between().await;
    let wanted = [stored_with_timestamp(1).await, stored_with_timestamp(far_future).await];
    let policy = DeliverPolicy::ByStartTime { timestamp: start };
    receives(w, w.subscribe_with(from(policy)).await, &wanted).await;
}

/// Returns a consumer that starts in the future, an event that was stored before that, and the start.
async fn before_its_start<'w>(w: &'w World<'_>) -> (Reader<'w>, u64, u64) {
    let mut head_start = 1_500;
    loop {
        let timestamp = w.harness.unix_millis() + head_start;
        let reader = w.subscribe_with(by_start_time(timestamp)).await;
        let before = w.publish("a").await;
        if w.harness.unix_millis() < timestamp {
            return (reader, before, timestamp);
        }
        // The machine was too busy to publish in time.
        head_start *= 2;
    }
}

fn by_start_time(timestamp: u64) -> SubscribeOptions {
    from(DeliverPolicy::ByStartTime { timestamp })
}

pub(super) async fn a_start_time_in_the_future_is_waited_for(w: &World<'_>) {
    let mut never = Vec::new();
    for far in [w.harness.unix_millis() + 1_000_000_000_000, i64::MAX.unsigned_abs(), u64::MAX] {
        never.push(w.subscribe_with(by_start_time(far)).await);
    }
    let (mut reader, before, timestamp) = before_its_start(w).await;
    reader.silent_for(A_WHILE, "the event was stored before the start").await;
    w.storage_time_behind(timestamp).await;
    let behind = w.publish("a").await;
    w.check("sequences increase", behind > before);
    w.check_eq("events stored from the start time", &reader.ack_next().await, &behind);
    for reader in &mut never {
        reader.silent_for(ms(50), "the start time is in the distant future").await;
    }
}

pub(super) async fn last_per_subject_starts_with_the_newest_of_each(w: &World<'_>) {
    let mut published = Vec::new();
    for topic in ["x", "y", "x", "z", "y"] {
        published.push(w.publish(topic).await);
    }
    receives(w, w.subscribe_with(from(DeliverPolicy::LastPerSubject)).await, &published[2..]).await;
}

pub(super) async fn a_durable_honours_its_policy(w: &World<'_>) {
    let published = w.publish_many("a", 4).await;
    let last = w.durable_with(&w.name("last"), from(DeliverPolicy::Last)).await;
    let live = receives(w, last, &published[3..]).await;
    let policy = DeliverPolicy::ByStartSequence { sequence: published[1] };
    let second = w.durable_with(&w.name("sequence"), from(policy)).await;
    receives(w, second, &[&published[1..], &[live]].concat()).await;
}

pub(super) async fn a_policy_counts_only_when_the_consumer_is_made(w: &World<'_>) {
    let name = w.name("position");
    w.publish_many("a", 2).await;
    let policy = from(DeliverPolicy::New);
    drop(w.durable_with(&name, policy.clone()).await);
    let missed = w.publish("a").await;
    receives(w, w.durable_with(&name, policy).await, &[missed]).await;
}
