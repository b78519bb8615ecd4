//! Reads stored records from a sequence on: many per request if possible. Records that end the connection that receives
//! them are read one by one, through an API that encodes headers.

use std::time::Duration;

use async_nats::jetstream::consumer::{self, AckPolicy, DeliverPolicy};
use async_nats::{HeaderMap, Message, StatusCode, Subject, Subscriber, datetime};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::json;

use super::client::Shared;
use super::error::{PROVIDER, connection_ended, refused, timeout};
use super::position::Position;
use super::unreadable::parse_headers;
use super::wire::decode;
use crate::error::{BackendError, ErrorKind, EventError, Result};
use crate::types::Event;

/// Idle time after which the server deletes a helper consumer.
const HELPER_IDLE: Duration = Duration::from_secs(5);
/// Maximum number of records that one call reads one by one, so that it ends in time on a slow network too.
const ONE_BY_ONE: usize = 32;

/// Matching records from a sequence on, in order.
pub(super) struct Records {
    pub(super) found: Vec<Record>,
    /// Total number of matches including `found`, if the server reports it.
    pub(super) total: Option<u64>,
    /// If true, more matches may follow the last one.
    pub(super) has_more: bool,
}

/// A stored record.
pub(super) struct Record {
    pub(super) sequence: u64,
    /// Storage time in Unix milliseconds.
    pub(super) stored_at: u64,
    /// Subject under which it is stored.
    pub(super) subject: String,
    /// The event, or the reason why it is not one.
    pub(super) content: std::result::Result<Event, String>,
}

/// A record as the server returns it in JSON.
#[derive(Deserialize)]
pub(super) struct Encoded {
    pub(super) subject: String,
    pub(super) seq: u64,
    #[serde(default)]
    pub(super) hdrs: String,
    #[serde(default)]
    pub(super) data: String,
    time: String,
}

impl Encoded {
    /// Returns the headers, or the reason why they end the connection of a client that receives them.
    fn headers(&self) -> std::result::Result<HeaderMap, &'static str> {
        parse_headers(&STANDARD.decode(&self.hdrs).map_err(|_| "its headers are not base64")?)
    }

    /// Returns the value of a header.
    pub(super) fn header(&self, name: &str) -> Option<String> {
        Some(self.headers().ok()?.get(name)?.as_str().to_owned())
    }

    /// Returns the reason if the client cannot receive it.
    pub(super) fn unreceivable(&self) -> Option<&'static str> {
        self.headers().err()
    }

    pub(super) fn payload(&self) -> Vec<u8> {
        STANDARD.decode(&self.data).unwrap_or_default()
    }
}

/// The outcome of an attempt to read many records at once.
enum Attempt {
    Read(Records),
    /// The server or the stream does not support it.
    Unavailable,
    /// The connection ended, possibly because of one of the records.
    Interrupted,
}

impl Shared {
    /// Returns up to `max` matching records from `start` on. If there are fewer and `has_more` is false, these are all.
    pub(super) async fn read(&self, filter: &str, start: u64, max: usize) -> Result<Records> {
        let deadline = self.settings.config.request_timeout();
        let reading = async {
            if self.hostile.any_from(start) {
                return self.read_one_by_one(filter, start, max).await;
            }
            let mut attempt = Attempt::Unavailable;
            if self.batched_direct_get {
                attempt = self.read_directly(filter, start, max).await?;
            }
            if matches!(attempt, Attempt::Unavailable) {
                attempt = self.read_through_consumer(filter, start, max).await?;
            }
            match attempt {
                Attempt::Read(records) => Ok(records),
                Attempt::Unavailable | Attempt::Interrupted => self.read_one_by_one(filter, start, max).await,
            }
        };
        tokio::time::timeout(deadline, reading)
            .await
            .unwrap_or_else(|_| Err(timeout(self.link.server(), "history", deadline)))
    }

