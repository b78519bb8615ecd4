//! Classifies the errors of the server and its client.

use std::time::Duration;

use async_nats::RequestErrorKind;
use async_nats::jetstream::{self, ErrorCode};

use crate::error::{BackendError, ErrorKind, EventError};

pub(super) const PROVIDER: &str = "nats";

/// Returns the error of a request without an answer in time. The server may have carried it out.
pub(super) fn timeout(operation: &str, deadline: Duration) -> EventError {
    EventError::Timeout(format!("{operation}: nats-server did not answer within {} s", deadline.as_secs()))
}

/// Converts the failure of a request that JetStream did not answer.
pub(super) fn unanswered(
    operation: &'static str,
    error: async_nats::RequestError,
    deadline: Duration,
) -> EventError {
    match error.kind() {
        RequestErrorKind::TimedOut => timeout(operation, deadline),
        // The server reports at once that there is no responder, so nothing was stored.
        RequestErrorKind::NoResponders => {
            let reason = match operation {
                "publish" => "no stream stores the subject, or JetStream does not answer",
                _ => "JetStream does not answer: it is not enabled (nats-server -js), or not ready yet",
            };
            BackendError::new(PROVIDER, operation, ErrorKind::NotFound, reason).retryable().into()
        }
        RequestErrorKind::InvalidSubject | RequestErrorKind::MaxPayloadExceeded => {
            BackendError::new(PROVIDER, operation, ErrorKind::InvalidInput, error).into()
        }
        // The connection ended, before or after the request was sent.
        RequestErrorKind::Other => BackendError::new(PROVIDER, operation, ErrorKind::Connection, error)
            .retryable()
            .may_be_stored()
            .into(),
    }
}

/// Converts an error that JetStream answered. The request was certainly not carried out.
pub(super) fn refused(operation: &'static str, error: jetstream::Error) -> EventError {
    let kind = match error.error_code() {
        ErrorCode::STREAM_NOT_FOUND | ErrorCode::CONSUMER_NOT_FOUND | ErrorCode::NO_MESSAGE_FOUND => {
            ErrorKind::NotFound
        }
        ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | ErrorCode::MEMORY_RESOURCES_EXCEEDED
        | ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::STREAM_STORE_FAILED => ErrorKind::Storage,
        ErrorCode::STREAM_SUBJECT_OVERLAP => ErrorKind::Conflict,
        ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
            ErrorKind::Unsupported
        }
        _ => ErrorKind::Backend,
    };
    if kind == ErrorKind::Unsupported {
        let reason = format!("{error}: start nats-server with -js, and enable JetStream for the account");
        return BackendError::new(PROVIDER, operation, kind, reason).into();
    }
    // 503 marks temporary conditions: no leader yet, or storage that is catching up.
    let passes = error.code() == 503;
    let failure = BackendError::new(PROVIDER, operation, kind, error);
    if passes { failure.retryable().into() } else { failure.into() }
}

/// Returns the error of a client whose connection task has ended. The next call creates another client.
pub(super) fn connection_ended() -> EventError {
    EventError::Connection("the connection to nats-server has ended".to_owned())
}

/// Returns the error of a publish to a subject that the server does not permit.
pub(super) fn denied(operation: &'static str) -> EventError {
    let reason = "nats-server denies permission to publish to this subject";
    BackendError::new(PROVIDER, operation, ErrorKind::Unauthorized, reason).into()
}

/// Converts the failure of a first connection.
pub(super) fn not_connected(error: async_nats::ConnectError) -> EventError {
    use async_nats::ConnectErrorKind as Kind;
    match error.kind() {
        Kind::Authentication | Kind::AuthorizationViolation => {
            BackendError::new(PROVIDER, "connect", ErrorKind::Unauthorized, error).into()
        }
        Kind::ServerParse => EventError::Config("url: is not the URL of a NATS server".to_owned()),
        _ => EventError::Connection(format!("nats-server cannot be reached: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(code: u64, err_code: u64) -> EventError {
        let json = serde_json::json!({"code": code, "err_code": err_code, "description": "d"});
        refused("publish", serde_json::from_value(json).unwrap())
    }

    #[test]
    fn refusals_are_certain_and_classified() {
        for (code, err_code, kind, retryable) in [
            (404, 10059, ErrorKind::NotFound, false),
            (503, 10077, ErrorKind::Storage, true),
            (503, 10008, ErrorKind::Backend, true),
            (503, 10076, ErrorKind::Unsupported, false),
            (400, 10065, ErrorKind::Conflict, false),
            (400, 10052, ErrorKind::Backend, false),
        ] {
            let error = refusal(code, err_code);
            assert_eq!((error.kind(), error.is_retryable(), error.may_be_stored()), (kind, retryable, false));
        }
    }

    #[test]
    fn a_timeout_may_be_stored() {
        assert!(timeout("publish", Duration::from_secs(1)).may_be_stored());
    }
}
