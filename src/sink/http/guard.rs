//! Guard against server-side request forgery (SSRF): decides where an HTTP sink may connect to.
//!
//! The module consists of pure functions. It blocks:
//!
//! - addresses that the IANA special-purpose address registries call not globally reachable;
//! - IPv6 addresses that embed an IPv4 address;
//! - addresses and names under which clouds offer credentials.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use reqwest::Url;

use crate::error::{EventError, Result};
use crate::text::shorten;

const MAX_URL_LEN: usize = 2_048;

/// Names under which clouds and clusters offer credentials. No setting allows them.
const METADATA_NAMES: [&str; 6] = [
    "metadata",
    "metadata.google.internal",
    "metadata.goog",
    "instance-data",
    "instance-data.ec2.internal",
    "metadata.azure.internal",
];

/// Addresses of the same services.
const METADATA_V4: [Ipv4Addr; 4] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(169, 254, 170, 2),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
];
const METADATA_V6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

/// Networks that are not globally reachable: base, prefix length, reason.
const BLOCKED_V4: [(Ipv4Addr, u32, &str); 16] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8, "unspecified"),
    (Ipv4Addr::new(10, 0, 0, 0), 8, "private"),
    (Ipv4Addr::new(100, 64, 0, 0), 10, "carrier-grade NAT"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "loopback"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "link-local"),
    (Ipv4Addr::new(172, 16, 0, 0), 12, "private"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "reserved"),
    (Ipv4Addr::new(192, 0, 2, 0), 24, "documentation"),
    (Ipv4Addr::new(192, 31, 196, 0), 24, "reserved"),
    (Ipv4Addr::new(192, 88, 99, 0), 24, "6to4 relay"),
    (Ipv4Addr::new(192, 168, 0, 0), 16, "private"),
    (Ipv4Addr::new(198, 18, 0, 0), 15, "benchmarking"),
    (Ipv4Addr::new(198, 51, 100, 0), 24, "documentation"),
    (Ipv4Addr::new(203, 0, 113, 0), 24, "documentation"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "multicast"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "reserved"),
];

/// A network in the notation `10.0.0.0/8`. A single address is a network with the full prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Network {
    base: IpAddr,
    bits: u32,
}

impl Network {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let base: IpAddr = address.parse().ok()?;
        let most = if base.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Some(most), |bits| bits.parse().ok())?;
        (bits <= most).then_some(Self { base, bits })
    }

    fn contains(&self, address: IpAddr) -> bool {
        match (self.base, address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => in_v4(address, base, self.bits),
            (IpAddr::V6(base), IpAddr::V6(address)) => in_v6(address, base, self.bits),
            _ => false,
        }
    }
}

fn in_v4(address: Ipv4Addr, base: Ipv4Addr, bits: u32) -> bool {
    let differing = address.to_bits() ^ base.to_bits();
    differing.checked_shr(32 - bits).unwrap_or(0) == 0
}

fn in_v6(address: Ipv6Addr, base: Ipv6Addr, bits: u32) -> bool {
    let differing = address.to_bits() ^ base.to_bits();
    differing.checked_shr(128 - bits).unwrap_or(0) == 0
}

/// Targets that a sink may connect to in addition to public addresses.
#[derive(Debug, Clone, Default)]
pub(super) struct Allowed {
    pub(super) http: bool,
    pub(super) ports: Vec<u16>,
    pub(super) networks: Vec<Network>,
    pub(super) hosts: Vec<String>,
}

/// The reason why a target is blocked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blocked {
    pub(super) what: String,
    pub(super) why: &'static str,
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blocked: {} is {}", self.what, self.why)
    }
}

impl std::error::Error for Blocked {}

impl Allowed {
    /// Parses a URL and runs all checks that need no lookup.
    pub(super) fn check_url(&self, text: &str) -> Result<Url> {
        let refuse = |rule: String| EventError::Config(format!("sink url '{}': {rule}", shown(text)));
        if text.len() > MAX_URL_LEN {
            return Err(refuse(format!("is longer than {MAX_URL_LEN} bytes")));
        }
        let url = Url::parse(text).map_err(|error| refuse(error.to_string()))?;
        match url.scheme() {
            "https" => {}
            "http" if self.http => {}
            "http" => return Err(refuse("http is not allowed, only https".to_owned())),
            _ => return Err(refuse("the scheme must be https".to_owned())),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refuse("must have no credentials; use a header".to_owned()));
        }
        if url.fragment().is_some() {
            return Err(refuse("must have no fragment, because it is not sent".to_owned()));
        }
        let port = url.port_or_known_default().unwrap_or_default();
        if ![80, 443].contains(&port) && !self.ports.contains(&port) {
            return Err(refuse(format!("port {port} is not allowed")));
        }
        self.check_host(&url).map_err(|blocked| refuse(blocked.to_string()))?;
        Ok(url)
    }

    /// Checks the host of a URL: an address completely, a name without resolving it.
    pub(super) fn check_host(&self, url: &Url) -> std::result::Result<(), Blocked> {
        let host = url.host_str().unwrap_or_default();
        let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        match literal.parse() {
            Ok(address) => self.check_address(address),
            Err(_) => self.check_name(host),
        }
    }

    fn check_name(&self, host: &str) -> std::result::Result<(), Blocked> {
        let name = host.trim_end_matches('.').to_ascii_lowercase();
        let blocked = |why| Err(Blocked { what: shorten(&name), why });
        if METADATA_NAMES.contains(&&*name) {
            return blocked("a metadata service");
        }
        if self.allows_host(host) {
            return Ok(());
        }
        if name == "localhost" || name.ends_with(".localhost") {
            return blocked("loopback");
        }
        if [".internal", ".local", ".localdomain"].iter().any(|suffix| name.ends_with(suffix)) {
            return blocked("an internal name");
        }
        Ok(())
    }

    pub(super) fn allows_host(&self, host: &str) -> bool {
        let name = host.trim_end_matches('.');
        self.hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(name))
    }

    /// Checks the addresses of a resolved name. One blocked address blocks all, because the client chooses among them.
    pub(super) fn check_resolved(
        &self,
        host: &str,
        addresses: &[IpAddr],
    ) -> std::result::Result<(), Blocked> {
        if addresses.is_empty() {
            return Err(Blocked { what: shorten(host), why: "without an address" });
        }
        let is_allowed = self.allows_host(host);
        addresses.iter().try_for_each(|address| match is_allowed {
            true => check_metadata(*address),
            false => self.check_address(*address),
        })
    }

    /// Checks one address.
    pub(super) fn check_address(&self, address: IpAddr) -> std::result::Result<(), Blocked> {
        check_metadata(address)?;
        if self.networks.iter().any(|network| network.contains(address)) {
            return Ok(());
        }
        match blocked(address) {
            Some(why) => Err(Blocked { what: address.to_string(), why }),
            None => Ok(()),
        }
    }
}

