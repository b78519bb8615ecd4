//! Events that are fetched ahead of a fast caller.

use std::collections::BTreeSet;

use a3s_event::provider::ConsumerPosition;

use super::*;

const EVENTS: u64 = 1_000;
const NAME: &str = "worker";

/// A server with events, and a member that has fetched some of them ahead: its caller has taken and settled those up to a
/// number.
struct Ahead {
    server: RedisServer,
    provider: RedisProvider,
    member: Box<dyn Subscription>,
    taken: u64,
}

impl Ahead {
    async fn start(binary: &std::path::Path) -> Self {
        let server = RedisServer::start_binary(binary, "").await;
        let provider = connect(&server).await;
        publish_numbers(&provider, 1..=EVENTS).await;
        let member = provider.subscribe_durable(NAME, FILTER).await.unwrap();
        let mut ahead = Self { server, provider, member, taken: 0 };
        while ahead.leased().await < 3 {
            ahead.take_next().await;
        }
        ahead
    }

    /// Number of events that the server has leased: those that were fetched ahead.
    async fn leased(&self) -> i64 {
        self.server.command(&["ZCARD", "a3s:{events}:c:worker:due"]).await.integer().unwrap()
    }

    async fn take_next(&mut self) {
        assert!(self.taken < EVENTS, "nothing was fetched ahead");
        let delivery = next(&mut *self.member).await;
        self.taken += 1;
        assert_eq!((delivery.sequence(), delivery.num_delivered()), (self.taken, 1));
        delivery.ack_confirmed().await.unwrap();
    }

    /// Takes all that is left on a connection of its own, as first deliveries.
    async fn take_elsewhere(&self) {
        let other = connect(&self.server).await;
        let mut member = other.subscribe_durable(NAME, FILTER).await.unwrap();
        let mut left: BTreeSet<_> = (self.taken + 1..=EVENTS).collect();
        while !left.is_empty() {
            let delivery = next(&mut *member).await;
            assert_eq!(delivery.num_delivered(), 1);
            assert!(left.remove(&delivery.sequence()));
            delivery.ack().await.unwrap();
        }
        member.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_busy_caller_holds_up_no_other_member() {
    on_each(async |_, binary| {
        let ahead = Ahead::start(&binary).await;
        // The member is open, and its caller works.
        ahead.take_elsewhere().await;
    })
    .await;
}

#[tokio::test]
async fn a_subscription_that_ends_gives_back_what_it_fetched_ahead() {
    on_each(async |_, binary| {
        let mut ahead = Ahead::start(&binary).await;
        ahead.member.close().await.unwrap();
        ahead.take_elsewhere().await;
        let mut ahead = Ahead::start(&binary).await;
        // This drops the member.
        ahead.member = ahead.provider.subscribe_durable("another", FILTER).await.unwrap();
        ahead.take_elsewhere().await;
    })
    .await;
}

#[tokio::test]
async fn what_is_due_again_comes_before_what_was_fetched_ahead() {
    on_each(async |_, binary| {
        let mut ahead = Ahead::start(&binary).await;
        for is_nacked in [true, false, true] {
            let delivery = next(&mut *ahead.member).await;
            let sequence = delivery.sequence();
            assert_eq!(sequence, ahead.taken + 1);
            match is_nacked {
                true => delivery.nak().await.unwrap(),
                false => delivery.release().await.unwrap(),
            }
            let again = next(&mut *ahead.member).await;
            assert_eq!((again.sequence(), again.num_delivered()), (sequence, 1 + u64::from(is_nacked)));
            again.ack_confirmed().await.unwrap();
            ahead.taken = sequence;
            while ahead.leased().await < 3 {
                ahead.take_next().await;
            }
        }
        // What another connection does is told by a message, which may come a little later.
        let held = next(&mut *ahead.member).await;
        let other = connect(&ahead.server).await;
        other.reset_consumer(NAME, ConsumerPosition::Sequence(5)).await.unwrap();
        eventually("the consumer moved", async || {
            let delivery = next(&mut *ahead.member).await;
            let is_moved = delivery.sequence() < held.sequence();
            drop(delivery);
            is_moved
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn what_was_fetched_ahead_is_not_handed_out_after_a_change() {
    on_each(async |_, binary| {
        let mut ahead = Ahead::start(&binary).await;
        ahead.provider.reset_consumer(NAME, ConsumerPosition::Sequence(7)).await.unwrap();
        let delivery = next(&mut *ahead.member).await;
        assert_eq!((delivery.sequence(), delivery.num_delivered()), (7, 1));
        delivery.ack_confirmed().await.unwrap();
        ahead.taken = 7;
        while ahead.leased().await < 3 {
            ahead.take_next().await;
        }
        ahead.provider.unsubscribe(NAME).await.unwrap();
        let end = tokio::time::timeout(DEADLINE, ahead.member.next_delivery()).await.unwrap().unwrap();
        assert!(end.is_none(), "{end:?}");
    })
    .await;
}

#[tokio::test]
async fn what_was_fetched_ahead_counts_as_not_delivered() {
    on_each(async |_, binary| {
        let mut ahead = Ahead::start(&binary).await;
        let held = next(&mut *ahead.member).await;
        let left = EVENTS - ahead.taken - 1;
        assert_eq!(ahead.member.lag().await.unwrap(), left);
        let info = ahead.provider.consumers().await.unwrap().remove(0);
        assert_eq!((info.lag, info.pending), (left, 1));
        held.ack().await.unwrap();
    })
    .await;
}
