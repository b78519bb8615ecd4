//! Leases and the limits on deliveries.

use a3s_event::provider::PublishRequest;
use a3s_event::{Delivery, SubscribeOptions};
use tokio::time::Instant;

use crate::world::{A_WHILE, World, ms};

fn ack_wait(secs: u64) -> SubscribeOptions {
    SubscribeOptions { ack_wait_secs: Some(secs), ..Default::default() }
}

pub(super) async fn an_unsettled_event_comes_again(w: &World<'_>) {
    let mut reader = w.subscribe_with(ack_wait(1)).await;
    let sequence = w.publish("a").await;
    let _held = reader.next().await;
    for attempt in 2..=3 {
        let again = reader.next().await;
        w.check_eq("sequence and attempt", &(again.sequence(), again.num_delivered()), &(sequence, attempt));
    }
}

pub(super) async fn a_lease_is_not_cut_short(w: &World<'_>) {
    let mut reader = w.subscribe_with(ack_wait(2)).await;
    w.publish("a").await;
    let before = Instant::now();
    let _held = reader.next().await;
    reader.next_not_before(before, ms(2_000), "the lease of two seconds holds").await;
}

pub(super) async fn the_ack_wait_is_30_s_by_default(w: &World<'_>) {
    let mut reader = w.subscribe().await;
    let sequence = w.publish("a").await;
    let before = Instant::now();
    let _held = reader.next().await;
    let again = reader.next_not_before(before, ms(30_000), "the lease of thirty seconds holds").await;
    w.check_eq("sequence and attempt", &(again.sequence(), again.num_delivered()), &(sequence, 2));
    w.ok("ack", again.ack().await);
}

pub(super) async fn the_lease_counts_from_hand_out(w: &World<'_>) {
    let mut reader = w.subscribe_with(ack_wait(1)).await;
    let published = w.publish_many("a", 2).await;
    w.check_eq("first event", &reader.ack_next().await, &published[0]);
    // A provider that fetched both at once has had the second for this long already.
    w.elapse(ms(700)).await;
    let before = Instant::now();
    let second = reader.next().await;
    w.check_eq("second event", &(second.sequence(), second.num_delivered()), &(published[1], 1));
    reader.next_not_before(before, ms(1_000), "the lease began when the event was handed out").await;
}

pub(super) async fn a_member_takes_over_from_a_dead_one(w: &World<'_>) {
    let name = w.name("crash");
    let mut dead = w.durable_with(&name, ack_wait(1)).await;
    let mut waiting = w.durable(&name).await;
    let published = w.publish_many("a", 2).await;
    for sequence in &published {
        w.check_eq("events held by the dead member", &dead.next().await.sequence(), sequence);
    }
    drop(dead);
    w.check_eq("events taken over by the other member", &waiting.ack_many(2).await, &published);
}

pub(super) async fn a_waiting_member_takes_over_a_lost_lease(w: &World<'_>) {
    let name = w.name("lease");
    let mut holding = w.durable_with(&name, ack_wait(1)).await;
    let sequence = w.publish("a").await;
    let _held = holding.next().await;
    // It waits before the lease expires, and no publish can wake it.
    let mut waiting = w.durable(&name).await;
    let taken_over = waiting.next().await;
    let found = (taken_over.sequence(), taken_over.num_delivered());
    w.check_eq("sequence and attempt", &found, &(sequence, 2));
}

fn at_most(max_deliver: i64) -> SubscribeOptions {
    SubscribeOptions { max_deliver: Some(max_deliver), ..ack_wait(1) }
}

pub(super) async fn max_deliver_ends_naks(w: &World<'_>) {
    let mut reader = w.subscribe_with(at_most(3)).await;
    w.publish("a").await;
    for attempt in 1..=3 {
        let delivery = reader.next().await;
        w.check_eq("num_delivered", &delivery.num_delivered(), &attempt);
        w.ok("nak", delivery.nak().await);
    }
    reader.silent_for(ms(1_600), "max_deliver is 3").await;
}

pub(super) async fn max_deliver_ends_lost_leases(w: &World<'_>) {
    let mut reader = w.subscribe_with(at_most(2)).await;
    w.publish("a").await;
    for attempt in 1..=2 {
        w.check_eq("num_delivered", &reader.next().await.num_delivered(), &attempt);
    }
    reader.silent_for(ms(2_500), "max_deliver is 2").await;
}

