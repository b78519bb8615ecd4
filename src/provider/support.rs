//! What the built-in providers share, so that those of others can use it too: checks of settings, common answers, and texts
//! and times as the library writes them. Checks of events and options are in [`validate`](super::validate).

use super::UndecodableRecord;
pub use super::receipt::answered_without_storing;
pub use crate::backoff::Backoff;
pub use crate::clock::unix_millis;
use crate::error::{EventError, Result};
pub use crate::text::{shorten, without_values};
use crate::types::Event;

/// How far the clock may be behind the newest storage time before that counts as wrong: a clock that is kept right by small
/// steps is not further off.
pub const CLOCK_TOLERANCE_MS: u64 = 1_000;

/// Refuses a call because the provider of this name was closed.
///
/// ```
/// use a3s_event::provider::support::closed;
///
/// assert!(closed("mine").is_closed());
/// ```
pub fn closed(provider: &str) -> EventError {
    EventError::Closed(format!("the {provider} provider was closed"))
}

/// What a flush answers when so many acks did not take effect since the one before.
///
/// # Errors
///
/// [`EventError::Ack`] unless there are none.
///
/// ```
/// use a3s_event::provider::support::flushed;
///
/// assert!(flushed(0).is_ok() && flushed(2).is_err());
/// ```
pub fn flushed(lost: u64) -> Result<()> {
    match lost {
        0 => Ok(()),
        lost => Err(EventError::Ack(format!("flush: {lost} acks were lost; their events come again"))),
    }
}

/// Refuses an option or operation, named as in the API.
///
/// ```
/// use a3s_event::provider::support::unsupported;
///
/// assert_eq!(unsupported("lag", "mine").to_string(), "lag is not supported by provider 'mine'");
/// ```
pub fn unsupported(option: &str, provider: &str) -> EventError {
    EventError::Unsupported { option: option.to_owned(), provider: provider.to_owned() }
}

/// Makes the event that stands for a stored record which is not one, where an event is needed.
pub fn stand_in(record: &UndecodableRecord, subject: &str, sequence: u64) -> Event {
    let raw = String::from_utf8_lossy(&record.raw).into_owned();
    let mut event = Event::new(subject, "", "", "", serde_json::json!({ "raw": raw }));
    event.id = format!("undecodable-{sequence}");
    event
}
