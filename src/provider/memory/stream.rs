//! The stream: the log, the matches of each filter, and the readers.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::consumer::ConsumerCell;
use super::log::{Appended, Limits, Log, SubjectId};
use super::publish::Dedup;

use crate::error::Result;
use crate::provider::ConsumerPosition;
use crate::provider::group::Start;
use crate::subject::SubjectIndex;
use crate::types::{DeliverPolicy, Event};

/// Number of a group; freed numbers are reused.
pub(super) type GroupId = usize;

/// State of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lifecycle {
    Open,
    /// The provider was dropped: subscriptions end once everything is delivered and settled.
    Abandoned,
    /// Subscriptions end at once.
    Closed,
}

/// Dropped events, which are freed outside the lock. A full store drops one per publish, which needs no allocation.
#[derive(Debug, Default)]
pub(super) struct Dropped {
    last: Option<Arc<Event>>,
    others: Vec<Arc<Event>>,
}

impl Dropped {
    fn keep(&mut self, event: Arc<Event>) {
        self.others.extend(self.last.replace(event));
    }
}

/// All consumers of one filter, and the retained sequences that match it, found once for all of them.
#[derive(Debug)]
pub(super) struct Group {
    filter: String,
    /// Ordinal of the first match: the number of matches that retention has dropped from the front.
    first_ordinal: u64,
    matches: VecDeque<u64>,
    members: Vec<Arc<ConsumerCell>>,
    /// Members that have subscriptions. A publish costs nothing for the others.
    attended: Vec<Arc<ConsumerCell>>,
    /// Members that start in the future.
    not_started: Vec<(Arc<ConsumerCell>, Future)>,
}

/// A start in the future.
#[derive(Debug, Clone, Copy)]
pub(super) enum Future {
    /// After this sequence.
    Behind(u64),
    /// With the first event stored at this time or later.
    Since(u64),
}

impl Future {
    fn has_come(self, sequence: u64, stored_at: u64) -> bool {
        match self {
            Self::Behind(last) => sequence > last,
            Self::Since(time) => stored_at >= time,
        }
    }
}

impl Group {
    pub(super) fn first_ordinal(&self) -> u64 {
        self.first_ordinal
    }

    /// Returns the match at this ordinal.
    pub(super) fn at(&self, ordinal: u64) -> Option<u64> {
        self.matches.get(usize::try_from(ordinal.checked_sub(self.first_ordinal)?).ok()?).copied()
    }

    /// Returns the number of retained matches from this ordinal on.
    pub(super) fn count_from(&self, ordinal: u64) -> u64 {
        let skipped = ordinal.saturating_sub(self.first_ordinal);
        (self.matches.len() as u64).saturating_sub(skipped)
    }

    fn push(&mut self, sequence: u64, stored_at: u64) {
        self.matches.push_back(sequence);
        self.not_started.retain(|(_, start)| !start.has_come(sequence, stored_at));
        for (member, _) in &self.not_started {
            member.skip_one();
        }
    }

    fn ordinal_after(&self, sequence: u64) -> u64 {
        self.first_ordinal + self.matches.partition_point(|matched| *matched <= sequence) as u64
    }

    fn wake_idle(&self) {
        for member in &self.attended {
            member.wake_if_idle();
        }
    }
}

/// The groups that read a subject, as of one generation of the filters.
#[derive(Debug, Default)]
struct Route {
    generation: u64,
    groups: Box<[GroupId]>,
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) log: Log,
    pub(super) dedup: Dedup,
    pub(super) lifecycle: Lifecycle,
    durables: HashMap<String, Arc<ConsumerCell>>,
    filters: SubjectIndex<GroupId>,
    groups: Vec<Option<Group>>,
    free_groups: Vec<GroupId>,
    /// Number of changes of `filters`. A route of another generation is outdated.
    generation: u64,
    routes: Vec<Route>,
    consumers: usize,
    ephemerals_ever: u64,
}

impl Stream {
    pub(super) fn new(prefix: &str, limits: Limits, dedup: Dedup) -> Self {
        Self {
            log: Log::new(prefix, limits),
            dedup,
            lifecycle: Lifecycle::Open,
            durables: HashMap::new(),
            filters: SubjectIndex::new(),
            groups: Vec::new(),
            free_groups: Vec::new(),
            generation: 1,
            routes: Vec::new(),
            consumers: 0,
            ephemerals_ever: 0,
        }
    }

