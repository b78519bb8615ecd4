//! History: reads ranges of the log, the newest records first.
//!
//! A filter without wildcards is read from the list of its subject. Any other filter first walks back through the log,
//! which suits a frequent one. If that finds too few, it merges the lists of the matching subjects, which suits a rare
//! one. Subjects are matched here, so that no script depends on the number of subjects.

use std::cmp::Reverse;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::keys::Keys;
use super::script::Run;
use super::script::history::{self, Most, Range, Record, Slice};
use super::{pattern, subjects};
use crate::error::Result;
use crate::provider::support::without_values;
use crate::provider::{HistoryPage, HistoryQuery, StoredEvent, UnreadableRecord};
use crate::subject::subject_matches;
use crate::types::Event;

const OPERATION: &str = "history";
/// Maximum number of unreadable records in one page. The next page continues after them.
const MAX_UNREADABLE: usize = 1_000;
/// Subjects are not looked for while at least one of so many records matches.
const FREQUENT: u64 = 8;

/// Limits of one call, so that no script takes long.
#[derive(Debug, Clone, Copy)]
struct Work {
    /// Maximum number of records in a reply.
    records: usize,
    /// Number of bytes after which a reply has no other record.
    bytes: usize,
    /// Maximum number of records that a call looks at.
    looked: usize,
    /// Maximum number of lists that a call reads.
    lists: usize,
}

const WORK: Work = Work { records: 256, bytes: 1024 * 1024, looked: 1_000, lists: 250 };

/// Returns the newest matches of a query, newest first.
pub(super) async fn page(
    server: &impl Run,
    keys: &Keys,
    prefix: &str,
    query: &HistoryQuery,
) -> Result<HistoryPage> {
    page_by(server, keys, prefix, query, WORK).await
}

async fn page_by(
    server: &impl Run,
    keys: &Keys,
    prefix: &str,
    query: &HistoryQuery,
    work: Work,
) -> Result<HistoryPage> {
    let filter = query.filter.as_deref().filter(|filter| !subjects::is_everything(filter, prefix));
    let mut search = Search {
        server,
        keys,
        work,
        filter,
        pattern: filter.map(|filter| pattern::lua_pattern(filter, prefix)).unwrap_or_default(),
        lists: Lists::Unknown,
        found: Found { events: Vec::new(), unreadable: Vec::new(), limit: query.limit },
        since: 0,
        before: u64::MAX,
    };
    if let Some(subject) = filter.filter(|filter| !subjects::has_wildcard(filter) && query.limit > 0) {
        search.lists = Lists::Known(vec![subject.to_owned()]);
    }
    let range = Range {
        since: query.since_sequence,
        before: query.before_sequence,
        since_time: query.since_time,
        before_time: query.before_time,
        ..search.rest(search.lists.known())
    };
    let Some(mut slice) = search.read(range).await? else { return Ok(HistoryPage::default()) };
    search.since = slice.since;
    loop {
        let Slice { is_indexed, looked, ref records, .. } = slice;
        let matches = records.len() as u64;
        if let ControlFlow::Break(searched_from) = search.add(slice) {
            let Found { events, unreadable, .. } = search.found;
            return Ok(HistoryPage::new(events, unreadable, Some(searched_from), search.since));
        }
        slice = match is_indexed && search.prefers_lists(looked, matches).await? {
            true => search.merge().await?,
            false => search.walk().await?,
        };
    }
}

struct Search<'a, R> {
    server: &'a R,
    keys: &'a Keys,
    work: Work,
    /// `None` matches everything.
    filter: Option<&'a str>,
    pattern: String,
    lists: Lists,
    found: Found,
    /// Lowest sequence of the range.
    since: u64,
    /// Sequence from which on the range is searched.
    before: u64,
}

/// The lists of the matching subjects.
enum Lists {
    Unknown,
    Known(Vec<String>),
    /// There are so many subjects that walking back through the log costs less.
    TooMany,
}

impl Lists {
    fn known(&self) -> &[String] {
        match self {
            Self::Known(lists) => lists,
            Self::Unknown | Self::TooMany => &[],
        }
    }
}

