//! Index of triggers by type, source and subject. The cost of a lookup depends on the matching triggers, not on all.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::lane::Lane;
use crate::subject::{SubjectIndex, validate_filter};
use crate::types::Event;

/// Filter of all subjects.
pub(super) const ANY_SUBJECT: &str = ">";

/// All triggers of a broker.
#[derive(Default)]
pub(super) struct Index {
    /// Type, then source, then subject.
    by_type: Level<Level<SubjectIndex<Vec<Arc<Lane>>>>>,
    /// In the order of names, so that a seed of a simulation always starts them in one order.
    by_name: BTreeMap<String, Vec<Arc<Lane>>>,
    len: usize,
}

/// One value for each exact text, and one for triggers that accept any.
#[derive(Default)]
struct Level<T> {
    exact: HashMap<String, T>,
    any: T,
}

impl<T: Default> Level<T> {
    fn entry(&mut self, key: Option<&str>) -> &mut T {
        match key {
            Some(key) => self.exact.entry(key.to_owned()).or_default(),
            None => &mut self.any,
        }
    }

    fn get_mut(&mut self, key: Option<&str>) -> Option<&mut T> {
        match key {
            Some(key) => self.exact.get_mut(key),
            None => Some(&mut self.any),
        }
    }

    fn drop_if(&mut self, key: Option<&str>, is_empty: impl FnOnce(&T) -> bool) {
        if let Some(key) = key
            && self.exact.get(key).is_some_and(is_empty)
        {
            self.exact.remove(key);
        }
    }

    /// Returns the values that apply to a text.
    fn of<Q: ?Sized + std::hash::Hash + Eq>(&self, key: &Q) -> impl Iterator<Item = &T>
    where
        String: Borrow<Q>,
    {
        let exact = if self.exact.is_empty() { None } else { self.exact.get(key) };
        exact.into_iter().chain([&self.any])
    }
}

impl Index {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    pub(super) fn named(&self, name: &str) -> &[Arc<Lane>] {
        self.by_name.get(name).map_or(&[], Vec::as_slice)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Lane>> {
        self.by_name.values().flatten()
    }

    pub(super) fn insert(&mut self, lane: Arc<Lane>) {
        // A trigger with an invalid pattern matches nothing: it is indexed by name only.
        if validate_filter(lane.key().subject).is_ok() {
            let key = lane.key();
            let subjects = self.by_type.entry(key.event_type).entry(key.source);
            let mut lanes = subjects.remove(key.subject).unwrap_or_default();
            lanes.push(Arc::clone(&lane));
            // Checked above.
            let _ = subjects.insert(key.subject, lanes);
        }
        self.by_name.entry(lane.name().to_owned()).or_default().push(lane);
        self.len += 1;
    }

    /// Removes all triggers of this name, and returns them.
    pub(super) fn remove(&mut self, name: &str) -> Vec<Arc<Lane>> {
        let removed = self.by_name.remove(name).unwrap_or_default();
        for lane in &removed {
            self.take_out(lane);
        }
        self.len -= removed.len();
        removed
    }

    fn take_out(&mut self, lane: &Arc<Lane>) {
        let key = lane.key();
        let Some(sources) = self.by_type.get_mut(key.event_type) else { return };
        if let Some(subjects) = sources.get_mut(key.source)
            && let Some(mut lanes) = subjects.remove(key.subject)
        {
            lanes.retain(|other| !Arc::ptr_eq(other, lane));
            if !lanes.is_empty() {
                let _ = subjects.insert(key.subject, lanes);
            }
        }
        sources.drop_if(key.source, SubjectIndex::is_empty);
        self.by_type.drop_if(key.event_type, |sources| sources.exact.is_empty() && sources.any.is_empty());
    }

    /// Calls `visit` with each trigger that wants the event.
    pub(super) fn for_each_match<'a>(&'a self, event: &Event, mut visit: impl FnMut(&'a Arc<Lane>)) {
        for sources in self.by_type.of(event.event_type.as_str()) {
            for subjects in sources.of(event.source.as_str()) {
                if subjects.is_empty() {
                    continue;
                }
                subjects.for_each_match(&event.subject, |lanes| {
                    lanes.iter().filter(|lane| lane.wants(event)).for_each(&mut visit);
                });
            }
        }
    }
}

/// Criteria by which a trigger is indexed.
pub(super) struct Key<'a> {
    pub(super) event_type: Option<&'a str>,
    pub(super) source: Option<&'a str>,
    pub(super) subject: &'a str,
}

impl<'a> Key<'a> {
    pub(super) fn new(
        event_type: Option<&'a str>,
        source: Option<&'a str>,
        subject: Option<&'a str>,
    ) -> Self {
        Self { event_type, source, subject: subject.unwrap_or(ANY_SUBJECT) }
    }
}
