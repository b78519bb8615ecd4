//! Shows everything that can be shown: values, errors, traces and logs.

use std::fmt::{Debug, Write as _};
use std::io::Write as _;

use tracing::field::{Field, Visit};

/// Writes one line. The stream of errors has no buffer that the end of the process could lose.
pub(super) fn line(text: impl AsRef<str>) {
    let mut stderr = std::io::stderr().lock();
    stderr.write_all(text.as_ref().as_bytes()).unwrap();
    stderr.write_all(b"\n").unwrap();
}

/// Shows a value in both forms of Debug.
pub(super) fn show(what: &str, value: &impl Debug) {
    line(format!("{what}: {value:?}\n{value:#?}"));
}

/// Shows an error with its causes, in every form.
pub(super) fn show_error(what: &str, error: &(dyn std::error::Error + 'static)) {
    let mut cause = Some(error);
    while let Some(error) = cause {
        line(format!("{what} failed: {error}\n{error:?}\n{error:#?}"));
        cause = error.source();
    }
}

/// A subscriber and a logger that show everything.
pub(super) struct ShowAll;

struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, " {}={value:?}", field.name()).unwrap();
    }
}

impl tracing::Subscriber for ShowAll {
    fn enabled(&self, _metadata: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, attributes: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        let mut fields = Fields(String::new());
        attributes.record(&mut fields);
        let metadata = attributes.metadata();
        line(format!("{} {} span {}{}", metadata.level(), metadata.target(), metadata.name(), fields.0));
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _span: &tracing::span::Id, values: &tracing::span::Record<'_>) {
        let mut fields = Fields(String::new());
        values.record(&mut fields);
        line(fields.0);
    }
    fn record_follows_from(&self, _span: &tracing::span::Id, _follows: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let mut fields = Fields(String::new());
        event.record(&mut fields);
        line(format!("{} {}{}", event.metadata().level(), event.metadata().target(), fields.0));
    }
    fn enter(&self, _span: &tracing::span::Id) {}
    fn exit(&self, _span: &tracing::span::Id) {}
}

impl log::Log for ShowAll {
    fn enabled(&self, _metadata: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        line(format!("{} {} {}", record.level(), record.target(), record.args()));
    }
    fn flush(&self) {}
}

/// Shows a result, whichever it is.
pub(super) fn show_result<T: Debug>(what: &str, result: a3s_event::Result<T>) {
    match result {
        Ok(value) => show(what, &value),
        Err(error) => show_error(what, &error),
    }
}