    async fn read_directly(&self, filter: &str, start: u64, max: usize) -> Result<Attempt> {
        let request = json!({ "seq": start, "batch": max, "next_by_subj": filter });
        let subject = format!("$JS.API.DIRECT.GET.{}", self.stream_name());
        let mut answers = self.request_many(subject, &request).await?;
        let mut records = Records { found: Vec::new(), total: Some(0), has_more: false };
        let mut last = 0;
        loop {
            let Some(message) = self.answer(&mut answers).await else { return Ok(Attempt::Interrupted) };
            match message.status {
                None => {
                    let direct = Direct::of(&message).ok_or_else(malformed)?;
                    if records.found.is_empty() {
                        records.total = Some(direct.pending + 1);
                    }
                    // The server reports the record that it sent before, so that a lost one is noticed.
                    check_complete(last, direct.last)?;
                    last = direct.sequence;
                    records.has_more = direct.pending > 0;
                    records.found.push(direct.into_record(&message));
                }
                // 204 ends the batch; 404 means that nothing matches.
                Some(status) if status.as_u16() == 204 => {
                    let told = header(&message, "Nats-Last-Sequence").and_then(|last| last.parse().ok());
                    check_complete(last, told.unwrap_or(last))?;
                    return Ok(Attempt::Read(records));
                }
                Some(StatusCode::NOT_FOUND) if records.found.is_empty() => {
                    return Ok(Attempt::Read(records));
                }
                Some(StatusCode::NO_RESPONDERS) if records.found.is_empty() => {
                    return Ok(Attempt::Unavailable);
                }
                Some(status) => return Err(broken_off(status, message.description.as_deref())),
            }
        }
    }

    /// Reads through a temporary consumer, for servers and streams without direct reads.
    async fn read_through_consumer(&self, filter: &str, start: u64, max: usize) -> Result<Attempt> {
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
        Ok(match read? {
            Some(found) => {
                let has_more = found.len() == max;
                Attempt::Read(Records { found, total: Some(made.num_pending), has_more })
            }
            None => Attempt::Interrupted,
        })
    }

    /// Reads up to `count` records of a consumer. Returns `None` if the connection ended.
    async fn read_all_of(&self, consumer: &str, count: usize) -> Result<Option<Vec<Record>>> {
        let mut found = Vec::with_capacity(count);
        if count == 0 {
            return Ok(Some(found));
        }
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{consumer}", self.stream_name());
        let mut answers = self.request_many(subject, &json!({ "batch": count, "no_wait": true })).await?;
        while found.len() < count {
            let Some(message) = self.answer(&mut answers).await else { return Ok(None) };
            match message.status {
                None => {}
                // If nothing is left, retention has dropped the records.
                Some(StatusCode::NOT_FOUND) => {
                    if self.has_nothing_left(consumer).await? {
                        break;
                    }
                    return Err(broken_off(StatusCode::NOT_FOUND, message.description.as_deref()));
                }
                Some(status) => return Err(broken_off(status, message.description.as_deref())),
            }
            let (position, _) = Position::of(&message).ok_or_else(malformed)?;
            // Deliveries are numbered, so that a lost one is noticed.
            check_complete(found.len() as u64 + 1, position.delivery)?;
            let content = decode(&message.subject, message.headers.as_ref(), &message.payload);
            found.push(Record {
                sequence: position.sequence,
                stored_at: position.stored_at,
                subject: message.subject.to_string(),
                content,
            });
        }
        Ok(Some(found))
    }

    async fn has_nothing_left(&self, consumer: &str) -> Result<bool> {
        Ok(self.consumer(consumer).await?.is_some_and(|info| info.num_pending == 0))
    }

    /// Reads records with any headers, and remembers those that the client cannot receive.
    async fn read_one_by_one(&self, filter: &str, start: u64, max: usize) -> Result<Records> {
        let mut records = Records { found: Vec::new(), total: None, has_more: true };
        let mut next = start;
        while records.found.len() < max.min(ONE_BY_ONE) {
            let Some(encoded) = self.encoded(json!({ "seq": next, "next_by_subj": filter })).await? else {
                records.has_more = false;
                break;
            };
            next = encoded.seq + 1;
            let stored_at = datetime::parse_rfc3339(&encoded.time).ok().and_then(unix_ms);
            let content = match encoded.headers() {
                Ok(headers) => decode(&encoded.subject, Some(&headers), &encoded.payload()),
                Err(reason) => {
                    self.hostile.add(encoded.seq);
                    Err(reason.to_owned())
                }
            };
            records.found.push(Record {
                sequence: encoded.seq,
                stored_at: stored_at.ok_or_else(malformed)?,
                subject: encoded.subject,
                content,
            });
        }
        Ok(records)
    }

