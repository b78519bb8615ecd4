//! History: windows of the stream, read backwards until enough was found.
//!
//! JetStream reads forwards only. A window begins some way before the end, everything in it that matches is read, and the
//! next window ends where it began. The server tells how much matches from a sequence on, so that a window with too much
//! in it is made smaller before it is read, and one with little is followed by a larger one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{self, AckPolicy, DeliverPolicy};
use async_nats::{Message, StatusCode, Subject, Subscriber, datetime};
use futures_util::StreamExt;
use serde_json::json;

use super::client::Shared;
use super::consumer::under_prefix;
use super::error::{PROVIDER, connection_ended, refused, timeout};
use super::subscription::Position;
use super::wire::decode;
use crate::error::{BackendError, ErrorKind, Result};
use crate::provider::{HistoryPage, HistoryQuery, StoredEvent};
use crate::subject::validate_filter_under;

/// Records per request.
const CHUNK: usize = 256;
/// Sequences in the first window.
const FIRST_WINDOW: u64 = 64;
/// A helper consumer that could not be deleted is gone after this time.
const HELPER_IDLE: Duration = Duration::from_secs(5);

/// Matching records from one sequence on, in order.
struct Records {
    found: Vec<Record>,
    /// How many match in all, those in `found` included.
    total: u64,
}

struct Record {
    sequence: u64,
    /// In Unix milliseconds.
    stored_at: u64,
    message: Message,
}

impl Shared {
    /// Exactly the newest `limit` events that match, newest first.
    pub(super) async fn page(&self, query: &HistoryQuery) -> Result<HistoryPage> {
        Ok(HistoryPage::new(self.query(query).await?, Vec::new(), None, 0))
    }

    /// Exactly the newest `limit` events that match, newest first.
    pub(super) async fn query(&self, query: &HistoryQuery) -> Result<Vec<StoredEvent>> {
        let everything = format!("{}.>", self.prefix());
        let filter = query.filter.as_deref().unwrap_or(&everything);
        validate_filter_under(filter, self.prefix())?;
        self.check_open()?;
        let filter = under_prefix(filter, self.prefix());
        let mut newest_first = Vec::new();
        if query.limit == 0 {
            return Ok(newest_first);
        }
        let state = self.stream().await?.state;
        let mut first = state.first_sequence.max(1).max(query.since_sequence.unwrap_or(0));
        let mut end = (state.last_sequence + 1).min(query.before_sequence.unwrap_or(u64::MAX));
        if let Some(time) = query.since_time {
            first = self.first_stored_since(time, first, end).await?;
        }
        if let Some(time) = query.before_time {
            end = self.first_stored_since(time, first, end).await?;
        }
        let mut width = u64::try_from(query.limit).unwrap_or(u64::MAX).clamp(FIRST_WINDOW, CHUNK as u64);
        let mut behind_end = None;
        while newest_first.len() < query.limit && first < end {
            let missing = query.limit - newest_first.len();
            let start = end.saturating_sub(width).max(first);
            let records = self.read(&filter, start, CHUNK).await?;
            let total = records.total;
            let in_window = behind_end.map_or(total, |behind| total.saturating_sub(behind));
            let too_many = u64::try_from(missing.saturating_mul(2)).unwrap_or(u64::MAX).max(CHUNK as u64);
            if behind_end.is_some() && in_window > too_many && end - start > FIRST_WINDOW {
                width = ((end - start) / 4).max(FIRST_WINDOW);
                continue;
            }
            let mut window = self.read_window(&filter, records, end, missing).await?;
            while let Some(event) = window.pop_back() {
                newest_first.push(event);
            }
            behind_end = Some(total);
            end = start;
            width = width.saturating_mul(4);
        }
        Ok(newest_first)
    }

    /// The newest `limit` events of a window, oldest first, given its first records.
    async fn read_window(
        &self,
        filter: &str,
        mut records: Records,
        end: u64,
        limit: usize,
    ) -> Result<VecDeque<StoredEvent>> {
        let mut window = VecDeque::new();
        loop {
            let read = records.found.len() as u64;
            let mut next = None;
            for record in records.found {
                if record.sequence >= end {
                    return Ok(window);
                }
                next = Some(record.sequence + 1);
                // What is not an event is nothing that history could return.
                if let Ok(event) = decode(&record.message) {
                    window.push_back(StoredEvent::new(Arc::new(event), record.sequence, record.stored_at));
                }
                if window.len() > limit {
                    window.pop_front();
                }
            }
            match next {
                Some(next) if next < end && read < records.total => {
                    records = self.read(filter, next, CHUNK).await?;
                }
                _ => return Ok(window),
            }
        }
    }

