//! The guarantees that hold for any input, one module per target.
//!
//! A target is a function of bytes that panics when a guarantee is broken. libFuzzer calls it with generated input. The
//! tests of the workspace include this file and call it with the seeds, so that each guarantee has one copy.

pub mod cloudevents;
pub mod cloudevents_batch;
pub mod cloudevents_binary;
pub mod cloudevents_structured;
pub mod config;
pub mod cron;
pub mod envelope;
pub mod event_json;
pub mod json;
pub mod state_file;
pub mod subject;
pub mod timestamp;
pub mod url;

/// The name of a target, also that of its seed folder, and the function that checks an input.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 12] = [
    ("cloudevents_batch", cloudevents_batch::check),
    ("cloudevents_binary", cloudevents_binary::check),
    ("cloudevents_structured", cloudevents_structured::check),
    ("config", config::check),
    ("cron", cron::check),
    ("envelope", envelope::check),
    ("event_json", event_json::check),
    ("json", json::check),
    ("state_file", state_file::check),
    ("subject", subject::check),
    ("timestamp", timestamp::check),
    ("url", url::check),
];

/// Checks the guarantees of every error: one printable line whose length does not grow with the input.
///
/// An error of serde_json is exempt from the limit, because it may quote a string of any length.
fn check_error(error: &a3s_event::EventError) {
    let text = error.to_string();
    assert!(!text.chars().any(char::is_control), "{text:?} is not one printable line");
    let is_ours = !matches!(error, a3s_event::EventError::Serialization(_));
    assert!(!is_ours || text.len() < 1_500, "{} bytes: {text:.300}…", text.len());
    assert!(!error.is_retryable(), "{text:?}: the same input would fail again");
}

/// Splits the input at its first line feed into a line and the rest.
fn first_line(data: &[u8]) -> (&[u8], &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (line, rest) = data.split_at(end);
    (line, rest.get(1..).unwrap_or_default())
}
