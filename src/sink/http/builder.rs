//! Builder of HTTP sinks.

use std::fmt;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use super::client::{Roots, client};
use super::guard::{Allowed, Network};
use super::permission::Permission;
use super::resolver::{Lookup, system};
use super::signature::Signer;
use super::{HttpSink, PayloadForm};
use crate::cloudevents::http::ContentMode;
use crate::error::{EventError, Result};
use crate::text::shorten;

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Headers that belong to the connection or to the event.
const RESERVED: [&str; 10] = [
    "host",
    "content-length",
    "content-type",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "te",
    "trailer",
    "upgrade",
    "expect",
];
const RESERVED_PREFIXES: [&str; 3] = ["ce-", "webhook-", "proxy-"];

/// Builds an [`HttpSink`].
#[must_use]
pub struct HttpSinkBuilder {
    name: String,
    url: String,
    mode: ContentMode,
    timeout: Duration,
    payload: PayloadForm,
    allowed: Allowed,
    /// An invalid setting is kept as an error here, and `build` returns it.
    headers: Result<HeaderMap>,
    signer: Result<Signer>,
    roots: Result<Roots>,
    permission: Result<Option<Permission>>,
    lookup: Lookup,
}

impl HttpSinkBuilder {
    pub(super) fn new(name: String, url: String) -> Self {
        Self {
            name,
            url,
            mode: ContentMode::Binary,
            timeout: DEFAULT_TIMEOUT,
            payload: PayloadForm::AsStored,
            allowed: Allowed::default(),
            headers: Ok(HeaderMap::new()),
            signer: Ok(Signer::default()),
            roots: Ok(Roots::of_the_system()),
            permission: Ok(None),
            lookup: system(),
        }
    }

    /// Sends the whole event as the body, in the JSON format. The default is binary mode, whose body is the payload.
    pub fn structured(mut self) -> Self {
        self.mode = ContentMode::Structured;
        self
    }

    /// Sets the timeout for an answer, including lookup and connection. Default 10 s. The timeout of the trigger also
    /// applies.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sends a header with every request. Its value is a secret and is never shown.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers = self.headers.and_then(|mut headers| {
            let (name, value) = user_header(name, value)?;
            headers.insert(name, value);
            Ok(headers)
        });
        self
    }

    /// Signs each request with this secret according to Standard Webhooks. The secret is `whsec_` and base64. To rotate
    /// a secret, call this twice; the sink then signs with both.
    pub fn sign_with(mut self, secret: &str) -> Self {
        self.signer = self.signer.and_then(|mut signer| signer.add(secret).map(|()| signer));
        self
    }

    /// Trusts the certificate authorities of this PEM text instead of those of the system. Further calls add to them.
    pub fn root_certificates(mut self, pem: &[u8]) -> Self {
        self.roots = self.roots.and_then(|mut roots| roots.add(pem).map(|()| roots));
        self
    }

    /// Asks the receiver for permission before the first event, with the `OPTIONS` request of the CloudEvents webhook
    /// specification. `origin` is the DNS name by which the receiver knows this system. Until the receiver gives
    /// permission, deliveries fail and are retried. The default is to send without asking.
    pub fn ask_permission_as(mut self, origin: &str) -> Self {
        self.permission = Permission::of(origin).map(Some);
        self
    }

    /// Sends payloads decrypted. By default, payloads that are encrypted at rest leave the process as they are stored.
    /// With this setting, an error shows the status of an answer but not its text, which could quote the payload.
    pub fn decrypted(mut self) -> Self {
        self.payload = PayloadForm::Clear;
        self
    }

    /// Allows `http` without TLS.
    pub fn allow_http(mut self) -> Self {
        self.allowed.http = true;
        self
    }

    /// Allows a port in addition to 80 and 443.
    pub fn allow_port(mut self, port: u16) -> Self {
        self.allowed.ports.push(port);
        self
    }

    /// Allows addresses that are not public: a network such as `10.1.0.0/16`, or a single address. Metadata services
    /// stay blocked.
    pub fn allow_network(mut self, network: &str) -> Self {
        match Network::parse(network) {
            Some(network) => self.allowed.networks.push(network),
            None => {
                let text = format!(
                    "network '{}': must be an IP address or a network such as 10.0.0.0/8",
                    shorten(network)
                );
                self.headers = self.headers.and(Err(EventError::Config(text)));
            }
        }
        self
    }

    /// Allows a host name with every address that it resolves to, except metadata services.
    pub fn allow_host(mut self, host: impl Into<String>) -> Self {
        self.allowed.hosts.push(host.into());
        self
    }

    #[cfg(test)]
    pub(super) fn lookup(mut self, lookup: Lookup) -> Self {
        self.lookup = lookup;
        self
    }

    /// Builds the sink without connecting.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] that names the setting, for:
    ///
    /// - a URL with a scheme, port or host that is not allowed, with credentials or a fragment, or longer than 2,048
    ///   bytes;
    /// - a header that is reserved or not legal;
    /// - an invalid secret, network or timeout;
    /// - an origin that is not a DNS name;
    /// - PEM text without a usable certificate;
    /// - certificates of the system that cannot be used.
    pub fn build(self) -> Result<HttpSink> {
        let url = self.allowed.check_url(&self.url)?;
        if self.timeout.is_zero() {
            return Err(EventError::Config("timeout 0s: must be longer than zero".to_owned()));
        }
        Ok(HttpSink {
            client: client(self.allowed.clone(), self.lookup, self.roots?)?,
            name: self.name,
            url,
            allowed: self.allowed,
            mode: self.mode,
            headers: self.headers?,
            signer: self.signer?,
            permission: self.permission?,
            timeout: self.timeout,
            payload: self.payload,
            is_disabled: AtomicBool::new(false),
        })
    }
}

impl fmt::Debug for HttpSinkBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpSinkBuilder").field("name", &self.name).finish_non_exhaustive()
    }
}

fn user_header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue)> {
    let refused = |rule: &str| EventError::Config(format!("sink header '{}': {rule}", shorten(name)));
    let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| refused("not a valid header name"))?;
    let lower = parsed.as_str();
    if RESERVED.contains(&lower) || RESERVED_PREFIXES.iter().any(|prefix| lower.starts_with(prefix)) {
        return Err(refused("is set by the sink"));
    }
    let mut value = HeaderValue::from_str(value).map_err(|_| refused("the value is not printable ASCII"))?;
    value.set_sensitive(true);
    Ok((parsed, value))
}
