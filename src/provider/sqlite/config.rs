//! Settings of the SQLite provider.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::SqliteProvider;
use crate::error::{EventError, Result};
use crate::provider::support::{check_max_bytes, check_max_payload, shorten};
use crate::provider::validate::DEFAULT_MAX_PAYLOAD;
use crate::provider::{DEFAULT_TIMEOUT, EventProvider, ProviderUrl};
use crate::subject::validate_prefix;

/// How long a `msg_id` is remembered unless configured otherwise.
pub const DEFAULT_DEDUP_WINDOW: Duration = Duration::from_secs(120);
/// How long to wait for a writer in another process unless configured otherwise.
pub const DEFAULT_BUSY_TIMEOUT: Duration = Duration::from_secs(5);

const MAX_GROUP_DELAY: Duration = Duration::from_secs(1);
const IN_MEMORY: &str = ":memory:";

/// When a publish counts as stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Synchronous {
    /// When the disk has it: survives a loss of power. The default.
    #[default]
    Full,
    /// When the operating system has it: survives a crash of the process; a loss of power can take the newest events.
    Normal,
}

impl Synchronous {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Full => "FULL",
            Self::Normal => "NORMAL",
        }
    }
}

impl FromStr for Synchronous {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "full" => Ok(Self::Full),
            "normal" => Ok(Self::Normal),
            _ => Err("must be full or normal".to_owned()),
        }
    }
}

/// The settings of a [`SqliteProvider`].
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
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct SqliteConfig {
    /// The database file; `:memory:` is a database that is gone with the provider.
    pub path: PathBuf,
    /// Whether to make the file when it does not exist. Default true; where it should be there, false finds a wrong path.
    pub create: bool,
    /// What every subject begins with. Default `events`. A file keeps the prefix that it was made with.
    pub subject_prefix: String,
    /// Name of the stream in [`ReceivedEvent::stream`](crate::ReceivedEvent::stream). Default `sqlite`.
    pub stream_name: String,
    /// Most stored events; the oldest are dropped. 0 is unlimited, the default.
    pub max_events: u64,
    /// Most stored bytes of JSON; the oldest events are dropped, but never the newest. 0 is unlimited, the default.
    pub max_bytes: u64,
    /// How long events are kept. Zero is for ever, the default.
    pub max_age: Duration,
    /// Largest event in bytes of JSON. Default 1 MiB, as on NATS.
    pub max_payload: usize,
    /// How long a `msg_id` is remembered. Default 120 s; zero switches deduplication off.
    pub dedup_window: Duration,
    /// When a publish counts as stored. Default [`Synchronous::Full`].
    pub synchronous: Synchronous,
    /// How long to wait for a writer in another process. Default 5 s.
    pub busy_timeout: Duration,
    /// Most events, published or settled, in one transaction that calls share. Default 1,000.
    pub group_events: usize,
    /// Most bytes of JSON in one transaction that calls share. Default 4 MiB.
    pub group_bytes: usize,
    /// Longest time that a transaction waits for further calls before it is committed. Default 1 ms; zero never waits.
    ///
    /// It waits only while it has fewer calls than the one before it had, and for each of them no longer than a commit
    /// takes here: a lone caller never waits, and many that call again as soon as they are answered share one commit.
    pub group_delay: Duration,
    /// How wrong the clock is in a test.
    #[cfg(test)]
    pub(super) skew: super::clock::Skew,
    /// Most bytes of the file that the writer keeps in memory. Default 16 MiB, of which a smaller file takes its own size.
    pub cache_size: u64,
}

