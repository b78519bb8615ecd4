//! Trace contexts on their way from publish to handler.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use a3s_event::provider::PublishRequest;
use a3s_event::trace::{TRACEPARENT, TRACESTATE, process_span};
use a3s_event::{Event, EventBus, Subscription, SubscriptionFilter, TraceContext};
use tracing::field::{Field, Visit};

use super::on_every_provider;
use crate::{event, next};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const OTHER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

async fn subscribe(bus: &EventBus) -> Box<dyn Subscription> {
    let filter = SubscriptionFilter {
        subscriber_id: "worker".into(),
        subjects: vec!["events.>".into()],
        durable: true,
        options: None,
    };
    bus.update_subscription(filter).await.unwrap();
    bus.create_subscriber("worker").await.unwrap().remove(0)
}

/// The event without the keys that a publish may add.
fn without_context(event: &Event) -> serde_json::Value {
    let mut event = event.clone();
    event.metadata.remove(TRACEPARENT);
    event.metadata.remove(TRACESTATE);
    serde_json::to_value(event).unwrap()
}

#[tokio::test]
async fn the_context_of_the_publisher_reaches_the_handler_and_nothing_else_changes() {
    on_every_provider(async |provider| {
        let bus = EventBus::from_provider(provider);
        let mut subscription = subscribe(&bus).await;
        let context = TraceContext::parse(PARENT, Some("rojo=1,congo=2")).unwrap();
        let [plain, own] = [1, 2].map(|number| event("events.a.b", number).with_metadata("k", "v"));
        let own = own.with_metadata(TRACEPARENT, OTHER);
        context
            .clone()
            .scope(async {
                bus.publish_event(&plain).await.unwrap();
                let batch = [&own, &plain].map(PublishRequest::from);
                for answer in bus.publish_batch_with_options(&batch).await {
                    answer.unwrap();
                }
            })
            .await;
        bus.publish_event(&plain).await.unwrap();

        for (published, expected) in [
            (&plain, Some((PARENT, "rojo=1,congo=2"))),
            (&own, Some((OTHER, ""))),
            (&plain, Some((PARENT, "rojo=1,congo=2"))),
            (&plain, None),
        ] {
            let delivery = next(&mut subscription).await;
            assert_eq!(without_context(delivery.event()), without_context(published));
            let found = TraceContext::of(delivery.event());
            let found = found.as_ref().map(|context| (context.traceparent(), context.tracestate()));
            assert_eq!(found, expected);
            delivery.ack().await.unwrap();
        }
        let _ = bus.close().await;
    })
    .await;
}

/// Keeps the fields of every span.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<Vec<BTreeMap<String, String>>>>);

struct Fields<'a>(&'a mut BTreeMap<String, String>);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}").trim_matches('"').to_owned());
    }
}

impl tracing::Subscriber for Spans {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_span()
    }
    fn new_span(&self, attributes: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        let mut fields = BTreeMap::from([("name".to_owned(), attributes.metadata().name().to_owned())]);
        attributes.record(&mut Fields(&mut fields));
        let mut spans = self.0.lock().unwrap();
        spans.push(fields);
        tracing::span::Id::from_u64(spans.len() as u64)
    }
    fn record(&self, span: &tracing::span::Id, values: &tracing::span::Record<'_>) {
        let index = usize::try_from(span.into_u64()).unwrap() - 1;
        values.record(&mut Fields(&mut self.0.lock().unwrap()[index]));
    }
    fn record_follows_from(&self, _span: &tracing::span::Id, _follows: &tracing::span::Id) {}
    fn event(&self, _event: &tracing::Event<'_>) {}
    fn enter(&self, _span: &tracing::span::Id) {}
    fn exit(&self, _span: &tracing::span::Id) {}
}

