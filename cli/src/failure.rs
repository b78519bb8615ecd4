//! Failures of commands: their messages, and the exit codes for scripts.

use std::fmt::Write as _;
use std::io;

use a3s_event::{ErrorKind, EventError};

use crate::moment;
use crate::text::line;

/// The result of a command.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// Field of a conflict about the start of a consumer.
const START: &str = "deliver_policy";

/// Advice for events with an unknown outcome.
pub(crate) const SAME_ID: &str = "Publish them again with the same id (--id): within the dedup window, 2 minutes by default, they are stored once";

/// The reason why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line is wrong.
    Usage(String),
    /// A file, a payload, a setting or another input is wrong.
    Input(String),
    /// The stream or the file of the bus does not exist, and the command must not create it.
    Missing(String),
    /// The bus does not answer, or rejects the credentials.
    Unreachable(String),
    /// No answer arrived for these events: they may be stored.
    Unknown { ids: Vec<String>, reason: String, retry: &'static str },
    /// The command found a problem that it checks for, such as a difference.
    Found(String),
    /// Anything else.
    Other(String),
    /// The reader of stdout has closed it.
    StdoutClosed,
}

impl Failure {
    /// Returns the exit code.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::StdoutClosed => 0,
            Self::Found(_) | Self::Other(_) => 1,
            Self::Usage(_) => 2,
            Self::Input(_) | Self::Missing(_) => 3,
            Self::Unreachable(_) => 4,
            Self::Unknown { .. } => 5,
        }
    }

    /// Returns the message for stderr.
    pub(crate) fn message(&self) -> String {
        match self {
            Self::StdoutClosed => String::new(),
            Self::Usage(text)
            | Self::Input(text)
            | Self::Missing(text)
            | Self::Unreachable(text)
            | Self::Found(text)
            | Self::Other(text) => line(text),
            Self::Unknown { ids, reason, retry } => {
                let ids: Vec<_> = ids.iter().map(|id| line(id)).collect();
                let ids = ids.join("\n  ");
                format!(
                    "{}\nthe outcome is unknown: these events may have been stored. {retry}:\n  {ids}",
                    line(reason)
                )
            }
        }
    }

    /// Appends text to the message.
    pub(crate) fn and(self, more: &str) -> Self {
        self.map(|text| format!("{text}; {more}"))
    }

    /// Prepends the place of the failure to the message, such as `record 3: `.
    pub(crate) fn before(self, place: &str) -> Self {
        self.map(|text| format!("{place}{text}"))
    }

    fn map(self, longer: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::Usage(text) => Self::Usage(longer(text)),
            Self::Input(text) => Self::Input(longer(text)),
            Self::Missing(text) => Self::Missing(longer(text)),
            Self::Unreachable(text) => Self::Unreachable(longer(text)),
            Self::Found(text) => Self::Found(longer(text)),
            Self::Other(text) => Self::Other(longer(text)),
            Self::Unknown { ids, reason, retry } => Self::Unknown { ids, reason: longer(reason), retry },
            Self::StdoutClosed => Self::StdoutClosed,
        }
    }

    /// Creates the failure of a publish of the events with these ids.
    pub(crate) fn publish(error: &EventError, ids: Vec<String>) -> Self {
        if error.may_be_stored() {
            return Self::Unknown { ids, reason: chain(error), retry: SAME_ID };
        }
        Self::of(error)
    }

    fn of(error: &EventError) -> Self {
        let said = match error {
            EventError::Conflict { resource, field, existing, requested } => format!(
                "conflict: {resource} has {} {}, and the command asks for {}",
                if field == START { "start" } else { field },
                plain(existing),
                plain(requested)
            ),
            error => chain(error),
        };
        let text = match next_step(error) {
            Some(step) => format!("{said}; {step}"),
            None => said,
        };
        // A command that only looks sets this by itself.
        let text = text.replace("no longer exists, and create_if_missing is false", "no longer exists");
        match error.kind() {
            ErrorKind::Connection | ErrorKind::Timeout | ErrorKind::Unauthorized => Self::Unreachable(text),
            ErrorKind::InvalidInput
            | ErrorKind::Config
            | ErrorKind::Schema
            | ErrorKind::Serialization
            | ErrorKind::Unsupported => Self::Input(text),
            _ => Self::Other(text),
        }
    }
}

impl From<EventError> for Failure {
    fn from(error: EventError) -> Self {
        Self::of(&error)
    }
}

impl From<io::Error> for Failure {
    /// Converts an error of stdout; errors of other files name their file.
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::StdoutClosed;
        }
        Self::Other(error.to_string())
    }
}

/// Formats a value that the library has in the form of Rust: `["a", "b"]` is `'a', 'b'`.
fn plain(value: &str) -> String {
    let of = |start: &str, end: &str| value.strip_prefix(start)?.strip_suffix(end);
    if let Some(sequence) = of("ByStartSequence { sequence: ", " }") {
        return format!("sequence {sequence}");
    }
    if let Some(time) = of("ByStartTime { timestamp: ", " }") {
        return time.parse().map_or_else(|_| time.to_owned(), moment::show);
    }
    if value == "LastPerSubject" {
        return "last-per-subject".to_owned();
    }
    let is_name = !value.is_empty() && value.chars().all(|c| c.is_ascii_alphabetic());
    let value = of("[", "]").unwrap_or(value);
    if is_name { value.to_lowercase() } else { value.replace('"', "'") }
}

/// Returns the next step for a person, if the error does not name it.
fn next_step(error: &EventError) -> Option<&'static str> {
    match error {
        // The rule of the prefix names the likely subject.
        EventError::InvalidSubject { rule, .. } if !rule.contains("subject_prefix") => {
            Some("tokens are separated by dots; in a filter, * matches one token and > the rest")
        }
        EventError::Conflict { resource, .. } if resource.starts_with("stream ") => Some(
            "set the URL as the stream is, or name another stream, such as nats://HOST/NAME; `streams rm` deletes a stream",
        ),
        EventError::Conflict { field, .. } if field == START => {
            Some("a start is for a new consumer; `consumers reset` moves an existing one")
        }
        EventError::NotFound(_) => Some("`history`, `dlq list` and `consumers` show what exists"),
        _ => None,
    }
}

/// Formats an error and its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let reason = error.to_string();
        if !text.contains(&reason) {
            let _ = write!(text, ": {reason}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_conflicts_are_plain_text() {
        for (value, shown) in [
            (r#"["events.>", "a.*"]"#, "'events.>', 'a.*'"),
            ("ByStartSequence { sequence: 5 }", "sequence 5"),
            ("ByStartTime { timestamp: 1517966773840 }", "2018-02-07T01:26:13.840Z"),
            ("LastPerSubject", "last-per-subject"),
            ("All", "all"),
            ("Memory", "memory"),
            ("120s", "120s"),
            ("taken by stream 'A'", "taken by stream 'A'"),
        ] {
            assert_eq!(plain(value), shown);
        }
    }
}
