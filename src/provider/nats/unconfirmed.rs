//! Acks of one consumer that were sent and not yet confirmed by the server.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use async_nats::Subject;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::deadline::After;
use crate::poison::IgnorePoison;

/// Time after the confirmation of an ack in which redeliveries that were sent before it may still arrive.
const ON_ITS_WAY: Duration = Duration::from_secs(1);
/// Maximum number of confirmed acks remembered for that time.
const MAX_REMEMBERED: usize = 1_000;

/// Unconfirmed acks of one consumer.
#[derive(Default)]
pub(super) struct Unconfirmed {
    state: Mutex<State>,
    /// Notified when an ack ends or a reserved place is given up.
    progress: Notify,
    /// Ends the delay before the next confirmation, because a caller waits.
    pub(super) urgent: Notify,
    /// If true, the task that has acks confirmed knows of this consumer.
    pub(super) is_looked_after: AtomicBool,
}

#[derive(Default)]
struct State {
    /// Sent acks in the order of their numbers.
    sent: VecDeque<Sent>,
    /// Number of the newest ack.
    last: u64,
    /// Number of lost acks that no flush has reported yet.
    lost: u64,
    /// Number of places reserved for acks that are about to be sent.
    reserved: usize,
    /// Sequences of confirmed events, and the time of each confirmation.
    confirmed: VecDeque<(u64, Instant)>,
}

/// An ack that was sent.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    pub(super) number: u64,
    pub(super) reply: Subject,
    pub(super) sequence: u64,
    /// Number of the delivery among all deliveries of the consumer.
    pub(super) delivery: u64,
    /// Connection on which it was last sent.
    pub(super) connection: u64,
}

/// A reserved place among the unconfirmed acks, until it is used or dropped.
pub(super) struct Place<'a>(Option<&'a Unconfirmed>);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(acks) = self.0 {
            acks.state().reserved -= 1;
            acks.progress.notify_waiters();
        }
    }
}

/// The final state of an ack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Confirmed,
    /// The ack will not take effect, and its event is redelivered.
    Lost,
    /// The ack no longer matters, because the consumer was reset or is gone.
    NoMatter,
}

