//! Connects to providers by URL.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use super::memory;
use super::settings::Setting;
use super::support::unsupported;
use super::{EventProvider, Isolation, StreamLimits};
use crate::error::{EventError, Result};
use crate::text::{shorten, shorten_to};

/// Schemes of this crate, with the feature that enables each.
const KNOWN_SCHEMES: [(&str, &str); 8] = [
    ("sqlite", "sqlite"),
    ("nats", "nats"),
    ("tls", "nats"),
    ("redis", "redis"),
    ("rediss", "redis"),
    ("valkey", "redis"),
    ("valkeys", "redis"),
    ("redis+unix", "redis"),
];

type Connecting = Pin<Box<dyn Future<Output = Result<Arc<dyn EventProvider>>> + Send>>;
type Connect = Arc<dyn Fn(ProviderUrl) -> Connecting + Send + Sync>;
type File = Arc<dyn Fn(&ProviderUrl) -> Option<PathBuf> + Send + Sync>;
type Isolate = Arc<dyn Fn(ProviderUrl, &Isolation) -> Option<ProviderUrl> + Send + Sync>;

/// A URL scheme: its name, the settings of its URLs, and the function that connects.
#[derive(Clone)]
pub struct Scheme {
    name: String,
    settings: Arc<[&'static Setting]>,
    connect: Connect,
    isolate: Option<Isolate>,
    port: Option<u16>,
    file: Option<File>,
    default_limits: StreamLimits,
}

impl Scheme {
    /// Creates a scheme. The name is case-insensitive. The settings are those of the provider's
    /// [table](crate::provider::settings::Settings::iter).
    pub fn new<F, Fut>(
        name: impl Into<String>,
        settings: impl IntoIterator<Item = &'static Setting>,
        connect: F,
    ) -> Self
    where
        F: Fn(ProviderUrl) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Arc<dyn EventProvider>>> + Send + 'static,
    {
        Self {
            name: name.into().to_ascii_lowercase(),
            settings: settings.into_iter().collect(),
            connect: Arc::new(move |url| Box::pin(connect(url))),
            isolate: None,
            port: None,
            file: None,
            default_limits: StreamLimits::default(),
        }
    }

    /// Sets the function that returns the URL of a fresh stream next to that of a URL, so that each test can have one.
    /// It returns `None` if no stream can have such limits.
    pub fn isolated_by(
        mut self,
        isolate: impl Fn(ProviderUrl, &Isolation) -> Option<ProviderUrl> + Send + Sync + 'static,
    ) -> Self {
        self.isolate = Some(Arc::new(isolate));
        self
    }

    /// Sets the default port, for a scheme whose URLs name servers.
    pub fn at_port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Returns the default port of the servers; `None` for a scheme without servers.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Sets the function that returns the path of the file that a URL names, for a scheme that stores events in files.
    pub fn in_file(mut self, file: impl Fn(&ProviderUrl) -> Option<PathBuf> + Send + Sync + 'static) -> Self {
        self.file = Some(Arc::new(file));
        self
    }

    /// Returns the path of the file that a URL with this scheme names; `None` if it names none.
    pub fn file(&self, url: &ProviderUrl) -> Option<PathBuf> {
        self.file.as_ref().and_then(|file| file(url))
    }

    /// Sets the limits of a new stream whose URL sets none. By default it has none.
    pub fn limited_to(mut self, limits: StreamLimits) -> Self {
        self.default_limits = limits;
        self
    }

    /// Returns the limits of a new stream whose URL sets none.
    pub fn default_limits(&self) -> &StreamLimits {
        &self.default_limits
    }

    /// Returns the name, in lower case.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the settings of URLs with this scheme.
    pub fn settings(&self) -> impl Iterator<Item = &'static Setting> {
        self.settings.iter().copied()
    }
}

impl fmt::Debug for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<_> = self.settings().map(Setting::key).collect();
        f.debug_struct("Scheme").field("name", &self.name).field("settings", &keys).finish_non_exhaustive()
    }
}

