//! Named consumers: position, sharing, reopening, forgetting.

use std::collections::BTreeSet;
use std::future::Future;

use a3s_event::provider::SubscriptionEnd;
use a3s_event::provider::group::ConsumerConfig;
use a3s_event::{DeliverPolicy, ErrorKind, EventError, Result, SubscribeOptions, Subscription};

use crate::Outcome;
use crate::world::{A_WHILE, Reader, SOON, World, ms};

pub(super) const NO_RESTART: Outcome = Outcome::NotApplicable("the provider keeps nothing across a restart");

pub(super) async fn a_durable_keeps_its_position(w: &World<'_>) {
    let name = w.name("position");
    let published = w.publish_many("a", 4).await;
    let mut reader = w.durable(&name).await;
    w.check_eq("first two", &reader.ack_many(2).await, &published[..2].to_vec());
    w.ok("close", reader.subscription.close().await);
    drop(reader);
    let while_away = w.publish("a").await;
    let mut reader = w.durable(&name).await;
    let rest = [&published[2..], &[while_away]].concat();
    w.check_eq("the rest after reopening", &reader.ack_many(3).await, &rest);
    reader.silent_for(A_WHILE, "settled events are not redelivered").await;
}

/// Takes and acks `count` events on either member; returns how many each member got.
async fn share(readers: &mut [Reader<'_>; 2], count: usize) -> (Vec<u64>, [usize; 2]) {
    let mut sequences = Vec::new();
    let mut shares = [0, 0];
    let [first, second] = readers;
    let w = first.world;
    while sequences.len() < count {
        let taken = tokio::select! {
            answer = first.subscription.next_delivery() => Some((0, answer)),
            answer = second.subscription.next_delivery() => Some((1, answer)),
            () = tokio::time::sleep(SOON) => None,
        };
        let Some((member, answer)) = taken else {
            w.fail(&format!("expected {count} events, found {} within {SOON:?}", sequences.len()))
        };
        let Some(delivery) = w.ok("next_delivery", answer) else { w.fail(&"the subscription ended") };
        sequences.push(delivery.sequence());
        shares[member] += 1;
        w.ok("ack", delivery.ack().await);
    }
    sequences.sort_unstable();
    (sequences, shares)
}

pub(super) async fn members_share_the_work(w: &World<'_>) {
    let name = w.name("shared");
    let elsewhere = w.fixture.connect().await;
    let mut readers = [w.durable(&name).await, w.durable_on(&*elsewhere, &name, None).await];
    let published = w.publish_many("a", 20).await;
    let (sequences, _) = share(&mut readers, 20).await;
    w.check_eq("sequences received by the two members", &sequences, &published);
    for reader in &mut readers {
        reader.silent_for(A_WHILE, "each event goes to one member").await;
    }
}

pub(super) async fn every_member_gets_a_share(w: &World<'_>) {
    let name = w.name("shared");
    let mut first = w.durable(&name).await;
    let mut second = w.durable(&name).await;
    let mut seen = BTreeSet::new();
    // Each holds one while the other takes the next.
    for _ in 0..3 {
        w.publish("a").await;
        let held = first.next().await;
        w.publish("a").await;
        seen.extend([held.sequence(), second.ack_next().await]);
        w.ok("ack", held.ack().await);
    }
    w.check_eq("distinct events", &seen.len(), &6);
}

pub(super) async fn a_busy_member_holds_up_nobody(w: &World<'_>) {
    let name = w.name("shared");
    let elsewhere = w.fixture.connect().await;
    let mut busy = w.durable(&name).await;
    let held_sequence = w.publish("a").await;
    let held = busy.next().await;
    w.check_eq("sequence held by the busy member", &held.sequence(), &held_sequence);
    let mut idle = w.durable_on(&*elsewhere, &name, None).await;
    for topic in ["a", "b", "a", "c"] {
        let published = w.publish(topic).await;
        w.check_eq("sequence received by the idle member", &idle.ack_next().await, &published);
    }
    w.ok("ack", held.ack().await);
}

pub(super) async fn each_durable_gets_everything(w: &World<'_>) {
    let mut first = w.durable(&w.name("first")).await;
    let mut second = w.durable(&w.name("second")).await;
    let published = w.publish_many("a", 5).await;
    w.check_eq("events of the first consumer", &first.ack_many(5).await, &published);
    w.check_eq("events of the second consumer", &second.ack_many(5).await, &published);
}

fn conflict_field(opened: Result<Box<dyn Subscription>>) -> Option<String> {
    match opened {
        Err(EventError::Conflict { field, .. }) => Some(field),
        _ => None,
    }
}

pub(super) async fn another_filter_is_a_conflict(w: &World<'_>) {
    let name = w.name("filter");
    drop(w.durable(&name).await);
    let other = w.subject("other");
    let opened = w.provider.subscribe_durable(&name, &other).await;
    w.check_eq("field of the conflict", &conflict_field(opened).as_deref(), &Some("filter"));
    let options = SubscribeOptions::default();
    let opened = w.provider.subscribe_durable_with_options(&name, &other, &options).await;
    w.check_eq("field of the conflict with options", &conflict_field(opened).as_deref(), &Some("filter"));
}

pub(super) async fn another_start_is_a_conflict(w: &World<'_>) {
    let name = w.name("start");
    drop(w.durable(&name).await);
    let options = SubscribeOptions { deliver_policy: DeliverPolicy::New, ..Default::default() };
    let opened = w.provider.subscribe_durable_with_options(&name, &w.all(), &options).await;
    w.check_eq("field of the conflict", &conflict_field(opened).as_deref(), &Some("deliver_policy"));
}

fn pending_limit(max: i64) -> SubscribeOptions {
    SubscribeOptions { max_ack_pending: Some(max), ..Default::default() }
}

pub(super) async fn opening_without_options_changes_nothing(w: &World<'_>) {
    let name = w.name("settings");
    drop(w.durable_with(&name, pending_limit(1)).await);
    w.publish_many("a", 2).await;
    let mut reader = w.durable(&name).await;
    let _held = reader.next().await;
    reader.silent_for(A_WHILE, "max_ack_pending is still 1").await;
}

pub(super) async fn a_changed_max_ack_pending_applies(w: &World<'_>) {
    let name = w.name("settings");
    let published = w.publish_many("a", 3).await;
    let mut first = w.durable_with(&name, pending_limit(1)).await;
    let _held = first.next().await;
    let mut second = w.durable_with(&name, pending_limit(2)).await;
    let also_held = second.next().await;
    w.check_eq("second event", &also_held.sequence(), &published[1]);
    second.silent_for(A_WHILE, "max_ack_pending is 2").await;
}

pub(super) async fn a_changed_max_deliver_applies(w: &World<'_>) {
    let name = w.name("settings");
    drop(w.durable(&name).await);
    let options = SubscribeOptions { max_deliver: Some(2), ..Default::default() };
    let mut reader = w.durable_with(&name, options).await;
    w.publish("a").await;
    for _ in 0..2 {
        w.ok("nak", reader.next().await.nak().await);
    }
    reader.silent_for(A_WHILE, "max_deliver is 2").await;
}

pub(super) async fn a_changed_ack_wait_applies(w: &World<'_>) {
    let name = w.name("settings");
    let ack_wait = |secs| SubscribeOptions { ack_wait_secs: Some(secs), ..Default::default() };
    drop(w.durable_with(&name, ack_wait(3_600)).await);
    let mut reader = w.durable_with(&name, ack_wait(1)).await;
    w.publish("a").await;
    drop(reader.next().await);
    w.check_eq("deliveries after a second", &reader.next().await.num_delivered(), &2);
}

pub(super) async fn unsubscribe_forgets_the_position(w: &World<'_>) {
    let name = w.name("forgotten");
    let published = w.publish_many("a", 3).await;
    let mut reader = w.durable(&name).await;
    reader.ack_many(3).await;
    drop(reader);
    w.ok("unsubscribe", w.call("unsubscribe", w.provider.unsubscribe(&name)).await);
    let mut reader = w.durable(&name).await;
    w.check_eq("events of the new consumer", &reader.ack_many(3).await, &published);
}

pub(super) async fn unsubscribe_ends_open_subscriptions(w: &World<'_>) {
    let name = w.name("forgotten");
    let mut waiting = w.durable(&name).await;
    let (answer, forgotten) = tokio::join!(waiting.answer(), async {
        w.elapse(ms(50)).await;
        w.provider.unsubscribe(&name).await
    });
    w.ok("unsubscribe", forgotten);
    w.check(&format!("Ok(None), found {answer:?}"), matches!(answer, Ok(None)));
    w.publish("a").await;
    waiting.ended().await;
}

const NOT_TOLD: Outcome = Outcome::NotApplicable("the provider does not report it");

pub(super) async fn a_deleted_consumer_says_so(w: &World<'_>) -> Outcome {
    let name = w.name("deleted");
    let mut reader = w.durable(&name).await;
    w.check_eq("end of an open subscription", &reader.subscription.end(), &None);
    w.ok("unsubscribe", w.call("unsubscribe", w.provider.unsubscribe(&name)).await);
    reader.ended().await;
    let Some(end) = reader.subscription.end() else { return NOT_TOLD };
    w.check_eq("end", &end, &SubscriptionEnd::Deleted);
    w.ok("close", w.call("close", reader.subscription.close()).await);
    w.check_eq("end after a close", &reader.subscription.end(), &Some(SubscriptionEnd::Deleted));
    Outcome::Kept
}

pub(super) async fn a_closed_subscription_says_so(w: &World<'_>) -> Outcome {
    let (mut closed, mut left) = (w.subscribe().await, w.subscribe().await);
    w.check_eq("end of an open subscription", &closed.subscription.end(), &None);
    w.ok("close", w.call("close", closed.subscription.close()).await);
    closed.ended().await;
    let Some(end) = closed.subscription.end() else { return NOT_TOLD };
    w.check_eq("end", &end, &SubscriptionEnd::Closed);
    w.ok("close of the provider", w.call("close", w.provider.close()).await);
    left.ended().await;
    w.check_eq("end with the provider", &left.subscription.end(), &Some(SubscriptionEnd::Closed));
    Outcome::Kept
}

pub(super) async fn settings_are_those_in_force(w: &World<'_>) -> Outcome {
    let name = w.name("settings");
    let config = |options: &SubscribeOptions| {
        let made = ConsumerConfig::new(&w.all(), options);
        w.ok("legal options", made)
    };
    let first = w.durable(&name).await;
    let Some(defaults) = first.subscription.settings() else { return NOT_TOLD };
    w.check_eq("settings without options", &defaults, &config(&SubscribeOptions::default()));
    let supports = w.provider.capabilities();
    let options = SubscribeOptions {
        ack_wait_secs: Some(7).filter(|_| !supports.redelivery.is_no()),
        max_deliver: Some(5).filter(|_| !supports.redelivery.is_no()),
        max_ack_pending: Some(9).filter(|_| !supports.max_ack_pending.is_no()),
        ..Default::default()
    };
    let elsewhere = w.fixture.connect().await;
    let second = w.durable_on(&*elsewhere, &name, Some(options.clone())).await;
    w.check_eq(
        "settings of the member that changed them",
        &second.subscription.settings(),
        &Some(config(&options)),
    );
    let third = w.durable(&name).await;
    w.check_eq(
        "settings of the member that kept them",
        &third.subscription.settings(),
        &Some(config(&options)),
    );
    let told = || async { first.subscription.settings() };
    w.eventually("settings of the earlier member", Some(config(&options)), told).await;
    Outcome::Kept
}

/// Lets three members wait while `end` runs; each must learn that its subscription has ended.
async fn all_are_ended(w: &World<'_>, name: &str, end: impl Future<Output = Result<()>>) {
    let (mut first, mut second, mut third) =
        (w.durable(name).await, w.durable(name).await, w.durable(name).await);
    let (first, second, third, ended) =
        tokio::join!(first.answer(), second.answer(), third.answer(), async {
            w.elapse(ms(50)).await;
            end.await
        });
    w.ok("ending the subscriptions", ended);
    for answer in [first, second, third] {
        w.check(&format!("Ok(None), found {answer:?}"), matches!(answer, Ok(None)));
    }
}

pub(super) async fn unsubscribe_ends_every_waiting_member(w: &World<'_>) {
    let name = w.name("forgotten");
    all_are_ended(w, &name, w.provider.unsubscribe(&name)).await;
}

pub(super) async fn a_closed_provider_ends_every_waiting_member(w: &World<'_>) {
    all_are_ended(w, &w.name("closed"), w.provider.close()).await;
}

pub(super) async fn unsubscribe_of_an_unknown_name_is_fine(w: &World<'_>) {
    let name = w.name("nobody");
    for _ in 0..2 {
        w.ok("unsubscribe", w.call("unsubscribe", w.provider.unsubscribe(&name)).await);
    }
}

pub(super) async fn a_forgotten_consumer_takes_an_ack_but_no_nak(w: &World<'_>) {
    let name = w.name("forgotten");
    w.publish_many("a", 2).await;
    let mut reader = w.durable(&name).await;
    let acked = reader.next().await;
    let naked = reader.next().await;
    w.ok("unsubscribe", w.call("unsubscribe", w.provider.unsubscribe(&name)).await);
    w.ok("ack", acked.ack().await);
    let error = w.refused("nak", naked.nak().await);
    w.check_eq("kind of the error", &error.kind(), &ErrorKind::Closed);
}

pub(super) async fn stored_events_outlive_a_restart(w: &World<'_>) -> Outcome {
    let published = [w.event("a"), w.event("b")];
    for event in &published {
        w.publish_event(event).await;
    }
    let Some(reopened) = w.fixture.restart().await else {
        return NO_RESTART;
    };
    let found = w.ok("history", reopened.history(Some(&w.all()), 10).await);
    let found: Vec<_> = found.iter().map(|event| event.id.as_str()).collect();
    w.check_eq("history", &found, &vec![published[1].id.as_str(), &published[0].id]);
    Outcome::Kept
}

pub(super) async fn a_position_outlives_a_restart(w: &World<'_>) -> Outcome {
    let name = w.name("restart");
    let published = w.publish_many("a", 3).await;
    let mut reader = w.durable(&name).await;
    reader.ack_many(2).await;
    drop(reader);
    let Some(reopened) = w.fixture.restart().await else {
        return NO_RESTART;
    };
    let mut reader = w.durable_on(&*reopened, &name, None).await;
    w.check_eq("next event", &reader.ack_next().await, &published[2]);
    reader.silent_for(A_WHILE, "settled events are not redelivered").await;
    Outcome::Kept
}

pub(super) async fn attempts_outlive_a_restart(w: &World<'_>) -> Outcome {
    let name = w.name("restart");
    let options = SubscribeOptions { ack_wait_secs: Some(1), ..Default::default() };
    w.publish("a").await;
    let mut reader = w.durable_with(&name, options).await;
    drop(reader.next().await);
    drop(reader);
    let Some(reopened) = w.fixture.restart().await else {
        return NO_RESTART;
    };
    let mut reader = w.durable_on(&*reopened, &name, None).await;
    w.check_eq("num_delivered", &reader.next().await.num_delivered(), &2);
    Outcome::Kept
}
