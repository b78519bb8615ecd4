//! Errors: what happened, whether trying again helps, and whether a publish may have been stored after all.
//!
#![doc = include_str!("docs/errors.md")]

use std::fmt;

/// The result of every fallible call of this crate.
pub type Result<T> = std::result::Result<T, EventError>;

/// Everything that can go wrong.
///
/// Match on [`kind`](EventError::kind) rather than on variants, and decide about a retry with
/// [`is_retryable`](EventError::is_retryable): the provider that met the error has classified it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EventError {
    /// No connection to the backend.
    #[error("Connection error: {0}")]
    Connection(String),
    /// A failure of the backend, under the name that the first provider gave it.
    #[error("Provider error: {0}")]
    JetStream(String),
    /// The backend refused an event.
    #[error("Failed to publish event to subject '{subject}': {reason}")]
    Publish {
        /// Subject of the event.
        subject: String,
        /// Why.
        reason: String,
    },
    /// The backend refused a subscription.
    #[error("Failed to subscribe to subject '{subject}': {reason}")]
    Subscribe {
        /// Filter of the subscription.
        subject: String,
        /// Why.
        reason: String,
    },
    /// JSON could not be written or read.
    #[error("Serialization error: {0}")]
    Serialization(#[from] serde_json::Error),
    /// What was asked for does not exist.
    #[error("Not found: {0}")]
    NotFound(String),
    /// A setting is wrong.
    #[error("Configuration error: {0}")]
    Config(String),
    /// The stream could not be created, read or changed.
    #[error("Stream error: {0}")]
    Stream(String),
    /// The consumer could not be created, read or changed.
    #[error("Consumer error: {0}")]
    Consumer(String),
    /// A delivery could not be settled, for instance because its lease went to another delivery.
    #[error("Failed to acknowledge message: {0}")]
    Ack(String),
    /// No answer within the deadline.
    #[error("Operation timed out: {0}")]
    Timeout(String),
    /// A failure of the provider.
    #[error("Provider error: {0}")]
    Provider(String),
    /// The payload does not follow its schema.
    #[error("Schema validation failed for event type '{event_type}' v{version}: {reason}")]
    SchemaValidation {
        /// Type of the event.
        event_type: String,
        /// Version of the schema.
        version: u32,
        /// What is wrong.
        reason: String,
    },
    /// A sink did not take the event.
    #[error("Sink delivery failed for '{sink}': {reason}")]
    SinkDelivery {
        /// Name of the sink.
        sink: String,
        /// Why.
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

    /// The provider declares that it cannot honour what was asked for. Nothing was sent.
    #[error("{option} is not supported by provider '{provider}'")]
    Unsupported {
        /// The option or operation, named as in the API.
        option: String,
        /// Name of the provider.
        provider: String,
    },
    /// The subscription, the consumer or the provider is closed. Terminal.
    #[error("closed: {0}")]
    Closed(String),
    /// What exists differs from what was asked for, and was left as it is.
    #[error("conflict on {resource}: {field} is {existing}, requested {requested}")]
    Conflict {
        /// What the conflict is about, for instance `consumer 'analyst'`.
        resource: String,
        /// The field that differs.
        field: String,
        /// The value in force.
        existing: String,
        /// The value asked for.
        requested: String,
    },
    /// A subject or a filter breaks the grammar. Nothing was sent.
    #[error("invalid {field} \"{value}\": {rule}")]
    InvalidSubject {
        /// `subject`, `filter`, `category` or `prefix`.
        field: &'static str,
        /// The value, shortened and with control characters escaped.
        value: String,
        /// The rule that it breaks.
        rule: String,
    },
    /// A name breaks the rules. Nothing was sent.
    #[error("invalid {field} \"{value}\": {rule}")]
    InvalidName {
        /// The field, for instance `consumer_name`.
        field: &'static str,
        /// The value, shortened and with control characters escaped.
        value: String,
        /// The rule that it breaks.
        rule: String,
    },
    /// An event carries a value that cannot be stored. Nothing was sent.
    #[error("invalid event {field} \"{value}\": {rule}")]
    InvalidEvent {
        /// The field of the event.
        field: &'static str,
        /// The value, shortened and with control characters escaped.
        value: String,
        /// The rule that it breaks.
        rule: String,
    },
    /// The event is larger than the provider takes. Nothing was sent.
    #[error("{what} of {actual} bytes is over the limit of {limit} bytes")]
    TooLarge {
        /// What was measured: `event` (its JSON), `event with its headers`, which count where a server has them, or `metadata`.
        what: &'static str,
        /// The size in bytes.
        actual: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// Retention dropped events before this consumer received them. Not terminal: the next call goes on behind the gap.
    #[error("consumer '{consumer}' missed {missed} events that retention dropped before delivery")]
    Lagged {
        /// Name of the consumer; for an ephemeral one a name that the provider made up.
        consumer: String,
        /// How many matching events were dropped undelivered or unsettled.
        missed: u64,
    },
    /// A stored record is not an event, or was damaged. It surfaces once and is settled. Not terminal.
    #[error("stored record {sequence} cannot be decoded: {reason}")]
    Undecodable {
        /// Sequence of the record.
        sequence: u64,
        /// The record as stored.
        raw: Vec<u8>,
        /// Why it cannot be decoded.
        reason: String,
    },
    /// The payload of an event could not be sealed or opened.
    #[error("{}{failure}", named_key(key_id, *failure))]
    Encryption {
        /// The key that the envelope names, or the one that was to seal, shortened; empty where none is named.
        key_id: String,
        /// What stood in the way.
        failure: EncryptionFailure,
    },
    /// A failure of the backend, classified by its provider; the cause is the source.
    #[error(transparent)]
    Backend(Box<BackendError>),
}

/// Why a payload could not be sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncryptionFailure {
    /// There is no key with the id that the envelope names.
    #[error("is not known")]
    UnknownKey,
    /// The key exists and is disabled.
    #[error("is disabled")]
    KeyDisabled,
    /// The key has sealed as many payloads as random nonces allow.
    #[error("has sealed 2^32 - 1 payloads, the most that random nonces allow; promote another key")]
    KeyExhausted,
    /// The payload is no envelope: a field is absent or has the wrong type.
    #[error("not an encrypted payload: its field '{0}' is absent or of the wrong type")]
    NotAnEnvelope(&'static str),
    /// The envelope is of a version that this library does not know.
    #[error("the version of the envelope is not known")]
    UnknownVersion,
    /// The envelope names another algorithm than the one of its version.
    #[error("the algorithm of the envelope is not known")]
    UnknownAlgorithm,
    /// The nonce or the ciphertext is not standard base64.
    #[error("the {0} is not base64")]
    NotBase64(&'static str),
    /// The nonce has another length than 96 bits.
    #[error("the nonce does not have 96 bits")]
    NonceLength,
    /// The envelope was changed, moved to another event, or sealed with another key under the same id.
    #[error("the envelope cannot be opened: it was changed, moved, or sealed with another key")]
    Authentication,
    /// The envelope belongs to an event, and was to be opened without it.
    #[error("the envelope is bound to its event: open it with decrypt_event")]
    Bound,
    /// The envelope is not bound to an event, and such are refused.
    #[error("the envelope is not bound to its event, and unbound envelopes are refused")]
    Unbound,
    /// What was sealed is not JSON, or nested deeper than 128 levels.
    #[error("the sealed payload is not JSON")]
    NotJson,
    /// The payload is too large for the algorithm.
    #[error("cannot seal: the payload is too large")]
    TooLarge,
    /// The operating system has no random numbers.
    #[error("cannot seal: the system has no random numbers")]
    NoRandomness,
}

/// A classified failure of a backend. Build it with [`BackendError::new`].
#[derive(Debug)]
#[non_exhaustive]
pub struct BackendError {
    /// Name of the provider.
    pub provider: String,
    /// What was being done, for instance `publish`.
    pub operation: &'static str,
    /// The class of the failure.
    pub kind: ErrorKind,
    /// Whether trying again can help.
    pub retryable: bool,
    /// Whether a publish that failed like this may have been stored.
    pub may_be_stored: bool,
    /// The cause.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl BackendError {
    /// A failure that no retry mends and that certainly stored nothing.
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

    /// Marks the failure as one that a later try can overcome.
    #[must_use]
    pub fn retryable(mut self) -> Self {
        self.retryable = true;
        self
    }

    /// Marks the outcome as unknown: the request was sent and no answer came.
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

/// The class of an [`EventError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No connection to the backend.
    Connection,
    /// No answer within the deadline.
    Timeout,
    /// The backend does not accept who we are or what we may do.
    Unauthorized,
    /// A subject, name, event or size that breaks a stated rule.
    InvalidInput,
    /// A wrong setting.
    Config,
    /// Something the provider cannot do.
    Unsupported,
    /// What exists differs from what was asked for.
    Conflict,
    /// What was asked for does not exist.
    NotFound,
    /// Closed for good.
    Closed,
    /// Events lost to retention before delivery.
    Lagged,
    /// A stored record that is not an event.
    Undecodable,
    /// A settlement that did not take effect.
    Ack,
    /// A payload against its schema.
    Schema,
    /// A payload that cannot be sealed or opened.
    Encryption,
    /// The storage is full or failing.
    Storage,
    /// A sink, source or routing failure.
    Routing,
    /// JSON that cannot be written or read.
    Serialization,
    /// Any other failure of a backend.
    Backend,
}

/// One identifier per class, fit for a metric's label or the `error.type` of a span.
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
    /// The class of the error.
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

    /// Whether the same call can succeed later without a change by the caller.
    ///
    /// Publishing again is safe with the `msg_id` of the first try, also when
    /// [`may_be_stored`](EventError::may_be_stored) is true.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Connection(_) | Self::Timeout(_) | Self::SinkDelivery { .. } => true,
            Self::Backend(error) => error.retryable,
            _ => false,
        }
    }

    /// Whether the subscription or provider has ended for good.
    pub fn is_closed(&self) -> bool {
        self.kind() == ErrorKind::Closed
    }

    /// Whether a publish that failed with this error may have been stored: it may have been sent, and no answer says what
    /// became of it.
    ///
    /// False means *certainly not stored*.
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

/// What stands before a failure: the key, unless there is no envelope that could name one.
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
    fn variants_of_before_print_as_before() {
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
