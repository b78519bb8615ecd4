//! What one test logs and traces.

use std::sync::Once;

use tracing::subscriber::{DefaultGuard, Interest};
use tracing::{Event, Metadata, Subscriber, span};

/// Makes this the subscriber of the thread that the test runs in.
pub(crate) fn traced(subscriber: impl Subscriber + Send + Sync) -> DefaultGuard {
    static GLOBAL: Once = Once::new();
    GLOBAL.call_once(|| tracing::subscriber::set_global_default(Undecided).expect("the first one"));
    tracing::subscriber::set_default(subscriber)
}

/// The subscriber of all other threads, which drops everything, one by one. Without it, a place in the code that another
/// test reaches first may count as wanted by nobody for as long as there is one subscriber only.
struct Undecided;

impl Subscriber for Undecided {
    fn register_callsite(&self, _metadata: &'static Metadata<'static>) -> Interest {
        Interest::sometimes()
    }
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        false
    }
    fn new_span(&self, _attributes: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _span: &span::Id, _values: &span::Record<'_>) {}
    fn record_follows_from(&self, _span: &span::Id, _follows: &span::Id) {}
    fn event(&self, _event: &Event<'_>) {}
    fn enter(&self, _span: &span::Id) {}
    fn exit(&self, _span: &span::Id) {}
}
