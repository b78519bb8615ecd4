//! Trace contexts that travel with events, and the names in traces.
//!
//! A publish writes the current [`TraceContext`] into the event's metadata, under the keys of the W3C recommendation,
//! `traceparent` and `tracestate`. [`process_span`] joins the handler to it. The current context is:
//!
//! - with the feature `otel`, the context of the current `tracing` span if a layer of `tracing-opentelemetry` provides
//!   it, or else OpenTelemetry's current context;
//! - otherwise, the one of the [`scope`](TraceContext::scope) that the code runs in. The handler runtime opens a scope
//!   around each handler. Events that a handler publishes thus belong to the trace of the event it handles, also
//!   without OpenTelemetry.
//!
//! If an event already has one of the two keys, the publisher's values are kept. Without a current context, nothing is
//! added. Apart from the two keys, the stored event equals the published one. The keys count towards the limits on
//! metadata and on the size of an event; a context that does not fit into the metadata is omitted.

#[cfg(feature = "otel")]
mod otel;
pub mod semconv;

use std::borrow::Cow;
use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use tracing::Span;
use tracing::field::Empty;

use self::semconv::{
    ERROR_TYPE, MESSAGING_BATCH_MESSAGE_COUNT, MESSAGING_CONSUMER_GROUP_NAME, MESSAGING_DESTINATION_NAME,
    MESSAGING_MESSAGE_ID, MESSAGING_OPERATION_NAME, MESSAGING_OPERATION_TYPE, MESSAGING_SYSTEM, OTEL_KIND,
    OTEL_STATUS_CODE,
};
use crate::error::EventError;
use crate::provider::Delivery;
use crate::provider::validate::MAX_METADATA_BYTES;
use crate::types::Event;

/// Metadata key of the trace id, the parent id and the flags.
pub const TRACEPARENT: &str = "traceparent";
/// Metadata key of the vendor-specific part.
pub const TRACESTATE: &str = "tracestate";

/// Maximum length of a `tracestate`: the recommendation asks all systems to propagate this much.
const MAX_STATE_LEN: usize = 512;
/// Maximum number of members of a `tracestate`.
const MAX_STATE_MEMBERS: usize = 32;
/// Length beyond which members are removed first from a `tracestate` that is too long.
const LONG_MEMBER: usize = 128;

tokio::task_local! {
    static CURRENT: Scope;
}

/// Source of the current context.
enum Scope {
    Context(TraceContext),
    /// Read only when something is published, because most handlers publish nothing.
    Event(Arc<Event>),
}

/// Trace context of the W3C recommendation "Trace Context": the trace, the parent operation, the sampled flag, and the
/// vendor-specific part.
///
/// ```
/// use a3s_event::trace::TraceContext;
///
/// let context = TraceContext::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", Some("rojo=1")).unwrap();
/// assert_eq!(context.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
/// assert!(context.is_sampled());
/// assert!(TraceContext::parse("00-not-a-context", None).is_none());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// Version 00, always of the same length.
    traceparent: String,
    /// Empty if there is none.
    tracestate: String,
}

impl TraceContext {
    /// Parses a context. Returns `None` for a `traceparent` that the recommendation calls invalid. An invalid
    /// `tracestate` is dropped, and one beyond 512 bytes is cut by whole members.
    ///
    /// A `traceparent` of a later version is read as far as version 00 goes.
    pub fn parse(traceparent: &str, tracestate: Option<&str>) -> Option<Self> {
        let traceparent = parse_parent(traceparent.trim_matches([' ', '\t']))?;
        let tracestate = tracestate.and_then(parse_state).unwrap_or_default();
        Some(Self { traceparent, tracestate })
    }

    /// Returns the context in an event's metadata, if there is a valid one.
    pub fn of(event: &Event) -> Option<Self> {
        let traceparent = event.metadata.get(TRACEPARENT)?;
        Self::parse(traceparent, event.metadata.get(TRACESTATE).map(String::as_str))
    }

    /// Returns the context that an event published now gets.
    pub fn current() -> Option<Self> {
        #[cfg(feature = "otel")]
        if let Some(context) = otel::current() {
            return Some(context);
        }
        let context = |scope: &Scope| match scope {
            Scope::Context(context) => Some(context.clone()),
            Scope::Event(event) => Self::of(event),
        };
        CURRENT.try_with(context).ok().flatten()
    }

    /// Makes this the current context of `work`, for programs without OpenTelemetry. Tasks that `work` spawns do not
    /// inherit it. As cancel-safe as `work` itself.
    pub fn scope<F: Future>(self, work: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(Scope::Context(self), work)
    }