/// A map from URL schemes to providers. It is an ordinary value; there is no global registry.
///
/// ```
/// use a3s_event::provider::ProviderRegistry;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> a3s_event::Result<()> {
/// let provider = ProviderRegistry::builtin().connect("memory://?max_events=1000").await?;
/// assert_eq!(provider.name(), "memory");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct ProviderRegistry {
    schemes: BTreeMap<String, Scheme>,
}

impl ProviderRegistry {
    /// Creates a registry without schemes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates a registry of the providers that are compiled in.
    pub fn builtin() -> Self {
        let mut registry = Self::new();
        registry.register(
            Scheme::new("memory", memory::SETTINGS.iter(), memory::connect)
                .isolated_by(memory::isolate)
                .limited_to(memory::default_limits()),
        );
        #[cfg(feature = "sqlite")]
        registry.register(
            Scheme::new("sqlite", super::sqlite::SETTINGS.iter(), super::sqlite::connect)
                .isolated_by(super::sqlite::isolate)
                .in_file(super::sqlite::file),
        );
        #[cfg(feature = "nats")]
        for name in ["nats", "tls"] {
            registry.register(
                Scheme::new(name, super::nats::SETTINGS.iter(), super::nats::connect)
                    .isolated_by(super::nats::isolate)
                    .limited_to(super::nats::default_limits())
                    .at_port(super::nats::DEFAULT_PORT),
            );
        }
        #[cfg(feature = "redis")]
        for name in ["redis", "rediss", "valkey", "valkeys", "redis+unix"] {
            let scheme = Scheme::new(name, super::redis::SETTINGS.iter(), super::redis::connect)
                .isolated_by(super::redis::isolate)
                .limited_to(super::redis::default_limits());
            // A socket has no port.
            let is_socket = name == super::redis::UNIX;
            registry.register(if is_socket { scheme } else { scheme.at_port(super::redis::DEFAULT_PORT) });
        }
        registry
    }

    /// Adds or replaces a scheme.
    pub fn register(&mut self, scheme: Scheme) {
        self.schemes.insert(scheme.name.clone(), scheme);
    }

    /// Returns the names of the registered schemes.
    pub fn schemes(&self) -> impl Iterator<Item = &str> {
        self.schemes.keys().map(String::as_str)
    }

    /// Returns the scheme with this name in lower case.
    pub fn scheme(&self, name: &str) -> Option<&Scheme> {
        self.schemes.get(name)
    }

    /// Formats a URL for display, without credentials. It shows the value of a setting only if the provider declares it
    /// and does not declare it secret. It shows no value of an unknown scheme.
    ///
    /// ```
    /// use a3s_event::provider::{ProviderRegistry, ProviderUrl};
    ///
    /// # fn main() -> a3s_event::Result<()> {
    /// let url = ProviderUrl::parse("memory://orders?max_events=5&passwd=s3cret")?;
    /// assert_eq!(ProviderRegistry::builtin().redacted(&url), "memory://orders?max_events=5&passwd=***");
    /// # Ok(())
    /// # }
    /// ```
    pub fn redacted(&self, url: &ProviderUrl) -> String {
        let settings = self.scheme(url.scheme()).map(|scheme| &*scheme.settings).unwrap_or_default();
        let is_open = |key: &str| {
            settings
                .iter()
                .any(|setting| setting.key() == key && setting.is_in_query() && !setting.is_secret())
        };
        Shown { url, is_open: &is_open }.to_string()
    }

    /// Connects to the provider that a URL names. The path is the primary name, and the query holds the provider's
    /// settings.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] for:
    ///
    /// - a URL that cannot be parsed
    /// - a scheme that is not compiled in (the error names its feature) or not known (it lists the available ones)
    /// - an unknown setting (it lists the valid ones) or a wrong value
    ///
    /// Otherwise the provider's error. No error contains credentials.
    pub async fn connect(&self, url: &str) -> Result<Arc<dyn EventProvider>> {
        self.connect_to(ProviderUrl::parse(url)?).await
    }

