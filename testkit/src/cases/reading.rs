//! Ephemeral consumers, waiting, cancelling, batches and the end of a subscription.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use a3s_event::{
    Delivery, ErrorKind, EventError, PendingEvent, PublishOptions, Result, SubscribeOptions, Subscription,
};

use crate::Outcome;
use crate::world::{A_WHILE, Reader, SOON, World, ms};

pub(super) async fn ephemerals_are_private(w: &World<'_>) {
    let mut first = w.subscribe().await;
    let mut second = w.subscribe().await;
    let published = w.publish_many("a", 5).await;
    w.check_eq("events of the first consumer", &first.ack_many(5).await, &published);
    w.check_eq("events of the second consumer", &second.ack_many(5).await, &published);
}

async fn consumers(w: &World<'_>) -> usize {
    w.ok("info", w.call("info", w.provider.info()).await).consumers
}

pub(super) async fn an_ephemeral_is_gone_when_dropped(w: &World<'_>) {
    let before = consumers(w).await;
    let mut reader = w.subscribe().await;
    w.publish("a").await;
    reader.ack_next().await;
    w.check_eq("consumers while it is open", &consumers(w).await, &(before + 1));
    drop(reader);
    w.eventually("consumers after the drop", before, || consumers(w)).await;
}

pub(super) async fn next_settles_before_handing_over(w: &World<'_>) {
    let options = SubscribeOptions { ack_wait_secs: Some(1), ..Default::default() };
    let mut reader = w.subscribe_with(options).await;
    let sequence = w.publish("a").await;
    w.check_eq("sequence", &reader.next_settled().await.sequence, &sequence);
    reader.silent_for(ms(2_000), "the event was settled before next returned it").await;
}

pub(super) async fn a_publish_wakes_a_waiting_subscriber(w: &World<'_>) {
    let mut reader = w.subscribe().await;
    for _ in 0..3 {
        let (received, published) = tokio::join!(reader.next_at_once(), async {
            w.elapse(ms(50)).await;
            w.publish("a").await
        });
        w.check_eq("sequence", &received.sequence(), &published);
        w.ok("ack", received.ack().await);
    }
}

pub(super) async fn a_cancelled_waiter_strands_no_other(w: &World<'_>) {
    let name = w.name("waiters");
    let (mut first, mut second) = (w.durable(&name).await, w.durable(&name).await);
    for _ in 0..3 {
        // The first one waits first. It gives up, and must leave the wakeup to the second.
        let gives_up = async {
            let given_up = tokio::time::timeout(ms(100), first.subscription.next_delivery()).await;
            w.check("nothing to receive yet", given_up.is_err());
            w.publish("a").await
        };
        let (published, received) = tokio::join!(gives_up, second.next());
        w.check_eq("sequence", &received.sequence(), &published);
        w.ok("ack", received.ack().await);
    }
}

/// Result of a call of a subscription.
enum Handed {
    /// From `next`, which settled it: sequence and attempt.
    Settled(u64, u64),
    Pending(Box<PendingEvent>),
    Delivery(Delivery),
}

impl Handed {
    /// Returns sequence and attempt.
    fn number(&self) -> (u64, u64) {
        match self {
            Self::Settled(sequence, attempt) => (*sequence, *attempt),
            Self::Pending(pending) => (pending.received.sequence, pending.received.num_delivered),
            Self::Delivery(delivery) => (delivery.sequence(), delivery.num_delivered()),
        }
    }

    /// Settles what is unsettled. Separate from the call, because only the call may be cancelled without loss.
    async fn settle(self, w: &World<'_>) {
        match self {
            Self::Settled(..) => {}
            Self::Pending(pending) => w.ok("ack", pending.ack().await),
            Self::Delivery(delivery) => w.ok("ack", delivery.ack().await),
        }
    }
}

type Taken = Result<Option<Handed>>;
type Taking<'a> = Pin<Box<dyn Future<Output = Taken> + Send + 'a>>;
type Take = for<'a> fn(&'a mut dyn Subscription) -> Taking<'a>;

