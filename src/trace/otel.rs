//! Bridge between the trace contexts of this library and those of OpenTelemetry.

use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::TraceContext;

/// Returns the context of the current `tracing` span, or else OpenTelemetry's current context.
pub(super) fn current() -> Option<TraceContext> {
    let of_span = tracing::Span::current().context();
    from_otel(of_span.span().span_context())
        .or_else(|| from_otel(opentelemetry::Context::current().span().span_context()))
}

/// Joins a span to the trace of its event: as its child, or with a link if it already has a parent.
pub(super) fn join(span: &tracing::Span, context: &TraceContext) {
    let Some(remote) = to_otel(context) else { return };
    let has_parent = current().is_some();
    // Without an OpenTelemetry layer, a parent cannot be set, and there is nothing to join.
    if has_parent {
        span.add_link(remote);
    } else if let Err(error) = span.set_parent(opentelemetry::Context::new().with_remote_span_context(remote))
    {
        tracing::trace!(%error, "joining the span to its trace failed");
    }
}

/// Links a span to the context that the publisher gave the event.
pub(super) fn link(span: &tracing::Span, context: &TraceContext) {
    if let Some(remote) = to_otel(context) {
        span.add_link(remote);
    }
}

fn from_otel(context: &SpanContext) -> Option<TraceContext> {
    if !context.is_valid() {
        return None;
    }
    let traceparent =
        format!("00-{}-{}-{:02x}", context.trace_id(), context.span_id(), context.trace_flags().to_u8());
    TraceContext::parse(&traceparent, Some(&context.trace_state().header()))
}

fn to_otel(context: &TraceContext) -> Option<SpanContext> {
    let state = context.tracestate().split(',').filter_map(|member| member.split_once('='));
    let remote = SpanContext::new(
        TraceId::from_hex(context.trace_id()).ok()?,
        SpanId::from_hex(context.parent_id()).ok()?,
        if context.is_sampled() { TraceFlags::SAMPLED } else { TraceFlags::default() },
        true,
        TraceState::from_key_value(state).unwrap_or_default(),
    );
    remote.is_valid().then_some(remote)
}
