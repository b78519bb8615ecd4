//! How a command fails: what is printed, and the exit code that scripts can act on.

use std::fmt::Write as _;
use std::io;

use a3s_event::{ErrorKind, EventError};

use crate::text::line;

/// What a command returns.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// How events are published again whose outcome is unknown.
pub(crate) const SAME_ID: &str = "Publish them again with the same id (--id), which stores them once";

/// Why a command ended early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line says something that cannot be meant.
    Usage(String),
    /// A file, a payload, a setting or another input is wrong.
    Input(String),
    /// The bus gives no answer, or does not let us in.
    Unreachable(String),
    /// These events may have been stored: no answer says what became of them.
    Unknown { ids: Vec<String>, reason: String, retry: &'static str },
    /// Something was found that the command looked for, such as a difference.
    Found(String),
    /// Anything else.
    Other(String),
    /// Nobody reads what is printed any more.
    StdoutClosed,
}

impl Failure {
    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::StdoutClosed => 0,
            Self::Found(_) | Self::Other(_) => 1,
            Self::Usage(_) => 2,
            Self::Input(_) => 3,
            Self::Unreachable(_) => 4,
            Self::Unknown { .. } => 5,
        }
    }

    /// What is printed on stderr.
    pub(crate) fn message(&self) -> String {
        match self {
            Self::StdoutClosed => String::new(),
            Self::Usage(text)
            | Self::Input(text)
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

    /// The same failure with an addition.
    pub(crate) fn and(self, more: &str) -> Self {
        self.map(|text| format!("{text}; {more}"))
    }

    /// The same failure with the place where it happened, such as `record 3: `.
    pub(crate) fn before(self, place: &str) -> Self {
        self.map(|text| format!("{place}{text}"))
    }

    fn map(self, longer: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::Usage(text) => Self::Usage(longer(text)),
            Self::Input(text) => Self::Input(longer(text)),
            Self::Unreachable(text) => Self::Unreachable(longer(text)),
            Self::Found(text) => Self::Found(longer(text)),
            Self::Other(text) => Self::Other(longer(text)),
            Self::Unknown { ids, reason, retry } => Self::Unknown { ids, reason: longer(reason), retry },
            Self::StdoutClosed => Self::StdoutClosed,
        }
    }

    /// A failed publish of the events with these ids.
    pub(crate) fn publish(error: &EventError, ids: Vec<String>) -> Self {
        if error.may_be_stored() {
            return Self::Unknown { ids, reason: chain(error), retry: SAME_ID };
        }
        Self::of(error)
    }

    fn of(error: &EventError) -> Self {
        let text = match next_step(error) {
            Some(step) => format!("{}; {step}", chain(error)),
            None => chain(error),
        };
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
    /// Of writing to stdout; everything else names its file.
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::StdoutClosed;
        }
        Self::Other(error.to_string())
    }
}

/// The next step for a person, where the error does not tell it.
fn next_step(error: &EventError) -> Option<&'static str> {
    match error {
        // The rule of the prefix names the subject that was probably meant.
        EventError::InvalidSubject { rule, .. } if !rule.contains("subject_prefix") => {
            Some("tokens are separated by dots; in a filter, * matches one token and > the rest")
        }
        EventError::NotFound(_) => Some("`history`, `dlq list` and `consumers` show what exists"),
        _ => None,
    }
}

/// An error and its causes on one line.
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
