//! Isolated streams for tests.

use std::path::PathBuf;
use std::time::Duration;

use super::ProviderUrl;
use crate::duration;

/// A request for a fresh stream next to the stream of a URL, for a test. A [scheme](super::Scheme::isolated_by) makes
/// its URL.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Isolation {
    /// Unique name of the stream: letters, digits and `_`.
    pub name: String,
    /// Folder for the files of the stream. The caller removes it.
    pub folder: PathBuf,
    /// Maximum number of stored events; the oldest are dropped.
    pub max_events: Option<usize>,
    /// Maximum size of all stored events in bytes; the oldest are dropped, but never the newest.
    pub max_bytes: Option<u64>,
    /// Time for which a `msg_id` is remembered for deduplication.
    pub dedup_window: Option<Duration>,
}

impl Isolation {
    /// Creates a request for a stream with the settings of the URL.
    pub fn new(name: impl Into<String>, folder: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            folder: folder.into(),
            max_events: None,
            max_bytes: None,
            dedup_window: None,
        }
    }

    /// Adds the limits to a URL whose settings are named `max_events`, `max_bytes` and `dedup_window`.
    pub fn limit(&self, url: ProviderUrl) -> ProviderUrl {
        let limits = [
            ("max_events", self.max_events.map(|max| max.to_string())),
            ("max_bytes", self.max_bytes.map(|max| max.to_string())),
            ("dedup_window", self.dedup_window.map(duration::format)),
        ];
        limits.into_iter().fold(url, |url, (key, value)| match value {
            Some(value) => url.with_setting(key, value),
            None => url,
        })
    }
}