    /// Connects to the provider that a URL names, as [`connect`](ProviderRegistry::connect) does.
    ///
    /// # Errors
    ///
    /// As [`connect`](ProviderRegistry::connect), except for a URL that cannot be parsed.
    pub async fn connect_to(&self, url: ProviderUrl) -> Result<Arc<dyn EventProvider>> {
        match self.schemes.get(url.scheme()) {
            Some(scheme) => (scheme.connect)(url).await,
            None => Err(self.unknown_scheme(url.scheme())),
        }
    }

    /// Returns the URL of a fresh stream next to that of `url`, or `None` if no stream can have such limits.
    ///
    /// ```
    /// use a3s_event::provider::{Isolation, ProviderRegistry, ProviderUrl};
    ///
    /// # fn main() -> a3s_event::Result<()> {
    /// let url = ProviderUrl::parse("sqlite:///var/lib/orders.db?synchronous=normal")?;
    /// let fresh = ProviderRegistry::builtin().isolated(&url, &Isolation::new("case_1", "/var/test"))?;
    /// assert_eq!(fresh.unwrap().path(), "/var/test/case_1.db");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] for a scheme that is not compiled in or not known;
    /// [`Unsupported`](EventError::Unsupported) for a scheme without an [`isolated_by`](Scheme::isolated_by) function.
    pub fn isolated(&self, url: &ProviderUrl, isolation: &Isolation) -> Result<Option<ProviderUrl>> {
        let Some(scheme) = self.schemes.get(url.scheme()) else {
            return Err(self.unknown_scheme(url.scheme()));
        };
        match &scheme.isolate {
            Some(isolate) => Ok(isolate(url.clone(), isolation)),
            None => Err(unsupported("isolated", &scheme.name)),
        }
    }

    fn unknown_scheme(&self, scheme: &str) -> EventError {
        if let Some((_, feature)) = KNOWN_SCHEMES.iter().find(|(known, _)| *known == scheme) {
            return EventError::Config(format!(
                "scheme '{scheme}' is not compiled in: enable the feature '{feature}' of a3s-event"
            ));
        }
        let available: Vec<_> = self.schemes().collect();
        EventError::Config(format!(
            "unknown scheme '{}': available are {}",
            shorten(scheme),
            available.join(", ")
        ))
    }
}

impl fmt::Debug for ProviderRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.schemes()).finish()
    }
}

/// A parsed provider URL. `Display` and `Debug` show `***` in place of credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct ProviderUrl {
    scheme: String,
    username: Option<String>,
    password: Option<String>,
    authority: String,
    path: String,
    query: Vec<(String, String)>,
}

impl ProviderUrl {
    /// Parses `scheme://[user[:password]@]authority[/path][?key=value&…]` or `scheme:path[?…]`.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] for a URL without a scheme, with a broken escape, or with a repeated key.
    pub fn parse(url: &str) -> Result<Self> {
        let bad = |rule: &str| EventError::Config(format!("provider URL: {rule}"));
        let (scheme, rest) =
            url.split_once(':').ok_or_else(|| bad("has no scheme, for instance memory://"))?;
        let scheme_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || !scheme.chars().all(scheme_char) {
            return Err(bad("has no scheme, for instance memory://"));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = match rest.strip_prefix("//") {
            Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
            None => ("", rest),
        };
        if !authority.contains('@') && (path.contains('@') || query.contains('@')) {
            return Err(bad("in credentials, write '/' as %2F and '?' as %3F; elsewhere, write '@' as %40"));
        }
        let (user_info, authority) = match authority.rsplit_once('@') {
            Some((user_info, authority)) => (Some(user_info), authority),
            None => (None, authority),
        };
        if authority.contains('#') {
            return Err(bad("must have no fragment; in credentials, write '#' as %23"));
        }
        if user_info.and_then(|info| info.split_once('@')).is_some_and(|(_, more)| more.contains(',')) {
            return Err(bad("write credentials only once, before the first server"));
        }
        let (username, password) = match user_info.map(|info| info.split_once(':').unwrap_or((info, ""))) {
            Some((username, "")) => (Some(decode(username)?), None),
            Some((username, password)) => (Some(decode(username)?), Some(decode(password)?)),
            None => (None, None),
        };
        let mut pairs: Vec<(String, String)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let key = decode(key)?;
            if pairs.iter().any(|(known, _)| *known == key) {
                return Err(bad(&format!("setting '{}' is given twice", shown_key(&key))));
            }
            pairs.push((key, decode(value)?));
        }
        Ok(Self {
            scheme: scheme.to_ascii_lowercase(),
            username,
            password,
            authority: decode(authority)?,
            path: decode(path)?,
            query: pairs,
        })
    }

