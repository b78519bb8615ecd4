//! History: reads windows of the stream, the newest first, until enough events are found.
//!
//! JetStream reads forwards only. A window begins some way before the end. The provider reads every match in it, and
//! the next window ends where it began. The server reports the number of matches from a sequence on, so the provider
//! narrows a window with too many matches before reading it. Each further window is wider.

use std::collections::VecDeque;
use std::sync::Arc;

use super::client::Shared;
use super::consumer::under_prefix;
use super::records::Records;
use crate::error::Result;
use crate::provider::{HistoryPage, HistoryQuery, StoredEvent, UnreadableRecord};

/// Number of records per request.
const CHUNK: usize = 256;
/// Number of sequences in the first window.
const FIRST_WINDOW: u64 = 64;
/// Maximum number of unreadable records in a page. The next page continues behind them.
const MAX_UNREADABLE: usize = 1_000;

type Entry = std::result::Result<StoredEvent, UnreadableRecord>;

fn sequence_of(entry: &Entry) -> u64 {
    match entry {
        Ok(event) => event.sequence,
        Err(record) => record.sequence,
    }
}

/// The newest records of a window, oldest first: at most `limit` events and `MAX_UNREADABLE` unreadable records.
struct Window {
    entries: VecDeque<Entry>,
    events: usize,
    limit: usize,
}

impl Window {
    fn add(&mut self, entry: Entry) {
        self.events += usize::from(entry.is_ok());
        self.entries.push_back(entry);
        while self.events > self.limit || self.entries.len() - self.events > MAX_UNREADABLE {
            let dropped = self.entries.pop_front();
            self.events -= usize::from(dropped.is_some_and(|entry| entry.is_ok()));
        }
    }
}

/// Contents of a page so far.
struct Found {
    events: Vec<StoredEvent>,
    unreadable: Vec<UnreadableRecord>,
    limit: usize,
}

impl Found {
    fn add(&mut self, entry: Entry) {
        match entry {
            Ok(event) => self.events.push(event),
            Err(record) => self.unreadable.push(record),
        }
    }

    fn is_full(&self) -> bool {
        self.events.len() >= self.limit || self.unreadable.len() >= MAX_UNREADABLE
    }

    fn into_page(self, searched_from: u64, first: u64) -> HistoryPage {
        HistoryPage::new(self.events, self.unreadable, Some(searched_from), first)
    }
}

impl Shared {
    /// Returns the newest matching events and the unreadable records among them, newest first.
    pub(super) async fn page(&self, query: &HistoryQuery) -> Result<HistoryPage> {
        let everything = format!("{}.>", self.prefix());
        let filter = query.filter.as_deref().unwrap_or(&everything);
        self.check_open()?;
        let filter = under_prefix(filter, self.prefix());
        let (first, mut end) = self.range(query).await?;
        if first >= end {
            return Ok(HistoryPage::default());
        }
        let mut found = Found { events: Vec::new(), unreadable: Vec::new(), limit: query.limit };
        if query.limit == 0 {
            return Ok(found.into_page(end, first));
        }
        let mut width = u64::try_from(query.limit).unwrap_or(u64::MAX).clamp(FIRST_WINDOW, CHUNK as u64);
        let mut behind_end = None;
        while first < end {
            let missing = query.limit - found.events.len();
            let start = end.saturating_sub(width).max(first);
            let records = self.read(&filter, start, CHUNK).await?;
            let total = records.total;
            let in_window = total.map(|total| total.saturating_sub(behind_end.unwrap_or_default()));
            let too_many = u64::try_from(missing.saturating_mul(2)).unwrap_or(u64::MAX).max(CHUNK as u64);
            if behind_end.is_some()
                && in_window.is_some_and(|in_window| in_window > too_many)
                && end - start > FIRST_WINDOW
            {
                width = ((end - start) / 4).max(FIRST_WINDOW);
                continue;
            }
            for entry in self.read_window(&filter, records, end, missing).await?.entries.into_iter().rev() {
                let sequence = sequence_of(&entry);
                found.add(entry);
                if found.is_full() {
                    return Ok(found.into_page(sequence, first));
                }
            }
            behind_end = total;
            end = start;
            width = width.saturating_mul(4);
        }
        Ok(found.into_page(first, first))
    }

    /// Returns the first sequence that a query covers, and the one behind the last.
    async fn range(&self, query: &HistoryQuery) -> Result<(u64, u64)> {
        let state = self.stream().await?.state;
        let mut first = state.first_sequence.max(1).max(query.since_sequence.unwrap_or(0));
        let mut end = state.last_sequence.saturating_add(1).min(query.before_sequence.unwrap_or(u64::MAX));
        if let Some(time) = query.since_time {
            first = self.first_stored_since(time, first, end).await?;
        }
        if let Some(time) = query.before_time {
            end = self.first_stored_since(time, first, end).await?;
        }
        Ok((first, end))
    }

    /// Returns the newest records of a window, given its first ones: at most `limit` events, and as many unreadable
    /// records as fill a page.
    async fn read_window(
        &self,
        filter: &str,
        mut records: Records,
        end: u64,
        limit: usize,
    ) -> Result<Window> {
        let mut window = Window { entries: VecDeque::new(), events: 0, limit };
        loop {
            let mut next = None;
            for record in records.found {
                if record.sequence >= end {
                    return Ok(window);
                }
                next = Some(record.sequence + 1);
                window.add(match record.content {
                    Ok(event) => Ok(StoredEvent::new(Arc::new(event), record.sequence, record.stored_at)),
                    Err(reason) => {
                        let mut unreadable = UnreadableRecord::new(record.sequence, reason);
                        unreadable.subject = Some(record.subject);
                        unreadable.stored_at = Some(record.stored_at);
                        Err(unreadable)
                    }
                });
            }
            match next {
                Some(next) if next < end && records.has_more => {
                    records = self.read(filter, next, CHUNK).await?;
                }
                _ => return Ok(window),
            }
        }
    }

    /// Returns the first sequence between `first` and `end` stored at this time or later, or `end` if there is none.
    pub(super) async fn first_stored_since(&self, unix_ms: u64, first: u64, end: u64) -> Result<u64> {
        let everything = format!("{}.>", self.prefix());
        let (mut low, mut high) = (first, end);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.read(&everything, middle, 1).await?.found.first() {
                Some(record) if record.sequence < high && record.stored_at < unix_ms => {
                    low = record.sequence + 1;
                }
                _ => high = middle,
            }
        }
        Ok(low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Event;

    fn entry(sequence: u64, is_event: bool) -> Entry {
        if is_event {
            let event = Event::new("events.a", "a", "", "t", serde_json::json!(sequence));
            return Ok(StoredEvent::new(Arc::new(event), sequence, 0));
        }
        Err(UnreadableRecord::new(sequence, "junk"))
    }

    #[test]
    fn a_window_keeps_what_a_page_can_hold() {
        let mut window = Window { entries: VecDeque::new(), events: 0, limit: 3 };
        for sequence in 1..=10 {
            window.add(entry(sequence, sequence % 2 == 0));
        }
        // The newest three events 6, 8 and 10, and the unreadable records since event 4.
        assert_eq!(window.entries.iter().map(sequence_of).collect::<Vec<_>>(), [5, 6, 7, 8, 9, 10]);
        let mut window = Window { entries: VecDeque::new(), events: 0, limit: 3 };
        for sequence in 1..=MAX_UNREADABLE as u64 + 5 {
            window.add(entry(sequence, false));
        }
        assert_eq!(window.entries.len(), MAX_UNREADABLE);
    }
}
