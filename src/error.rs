//! Errors: their class, whether a retry can help, and whether a publish may have been stored.
//!
#![doc = include_str!("docs/links.txt")]
#![doc = ""]
#![doc = include_str!("docs/errors.md")]

use std::fmt;

/// Result of every fallible call of this crate.
pub type Result<T> = std::result::Result<T, EventError>;

/// An error of this crate.
///
/// Match on [`kind`](EventError::kind) rather than on variants. Use [`is_retryable`](EventError::is_retryable) to
/// decide about a retry: the provider that met the error has classified it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EventError {
    /// No connection to the backend.
    #[error("Connection error: {0}")]
    Connection(String),
    /// A failure of the backend. The variant is named after the first provider.
    #[error("Provider error: {0}")]
    JetStream(String),
    /// The backend refused an event.
    #[error("Failed to publish event to subject '{subject}': {reason}")]
    Publish {
        /// Subject of the event.
        subject: String,
        /// Reason of the failure.
        reason: String,
    },
    /// The backend refused a subscription.
    #[error("Failed to subscribe to subject '{subject}': {reason}")]
    Subscribe {
        /// Filter of the subscription.
        subject: String,
        /// Reason of the failure.
        reason: String,
    },
    /// JSON could not be serialized or deserialized.
    #[error("Serialization error: {0}")]
    Serialization(#[from] serde_json::Error),
    /// The requested resource does not exist.
    #[error("Not found: {0}")]
    NotFound(String),
    /// A setting is invalid.
    #[error("Configuration error: {0}")]
    Config(String),
    /// The stream could not be created, read or changed.
    #[error("Stream error: {0}")]
    Stream(String),
    /// The consumer could not be created, read or changed.
    #[error("Consumer error: {0}")]
    Consumer(String),
    /// A delivery could not be settled, for instance because its event was redelivered.
    #[error("Failed to acknowledge message: {0}")]
    Ack(String),
    /// No answer arrived within the timeout.
    #[error("Operation timed out: {0}")]
    Timeout(String),
    /// A failure of the provider.
    #[error("Provider error: {0}")]
    Provider(String),
    /// The payload violates its schema.
    #[error("Schema validation failed for event type '{event_type}' v{version}: {reason}")]
    SchemaValidation {
        /// Type of the event.
        event_type: String,
        /// Version of the schema.
        version: u32,
        /// Reason of the failure.
        reason: String,
    },
    /// A sink failed to accept the event.
    #[error("Sink delivery failed for '{sink}': {reason}")]
    SinkDelivery {
        /// Name of the sink.
        sink: String,
        /// Reason of the failure.
        reason: String,
    },
    /// An event could not be routed.
    #[error("Broker routing error: {0}")]
    BrokerRouting(String),
    /// A CloudEvent could not be converted.
    #[error("CloudEvent conversion error: {0}")]
    CloudEventConversion(String),
    /// An event source failed.
    #[error("Event source error: {0}")]
    Source(String),

    /// The provider declares that it does not support the option or operation. Nothing was sent.
    #[error("{option} is not supported by provider '{provider}'")]
    Unsupported {
        /// Name of the option or operation in the API.
        option: String,
        /// Name of the provider.
        provider: String,
    },
    /// The subscription, the consumer or the provider is closed. This error is terminal.
    #[error("closed: {0}")]
    Closed(String),
    /// An existing resource differs from the requested one and was left unchanged.
    #[error("conflict on {resource}: {field} is {existing}, requested {requested}")]
    Conflict {
        /// Resource in conflict, for instance `consumer 'analyst'`.
        resource: String,
        /// Name of the field that differs.
        field: String,
        /// Value in force.
        existing: String,
        /// Requested value.
        requested: String,
    },
    /// A subject or a filter breaks the grammar. Nothing was sent.
    #[error("invalid {field} \"{value}\": {rule}")]
    InvalidSubject {
        /// `subject`, `filter`, `category` or `prefix`.
        field: &'static str,
        /// The value, shortened, with control characters escaped.
        value: String,
        /// Rule that the value breaks.
        rule: String,
    },
    /// A name breaks a rule. Nothing was sent.
    #[error("invalid {field} \"{value}\": {rule}")]
    InvalidName {
        /// Name of the field, for instance `consumer_name`.
        field: &'static str,
        /// The value, shortened, with control characters escaped.
        value: String,
        /// Rule that the value breaks.
        rule: String,
    },
    /// An event contains a value that cannot be stored. Nothing was sent.
    #[error("invalid event {field} \"{value}\": {rule}")]
    InvalidEvent {
        /// Name of the event's field.
        field: &'static str,
        /// The value, shortened, with control characters escaped.
        value: String,
        /// Rule that the value breaks.
        rule: String,
    },
    /// The event is larger than the provider accepts. Nothing was sent.
    #[error("{what} of {actual} bytes is over the limit of {limit} bytes")]
    TooLarge {
        /// Measured part: `event` (its JSON), `event with its headers` (if the server counts headers) or `metadata`.
        what: &'static str,
        /// Size in bytes.
        actual: usize,
        /// Limit in bytes.
        limit: usize,
    },
    /// Retention dropped events before this consumer received them. This error is not terminal: the next call continues
    /// after the gap.
    #[error("consumer '{consumer}' missed {missed} events that retention dropped before delivery")]
    Lagged {
        /// Name of the consumer. The provider generates the name of an ephemeral consumer.
        consumer: String,
        /// Number of matching events that were dropped undelivered or unsettled.
        missed: u64,
    },
    /// A stored record is not an event, or was damaged. It surfaces once and is settled. This error is not terminal.
    #[error("stored record {sequence} cannot be decoded: {reason}")]
    Undecodable {
        /// Sequence of the record.
        sequence: u64,
        /// The record as stored.
        raw: Vec<u8>,
        /// Reason why the record cannot be decoded.
        reason: String,
    },
    /// The payload of an event could not be encrypted or decrypted.
    #[error("{}{failure}", named_key(key_id, *failure))]
    Encryption {
        /// Id of the key that the envelope names or that was to encrypt, shortened. Empty if the envelope names none.
        key_id: String,
        /// Cause of the failure.
        failure: EncryptionFailure,
    },
    /// A failure of the backend, classified by its provider. The cause is the error's source.
    #[error(transparent)]
    Backend(Box<BackendError>),
}

