//! The stored events: sequence, subjects, retention, history.

use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use crate::provider::support::CLOCK_TOLERANCE_MS;
use crate::provider::{HistoryPage, HistoryQuery, StoredEvent};
use crate::subject::subject_matches;
use crate::types::Event;

/// Number of a distinct subject; freed numbers are reused.
pub(super) type SubjectId = u32;

/// Result of an append.
#[derive(Debug, Clone, Copy)]
pub(super) struct Appended {
    pub(super) sequence: u64,
    pub(super) subject: SubjectId,
    pub(super) stored_at: u64,
    /// If true, no other retained event has this subject, and its id may have named another subject before.
    pub(super) is_new_subject: bool,
}

/// Retention limits. Zero is unlimited.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) max_events: usize,
    pub(super) max_bytes: u64,
    pub(super) max_age_ms: u64,
}

#[derive(Debug)]
struct Entry {
    event: Arc<Event>,
    /// Sequence of the previous event with the same subject, or 0. That event may already be dropped.
    previous: u64,
    stored_at: u64,
    size: u32,
    subject: SubjectId,
}

#[derive(Debug)]
struct Subject {
    name: Arc<str>,
    /// Sequence of the newest event of this subject.
    newest: u64,
    stored: usize,
}

/// Events in sequence order. All retained sequences are consecutive.
#[derive(Debug)]
pub(super) struct Log {
    limits: Limits,
    /// The filter that matches everything that can be stored here, `{prefix}.>`.
    everything: String,
    entries: VecDeque<Entry>,
    /// Sequence of the first entry, or of the next event if there is none.
    first: u64,
    bytes: u64,
    last_stored_at: u64,
    subject_ids: HashMap<Arc<str>, SubjectId>,
    /// The same subjects in order, so that a filter finds those with its literal prefix.
    subjects_in_order: BTreeMap<Arc<str>, SubjectId>,
    subjects: Vec<Subject>,
    free_subjects: Vec<SubjectId>,
}

