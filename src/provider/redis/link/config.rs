//! The servers that a link connects to, and its settings.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::tls::TlsFiles;

/// Time without an answer after which the link asks for one, and time in which that one must arrive.
pub(in crate::provider::redis) const PATIENCE: Duration = Duration::from_secs(5);

/// Settings of a link.
#[derive(Debug, Clone)]
pub(in crate::provider::redis) struct LinkConfig {
    /// The servers to begin with, at least one. With a Sentinel, its addresses.
    pub(in crate::provider::redis) seeds: Vec<Node>,
    pub(in crate::provider::redis) sentinel: Option<Sentinel>,
    pub(in crate::provider::redis) credentials: Credentials,
    /// Present if the servers and Sentinels expect TLS.
    pub(in crate::provider::redis) tls: Option<TlsFiles>,
    pub(in crate::provider::redis) database: i64,
    /// Name of this client in the lists of the server.
    pub(in crate::provider::redis) client_name: Option<String>,
    /// Timeout of one round of attempts to connect.
    pub(in crate::provider::redis) connect_timeout: Duration,
    /// Timeout of a call.
    pub(in crate::provider::redis) timeout: Duration,
    /// Default [`PATIENCE`].
    pub(in crate::provider::redis) patience: Duration,
    /// If true, a server that evicts keys without a time to live is accepted.
    pub(in crate::provider::redis) allow_eviction: bool,
    pub(in crate::provider::redis) confirmation: Confirmation,
    /// Channel to subscribe to.
    pub(in crate::provider::redis) channel: String,
    /// A hash of the stream that exists as long as the stream. In a cluster, its slot decides which server is used.
    pub(in crate::provider::redis) key: String,
}

/// Address of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::provider::redis) enum Node {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

impl Node {
    pub(in crate::provider::redis) fn tcp(host: impl Into<String>, port: u16) -> Self {
        Self::Tcp { host: host.into(), port }
    }

    pub(super) fn host(&self) -> Option<&str> {
        match self {
            Self::Tcp { host, .. } => Some(host),
            Self::Unix(_) => None,
        }
    }

    /// Parses `host:port` as servers tell it. Without a host it is the one of the server that told it.
    pub(super) fn told(address: &str, by: &Self) -> Option<Self> {
        let (host, port) = address.rsplit_once(':')?;
        // A cluster can add the number of a second port.
        let port = port.split('@').next()?.parse().ok()?;
        Self::told_apart(host.trim_start_matches('[').trim_end_matches(']'), port, by)
    }

    /// Does the same for an address in two parts.
    pub(super) fn told_apart(host: &str, port: u16, by: &Self) -> Option<Self> {
        let host = if host.is_empty() || host == "?" { by.host()? } else { host };
        Some(Self::tcp(host, port))
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// User and password. The `Debug` output contains no password.
#[derive(Clone, Default)]
pub(in crate::provider::redis) struct Credentials {
    /// Without a user, the password is the one of the default user.
    pub(in crate::provider::redis) user: Option<String>,
    pub(in crate::provider::redis) password: Option<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let password = self.password.as_ref().map(|_| "***");
        f.debug_struct("Credentials").field("user", &self.user).field("password", &password).finish()
    }
}

/// Sentinels that know the primary.
#[derive(Debug, Clone)]
pub(in crate::provider::redis) struct Sentinel {
    /// Name of the primary.
    pub(in crate::provider::redis) name: String,
    /// Credentials of the Sentinels themselves.
    pub(in crate::provider::redis) credentials: Credentials,
}

/// The confirmation of a write that a publish waits for, besides that of the server.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::provider::redis) struct Confirmation {
    /// Number of replicas that must have received it (`WAIT`).
    pub(in crate::provider::redis) replicas: u32,
    /// If true, the server must have synced its append-only file (`WAITAOF`).
    pub(in crate::provider::redis) aof: bool,
}

impl Confirmation {
    pub(super) fn is_needed(self) -> bool {
        self.replicas > 0 || self.aof
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_servers_tell_it() {
        let by = Node::tcp("here", 1);
        for (told, expected) in [
            ("127.0.0.1:6381", Some(Node::tcp("127.0.0.1", 6_381))),
            ("::1:6381", Some(Node::tcp("::1", 6_381))),
            ("[::1]:6381", Some(Node::tcp("::1", 6_381))),
            (":6381", Some(Node::tcp("here", 6_381))),
            ("?:6381", Some(Node::tcp("here", 6_381))),
            ("a.example:6381@16381", Some(Node::tcp("a.example", 6_381))),
            ("a.example", None),
            ("a.example:x", None),
        ] {
            assert_eq!(Node::told(told, &by), expected, "{told}");
        }
        assert_eq!(Node::tcp("::1", 1).to_string(), "[::1]:1");
        assert_eq!(Node::told(":1", &Node::Unix("run/s".into())), None);
    }

    #[test]
    fn debug_shows_no_password() {
        let credentials = Credentials { user: Some("me".to_owned()), password: Some("canary".to_owned()) };
        assert!(!format!("{credentials:?}").contains("canary"));
    }
}
