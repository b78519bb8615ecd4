//! Classifies the errors of the server and of the connection to it.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{BackendError, ErrorKind, EventError};
use crate::provider::support::closed;

pub(super) const PROVIDER: &str = "redis";

/// Maximum length of an error that the server answered, in characters.
const MAX_TEXT: usize = 300;

/// A cause that many callers can get.
pub(super) type Shared = Arc<dyn Error + Send + Sync>;

/// A failure of a call. All callers that waited for the call can get it.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    /// The server, or the servers, without credentials.
    server: Arc<str>,
    cause: Cause,
}

/// Reason of a failure. Whether a publish may be stored follows from it.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Cause {
    /// The server answered with an error.
    #[error(transparent)]
    Refused(Refusal),
    /// A key of the stream holds a value of another type.
    #[error("the key {key:?} holds a {found} instead of a {expected}")]
    ForeignKey { key: String, found: String, expected: &'static str },
    /// The request was sent, and no answer arrived in time.
    #[error("no answer arrived within {0:?}")]
    Late(Duration),
    /// The request was sent, and the connection ended before the answer.
    #[error("the connection ended before the answer arrived")]
    Lost(#[source] Shared),
    /// The write was carried out, and too few copies of it were confirmed in time.
    #[error("the write was not confirmed in time: {0}")]
    Unconfirmed(String),
    /// Nothing was sent, because there is no connection.
    #[error("there is no connection")]
    NotConnected(#[source] Option<Box<Self>>),
    /// Connecting failed.
    #[error("cannot be reached{advice}")]
    Unreachable {
        source: Shared,
        /// Empty, or what helps.
        advice: &'static str,
        retryable: bool,
    },
    /// The server is a replica.
    #[error("it is a replica{0}")]
    Replica(String),
    /// None of several servers can be used, for these reasons.
    #[error("none of them can be used: {0}")]
    NoneUsable(String),
    /// Another server was promoted, and only the one before could carry out the call. Nothing was sent.
    #[error("another server was promoted to primary")]
    Promoted,
    /// A setting is wrong, or the server cannot keep the promises of the provider.
    #[error("{0}")]
    Unusable(String),
    /// The provider was closed.
    #[error("the provider was closed")]
    Closed,
}

/// A server, in front of what failed there.
#[derive(Debug, thiserror::Error)]
#[error("the server at {server}{advice}")]
struct AtServer {
    server: Arc<str>,
    advice: &'static str,
    source: Cause,
}

impl Failure {
    pub(super) fn new(server: impl fmt::Display, cause: Cause) -> Self {
        Self { server: server.to_string().into(), cause }
    }

    pub(super) fn closed() -> Self {
        Self::new("", Cause::Closed)
    }

    /// Returns the failure of a call that waited for a connection in vain, given the last failure to connect.
    pub(super) fn not_connected(server: &str, last: Option<Self>) -> Self {
        match last {
            Some(last) if last.is_fatal() => last,
            last => Self::new(server, Cause::NotConnected(last.map(|failure| Box::new(failure.cause)))),
        }
    }

    /// Returns true if waiting for a connection is in vain until credentials, settings or the server were changed.
    pub(super) fn is_fatal(&self) -> bool {
        match &self.cause {
            Cause::Refused(refusal) => refusal.class().kind == ErrorKind::Unauthorized,
            Cause::Unusable(_) | Cause::Closed => true,
            _ => false,
        }
    }

    pub(super) fn cause(&self) -> &Cause {
        &self.cause
    }

    /// Returns the server with the reason, for a list of failures.
    pub(super) fn summary(&self) -> String {
        let cause: &(dyn Error + 'static) = &self.cause;
        let causes = std::iter::successors(Some(cause), |&cause| cause.source());
        let texts: Vec<_> = causes.map(ToString::to_string).collect();
        format!("{}: {}", self.server, texts.join(": "))
    }

    pub(super) fn to_error(&self, operation: &'static str) -> EventError {
        let server = &self.server;
        let (kind, retryable, may_be_stored) = match &self.cause {
            Cause::Closed => return closed(PROVIDER),
            Cause::Unusable(reason) => {
                return EventError::Config(format!("the server at {server}: {reason}"));
            }
            Cause::Late(limit) => {
                let text = format!("{operation}: the server at {server} did not answer within {limit:?}");
                return EventError::Timeout(text);
            }
            Cause::ForeignKey { key, found, expected } => {
                return EventError::Conflict {
                    resource: format!("key {key:?} of the server at {server}"),
                    field: "type".to_owned(),
                    existing: found.clone(),
                    requested: (*expected).to_owned(),
                };
            }
            Cause::Refused(refusal) => {
                let class = refusal.class();
                (class.kind, class.retryable, refusal.is_of_a_running_script())
            }
            Cause::Lost(_) => (ErrorKind::Connection, true, true),
            Cause::Unconfirmed(_) => (ErrorKind::Storage, true, true),
            Cause::NotConnected(_) | Cause::Replica(_) | Cause::NoneUsable(_) => {
                (ErrorKind::Connection, true, false)
            }
            Cause::Promoted => (ErrorKind::Backend, true, false),
            Cause::Unreachable { retryable, .. } => (ErrorKind::Connection, *retryable, false),
        };
        let advice = match kind {
            ErrorKind::Unauthorized => {
                " refuses the credentials or lacks a permission; a retry helps only after they were corrected"
            }
            _ => "",
        };
        let source = AtServer { server: Arc::clone(server), advice, source: self.cause.clone() };
        let mut error = BackendError::new(PROVIDER, operation, kind, source);
        (error.retryable, error.may_be_stored) = (retryable, may_be_stored);
        error.into()
    }
}

/// An error that the server answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code} {text}")]
pub(super) struct Refusal {
    code: String,
    text: String,
}

/// Class of an error that the server answered.
struct Class {
    kind: ErrorKind,
    retryable: bool,
}

impl Refusal {
    pub(super) fn new(code: &str, text: &str) -> Self {
        // Behind these words the server repeats a command that it does not know: passwords, events.
        let text = text.split(", with args beginning with").next().unwrap_or_default();
        Self { code: printable(code), text: printable(text) }
    }

    pub(super) fn of(error: &redis::ServerError) -> Self {
        Self::new(error.code(), error.details().unwrap_or_default())
    }

    pub(super) fn code(&self) -> &str {
        &self.code
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Does the same as [`new`](Self::new), without this secret if the server repeated it.
    pub(super) fn hiding(secret: Option<&str>, code: &str, text: &str) -> Self {
        match secret.filter(|secret| !secret.is_empty()) {
            Some(secret) => Self::new(code, &text.replace(secret, "***")),
            None => Self::new(code, text),
        }
    }

    /// Returns true if a script failed while it ran. Its earlier writes stay, so an event may be stored.
    fn is_of_a_running_script(&self) -> bool {
        self.text.contains("on @user_script:")
    }

    /// Returns true if the user lacks a permission that a script needs. The code says only `ERR` then.
    fn is_of_permissions(&self) -> bool {
        self.text.starts_with("ACL failure in script")
            || self.text.starts_with("The user executing the script can't")
    }

    fn class(&self) -> Class {
        let (kind, retryable) = match self.code.as_str() {
            // Full memory, too few replicas, or a disk that cannot be written.
            "OOM" | "NOREPLICAS" | "MISCONF" => (ErrorKind::Storage, true),
            "READONLY" | "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN" | "BUSY" | "MOVED" | "ASK"
            | "NOSCRIPT" => (ErrorKind::Backend, true),
            "WRONGPASS" | "NOAUTH" | "NOPERM" | "DENIED" => (ErrorKind::Unauthorized, false),
            "WRONGTYPE" => (ErrorKind::Conflict, false),
            _ if self.is_of_permissions() => (ErrorKind::Unauthorized, false),
            _ if self.text.starts_with("max number of clients") => (ErrorKind::Connection, true),
            _ => (ErrorKind::Backend, false),
        };
        Class { kind, retryable }
    }
}

/// Returns an error of the client as a cause. Its own source has the same text.
pub(super) fn cause_of(error: &redis::RedisError) -> Shared {
    let cause: Box<dyn Error + Send + Sync> = error.to_string().into();
    cause.into()
}

/// Limits a text of the server, and escapes control characters.
fn printable(text: &str) -> String {
    let mut printable = String::new();
    for c in text.trim_end().chars().take(MAX_TEXT) {
        if c.is_control() { printable.extend(c.escape_unicode()) } else { printable.push(c) }
    }
    printable
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(line: &str) -> EventError {
        let (code, text) = line.split_once(' ').unwrap_or((line, ""));
        Failure::new("127.0.0.1:6379", Cause::Refused(Refusal::new(code, text))).to_error("publish")
    }

    #[test]
    fn errors_of_the_server_are_classified() {
        const INSIDE: &str = "script: 3376dfff, on @user_script:2.";
        for (line, kind, retryable, may_be_stored) in [
            ("OOM command not allowed when used memory > 'maxmemory'.", ErrorKind::Storage, true, false),
            ("NOREPLICAS Not enough good replicas to write.", ErrorKind::Storage, true, false),
            ("MISCONF Redis is configured to save RDB snapshots", ErrorKind::Storage, true, false),
            ("READONLY You can't write against a read only replica.", ErrorKind::Backend, true, false),
            ("LOADING Redis is loading the dataset in memory", ErrorKind::Backend, true, false),
            ("TRYAGAIN Multiple keys request during rehashing of slot", ErrorKind::Backend, true, false),
            ("CLUSTERDOWN The cluster is down", ErrorKind::Backend, true, false),
            ("MASTERDOWN Link with MASTER is down", ErrorKind::Backend, true, false),
            ("BUSY Redis is busy running a script.", ErrorKind::Backend, true, false),
            ("NOSCRIPT No matching script.", ErrorKind::Backend, true, false),
            ("WRONGPASS invalid username-password pair", ErrorKind::Unauthorized, false, false),
            ("NOAUTH Authentication required.", ErrorKind::Unauthorized, false, false),
            ("NOPERM No permissions to access a key", ErrorKind::Unauthorized, false, false),
            ("ERR unknown command 'EVALSHA'", ErrorKind::Backend, false, false),
            ("ERR max number of clients reached", ErrorKind::Connection, true, false),
            ("WRONGTYPE Operation against a key", ErrorKind::Conflict, false, false),
            (&format!("ERR user_script:2: oops {INSIDE}"), ErrorKind::Backend, false, true),
            (&format!("ERR ACL failure in script: no {INSIDE}"), ErrorKind::Unauthorized, false, true),
            (
                &format!("ERR The user executing the script can't run this command {INSIDE}"),
                ErrorKind::Unauthorized,
                false,
                true,
            ),
        ] {
            let error = refused(line);
            let seen = (error.kind(), error.is_retryable(), error.may_be_stored());
            assert_eq!(seen, (kind, retryable, may_be_stored), "{line}");
        }
    }

    #[test]
    fn a_lost_answer_leaves_the_outcome_unknown_and_a_missing_connection_does_not() {
        let cause: Shared = Arc::new(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        for (cause, kind, may_be_stored) in [
            (Cause::Lost(Arc::clone(&cause)), ErrorKind::Connection, true),
            (Cause::Late(Duration::from_secs(1)), ErrorKind::Timeout, true),
            (Cause::Unconfirmed("0 of 1 replicas".to_owned()), ErrorKind::Storage, true),
            (Cause::NotConnected(None), ErrorKind::Connection, false),
            (Cause::Unreachable { source: cause, advice: "", retryable: true }, ErrorKind::Connection, false),
        ] {
            let error = Failure::new("a:1", cause).to_error("publish");
            let seen = (error.kind(), error.is_retryable(), error.may_be_stored());
            assert_eq!(seen, (kind, true, may_be_stored), "{error}");
        }
    }

    #[test]
    fn a_closed_provider_and_wrong_settings_are_final() {
        assert!(Failure::closed().to_error("publish").is_closed());
        let unusable = Failure::new("a:1", Cause::Unusable("too old".to_owned()));
        assert!(unusable.is_fatal());
        assert_eq!(unusable.to_error("connect").kind(), ErrorKind::Config);
        let denied = Failure::new("a:1", Cause::Refused(Refusal::new("WRONGPASS", "invalid")));
        assert!(
            Failure::not_connected("a:1", Some(denied)).to_error("publish").kind() == ErrorKind::Unauthorized
        );
        let down = Failure::new("a:1", Cause::Refused(Refusal::new("LOADING", "loading")));
        let error = Failure::not_connected("a:1", Some(down)).to_error("publish");
        assert!(error.is_retryable() && !error.may_be_stored());
    }

    #[test]
    fn a_foreign_key_is_named() {
        let cause = Cause::ForeignKey { key: "a3s:{S}:log".into(), found: "hash".into(), expected: "stream" };
        let error = Failure::new("a:1", cause).to_error("publish");
        let text = error.to_string();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(text.contains("a3s:{S}:log") && text.contains("hash") && text.contains("stream"), "{text}");
    }

    #[test]
    fn what_the_server_repeats_of_a_command_is_left_out() {
        let text = "unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'me' 'canary' ";
        assert_eq!(Refusal::new("ERR", text).to_string(), "ERR unknown command 'HELLO'");
        let other = Refusal::hiding(Some("canary"), "ERR", "syntax error near canary\r\n");
        assert_eq!(other.to_string(), "ERR syntax error near ***");
        assert_eq!(Refusal::new("ERR", &"x".repeat(1_000)).text().len(), MAX_TEXT);
    }
}
