//! Settings of the SQLite provider.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::SqliteProvider;
use crate::error::{EventError, Result};
use crate::provider::settings::{Choice, Setting, Settings, common, row};
use crate::provider::support::{Clock, shorten};
use crate::provider::validate::DEFAULT_MAX_EVENT_BYTES;
use crate::provider::{DEFAULT_MAX_UNCONFIRMED_ACKS, DEFAULT_TIMEOUT, EventProvider, Isolation, ProviderUrl};
use crate::subject::validate_prefix;

/// Default time for which a `msg_id` is remembered.
pub const DEFAULT_DEDUP_WINDOW: Duration = Duration::from_secs(120);
/// Default maximum time that a call waits for a writer in another process.
pub const DEFAULT_BUSY_TIMEOUT: Duration = Duration::from_secs(5);

const MAX_COMMIT_DELAY: Duration = Duration::from_secs(1);
const IN_MEMORY: &str = ":memory:";

/// Point at which a publish counts as stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Synchronous {
    /// Stored by the disk: survives a power loss. The default.
    #[default]
    Full,
    /// Stored by the operating system: survives a process crash. A power loss can lose the newest events.
    Normal,
}

impl Choice for Synchronous {
    const ALL: &'static [(&'static str, Self)] = &[("full", Self::Full), ("normal", Self::Normal)];
}

pub(in crate::provider) static SETTINGS: Settings<SqliteConfig> = Settings::new(&[
    row!(
        "(path)" = path,
        Setting::file()
            .rule(|path| !path.is_empty(), "name a file, or be :memory:")
            .doc("path of the file; `:memory:` is a database in memory that ends with the provider")
    ),
    row!(
        "create_if_missing" = create_if_missing,
        Setting::flag().formerly(&["create"]).doc("if true, creates the file if it does not exist")
    ),
    row!(
        "subject_prefix" = subject_prefix,
        Setting::text()
            .doc("leading tokens of every subject; a file keeps the prefix that it was created with")
    ),
    row!("stream_name" = stream_name, common::STREAM_NAME),
    row!("max_events" = max_events, common::MAX_EVENTS),
    row!("max_bytes" = max_bytes, common::MAX_BYTES),
    row!("max_age" = max_age, common::MAX_AGE),
    row!("max_event_bytes" = max_event_bytes, common::MAX_EVENT_BYTES),
    row!("dedup_window" = dedup_window, common::DEDUP_WINDOW),
    row!(
        "synchronous" = synchronous,
        Setting::choice::<Synchronous>()
            .doc("durability of a publish: `full` waits for the disk, `normal` for the operating system")
    ),
    row!(
        "busy_timeout" = busy_timeout,
        Setting::duration()
            .shorter_than(DEFAULT_TIMEOUT)
            .doc("maximum wait for a writer in another process; shorter than the timeout of a call")
    ),
    row!(
        "commit_max_events" = commit_max_events,
        Setting::count("events")
            .least(1)
            .formerly(&["group_events"])
            .doc("maximum number of events, published or settled, in one transaction shared by several calls")
    ),
    row!(
        "commit_max_bytes" = commit_max_bytes,
        Setting::size("bytes of JSON")
            .formerly(&["group_bytes"])
            .doc("maximum size of the events in one transaction shared by several calls")
    ),
    row!(
        "commit_delay" = commit_delay,
        Setting::duration().longest(MAX_COMMIT_DELAY).zero("never waits").formerly(&["group_delay"]).doc(
            "maximum time that a transaction waits for further calls; other processes cannot write meanwhile"
        )
    ),
    row!("max_unconfirmed_acks" = max_unconfirmed_acks, common::MAX_UNCONFIRMED_ACKS),
    row!(
        "cache_size" = cache_size,
        Setting::size("bytes").doc(
            "maximum bytes of the file that the writer caches in memory; a smaller file takes only its own size"
        )
    ),
]);

