//! Publishing: checks the event, then sends a request whose answer says if the event is stored.

use std::time::Duration;

use async_nats::jetstream::response::Response;
use async_nats::jetstream::{self, ErrorCode};
use async_nats::{HeaderMap, HeaderValue, Message, Request, RequestErrorKind, Subject, header};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use super::client::Shared;
use super::error::{PROVIDER, refused};
use super::link::NoAnswer;
use super::wire::EventFormat;
use crate::deadline::After;
use crate::error::{BackendError, ErrorKind, EventError, Result};
use crate::provider::PublishReceipt;
use crate::provider::driver::Checked;
use crate::types::{Event, PublishOptions};

/// JetStream's answer to a stored publish.
#[derive(Deserialize)]
pub(super) struct Acknowledged {
    /// Sequence of the last event.
    #[serde(rename = "seq")]
    pub(super) sequence: u64,
    /// If true, an earlier message with the same id is stored.
    #[serde(default)]
    pub(super) duplicate: bool,
    /// Number of events in a batch.
    pub(super) count: Option<u64>,
}

impl Acknowledged {
    fn receipt(&self) -> PublishReceipt {
        if self.duplicate {
            PublishReceipt::duplicate(self.sequence)
        } else {
            PublishReceipt::stored(self.sequence)
        }
    }
}

impl Shared {
    /// Stores one event. The error says if the event may have been stored.
    pub(super) async fn publish(&self, checked: Checked<'_>) -> Result<PublishReceipt> {
        self.check_open()?;
        let body = self.encode(checked)?;
        let (event, options) = (checked.event(), checked.options());
        let deadline = self.deadline_of(options);
        let until = Instant::now().after(deadline);
        match self.publish_once(event, body.clone(), options, deadline).await {
            // No stream takes the subject, so nothing was stored. The stream may be gone.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                match timeout_at(until, self.stream_made_again()).await {
                    Ok(Ok(_there_again)) => {
                        let left = until.saturating_duration_since(Instant::now());
                        self.publish_once(event, body, options, left).await
                    }
                    Ok(Err(gone)) if gone.kind() == ErrorKind::NotFound && !gone.is_retryable() => Err(gone),
                    Ok(Err(_)) | Err(_) => Err(error),
                }
            }
            answer => answer,
        }
    }

    async fn publish_once(
        &self,
        event: &Event,
        body: Bytes,
        options: &PublishOptions,
        deadline: Duration,
    ) -> Result<PublishReceipt> {
        let size = body.len();
        let mut request = Request::new().payload(body);
        let mut with_headers = size;
        if let Some(headers) = headers(options, self.settings.format) {
            with_headers += header_len(&headers);
            request = request.headers(headers);
        }
        let subject = Subject::from(event.subject.as_str());
        let answer = match self.link.request_once(&subject, request, deadline).await {
            Err(NoAnswer::Failed(error)) if error.kind() == RequestErrorKind::MaxPayloadExceeded => {
                let limit = self.link.client().max_payload();
                let what = if with_headers > size { "event with its headers" } else { "event" };
                return Err(EventError::TooLarge { what, actual: with_headers, limit });
            }
            answer => answer.map_err(|none| none.into_error(self.link.server(), "publish", deadline))?,
        };
        match stored(&answer)? {
            Ok(acknowledged) => {
                if acknowledged.duplicate {
                    self.check_expectation_of_duplicate(acknowledged.sequence, options).await?;
                }
                Ok(acknowledged.receipt())
            }
            Err(error) => self.not_stored(error, options).await,
        }
    }

    /// Checks the expected sequence of a duplicate. A server before 2.12 reports a duplicate before it looks at the
    /// expected sequence.
    async fn check_expectation_of_duplicate(&self, duplicate: u64, options: &PublishOptions) -> Result<()> {
        let Some(expected) = options.expected_sequence else { return Ok(()) };
        let is_retry = expected.checked_add(1) == Some(duplicate);
        if is_retry || self.link.client().is_server_compatible(2, 12, 0) {
            return Ok(());
        }
        let last = self.stream().await?.state.last_sequence;
        if last == expected { Ok(()) } else { Err(self.unexpected_sequence(&last.to_string(), expected)) }
    }

    fn unexpected_sequence(&self, existing: &str, expected: u64) -> EventError {
        EventError::Conflict {
            resource: format!("stream '{}'", self.stream_name()),
            field: "expected_sequence".to_owned(),
            existing: existing.to_owned(),
            requested: expected.to_string(),
        }
    }

    /// Publishes the entries one by one, with at most `max_in_flight` in flight.
    pub(super) async fn publish_pipelined(&self, batch: &[Checked<'_>]) -> Vec<Result<PublishReceipt>> {
        let mut results = Vec::with_capacity(batch.len());
        let mut in_flight = FuturesOrdered::new();
        for event in batch {
            if in_flight.len() >= self.settings.max_in_flight {
                results.extend(in_flight.next().await);
            }
            // Publishes are sent in the order of their first poll. Running out of the task's budget would change the
            // order.
            in_flight.push_back(tokio::task::unconstrained(self.publish(*event)));
        }
        while let Some(result) = in_flight.next().await {
            results.push(result);
        }
        results
    }

    /// Encodes the body of the message. In another format it may be larger than the event.
    pub(super) fn encode(&self, checked: Checked<'_>) -> Result<Bytes> {
        let body = self.settings.format.encode(checked.event(), checked.size())?;
        if body.len() > self.max_event_bytes {
            return Err(EventError::TooLarge {
                what: "event",
                actual: body.len(),
                limit: self.max_event_bytes,
            });
        }
        Ok(body.into())
    }

    pub(super) fn deadline_of(&self, options: &PublishOptions) -> Duration {
        let usual = self.settings.publish_timeout.unwrap_or(self.settings.config.request_timeout());
        options.timeout_secs.map_or(usual, Duration::from_secs)
    }

    /// Converts a refusal into an error, or into a receipt if an earlier try of the same publish was stored.
    async fn not_stored(&self, error: jetstream::Error, options: &PublishOptions) -> Result<PublishReceipt> {
        let wrong_sequence = matches!(
            error.error_code(),
            ErrorCode::STREAM_WRONG_LAST_SEQUENCE | ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT
        );
        let Some(expected) = options.expected_sequence.filter(|_| wrong_sequence) else {
            return Err(refused("publish", error));
        };
        // The server checks the expected sequence before it looks for a duplicate. An earlier try that was stored has
        // the sequence after the expected one.
        if let Some(msg_id) = &options.msg_id
            && self.msg_id_of(expected.saturating_add(1)).await.as_ref() == Some(msg_id)
        {
            return Ok(PublishReceipt::duplicate(expected.saturating_add(1)));
        }
        let existing = error.to_string();
        Err(self.unexpected_sequence(last_sequence(&existing).unwrap_or("another sequence"), expected))
    }

    /// Returns the `msg_id` that a record was stored with, or `None` if it cannot be read.
    async fn msg_id_of(&self, sequence: u64) -> Option<String> {
        let record = self.encoded(serde_json::json!({ "seq": sequence })).await.ok()??;
        record.header(header::NATS_MESSAGE_ID.as_ref())
    }
}

