//! Connects a command to its bus.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use a3s_event::provider::settings::Kind;
use a3s_event::provider::{ProviderRegistry, ProviderUrl, Scheme};
use a3s_event::{EventError, EventProvider, duration};

use crate::args::Global;
use crate::config::{Config, Origin, create_default_folder, default_folder};
use crate::failure::{Failure, Outcome};
use crate::keys::Keys;
use crate::output::Output;

/// Timeout for closing subscriptions and connections.
const LEAVE: Duration = Duration::from_secs(2);
/// Timeout for a connection; the providers' own timeouts are shorter.
const CONNECT: Duration = Duration::from_secs(30);
/// Setting that lets a connection create a missing stream or file.
const CREATE: &str = "create_if_missing";
/// Part of the providers' message about a stream or a file that is missing and must not be created.
const MISSING: &str = ": does not exist, and create_if_missing is false";

/// The context of a command.
pub(crate) struct App {
    pub(crate) config: Config,
    pub(crate) out: Output,
    /// Keys of encrypted payloads.
    pub(crate) keys: Keys,
    url: Option<String>,
    dlq_url: Option<String>,
    connected: Vec<Arc<dyn EventProvider>>,
}

impl App {
    pub(crate) fn new(global: Global) -> Outcome<Self> {
        let config = Config::load(global.config.as_deref())?;
        if let Some(url) = &global.url {
            warn_of_credentials(url, Some("A3S_EVENT_URL"));
        }
        if let Some(url) = &global.dlq_url {
            warn_of_credentials(url, Some("A3S_EVENT_DLQ_URL"));
        }
        let (url, dlq_url) = (global.url, global.dlq_url);
        let keys = Keys::load(&global.key_file)?;
        Ok(Self { config, out: Output::new(global.output), keys, url, dlq_url, connected: Vec::new() })
    }

    /// Returns the URL of the dead-letter bus; `None` is the bus itself.
    pub(crate) fn dlq_url(&self) -> Option<&str> {
        self.dlq_url.as_deref().or(self.config.dlq_url.as_deref())
    }

    /// Returns the URL of the bus and its origin.
    pub(crate) fn url(&self) -> Outcome<(String, Origin)> {
        self.config.url(self.url.as_deref())
    }

    /// Connects to the bus. Creates its stream or file if it does not exist.
    pub(crate) async fn connect(&mut self) -> Outcome<Arc<dyn EventProvider>> {
        let (url, origin) = self.url()?;
        if origin == Origin::Default {
            create_default_folder()?;
        }
        self.open(&url, true).await
    }

    /// Connects to the bus for a command that must not create its stream or file.
    pub(crate) async fn connect_to_look(&mut self) -> Outcome<Arc<dyn EventProvider>> {
        let (url, _) = self.url()?;
        self.open(&url, false).await
    }

    /// Connects to the bus of a name or a URL, as [`connect`](Self::connect) does.
    pub(crate) async fn connect_to(&mut self, bus: &str) -> Outcome<Arc<dyn EventProvider>> {
        let url = self.config.named(bus)?;
        self.open(&url, true).await
    }

    /// Connects to the bus of a name or a URL, as [`connect_to_look`](Self::connect_to_look) does.
    pub(crate) async fn connect_to_look_at(&mut self, bus: &str) -> Outcome<Arc<dyn EventProvider>> {
        let url = self.config.named(bus)?;
        self.open(&url, false).await
    }

    /// Connects to a bus to plan writes to it. A missing stream or file is represented by an empty one in memory.
    pub(crate) async fn connect_to_plan(&mut self, bus: &str) -> Outcome<Planned> {
        let url = self.config.named(bus)?;
        match self.open(&url, false).await {
            Ok(provider) => Ok(Planned { provider, exists: true }),
            Err(Failure::Missing(_)) => {
                let provider = ProviderRegistry::builtin().connect_to(stand_in(&url)?).await?;
                Ok(Planned { provider, exists: false })
            }
            Err(failure) => Err(failure),
        }
    }

