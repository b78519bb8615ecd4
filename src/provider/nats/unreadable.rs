//! Records that end the connection when they arrive. async-nats 0.51 panics on a carriage return in a header, and drops
//! the connection if headers are invalid or not UTF-8. Only a hostile publisher writes such records.
//!
//! The server redelivers such a record until it is settled. If the connection ends while events are in flight, the
//! provider reads the unsettled deliveries through an API that encodes headers.

use std::collections::BTreeSet;
use std::str::FromStr;
use std::sync::Mutex;
use std::time::Duration;

use async_nats::{HeaderMap, HeaderName, HeaderValue};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::json;

use super::client::Shared;
use super::life::Life;
use super::parked::Unreadable;
use super::records::Encoded;
use crate::error::Result;
use crate::poison::IgnorePoison;

/// Maximum number of unsettled records that are examined.
const MAX_LOOKED_AT: u64 = 10_000;
/// Number of records requested at once.
const AT_ONCE: usize = 32;
/// Maximum number of remembered sequences.
const MAX_REMEMBERED: usize = 10_000;
/// Minimum delay of the nak that makes the server hold such a delivery.
pub(super) const PARKED_FOR: Duration = Duration::from_secs(60 * 60);

/// Known sequences of records that end the connection that receives them.
#[derive(Default)]
pub(super) struct Hostile(Mutex<BTreeSet<u64>>);

impl Hostile {
    pub(super) fn add(&self, sequence: u64) {
        let mut known = self.0.lock().ignore_poison();
        known.insert(sequence);
        if known.len() > MAX_REMEMBERED {
            known.pop_first();
        }
    }

    /// Returns true if such a record is known at this sequence or later.
    pub(super) fn any_from(&self, start: u64) -> bool {
        let known = self.0.lock().ignore_poison();
        known.range(start..).next().is_some()
    }

    /// Forgets all sequences, because the stream was replaced.
    pub(super) fn clear(&self) {
        self.0.lock().ignore_poison().clear();
    }
}

impl Shared {
    /// Finds the deliveries of a consumer that ended the connection, and parks them. Each record is examined once, even
    /// if this call is cancelled and repeated.
    pub(super) async fn park_unreadable(&self, life: &Life) -> Result<()> {
        let Some(info) = self.consumer(&life.name).await? else { return Ok(()) };
        let last = info.delivered.stream_sequence;
        let first = info.ack_floor.stream_sequence.max(life.parked.examined()) + 1;
        let first = first.max((last + 1).saturating_sub(MAX_LOOKED_AT));
        let mut looking = stream::iter(first..=last)
            .map(|sequence| async move {
                let record = self.encoded(json!({ "seq": sequence })).await?;
                Ok::<_, crate::error::EventError>((sequence, record))
            })
            .buffered(AT_ONCE);
        while let Some((sequence, record)) = looking.try_next().await? {
            // A record that was dropped in the meantime is not delivered.
            if let Some(reason) = record.as_ref().and_then(Encoded::unreceivable)
                && let Some(record) = record
            {
                self.hostile.add(sequence);
                self.link.forgive();
                let reply = format!(
                    "$JS.ACK.{}.{}.1.{sequence}.{}.0.0",
                    self.stream_name(),
                    life.name,
                    info.delivered.consumer_sequence
                );
                life.parked.add(Unreadable {
                    sequence,
                    raw: record.payload(),
                    subject: record.subject,
                    reason,
                    reply: reply.into(),
                    attempts: 0,
                });
            }
            life.parked.examine(sequence);
        }
        Ok(())
    }
}

/// Parses the headers of a message as the client does. The error is the reason why they would end the connection.
pub(super) fn parse_headers(raw: &[u8]) -> std::result::Result<HeaderMap, &'static str> {
    let mut headers = HeaderMap::new();
    if raw.is_empty() {
        return Ok(headers);
    }
    if has_bare_return(raw) {
        return Err("its headers contain a bare carriage return");
    }
    let text = std::str::from_utf8(raw).map_err(|_| "its headers are not UTF-8")?;
    let mut lines = text.lines().peekable();
    let status = lines.next().and_then(|first| first.strip_prefix("NATS/1.0"));
    let code = status.ok_or("its headers have no version")?.trim().split(' ').next().unwrap_or_default();
    if !code.is_empty() && async_nats::StatusCode::from_str(code).is_err() {
        return Err("its headers begin with an invalid status");
    }
    while let Some(line) = lines.next() {
        if line.is_empty() {
            continue;
        }
        let (name, value) = line.split_once(':').ok_or("a line of its headers has no colon")?;
        let name = HeaderName::from_str(name).map_err(|_| "its headers have an invalid name")?;
        let mut value = value.trim_start().to_owned();
        while let Some(folded) = lines.next_if(|line| line.starts_with(char::is_whitespace)) {
            value.push_str(folded);
        }
        let value =
            HeaderValue::from_str(value.trim_end()).map_err(|_| "its headers have an invalid value")?;
        headers.append(name, value);
    }
    Ok(headers)
}

/// Returns true if a line contains a carriage return that does not end it.
fn has_bare_return(headers: &[u8]) -> bool {
    headers.iter().enumerate().any(|(at, byte)| *byte == b'\r' && headers.get(at + 1) != Some(&b'\n'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_return_inside_a_line_is_bare() {
        assert!(!has_bare_return(b"NATS/1.0\r\nkey: a\r\n\r\n"));
        assert!(has_bare_return(b"NATS/1.0\r\nkey: a\rb\r\n\r\n"));
        assert!(has_bare_return(b"NATS/1.0\r\nkey: a\r"));
        assert!(!has_bare_return(b""));
    }

    #[test]
    fn headers_are_read_as_the_client_reads_them() {
        let headers = parse_headers(b"NATS/1.0\r\nKey: a\r\nfolded: b\r\n  c\r\nKey: d \r\n\r\n").unwrap();
        let all = |name: &str| headers.get_all(name).map(HeaderValue::as_str).collect::<Vec<_>>();
        assert_eq!((all("Key"), all("folded")), (vec!["a", "d"], vec!["b  c"]));
        assert!(parse_headers(b"").unwrap().is_empty());
        assert!(parse_headers(b"NATS/1.0 503\r\n\r\n").is_ok());
        for hostile in [
            &b"NATS/1.0\r\nkey: a\rb\r\n\r\n"[..],
            b"NATS/1.0\r\nkey: \xff\r\n\r\n",
            b"NATS/1.0\r\nno colon\r\n\r\n",
            b"NATS/1.0\r\nn\xc3\xa4me: a\r\n\r\n",
            b"NATS/1.0 abc\r\n\r\n",
            b"HTTP/1.1\r\n\r\n",
        ] {
            assert!(parse_headers(hostile).is_err(), "{}", String::from_utf8_lossy(hostile));
        }
    }

    #[test]
    fn only_so_many_records_are_remembered() {
        let hostile = Hostile::default();
        (1..=MAX_REMEMBERED as u64 + 1).for_each(|sequence| hostile.add(sequence));
        assert!(hostile.any_from(MAX_REMEMBERED as u64 + 1) && !hostile.any_from(MAX_REMEMBERED as u64 + 2));
        assert_eq!(hostile.0.lock().unwrap().len(), MAX_REMEMBERED);
        hostile.clear();
        assert!(!hostile.any_from(0));
    }
}