/// Returns a URL as errors show it: scheme and host. Credentials, path and query may be secrets. In text that is not a
/// URL, any part may be one.
fn shown(text: &str) -> String {
    match text.split_once("://") {
        Some((scheme, _)) if text.contains('@') => shorten(&format!("{scheme}://***")),
        Some((scheme, rest)) => {
            let host = rest.split(['/', '\\', '?', '#']).next().unwrap_or_default();
            shorten(&format!("{scheme}://{host}"))
        }
        None => "***".to_owned(),
    }
}

fn check_metadata(address: IpAddr) -> std::result::Result<(), Blocked> {
    let is_metadata = match address {
        IpAddr::V4(address) => METADATA_V4.contains(&address),
        IpAddr::V6(address) => {
            METADATA_V6.contains(&address)
                || embedded_v4(address).is_some_and(|(address, _)| METADATA_V4.contains(&address))
        }
    };
    if is_metadata {
        return Err(Blocked { what: address.to_string(), why: "a metadata service" });
    }
    Ok(())
}

/// Returns why an address is blocked; `None` for a public address.
pub(super) fn blocked(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => blocked_v4(address),
        IpAddr::V6(address) => blocked_v6(address),
    }
}

fn blocked_v4(address: Ipv4Addr) -> Option<&'static str> {
    let network = BLOCKED_V4.iter().find(|(base, bits, _)| in_v4(address, *base, *bits));
    network.map(|(_, _, why)| *why)
}

fn blocked_v6(address: Ipv6Addr) -> Option<&'static str> {
    if address.is_unspecified() {
        return Some("unspecified");
    }
    if address.is_loopback() {
        return Some("loopback");
    }
    if let Some((_, why)) = embedded_v4(address) {
        return Some(why);
    }
    let [first, second, ..] = address.segments();
    match first {
        0xfc00..=0xfdff => Some("unique-local"),
        0xfe80..=0xfebf => Some("link-local"),
        0xfec0..=0xfeff => Some("site-local"),
        0xff00.. => Some("multicast"),
        // 2001:2::/48, 2001:10::/28, 2001:20::/28 and the other protocol assignments, including Teredo.
        0x2001 if second < 0x0200 => Some("reserved"),
        0x2001 if second == 0x0db8 => Some("documentation"),
        0x3fff if second < 0x1000 => Some("documentation"),
        0x5f00 => Some("reserved"),
        // Only this range is assigned as global unicast.
        0x2000..=0x3fff => None,
        _ => Some("reserved"),
    }
}

/// Returns the IPv4 address that an IPv6 address embeds, with the reason to block it. All these forms are blocked,
/// because a public IPv4 address can be written by itself.
fn embedded_v4(address: Ipv6Addr) -> Option<(Ipv4Addr, &'static str)> {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let join = |high: u16, low: u16| Ipv4Addr::from_bits((u32::from(high) << 16) | u32::from(low));
    match [a, b, c, d, e, f] {
        [0, 0, 0, 0, 0, 0xffff] => Some((join(g, h), "IPv4-mapped")),
        [0, 0, 0, 0, 0xffff, 0] => Some((join(g, h), "IPv4-translated")),
        [0, 0, 0, 0, 0, 0] => Some((join(g, h), "IPv4-compatible")),
        [0x64, 0xff9b, 0, 0, 0, 0] => Some((join(g, h), "NAT64")),
        [0x64, 0xff9b, 1, ..] => Some((join(g, h), "NAT64")),
        [0x2002, high, low, ..] => Some((join(high, low), "6to4")),
        [0x2001, 0, ..] => Some((join(!g, !h), "Teredo")),
        _ => None,
    }
}

#[cfg(test)]
#[path = "guard_tests.rs"]
pub(super) mod tests;
