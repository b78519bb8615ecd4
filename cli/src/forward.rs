//! Reading a stream forwards, without a consumer: nothing is settled and nothing is left behind.
//!
//! Queries answer newest first, so the stream is read in windows of sequences. A window that is empty is followed by one
//! twice as large, and one that holds more than an answer is read again at half its size.

use std::sync::Arc;

use a3s_event::{EventProvider, HistoryQuery};

use crate::failure::Outcome;
pub(crate) use crate::stored::PAGE;
use crate::stored::{Stored, newest_first, newest_sequence};

/// The records from one sequence to another.
pub(crate) struct Forward {
    provider: Arc<dyn EventProvider>,
    filter: Option<String>,
    next: u64,
    end: u64,
    window: u64,
}

impl Forward {
    /// The records from `first` to what is the newest one now.
    pub(crate) async fn new(
        provider: &Arc<dyn EventProvider>,
        filter: Option<&str>,
        first: u64,
    ) -> Outcome<Self> {
        let end = newest_sequence(&**provider, filter).await?.unwrap_or_default();
        let (provider, filter) = (Arc::clone(provider), filter.map(str::to_owned));
        Ok(Self { provider, filter, next: first, end, window: PAGE as u64 })
    }

    /// The sequence of the last record.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// The next records, oldest first; none at the end.
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

    /// All records up to a sequence, newest first; `None` when they are more than an answer and the window can be smaller.
    async fn window(&self, before: u64) -> Outcome<Option<Vec<Stored>>> {
        let is_smallest = before - self.next <= PAGE as u64;
        let mut query = HistoryQuery::new(PAGE).since_sequence(self.next).before_sequence(before);
        query.filter.clone_from(&self.filter);
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
