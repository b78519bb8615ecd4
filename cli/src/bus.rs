//! Connects a command to its bus.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use a3s_event::EventProvider;
use a3s_event::provider::settings::Kind;
use a3s_event::provider::{ProviderRegistry, ProviderUrl, Scheme};

use crate::args::Global;
use crate::config::{Config, Origin};
use crate::failure::{Failure, Outcome};
use crate::keys::Keys;
use crate::output::Output;

/// Timeout for closing subscriptions and connections.
const LEAVE: Duration = Duration::from_secs(2);
/// Timeout for a connection; the providers' own timeouts are shorter.
const CONNECT: Duration = Duration::from_secs(30);

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

    /// Connects to the bus.
    pub(crate) async fn connect(&mut self) -> Outcome<Arc<dyn EventProvider>> {
        let (url, _) = self.url()?;
        self.open(&url, true).await
    }

    /// Connects to the bus for reading: a wrong name creates no file and no stream. The default file need not exist.
    pub(crate) async fn connect_to_look(&mut self) -> Outcome<Arc<dyn EventProvider>> {
        let (url, origin) = self.url()?;
        self.open(&url, origin == Origin::Default).await
    }

    /// Connects to the bus of a name or a URL.
    pub(crate) async fn connect_to(&mut self, bus: &str) -> Outcome<Arc<dyn EventProvider>> {
        let url = self.config.named(bus)?;
        self.open(&url, true).await
    }

    /// Connects to the bus of a name or a URL, for reading.
    pub(crate) async fn connect_to_look_at(&mut self, bus: &str) -> Outcome<Arc<dyn EventProvider>> {
        let url = self.config.named(bus)?;
        self.open(&url, false).await
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

async fn connect(url: &str, may_create: bool) -> Outcome<Arc<dyn EventProvider>> {
    tracing::info!(url = redacted(url), "connecting");
    let registry = ProviderRegistry::builtin();
    let settings = if may_create { url.to_owned() } else { existing(url) };
    match tokio::time::timeout(CONNECT, registry.connect(&settings)).await {
        Ok(connected) => {
            let provider = connected.map_err(|error| match Failure::from(error) {
                Failure::Unreachable(text) => Failure::Unreachable(format!("{}: {text}", redacted(url))),
                other => other,
            })?;
            tracing::debug!(provider = provider.name(), capabilities = ?provider.capabilities(), "connected");
            Ok(provider)
        }
        Err(_elapsed) => {
            Err(Failure::Unreachable(format!("{}: no connection within {CONNECT:?}", redacted(url))))
        }
    }
}

/// Adds `create_if_missing=false` to the URL if its provider has that setting and the URL does not set it.
pub(crate) fn existing(url: &str) -> String {
    const CREATE: &str = "create_if_missing";
    let registry = ProviderRegistry::builtin();
    let can_create = |parsed: &ProviderUrl| {
        let scheme = registry.scheme(parsed.scheme());
        parsed.setting(CREATE).is_none()
            && scheme.is_some_and(|scheme| scheme.settings().any(|setting| setting.key() == CREATE))
    };
    match ProviderUrl::parse(url) {
        Ok(parsed) if can_create(&parsed) => {
            let separator = if url.contains('?') { '&' } else { '?' };
            format!("{url}{separator}{CREATE}=false")
        }
        _ => url.to_owned(),
    }
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
                tracing::warn!("closing the connection timed out after {LEAVE:?}; completed publishes and acks remain valid");
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

    #[test]
    fn only_values_that_are_known_to_be_harmless_are_shown() {
        for (url, shown) in [
            ("nats://h/S?subject_prefix=a.b&storage=memory", "nats://h/S?subject_prefix=a.b&storage=memory"),
            ("nats://u:s3cret@h?max_events=5&token=s3cret", "nats://***@h?max_events=5&token=***"),
            ("nats://h?nkey=s3cret&tls_first=true", "nats://h?nkey=***&tls_first=true"),
            ("nats://h?client_key=s3cret", "nats://h?client_key=***"),
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
        for key in ["token", "nkey", "credentials_path", "client_key"] {
            assert!(secrets.contains(&key), "{key} is not among {secrets:?}");
        }
    }

    #[test]
    fn a_command_that_only_looks_creates_nothing() {
        for (url, existing_url) in [
            ("sqlite:a.db", "sqlite:a.db?create_if_missing=false"),
            ("tls://h/S?max_events=1", "tls://h/S?max_events=1&create_if_missing=false"),
            ("nats://h?create_if_missing=true", "nats://h?create_if_missing=true"),
            ("memory://", "memory://"),
            ("mine://h", "mine://h"),
        ] {
            assert_eq!(existing(url), existing_url);
        }
    }
}