#[tokio::test(start_paused = true)]
async fn spans_have_the_names_of_the_conventions_and_the_context() {
    let spans = Spans::default();
    let _recorded = crate::traced::traced(spans.clone());
    let bus = crate::bus();
    let mut subscription = subscribe(&bus).await;
    let published =
        event("events.a.b", 1).with_metadata(TRACEPARENT, PARENT).with_metadata(TRACESTATE, "a=1");
    bus.publish_event(&published).await.unwrap();
    bus.publish_event(&event("events.a b", 1)).await.unwrap_err();
    let delivery = next(&mut subscription).await;
    drop(process_span(bus.provider_name(), "worker", &delivery));

    let spans = spans.0.lock().unwrap();
    let find = |name: &str| spans.iter().filter(|span| span["name"] == name).collect::<Vec<_>>();
    let [stored, refused] = find("publish")[..] else { panic!("{spans:?}") };
    for (field, value) in [
        ("otel.kind", "producer"),
        ("messaging.system", "memory"),
        ("messaging.operation.name", "publish"),
        ("messaging.operation.type", "send"),
        ("messaging.destination.name", "events.a.b"),
        ("messaging.message.id", &published.id),
    ] {
        assert_eq!(stored[field], value);
    }
    assert!(!stored.contains_key("error.type"));
    assert_eq!(
        (refused["error.type"].as_str(), refused["otel.status_code"].as_str()),
        ("invalid_input", "ERROR")
    );
    let [process] = find("process")[..] else { panic!("{spans:?}") };
    for (field, value) in [
        ("otel.kind", "consumer"),
        ("messaging.operation.type", "process"),
        ("messaging.consumer.group.name", "worker"),
        ("sequence", "1"),
        ("num_delivered", "1"),
        ("traceparent", PARENT),
        ("tracestate", "a=1"),
    ] {
        assert_eq!(process[field], value);
    }
    assert_eq!(find("subscribe").len(), 1);
}

#[cfg(feature = "otel")]
mod otel {
    use opentelemetry::trace::{SpanId, TraceId, TracerProvider};
    use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
    use tracing::Instrument;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    struct Traced {
        exporter: InMemorySpanExporter,
        provider: SdkTracerProvider,
        _subscriber: tracing::subscriber::DefaultGuard,
    }

    fn traced() -> Traced {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("it"));
        let subscriber = tracing_subscriber::registry().with(layer);
        Traced { exporter, provider, _subscriber: crate::traced::traced(subscriber) }
    }

    impl Traced {
        fn spans(&self, name: &str) -> Vec<SpanData> {
            self.provider.force_flush().unwrap();
            let spans = self.exporter.get_finished_spans().unwrap();
            spans.into_iter().filter(|span| span.name == name).collect()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_handler_is_a_child_of_the_publish() {
        let traced = traced();
        let bus = crate::bus();
        let mut subscription = subscribe(&bus).await;
        async { bus.publish_event(&event("events.a.b", 1)).await.unwrap() }
            .instrument(tracing::info_span!("request"))
            .await;
        let delivery = next(&mut subscription).await;
        let handling = process_span("memory", "worker", &delivery);
        async { bus.publish_event(&event("events.a.c", 2)).await.unwrap() }.instrument(handling).await;
        let second = next(&mut subscription).await;

        let [request, process] = ["request", "process"].map(|name| traced.spans(name).remove(0));
        let [first, then] = <[SpanData; 2]>::try_from(traced.spans("publish")).unwrap();
        let trace = request.span_context.trace_id();
        assert_eq!(first.parent_span_id, request.span_context.span_id());
        assert_eq!(process.parent_span_id, first.span_context.span_id());
        assert!(process.parent_span_is_remote);
        assert_eq!(then.parent_span_id, process.span_context.span_id());
        for span in [&first, &process, &then] {
            assert_eq!(span.span_context.trace_id(), trace);
        }
        let context = TraceContext::of(second.event()).unwrap();
        assert_eq!(context.trace_id(), trace.to_string());
        assert_eq!(context.parent_id(), then.span_context.span_id().to_string());
        assert_eq!(first.span_kind, opentelemetry::trace::SpanKind::Producer);
        assert_eq!(process.span_kind, opentelemetry::trace::SpanKind::Consumer);
    }

    #[tokio::test(start_paused = true)]
    async fn a_context_of_the_publisher_is_kept_and_linked() {
        let traced = traced();
        let bus = crate::bus();
        let mut subscription = subscribe(&bus).await;
        let published = event("events.a.b", 1).with_metadata(TRACEPARENT, PARENT);
        bus.publish_event(&published).await.unwrap();
        let delivery = next(&mut subscription).await;
        assert_eq!(delivery.event().metadata[TRACEPARENT], PARENT);
        // A handler that has a span around it is linked instead.
        tracing::info_span!("worker").in_scope(|| drop(process_span("memory", "worker", &delivery)));

        let given = (
            TraceId::from_hex("4bf92f3577b34da6a3ce929d0e0e4736").unwrap(),
            SpanId::from_hex("00f067aa0ba902b7").unwrap(),
        );
        for name in ["publish", "process"] {
            let span = traced.spans(name).remove(0);
            let links: Vec<_> = span
                .links
                .iter()
                .map(|link| (link.span_context.trace_id(), link.span_context.span_id()))
                .collect();
            assert_eq!(links, [given], "{name}");
            assert_ne!(span.span_context.trace_id(), given.0);
        }
    }
}