/// Reason why a payload could not be encrypted or decrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncryptionFailure {
    /// No key has the id that the envelope names.
    #[error("no key has this id")]
    UnknownKey,
    /// The payload is an envelope, and no encryptor is set that takes it.
    #[error("no encryptor is set for this envelope; set one with EventBus::set_encryptor")]
    NoEncryptor,
    /// The key exists and is disabled.
    #[error("is disabled")]
    KeyDisabled,
    /// The key has encrypted as many payloads as random nonces allow.
    #[error("has encrypted 2^32 - 1 payloads, the limit of random nonces; promote another key")]
    KeyExhausted,
    /// The payload is not an envelope: a field is absent or has the wrong type.
    #[error("not an encrypted payload: its field '{0}' is absent or of the wrong type")]
    NotAnEnvelope(&'static str),
    /// The version of the envelope is unknown to this library.
    #[error("the version of the envelope is not supported")]
    UnknownVersion,
    /// The envelope names an algorithm other than the one of its version.
    #[error("the algorithm of the envelope is not supported")]
    UnknownAlgorithm,
    /// The nonce or the ciphertext is not standard base64.
    #[error("the {0} is not base64")]
    NotBase64(&'static str),
    /// The length of the nonce is not 96 bits.
    #[error("the nonce is not 96 bits long")]
    NonceLength,
    /// The envelope was changed, moved to another event, or encrypted with another key under the same id.
    #[error("the envelope cannot be decrypted: it was changed, moved, or encrypted with another key")]
    Authentication,
    /// The envelope is bound to an event, and the call tried to decrypt it without the event.
    #[error("the envelope is bound to its event: decrypt it with decrypt_event")]
    Bound,
    /// The envelope is not bound to an event, and unbound envelopes are refused.
    #[error("the envelope is not bound to its event, and unbound envelopes are refused")]
    Unbound,
    /// The decrypted payload is not JSON, or nested deeper than 128 levels.
    #[error("the decrypted payload is not JSON")]
    NotJson,
    /// The payload is too large for the algorithm.
    #[error("cannot encrypt: the payload is too large")]
    TooLarge,
    /// The operating system has no random numbers.
    #[error("cannot encrypt: the operating system has no random numbers")]
    NoRandomness,
}

/// A classified failure of a backend. Build it with [`BackendError::new`].
#[derive(Debug)]
#[non_exhaustive]
pub struct BackendError {
    /// Name of the provider.
    pub provider: String,
    /// Failed operation, for instance `publish`.
    pub operation: &'static str,
    /// Class of the failure.
    pub kind: ErrorKind,
    /// If true, a retry can help.
    pub retryable: bool,
    /// If true, the failed publish may have been stored.
    pub may_be_stored: bool,
    /// Cause of the failure.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl BackendError {
    /// Creates a failure that no retry can fix and that certainly stored nothing.
    pub fn new(
        provider: impl Into<String>,
        operation: &'static str,
        kind: ErrorKind,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            provider: provider.into(),
            operation,
            kind,
            retryable: false,
            may_be_stored: false,
            source: source.into(),
        }
    }

    /// Marks the failure as one that a retry can fix.
    #[must_use]
    pub fn retryable(mut self) -> Self {
        self.retryable = true;
        self
    }

    /// Marks the outcome as unknown: the request was sent and no answer arrived.
    #[must_use]
    pub fn may_be_stored(mut self) -> Self {
        self.may_be_stored = true;
        self
    }
}

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed on provider '{}' ({})", self.operation, self.provider, self.kind)
    }
}

