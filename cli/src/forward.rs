//! Reads a stream oldest first, without a consumer: it settles no event and changes nothing.
//!
//! Queries answer newest first, so the stream is read in windows of sequences. After an empty window, the size doubles.
//! A window that holds more than one answer is read again at half its size.

use std::sync::Arc;

use a3s_event::{EventProvider, HistoryQuery};

use crate::failure::Outcome;
pub(crate) use crate::stored::PAGE;
use crate::stored::{Stored, newest, newest_first};

/// Reads the records from one sequence to another.
pub(crate) struct Forward {
    provider: Arc<dyn EventProvider>,
    /// Filter and times that select records.
    query: HistoryQuery,
    first: u64,
    next: u64,
    end: u64,
    window: u64,
}

impl Forward {
    /// Selects the records from sequence `first` to the newest one now.
    pub(crate) async fn new(
        provider: &Arc<dyn EventProvider>,
        filter: Option<&str>,
        first: u64,
    ) -> Outcome<Self> {
        let mut query = HistoryQuery::new(PAGE).since_sequence(first);
        query.filter = filter.map(str::to_owned);
        Self::of(provider, query).await
    }

    /// Selects the records of a query, up to the newest one now. It ignores the limit of the query.
    pub(crate) async fn of(provider: &Arc<dyn EventProvider>, mut query: HistoryQuery) -> Outcome<Self> {
        query.limit = 1;
        let (records, _) = newest(&**provider, query.clone()).await?;
        let end = records.first().map(Stored::sequence).unwrap_or_default();
        query.limit = PAGE;
        let first = query.since_sequence.unwrap_or(1).max(1);
        Ok(Self { provider: Arc::clone(provider), query, first, next: first, end, window: PAGE as u64 })
    }

    /// Returns the number of sequences from the first to the last record.
    pub(crate) fn total(&self) -> u64 {
        (self.end + 1).saturating_sub(self.first)
    }

    /// Returns the number of sequences that were read.
    pub(crate) fn done(&self) -> u64 {
        (self.next - self.first).min(self.total())
    }

    /// Reads the next records, oldest first. Empty at the end.
    pub(crate) async fn page(&mut self) -> Outcome<Vec<Stored>> {
        while self.next <= self.end {
            let before = self.next.saturating_add(self.window).min(self.end.saturating_add(1));
            let Some(mut records) = self.window(before).await? else {
                self.window = (self.window / 2).max(PAGE as u64);
                continue;
            };
            self.next = before;
            if records.is_empty() {
                self.window = self.window.saturating_mul(2);
                continue;
            }
            records.reverse();
            return Ok(records);
        }
        Ok(Vec::new())
    }

    /// Reads all records before a sequence, newest first. `None` if they exceed one answer and the window can shrink.
    async fn window(&self, before: u64) -> Outcome<Option<Vec<Stored>>> {
        let is_smallest = before - self.next <= PAGE as u64;
        let mut query = self.query.clone().since_sequence(self.next).before_sequence(before);
        let mut records = Vec::new();
        loop {
            let page = self.provider.query_page(&query).await?;
            let next = page.next;
            records.append(&mut newest_first(page));
            match next {
                None => return Ok(Some(records)),
                Some(_) if !is_smallest => return Ok(None),
                Some(before) => query = query.before_sequence(before),
            }
        }
    }
}