/// Settings of a [`SqliteProvider`].
///
/// ```
/// use std::time::Duration;
/// use a3s_event::provider::sqlite::{SqliteConfig, SqliteProvider};
///
/// # #[tokio::main]
/// # async fn main() -> a3s_event::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("events.db");
/// let config = SqliteConfig::file(path).max_events(1_000_000).max_age(Duration::from_secs(7 * 24 * 3_600));
/// let provider = SqliteProvider::connect(config).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct SqliteConfig {
    /// Path of the database file; `:memory:` is a database in memory that ends with the provider.
    pub path: PathBuf,
    /// If true, creates the file if it does not exist. Default true; with false, a wrong path is an error.
    pub create_if_missing: bool,
    /// Leading tokens of every subject. Default `events`. A file keeps the prefix that it was created with.
    pub subject_prefix: String,
    /// Name of the stream in [`ReceivedEvent::stream`](crate::ReceivedEvent::stream). Default `sqlite`.
    pub stream_name: String,
    /// Maximum number of stored events; the oldest are dropped. 0 is unlimited, the default.
    pub max_events: u64,
    /// Maximum size of all stored events in bytes of JSON; the oldest are dropped, but never the newest. 0 is
    /// unlimited, the default.
    pub max_bytes: u64,
    /// Maximum age of a stored event. Zero is unlimited, the default.
    pub max_age: Duration,
    /// Maximum size of one event in bytes of JSON. Default 1 MiB, as on NATS.
    pub max_event_bytes: usize,
    /// Time for which a `msg_id` is remembered. Default 120 s; zero disables deduplication.
    pub dedup_window: Duration,
    /// Point at which a publish counts as stored. Default [`Synchronous::Full`].
    pub synchronous: Synchronous,
    /// Maximum time that a call waits for a writer in another process. Default 5 s.
    pub busy_timeout: Duration,
    /// Maximum number of events, published or settled, in one transaction shared by several calls. Default 1,000.
    pub commit_max_events: usize,
    /// Maximum bytes of JSON in one transaction shared by several calls. Default 4 MiB.
    pub commit_max_bytes: usize,
    /// Maximum time that a transaction waits for further calls before its commit. Default 1 ms; zero never waits.
    ///
    /// The transaction waits only while it has fewer calls than the previous one. It waits for each call no longer than
    /// a commit takes here. A single caller never waits. Many callers that call again as soon as they are answered
    /// share one commit.
    pub commit_delay: Duration,
    /// Maximum number of queued acks per subscription that are not stored yet. Also the maximum number of stored acks
    /// of the provider that a power loss could undo. Default 1,000.
    pub max_unconfirmed_acks: usize,
    pub(super) clock: Clock,
    /// Maximum bytes of the file that the writer caches in memory. Default 16 MiB; a smaller file takes only its own
    /// size.
    pub cache_size: u64,
}