    /// Makes the context of `event`, if it has one, the current context of `work`.
    pub(crate) fn scope_of<F: Future>(event: Arc<Event>, work: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(Scope::Event(event), work)
    }

    /// Returns the value of `traceparent`, in version 00.
    pub fn traceparent(&self) -> &str {
        &self.traceparent
    }

    /// Returns the value of `tracestate`; empty if there is none.
    pub fn tracestate(&self) -> &str {
        &self.tracestate
    }

    /// Returns the trace id: 32 hexadecimal digits.
    pub fn trace_id(&self) -> &str {
        self.traceparent.get(3..35).unwrap_or_default()
    }

    /// Returns the id of the parent operation: 16 hexadecimal digits.
    pub fn parent_id(&self) -> &str {
        self.traceparent.get(36..52).unwrap_or_default()
    }

    /// Returns true if the parent operation may have been recorded.
    pub fn is_sampled(&self) -> bool {
        flags(&self.traceparent).is_some_and(|flags| flags & 1 == 1)
    }

    /// Adds the context to metadata that has none, if it fits.
    pub fn add_to(&self, metadata: &mut HashMap<String, String>) {
        let added = TRACEPARENT.len() + self.traceparent.len() + TRACESTATE.len() + self.tracestate.len();
        let present: usize = metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
        if has_context(metadata) || present + added > MAX_METADATA_BYTES {
            return;
        }
        metadata.insert(TRACEPARENT.to_owned(), self.traceparent.clone());
        if !self.tracestate.is_empty() {
            metadata.insert(TRACESTATE.to_owned(), self.tracestate.clone());
        }
    }
}

fn has_context(metadata: &HashMap<String, String>) -> bool {
    !metadata.is_empty() && (metadata.contains_key(TRACEPARENT) || metadata.contains_key(TRACESTATE))
}

