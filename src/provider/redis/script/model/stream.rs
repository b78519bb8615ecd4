//! Publishing, retention and purging.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::ops::Publish;
use super::world::{EPOCH, Stored, World};
use super::{DEDUP_WINDOW, MSG_IDS, SUBJECTS};
use crate::provider::redis::pattern::lua_pattern;
use crate::provider::redis::script::open_stream::{self, Limits, OpenedStream};
use crate::provider::redis::script::publish::{self, Outcome, Published, Record};
use crate::provider::redis::script::{purge, retain};
use crate::provider::support::answered_without_storing;
use crate::subject::subject_matches;

impl World<'_> {
    pub(super) fn limit(&mut self, (max_events, max_bytes, max_age): (u64, u64, u64)) {
        self.limits = (max_events, max_bytes, max_age);
        let limits = Limits {
            max_events: Some(max_events),
            max_bytes: Some(max_bytes),
            max_age: Some(Duration::from_millis(max_age)),
            dedup_window: Some(Duration::from_millis(DEDUP_WINDOW)),
        };
        let call = open_stream::open_stream(&self.keys, "events", EPOCH, true, limits);
        let opened = open_stream::read(self.call(call)).unwrap();
        assert!(matches!(opened, OpenedStream::Opened { .. }), "{opened:?}");
    }

    /// Drops what exceeds the limits.
    pub(super) fn retain_reference(&mut self) -> u64 {
        let (max_events, max_bytes, max_age) = self.limits;
        let mut dropped = 0;
        loop {
            let count = self.retained().count() as u64;
            let bytes: u64 = self.retained().map(|(_, event)| event.size).sum();
            let Some((oldest, event)) = self.retained().next() else { return dropped };
            let is_surplus = (max_events > 0 && count > max_events)
                || (max_bytes > 0 && bytes > max_bytes && count > 1)
                || (max_age > 0 && event.stored_at.saturating_add(max_age) <= self.now);
            if !is_surplus {
                return dropped;
            }
            self.first = oldest + 1;
            self.drop_reference(oldest);
            dropped += 1;
        }
    }

    pub(super) fn drop_reference(&mut self, sequence: u64) {
        let event = self.events.get_mut(&sequence).unwrap();
        event.is_retained = false;
        for consumer in &mut self.consumers {
            let comes = sequence > consumer.machine.cursor() && consumer.starts_at.is_none();
            if comes && consumer.takes(event.subject) {
                consumer.owed += 1;
            }
        }
    }

    pub(super) fn retain(&mut self) -> Result<(), TestCaseError> {
        let expected = self.retain_reference();
        let call = retain::retain(&self.keys, EPOCH).at(self.now);
        let dropped = retain::read(self.call(call)).unwrap().unwrap();
        prop_assert_eq!((dropped.dropped, dropped.has_surplus), (expected, false));
        Ok(())
    }

    /// Returns the sequence of the first event with this `msg_id`, unless it is older than the window.
    pub(super) fn first_of(&self, msg_id: &str) -> Option<u64> {
        let (sequence, at) = *self.msg_ids.get(msg_id)?;
        // A time from a clock that was ahead counts as the one at which that was noticed.
        let at = if at > self.now { self.behind_since.unwrap_or(at) } else { at };
        (at + DEDUP_WINDOW > self.now).then_some(sequence)
    }

    pub(super) fn forget_msg_ids(&mut self, most: usize) {
        for _ in 0..most {
            match self.msg_id_queue.front() {
                Some(oldest) if self.first_of(oldest).is_none() => {
                    self.msg_ids.remove(oldest);
                    self.msg_id_queue.pop_front();
                }
                _ => return,
            }
        }
    }

    pub(super) fn publish(&mut self, publishes: &[Publish]) -> Result<(), TestCaseError> {
        let unwritten = (self.ms, self.behind_since);
        self.behind_since = (self.now < self.ms).then(|| self.behind_since.unwrap_or(self.now));
        self.ms = self.ms.max(self.now);
        let before = self.last();
        let with_ids = publishes.iter().filter(|publish| publish.msg_id.is_some()).count();
        let firsts: Vec<_> = MSG_IDS.iter().map(|msg_id| self.first_of(msg_id)).collect();
        if with_ids > 0 {
            self.forget_msg_ids(8 + with_ids);
        }
        let mut records = Vec::new();
        let mut expected = Vec::new();
        let mut new_ids = BTreeMap::new();
        for publish in publishes {
            let (subject, last) = (SUBJECTS[publish.subject], self.last());
            let first = publish.msg_id.and_then(|msg_id| new_ids.get(&msg_id).copied().or(firsts[msg_id]));
            let expected_sequence = publish.expects.map(|expects| match expects {
                0 => last,
                1 => first.map_or(last, |first| first - 1),
                _ => last + 1,
            });
            let msg_id = publish.msg_id.map(|msg_id| MSG_IDS[msg_id]);
            records.push(Record { subject, msg_id, expected_sequence, json: subject.as_bytes() });
            expected.push(match answered_without_storing("stream", last, expected_sequence, first) {
                Ok(None) => {
                    let stored_at = self.ms;
                    let stored = Stored { subject, stored_at, size: subject.len() as u64, is_retained: true };
                    self.events.insert(last + 1, stored);
                    new_ids.extend(publish.msg_id.map(|msg_id| (msg_id, last + 1)));
                    self.msg_id_queue.extend(msg_id);
                    Outcome::Stored(last + 1)
                }
                Ok(Some(duplicate)) => Outcome::Duplicate(duplicate.sequence),
                Err(_conflict) => Outcome::Conflict(last),
            });
        }
        self.msg_ids
            .extend(new_ids.into_iter().map(|(msg_id, sequence)| (MSG_IDS[msg_id], (sequence, self.now))));
        if self.last() > before {
            for consumer in &mut self.consumers {
                if consumer.starts_at.is_some_and(|starts_at| starts_at <= self.ms) {
                    consumer.starts_at = None;
                    consumer.machine.skip_to(before, 0);
                }
            }
            self.retain_reference();
        } else {
            // Nothing is stored, so nothing is written.
            (self.ms, self.behind_since) = unwritten;
        }
        let call = publish::publish(&self.keys, EPOCH, &records).at(self.now);
        let published = publish::read(self.call(call), records.len()).unwrap();
        prop_assert_eq!(published, Published::Done { outcomes: expected, has_surplus: false });
        Ok(())
    }

    pub(super) fn purge(&mut self, filter: &str) -> Result<(), TestCaseError> {
        let pattern = lua_pattern(filter, "events");
        let doomed: Vec<u64> = self
            .retained()
            .filter(|(_, event)| subject_matches(event.subject, filter))
            .map(|(sequence, _)| sequence)
            .collect();
        for sequence in &doomed {
            self.drop_reference(*sequence);
            if pattern.is_empty() {
                self.first = sequence + 1;
            }
        }
        let call = purge::purge(&self.keys, EPOCH, &pattern, 0, None);
        let purged = purge::read(self.call(call)).unwrap().unwrap();
        prop_assert_eq!((purged.deleted, purged.next), (doomed.len() as u64, None));
        Ok(())
    }
}