    /// Returns the scheme, in lower case.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// Returns the host and port, or a list of them, percent-decoded and without credentials.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Returns the path, percent-decoded, with its leading slash if it has one.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns the user name, percent-decoded.
    pub fn username(&self) -> Option<&str> {
        self.username.as_deref()
    }

    /// Returns the password, percent-decoded.
    pub fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    /// Returns the settings in the query, percent-decoded, in their order in the URL.
    pub fn settings(&self) -> impl Iterator<Item = (&str, &str)> {
        self.query.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Returns the text of a setting in the query, percent-decoded.
    pub fn setting(&self, key: &str) -> Option<&str> {
        self.settings().find(|(known, _)| *known == key).map(|(_, value)| value)
    }

    /// Replaces the path.
    pub fn with_path(mut self, path: impl Into<String>) -> Self {
        self.path = path.into();
        self
    }

    /// Sets the value of a setting.
    pub fn with_setting(self, key: impl Into<String>, value: impl Into<String>) -> Self {
        let key = key.into();
        let mut url = self.without_setting(&key);
        url.query.push((key, value.into()));
        url
    }

    /// Removes a setting, so that its default applies.
    pub fn without_setting(mut self, key: &str) -> Self {
        self.query.retain(|(known, _)| known != key);
        self
    }

    /// Refuses a user name and a password, for providers without accounts, which would ignore them.
    ///
    /// # Errors
    ///
    /// [`EventError::Config`] if the URL has one of them. The error does not repeat it.
    pub fn refuse_credentials(&self) -> Result<()> {
        if self.username.is_none() && self.password.is_none() {
            return Ok(());
        }
        Err(EventError::Config(format!(
            "provider URL {}: a {} URL must have no user name and no password, because the provider checks none",
            shorten(&self.to_string()),
            self.scheme
        )))
    }
}

impl fmt::Display for ProviderUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Shown { url: self, is_open: &|_| false }.fmt(f)
    }
}

/// A URL to display without its secrets, and the test for keys whose values may be shown.
struct Shown<'a> {
    url: &'a ProviderUrl,
    is_open: &'a dyn Fn(&str) -> bool,
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, is_open } = self;
        let credentials = if url.username.is_some() { "***@" } else { "" };
        // Decoded text can contain unprintable characters.
        let shown = |part| shorten_to(part, usize::MAX);
        write!(f, "{}://{credentials}{}{}", url.scheme, shown(&url.authority), shown(&url.path))?;
        for (number, (key, value)) in url.settings().enumerate() {
            let value = if is_open(key) && is_one_value(value) { value } else { "***" };
            write!(f, "{}{}={value}", if number == 0 { '?' } else { '&' }, shown_key(key))?;
        }
        Ok(())
    }
}

/// Returns `false` if the value may contain an unescaped separator and a further setting, perhaps a secret.
fn is_one_value(value: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
    value.len() <= 64 && value.chars().all(is_plain)
}

impl fmt::Debug for ProviderUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProviderUrl({self})")
    }
}

/// Returns a key as it may be shown. Text that does not look like a key is hidden: it may be part of a value with an
/// unescaped `&`.
pub(super) fn shown_key(key: &str) -> &str {
    let is_key = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
    if key.len() <= 40 && key.bytes().all(is_key) { key } else { "***" }
}

