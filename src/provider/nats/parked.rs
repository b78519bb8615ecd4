//! Deliveries that end the connection when they arrive. The server is told to keep each to itself for long, and this process
//! hands it out instead: its own lease, its own delays. When the process dies, the server delivers it to another one.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use async_nats::Subject;
use tokio::time::Instant;

use crate::deadline::After;
use crate::poison::IgnorePoison;

/// A delivery that cannot be received.
#[derive(Clone)]
pub(super) struct Unreadable {
    pub(super) sequence: u64,
    pub(super) subject: String,
    pub(super) raw: Vec<u8>,
    pub(super) reason: &'static str,
    /// The subject on which its delivery is settled.
    pub(super) reply: Subject,
    /// How often it was handed out.
    pub(super) attempts: u64,
}

enum State {
    /// To be handed out at this time.
    Due(Instant),
    Settled,
}

/// The deliveries of one consumer that cannot be received.
#[derive(Default)]
pub(super) struct Parked(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    records: BTreeMap<u64, (State, Unreadable)>,
    /// Up to this sequence every record was looked at: one that is not here can be received.
    examined: u64,
}

impl Parked {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().ignore_poison()
    }

    pub(super) fn examined(&self) -> u64 {
        self.inner().examined
    }

    /// Notes that everything up to this sequence was looked at.
    pub(super) fn examine(&self, sequence: u64) {
        let mut inner = self.inner();
        inner.examined = inner.examined.max(sequence);
    }

    /// Adds a delivery, which is due at once. One that is here already stays what it is.
    pub(super) fn add(&self, unreadable: Unreadable) {
        let entry = (State::Due(Instant::now()), unreadable);
        self.inner().records.entry(entry.1.sequence).or_insert(entry);
    }

    /// Whether one waits to be handed out.
    pub(super) fn has_any(&self) -> bool {
        self.next_due().is_some()
    }

    /// When the next one is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let due = |(state, _): &(State, Unreadable)| match state {
            State::Due(due) => Some(*due),
            State::Settled => None,
        };
        self.inner().records.values().filter_map(due).min()
    }

    /// The first one that is due. It is leased, and due again when the lease ends.
    pub(super) fn take_due(&self, lease: Duration) -> Option<Unreadable> {
        let now = Instant::now();
        let mut inner = self.inner();
        let is_due = |state: &State| matches!(state, State::Due(due) if *due <= now);
        let (state, unreadable) = inner.records.values_mut().find(|(state, _)| is_due(state))?;
        *state = State::Due(now.after(lease));
        unreadable.attempts += 1;
        Some(unreadable.clone())
    }

    /// Makes it due after this time.
    pub(super) fn delay(&self, sequence: u64, delay: Duration) {
        if let Some((state @ State::Due(_), _)) = self.inner().records.get_mut(&sequence) {
            *state = State::Due(Instant::now().after(delay));
        }
    }

    /// Notes that the server has confirmed its settlement.
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