pub(super) async fn an_exhausted_event_holds_no_other_up(w: &World<'_>) {
    let options = SubscribeOptions { max_ack_pending: Some(1), ..at_most(1) };
    let mut reader = w.subscribe_with(options).await;
    let published = w.publish_many("a", 3).await;
    w.check_eq("first event", &reader.next().await.sequence(), &published[0]);
    w.check_eq("event after a lost lease", &reader.next().await.sequence(), &published[1]);
    w.check_eq("event after another lost lease", &reader.ack_next().await, &published[2]);
}

pub(super) async fn redelivery_is_unlimited_by_default(w: &World<'_>) {
    let mut reader = w.subscribe().await;
    w.publish("a").await;
    for attempt in 1..=12 {
        let delivery = reader.next().await;
        w.check_eq("num_delivered", &delivery.num_delivered(), &attempt);
        w.ok("nak", delivery.nak().await);
    }
}

fn pending_limit(max: i64) -> SubscribeOptions {
    SubscribeOptions { max_ack_pending: Some(max), ..Default::default() }
}

pub(super) async fn max_ack_pending_pauses_delivery(w: &World<'_>) {
    let mut reader = w.subscribe_with(pending_limit(3)).await;
    let published = w.publish_many("a", 5).await;
    let held = reader.hold(3).await;
    let sequences: Vec<_> = held.iter().map(Delivery::sequence).collect();
    w.check_eq("held events", &sequences, &published[..3].to_vec());
    reader.silent_for(A_WHILE, "three events are unsettled").await;
}

pub(super) async fn settling_one_resumes_delivery(w: &World<'_>) {
    let mut reader = w.subscribe_with(pending_limit(2)).await;
    let published = w.publish_many("a", 8).await;
    let mut held = reader.hold(2).await;
    for expected in &published[2..] {
        w.ok("ack", held.remove(0).ack().await);
        let next = reader.next().await;
        w.check_eq("next event", &next.sequence(), expected);
        held.push(next);
        reader.silent_for(ms(50), "two events are unsettled").await;
    }
}

pub(super) async fn settling_wakes_a_waiting_member(w: &World<'_>) {
    let name = w.name("full");
    let mut holding = w.durable_with(&name, pending_limit(1)).await;
    let published = w.publish_many("a", 2).await;
    let held = holding.next().await;
    let mut waiting = w.durable(&name).await;
    let (next, settled) = tokio::join!(waiting.next_at_once(), async {
        w.elapse(ms(50)).await;
        held.ack().await
    });
    w.ok("ack", settled);
    w.check_eq("next event", &next.sequence(), &published[1]);
}

pub(super) async fn members_share_max_ack_pending(w: &World<'_>) {
    let name = w.name("full");
    let mut first = w.durable_with(&name, pending_limit(2)).await;
    let mut second = w.durable(&name).await;
    w.publish_many("a", 5).await;
    let _held = (first.next().await, second.next().await);
    first.silent_for(A_WHILE, "the members hold two events").await;
    second.silent_for(A_WHILE, "the members hold two events").await;
}

pub(super) async fn max_ack_pending_lets_redeliveries_through(w: &World<'_>) {
    let mut reader = w.subscribe_with(pending_limit(1)).await;
    let published = w.publish_many("a", 2).await;
    w.ok("nak", reader.next().await.nak().await);
    let again = reader.next().await;
    w.check_eq("sequence and attempt", &(again.sequence(), again.num_delivered()), &(published[0], 2));
    w.ok("ack", again.ack().await);
    w.check_eq("next event", &reader.ack_next().await, &published[1]);
}

pub(super) async fn a_thousand_events_may_be_unsettled_by_default(w: &World<'_>) {
    let events: Vec<_> = (0..1_001).map(|_| w.event("a")).collect();
    let batch: Vec<_> = events.iter().map(PublishRequest::from).collect();
    // No lease may expire while a slow disk delivers a thousand events.
    let mut reader = w.subscribe_with(ack_wait(3_600)).await;
    for answer in w.call("publish_batch", w.provider.publish_batch(&batch)).await {
        w.ok("an entry", answer);
    }
    let mut held = reader.hold(1_000).await;
    reader.silent_for(A_WHILE, "a thousand events are unsettled").await;
    if let Some(one) = held.pop() {
        w.ok("ack", one.ack().await);
    }
    w.check_eq("last event", &reader.next().await.event().id, &events[1_000].id);
}