fn take_next(subscription: &mut dyn Subscription) -> Taking<'_> {
    Box::pin(async {
        let received = subscription.next().await?;
        Ok(received.map(|received| Handed::Settled(received.sequence, received.num_delivered)))
    })
}

fn take_pending(subscription: &mut dyn Subscription) -> Taking<'_> {
    Box::pin(async {
        Ok(subscription.next_manual_ack().await?.map(|pending| Handed::Pending(pending.into())))
    })
}

fn take_delivery(subscription: &mut dyn Subscription) -> Taking<'_> {
    Box::pin(async { Ok(subscription.next_delivery().await?.map(Handed::Delivery)) })
}

/// Polls a call `before` times, publishes, polls it `after` times, and drops it. Returns the published sequence, and
/// the result of the call if it was ready.
async fn cancel_at(reader: &mut Reader<'_>, take: Take, before: usize, after: usize) -> (u64, Option<Taken>) {
    let w = reader.world;
    let mut call = take(&mut *reader.subscription);
    let mut published = None;
    for poll in 0..before + after {
        if poll == before {
            published = Some(w.publish("a").await);
        }
        let once = std::future::poll_fn(|cx| {
            Poll::Ready(match call.as_mut().poll(cx) {
                Poll::Ready(output) => Some(output),
                Poll::Pending => None,
            })
        });
        if let Some(taken) = once.await {
            let Some(published) = published else { w.fail(&"a call returned before anything was published") };
            return (published, Some(taken));
        }
        // Lets the awaited work happen before the next poll or the cancellation.
        w.elapse(ms(2)).await;
    }
    drop(call);
    match published {
        Some(published) => (published, None),
        None => (w.publish("a").await, None),
    }
}

/// Cancels a call after every number of polls at which it is not ready. An event arrives before, between and after the
/// polls.
async fn nothing_is_lost(w: &World<'_>, take: Take) {
    /// Maximum number of polls; even a slow server needs fewer.
    const MOST_POLLS: usize = 500;
    let mut reader = w.subscribe().await;
    for before in 0..4 {
        for after in 0..MOST_POLLS {
            let (published, returned) = cancel_at(&mut reader, take, before, after).await;
            let is_complete = returned.is_some();
            let taken = match returned {
                Some(taken) => taken,
                None => match tokio::time::timeout(SOON, take(&mut *reader.subscription)).await {
                    Ok(taken) => taken,
                    Err(_) => w.fail(&format!(
                        "event {published} was lost by cancelling {after} polls after it was published"
                    )),
                },
            };
            let Some(handed) = w.ok("the call", taken) else { w.fail(&"the subscription ended") };
            w.check_eq("sequence and attempt", &handed.number(), &(published, 1));
            handed.settle(w).await;
            if is_complete {
                break;
            }
        }
    }
    reader.silent_for(A_WHILE, "every event was received once").await;
}

pub(super) async fn cancelling_next_loses_nothing(w: &World<'_>) {
    nothing_is_lost(w, take_next).await;
}

pub(super) async fn cancelling_next_manual_ack_loses_nothing(w: &World<'_>) {
    nothing_is_lost(w, take_pending).await;
}

pub(super) async fn cancelling_next_delivery_loses_nothing(w: &World<'_>) {
    nothing_is_lost(w, take_delivery).await;
}

