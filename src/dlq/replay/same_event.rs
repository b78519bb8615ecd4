//! Letters about the same event.

use std::collections::{HashMap, HashSet};

use super::super::provider::StoredDeadLetter;
use super::super::record::place_of;
use crate::hash::fnv1a_128;
use crate::types::Event;

/// Returns true if two letters are about the same event: the first published copy or a replayed one. An equal id alone
/// proves nothing, because publishers choose it.
pub(super) fn same_event(one: &StoredDeadLetter, other: &StoredDeadLetter) -> bool {
    let parts = |stored: &StoredDeadLetter| {
        let event = event(stored);
        let names = [&event.id, &event.source, &event.event_type, subject(stored)].map(str::to_owned);
        (names, event.version, event.timestamp, stored.letter.raw.clone())
    };
    let same_payload = one.omitted || other.omitted || event(one).payload == event(other).payload;
    same_payload && parts(one) == parts(other)
}

fn event(stored: &StoredDeadLetter) -> &Event {
    &stored.letter.event.event
}

fn subject(stored: &StoredDeadLetter) -> &str {
    stored.letter.original_subject.as_deref().unwrap_or(&event(stored).subject)
}

/// Numbers of the letters that were read, by a hash of the fields that letters of one event share.
#[derive(Default)]
pub(super) struct Letters {
    are_all: bool,
    places: HashSet<String>,
    by_hash: HashMap<u128, Vec<u64>>,
}

impl Letters {
    /// Creates the collection for a read of the whole queue.
    pub(super) fn of_all() -> Self {
        Self { are_all: true, ..Self::default() }
    }

    pub(super) fn add(&mut self, letter: &StoredDeadLetter) {
        self.by_hash.entry(hash(letter)).or_default().push(letter.id);
    }

    /// Returns the subject of the other letters of the same event, unless they were already read.
    pub(super) fn unread_place_of(&mut self, letter: &StoredDeadLetter, prefix: &str) -> Option<String> {
        let place = place_of(prefix, subject(letter));
        (!self.are_all && self.places.insert(place.clone())).then_some(place)
    }

    /// Returns the numbers of the letters that may be about the same event.
    pub(super) fn like(&self, letter: &StoredDeadLetter) -> impl Iterator<Item = u64> {
        self.by_hash.get(&hash(letter)).into_iter().flatten().copied()
    }
}

fn hash(letter: &StoredDeadLetter) -> u128 {
    let event = event(letter);
    fnv1a_128(&[&event.id, &event.source, &event.event_type, subject(letter)])
}