impl SqliteConfig {
    /// The default settings for a file, which is made when it does not exist.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            create: true,
            subject_prefix: "events".to_owned(),
            stream_name: "sqlite".to_owned(),
            max_events: 0,
            max_bytes: 0,
            max_age: Duration::ZERO,
            max_payload: DEFAULT_MAX_PAYLOAD,
            dedup_window: DEFAULT_DEDUP_WINDOW,
            synchronous: Synchronous::Full,
            busy_timeout: DEFAULT_BUSY_TIMEOUT,
            group_events: 1_000,
            group_bytes: 4 * 1024 * 1024,
            group_delay: Duration::from_millis(1),
            #[cfg(test)]
            skew: super::clock::Skew::default(),
            cache_size: 16 * 1024 * 1024,
        }
    }

    /// The default settings for a database that is gone with the provider.
    pub fn in_memory() -> Self {
        Self::file(IN_MEMORY)
    }

    /// Whether to make the file when it does not exist.
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// What every subject begins with.
    pub fn subject_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.subject_prefix = prefix.into();
        self
    }

    /// Name of the stream in received events.
    pub fn stream_name(mut self, name: impl Into<String>) -> Self {
        self.stream_name = name.into();
        self
    }

    /// Most stored events; 0 is unlimited.
    pub fn max_events(mut self, max: u64) -> Self {
        self.max_events = max;
        self
    }

    /// Most stored bytes of JSON; 0 is unlimited.
    pub fn max_bytes(mut self, max: u64) -> Self {
        self.max_bytes = max;
        self
    }

    /// How long events are kept; zero is for ever.
    pub fn max_age(mut self, max: Duration) -> Self {
        self.max_age = max;
        self
    }

    /// Largest event in bytes of JSON.
    pub fn max_payload(mut self, max: usize) -> Self {
        self.max_payload = max;
        self
    }

    /// How long a `msg_id` is remembered; zero switches deduplication off.
    pub fn dedup_window(mut self, window: Duration) -> Self {
        self.dedup_window = window;
        self
    }

    /// When a publish counts as stored.
    pub fn synchronous(mut self, synchronous: Synchronous) -> Self {
        self.synchronous = synchronous;
        self
    }

    /// How long to wait for a writer in another process.
    pub fn busy_timeout(mut self, timeout: Duration) -> Self {
        self.busy_timeout = timeout;
        self
    }

    /// Most events, published or settled, in one transaction that calls share.
    pub fn group_events(mut self, events: usize) -> Self {
        self.group_events = events;
        self
    }

    /// Most bytes of JSON in one transaction that calls share.
    pub fn group_bytes(mut self, bytes: usize) -> Self {
        self.group_bytes = bytes;
        self
    }

    /// Longest time that a transaction waits for further calls before it is committed; zero never waits.
    pub fn group_delay(mut self, delay: Duration) -> Self {
        self.group_delay = delay;
        self
    }

    /// Most bytes of the file that the writer keeps in memory.
    pub fn cache_size(mut self, bytes: u64) -> Self {
        self.cache_size = bytes;
        self
    }

    /// The file; `None` for a database in memory.
    pub(super) fn file_path(&self) -> Option<&Path> {
        Some(self.path.as_path()).filter(|path| *path != Path::new(IN_MEMORY))
    }

    /// Checks what can be checked without opening the file.
    pub(super) fn check(&self) -> Result<()> {
        validate_prefix(&self.subject_prefix)?;
        let refuse = |text: String| Err(EventError::Config(text));
        if self.path.as_os_str().is_empty() {
            return refuse("path \"\": must name a file, or be :memory:".to_owned());
        }
        if self.stream_name.is_empty() {
            return refuse("stream_name \"\": must not be empty".to_owned());
        }
        check_max_payload(self.max_payload)?;
        check_max_bytes(self.max_bytes)?;
        if self.busy_timeout >= DEFAULT_TIMEOUT {
            let (timeout, max) = (self.busy_timeout, DEFAULT_TIMEOUT);
            return refuse(format!(
                "busy_timeout {timeout:?}: must be below {max:?}, the deadline of a call"
            ));
        }
        if self.group_events == 0 {
            return refuse("group_events 0: must be at least 1".to_owned());
        }
        if self.group_delay > MAX_GROUP_DELAY {
            let delay = self.group_delay;
            return refuse(format!(
                "group_delay {delay:?}: must be at most {MAX_GROUP_DELAY:?}, while which no other process can write"
            ));
        }
        Ok(())
    }
}

