//! Settling: ack, nak, term, extend, release, and no settlement.

use std::collections::BTreeMap;
use std::time::Duration;

use a3s_event::{Delivery, ErrorKind, SubscribeOptions};
use tokio::time::Instant;

use crate::world::{A_WHILE, Reader, World, ms};

fn ack_wait(secs: u64) -> SubscribeOptions {
    SubscribeOptions { ack_wait_secs: Some(secs), ..Default::default() }
}

/// Time after which an unsettled lease of so many seconds has expired.
const fn after_a_lease_of(secs: u64) -> Duration {
    Duration::from_secs(secs + 1)
}

pub(super) async fn first_deliveries_come_in_order(w: &World<'_>) {
    let mut live = w.subscribe().await;
    let published = w.publish_many("a", 30).await;
    w.check_eq("sequences in order of delivery", &live.ack_many(30).await, &published);
    let mut unsettled = w.subscribe().await;
    let held: Vec<_> = unsettled.hold(30).await.iter().map(Delivery::sequence).collect();
    w.check_eq("sequences without acks", &held, &published);
}

pub(super) async fn a_subject_is_delivered_in_order(w: &World<'_>) {
    let mut live = w.subscribe().await;
    let mut published = BTreeMap::<_, Vec<u64>>::new();
    for number in 0..30 {
        let topic = ["a", "b", "c"][number / 2 % 3];
        published.entry(w.subject(topic)).or_default().push(w.publish(topic).await);
    }
    for reader in [&mut live, &mut w.subscribe().await] {
        let mut received = BTreeMap::<_, Vec<u64>>::new();
        for _ in 0..30 {
            let delivery = reader.next().await;
            received.entry(delivery.event().subject.clone()).or_default().push(delivery.sequence());
            w.ok("ack", delivery.ack().await);
        }
        w.check_eq("sequences by subject", &received, &published);
    }
}

pub(super) async fn num_delivered_starts_at_one_and_counts(w: &World<'_>) {
    let mut reader = w.subscribe().await;
    w.publish_many("a", 2).await;
    let other = reader.next().await;
    for expected in 1..=4 {
        let delivery = reader.next().await;
        w.check_eq("num_delivered", &delivery.num_delivered(), &expected);
        w.ok("nak", delivery.nak().await);
    }
    w.check_eq("num_delivered of the other event", &other.num_delivered(), &1);
}

pub(super) async fn every_view_shows_the_same_event(w: &World<'_>) {
    let mut reader = w.subscribe().await;
    let event = w.event("a").with_metadata("key", "value");
    let sequence = w.publish_event(&event).await;
    let expected = serde_json::to_value(&event).expect("an event is JSON");

    let delivery = reader.next().await;
    let shared = serde_json::to_value(delivery.event()).expect("an event is JSON");
    let stream = delivery.stream().to_owned();
    w.check_eq("the shared view", &(shared, delivery.sequence()), &(expected.clone(), sequence));
    w.ok("nak", delivery.nak().await);

    let pending = w.call("next_manual_ack", reader.subscription.next_manual_ack()).await;
    let Some(pending) = w.ok("next_manual_ack", pending) else { w.fail(&"next_manual_ack ended") };
    let owned = serde_json::to_value(&pending.received.event).expect("an event is JSON");
    w.check_eq("the owned view", &(owned, pending.received.sequence), &(expected.clone(), sequence));
    w.check_eq("num_delivered", &pending.received.num_delivered, &2);
    w.check_eq("stream", &pending.received.stream, &stream);
    w.ok("nak", pending.nak().await);

    let received = reader.next_settled().await;
    let settled = serde_json::to_value(&received.event).expect("an event is JSON");
    w.check_eq("the settled view", &(settled, received.sequence), &(expected, sequence));
    w.check_eq("num_delivered", &received.num_delivered, &3);
    w.check_eq("stream", &received.stream, &stream);
}

pub(super) async fn ack_settles(w: &World<'_>) {
    let mut reader = w.subscribe_with(ack_wait(1)).await;
    w.publish_many("a", 2).await;
    w.ok("ack", reader.next().await.ack().await);
    w.ok("ack_confirmed", reader.next().await.ack_confirmed().await);
    reader.silent_for(after_a_lease_of(1), "acked events are not redelivered").await;
}

/// Acks this many events, without waiting for the backend.
async fn ack_all(reader: &mut Reader<'_>, count: usize) {
    for _ in 0..count {
        let delivery = reader.next().await;
        reader.world.ok("ack", delivery.ack().await);
    }
}

/// Returns the number of unsettled events of this consumer, as another connection sees it at once.
async fn pending(w: &World<'_>, name: &str) -> Option<u64> {
    let elsewhere = w.fixture.connect().await;
    let consumers = w.ok("consumers", w.call("consumers", elsewhere.consumers()).await);
    consumers.into_iter().find(|consumer| consumer.name == name).map(|consumer| consumer.pending)
}