pub(super) async fn timeouts_and_select_lose_nothing(w: &World<'_>) {
    let mut reader = w.subscribe().await;
    let publishing = async {
        let mut published = Vec::new();
        for _ in 0..40 {
            published.push(w.publish("a").await);
            w.elapse(ms(1)).await;
        }
        published
    };
    let receiving = async {
        let mut received = Vec::new();
        let mut patience = 0_u64;
        while received.len() < 40 {
            patience += 1;
            w.check("all 40 events arrive", patience < 20_000);
            let taken = if patience.is_multiple_of(2) {
                tokio::time::timeout(ms(patience % 4), take_next(&mut *reader.subscription)).await.ok()
            } else {
                tokio::select! {
                    taken = take_delivery(&mut *reader.subscription) => Some(taken),
                    () = tokio::time::sleep(ms(1)) => None,
                }
            };
            if let Some(taken) = taken {
                let Some(handed) = w.ok("the call", taken) else { w.fail(&"the subscription ended") };
                received.push(handed.number().0);
                handed.settle(w).await;
            }
        }
        received
    };
    let (published, received) = tokio::join!(publishing, receiving);
    w.check_eq("received events", &received, &published);
}

pub(super) async fn a_closed_subscription_stays_closed(w: &World<'_>) {
    let mut reader = w.subscribe().await;
    w.publish_many("a", 2).await;
    reader.ack_next().await;
    w.ok("close", w.call("close", reader.subscription.close()).await);
    reader.ended().await;
    let next = w.call("next", reader.subscription.next()).await;
    w.check(&format!("Ok(None) from next, found {next:?}"), matches!(next, Ok(None)));
    let pending = w.call("next_manual_ack", reader.subscription.next_manual_ack()).await;
    w.check(&format!("Ok(None) from next_manual_ack, found {pending:?}"), matches!(pending, Ok(None)));
    let batch = w.call("next_batch", reader.subscription.next_batch(5, SOON)).await;
    w.check(&format!("None from next_batch, found {batch:?}"), batch.is_none());
    w.ok("closing again", w.call("close", reader.subscription.close()).await);
}

pub(super) async fn close_gives_back_what_was_not_handed_out(w: &World<'_>) {
    let name = w.name("close");
    let published = w.publish_many("a", 4).await;
    let mut closing = w.durable(&name).await;
    closing.ack_next().await;
    w.ok("close", w.call("close", closing.subscription.close()).await);
    let mut other = w.durable(&name).await;
    for expected in &published[1..] {
        let delivery = other.next().await;
        w.check_eq("sequence and attempt", &(delivery.sequence(), delivery.num_delivered()), &(*expected, 1));
        w.ok("ack", delivery.ack().await);
    }
}

pub(super) async fn what_was_handed_out_can_be_settled_after_close(w: &World<'_>) {
    let name = w.name("close");
    let published = w.publish_many("a", 3).await;
    let mut closing = w.durable(&name).await;
    let (acked, naked) = (closing.next().await, closing.next().await);
    w.ok("close", w.call("close", closing.subscription.close()).await);
    w.ok("ack after close", acked.ack().await);
    w.ok("nak after close", naked.nak().await);
    let mut other = w.durable(&name).await;
    let mut rest = other.ack_many(2).await;
    rest.sort_unstable();
    w.check_eq("the nacked event and the next one", &rest, &published[1..].to_vec());
}

pub(super) async fn a_closed_provider_refuses_publishes(w: &World<'_>) {
    w.publish("a").await;
    w.ok("close", w.call("close", w.provider.close()).await);
    let event = w.event("a");
    let answer = w.call("publish", w.provider.publish(&event)).await;
    let error = w.refused("publish after close", answer);
    w.check("the error says closed", error.is_closed());
    w.ok("closing again", w.call("close", w.provider.close()).await);
}

pub(super) async fn a_closed_provider_ends_subscriptions(w: &World<'_>) {
    let mut waiting = w.subscribe().await;
    let (answer, closed) = tokio::join!(waiting.answer(), async {
        w.elapse(ms(50)).await;
        w.provider.close().await
    });
    w.ok("close", closed);
    w.check(&format!("Ok(None), found {answer:?}"), matches!(answer, Ok(None)));
    waiting.ended().await;
}