impl SqliteConfig {
    /// Returns the default settings for a file. The provider creates the file if it does not exist.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            create_if_missing: true,
            subject_prefix: "events".to_owned(),
            stream_name: "sqlite".to_owned(),
            max_events: 0,
            max_bytes: 0,
            max_age: Duration::ZERO,
            max_event_bytes: DEFAULT_MAX_EVENT_BYTES,
            dedup_window: DEFAULT_DEDUP_WINDOW,
            synchronous: Synchronous::Full,
            busy_timeout: DEFAULT_BUSY_TIMEOUT,
            commit_max_events: 1_000,
            commit_max_bytes: 4 * 1024 * 1024,
            commit_delay: Duration::from_millis(1),
            max_unconfirmed_acks: DEFAULT_MAX_UNCONFIRMED_ACKS,
            clock: Clock::default(),
            cache_size: 16 * 1024 * 1024,
        }
    }

    /// Returns the default settings for a database in memory, which ends with the provider.
    pub fn in_memory() -> Self {
        Self::file(IN_MEMORY)
    }

    /// Sets whether the provider creates the file if it does not exist.
    pub fn create_if_missing(mut self, create: bool) -> Self {
        self.create_if_missing = create;
        self
    }

    /// Sets the leading tokens of every subject.
    pub fn subject_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.subject_prefix = prefix.into();
        self
    }

    /// Sets the name of the stream in received events.
    pub fn stream_name(mut self, name: impl Into<String>) -> Self {
        self.stream_name = name.into();
        self
    }

    /// Sets the maximum number of stored events; 0 is unlimited.
    pub fn max_events(mut self, max: u64) -> Self {
        self.max_events = max;
        self
    }

    /// Sets the maximum size of all stored events in bytes of JSON; 0 is unlimited.
    pub fn max_bytes(mut self, max: u64) -> Self {
        self.max_bytes = max;
        self
    }

    /// Sets the maximum age of a stored event; zero is unlimited.
    pub fn max_age(mut self, max: Duration) -> Self {
        self.max_age = max;
        self
    }

    /// Sets the maximum size of one event in bytes of JSON.
    pub fn max_event_bytes(mut self, max: usize) -> Self {
        self.max_event_bytes = max;
        self
    }

    /// Sets the time for which a `msg_id` is remembered; zero disables deduplication.
    pub fn dedup_window(mut self, window: Duration) -> Self {
        self.dedup_window = window;
        self
    }

    /// Sets the point at which a publish counts as stored.
    pub fn synchronous(mut self, synchronous: Synchronous) -> Self {
        self.synchronous = synchronous;
        self
    }

    /// Sets the maximum time that a call waits for a writer in another process.
    pub fn busy_timeout(mut self, timeout: Duration) -> Self {
        self.busy_timeout = timeout;
        self
    }

    /// Sets the maximum number of events, published or settled, in one transaction shared by several calls.
    pub fn commit_max_events(mut self, events: usize) -> Self {
        self.commit_max_events = events;
        self
    }

    /// Sets the maximum bytes of JSON in one transaction shared by several calls.
    pub fn commit_max_bytes(mut self, bytes: usize) -> Self {
        self.commit_max_bytes = bytes;
        self
    }

    /// Sets the maximum time that a transaction waits for further calls before its commit; zero never waits.
    pub fn commit_delay(mut self, delay: Duration) -> Self {
        self.commit_delay = delay;
        self
    }

    /// Sets the maximum number of queued acks per subscription that are not stored yet. It is also the maximum number
    /// of stored acks of the provider that a power loss could undo.
    pub fn max_unconfirmed_acks(mut self, max: usize) -> Self {
        self.max_unconfirmed_acks = max;
        self
    }

    /// Sets the maximum bytes of the file that the writer caches in memory.
    pub fn cache_size(mut self, bytes: u64) -> Self {
        self.cache_size = bytes;
        self
    }

    /// Sets the clock of storage times, leases and ages. Default: the system's clock.
    #[cfg(feature = "testing")]
    #[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Returns the path of the file; `None` for a database in memory.
    pub(super) fn file_path(&self) -> Option<&Path> {
        Some(self.path.as_path()).filter(|path| *path != Path::new(IN_MEMORY))
    }

    /// Checks the settings without opening the file.
    pub(super) fn check(&self) -> Result<()> {
        SETTINGS.check(self)?;
        validate_prefix(&self.subject_prefix)
    }
}

impl fmt::Debug for SqliteConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SETTINGS.debug("SqliteConfig", self, f)
    }
}

/// Connects to `sqlite:///path/to/file[?key=value&…]`, `sqlite:relative/path` or `sqlite::memory:`.
pub(in crate::provider) async fn connect(url: ProviderUrl) -> Result<Arc<dyn EventProvider>> {
    Ok(Arc::new(SqliteProvider::connect(from_url(&url)?).await?))
}

/// Returns a URL with a file of its own, or for another database in memory.
pub(in crate::provider) fn isolate(url: ProviderUrl, isolation: &Isolation) -> Option<ProviderUrl> {
    let url = isolation.limit(url);
    if url.path() == IN_MEMORY {
        return Some(url);
    }
    let file = isolation.folder.join(format!("{}.db", isolation.name));
    Some(url.without_setting("create_if_missing").with_path(file.to_string_lossy()))
}