pub(super) async fn a_confirmed_ack_is_stored(w: &World<'_>) {
    let name = w.name("confirmed");
    w.publish("a").await;
    let mut reader = w.durable(&name).await;
    w.ok("ack_confirmed", reader.next().await.ack_confirmed().await);
    w.check_eq("unsettled events", &pending(w, &name).await, &Some(0));
}

pub(super) async fn flush_waits_for_acks(w: &World<'_>) {
    let name = w.name("flushed");
    w.publish_many("a", 30).await;
    let mut reader = w.durable(&name).await;
    ack_all(&mut reader, 30).await;
    w.ok("flush", w.call("flush", reader.subscription.flush()).await);
    w.check_eq("unsettled events", &pending(w, &name).await, &Some(0));
}

pub(super) async fn close_waits_for_acks(w: &World<'_>) {
    let name = w.name("closed");
    w.publish_many("a", 30).await;
    let mut reader = w.durable(&name).await;
    ack_all(&mut reader, 30).await;
    w.ok("close", w.call("close", reader.subscription.close()).await);
    w.check_eq("unsettled events", &pending(w, &name).await, &Some(0));
}

pub(super) async fn nak_redelivers_at_once(w: &World<'_>) {
    let mut reader = w.subscribe().await;
    let sequence = w.publish("a").await;
    w.ok("nak", reader.next().await.nak().await);
    let again = reader.next_at_once().await;
    w.check_eq("sequence and attempt", &(again.sequence(), again.num_delivered()), &(sequence, 2));
    w.ok("ack", again.ack().await);
    reader.silent_for(A_WHILE, "the event is settled").await;
}

fn backoff(secs: &[u64]) -> SubscribeOptions {
    SubscribeOptions { backoff_secs: secs.to_vec(), ..Default::default() }
}

pub(super) async fn nak_waits_for_the_backoff_of_its_attempt(w: &World<'_>) {
    let mut reader = w.subscribe_with(backoff(&[1, 2])).await;
    w.publish("a").await;
    let mut delivery = reader.next().await;
    for (attempt, pause) in [(1, ms(1_000)), (2, ms(2_000)), (3, ms(2_000))] {
        w.check_eq("num_delivered", &delivery.num_delivered(), &attempt);
        let refused = Instant::now();
        w.ok("nak", delivery.nak().await);
        let why = format!("the backoff after attempt {attempt} is not over");
        delivery = reader.next_not_before(refused, pause, &why).await;
    }
    w.check_eq("num_delivered", &delivery.num_delivered(), &4);
}

pub(super) async fn nak_after_waits_its_delay(w: &World<'_>) {
    let mut reader = w.subscribe().await;
    w.publish("a").await;
    let delivery = reader.next().await;
    let refused = Instant::now();
    w.ok("nak_after", delivery.nak_after(ms(1_000)).await);
    let again = reader.next_not_before(refused, ms(1_000), "the delay is not over").await;
    w.check_eq("num_delivered", &again.num_delivered(), &2);
}

pub(super) async fn nak_after_goes_before_the_backoff(w: &World<'_>) {
    let mut reader = w.subscribe_with(backoff(&[3_600])).await;
    w.publish("a").await;
    w.ok("nak_after", reader.next().await.nak_after(ms(100)).await);
    w.check_eq("num_delivered", &reader.next().await.num_delivered(), &2);
}

pub(super) async fn a_delayed_event_holds_no_other_up(w: &World<'_>) {
    let mut reader = w.subscribe().await;
    let published = w.publish_many("a", 3).await;
    w.ok("nak_after", reader.next().await.nak_after(ms(60_000)).await);
    w.check_eq("the other events", &reader.ack_many(2).await, &published[1..].to_vec());
}

pub(super) async fn term_settles(w: &World<'_>) {
    let mut reader = w.subscribe_with(ack_wait(1)).await;
    w.publish("a").await;
    w.ok("term", reader.next().await.term("not for us").await);
    reader.silent_for(after_a_lease_of(1), "a terminated event is not redelivered").await;
}

pub(super) async fn extend_restarts_the_lease(w: &World<'_>) {
    let mut reader = w.subscribe_with(ack_wait(3)).await;
    w.publish("a").await;
    let delivery = reader.next().await;
    for _ in 0..4 {
        reader.silent_for(ms(1_000), "the lease was extended").await;
        w.ok("extend", delivery.extend().await);
    }
    w.ok("ack", delivery.ack().await);
    reader.silent_for(after_a_lease_of(3), "the event is settled").await;
}

