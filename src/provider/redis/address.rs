//! Addresses of servers.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;

use crate::error::{EventError, Result};
use crate::provider::support::shorten;

const RULE: &str = "must be host[:port], with [ and ] around an IPv6 address";

/// Address of a server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Address {
    /// A host name, or an IP address without brackets, and a port.
    Tcp { host: String, port: u16 },
    /// Path of a Unix socket.
    Unix(PathBuf),
}

/// Parses `host[:port]`, or several separated by commas.
pub(super) fn parse_all(servers: &str, default_port: u16) -> Result<Vec<Address>> {
    if servers.contains('@') {
        // Part of the text may be a password.
        return Err(EventError::Config(
            "servers: must have no credentials; set them with user_and_password, or once in the URL"
                .to_owned(),
        ));
    }
    servers.split(',').map(|server| parse(server.trim(), default_port)).collect()
}

fn parse(server: &str, default_port: u16) -> Result<Address> {
    let split = match server.strip_prefix('[') {
        Some(rest) => rest.split_once(']').filter(|(host, _)| host.parse::<Ipv6Addr>().is_ok()).and_then(
            |(host, rest)| {
                if rest.is_empty() { Some((host, None)) } else { Some((host, Some(rest.strip_prefix(':')?))) }
            },
        ),
        None => match server.split_once(':') {
            Some((host, port)) => is_host(host).then_some((host, Some(port))),
            None => is_host(server).then_some((server, None)),
        },
    };
    let port = |port: Option<&str>| match port {
        None => Some(default_port),
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            port.parse().ok().filter(|port| *port > 0)
        }
        Some(_) => None,
    };
    match split.and_then(|(host, text)| Some((host, port(text)?))) {
        Some((host, port)) => Ok(Address::Tcp { host: host.to_owned(), port }),
        None => Err(EventError::Config(format!("servers \"{}\": {RULE}", shorten(server)))),
    }
}

fn is_host(host: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
    !host.is_empty() && host.chars().all(is_part)
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(servers: &str) -> Vec<String> {
        parse_all(servers, 6_379).unwrap().iter().map(Address::to_string).collect()
    }

    #[test]
    fn hosts_have_a_default_port_and_ipv6_has_brackets() {
        assert_eq!(parsed("one"), ["one:6379"]);
        assert_eq!(
            parsed("one:1, 10.0.0.1:2,[::1],[fe80::1]:65535"),
            ["one:1", "10.0.0.1:2", "[::1]:6379", "[fe80::1]:65535"]
        );
        assert_eq!(parse_all("[::1]", 1).unwrap(), [Address::Tcp { host: "::1".to_owned(), port: 1 }]);
        assert_eq!(Address::Unix("/run/redis.sock".into()).to_string(), "/run/redis.sock");
    }

    #[test]
    fn a_wrong_address_is_refused_with_the_rule() {
        for server in [
            "",
            ":1",
            "one:",
            "one:0",
            "one:65536",
            "one:+1",
            "one:two",
            "::1",
            "[::1",
            "[::1]1",
            "[one]",
            "[]:1",
            "a b",
            "a/b",
            "one,",
            "redis://one",
        ] {
            let error = parse_all(server, 6_379).unwrap_err().to_string();
            assert!(error.contains("servers \"") && error.contains(RULE), "{server}: {error}");
        }
        let error = parse_all("alice:canary@one", 6_379).unwrap_err().to_string();
        assert!(error.contains("no credentials") && !error.contains("canary"), "{error}");
    }
}
