//! The conformance kit of a3s-event.