/// Drops one delivery in each view. Nothing may happen at once, and each event must be redelivered after the lease.
async fn dropped<'w>(w: &'w World<'_>) -> (Reader<'w>, Vec<u64>) {
    let mut reader = w.subscribe_with(ack_wait(1)).await;
    let published = w.publish_many("a", 2).await;
    drop(reader.next().await);
    let pending = w.call("next_manual_ack", reader.subscription.next_manual_ack()).await;
    // Moving the event out drops the rest.
    let received = w.ok("next_manual_ack", pending).map(|pending| pending.received);
    w.check_eq("sequence", &received.map(|received| received.sequence), &Some(published[1]));
    (reader, published)
}

pub(super) async fn dropping_a_delivery_is_not_an_ack(w: &World<'_>) {
    let (mut reader, published) = dropped(w).await;
    w.check_eq("events after the lease", &reader.ack_many(2).await, &published);
}

pub(super) async fn dropping_a_delivery_is_not_a_nak(w: &World<'_>) {
    let before = Instant::now();
    let (mut reader, _) = dropped(w).await;
    reader.next_not_before(before, ms(1_000), "the lease of a dropped delivery still holds").await;
}

/// Returns a delivery whose lease has expired, and the delivery that replaced it.
async fn overdue<'w>(w: &'w World<'_>) -> (Reader<'w>, Delivery, Delivery) {
    let mut reader = w.subscribe_with(ack_wait(2)).await;
    w.publish("a").await;
    let late = reader.next().await;
    let newer = reader.next().await;
    w.check_eq("attempts", &(late.num_delivered(), newer.num_delivered()), &(1, 2));
    (reader, late, newer)
}

pub(super) async fn a_late_ack_does_not_settle_the_newer_delivery(w: &World<'_>) {
    let (mut reader, late, newer) = overdue(w).await;
    // Another case checks if the ack is refused.
    let _ = late.ack().await;
    drop(newer);
    w.check_eq("num_delivered of the third delivery", &reader.next().await.num_delivered(), &3);
}

pub(super) async fn a_late_settlement_says_so(w: &World<'_>) {
    let (mut reader, late, newer) = overdue(w).await;
    let error = w.refused("a late extend", late.extend().await);
    w.check("extend is refused", matches!(error.kind(), ErrorKind::Ack | ErrorKind::Unsupported));
    let error = w.refused("a late ack", late.ack_confirmed().await);
    w.check_eq("kind of the error", &error.kind(), &ErrorKind::Ack);
    w.ok("ack of the newer delivery", newer.ack().await);
    reader.silent_for(after_a_lease_of(2), "the event is settled").await;
}

pub(super) async fn a_late_nak_leaves_the_newer_delivery_alone(w: &World<'_>) {
    let (mut reader, late, newer) = overdue(w).await;
    let error = w.refused("a late nak", late.nak().await);
    w.check_eq("kind of the error", &error.kind(), &ErrorKind::Ack);
    reader.silent_for(A_WHILE, "the newer delivery still has its lease").await;
    w.ok("ack of the newer delivery", newer.ack().await);
}

pub(super) async fn release_gives_back_without_counting(w: &World<'_>) {
    let mut reader = w.subscribe().await;
    w.publish("a").await;
    for _ in 0..3 {
        let delivery = reader.next_at_once().await;
        w.check_eq("num_delivered", &delivery.num_delivered(), &1);
        w.ok("release", delivery.release().await);
    }
}

pub(super) async fn what_is_due_comes_in_sequence_order(w: &World<'_>) {
    let mut reader = w.subscribe().await;
    let mut published = w.publish_many("a", 6).await;
    let mut held: Vec<_> = reader.hold(6).await.into_iter().map(Some).collect();
    for (position, index) in [3, 5, 1, 4, 0, 2].into_iter().enumerate() {
        let Some(delivery) = held[index].take() else { w.fail(&"each event is settled once") };
        let given_back = if position % 2 == 0 { delivery.release().await } else { delivery.nak().await };
        w.ok("release or nak", given_back);
        // No two may be released or nacked at the same time.
        w.elapse(ms(3)).await;
    }
    published.push(w.publish("a").await);
    w.check_eq("sequences in order of redelivery", &reader.ack_many(7).await, &published);
}

pub(super) async fn a_delay_may_have_any_length(w: &World<'_>) {
    let mut reader = w.subscribe_with(ack_wait(1)).await;
    w.publish("a").await;
    for delay in [Duration::ZERO, Duration::from_nanos(1)] {
        let delivery = reader.next().await;
        w.ok("nak_after", delivery.nak_after(delay).await);
    }
    let delivery = reader.next_at_once().await;
    w.check_eq("attempts", &delivery.num_delivered(), &3);
    w.ok("nak_after", delivery.nak_after(Duration::MAX).await);
    let other = w.publish("a").await;
    w.check_eq("another event", &reader.ack_next().await, &other);
    reader.silent_for(after_a_lease_of(1), "the delay of the nak never ends").await;
}
