//! Names of OpenTelemetry's semantic conventions for messaging, as far as this library uses them.
//!
//! The status of the conventions for messaging is *Development*: a later version of this
//! library may follow a later version of them. `nats` is not among the conventions' well-known systems; it is a custom
//! value, as they allow.

/// The provider's name, for instance `memory`.
pub const MESSAGING_SYSTEM: &str = "messaging.system";
/// What is done, in the system's words: `publish`, `subscribe`, `process`.
pub const MESSAGING_OPERATION_NAME: &str = "messaging.operation.name";
/// What is done, in the conventions' words: `send`, `process`.
pub const MESSAGING_OPERATION_TYPE: &str = "messaging.operation.type";
/// The subject of the event.
pub const MESSAGING_DESTINATION_NAME: &str = "messaging.destination.name";
/// The filter that the event was subscribed to with.
pub const MESSAGING_DESTINATION_TEMPLATE: &str = "messaging.destination.template";
/// The event's id.
pub const MESSAGING_MESSAGE_ID: &str = "messaging.message.id";
/// The subscriber's id.
pub const MESSAGING_CONSUMER_GROUP_NAME: &str = "messaging.consumer.group.name";
/// How many events a batch has.
pub const MESSAGING_BATCH_MESSAGE_COUNT: &str = "messaging.batch.message_count";
/// The [kind](crate::ErrorKind) of the error that ended the operation.
pub const ERROR_TYPE: &str = "error.type";

/// Histogram: how long a publish took, in seconds.
pub const MESSAGING_CLIENT_OPERATION_DURATION: &str = "messaging.client.operation.duration";
/// Counter: events published.
pub const MESSAGING_CLIENT_SENT_MESSAGES: &str = "messaging.client.sent.messages";
/// Counter: events delivered.
pub const MESSAGING_CLIENT_CONSUMED_MESSAGES: &str = "messaging.client.consumed.messages";
/// Histogram: how long processing an event took, in seconds.
pub const MESSAGING_PROCESS_DURATION: &str = "messaging.process.duration";

/// Kind of a span for the OpenTelemetry layer: `producer`, `consumer`.
pub const OTEL_KIND: &str = "otel.kind";
/// Status of a span for the OpenTelemetry layer: `ERROR`.
pub const OTEL_STATUS_CODE: &str = "otel.status_code";
