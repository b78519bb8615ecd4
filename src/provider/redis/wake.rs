//! Wakes the consumers of this process for which there may be events.
//!
//! A publish announces its subjects (`e`). What makes an event due earlier announces its consumer (`c`), and so does what
//! changes, moves or deletes the consumer (`m`). Messages may be lost: a consumer also looks from time to time, and after
//! each new connection.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use super::consumer::Consumer;
use super::link::Listener;
use crate::poison::IgnorePoison;
use crate::subject::SubjectIndex;

/// The open consumers of this process.
#[derive(Default)]
pub(super) struct Consumers {
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    by_name: HashMap<Arc<str>, Weak<Consumer>>,
    by_filter: SubjectIndex<Vec<Weak<Consumer>>>,
    is_closed: bool,
}

impl Consumers {
    /// Returns the open consumer of this name on the server, or adds the one that `open` creates.
    pub(super) fn join(
        &self,
        name: &str,
        is_it: impl FnOnce(&Consumer) -> bool,
        open: impl FnOnce() -> Consumer,
    ) -> Arc<Consumer> {
        let mut known = self.open();
        if let Some(consumer) = known.by_name.get(name).and_then(Weak::upgrade)
            && consumer.end().is_none()
            && is_it(&consumer)
        {
            consumer.members.join();
            return consumer;
        }
        let consumer = Arc::new(open());
        consumer.members.join();
        known.add(&consumer);
        if known.is_closed {
            consumer.end_with(crate::provider::SubscriptionEnd::Closed);
        }
        consumer
    }

    /// Forgets a consumer that its last member has left.
    pub(super) fn remove(&self, consumer: &Arc<Consumer>) {
        let mut known = self.open();
        // Another member may have joined meanwhile.
        if consumer.members.count() == 0 {
            known.remove(consumer);
        }
    }

    /// Returns the open consumer of this name.
    pub(super) fn of(&self, name: &str) -> Option<Arc<Consumer>> {
        self.open().of(name)
    }

    /// Returns the open consumers.
    pub(super) fn all(&self) -> Vec<Arc<Consumer>> {
        self.open().by_name.values().filter_map(Weak::upgrade).collect()
    }

    /// Ends the subscriptions of all consumers, and of those that are opened from now on.
    pub(super) fn close(&self) {
        self.open().is_closed = true;
        for consumer in self.all() {
            consumer.end_with(crate::provider::SubscriptionEnd::Closed);
        }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().ignore_poison()
    }
}

impl Open {
    fn add(&mut self, consumer: &Arc<Consumer>) {
        let filter = consumer.config().filter.clone();
        let mut same = self.by_filter.remove(&filter).unwrap_or_default();
        same.retain(|other| other.strong_count() > 0);
        same.push(Arc::downgrade(consumer));
        // The filter of an open consumer is valid.
        let _ = self.by_filter.insert(&filter, same);
        self.by_name.insert(Arc::clone(&consumer.name), Arc::downgrade(consumer));
    }

    fn remove(&mut self, consumer: &Arc<Consumer>) {
        let is_it = |other: &Weak<Consumer>| std::ptr::eq(other.as_ptr(), Arc::as_ptr(consumer));
        if self.by_name.get(&consumer.name).is_some_and(is_it) {
            self.by_name.remove(&consumer.name);
        }
        let filter = consumer.config().filter.clone();
        let mut same = self.by_filter.remove(&filter).unwrap_or_default();
        same.retain(|other| !is_it(other) && other.strong_count() > 0);
        if !same.is_empty() {
            let _ = self.by_filter.insert(&filter, same);
        }
    }

    fn of(&self, name: &str) -> Option<Arc<Consumer>> {
        self.by_name.get(name).and_then(Weak::upgrade)
    }

    fn announce_all(&self) {
        self.by_name.values().filter_map(Weak::upgrade).for_each(|consumer| consumer.announce());
    }
}

impl Listener for Consumers {
    fn on_message(&self, message: &[u8]) {
        let Ok(message) = std::str::from_utf8(message) else { return };
        let known = self.open();
        match message.split_once(' ') {
            Some(("c", name)) => known.of(name).iter().for_each(|consumer| consumer.announce_due()),
            Some(("m", name)) => known.of(name).iter().for_each(|consumer| consumer.announce_change()),
            Some(("e", "*")) => known.announce_all(),
            Some(("e", subjects)) => {
                // One that several subjects match is woken once for each: the members share the events.
                for subject in subjects.split('\n') {
                    known.by_filter.for_each_match(subject, |consumers| {
                        consumers.iter().filter_map(Weak::upgrade).for_each(|consumer| consumer.announce());
                    });
                }
            }
            _ => {}
        }
    }

    fn on_connected(&self) {
        self.all().iter().for_each(|consumer| consumer.announce_change());
    }
}

#[cfg(test)]
mod tests {
    use super::super::consumer::Identity;
    use super::*;
    use crate::provider::group::ConsumerConfig;
    use crate::types::SubscribeOptions;

    fn join(consumers: &Consumers, name: &str, filter: &str) -> Arc<Consumer> {
        let open = || {
            let config = ConsumerConfig::new(filter, &SubscribeOptions::default()).unwrap();
            let identity = Identity { epoch: "e".into(), generation: "g".to_owned() };
            Consumer::new(name, true, identity, config, 0)
        };
        consumers.join(name, |_| true, open)
    }

    #[test]
    fn a_message_wakes_those_whom_it_concerns() {
        let consumers = Consumers::default();
        let open = [
            join(&consumers, "a", "events.a"),
            join(&consumers, "b", "events.*"),
            join(&consumers, "c", "events.c.>"),
            join(&consumers, "d", "events.a"),
        ];
        let mut before = [0; 4];
        for (message, woken) in [
            ("e events.a", [1, 1, 0, 1]),
            ("e events.c.d\nevents.b", [0, 1, 1, 0]),
            ("e *", [1, 1, 1, 1]),
            ("c c", [0, 0, 1, 0]),
            ("m d", [0, 0, 0, 1]),
            ("c unknown", [0, 0, 0, 0]),
            ("", [0, 0, 0, 0]),
        ] {
            consumers.on_message(message.as_bytes());
            for ((consumer, before), woken) in open.iter().zip(&mut before).zip(woken) {
                *before += woken;
                assert_eq!(consumer.announced(), *before, "{message}: {}", consumer.name);
            }
        }
        assert_eq!(
            open.each_ref().map(|consumer| (consumer.due(), consumer.changes())),
            [(0, 0), (0, 0), (1, 0), (0, 1),]
        );
        consumers.on_connected();
        assert!(open.iter().all(|consumer| consumer.changes() > 0), "messages may have been lost");
    }

    #[test]
    fn a_consumer_without_members_is_forgotten() {
        let consumers = Consumers::default();
        let (first, other) = (join(&consumers, "a", "events.a"), join(&consumers, "b", "events.a"));
        assert!(Arc::ptr_eq(&first, &join(&consumers, "a", "events.a")));
        assert!(!first.members.leave());
        consumers.remove(&first);
        assert_eq!(consumers.all().len(), 2, "a member is left");
        assert!(first.members.leave());
        consumers.remove(&first);
        consumers.on_message(b"e events.a");
        assert_eq!((first.announced(), other.announced()), (0, 1));
        assert!(!Arc::ptr_eq(&first, &join(&consumers, "a", "events.a")));
    }
}
