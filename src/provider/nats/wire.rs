//! Message bodies: the JSON of an event, or a CloudEvent. The provider reads both and writes one of them.

use std::time::Duration;

use async_nats::HeaderMap;

#[cfg(feature = "cloudevents")]
use crate::cloudevents::{self, AcceptedFormats, CloudEvent};
#[cfg(feature = "cloudevents")]
use crate::error::EventError;
use crate::error::Result;
use crate::provider::settings::Choice;
use crate::provider::support::without_values;
use crate::types::Event;

/// Longest duration that is sent to the server. Added to the present, it fits into 63 bits of nanoseconds.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Limits a duration to one that the server accepts.
pub(super) fn sent(duration: Duration) -> Duration {
    duration.min(LONGEST)
}

/// Returns a duration in nanoseconds, as the server reads it.
pub(super) fn nanos(duration: Duration) -> u128 {
    sent(duration).as_nanos()
}

/// The format in which the provider writes events. It reads every format, regardless of this setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum EventFormat {
    /// The JSON of the event. The default.
    #[default]
    Native,
    /// The event as a [`CloudEvent`](crate::CloudEvent) in structured mode, for readers that do not know this library.
    #[cfg(feature = "cloudevents")]
    #[cfg_attr(docsrs, doc(cfg(feature = "cloudevents")))]
    CloudEvents,
}

impl Choice for EventFormat {
    #[cfg(feature = "cloudevents")]
    const ALL: &'static [(&'static str, Self)] =
        &[("native", Self::Native), ("cloudevents", Self::CloudEvents)];
    #[cfg(not(feature = "cloudevents"))]
    const ALL: &'static [(&'static str, Self)] = &[("native", Self::Native)];
    #[cfg(not(feature = "cloudevents"))]
    const ABSENT: &'static [(&'static str, &'static str)] = &[("cloudevents", "cloudevents")];
}

impl EventFormat {
    /// Writes the body of an event. `size` is its expected size in bytes.
    pub(super) fn encode(self, event: &Event, size: usize) -> Result<Vec<u8>> {
        match self {
            Self::Native => {
                let mut body = Vec::with_capacity(size);
                serde_json::to_writer(&mut body, event)?;
                Ok(body)
            }
            #[cfg(feature = "cloudevents")]
            Self::CloudEvents => CloudEvent::from(event.clone()).to_json(),
        }
    }

    /// Adds the headers that announce the format.
    #[cfg_attr(
        not(feature = "cloudevents"),
        allow(unused_variables, clippy::unused_self, reason = "native events need no header")
    )]
    pub(super) fn announce(self, headers: &mut HeaderMap) {
        match self {
            Self::Native => {}
            #[cfg(feature = "cloudevents")]
            Self::CloudEvents => headers.insert("content-type", "application/cloudevents+json"),
        }
    }
}

/// Reads a record that is stored under a subject. The error is the reason why it is not an event.
///
/// A record that announces itself as a CloudEvent is read as one. So is a body that is not a native event and has a
/// `specversion`, because early versions of NATS had no headers.
#[cfg_attr(
    not(feature = "cloudevents"),
    allow(unused_variables, reason = "only CloudEvents need the headers")
)]
pub(super) fn decode(
    subject: &str,
    headers: Option<&HeaderMap>,
    payload: &[u8],
) -> std::result::Result<Event, String> {
    #[cfg(feature = "cloudevents")]
    if let Some(headers) = headers.filter(|headers| is_cloud_event(headers)) {
        return from_cloud_event(subject, headers, payload);
    }
    let error = match serde_json::from_slice(payload) {
        Ok(event) => return Ok(event),
        Err(error) => error,
    };
    #[cfg(feature = "cloudevents")]
    if has_specversion(payload) {
        return from_cloud_event(subject, &HeaderMap::new(), payload);
    }
    Err(without_values(&error))
}

/// Returns true if a body is a JSON object with a `specversion`, which every CloudEvent has.
#[cfg(feature = "cloudevents")]
fn has_specversion(payload: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Versioned {
        #[serde(rename = "specversion")]
        _specversion: String,
    }
    serde_json::from_slice::<Versioned>(payload).is_ok()
}

#[cfg(feature = "cloudevents")]
fn is_cloud_event(headers: &HeaderMap) -> bool {
    headers.iter().any(|(name, values)| {
        let name: &str = name.as_ref();
        let is_format = |content_type: &str| {
            cloudevents::http::mode(Some(content_type)) != cloudevents::http::ContentMode::Binary
        };
        name.eq_ignore_ascii_case("ce-specversion")
            || name.eq_ignore_ascii_case("content-type")
                && values.iter().any(|value| is_format(value.as_str()))
    })
}

#[cfg(feature = "cloudevents")]
fn from_cloud_event(
    subject: &str,
    headers: &HeaderMap,
    payload: &[u8],
) -> std::result::Result<Event, String> {
    let flat = headers.iter().flat_map(|(name, values)| {
        let name: &str = name.as_ref();
        values.iter().map(move |value| (name, value.as_str()))
    });
    let read = cloudevents::nats::from_message(flat, payload, AcceptedFormats::KnownDivergences);
    let mut event = read.and_then(Event::try_from).map_err(|error| match error {
        EventError::Serialization(error) => without_values(&error),
        error => error.to_string(),
    })?;
    // A CloudEvent of another publisher has its own subject. The event gets the subject that it was published under.
    if event.subject != subject {
        let own = std::mem::replace(&mut event.subject, subject.to_owned());
        if !own.is_empty() {
            event.metadata.entry("ce-subject".to_owned()).or_insert(own);
        }
    }
    Ok(event)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_without_an_end_fits_into_63_bits_behind_the_present() {
        let today = i64::try_from(Duration::from_secs(1_800_000_000).as_nanos()).unwrap();
        assert!(today.checked_add(i64::try_from(nanos(Duration::MAX)).unwrap()).is_some());
        assert_eq!((nanos(Duration::ZERO), nanos(Duration::from_nanos(1))), (0, 1));
    }
}
