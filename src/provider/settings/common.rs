//! Settings of every provider that keeps its own events: the same words and bounds mean the same.

use super::Setting;
use crate::provider::validate::SMALLEST_LIMIT;

/// Name of the stream.
pub const STREAM_NAME: Setting = Setting::text()
    .rule(|name| !name.is_empty(), "not be empty")
    .doc("name of the stream, as it appears in received events");

/// Maximum number of stored events.
pub const MAX_EVENTS: Setting =
    Setting::count("events").zero("unlimited").doc("maximum number of stored events; the oldest are dropped");

/// Maximum size of all stored events.
pub const MAX_BYTES: Setting = Setting::size("bytes of JSON")
    .least(SMALLEST_LIMIT)
    .zero("unlimited")
    .doc("maximum size of all stored events; the oldest are dropped, but never the newest");

/// How long an event is kept.
pub const MAX_AGE: Setting = Setting::duration().zero("for ever").doc("how long an event is kept");

/// Maximum size of one event.
pub const MAX_EVENT_BYTES: Setting = Setting::size("bytes of JSON")
    .least(SMALLEST_LIMIT)
    .formerly(&["max_payload"])
    .doc("maximum size of one event");

/// Maximum number of acks that a crash can take back.
pub const MAX_UNCONFIRMED_ACKS: Setting = Setting::count("acks")
    .least(1)
    .doc("maximum number of acks of one consumer that are on their way and not stored");

/// How long a `msg_id` is remembered.
pub const DEDUP_WINDOW: Setting =
    Setting::duration().zero("no deduplication").doc("how long a `msg_id` is remembered");