impl std::error::Error for BackendError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.source)
    }
}

impl From<BackendError> for EventError {
    fn from(error: BackendError) -> Self {
        Self::Backend(Box::new(error))
    }
}

/// Class of an [`EventError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No connection to the backend.
    Connection,
    /// No answer arrived within the timeout.
    Timeout,
    /// The backend rejected the credentials or the permissions of this client.
    Unauthorized,
    /// A subject, name, event or size breaks a rule.
    InvalidInput,
    /// A setting is invalid.
    Config,
    /// The provider does not support the option or operation.
    Unsupported,
    /// An existing resource differs from the requested one.
    Conflict,
    /// The requested resource does not exist.
    NotFound,
    /// The subscription, the consumer or the provider is closed.
    Closed,
    /// Retention dropped events before delivery.
    Lagged,
    /// A stored record is not an event.
    Undecodable,
    /// A settlement did not take effect.
    Ack,
    /// A payload violates its schema.
    Schema,
    /// A payload could not be encrypted or decrypted.
    Encryption,
    /// The storage is full or failing.
    Storage,
    /// A sink, a source or routing failed.
    Routing,
    /// JSON could not be serialized or deserialized.
    Serialization,
    /// Another failure of the backend.
    Backend,
}

/// Writes an identifier of the class, for a metric's label or the `error.type` of a span.
impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connection => "connection",
            Self::Timeout => "timeout",
            Self::Unauthorized => "unauthorized",
            Self::InvalidInput => "invalid_input",
            Self::Config => "configuration",
            Self::Unsupported => "unsupported",
            Self::Conflict => "conflict",
            Self::NotFound => "not_found",
            Self::Closed => "closed",
            Self::Lagged => "lagged",
            Self::Undecodable => "undecodable",
            Self::Ack => "acknowledgement",
            Self::Schema => "schema",
            Self::Encryption => "encryption",
            Self::Storage => "storage",
            Self::Routing => "routing",
            Self::Serialization => "serialization",
            Self::Backend => "backend",
        })
    }
}

impl EventError {
    /// Returns the class of the error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Connection(_) => ErrorKind::Connection,
            Self::Timeout(_) => ErrorKind::Timeout,
            Self::Config(_) => ErrorKind::Config,
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::Ack(_) => ErrorKind::Ack,
            Self::Serialization(_) => ErrorKind::Serialization,
            Self::SchemaValidation { .. } => ErrorKind::Schema,
            Self::SinkDelivery { .. } | Self::BrokerRouting(_) | Self::Source(_) => ErrorKind::Routing,
            Self::CloudEventConversion(_)
            | Self::InvalidSubject { .. }
            | Self::InvalidName { .. }
            | Self::InvalidEvent { .. }
            | Self::TooLarge { .. } => ErrorKind::InvalidInput,
            Self::JetStream(_)
            | Self::Publish { .. }
            | Self::Subscribe { .. }
            | Self::Stream(_)
            | Self::Consumer(_)
            | Self::Provider(_) => ErrorKind::Backend,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::Closed(_) => ErrorKind::Closed,
            Self::Conflict { .. } => ErrorKind::Conflict,
            Self::Lagged { .. } => ErrorKind::Lagged,
            Self::Undecodable { .. } => ErrorKind::Undecodable,
            Self::Encryption { .. } => ErrorKind::Encryption,
            Self::Backend(error) => error.kind,
        }
    }

    /// Returns true if the same call can succeed later without a change by the caller.
    ///
    /// Publishing again with the `msg_id` of the first try is safe, even if
    /// [`may_be_stored`](EventError::may_be_stored) is true.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Connection(_) | Self::Timeout(_) | Self::SinkDelivery { .. } => true,
            Self::Backend(error) => error.retryable,
            _ => false,
        }
    }

    /// Returns true if the subscription or provider is closed. This is terminal.
    pub fn is_closed(&self) -> bool {
        self.kind() == ErrorKind::Closed
    }

    /// Returns true if a publish that failed with this error may have been stored: it may have been sent, and its
    /// outcome is unknown.
    ///
    /// False means that the event was *certainly not stored*.
    pub fn may_be_stored(&self) -> bool {
        match self {
            Self::Timeout(_)
            | Self::Connection(_)
            | Self::JetStream(_)
            | Self::Publish { .. }
            | Self::Provider(_)
            | Self::Stream(_) => true,
            Self::Backend(error) => error.may_be_stored,
            _ => false,
        }
    }
}

