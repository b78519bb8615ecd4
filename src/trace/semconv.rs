//! Names of OpenTelemetry's semantic conventions for messaging that this library uses.
//!
//! The conventions for messaging have the status *Development*: a later version of this library may follow a later
//! version of them. `nats` is not among their well-known systems; it is a custom value, which they allow.

/// The provider's name, for instance `memory`.
pub const MESSAGING_SYSTEM: &str = "messaging.system";
/// The operation in the system's words: `publish`, `subscribe`, `process`.
pub const MESSAGING_OPERATION_NAME: &str = "messaging.operation.name";
/// The operation in the conventions' words: `send`, `process`.
pub const MESSAGING_OPERATION_TYPE: &str = "messaging.operation.type";
/// The subject of the event.
pub const MESSAGING_DESTINATION_NAME: &str = "messaging.destination.name";
/// The filter of the subscription.
pub const MESSAGING_DESTINATION_TEMPLATE: &str = "messaging.destination.template";
/// The event's id.
pub const MESSAGING_MESSAGE_ID: &str = "messaging.message.id";
/// The subscriber's id.
pub const MESSAGING_CONSUMER_GROUP_NAME: &str = "messaging.consumer.group.name";
/// Number of events in a batch.
pub const MESSAGING_BATCH_MESSAGE_COUNT: &str = "messaging.batch.message_count";
/// The [kind](crate::ErrorKind) of the error that ended the operation.
pub const ERROR_TYPE: &str = "error.type";

/// Histogram: duration of a publish, in seconds.
pub const MESSAGING_CLIENT_OPERATION_DURATION: &str = "messaging.client.operation.duration";
/// Counter: events published.
pub const MESSAGING_CLIENT_SENT_MESSAGES: &str = "messaging.client.sent.messages";
/// Counter: events delivered.
pub const MESSAGING_CLIENT_CONSUMED_MESSAGES: &str = "messaging.client.consumed.messages";
/// Histogram: duration of processing an event, in seconds.
pub const MESSAGING_PROCESS_DURATION: &str = "messaging.process.duration";

/// Kind of a span for the OpenTelemetry layer: `producer`, `consumer`.
pub const OTEL_KIND: &str = "otel.kind";
/// Status of a span for the OpenTelemetry layer: `ERROR`.
pub const OTEL_STATUS_CODE: &str = "otel.status_code";
