//! What a message holds: the JSON of an event, or a CloudEvent. Either is read; one of them is written.

use std::str::FromStr;

use async_nats::{HeaderMap, Message};

#[cfg(feature = "cloudevents")]
use crate::cloudevents::{self, Accept, CloudEvent};
#[cfg(feature = "cloudevents")]
use crate::error::EventError;
use crate::error::{Result, without_values};
use crate::types::Event;

/// What the provider writes. It reads both, whatever is set here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Wire {
    /// The JSON of the event. The default.
    #[default]
    Native,
    /// The event as a [`CloudEvent`](crate::CloudEvent) in structured mode, for readers that know nothing of us.
    #[cfg(feature = "cloudevents")]
    #[cfg_attr(docsrs, doc(cfg(feature = "cloudevents")))]
    CloudEvents,
}

impl FromStr for Wire {
    type Err = &'static str;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        match text {
            "native" => Ok(Self::Native),
            #[cfg(feature = "cloudevents")]
            "cloudevents" => Ok(Self::CloudEvents),
            #[cfg(not(feature = "cloudevents"))]
            "cloudevents" => Err("needs the feature cloudevents"),
            _ => Err("must be native or cloudevents"),
        }
    }
}

impl Wire {
    /// Writes a body, for which this many bytes are expected.
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

    /// Tells readers what the body is.
    #[cfg_attr(
        not(feature = "cloudevents"),
        allow(unused_variables, clippy::unused_self, reason = "what is native needs no header")
    )]
    pub(super) fn announce(self, headers: &mut HeaderMap) {
        match self {
            Self::Native => {}
            #[cfg(feature = "cloudevents")]
            Self::CloudEvents => headers.insert("content-type", "application/cloudevents+json"),
        }
    }
}

/// Reads a message. The error says why it is not an event.
pub(super) fn decode(message: &Message) -> std::result::Result<Event, String> {
    #[cfg(feature = "cloudevents")]
    if let Some(headers) = message.headers.as_ref().filter(|headers| is_cloud_event(headers)) {
        return from_cloud_event(message, headers);
    }
    serde_json::from_slice(&message.payload).map_err(|error| without_values(&error))
}

#[cfg(feature = "cloudevents")]
fn is_cloud_event(headers: &HeaderMap) -> bool {
    headers.iter().any(|(name, values)| {
        let name: &str = name.as_ref();
        let is_format = |content_type: &str| {
            cloudevents::http::mode(Some(content_type)) != cloudevents::http::Mode::Binary
        };
        name.eq_ignore_ascii_case("ce-specversion")
            || name.eq_ignore_ascii_case("content-type")
                && values.iter().any(|value| is_format(value.as_str()))
    })
}

#[cfg(feature = "cloudevents")]
fn from_cloud_event(message: &Message, headers: &HeaderMap) -> std::result::Result<Event, String> {
    let flat = headers.iter().flat_map(|(name, values)| {
        let name: &str = name.as_ref();
        values.iter().map(move |value| (name, value.as_str()))
    });
    let read = cloudevents::nats::from_message(flat, &message.payload, Accept::KnownDivergences);
    let mut event = read.and_then(Event::try_from).map_err(|error| match error {
        EventError::Serialization(error) => without_values(&error),
        error => error.to_string(),
    })?;
    // One of others has a subject of its own meaning, and no category: what counts here is where it was published.
    let published =
        headers.get("Nats-Subject").map_or(message.subject.as_str(), async_nats::HeaderValue::as_str);
    if event.subject != published {
        let own = std::mem::replace(&mut event.subject, published.to_owned());
        if !own.is_empty() {
            event.metadata.entry("ce-subject".to_owned()).or_insert(own);
        }
    }
    Ok(event)
}
