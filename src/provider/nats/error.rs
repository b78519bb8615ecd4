//! Classifies the errors of the server and its client.

use std::time::Duration;

use async_nats::RequestErrorKind;
use async_nats::jetstream::{self, ErrorCode};
use async_nats::rustls;

use crate::error::{BackendError, ErrorKind, EventError};

pub(super) const PROVIDER: &str = "nats";

/// A failure at a server, in front of its cause.
#[derive(Debug, thiserror::Error)]
#[error("nats-server at {server}{advice}")]
struct AtServer<E: std::error::Error + 'static> {
    server: String,
    /// Empty, or what helps.
    advice: &'static str,
    source: E,
}

/// Returns the error of a request without an answer in time. The server may have carried it out.
pub(super) fn timeout(server: &str, operation: &str, deadline: Duration) -> EventError {
    let within = deadline.as_secs();
    EventError::Timeout(format!("{operation}: nats-server at {server} did not answer within {within} s"))
}

/// Converts the failure of a request that JetStream did not answer.
pub(super) fn unanswered(
    server: &str,
    operation: &'static str,
    error: async_nats::RequestError,
    deadline: Duration,
) -> EventError {
    match error.kind() {
        RequestErrorKind::TimedOut => timeout(server, operation, deadline),
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
        RequestErrorKind::Other => {
            let source = AtServer { server: server.to_owned(), advice: "", source: error };
            BackendError::new(PROVIDER, operation, ErrorKind::Connection, source)
                .retryable()
                .may_be_stored()
                .into()
        }
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

/// Returns the error of a call while the client is trying to reconnect.
pub(super) fn no_connection(server: &str) -> EventError {
    EventError::Connection(format!(
        "there is no connection to nats-server at {server}; a retry helps once the client has reconnected"
    ))
}

/// Returns the error of a client whose connection task has ended. The next call creates another client.
pub(super) fn connection_ended(server: &str) -> EventError {
    EventError::Connection(format!(
        "the connection to nats-server at {server} has ended; a retry opens another one"
    ))
}

/// Returns the error of a publish to a subject that the server does not permit.
pub(super) fn denied(operation: &'static str) -> EventError {
    let reason = "nats-server denies permission to publish to this subject";
    BackendError::new(PROVIDER, operation, ErrorKind::Unauthorized, reason).into()
}

/// Returns the error of a first connection that took too long.
pub(super) fn not_connected_in_time(server: &str, deadline: Duration) -> EventError {
    let within = deadline.as_secs();
    EventError::Connection(format!(
        "nats-server at {server} did not answer within {within} s; a retry helps if it is starting or overloaded"
    ))
}

const TLS_ADVICE: &str = "a retry helps only after the certificates or the TLS settings were corrected";

/// Returns true if the handshake failed. The client reports that as an error of its socket.
fn is_tls(error: &async_nats::ConnectError) -> bool {
    let is_tls = |cause: &(dyn std::error::Error + 'static)| {
        let inner = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        cause.is::<rustls::Error>() || inner.is_some_and(|inner| inner.is::<rustls::Error>())
    };
    std::iter::successors(std::error::Error::source(error), |cause| cause.source()).any(is_tls)
}

/// Converts the failure of a first connection. `server` is the URL, or the URLs, without credentials.
pub(super) fn not_connected(server: &str, error: async_nats::ConnectError) -> EventError {
    use async_nats::ConnectErrorKind as Kind;
    match error.kind() {
        Kind::Authentication | Kind::AuthorizationViolation => {
            let advice = " refuses the credentials; a retry helps only after they were corrected";
            let source = AtServer { server: server.to_owned(), advice, source: error };
            BackendError::new(PROVIDER, "connect", ErrorKind::Unauthorized, source).into()
        }
        Kind::ServerParse => EventError::Config("url: is not the URL of a NATS server".to_owned()),
        kind => {
            let advice = match kind {
                Kind::Dns => "a retry helps once the name resolves; check the URL",
                Kind::Tls => TLS_ADVICE,
                _ if is_tls(&error) => TLS_ADVICE,
                _ => "a retry helps once the server runs at this address",
            };
            EventError::Connection(format!("nats-server at {server} cannot be reached: {error}; {advice}"))
        }
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
        assert!(timeout("nats://a", "publish", Duration::from_secs(1)).may_be_stored());
    }
}
