//! A consumer as the members in this process share it, and when they look for events.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use crate::deadline::After;
use crate::poison::IgnorePoison;
use crate::provider::SubscriptionEnd;
use crate::provider::group::ConsumerConfig;
use crate::provider::members::Members;

/// An open consumer.
#[derive(Debug)]
pub(super) struct Consumer {
    pub(super) name: Arc<str>,
    pub(super) is_durable: bool,
    pub(super) members: Members,
    /// Events that members have fetched ahead.
    pub(super) ahead: Ahead,
    /// Number of announcements that there may be events.
    announced: AtomicU64,
    /// Number of announcements that events may be due again, which come before others.
    due: AtomicU64,
    /// Number of changes of the consumer, after which what was leased before is not handed out.
    changes: AtomicU64,
    state: Mutex<State>,
}

/// The consumer on the server. One that was deleted and made again has another identity.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) epoch: Arc<str>,
    pub(super) generation: String,
}

#[derive(Debug)]
struct State {
    identity: Arc<Identity>,
    config: Arc<ConsumerConfig>,
    /// Number of changes of the settings.
    revision: u64,
    /// Present while there is nothing to fetch.
    idle: Option<Idle>,
    end: Option<SubscriptionEnd>,
}

/// Number of events that are leased and not handed out. They count as not delivered.
#[derive(Debug, Default)]
pub(super) struct Ahead(AtomicUsize);

impl Ahead {
    pub(super) fn add(&self, events: usize) {
        self.0.fetch_add(events, Ordering::Relaxed);
    }

    pub(super) fn remove(&self, events: usize) {
        self.0.fetch_sub(events, Ordering::Relaxed);
    }

    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// The answer of the last call: there is nothing to fetch.
#[derive(Debug, Clone, Copy)]
struct Idle {
    /// Number of announcements before the call.
    announced: u64,
    /// Time at which to look again: an event is due, or a lease of another process may have ended.
    until: Instant,
}

impl Consumer {
    pub(super) fn new(
        name: &str,
        is_durable: bool,
        identity: Identity,
        config: ConsumerConfig,
        revision: u64,
    ) -> Self {
        let (identity, config) = (Arc::new(identity), Arc::new(config));
        let state = State { identity, config, revision, idle: None, end: None };
        Self {
            name: name.into(),
            is_durable,
            members: Members::default(),
            ahead: Ahead::default(),
            announced: AtomicU64::new(0),
            due: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            state: Mutex::new(state),
        }
    }

    pub(super) fn identity(&self) -> Arc<Identity> {
        Arc::clone(&self.state().identity)
    }

    pub(super) fn config(&self) -> Arc<ConsumerConfig> {
        Arc::clone(&self.state().config)
    }

    pub(super) fn end(&self) -> Option<SubscriptionEnd> {
        self.state().end
    }

    /// Ends the subscriptions of all members.
    pub(super) fn end_with(&self, end: SubscriptionEnd) {
        self.state().end.get_or_insert(end);
        // Each member that ends wakes the next one.
        self.members.wake_one();
    }

    /// Takes over the settings in force.
    pub(super) fn set_config(&self, config: ConsumerConfig, revision: u64) {
        let mut state = self.state();
        if state.revision != revision {
            self.changes.fetch_add(1, Ordering::AcqRel);
        }
        (state.config, state.revision) = (Arc::new(config), revision);
    }

    pub(super) fn revision(&self) -> u64 {
        self.state().revision
    }

    /// Continues as the consumer that was made again on the server instead of the `known` one. Returns `false` if it
    /// does so already.
    pub(super) fn made_again(&self, known: &Identity, identity: Identity, revision: u64) -> bool {
        let mut state = self.state();
        if *state.identity != *known {
            return false;
        }
        (state.identity, state.revision, state.idle) = (Arc::new(identity), revision, None);
        self.changes.fetch_add(1, Ordering::AcqRel);
        true
    }

    /// Wakes a member, because there may be events.
    pub(super) fn announce(&self) {
        self.announced.fetch_add(1, Ordering::AcqRel);
        self.members.wake_one();
    }

    /// Wakes a member, because events may be due again.
    pub(super) fn announce_due(&self) {
        self.note_due();
        self.announce();
    }

    /// Notes that events may be due again, for members that hold others.
    pub(super) fn note_due(&self) {
        self.due.fetch_add(1, Ordering::AcqRel);
    }

    /// Wakes a member, because the consumer was moved, changed or deleted.
    pub(super) fn announce_change(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
        self.announce();
    }

    /// Returns the number of announcements that events may be due again.
    pub(super) fn due(&self) -> u64 {
        self.due.load(Ordering::Acquire)
    }

    /// Returns the number of changes.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Returns the number of announcements. A call that is sent afterwards finds the events of all of them.
    pub(super) fn announced(&self) -> u64 {
        self.announced.load(Ordering::Acquire)
    }

    /// Returns the time until which there is nothing to fetch, or `None` if there may be something now.
    pub(super) fn idle_until(&self, now: Instant) -> Option<Instant> {
        let announced = self.announced();
        let idle = self.state().idle?;
        (idle.announced == announced && now < idle.until).then_some(idle.until)
    }

    /// Notes that a call found nothing more. `due` is the time from then until the next pending event is due.
    ///
    /// A lease that another process takes after the call ends after the ack wait at the earliest. Everything earlier is
    /// announced. If the announcement is lost, an event waits for one ack wait at most.
    pub(super) fn note_idle(&self, announced: u64, asked: Instant, due: Option<Duration>) {
        let mut state = self.state();
        let wait = due.map_or(state.config.ack_wait, |due| due.min(state.config.ack_wait));
        state.idle = Some(Idle { announced, until: asked.after(wait) });
    }

    /// Notes that there may be more to fetch.
    pub(super) fn note_more(&self) {
        self.state().idle = None;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().ignore_poison()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::SubscribeOptions;

    fn consumer() -> Consumer {
        let config = ConsumerConfig::new("events.>", &SubscribeOptions::default()).unwrap();
        let identity = Identity { epoch: "e".into(), generation: "g".to_owned() };
        Consumer::new("worker", true, identity, config, 0)
    }

    #[tokio::test(start_paused = true)]
    async fn an_announcement_during_a_call_is_not_missed() {
        let consumer = consumer();
        let now = Instant::now();
        assert_eq!(consumer.idle_until(now), None, "nothing is known yet");
        let announced = consumer.announced();
        consumer.announce();
        consumer.note_idle(announced, now, None);
        assert_eq!(consumer.idle_until(now), None);
        consumer.note_idle(consumer.announced(), now, None);
        assert_eq!(consumer.idle_until(now), Some(now + Duration::from_secs(30)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_consumer_looks_again_when_an_event_is_due_or_a_lease_may_have_ended() {
        let consumer = consumer();
        let now = Instant::now();
        for (due, wait) in [(None, 30), (Some(5), 5), (Some(90), 30)] {
            consumer.note_idle(0, now, due.map(Duration::from_secs));
            let until = now + Duration::from_secs(wait);
            assert_eq!(consumer.idle_until(now), Some(until));
            assert_eq!(consumer.idle_until(until), None);
        }
    }
}