    /// First sequence between `first` and `end` that was stored at this time or later; `end` when there is none.
    async fn first_stored_since(&self, unix_ms: u64, first: u64, end: u64) -> Result<u64> {
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

    /// Up to `max` matching records from `start` on, in one round trip where the server can.
    async fn read(&self, filter: &str, start: u64, max: usize) -> Result<Records> {
        let deadline = self.settings.config.request_timeout();
        let reading = async {
            if self.batched_direct_get
                && let Some(records) = self.read_directly(filter, start, max).await?
            {
                return Ok(records);
            }
            self.read_through_consumer(filter, start, max).await
        };
        tokio::time::timeout(deadline, reading).await.unwrap_or_else(|_| Err(timeout("history", deadline)))
    }

    /// `None` when the stream does not allow it any more.
    async fn read_directly(&self, filter: &str, start: u64, max: usize) -> Result<Option<Records>> {
        let request = json!({ "seq": start, "batch": max, "next_by_subj": filter });
        let subject = format!("$JS.API.DIRECT.GET.{}", self.stream_name());
        let mut answers = self.request_many(subject, &request).await?;
        let mut records = Records { found: Vec::new(), total: 0 };
        loop {
            let message = answers.next().await.ok_or_else(connection_ended)?;
            match message.status {
                None => {
                    let record = directly(message).ok_or_else(malformed)?;
                    if records.found.is_empty() {
                        records.total = record.1 + 1;
                    }
                    records.found.push(record.0);
                }
                // 204 ends the batch, 404 says that nothing matches.
                Some(status) if status.as_u16() == 204 || status == StatusCode::NOT_FOUND => {
                    return Ok(Some(records));
                }
                Some(StatusCode::NO_RESPONDERS) => return Ok(None),
                Some(status) => {
                    let reason = format!("{status}: {}", message.description.unwrap_or_default());
                    return Err(BackendError::new(PROVIDER, "history", ErrorKind::Backend, reason)
                        .retryable()
                        .into());
                }
            }
        }
    }

    /// For servers and streams without direct reads: a consumer that keeps nothing and is deleted again.
    async fn read_through_consumer(&self, filter: &str, start: u64, max: usize) -> Result<Records> {
        let name = format!("a3s-history-{}", uuid::Uuid::now_v7().simple());
        let config = consumer::Config {
            name: Some(name.clone()),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: start },
            ack_policy: AckPolicy::None,
            filter_subject: filter.to_owned(),
            inactive_threshold: HELPER_IDLE,
            memory_storage: true,
            num_replicas: 1,
            ..consumer::Config::default()
        };
        let stream = self.stream_name();
        let subject = format!("CONSUMER.CREATE.{stream}.{name}.{filter}");
        let request = json!({ "stream_name": stream, "config": config, "action": "create" });
        let made: consumer::Info = self
            .ask("history", subject, request.to_string().into())
            .await?
            .map_err(|error| refused("history", error))?;
        let read = self.read_all_of(&name, max.min(usize::try_from(made.num_pending).unwrap_or(max))).await;
        self.delete_consumer(&name).await?;
        Ok(Records { found: read?, total: made.num_pending })
    }

    async fn read_all_of(&self, consumer: &str, count: usize) -> Result<Vec<Record>> {
        let mut found = Vec::with_capacity(count);
        if count == 0 {
            return Ok(found);
        }
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{consumer}", self.stream_name());
        let mut answers = self.request_many(subject, &json!({ "batch": count, "no_wait": true })).await?;
        while found.len() < count {
            let message = answers.next().await.ok_or_else(connection_ended)?;
            if message.status.is_some() {
                // Retention was faster: there is less than there was.
                break;
            }
            let (position, _) = Position::of(&message).ok_or_else(malformed)?;
            found.push(Record { sequence: position.sequence, stored_at: position.stored_at, message });
        }
        Ok(found)
    }

    /// A request that is answered by several messages.
    async fn request_many(&self, subject: String, request: &serde_json::Value) -> Result<Subscriber> {
        let client = self.link.working().await?;
        let inbox = Subject::from(client.new_inbox());
        let answers = client.subscribe(inbox.clone()).await.map_err(|_| connection_ended())?;
        let body = request.to_string().into();
        client.publish_with_reply(subject, inbox, body).await.map_err(|_| connection_ended())?;
        Ok(answers)
    }
}

/// A record with how many more match behind it.
fn directly(message: Message) -> Option<(Record, u64)> {
    let headers = message.headers.as_ref()?;
    let header = |name: &str| headers.get_last(name).map(async_nats::HeaderValue::as_str);
    let sequence = header("Nats-Sequence")?.parse().ok()?;
    let pending = header("Nats-Num-Pending")?.parse().ok()?;
    let stored = datetime::parse_rfc3339(header("Nats-Time-Stamp")?).ok()?;
    let stored_at = u64::try_from(stored.unix_timestamp_nanos() / 1_000_000).ok()?;
    Some((Record { sequence, stored_at, message }, pending))
}

fn malformed() -> crate::EventError {
    BackendError::new(PROVIDER, "history", ErrorKind::Backend, "a record without sequence or time").into()
}
