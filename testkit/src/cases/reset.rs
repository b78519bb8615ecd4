//! Moving a consumer to another position.

use a3s_event::provider::ConsumerPosition;
use a3s_event::{DeliverPolicy, ErrorKind, EventError, SubscribeOptions};

use super::durable::NO_RESTART;
use crate::Outcome;
use crate::world::{A_WHILE, World, ms};

async fn reset(w: &World<'_>, name: &str, position: ConsumerPosition) {
    w.ok("reset_consumer", w.call("reset_consumer", w.provider.reset_consumer(name, position)).await);
}

pub(super) async fn a_reset_to_the_first_delivers_everything_again(w: &World<'_>) {
    let name = w.name("moved");
    let published = w.publish_many("a", 4).await;
    let mut reader = w.durable(&name).await;
    reader.ack_many(3).await;
    let _held = reader.next().await;
    reset(w, &name, ConsumerPosition::First).await;
    for expected in &published {
        let delivery = reader.next().await;
        w.check_eq("sequence and attempt", &(delivery.sequence(), delivery.num_delivered()), &(*expected, 1));
        w.ok("ack", delivery.ack().await);
    }
    let live = w.publish("a").await;
    w.check_eq("event published after the move", &reader.ack_next().await, &live);
    reader.silent_for(A_WHILE, "every event was delivered once").await;
}

pub(super) async fn a_reset_to_the_last_skips_what_is_stored(w: &World<'_>) {
    let name = w.name("moved");
    w.publish_many("a", 4).await;
    let mut reader = w.durable(&name).await;
    w.ok("release", reader.next().await.release().await);
    reset(w, &name, ConsumerPosition::Last).await;
    reader.silent_for(A_WHILE, "nothing was published after the move").await;
    let live = w.publish("a").await;
    w.check_eq("event published after the move", &reader.ack_next().await, &live);
}

pub(super) async fn a_reset_goes_to_a_sequence(w: &World<'_>) {
    let name = w.name("moved");
    let published = w.publish_many("a", 4).await;
    let mut reader = w.durable(&name).await;
    reader.ack_many(4).await;
    reset(w, &name, ConsumerPosition::Sequence(published[2])).await;
    w.check_eq("events from the third one", &reader.ack_many(2).await, &published[2..].to_vec());
    reset(w, &name, ConsumerPosition::Sequence(0)).await;
    w.check_eq("events from before the first one", &reader.ack_many(4).await, &published);
    reset(w, &name, ConsumerPosition::Sequence(u64::MAX)).await;
    let live = w.publish("a").await;
    w.check_eq("event after the last one", &reader.ack_next().await, &live);
}

pub(super) async fn a_reset_goes_to_a_time(w: &World<'_>) {
    let name = w.name("moved");
    let before = w.publish("a").await;
    let between = w.storage_time_between().await;
    let behind = w.publish("a").await;
    let mut reader = w.durable(&name).await;
    reader.ack_many(2).await;
    reset(w, &name, ConsumerPosition::Time(between)).await;
    w.check_eq("events stored at that time or later", &reader.ack_next().await, &behind);
    reader.silent_for(A_WHILE, "no further event").await;
    reset(w, &name, ConsumerPosition::Time(0)).await;
    w.check_eq("events stored after 1970", &reader.ack_many(2).await, &vec![before, behind]);
    reset(w, &name, ConsumerPosition::Time(u64::MAX)).await;
    let live = w.publish("a").await;
    w.check_eq("event published after a move to the end", &reader.ack_next().await, &live);
}

pub(super) async fn a_reset_wakes_waiting_members(w: &World<'_>) {
    let name = w.name("moved");
    let published = w.publish_many("a", 2).await;
    let (mut first, mut second) = (w.durable(&name).await, w.durable(&name).await);
    first.ack_many(2).await;
    let (one, two, ()) = tokio::join!(first.next_at_once(), second.next_at_once(), async {
        w.elapse(ms(50)).await;
        reset(w, &name, ConsumerPosition::First).await;
    });
    let mut sequences = vec![one.sequence(), two.sequence()];
    sequences.sort_unstable();
    w.check_eq("sequences received by the two members", &sequences, &published);
}

pub(super) async fn a_reset_forgets_what_was_to_come_first(w: &World<'_>) -> Outcome {
    let name = w.name("moved");
    let published = [w.publish("x").await, w.publish("y").await, w.publish("z").await];
    let options = SubscribeOptions { deliver_policy: DeliverPolicy::LastPerSubject, ..Default::default() };
    let mut reader = w.durable_with(&name, options).await;
    reader.ack_next().await;
    let moved = w.provider.reset_consumer(&name, ConsumerPosition::Last);
    let moved = w.call("reset_consumer", moved).await;
    let live = w.publish("x").await;
    if let Err(EventError::Unsupported { .. }) = moved {
        // Refused for this start, so nothing has changed.
        w.check_eq(
            "events after the refused move",
            &reader.ack_many(3).await,
            &[&published[1..], &[live]].concat(),
        );
        reader.silent_for(A_WHILE, "no further event").await;
        return Outcome::NotApplicable("the provider does not move consumers with this start policy");
    }
    w.ok("reset_consumer", moved);
    w.check_eq("event published after the move", &reader.ack_next().await, &live);
    reader.silent_for(A_WHILE, "the other selected events were discarded").await;
    Outcome::Kept
}

pub(super) async fn what_was_delivered_before_a_reset_cannot_be_settled(w: &World<'_>) {
    let name = w.name("moved");
    let options = SubscribeOptions { ack_wait_secs: Some(3), ..Default::default() };
    w.publish_many("a", 2).await;
    let mut reader = w.durable_with(&name, options).await;
    let (acked, refused) = (reader.next().await, reader.next().await);
    reset(w, &name, ConsumerPosition::First).await;
    let again = [reader.next().await, reader.next().await];
    let error = w.refused("ack_confirmed", acked.ack_confirmed().await);
    w.check_eq("kind of the error of the ack", &error.kind(), &ErrorKind::Ack);
    let error = w.refused("nak", refused.nak().await);
    w.check_eq("kind of the error of the nak", &error.kind(), &ErrorKind::Ack);
    let attempts = again.map(|delivery| delivery.num_delivered());
    w.check_eq("attempts of the new deliveries", &attempts, &[1, 1]);
    // Both are still leased by the new deliveries, which stay unsettled.
    let comes_again = [reader.next().await.num_delivered(), reader.next().await.num_delivered()];
    w.check_eq("attempts after the ack wait", &comes_again, &[2, 2]);
}

pub(super) async fn a_reset_of_an_unknown_consumer_is_not_found(w: &World<'_>) {
    let name = w.name("nobody");
    let answer = w.provider.reset_consumer(&name, ConsumerPosition::First);
    let error = w.refused("reset_consumer", w.call("reset_consumer", answer).await);
    w.check_eq("kind of the error", &error.kind(), &ErrorKind::NotFound);
}

pub(super) async fn a_reset_outlives_a_restart(w: &World<'_>) -> Outcome {
    let name = w.name("moved");
    let published = w.publish_many("a", 3).await;
    let mut reader = w.durable(&name).await;
    reader.ack_many(2).await;
    let held = reader.next().await;
    reset(w, &name, ConsumerPosition::Sequence(published[1])).await;
    drop((held, reader));
    let Some(reopened) = w.fixture.restart().await else {
        return NO_RESTART;
    };
    let mut reader = w.durable_on(&*reopened, &name, None).await;
    w.check_eq("next event", &reader.ack_many(2).await, &published[1..].to_vec());
    reader.silent_for(A_WHILE, "no further event").await;
    Outcome::Kept
}