impl Log {
    pub(super) fn new(prefix: &str, limits: Limits) -> Self {
        Self {
            limits,
            everything: format!("{prefix}.>"),
            entries: VecDeque::new(),
            first: 1,
            bytes: 0,
            last_stored_at: 0,
            subject_ids: HashMap::new(),
            subjects_in_order: BTreeMap::new(),
            subjects: Vec::new(),
            free_subjects: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the lowest retained sequence, or the next one if nothing is retained.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// Returns the newest sequence ever assigned, or 0.
    pub(super) fn last(&self) -> u64 {
        self.first + self.entries.len() as u64 - 1
    }

    pub(super) fn event(&self, sequence: u64) -> Option<&Arc<Event>> {
        self.entry(sequence).map(|entry| &entry.event)
    }

    /// Appends an event of `size` bytes.
    pub(super) fn append(&mut self, event: Arc<Event>, size: usize, now_ms: u64) -> Appended {
        self.notice_clock(now_ms);
        let sequence = self.last() + 1;
        let subject = self.subject_id(&event.subject);
        // The clock may go back a little. Storage times never do, because time ranges would have holes.
        self.last_stored_at = self.last_stored_at.max(now_ms);
        let mut previous = 0;
        let mut is_new_subject = false;
        if let Some(known) = self.subjects.get_mut(subject as usize) {
            previous = std::mem::replace(&mut known.newest, sequence);
            is_new_subject = known.stored == 0;
            known.stored += 1;
        }
        self.bytes += size as u64;
        self.entries.push_back(Entry {
            event,
            previous,
            stored_at: self.last_stored_at,
            size: u32::try_from(size).unwrap_or(u32::MAX),
            subject,
        });
        Appended { sequence, subject, stored_at: self.last_stored_at, is_new_subject }
    }

    /// Returns the subject of the event that retention must drop next, if any.
    pub(super) fn surplus(&self, now_ms: u64) -> Option<SubjectId> {
        let oldest = self.entries.front()?;
        let Limits { max_events, max_bytes, max_age_ms } = self.limits;
        let surplus = (max_events != 0 && self.entries.len() > max_events)
            || (max_bytes != 0 && self.bytes > max_bytes && self.entries.len() > 1)
            || (max_age_ms != 0 && oldest.stored_at.saturating_add(max_age_ms) <= now_ms);
        surplus.then_some(oldest.subject)
    }

    /// Returns the subject of the oldest event.
    pub(super) fn oldest_subject(&self) -> Option<SubjectId> {
        self.entries.front().map(|entry| entry.subject)
    }

    /// Corrects storage times after the clock was set back: a later time becomes the current time. Otherwise events
    /// stored while the clock was ahead would not expire, and new events would get the same late time.
    pub(super) fn notice_clock(&mut self, now_ms: u64) {
        if !self.is_ahead_of(now_ms) {
            return;
        }
        let first = self.entries.partition_point(|entry| entry.stored_at <= now_ms);
        self.entries.range_mut(first..).for_each(|entry| entry.stored_at = now_ms);
        self.last_stored_at = now_ms;
    }

    fn is_ahead_of(&self, now_ms: u64) -> bool {
        self.last_stored_at > now_ms.saturating_add(CLOCK_TOLERANCE_MS)
    }

    /// Returns `true` if the oldest event is too old or a storage time lies in the future. Always `false` without an
    /// age limit.
    pub(super) fn has_expired(&self, now_ms: u64) -> bool {
        self.limits.max_age_ms != 0 && (self.is_ahead_of(now_ms) || self.surplus(now_ms).is_some())
    }

    /// Returns `true` if events expire by age.
    pub(super) fn has_age_limit(&self) -> bool {
        self.limits.max_age_ms != 0
    }

    /// Drops the oldest event and returns it with its sequence, so that the caller can free it outside its lock.
    pub(super) fn drop_oldest(&mut self) -> Option<(u64, Arc<Event>)> {
        let entry = self.entries.pop_front()?;
        let sequence = self.first;
        self.first += 1;
        self.bytes -= u64::from(entry.size);
        if let Some(subject) = self.subjects.get_mut(entry.subject as usize) {
            subject.stored -= 1;
            if subject.stored == 0 {
                let name = Arc::clone(&subject.name);
                self.subject_ids.remove(&name);
                self.subjects_in_order.remove(&name);
                self.free_subjects.push(entry.subject);
            }
        }
        Some((sequence, entry.event))
    }

    /// Returns the first sequence stored at this time or later.
    pub(super) fn first_stored_since(&self, unix_ms: u64) -> u64 {
        self.first + self.entries.partition_point(|entry| entry.stored_at < unix_ms) as u64
    }

    /// Returns all retained matches in ascending order.
    pub(super) fn matches(&self, filter: &str) -> VecDeque<u64> {
        if self.is_everything(filter) {
            return (self.first..=self.last()).collect();
        }
        let mut found = Vec::new();
        for subject in self.subjects_matching(filter) {
            found.extend(self.chain(subject.newest));
        }
        found.sort_unstable();
        found.into()
    }

    /// Returns the newest retained event of each matching subject, in ascending order.
    pub(super) fn last_per_subject(&self, filter: &str) -> Vec<u64> {
        let mut found: Vec<u64> = self.subjects_matching(filter).map(|subject| subject.newest).collect();
        found.sort_unstable();
        found
    }

    /// Returns the newest matches of a query, newest first.
    pub(super) fn page(&self, query: &HistoryQuery) -> HistoryPage {
        let since = query.since_sequence.unwrap_or(0).max(self.first);
        let since = query.since_time.map_or(since, |time| since.max(self.first_stored_since(time)));
        let before = query.before_sequence.unwrap_or(u64::MAX).min(self.last() + 1);
        let before = query.before_time.map_or(before, |time| before.min(self.first_stored_since(time)));
        let filter = query.filter.as_deref().filter(|filter| !self.is_everything(filter));
        let sequences = match filter {
            None => (since..before).rev().take(query.limit).collect(),
            Some(filter) => self.newest_matches(filter, since, before, query.limit),
        };
        let events: Vec<_> = sequences
            .into_iter()
            .filter_map(|sequence| {
                let entry = self.entry(sequence)?;
                Some(StoredEvent::new(Arc::clone(&entry.event), sequence, entry.stored_at))
            })
            .collect();
        let searched_from = match events.last() {
            Some(oldest) if events.len() == query.limit => Some(oldest.sequence),
            _ if query.limit == 0 => Some(before),
            _ => Some(since),
        };
        HistoryPage::new(events, Vec::new(), searched_from.filter(|_| since < before), since)
    }

    /// Returns the newest matches. Scans backwards, which is fast for a frequent filter. If that finds too few,
    /// searches by subject, which is fast for a rare one.
    fn newest_matches(&self, filter: &str, since: u64, before: u64, limit: usize) -> Vec<u64> {
        let mut found = Vec::new();
        let budget = limit.saturating_mul(8).saturating_add(256) as u64;
        let scan_from = since.max(before.saturating_sub(budget));
        for sequence in (scan_from..before).rev() {
            if found.len() >= limit {
                return found;
            }
            if self.entry(sequence).is_some_and(|entry| subject_matches(&entry.event.subject, filter)) {
                found.push(sequence);
            }
        }
        let mut heads: BinaryHeap<u64> = self
            .subjects_matching(filter)
            .filter_map(|subject| self.chain(subject.newest).find(|sequence| *sequence < scan_from))
            .collect();
        while found.len() < limit {
            let Some(newest) = heads.pop().filter(|sequence| *sequence >= since) else {
                break;
            };
            found.push(newest);
            heads.extend(self.chain(newest).nth(1));
        }
        found
    }

    /// Returns the retained events of one subject, from this one backwards.
    fn chain(&self, newest: u64) -> impl Iterator<Item = u64> + '_ {
        let retained = move |sequence: u64| (sequence >= self.first).then_some(sequence);
        std::iter::successors(retained(newest), move |sequence| retained(self.entry(*sequence)?.previous))
    }

    fn subjects_matching<'a>(&'a self, filter: &'a str) -> impl Iterator<Item = &'a Subject> {
        let (literal, end) = match filter.split_once(['*', '>']) {
            Some((literal, _)) => (literal, Bound::Unbounded),
            None => (filter, Bound::Included(filter)),
        };
        self.subjects_in_order
            .range::<str, _>((Bound::Included(literal), end))
            .take_while(move |(name, _)| name.starts_with(literal))
            .filter(move |(name, _)| subject_matches(name, filter))
            .filter_map(|(_, id)| self.subjects.get(*id as usize))
    }

    /// Returns `true` if the filter matches every event that can be stored here.
    fn is_everything(&self, filter: &str) -> bool {
        filter == ">" || filter == self.everything
    }

    fn entry(&self, sequence: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(sequence.checked_sub(self.first)?).ok()?)
    }