    /// Stores an event. Returns its sequence, its subject, and whether a consumer reads it. Events that retention drops
    /// go into `dropped`, to be freed outside the lock.
    pub(super) fn append(
        &mut self,
        event: Arc<Event>,
        size: usize,
        now_ms: u64,
        dropped: &mut Dropped,
    ) -> (u64, SubjectId, bool) {
        let Appended { sequence, subject, stored_at, is_new_subject } =
            self.log.append(Arc::clone(&event), size, now_ms);
        if is_new_subject {
            self.set_route(subject, Route::default());
        }
        let mut has_readers = false;
        self.with_route(subject, &event.subject, |group| {
            group.push(sequence, stored_at);
            has_readers = true;
        });
        self.enforce_retention(now_ms, dropped);
        (sequence, subject, has_readers)
    }

    /// Drops the oldest events while a limit is exceeded.
    pub(super) fn enforce_retention(&mut self, now_ms: u64, dropped: &mut Dropped) {
        self.log.notice_clock(now_ms);
        while let Some(subject) = self.log.surplus(now_ms) {
            self.drop_oldest(subject, dropped);
        }
    }

    /// Drops all events and returns their number.
    pub(super) fn purge(&mut self, dropped: &mut Dropped) -> u64 {
        let mut purged = 0;
        while let Some(subject) = self.log.oldest_subject() {
            self.drop_oldest(subject, dropped);
            purged += 1;
        }
        purged
    }

    /// Drops the oldest event, which has this subject.
    fn drop_oldest(&mut self, subject: SubjectId, dropped: &mut Dropped) {
        let Some((sequence, event)) = self.log.drop_oldest() else { return };
        self.with_route(subject, &event.subject, |group| {
            if group.matches.front() == Some(&sequence) {
                group.matches.pop_front();
                group.first_ordinal += 1;
            }
        });
        dropped.keep(event);
    }

    /// Wakes the readers of a subject. Called after the append, under a shared lock, so that readers do not wait.
    pub(super) fn wake_readers(&self, id: SubjectId, subject: &str) {
        match self.routes.get(id as usize).filter(|route| route.generation == self.generation) {
            Some(route) => {
                route.groups.iter().filter_map(|group| self.group(*group)).for_each(Group::wake_idle);
            }
            None => self.filters.for_each_match(subject, |group| {
                if let Some(group) = self.group(*group) {
                    group.wake_idle();
                }
            }),
        }
    }

    /// Wakes a member of every consumer, for instance to notice that the stream is closed.
    pub(super) fn wake_all(&self) {
        self.groups
            .iter()
            .flatten()
            .flat_map(|group| &group.members)
            .for_each(|member| member.members.wake_one());
    }

    pub(super) fn group(&self, id: GroupId) -> Option<&Group> {
        self.groups.get(id)?.as_ref()
    }

    pub(super) fn durable(&self, name: &str) -> Option<Arc<ConsumerCell>> {
        self.durables.get(name).cloned()
    }

    pub(super) fn consumer_count(&self) -> usize {
        self.consumers
    }

    pub(super) fn consumers(&self) -> Vec<Arc<ConsumerCell>> {
        self.groups.iter().flatten().flat_map(|group| group.members.iter().cloned()).collect()
    }

    pub(super) fn next_ephemeral_name(&mut self) -> String {
        self.ephemerals_ever += 1;
        format!("ephemeral-{}", self.ephemerals_ever)
    }

    /// Returns the start position of a new consumer with this policy.
    pub(super) fn start(&self, filter: &str, policy: &DeliverPolicy) -> Start {
        let newest = self.log.last();
        match policy {
            DeliverPolicy::All => Start::after(0),
            DeliverPolicy::New => Start::after(newest),
            DeliverPolicy::ByStartSequence { sequence } => Start::after(sequence.saturating_sub(1)),
            DeliverPolicy::ByStartTime { timestamp } => {
                Start::after(self.log.first_stored_since(*timestamp).saturating_sub(1))
            }
            DeliverPolicy::Last => {
                Start::backlog(self.log.last_per_subject(filter).into_iter().max(), newest)
            }
            DeliverPolicy::LastPerSubject => Start::backlog(self.log.last_per_subject(filter), newest),
        }
    }

    /// Returns the start of a consumer that begins with an event not yet stored.
    pub(super) fn future(&self, policy: &DeliverPolicy) -> Option<Future> {
        let last = self.log.last();
        match policy {
            DeliverPolicy::ByStartSequence { sequence } if *sequence > last + 1 => {
                Some(Future::Behind(sequence - 1))
            }
            DeliverPolicy::ByStartTime { timestamp } if self.log.first_stored_since(*timestamp) > last => {
                Some(Future::Since(*timestamp))
            }
            _ => None,
        }
    }

    /// Returns the cursor before a position, limited to the retained events and their end.
    pub(super) fn cursor_at(&self, position: ConsumerPosition) -> u64 {
        let first = match position {
            ConsumerPosition::First => 0,
            ConsumerPosition::Last => u64::MAX,
            ConsumerPosition::Sequence(sequence) => sequence,
            ConsumerPosition::Time(unix_ms) => self.log.first_stored_since(unix_ms),
        };
        first.saturating_sub(1).clamp(self.log.first() - 1, self.log.last())
    }