/// Parses the answer to a publish. After an answer that is not JetStream's, the event may be stored.
pub(super) fn stored(answer: &Message) -> Result<std::result::Result<Acknowledged, jetstream::Error>> {
    match serde_json::from_slice(&answer.payload) {
        Ok(Response::Ok(acknowledged)) => Ok(Ok(acknowledged)),
        Ok(Response::Err { error }) => Ok(Err(error)),
        Err(error) => {
            Err(BackendError::new(PROVIDER, "publish", ErrorKind::Backend, error).may_be_stored().into())
        }
    }
}

fn headers(options: &PublishOptions, format: EventFormat) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    format.announce(&mut headers);
    if let Some(msg_id) = &options.msg_id {
        headers.insert(header::NATS_MESSAGE_ID, msg_id.as_str());
    }
    if let Some(expected) = options.expected_sequence {
        headers.insert(header::NATS_EXPECTED_LAST_SEQUENCE, HeaderValue::from(expected));
    }
    (!headers.is_empty()).then_some(headers)
}

/// Returns the size of the headers on the wire in bytes. The server counts it with the body.
fn header_len(headers: &HeaderMap) -> usize {
    let lines = headers.iter().flat_map(|(name, values)| {
        let name: &str = name.as_ref();
        values.iter().map(move |value| name.len() + ": ".len() + value.as_str().len() + "\r\n".len())
    });
    "NATS/1.0\r\n".len() + lines.sum::<usize>() + "\r\n".len()
}

/// Returns the sequence in `wrong last sequence: 4 (code 400, ...)`. It appears in error messages only.
fn last_sequence(description: &str) -> Option<&str> {
    let rest = description.split_once("wrong last sequence: ")?.1;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest.get(..digits).filter(|digits| !digits.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_sequence_is_read_where_the_server_tells_it() {
        assert_eq!(last_sequence("wrong last sequence: 42 (code 400, error code 10071)"), Some("42"));
        assert_eq!(last_sequence("wrong last sequence (code 400)"), None);
        assert_eq!(last_sequence("wrong last sequence: x"), None);
    }

    #[test]
    fn options_become_the_headers_of_the_wire_contract() {
        assert!(headers(&PublishOptions::default(), EventFormat::Native).is_none());
        let options = PublishOptions {
            msg_id: Some("order-1".to_owned()),
            expected_sequence: Some(7),
            timeout_secs: None,
        };
        let headers = headers(&options, EventFormat::Native).unwrap();
        assert_eq!(headers.get("Nats-Msg-Id").unwrap().as_str(), "order-1");
        assert_eq!(headers.get("Nats-Expected-Last-Sequence").unwrap().as_str(), "7");
        let on_the_wire = "NATS/1.0\r\nNats-Msg-Id: order-1\r\nNats-Expected-Last-Sequence: 7\r\n\r\n";
        assert_eq!(header_len(&headers), on_the_wire.len());
    }
}