    async fn open(&mut self, url: &str, may_create: bool) -> Outcome<Arc<dyn EventProvider>> {
        let provider = connect(url, may_create).await?;
        self.connected.push(Arc::clone(&provider));
        Ok(provider)
    }

    /// Closes the connections of the command.
    pub(crate) async fn close(&mut self) -> Outcome {
        for provider in self.connected.drain(..) {
            leave(provider.close()).await?;
        }
        Ok(())
    }
}

/// A bus before writes to it.
pub(crate) struct Planned {
    pub(crate) provider: Arc<dyn EventProvider>,
    /// If false, the provider represents a stream or file that the first write creates.
    pub(crate) exists: bool,
}

async fn connect(url: &str, may_create: bool) -> Outcome<Arc<dyn EventProvider>> {
    tracing::info!(url = redacted(url), "connecting");
    let registry = ProviderRegistry::builtin();
    let settings = if may_create { ProviderUrl::parse(url)? } else { existing(url)? };
    let connecting = registry.connect_to(settings);
    match tokio::time::timeout(CONNECT, connecting).await {
        Ok(connected) => {
            let provider = connected.map_err(|error| match error {
                EventError::Config(text) if !may_create && text.contains(MISSING) => {
                    Failure::Missing(missing(url, &text))
                }
                error => match Failure::from(error) {
                    Failure::Unreachable(text) => Failure::Unreachable(format!("{}: {text}", redacted(url))),
                    other => other,
                },
            })?;
            tracing::debug!(provider = provider.name(), capabilities = ?provider.capabilities(), "connected");
            Ok(provider)
        }
        Err(_elapsed) => Err(Failure::Unreachable(format!(
            "{}: no connection within {}",
            redacted(url),
            duration::format(CONNECT)
        ))),
    }
}

/// Returns the URL with `create_if_missing=false`, if its provider has that setting.
pub(crate) fn existing(url: &str) -> Outcome<ProviderUrl> {
    let parsed = ProviderUrl::parse(url)?;
    let registry = ProviderRegistry::builtin();
    let scheme = registry.scheme(parsed.scheme());
    let can_create = scheme.is_some_and(|scheme| scheme.settings().any(|setting| setting.key() == CREATE));
    Ok(if can_create { parsed.with_setting(CREATE, "false") } else { parsed })
}

/// Returns the message about a stream or a file that does not exist, with the command that creates it.
fn missing(url: &str, text: &str) -> String {
    let is_forbidden =
        ProviderUrl::parse(url).is_ok_and(|url| url.setting(CREATE).is_some_and(|value| value == "false"));
    let missing = text.replacen(MISSING, " does not exist", 1);
    match missing_folder(url) {
        Some(folder) => format!("{missing}, nor does the folder '{folder}': create it, or correct the path"),
        None if is_forbidden => {
            format!("{missing}; remove create_if_missing=false from the URL to create it")
        }
        None => format!("{missing}; the first `a3s-event pub` or `a3s-event sub` creates it"),
    }
}

/// Returns the folder of a bus's file, which no command creates, if it does not exist. The default one is created.
fn missing_folder(url: &str) -> Option<String> {
    let url = ProviderUrl::parse(url).ok()?;
    let file = ProviderRegistry::builtin().scheme(url.scheme())?.file(&url)?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty())?;
    let is_default = default_folder().is_ok_and(|default| default == folder);
    (!folder.exists() && !is_default).then(|| folder.display().to_string())
}