/// Connects to `sqlite:///path/to/file[?key=value&…]`, `sqlite:relative/path` or `sqlite::memory:`.
pub(in crate::provider) async fn connect(url: ProviderUrl) -> Result<Arc<dyn EventProvider>> {
    Ok(Arc::new(SqliteProvider::connect(from_url(&url)?).await?))
}

fn from_url(url: &ProviderUrl) -> Result<SqliteConfig> {
    url.allow_settings(&[
        "create",
        "subject_prefix",
        "stream_name",
        "max_events",
        "max_bytes",
        "max_age_secs",
        "max_payload",
        "dedup_window_secs",
        "synchronous",
        "busy_timeout_ms",
        "group_events",
        "group_bytes",
        "group_delay_us",
        "cache_size",
    ])?;
    url.refuse_credentials()?;
    if !url.authority().is_empty() {
        let path = shorten(&format!("{}{}", url.authority(), url.path()));
        return Err(EventError::Config(format!(
            "provider URL: a file has no host, write sqlite:///{path} for an absolute path or sqlite:{path} for a relative one"
        )));
    }
    let mut config = SqliteConfig::file(url.path());
    let secs = |key| Ok::<_, EventError>(url.setting(key)?.map(Duration::from_secs));
    set(&mut config.create, url.setting("create")?);
    set(&mut config.subject_prefix, url.setting("subject_prefix")?);
    set(&mut config.stream_name, url.setting("stream_name")?);
    set(&mut config.max_events, url.setting("max_events")?);
    set(&mut config.max_bytes, url.setting("max_bytes")?);
    set(&mut config.max_age, secs("max_age_secs")?);
    set(&mut config.max_payload, url.setting("max_payload")?);
    set(&mut config.dedup_window, secs("dedup_window_secs")?);
    set(&mut config.synchronous, url.setting("synchronous")?);
    set(&mut config.busy_timeout, url.setting("busy_timeout_ms")?.map(Duration::from_millis));
    set(&mut config.group_events, url.setting("group_events")?);
    set(&mut config.group_bytes, url.setting("group_bytes")?);
    set(&mut config.group_delay, url.setting("group_delay_us")?.map(Duration::from_micros));
    set(&mut config.cache_size, url.setting("cache_size")?);
    Ok(config)
}

fn set<T>(setting: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *setting = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_of_the_url_takes_effect() {
        let url = "sqlite:///data/e.db?create=false&subject_prefix=acme.events&stream_name=orders&max_events=7&max_bytes=9000\
                   &max_age_secs=60&max_payload=2000&dedup_window_secs=5&synchronous=normal&busy_timeout_ms=250\
                   &group_events=3&group_bytes=4000&group_delay_us=250\
                   &cache_size=1000000";
        let expected = SqliteConfig::file("/data/e.db")
            .create(false)
            .subject_prefix("acme.events")
            .stream_name("orders")
            .max_events(7)
            .max_bytes(9_000)
            .max_age(Duration::from_secs(60))
            .max_payload(2_000)
            .dedup_window(Duration::from_secs(5))
            .synchronous(Synchronous::Normal)
            .busy_timeout(Duration::from_millis(250))
            .group_events(3)
            .group_bytes(4_000)
            .group_delay(Duration::from_micros(250))
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
            (config().max_payload(10), "max_payload"),
            (config().max_bytes(10), "max_bytes"),
            (config().busy_timeout(Duration::from_secs(60)), "busy_timeout"),
            (config().group_events(0), "group_events"),
            (config().group_delay(Duration::from_secs(2)), "group_delay"),
            (SqliteConfig::file(""), "path"),
        ] {
            let error = config.check().unwrap_err();
            assert!(matches!(&error, EventError::Config(text) if text.starts_with(name)), "{error}");
        }
    }
}