    fn subject_id(&mut self, name: &str) -> SubjectId {
        if let Some(id) = self.subject_ids.get(name) {
            return *id;
        }
        let name: Arc<str> = name.into();
        let subject = Subject { name: Arc::clone(&name), newest: 0, stored: 0 };
        let id = match self.free_subjects.pop() {
            Some(id) => id,
            None => SubjectId::try_from(self.subjects.len()).unwrap_or(SubjectId::MAX),
        };
        match self.subjects.get_mut(id as usize) {
            Some(free) => *free = subject,
            None => self.subjects.push(subject),
        }
        self.subject_ids.insert(Arc::clone(&name), id);
        self.subjects_in_order.insert(name, id);
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NO_LIMITS: Limits = Limits { max_events: 0, max_bytes: 0, max_age_ms: 0 };

    fn append(log: &mut Log, subject: &str, now_ms: u64) -> u64 {
        let event = Event::new(subject, "c", "", "", serde_json::Value::Null);
        let appended = log.append(Arc::new(event), 100, now_ms);
        while log.surplus(now_ms).is_some() {
            log.drop_oldest();
        }
        appended.sequence
    }

    fn sequences(log: &Log, query: &HistoryQuery) -> Vec<u64> {
        log.page(query).events.iter().map(|stored| stored.sequence).collect()
    }

    proptest! {
        #[test]
        fn queries_and_matches_are_what_a_full_scan_finds(
            subjects in prop::collection::vec("events\\.[ab]\\.[a-d]", 0..600),
            max_events in prop_oneof![Just(0_usize), 1..400_usize],
            filter in prop_oneof![
                Just("events.>"), Just(">"), Just("events.a.>"), Just("events.*.c"), Just("events.b.d"), Just("events.*.*"),
            ],
            limit in 0..20_usize,
            since in prop::option::of(0..600_u64),
            before in prop::option::of(0..600_u64),
        ) {
            let mut log = Log::new("events", Limits { max_events, ..NO_LIMITS });
            let mut all = Vec::new();
            for subject in &subjects {
                let sequence = append(&mut log, subject, 0);
                all.push((sequence, subject));
            }
            let oldest = if max_events == 0 { 0 } else { all.len().saturating_sub(max_events) };
            let retained = &all[oldest..];
            prop_assert_eq!(log.len(), retained.len());
            prop_assert_eq!(log.bytes(), 100 * retained.len() as u64);

            let matching: Vec<u64> =
                retained.iter().filter(|(_, subject)| subject_matches(subject, filter)).map(|(s, _)| *s).collect();
            prop_assert_eq!(Vec::from(log.matches(filter)), matching.clone());

            let mut query = HistoryQuery::new(limit).filter(filter);
            query.since_sequence = since;
            query.before_sequence = before;
            let expected: Vec<u64> = matching
                .iter()
                .rev()
                .copied()
                .filter(|s| since.is_none_or(|since| *s >= since) && before.is_none_or(|before| *s < before))
                .take(limit)
                .collect();
            prop_assert_eq!(sequences(&log, &query), expected);

            let mut newest = BTreeMap::new();
            for (sequence, subject) in retained.iter().filter(|(_, subject)| subject_matches(subject, filter)) {
                newest.insert(subject, *sequence);
            }
            let mut newest: Vec<u64> = newest.into_values().collect();
            newest.sort_unstable();
            prop_assert_eq!(log.last_per_subject(filter), newest);
            prop_assert_eq!(log.subject_ids.len(), log.subjects_in_order.len());
        }
    }

    #[test]
    fn a_rare_filter_is_found_behind_many_others() {
        let mut log = Log::new("events", NO_LIMITS);
        for number in 0..5_000 {
            append(&mut log, if number % 1_000 == 0 { "events.rare.x" } else { "events.common.x" }, number);
        }
        assert_eq!(sequences(&log, &HistoryQuery::new(3).filter("events.rare.>")), [4_001, 3_001, 2_001]);
        let page = HistoryQuery::new(9).filter("events.rare.>").before_sequence(2_001);
        assert_eq!(sequences(&log, &page), [1_001, 1]);
    }

    #[test]
    fn time_ranges_go_by_storage_time_and_storage_time_never_falls() {
        let mut log = Log::new("events", NO_LIMITS);
        for now_ms in [100, 200, 150, 300] {
            append(&mut log, "events.a.b", now_ms);
        }
        assert_eq!(sequences(&log, &HistoryQuery::new(9).since_time(200)), [4, 3, 2]);
        assert_eq!(sequences(&log, &HistoryQuery::new(9).since_time(200).before_time(300)), [3, 2]);
        assert_eq!(log.first_stored_since(201), 4);
        assert_eq!(log.first_stored_since(301), 5);
    }

    #[test]
    fn a_clock_that_was_ahead_keeps_nothing_from_growing_old() {
        let mut log = Log::new("events", Limits { max_age_ms: 10_000, ..NO_LIMITS });
        append(&mut log, "events.a.b", 1_000);
        append(&mut log, "events.a.b", 3_600_000);
        append(&mut log, "events.a.b", 3_600_001);
        append(&mut log, "events.a.b", 5_000);
        assert_eq!(sequences(&log, &HistoryQuery::new(9).since_time(5_001)), [] as [u64; 0]);
        let first = log.first_stored_since(5_000);
        assert_eq!(first, log.first(), "those before are known to be stored by then");
        assert!(log.has_expired(15_000));

        let mut log = Log::new("events", Limits { max_age_ms: 10_000, ..NO_LIMITS });
        append(&mut log, "events.a.b", 3_600_000);
        assert!(log.has_expired(5_000), "it is looked at although nothing is published");
        log.notice_clock(5_000);
        assert!(!log.has_expired(14_999));
        assert!(log.has_expired(15_000));
    }

    #[test]
    fn every_limit_drops_the_oldest() {
        let mut log = Log::new("events", Limits { max_bytes: 250, ..NO_LIMITS });
        for _ in 0..4 {
            append(&mut log, "events.a.b", 0);
        }
        assert_eq!((log.len(), log.first(), log.last()), (2, 3, 4));

        let mut log = Log::new("events", Limits { max_age_ms: 10, ..NO_LIMITS });
        append(&mut log, "events.a.b", 0);
        append(&mut log, "events.a.b", 9);
        assert_eq!(log.len(), 2);
        assert!(log.has_expired(10));
        append(&mut log, "events.a.b", 10);
        assert_eq!((log.len(), log.first()), (2, 2));
    }

    #[test]
    fn a_single_event_over_max_bytes_is_still_stored() {
        let mut log = Log::new("events", Limits { max_bytes: 50, ..NO_LIMITS });
        append(&mut log, "events.a.b", 0);
        assert_eq!(log.len(), 1);
    }
}
