//! Reading a stream forwards, without a consumer: nothing is settled and nothing is left behind.
//!
//! Queries answer newest first, so the stream is read in windows of sequences. A window that is empty is followed by one
//! twice as large, and one that holds more than an answer is read again at half its size.

use std::sync::Arc;

use a3s_event::{EventProvider, HistoryQuery, StoredEvent};

use crate::failure::Outcome;

/// Most events in an answer.
pub(crate) const PAGE: usize = 1_000;

/// The events from one sequence to another.
pub(crate) struct Forward {
    provider: Arc<dyn EventProvider>,
    filter: Option<String>,
    next: u64,
    end: u64,
    window: u64,
}

impl Forward {
    /// The events from `first` to what is the newest one now.
    pub(crate) async fn new(
        provider: &Arc<dyn EventProvider>,
        filter: Option<&str>,
        first: u64,
    ) -> Outcome<Self> {
        let provider = Arc::clone(provider);
        let mut newest = HistoryQuery::new(1);
        newest.filter = filter.map(str::to_owned);
        let end = provider.query(&newest).await?.first().map_or(0, |stored| stored.sequence);
        Ok(Self { provider, filter: filter.map(str::to_owned), next: first, end, window: PAGE as u64 })
    }

    /// The sequence of the last event.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// The next events, oldest first; none at the end.
    pub(crate) async fn page(&mut self) -> Outcome<Vec<StoredEvent>> {
        while self.next <= self.end {
            let before = self.next.saturating_add(self.window).min(self.end.saturating_add(1));
            let mut query = HistoryQuery::new(PAGE).since_sequence(self.next).before_sequence(before);
            query.filter.clone_from(&self.filter);
            let mut page = self.provider.query(&query).await?;
            let may_be_cut = page.len() == PAGE && before - self.next > PAGE as u64;
            if may_be_cut {
                self.window = (self.window / 2).max(PAGE as u64);
                continue;
            }
            self.next = before;
            if page.is_empty() {
                self.window = self.window.saturating_mul(2);
                continue;
            }
            page.reverse();
            return Ok(page);
        }
        Ok(Vec::new())
    }
}
