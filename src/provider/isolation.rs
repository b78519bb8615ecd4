//! Streams apart from all others, for tests.

use std::path::PathBuf;
use std::time::Duration;

use super::ProviderUrl;
use crate::duration;

/// A fresh stream that a test wants next to the one of a URL, and what it is to be like. A [scheme](super::Scheme::isolated_by)
/// says how its URL is made.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Isolation {
    /// What no other stream is called: letters, digits and `_`.
    pub name: String,
    /// A folder for what is kept in files, which whoever asks removes.
    pub folder: PathBuf,
    /// Most stored events; the oldest are dropped.
    pub max_events: Option<usize>,
    /// Most stored bytes; the oldest events are dropped, but never the newest one.
    pub max_bytes: Option<u64>,
    /// How long a `msg_id` is remembered.
    pub dedup_window: Option<Duration>,
}

impl Isolation {
    /// A stream with the settings of the URL.
    pub fn new(name: impl Into<String>, folder: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            folder: folder.into(),
            max_events: None,
            max_bytes: None,
            dedup_window: None,
        }
    }

    /// Writes the limits into a URL whose settings are called `max_events`, `max_bytes` and `dedup_window`.
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
