//! Logs of the library and its clients, on stderr.

use std::io::{self, Write};

use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{FilterExt as _, Targets, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::text;

/// Starts logging by the filter, else by the number of `-v`.
pub(crate) fn to_stderr(filter: Option<Targets>, verbose: u8) {
    let shows_connections = filter.is_none();
    let targets = filter.unwrap_or_else(|| by_count(verbose));
    let of_connections = filter_fn(move |metadata| shows_connections && tells_of_connection(metadata));
    let layer = tracing_subscriber::fmt::layer().with_writer(|| Escaped).with_ansi(false);
    let layer = layer.with_filter(targets.or(of_connections).and(filter_fn(shows_no_secret)));
    // It fails if there is a subscriber already, which then stays.
    let _ = tracing_subscriber::registry().with(layer).try_init();
}

/// Returns the log levels for the number of `-v`. Warnings are always logged.
fn by_count(verbose: u8) -> Targets {
    let (ours, others) = match verbose {
        0 => (LevelFilter::WARN, LevelFilter::OFF),
        1 => (LevelFilter::INFO, LevelFilter::WARN),
        2 => (LevelFilter::DEBUG, LevelFilter::INFO),
        _ => (LevelFilter::TRACE, LevelFilter::DEBUG),
    };
    Targets::new().with_default(others).with_target("a3s_event", ours)
}

/// Returns `true` for the log of a provider about its connection: that it is lost, and at the level info that it is back.
fn tells_of_connection(metadata: &Metadata<'_>) -> bool {
    let mut modules = metadata.target().split("::");
    let is_of_provider = modules.next() == Some("a3s_event") && modules.next() == Some("provider");
    is_of_provider && modules.nth(1) == Some("link") && *metadata.level() <= Level::INFO
}

/// Returns `false` for the finest level of the clients, which logs their raw traffic.
fn shows_no_secret(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= Level::DEBUG || metadata.target().starts_with("a3s_event")
}

/// Writes to stderr and escapes terminal control characters. The subscriber writes a line at a time.
struct Escaped;

impl Write for Escaped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // If stderr is closed, the error has no reader.
        let _ = io::stderr().write_all(text::escape(&String::from_utf8_lossy(bytes)).as_bytes());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_v_tells_more_and_none_tells_secrets() {
        let tells = |verbose, target, level| by_count(verbose).would_enable(target, &level);
        assert!(tells(0, "a3s_event::provider", Level::WARN) && !tells(0, "a3s_event", Level::INFO));
        assert!(tells(1, "a3s_event", Level::INFO) && tells(2, "a3s_event", Level::DEBUG));
        assert!(!tells(9, "async_nats", Level::TRACE));
    }
}
