//! Events that were delivered and are not settled.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use super::Time;

/// An event that was delivered and is not settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pending {
    /// Number of deliveries so far.
    pub(super) attempt: u32,
    /// If true, the latest delivery can still be settled; false after a nak or a release.
    pub(super) leased: bool,
    /// Time of the redelivery.
    pub(super) due: Time,
    /// Time at which `due` was set. The remaining wait is never longer than from here to `due`.
    pub(super) since: Time,
}

/// Pending events in the order of their sequences.
///
/// Events are added in that order, and most are removed soon and nearly in that order. A queue with holes therefore
/// costs less than a tree. A lookup is a binary search. The queue has at most 64 more holes than pending events.
#[derive(Debug, Clone, Default)]
pub(super) struct PendingEvents {
    slots: VecDeque<(u64, Option<Pending>)>,
    live: usize,
}

impl PendingEvents {
    pub(super) fn len(&self) -> usize {
        self.live
    }

    pub(super) fn get(&self, sequence: u64) -> Option<Pending> {
        let index = self.find(sequence).ok()?;
        self.slots.get(index)?.1
    }

    pub(super) fn insert(&mut self, sequence: u64, pending: Pending) {
        let is_newest = self.slots.back().is_none_or(|(newest, _)| *newest < sequence);
        if is_newest {
            self.slots.push_back((sequence, Some(pending)));
            self.live += 1;
            return;
        }
        match self.find(sequence) {
            Ok(index) => {
                if let Some((_, slot)) = self.slots.get_mut(index) {
                    self.live += usize::from(slot.replace(pending).is_none());
                }
            }
            Err(index) => {
                self.slots.insert(index, (sequence, Some(pending)));
                self.live += 1;
            }
        }
    }

    pub(super) fn remove(&mut self, sequence: u64) -> Option<Pending> {
        let index = self.find(sequence).ok()?;
        let removed = self.slots.get_mut(index)?.1.take()?;
        self.live -= 1;
        while self.slots.front().is_some_and(|(_, slot)| slot.is_none()) {
            self.slots.pop_front();
        }
        if self.slots.len() > 2 * self.live + 64 {
            self.slots.retain(|(_, slot)| slot.is_some());
        }
        Some(removed)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, Pending)> {
        self.slots.iter().filter_map(|(sequence, slot)| Some((*sequence, (*slot)?)))
    }

    pub(super) fn range(&self, sequences: RangeInclusive<u64>) -> impl Iterator<Item = (u64, Pending)> {
        let (first, last) = sequences.into_inner();
        let begin = self.slots.partition_point(|(sequence, _)| *sequence < first);
        let from_first = self.slots.range(begin..).take_while(move |(sequence, _)| *sequence <= last);
        from_first.filter_map(|(sequence, slot)| Some((*sequence, (*slot)?)))
    }

    fn find(&self, sequence: u64) -> Result<usize, usize> {
        // The oldest event is looked up most often.
        match self.slots.front() {
            Some((oldest, _)) if *oldest == sequence => Ok(0),
            _ => self.slots.binary_search_by_key(&sequence, |(sequence, _)| *sequence),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn it_behaves_as_a_map_with_few_holes(changes in prop::collection::vec((0..300_u64, prop::bool::weighted(0.6)), 0..600)) {
            let mut pending = PendingEvents::default();
            let mut map = BTreeMap::new();
            for (number, (sequence, insert)) in changes.into_iter().enumerate() {
                if insert {
                    let value = Pending { attempt: u32::try_from(number).unwrap(), leased: true, due: Time::ZERO, since: Time::ZERO };
                    pending.insert(sequence, value);
                    map.insert(sequence, value);
                } else {
                    prop_assert_eq!(pending.remove(sequence), map.remove(&sequence));
                    prop_assert!(pending.slots.len() <= 2 * pending.len() + 64);
                }
                prop_assert_eq!(pending.len(), map.len());
                prop_assert_eq!(pending.get(sequence), map.get(&sequence).copied());
            }
            prop_assert_eq!(
                pending.range(100..=200).collect::<Vec<_>>(),
                map.range(100..=200).map(|(sequence, pending)| (*sequence, *pending)).collect::<Vec<_>>()
            );
            prop_assert_eq!(pending.iter().collect::<Vec<_>>(), map.into_iter().collect::<Vec<_>>());
        }
    }
}