impl Unconfirmed {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().ignore_poison()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.state().sent.is_empty()
    }

    /// Reserves a place for another ack, unless `max` are in flight.
    pub(super) fn place_now(&self, max: usize) -> Option<Place<'_>> {
        let mut state = self.state();
        let open = state.sent.len() + state.reserved;
        if open >= max / 2 {
            // Requests the confirmation before the limit blocks callers.
            self.urgent.notify_one();
        }
        if open >= max {
            return None;
        }
        state.reserved += 1;
        Some(Place(Some(self)))
    }

    /// Waits for a free place and reserves it.
    pub(super) async fn place(&self, max: usize) -> Place<'_> {
        loop {
            let mut progress = pin!(self.progress.notified());
            // Before the look, so that what ends behind it is not missed.
            progress.as_mut().enable();
            if let Some(place) = self.place_now(max) {
                return place;
            }
            progress.await;
        }
    }

    /// Waits until no ack that was sent before this call is unconfirmed. Returns the number of acks lost since the
    /// previous call.
    pub(super) async fn flush(&self) -> u64 {
        let last = self.state().last;
        loop {
            let mut progress = pin!(self.progress.notified());
            progress.as_mut().enable();
            if self.state().sent.front().is_none_or(|first| first.number > last) {
                return std::mem::take(&mut self.state().lost);
            }
            self.urgent.notify_one();
            progress.await;
        }
    }

    /// Returns true if a redelivery received at this time may have been sent before the server had stored the ack.
    pub(super) fn contains(&self, sequence: u64, received: Instant) -> bool {
        let state = self.state();
        let is_late = |at: &Instant| received <= at.after(ON_ITS_WAY);
        state.sent.iter().any(|sent| sent.sequence == sequence)
            || state.confirmed.iter().any(|(confirmed, at)| *confirmed == sequence && is_late(at))
    }

    /// Notes an ack that was sent, unless it no longer matters.
    pub(super) fn push(&self, mut place: Place<'_>, sent: Sent, still_matters: impl Fn() -> bool) {
        let mut state = self.state();
        if place.0.take().is_some() {
            state.reserved -= 1;
        }
        // Checked under the lock, because `clear` follows the end or reset of the consumer.
        if still_matters() {
            state.last += 1;
            let number = state.last;
            state.sent.push_back(Sent { number, ..sent });
        } else {
            drop(state);
            self.progress.notify_waiters();
        }
    }

    /// Returns the unconfirmed acks.
    pub(super) fn all(&self) -> Vec<Sent> {
        self.state().sent.iter().cloned().collect()
    }

    /// Returns the newest ack, and true if all were sent on this connection.
    pub(super) fn newest(&self, connection: u64) -> Option<(Sent, bool)> {
        let state = self.state();
        let newest = state.sent.back()?.clone();
        Some((newest, state.sent.iter().all(|sent| sent.connection == connection)))
    }

    /// Notes that an ack was sent again on this connection.
    pub(super) fn sent_again(&self, number: u64, connection: u64) {
        let mut state = self.state();
        if let Ok(at) = state.sent.binary_search_by_key(&number, |sent| sent.number)
            && let Some(sent) = state.sent.get_mut(at)
        {
            sent.connection = connection;
        }
    }

    /// Forgets all acks, because the consumer was reset or is gone.
    pub(super) fn clear(&self) {
        self.end(Fate::NoMatter, |_| true);
    }

    /// Ends the wait for the acks that `is_so` selects, and returns their number.
    pub(super) fn end(&self, fate: Fate, is_so: impl Fn(&Sent) -> bool) -> u64 {
        let mut guard = self.state();
        let state = &mut *guard;
        let now = Instant::now();
        let before = state.sent.len();
        state.sent.retain(|sent| {
            let ends = is_so(sent);
            if ends && fate == Fate::Confirmed {
                state.confirmed.push_back((sent.sequence, now));
            }
            !ends
        });
        if fate == Fate::NoMatter {
            state.confirmed.clear();
            state.lost = 0;
        }
        let too_many = state.confirmed.len().saturating_sub(MAX_REMEMBERED);
        state.confirmed.drain(..too_many);
        let ended = (before - state.sent.len()) as u64;
        if fate == Fate::Lost {
            state.lost += ended;
        }
        if state.sent.is_empty() {
            // An idle consumer holds no memory for its acks.
            state.sent = VecDeque::new();
        }
        drop(guard);
        self.progress.notify_waiters();
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::poll_once;

    fn sent(sequence: u64) -> Sent {
        let reply = Subject::from(format!("$JS.ACK.s.c.1.{sequence}"));
        Sent { number: 0, reply, sequence, delivery: sequence, connection: 1 }
    }

    fn push(acks: &Unconfirmed, sequence: u64) {
        let place = acks.place_now(usize::MAX).unwrap();
        acks.push(place, sent(sequence), || true);
    }

    #[tokio::test]
    async fn a_flush_waits_for_what_was_sent_before_it_and_tells_what_was_lost() {
        let acks = Unconfirmed::default();
        assert_eq!(poll_once(Box::pin(acks.flush())).await, Some(0));
        push(&acks, 1);
        push(&acks, 2);
        let mut flush = std::pin::pin!(acks.flush());
        assert_eq!(poll_once(&mut flush).await, None);
        push(&acks, 3);
        // Out of order, so that counting would not suffice.
        acks.end(Fate::Confirmed, |sent| sent.sequence == 3);
        acks.end(Fate::Confirmed, |sent| sent.sequence == 2);
        assert_eq!(poll_once(&mut flush).await, None);
        assert_eq!(acks.end(Fate::Lost, |sent| sent.sequence == 1), 1);
        assert_eq!(poll_once(&mut flush).await, Some(1));
    }

    #[tokio::test]
    async fn no_more_than_the_maximum_are_on_their_way() {
        let acks = Unconfirmed::default();
        push(&acks, 1);
        let reserved = acks.place_now(2).unwrap();
        assert!(acks.place_now(2).is_none());
        let mut waiting = std::pin::pin!(acks.place(2));
        assert!(poll_once(&mut waiting).await.is_none());
        drop(reserved);
        assert!(poll_once(&mut waiting).await.is_some());
    }

    #[tokio::test]
    async fn what_is_pushed_behind_the_end_of_its_consumer_is_not_waited_for() {
        let acks = Unconfirmed::default();
        let place = acks.place_now(1).unwrap();
        acks.clear();
        acks.push(place, sent(1), || false);
        assert!(acks.is_empty() && acks.place_now(1).is_some());
        assert_eq!(poll_once(Box::pin(acks.flush())).await, Some(0));
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_is_known_while_its_ack_is_on_its_way_and_a_moment_longer() {
        let acks = Unconfirmed::default();
        push(&acks, 7);
        assert!(acks.contains(7, Instant::now()) && !acks.contains(8, Instant::now()));
        acks.end(Fate::Confirmed, |_| true);
        assert!(acks.contains(7, Instant::now()), "sent before the confirmation");
        tokio::time::advance(2 * ON_ITS_WAY).await;
        assert!(!acks.contains(7, Instant::now()));
        push(&acks, 9);
        acks.clear();
        assert!(!acks.contains(9, Instant::now()), "another consumer, or another position");
    }
}