/// Returns the path of the file of a URL; `None` for a database in memory.
pub(in crate::provider) fn file(url: &ProviderUrl) -> Option<PathBuf> {
    let path = url.path();
    (url.authority().is_empty() && !matches!(path, "" | IN_MEMORY)).then(|| path.into())
}

fn from_url(url: &ProviderUrl) -> Result<SqliteConfig> {
    url.refuse_credentials()?;
    if !url.authority().is_empty() {
        let path = shorten(&format!("{}{}", url.authority(), url.path()));
        return Err(EventError::Config(format!(
            "provider URL: a file has no host; write sqlite:///{path} for an absolute path or sqlite:{path} for a relative one"
        )));
    }
    let mut config = SqliteConfig::file(url.path());
    SETTINGS.read(url, &mut config)?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_of_the_url_takes_effect() {
        let url = "sqlite:///data/e.db?create_if_missing=false&subject_prefix=acme.events&stream_name=orders&max_events=7&max_bytes=9000\
                   &max_age=1m&max_event_bytes=2000&dedup_window=5s&synchronous=normal&busy_timeout=250ms\
                   &commit_max_events=3&commit_max_bytes=4KiB&commit_delay=250us\
                   &cache_size=1000000";
        let expected = SqliteConfig::file("/data/e.db")
            .create_if_missing(false)
            .subject_prefix("acme.events")
            .stream_name("orders")
            .max_events(7)
            .max_bytes(9_000)
            .max_age(Duration::from_secs(60))
            .max_event_bytes(2_000)
            .dedup_window(Duration::from_secs(5))
            .synchronous(Synchronous::Normal)
            .busy_timeout(Duration::from_millis(250))
            .commit_max_events(3)
            .commit_max_bytes(4_096)
            .commit_delay(Duration::from_micros(250))
            .cache_size(1_000_000);
        assert_eq!(from_url(&ProviderUrl::parse(url).unwrap()).unwrap(), expected);
    }

    #[test]
    fn the_forms_of_a_path_are_told_apart() {
        let path = |url| from_url(&ProviderUrl::parse(url).unwrap()).map(|config| config.path);
        assert_eq!(path("sqlite:///data/e.db").unwrap(), Path::new("/data/e.db"));
        assert_eq!(path("sqlite:data/e.db").unwrap(), Path::new("data/e.db"));
        assert_eq!(SqliteConfig::file(path("sqlite::memory:").unwrap()), SqliteConfig::in_memory());
        assert!(path("sqlite://data/e.db").unwrap_err().to_string().contains("sqlite:data/e.db"));
        assert!(path("sqlite:e.db?synchronous=off").unwrap_err().to_string().contains("full or normal"));
        assert!(path("sqlite:e.db?max_event=1").unwrap_err().to_string().contains("valid are"));
        let refused = path("sqlite://user:hunter2@/e.db").unwrap_err().to_string();
        assert!(refused.contains("no user name") && !refused.contains("hunter2"), "{refused}");
    }

    #[test]
    fn wrong_settings_are_refused_with_their_name() {
        let config = SqliteConfig::in_memory;
        for (config, name) in [
            (config().subject_prefix("events."), "subject_prefix"),
            (config().stream_name(""), "stream_name"),
            (config().max_event_bytes(10), "max_event_bytes"),
            (config().max_bytes(10), "max_bytes"),
            (config().busy_timeout(Duration::from_secs(60)), "busy_timeout"),
            (config().commit_max_events(0), "commit_max_events"),
            (config().commit_delay(Duration::from_secs(2)), "commit_delay"),
            (SqliteConfig::file(""), "path"),
        ] {
            let error = config.check().unwrap_err();
            assert!(matches!(&error, EventError::Config(text) if text.starts_with(name)), "{error}");
        }
    }
}