/// Returns the URL of an empty stream in memory with the subjects and limits that a missing stream would have.
fn stand_in(url: &str) -> Outcome<ProviderUrl> {
    let url = ProviderUrl::parse(url)?;
    let registry = ProviderRegistry::builtin();
    let limits = registry.scheme(url.scheme()).map(Scheme::default_limits).cloned().unwrap_or_default();
    let defaults = [
        ("max_events", limits.max_events.unwrap_or(0).to_string()),
        ("max_bytes", limits.max_bytes.unwrap_or(0).to_string()),
        ("max_age", duration::format(limits.max_age.unwrap_or_default())),
        // The size limit of a server is unknown before the stream exists.
        ("max_event_bytes", "1GiB".to_owned()),
    ];
    let mut stand_in = ProviderUrl::parse("memory:")?;
    for (key, default) in defaults {
        stand_in = stand_in.with_setting(key, url.setting(key).unwrap_or(&default));
    }
    if let Some(prefix) = url.setting("subject_prefix") {
        stand_in = stand_in.with_setting("subject_prefix", prefix);
    }
    Ok(stand_in)
}

/// Redacts a URL: hides credentials, and shows only the setting values that the provider declares not secret.
pub(crate) fn redacted(url: &str) -> String {
    let Ok(url) = ProviderUrl::parse(url) else { return "an invalid URL".to_owned() };
    let shown = ProviderRegistry::builtin().redacted(&url);
    if url.authority().is_empty() && url.username().is_none() {
        return shown.replacen("://", ":", 1);
    }
    shown
}

/// Warns of credentials on the command line, which every user of the machine can read. A URL from the variable is safe.
pub(crate) fn warn_of_credentials(url: &str, variable: Option<&str>) {
    let is_of_environment = variable.and_then(std::env::var_os).is_some_and(|value| value == url);
    if has_credentials(url) && !is_of_environment {
        let variable = variable.map_or(String::new(), |variable| format!("{variable} or "));
        let _ = writeln!(
            std::io::stderr(),
            "warning: other users can see credentials on the command line: use {variable}the config file"
        );
    }
}

/// Returns `true` if the text of the URL is enough to authenticate. The path of a secret file is not.
fn has_credentials(url: &str) -> bool {
    let Ok(url) = ProviderUrl::parse(url) else { return false };
    let registry = ProviderRegistry::builtin();
    let mut settings = registry.scheme(url.scheme()).into_iter().flat_map(Scheme::settings);
    url.username().is_some()
        || settings.any(|setting| {
            let is_file = matches!(setting.kind(), Kind::File);
            setting.is_secret() && !is_file && url.setting(setting.key()).is_some()
        })
}

/// Waits until a connection is closed, up to a timeout or a second signal. A bus drops a lost connection by itself.
pub(crate) async fn leave(closing: impl Future<Output = a3s_event::Result<()>>) -> Outcome {
    tokio::select! {
        closed = tokio::time::timeout(LEAVE, closing) => match closed {
            Ok(closed) => Ok(closed?),
            Err(_elapsed) => {
                tracing::warn!(
                    "closing the connection timed out after {}; completed publishes and acks remain valid",
                    duration::format(LEAVE)
                );
                Ok(())
            }
        },
        () = asked_to_end() => Ok(()),
    }
}