    /// Moves a consumer to after this cursor, replacing a start in the future. Returns the ordinal of its first match.
    pub(super) fn start_anew(&mut self, cell: &ConsumerCell, cursor: u64) -> u64 {
        let Some(Some(group)) = self.groups.get_mut(cell.group()) else { return 0 };
        group.not_started.retain(|(member, _)| !std::ptr::eq(&**member, cell));
        group.ordinal_after(cursor)
    }

    /// Adds a consumer to the group of its filter. `make` receives the group and the ordinal of the first match after
    /// the consumer's cursor.
    ///
    /// # Errors
    ///
    /// `InvalidSubject` for an invalid filter.
    pub(super) fn add_consumer(
        &mut self,
        filter: &str,
        cursor: u64,
        future: Option<Future>,
        make: impl FnOnce(GroupId, u64) -> ConsumerCell,
    ) -> Result<Arc<ConsumerCell>> {
        let id = self.group_of(filter)?;
        let ordinal = self.group(id).map_or(0, |group| group.ordinal_after(cursor));
        let cell = Arc::new(make(id, ordinal));
        if let Some(Some(group)) = self.groups.get_mut(id) {
            group.members.push(Arc::clone(&cell));
            group.not_started.extend(future.map(|start| (Arc::clone(&cell), start)));
            self.consumers += 1;
        }
        if cell.is_durable() {
            self.durables.insert(cell.name().to_owned(), Arc::clone(&cell));
        }
        Ok(cell)
    }

    /// Records that a consumer has its first subscription, or lost its last one.
    pub(super) fn set_attended(&mut self, cell: &Arc<ConsumerCell>, is_attended: bool) {
        let Some(Some(group)) = self.groups.get_mut(cell.group()) else { return };
        if is_attended {
            if !cell.gone.load(Ordering::Relaxed) {
                group.attended.push(Arc::clone(cell));
            }
        } else if let Some(position) = group.attended.iter().position(|member| Arc::ptr_eq(member, cell)) {
            group.attended.swap_remove(position);
        }
    }

    /// Deletes a consumer and ends its subscriptions.
    pub(super) fn remove_consumer(&mut self, cell: &Arc<ConsumerCell>) {
        if cell.gone.swap(true, Ordering::Relaxed) {
            return;
        }
        if cell.is_durable() {
            self.durables.remove(cell.name());
        }
        let Some(slot) = self.groups.get_mut(cell.group()) else {
            return;
        };
        let Some(group) = slot else { return };
        if let Some(position) = group.members.iter().position(|member| Arc::ptr_eq(member, cell)) {
            group.members.swap_remove(position);
            group.not_started.retain(|(member, _)| !Arc::ptr_eq(member, cell));
            group.attended.retain(|member| !Arc::ptr_eq(member, cell));
            self.consumers -= 1;
        }
        if group.members.is_empty() {
            self.filters.remove(&group.filter);
            self.generation += 1;
            *slot = None;
            self.free_groups.push(cell.group());
        }
        cell.members.wake_one();
    }

    fn group_of(&mut self, filter: &str) -> Result<GroupId> {
        if let Some(id) = self.filters.get(filter) {
            return Ok(*id);
        }
        let id = self.free_groups.last().copied().unwrap_or(self.groups.len());
        self.filters.insert(filter, id)?;
        self.free_groups.pop();
        self.generation += 1;
        let group = Some(Group {
            filter: filter.to_owned(),
            first_ordinal: 0,
            matches: self.log.matches(filter),
            members: Vec::new(),
            attended: Vec::new(),
            not_started: Vec::new(),
        });
        match self.groups.get_mut(id) {
            Some(slot) => *slot = group,
            None => self.groups.push(group),
        }
        Ok(id)
    }

    fn set_route(&mut self, id: SubjectId, route: Route) {
        let index = id as usize;
        if index >= self.routes.len() {
            self.routes.resize_with(index + 1, Route::default);
        }
        if let Some(slot) = self.routes.get_mut(index) {
            *slot = route;
        }
    }

    /// Calls `visit` with each group that reads this subject.
    fn with_route(&mut self, id: SubjectId, subject: &str, mut visit: impl FnMut(&mut Group)) {
        if self.routes.get(id as usize).is_none_or(|route| route.generation != self.generation) {
            let mut groups = Vec::new();
            self.filters.for_each_match(subject, |group| groups.push(*group));
            self.set_route(id, Route { generation: self.generation, groups: groups.into() });
        }
        let Some(route) = self.routes.get(id as usize) else {
            return;
        };
        for group in &route.groups {
            if let Some(Some(group)) = self.groups.get_mut(*group) {
                visit(group);
            }
        }
    }
}