/// Parses `version-traceid-parentid-flags` and rewrites it as version 00.
fn parse_parent(text: &str) -> Option<String> {
    const LEN: usize = 55;
    let (known, later) = text.split_at_checked(LEN)?;
    let mut parts = known.split('-');
    let [version, trace, parent, flags_text] = [(); 4].map(|()| parts.next().unwrap_or_default());
    let is_hex = |part: &str, len: usize| {
        part.len() == len && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_id = |part: &str, len: usize| is_hex(part, len) && part.bytes().any(|b| b != b'0');
    // Version 00 ends here; a later one may continue after a dash. Version ff is forbidden.
    let version_fits = match version {
        "00" => later.is_empty(),
        "ff" => false,
        _ => later.is_empty() || later.starts_with('-'),
    };
    let is_valid =
        is_hex(version, 2) && version_fits && is_id(trace, 32) && is_id(parent, 16) && is_hex(flags_text, 2);
    if !is_valid {
        return None;
    }
    // Flags other than sampled (1) and random (2) have no meaning yet and must not be passed on.
    Some(format!("00-{trace}-{parent}-{:02x}", flags(known)? & 3))
}

fn flags(traceparent: &str) -> Option<u8> {
    u8::from_str_radix(traceparent.get(53..55)?, 16).ok()
}

/// Parses `key=value` members joined by commas. Of members with the same key, the first stays, which was added last.
fn parse_state(text: &str) -> Option<String> {
    let members: Vec<&str> = text
        .split(',')
        .map(|member| member.trim_matches([' ', '\t']))
        .filter(|member| !member.is_empty())
        .collect();
    if members.len() > MAX_STATE_MEMBERS {
        return None;
    }
    let mut keys = std::collections::HashSet::new();
    let mut kept = Vec::with_capacity(members.len());
    for member in members {
        let (key, value) = member.split_once('=')?;
        if !(is_state_key(key) && is_state_value(value)) {
            return None;
        }
        if keys.insert(key) {
            kept.push(member);
        }
    }
    Some(fitting(kept))
}

fn is_state_key(key: &str) -> bool {
    let starts = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    key.len() <= 256
        && key.bytes().next().is_some_and(starts)
        && key.bytes().all(|b| starts(b) || b"_-*/@".contains(&b))
}

fn is_state_value(value: &str) -> bool {
    (1..=256).contains(&value.len()) && value.bytes().all(|b| matches!(b, b' '..=b'~') && b != b'=')
}

/// Joins the members, and removes as many as needed to fit: the long ones first, then from the end.
fn fitting(mut members: Vec<&str>) -> String {
    let len =
        |members: &[&str]| members.iter().map(|member| member.len() + 1).sum::<usize>().saturating_sub(1);
    if len(&members) > MAX_STATE_LEN {
        members.retain(|member| member.len() <= LONG_MEMBER);
    }
    while len(&members) > MAX_STATE_LEN {
        members.pop();
    }
    members.join(",")
}

/// Adds the current context to an event that is about to be stored, unless it has one.
pub(crate) fn inject(event: &mut Cow<'_, Event>) {
    if has_context(&event.metadata) {
        #[cfg(feature = "otel")]
        if let Some(own) = TraceContext::of(event) {
            otel::link(&Span::current(), &own);
        }
        return;
    }
    if let Some(context) = TraceContext::current() {
        context.add_to(&mut event.to_mut().metadata);
    }
}

/// Creates a span with the fields that the conventions require for every one.
macro_rules! messaging_span {
    ($operation:literal, $kind:literal, $system:expr, $($fields:tt)*) => {
        tracing::info_span!(
            $operation,
            { OTEL_KIND } = $kind,
            { MESSAGING_SYSTEM } = $system,
            { MESSAGING_OPERATION_NAME } = $operation,
            $($fields)*
        )
    };
}

/// Creates the span of one publish.
pub(crate) fn publish_span(system: &str, event: &Event) -> Span {
    messaging_span!(
        "publish",
        "producer",
        system,
        { MESSAGING_OPERATION_TYPE } = "send",
        { MESSAGING_DESTINATION_NAME } = event.subject,
        { MESSAGING_MESSAGE_ID } = event.id,
        { ERROR_TYPE } = Empty,
        { OTEL_STATUS_CODE } = Empty,
    )
}

/// Creates the span of a batch of publishes.
pub(crate) fn batch_span(system: &str, events: usize) -> Span {
    messaging_span!(
        "publish",
        "producer",
        system,
        { MESSAGING_OPERATION_TYPE } = "send",
        { MESSAGING_BATCH_MESSAGE_COUNT } = events,
    )
}

/// Creates the span of opening a subscription.
pub(crate) fn subscribe_span(system: &str, group: &str, filter: &str) -> Span {
    messaging_span!(
        "subscribe",
        "client",
        system,
        { MESSAGING_DESTINATION_NAME } = filter,
        { MESSAGING_CONSUMER_GROUP_NAME } = group,
    )
}

/// Creates the span to process a delivery in: `system` is the provider's name, `group` the subscriber's.
///
/// Its fields `traceparent` and `tracestate` hold the event's trace context. With the feature `otel`, it is the child
/// of the operation that published the event or, if another span is current, linked to it.
///
/// ```
/// use a3s_event::{Event, EventProvider, MemoryProvider, trace::process_span};
/// use tracing::Instrument;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> a3s_event::Result<()> {
/// let provider = MemoryProvider::default();
/// let mut subscription = provider.subscribe("events.>").await?;
/// provider.publish(&Event::new("events.a", "a", "", "doc", serde_json::json!(1))).await?;
/// if let Some(delivery) = subscription.next_delivery().await? {
///     let span = process_span(provider.name(), "analyst", &delivery);
///     async { tracing::info!("working on it") }.instrument(span).await;
///     delivery.ack().await?;
/// }
/// # Ok(())
/// # }
/// ```
pub fn process_span(system: &str, group: &str, delivery: &Delivery) -> Span {
    let event = delivery.event();
    let span = messaging_span!(
        "process",
        "consumer",
        system,
        { MESSAGING_OPERATION_TYPE } = "process",
        { MESSAGING_DESTINATION_NAME } = event.subject,
        { MESSAGING_MESSAGE_ID } = event.id,
        { MESSAGING_CONSUMER_GROUP_NAME } = group,
        sequence = delivery.sequence(),
        num_delivered = delivery.num_delivered(),
        { TRACEPARENT } = Empty,
        { TRACESTATE } = Empty,
        { ERROR_TYPE } = Empty,
        { OTEL_STATUS_CODE } = Empty,
    );
    if !span.is_disabled()
        && let Some(context) = TraceContext::of(event)
    {
        span.record(TRACEPARENT, context.traceparent());
        if !context.tracestate().is_empty() {
            span.record(TRACESTATE, context.tracestate());
        }
        #[cfg(feature = "otel")]
        otel::join(&span, &context);
    }
    span
}

/// Records in a span of this module that its work failed.
pub fn record_error(span: &Span, error: &EventError) {
    if !span.is_disabled() {
        span.record(ERROR_TYPE, error.kind().to_string());
        span.record(OTEL_STATUS_CODE, "ERROR");
    }
}

#[cfg(test)]
mod tests;