/// Returns the prefix of a failure's message: the key, unless there is no envelope to name one.
fn named_key(key_id: &str, failure: EncryptionFailure) -> String {
    match failure {
        EncryptionFailure::NotAnEnvelope(_) => String::new(),
        _ => format!("encryption key '{key_id}': "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variants_of_0_3_0_keep_their_texts() {
        let json_error = serde_json::from_str::<u8>("x").unwrap_err();
        let json_text = json_error.to_string();
        for (error, text) in [
            (EventError::Connection("x".into()), "Connection error: x".to_owned()),
            (EventError::JetStream("x".into()), "Provider error: x".to_owned()),
            (
                EventError::Publish { subject: "s".into(), reason: "r".into() },
                "Failed to publish event to subject 's': r".to_owned(),
            ),
            (
                EventError::Subscribe { subject: "s".into(), reason: "r".into() },
                "Failed to subscribe to subject 's': r".to_owned(),
            ),
            (EventError::Serialization(json_error), format!("Serialization error: {json_text}")),
            (EventError::NotFound("x".into()), "Not found: x".to_owned()),
            (EventError::Config("x".into()), "Configuration error: x".to_owned()),
            (EventError::Stream("x".into()), "Stream error: x".to_owned()),
            (EventError::Consumer("x".into()), "Consumer error: x".to_owned()),
            (EventError::Ack("x".into()), "Failed to acknowledge message: x".to_owned()),
            (EventError::Timeout("x".into()), "Operation timed out: x".to_owned()),
            (EventError::Provider("x".into()), "Provider error: x".to_owned()),
            (
                EventError::SchemaValidation { event_type: "t".into(), version: 2, reason: "r".into() },
                "Schema validation failed for event type 't' v2: r".to_owned(),
            ),
            (
                EventError::SinkDelivery { sink: "s".into(), reason: "r".into() },
                "Sink delivery failed for 's': r".to_owned(),
            ),
            (EventError::BrokerRouting("x".into()), "Broker routing error: x".to_owned()),
            (EventError::CloudEventConversion("x".into()), "CloudEvent conversion error: x".to_owned()),
            (EventError::Source("x".into()), "Event source error: x".to_owned()),
        ] {
            assert_eq!(error.to_string(), text);
        }
    }

    #[test]
    fn a_backend_error_keeps_its_cause_and_does_not_repeat_it() {
        let cause = std::io::Error::other("disk on fire");
        let error: EventError = BackendError::new("sqlite", "publish", ErrorKind::Storage, cause)
            .retryable()
            .may_be_stored()
            .into();
        assert_eq!(error.to_string(), "publish failed on provider 'sqlite' (storage)");
        assert!(error.is_retryable() && error.may_be_stored() && !error.is_closed());
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "disk on fire");
    }

    #[test]
    fn a_timeout_leaves_the_outcome_unknown_and_the_rest_does_not() {
        assert!(EventError::Timeout("t".into()).may_be_stored());
        assert!(EventError::Connection("c".into()).may_be_stored(), "nobody knows when it broke");
        assert!(!EventError::NotFound("n".into()).may_be_stored());
        assert!(EventError::Closed("c".into()).is_closed());
    }
}