impl<R: Run> Search<'_, R> {
    /// Returns what is left of the range.
    fn rest<'s>(&'s self, subjects: &'s [String]) -> Range<'s> {
        let (since, before) = (Some(self.since), Some(self.before));
        Range { since, before, pattern: &self.pattern, subjects, ..Range::default() }
    }

    /// Adds what was found. Breaks with the lowest sequence that was searched if the page is complete.
    fn add(&mut self, slice: Slice) -> ControlFlow<u64> {
        self.before = slice.searched_from;
        for record in slice.records {
            let sequence = record.sequence;
            self.found.add(record);
            if self.found.is_full() {
                return ControlFlow::Break(sequence);
            }
        }
        if self.found.is_full() {
            return ControlFlow::Break(self.before);
        }
        if self.before <= self.since { ControlFlow::Break(self.since) } else { ControlFlow::Continue(()) }
    }

    async fn read(&self, range: Range<'_>) -> Result<Option<Slice>> {
        let missing = self.missing();
        let looked = missing.saturating_mul(8).saturating_add(256).min(self.work.looked);
        let most = Most { records: missing.min(self.work.records), bytes: self.work.bytes, looked };
        history::read(self.server.run(OPERATION, &history::history(self.keys, range, most)).await?)
    }

    fn missing(&self) -> usize {
        self.found.limit.saturating_sub(self.found.events.len())
    }

    /// Walks back through the log.
    async fn walk(&self) -> Result<Slice> {
        Ok(self.read(self.rest(&[])).await?.unwrap_or_else(|| self.nothing()))
    }

    /// Returns the slice of a range from which retention dropped everything.
    fn nothing(&self) -> Slice {
        Slice { searched_from: self.since, is_indexed: true, ..Slice::default() }
    }

    /// Merges the lists. Each call raises the lower end of the range for the calls after it: it is the lowest sequence
    /// that the call searched, or that of the last record that has room.
    async fn merge(&self) -> Result<Slice> {
        let most = self.missing().min(self.work.records);
        let mut merged = self.nothing();
        for lists in self.lists.known().chunks(self.work.lists) {
            let range = Range { since: Some(merged.searched_from), ..self.rest(lists) };
            let Some(slice) = self.read(range).await? else { continue };
            merged.is_indexed &= slice.is_indexed;
            merged.searched_from = merged.searched_from.max(slice.searched_from);
            merged.records.extend(slice.records);
            merged.records.sort_unstable_by_key(|record| Reverse(record.sequence));
            merged.records.dedup_by_key(|record| record.sequence);
            merged.records.truncate(most);
            if let Some(last) = merged.records.get(most.saturating_sub(1)) {
                merged.searched_from = merged.searched_from.max(last.sequence);
            }
        }
        let searched_from = merged.searched_from;
        if searched_from >= self.before {
            return self.walk().await;
        }
        merged.records.retain(|record| record.sequence >= searched_from);
        merged.looked = self.before - searched_from;
        Ok(merged)
    }

    /// Decides how to find the next records, given the number of matches in a part of the log. To look into a list costs
    /// about as much as to walk over a record.
    async fn prefers_lists(&mut self, looked: u64, matches: u64) -> Result<bool> {
        let Some(filter) = self.filter else { return Ok(false) };
        if !subjects::has_wildcard(filter) {
            return Ok(true);
        }
        let left = self.before.saturating_sub(self.since);
        let wanted = self.missing().min(self.work.records) as u64;
        // Number of records to walk over.
        let walk = wanted.saturating_mul(looked).checked_div(matches).map_or(left, |walk| walk.min(left));
        if matches!(self.lists, Lists::Unknown) && walk > wanted.saturating_mul(FREQUENT) {
            self.lists = self.find_lists(filter, left).await?;
        }
        Ok(matches!(&self.lists, Lists::Known(lists) if lists.len() as u64 <= walk))
    }

    /// Finds the lists of the matching subjects, unless there are more than `most` subjects.
    async fn find_lists(&self, filter: &str, most: u64) -> Result<Lists> {
        let (mut read, mut lists) = (0, Vec::new());
        subjects::visit(self.server, self.keys, OPERATION, subjects::literal_of(filter), |subject| {
            read += 1;
            if subject_matches(&subject, filter) {
                lists.push(subject);
            }
            if read <= most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })
        .await?;
        Ok(if read <= most { Lists::Known(lists) } else { Lists::TooMany })
    }
}

/// Content of a page so far.
struct Found {
    events: Vec<StoredEvent>,
    unreadable: Vec<UnreadableRecord>,
    /// Maximum number of events.
    limit: usize,
}

impl Found {
    fn add(&mut self, record: Record) {
        match decode(record) {
            Ok(event) => self.events.push(event),
            Err(unreadable) => self.unreadable.push(unreadable),
        }
    }

    fn is_full(&self) -> bool {
        self.events.len() >= self.limit || self.unreadable.len() >= MAX_UNREADABLE
    }
}

fn decode(record: Record) -> std::result::Result<StoredEvent, UnreadableRecord> {
    let Record { sequence, stored_at, subject, json } = record;
    let mut unreadable = UnreadableRecord::new(sequence, "its fields are not those of an event");
    if subject.is_some() {
        match serde_json::from_slice::<Event>(&json) {
            Ok(event) => return Ok(StoredEvent::new(Arc::new(event), sequence, stored_at)),
            Err(error) => unreadable.reason = without_values(&error),
        }
        unreadable.stored_at = Some(stored_at);
    }
    unreadable.subject = subject;
    Err(unreadable)
}

#[cfg(test)]
mod tests;
