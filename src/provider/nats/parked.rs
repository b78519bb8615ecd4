//! Deliveries that end the connection when they arrive. The provider naks each with a long delay and hands it out from
//! memory instead, with its own leases and delays. If this process dies, the server delivers them to another one.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use async_nats::Subject;
use tokio::time::Instant;

use crate::deadline::After;
use crate::poison::IgnorePoison;

/// A delivery that the client cannot receive.
#[derive(Clone)]
pub(super) struct Unreadable {
    pub(super) sequence: u64,
    pub(super) subject: String,
    pub(super) raw: Vec<u8>,
    pub(super) reason: &'static str,
    /// Subject on which the delivery is settled.
    pub(super) reply: Subject,
    /// Number of times that it was handed out.
    pub(super) attempts: u64,
}

enum State {
    /// Due to be handed out at this time.
    Due(Instant),
    Settled,
}

/// Deliveries of one consumer that the client cannot receive.
#[derive(Default)]
pub(super) struct Parked(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    records: BTreeMap<u64, (State, Unreadable)>,
    /// Sequence up to which every record was examined. A record up to here that is not listed can be received.
    examined: u64,
}

impl Parked {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().ignore_poison()
    }

    pub(super) fn examined(&self) -> u64 {
        self.inner().examined
    }

    /// Notes that every record up to this sequence was examined.
    pub(super) fn examine(&self, sequence: u64) {
        let mut inner = self.inner();
        inner.examined = inner.examined.max(sequence);
    }

    /// Adds a delivery, which is due at once. A delivery that is already listed stays unchanged.
    pub(super) fn add(&self, unreadable: Unreadable) {
        let entry = (State::Due(Instant::now()), unreadable);
        self.inner().records.entry(entry.1.sequence).or_insert(entry);
    }

    /// Returns true if a delivery is not settled yet.
    pub(super) fn has_any(&self) -> bool {
        self.next_due().is_some()
    }

    /// Returns the time at which the next delivery is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let due = |(state, _): &(State, Unreadable)| match state {
            State::Due(due) => Some(*due),
            State::Settled => None,
        };
        self.inner().records.values().filter_map(due).min()
    }

    /// Leases the first delivery that is due, and returns it. It is due again when the lease ends.
    pub(super) fn take_due(&self, lease: Duration) -> Option<Unreadable> {
        let now = Instant::now();
        let mut inner = self.inner();
        let is_due = |state: &State| matches!(state, State::Due(due) if *due <= now);
        let (state, unreadable) = inner.records.values_mut().find(|(state, _)| is_due(state))?;
        *state = State::Due(now.after(lease));
        unreadable.attempts += 1;
        Some(unreadable.clone())
    }

    /// Makes a delivery due after this delay.
    pub(super) fn delay(&self, sequence: u64, delay: Duration) {
        if let Some((state @ State::Due(_), _)) = self.inner().records.get_mut(&sequence) {
            *state = State::Due(Instant::now().after(delay));
        }
    }

    /// Notes that the server has confirmed the settlement of a delivery.
    pub(super) fn settled(&self, sequence: u64) {
        if let Some((state, unreadable)) = self.inner().records.get_mut(&sequence) {
            *state = State::Settled;
            unreadable.raw = Vec::new();
        }
    }

    pub(super) fn clear(&self) {
        *self.inner() = Inner::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unreadable(sequence: u64) -> Unreadable {
        let (subject, raw) = ("events.a".to_owned(), b"x".to_vec());
        Unreadable { sequence, subject, raw, reason: "r", reply: "ack".into(), attempts: 0 }
    }

    #[tokio::test(start_paused = true)]
    async fn a_delivery_comes_again_until_it_is_settled() {
        let (parked, lease) = (Parked::default(), Duration::from_secs(30));
        parked.add(unreadable(7));
        parked.add(unreadable(7));
        let take = || parked.take_due(lease).map(|unreadable| (unreadable.sequence, unreadable.attempts));
        assert_eq!((take(), take()), (Some((7, 1)), None));
        tokio::time::advance(lease).await;
        assert_eq!(take(), Some((7, 2)), "its lease has ended");
        parked.delay(7, Duration::from_secs(1));
        assert_eq!(parked.next_due(), Some(Instant::now() + Duration::from_secs(1)));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(take(), Some((7, 3)), "it was refused");
        parked.settled(7);
        parked.delay(7, Duration::ZERO);
        parked.add(unreadable(7));
        assert_eq!((take(), parked.next_due()), (None, None));
    }
}