    /// Returns a stored record with encoded headers, or `None` if there is none.
    pub(super) async fn encoded(&self, request: serde_json::Value) -> Result<Option<Encoded>> {
        #[derive(Deserialize)]
        struct Answer {
            message: Encoded,
        }
        let subject = format!("STREAM.MSG.GET.{}", self.stream_name());
        match self.ask::<Answer>("read", subject, request.to_string().into()).await? {
            Ok(answer) => Ok(Some(answer.message)),
            Err(error) if error.error_code() == async_nats::jetstream::ErrorCode::NO_MESSAGE_FOUND => {
                Ok(None)
            }
            Err(error) => Err(refused("read", error)),
        }
    }

    /// Sends a request that several messages answer.
    async fn request_many(&self, subject: String, request: &serde_json::Value) -> Result<Answers> {
        let client = self.link.working().await?;
        let connection = self.link.connection();
        let inbox = Subject::from(client.new_inbox());
        let ended = || connection_ended(self.link.server());
        let messages = client.subscribe(inbox.clone()).await.map_err(|_| ended())?;
        let body = request.to_string().into();
        client.publish_with_reply(subject, inbox, body).await.map_err(|_| ended())?;
        Ok(Answers { messages, connection })
    }

    /// Returns the next answer, or `None` if the connection ended and no other will come.
    async fn answer(&self, answers: &mut Answers) -> Option<Message> {
        tokio::select! {
            biased;
            message = answers.messages.next() => message,
            _ = self.link.connection_after(answers.connection) => None,
        }
    }
}

/// Answers to one request, on one connection.
struct Answers {
    messages: Subscriber,
    connection: u64,
}

/// The server's metadata of a record that it returns without a consumer. The publisher may have written headers of the
/// same names; those of the server are the last ones.
struct Direct {
    sequence: u64,
    stored_at: u64,
    subject: String,
    /// Number of matches behind it.
    pending: u64,
    /// Sequence of the record that was sent before it.
    last: u64,
}

impl Direct {
    fn of(message: &Message) -> Option<Self> {
        let stored = datetime::parse_rfc3339(header(message, "Nats-Time-Stamp")?).ok()?;
        Some(Self {
            sequence: header(message, "Nats-Sequence")?.parse().ok()?,
            stored_at: unix_ms(stored)?,
            subject: header(message, "Nats-Subject")?.to_owned(),
            pending: header(message, "Nats-Num-Pending")?.parse().ok()?,
            last: header(message, "Nats-Last-Sequence")?.parse().ok()?,
        })
    }

    fn into_record(self, message: &Message) -> Record {
        let content = decode(&self.subject, message.headers.as_ref(), &message.payload);
        Record { sequence: self.sequence, stored_at: self.stored_at, subject: self.subject, content }
    }
}

fn header<'a>(message: &'a Message, name: &str) -> Option<&'a str> {
    message.headers.as_ref()?.get_last(name).map(async_nats::HeaderValue::as_str)
}

pub(super) fn unix_ms(time: datetime::DateTime) -> Option<u64> {
    u64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok()
}

/// Returns an error if a record between two others is missing.
fn check_complete(expected: u64, found: u64) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    let reason = format!("a record was lost in transit: found {found}, expected {expected}");
    Err(BackendError::new(PROVIDER, "history", ErrorKind::Backend, reason).retryable().into())
}

/// Returns the error of a read that the server ended early.
fn broken_off(status: StatusCode, description: Option<&str>) -> EventError {
    let reason = format!("the server ended the read early: {status} {}", description.unwrap_or_default());
    BackendError::new(PROVIDER, "history", ErrorKind::Backend, reason).retryable().into()
}

fn malformed() -> EventError {
    BackendError::new(PROVIDER, "history", ErrorKind::Backend, "a record without sequence or time").into()
}
