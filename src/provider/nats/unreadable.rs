//! Records that end the client when they arrive: async-nats 0.51 panics on a carriage return in a header.
//!
//! The server goes on delivering such a record until it is settled. So when the client has ended while it waited for
//! events, those that are delivered and not settled are looked at one by one, through an interface that encodes headers.

use async_nats::jetstream::consumer;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::client::Shared;
use super::error::refused;
use crate::error::Result;

/// Unsettled records that are looked at, at most.
const MAX_LOOKED_AT: u64 = 10_000;

/// A record that cannot be received.
pub(super) struct Unreadable {
    pub(super) sequence: u64,
    pub(super) raw: Vec<u8>,
    /// The subject on which its delivery is settled.
    pub(super) reply: String,
}

#[derive(Deserialize)]
struct Answer {
    message: Stored,
}

#[derive(Deserialize)]
struct Stored {
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
}

impl Shared {
    /// The first unreadable record behind `examined` among those that a consumer has delivered and not settled. `examined`
    /// grows as they are looked at.
    pub(super) async fn unreadable(
        &self,
        consumer: &consumer::Info,
        examined: &mut u64,
    ) -> Result<Option<Unreadable>> {
        let last = consumer.delivered.stream_sequence;
        let first = consumer.ack_floor.stream_sequence.max(*examined) + 1;
        for sequence in first.max((last + 1).saturating_sub(MAX_LOOKED_AT))..=last {
            let subject = format!("STREAM.MSG.GET.{}", self.stream_name());
            let body = format!(r#"{{"seq":{sequence}}}"#);
            let found = self.ask::<Answer>("receive", subject, body.into_bytes()).await?;
            *examined = sequence;
            let stored = match found {
                Ok(Answer { message }) => message,
                // Deleted or dropped in the meantime.
                Err(error) if error.code() == 404 => continue,
                Err(error) => return Err(refused("receive", error)),
            };
            if STANDARD.decode(&stored.hdrs).is_ok_and(|headers| has_bare_return(&headers)) {
                return Ok(Some(Unreadable {
                    sequence,
                    raw: STANDARD.decode(&stored.data).unwrap_or_default(),
                    reply: format!(
                        "$JS.ACK.{}.{}.1.{sequence}.{}.0.0",
                        self.stream_name(),
                        consumer.name,
                        consumer.delivered.consumer_sequence
                    ),
                }));
            }
        }
        Ok(None)
    }
}

/// Whether a line holds a carriage return that does not end it.
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
}