/// Decodes percent-encoding (RFC 3986, section 2.1).
fn decode(text: &str) -> Result<String> {
    let broken = || EventError::Config("provider URL: broken percent-escape".to_owned());
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16)).ok_or_else(broken);
        let value = digit()? * 16 + digit()?;
        bytes.push(u8::try_from(value).map_err(|_| broken())?);
    }
    String::from_utf8(bytes).map_err(|_| broken())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config_error(result: Result<Arc<dyn EventProvider>>) -> String {
        match result {
            Err(EventError::Config(text)) => text,
            Err(other) => panic!("unexpected error {other}"),
            Ok(_) => panic!("connected"),
        }
    }

    #[test]
    fn the_parts_are_found_and_decoded() {
        let url = ProviderUrl::parse("nats://us%40er:p%3Aw@127.0.0.1:4222/ORDERS?max_events=5&storage=file")
            .unwrap();
        assert_eq!((url.scheme(), url.authority(), url.path()), ("nats", "127.0.0.1:4222", "/ORDERS"));
        assert_eq!((url.username(), url.password()), (Some("us@er"), Some("p:w")));
        assert_eq!((url.setting("max_events"), url.setting("absent")), (Some("5"), None));
        assert_eq!(url.settings().collect::<Vec<_>>(), [("max_events", "5"), ("storage", "file")]);
        let memory = ProviderUrl::parse("sqlite::memory:").unwrap();
        assert_eq!((memory.scheme(), memory.path()), ("sqlite", ":memory:"));
        assert_eq!(ProviderUrl::parse("sqlite:///var/lib/e.db").unwrap().path(), "/var/lib/e.db");
    }

    #[test]
    fn credentials_and_values_are_never_shown() {
        let url = ProviderUrl::parse("nats://alice:s3cret@host/x?token=t0ken").unwrap();
        for text in [url.to_string(), format!("{url:?}")] {
            assert!(!text.contains("s3cret") && !text.contains("t0ken") && !text.contains("alice"), "{text}");
        }
    }

    #[tokio::test]
    async fn wrong_urls_say_what_would_be_right() {
        let registry = ProviderRegistry::builtin();
        assert!(config_error(registry.connect("memory").await).contains("no scheme"));
        assert!(config_error(registry.connect("ftp://x").await).contains("available are memory"));
        assert!(config_error(registry.connect("memory://?max_event=1").await).contains("valid are"));
        assert!(
            config_error(registry.connect("memory://?max_events=many").await).contains("max_events \"many\"")
        );
        assert!(
            config_error(registry.connect("memory://?max_events=1&max_events=2").await).contains("twice")
        );
        assert!(config_error(registry.connect("memory://%zz").await).contains("percent-escape"));
        for url in ["nats://user:pa/ssw0rd@host", "nats://user:pa?ssw0rd@host"] {
            assert!(config_error(registry.connect(url).await).contains("%2F"), "{url}");
        }
        let redis = ["redis", "rediss", "valkey", "valkeys", "redis+unix"].map(|scheme| (scheme, "redis"));
        for (scheme, feature) in
            [("sqlite", "sqlite"), ("nats", "nats"), ("tls", "nats")].into_iter().chain(redis)
        {
            if registry.scheme(scheme).is_none() {
                let error = config_error(registry.connect(&format!("{scheme}:///x")).await);
                assert!(error.contains(&format!("feature '{feature}'")), "{error}");
            }
        }
    }

    #[tokio::test]
    async fn a_program_can_register_its_own_scheme() {
        let mut registry = ProviderRegistry::new();
        registry.register(Scheme::new("Mine", [], |_url| async {
            Ok(Arc::new(memory::MemoryProvider::default()) as Arc<dyn EventProvider>)
        }));
        assert_eq!(registry.connect("mine://").await.unwrap().name(), "memory");
    }
}
