//! Settings shared by all providers that store events themselves, with the same bounds and meanings.

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

/// Maximum age of a stored event.
pub const MAX_AGE: Setting = Setting::duration().zero("unlimited").doc("maximum age of a stored event");

/// Maximum size of one event.
pub const MAX_EVENT_BYTES: Setting = Setting::size("bytes of JSON")
    .least(SMALLEST_LIMIT)
    .formerly(&["max_payload"])
    .doc("maximum size of one event");

/// Maximum number of acks per consumer that are in flight and not yet stored. A crash can lose them.
pub const MAX_UNCONFIRMED_ACKS: Setting = Setting::count("acks")
    .least(1)
    .doc("maximum number of acks per consumer that are in flight and not yet stored");

/// Time for which a `msg_id` is remembered.
pub const DEDUP_WINDOW: Setting =
    Setting::duration().zero("no deduplication").doc("time for which a `msg_id` is remembered");

/// PEM file of the certificate authorities to trust.
pub const ROOT_CERTIFICATES: Setting =
    Setting::file().unset("the system's").doc("PEM file of the certificate authorities to trust");

/// PEM file of the client's certificate.
pub const CLIENT_CERTIFICATE: Setting =
    Setting::file().doc("PEM file of the client's certificate with its chain; needs `client_key`");

/// PEM file of the client's key.
pub const CLIENT_KEY: Setting = Setting::file()
    .secret()
    .doc("PEM file of the client's key; second argument of the method `client_certificate`");
