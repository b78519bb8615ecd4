//! Helpers that the built-in providers share and third-party providers can use: common errors and answers, backoff, and
//! texts and times as the library writes them. For checks of events and options, see [`validate`](super::validate).

use super::UndecodableRecord;
pub use super::receipt::answered_without_storing;
pub use super::sent_acks::SentAcks;
pub use crate::backoff::Backoff;
pub use crate::clock::{Clock, unix_millis};
use crate::error::{EventError, Result};
pub use crate::task::OwnedTask;
pub use crate::text::{shorten, without_values};
use crate::types::Event;

/// Maximum time in milliseconds that the clock may be behind the newest storage time before it counts as wrong. A clock
/// that is corrected in small steps stays within this limit.
pub const CLOCK_TOLERANCE_MS: u64 = 1_000;

/// Returns the error of a call to a closed provider of this name.
///
/// ```
/// use a3s_event::provider::support::closed;
///
/// assert!(closed("mine").is_closed());
/// ```
pub fn closed(provider: &str) -> EventError {
    EventError::Closed(format!("the {provider} provider was closed"))
}

/// Returns the result of a flush, given the number of acks that did not take effect since the previous flush.
///
/// # Errors
///
/// [`EventError::Ack`] unless `lost` is 0.
///
/// ```
/// use a3s_event::provider::support::flushed;
///
/// assert!(flushed(0).is_ok() && flushed(2).is_err());
/// ```
pub fn flushed(lost: u64) -> Result<()> {
    match lost {
        0 => Ok(()),
        lost => {
            Err(EventError::Ack(format!("flush: {lost} acks were lost; their events will be redelivered")))
        }
    }
}

/// Returns the error for an unsupported option or operation, named as in the API.
///
/// ```
/// use a3s_event::provider::support::unsupported;
///
/// assert_eq!(unsupported("lag", "mine").to_string(), "lag is not supported by provider 'mine'");
/// ```
pub fn unsupported(option: &str, provider: &str) -> EventError {
    EventError::Unsupported { option: option.to_owned(), provider: provider.to_owned() }
}

/// Creates a placeholder event for a stored record that is not an event.
pub fn stand_in(record: &UndecodableRecord, subject: &str, sequence: u64) -> Event {
    let raw = String::from_utf8_lossy(&record.raw).into_owned();
    let mut event = Event::new(subject, "", "", "", serde_json::json!({ "raw": raw }));
    event.id = format!("undecodable-{sequence}");
    event
}