/// Acks a batch and returns its sequences.
async fn batch(reader: &mut Reader<'_>, max: usize, wait: Duration) -> Vec<u64> {
    let w = reader.world;
    let call = pin!(reader.subscription.next_batch(max, wait));
    let Some(entries) = w.call("next_batch", call).await else { w.fail(&"next_batch ended") };
    let mut sequences = Vec::new();
    for entry in entries {
        let delivery = w.ok("an entry of the batch", entry);
        sequences.push(delivery.sequence());
        w.ok("ack", delivery.ack().await);
    }
    sequences
}

pub(super) async fn next_batch_takes_at_most_max_in_order(w: &World<'_>) {
    let mut reader = w.subscribe().await;
    let published = w.publish_many("a", 7).await;
    let mut received = Vec::new();
    while received.len() < 7 {
        let sequences = batch(&mut reader, 3, SOON).await;
        let size = sequences.len();
        w.check(&format!("a batch of 1 to 3, found {size}"), (1..=3).contains(&size));
        received.extend(sequences);
    }
    w.check_eq("received events", &received, &published);
    w.check_eq("a batch with a maximum of 0", &batch(&mut reader, 0, SOON).await, &vec![]);
}

pub(super) async fn next_batch_does_not_wait_to_be_full(w: &World<'_>) {
    let mut reader = w.subscribe().await;
    w.check_eq("a batch without events", &batch(&mut reader, 10, ms(50)).await, &vec![]);
    let sequence = w.publish("a").await;
    // One event is available: waiting for the other nine would take an hour.
    let found = tokio::time::timeout(SOON, batch(&mut reader, 10, ms(3_600_000))).await;
    w.check_eq("the batch", &found.ok(), &Some(vec![sequence]));
}

pub(super) async fn a_wait_may_have_any_length(w: &World<'_>) {
    let mut reader = w.subscribe().await;
    for wait in [Duration::ZERO, Duration::from_nanos(1)] {
        w.check_eq("a batch without events", &batch(&mut reader, 10, wait).await, &vec![]);
    }
    let (found, published) =
        tokio::join!(tokio::time::timeout(SOON, batch(&mut reader, 10, Duration::MAX)), async {
            w.elapse(ms(50)).await;
            let options = PublishOptions { timeout_secs: Some(u64::MAX), ..Default::default() };
            w.publish_with("a", options).await
        });
    let published = w.ok("a publish without an end of its timeout", published);
    w.check_eq("the batch", &found.ok(), &Some(vec![published]));
}

pub(super) async fn an_undecodable_record_surfaces_once(w: &World<'_>) -> Outcome {
    let raw = b"\xff not an event";
    let options = SubscribeOptions { ack_wait_secs: Some(1), ..Default::default() };
    let mut reader = w.subscribe_with(options).await;
    let Some(stored) = w.fixture.store_undecodable(&w.subject("a"), raw).await else {
        return Outcome::NotApplicable("the harness cannot store a record that is not an event");
    };
    match reader.answer().await {
        Err(EventError::Undecodable { sequence, raw: found, .. }) => {
            w.check_eq("sequence and bytes", &(sequence, found.as_slice()), &(stored, &raw[..]));
        }
        other => w.fail(&format!("expected Undecodable, found {other:?}")),
    }
    reader.silent_for(ms(2_000), "the record surfaces once").await;
    Outcome::Kept
}

pub(super) async fn an_undecodable_record_blocks_nothing(w: &World<'_>) -> Outcome {
    let mut reader = w.subscribe().await;
    let before = w.publish("a").await;
    let Some(_) = w.fixture.store_undecodable(&w.subject("a"), b"{").await else {
        return Outcome::NotApplicable("the harness cannot store a record that is not an event");
    };
    let after = w.publish("a").await;
    w.check_eq("event before the record", &reader.ack_next().await, &before);
    let error = w.refused("the record", reader.answer().await);
    w.check_eq("kind of the error", &error.kind(), &ErrorKind::Undecodable);
    w.check_eq("event after the record", &reader.ack_next().await, &after);
    Outcome::Kept
}