/// Completes at the first signal to end. It catches signals from the call on, before the first poll.
pub(crate) fn asked_to_end() -> impl Future<Output = ()> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
        async {
            match signals {
                (Ok(mut interrupt), Ok(mut terminate)) => {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                    }
                }
                // Without a handler the signal ends the process.
                _ => std::future::pending().await,
            }
        }
    }
    #[cfg(not(unix))]
    async {
        let _ = tokio::signal::ctrl_c().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use a3s_event::provider::StreamLimits;

    #[test]
    fn only_values_that_are_known_to_be_harmless_are_shown() {
        for (url, shown) in [
            ("nats://h/S?subject_prefix=a.b&storage=memory", "nats://h/S?subject_prefix=a.b&storage=memory"),
            ("nats://u:s3cret@h?max_events=5&token=s3cret", "nats://***@h?max_events=5&token=***"),
            ("nats://h?nkey=s3cret&tls_first=true", "nats://h?nkey=***&tls_first=true"),
            ("nats://h?client_key=s3cret", "nats://h?client_key=***"),
            (
                "redis://u:s3cret@h/0/orders?db=1&sentinel_password=s3cret",
                "redis://***@h/0/orders?db=1&sentinel_password=***",
            ),
            ("redis+unix:/run/redis.sock?stream=orders", "redis+unix:/run/redis.sock?stream=orders"),
            ("nats://h?credentials_path=s3cret", "nats://h?credentials_path=***"),
            ("mine://h?password=s3cret&new_setting=s3cret", "mine://h?password=***&new_setting=***"),
            ("nats://h?s3cret", "nats://h?***=***"),
            // Wrong separators.
            ("nats://h?max_events=1?token=s3cret", "nats://h?max_events=***"),
            ("nats://h?max_events=1;token=s3cret", "nats://h?max_events=***"),
            ("nats://a@b:x?storage=s3cret@h", "nats://***@b:x?storage=***"),
            ("nats://h?storage=%1b[31m", "nats://h?storage=***"),
            ("sqlite:week.db?max_events=5", "sqlite:week.db?max_events=5"),
            ("sqlite:///var/a%3Ftoken=x.db", "sqlite:/var/a?token=x.db"),
            ("sqlite:/var/a.db", "sqlite:/var/a.db"),
            ("memory://", "memory:"),
        ] {
            assert_eq!(redacted(url), shown, "{url}");
        }
    }

    #[test]
    fn no_setting_that_a_provider_declares_secret_is_shown() {
        let registry = ProviderRegistry::builtin();
        let mut secrets = Vec::new();
        for name in registry.schemes() {
            for setting in registry.scheme(name).unwrap().settings() {
                let url = format!("{name}://h?{}=s3cret", setting.key());
                if setting.is_in_query() && setting.is_secret() {
                    assert_eq!(redacted(&url), format!("{name}://h?{}=***", setting.key()));
                    assert_eq!(has_credentials(&url), !matches!(setting.kind(), Kind::File), "{url}");
                    secrets.push(setting.key());
                } else if setting.is_in_query() {
                    assert!(!has_credentials(&url), "{url}");
                }
            }
        }
        for key in ["token", "nkey", "credentials_path", "client_key", "sentinel_password"] {
            assert!(secrets.contains(&key), "{key} is not among {secrets:?}");
        }
    }

    #[test]
    fn a_command_that_only_looks_creates_nothing() {
        for (url, setting) in [
            ("sqlite:a.db", Some("false")),
            ("tls://h/S?max_events=1", Some("false")),
            ("nats://h?create_if_missing=true", Some("false")),
            ("valkeys://h/orders", Some("false")),
            ("memory://", None),
            ("mine://h", None),
        ] {
            assert_eq!(existing(url).unwrap().setting(CREATE), setting, "{url}");
        }
    }

    #[tokio::test]
    async fn a_missing_stream_is_planned_with_its_limits() {
        for (url, prefix, limits) in [
            ("sqlite:a.db", "events", StreamLimits::default()),
            (
                "sqlite:a.db?max_bytes=4096&subject_prefix=a.b",
                "a.b",
                StreamLimits::new(0, 4_096, Duration::ZERO),
            ),
            ("nats://h", "events", StreamLimits::new(100_000, 0, Duration::from_secs(7 * 86_400))),
            ("redis://h/orders", "events", StreamLimits::new(100_000, 0, Duration::ZERO)),
            (
                "redis+unix:s?max_events=5&max_age=1d",
                "events",
                StreamLimits::new(5, 0, Duration::from_secs(86_400)),
            ),
            ("nats://h?max_events=5&max_age=0", "events", StreamLimits::new(5, 0, Duration::ZERO)),
        ] {
            let bus = ProviderRegistry::builtin().connect_to(stand_in(url).unwrap()).await.unwrap();
            assert_eq!(bus.subject_prefix(), prefix, "{url}");
            assert_eq!(bus.streams().await.unwrap()[0].limits, Some(limits), "{url}");
        }
    }
}
