use axum::http::Method;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::refusal::RETRY_AFTER;
use super::*;
use crate::webhooks::SigningKey;
use crate::{EventSchema, MemoryProvider, MemorySchemaRegistry, SchemaRegistry};

#[path = "header_tests.rs"]
mod headers;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const NEXT_SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";
const TOKEN: &str = "a-token-of-some-length";
const JSON: (&str, &str) = ("content-type", "application/json");

struct Bench {
    bus: Arc<EventBus>,
    receiver: Arc<WebhookReceiver>,
}

fn bench(settings: impl FnOnce(WebhookReceiverBuilder) -> WebhookReceiverBuilder) -> Bench {
    let bus = Arc::new(EventBus::new(MemoryProvider::default()));
    let builder = WebhookReceiver::builder("orders", "/hooks/orders").publish_to(Arc::clone(&bus));
    Bench { bus, receiver: settings(builder).build().unwrap() }
}

fn open() -> Bench {
    bench(WebhookReceiverBuilder::unauthenticated)
}

fn sign(secret: &str, id: &str, timestamp: &str, body: &[u8]) -> String {
    SigningKey::parse("secret", secret).unwrap().sign(id, timestamp, body)
}

async fn call(receiver: &Arc<WebhookReceiver>, request: Request) -> Response {
    receiver.router().oneshot(request).await.unwrap()
}

fn request(headers: &[(&str, &str)], body: impl Into<Body>) -> Request {
    let mut request = Request::builder().method(Method::POST).uri("/hooks/orders");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body.into()).unwrap()
}

impl Bench {
    async fn post(&self, headers: &[(&str, &str)], body: impl Into<Body>) -> u16 {
        call(&self.receiver, request(headers, body)).await.status().as_u16()
    }

    async fn post_signed(&self, secret: &str, id: &str, seconds_ago: i64, body: &str) -> u16 {
        let now = i64::try_from(unix_millis() / 1_000).unwrap();
        let timestamp = (now - seconds_ago).to_string();
        let signature = sign(secret, id, &timestamp, body.as_bytes());
        let headers =
            [JSON, ("webhook-id", id), ("webhook-timestamp", &timestamp), ("webhook-signature", &signature)];
        self.post(&headers, body.to_owned()).await
    }

    async fn stored(&self) -> Vec<Event> {
        let mut events = self.bus.list_events(None, 10_000).await.unwrap();
        events.reverse();
        events
    }
}

#[tokio::test]
async fn plain_json_becomes_the_payload_of_one_event() {
    let bench = open();
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = [("content-type", "application/json; charset=UTF-8"), ("traceparent", parent)];
    assert_eq!(bench.post(&headers, r#"{"order":7}"#).await, 202);
    assert_eq!(bench.post(&[("content-type", "application/vnd.acme+json")], "[1]").await, 202);
    let stored = bench.stored().await;
    assert_eq!(stored[0].payload, json!({"order": 7}));
    assert_eq!(
        (stored[0].subject.as_str(), stored[0].category.as_str(), stored[0].source.as_str()),
        ("events.webhook.orders", "webhook", "orders")
    );
    assert_eq!(stored[0].metadata["traceparent"], parent);
    assert_eq!(stored[1].payload, json!([1]));
}

#[tokio::test]
async fn cloud_events_are_taken_in_three_modes() {
    let bench = open();
    let event = |id: &str| CloudEvent::new(id, "/shop", "order.placed").with_data(json!({"order": id}));
    for message in [
        http::to_binary(&event("1")).unwrap(),
        http::to_structured(&event("2")).unwrap(),
        http::to_batch(&[event("3"), event("4")]).unwrap(),
    ] {
        let headers: Vec<_> =
            message.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(bench.post(&headers, message.body.clone().unwrap()).await, 202);
        assert_eq!(bench.post(&headers, message.body.unwrap()).await, 202, "the sender tries again");
    }
    let stored = bench.stored().await;
    let ids: Vec<_> = stored.iter().map(|event| event.id.as_str()).collect();
    assert_eq!(ids, ["1", "2", "3", "4"], "each is stored once");
    for event in &stored {
        assert_eq!((event.event_type.as_str(), event.source.as_str()), ("order.placed", "/shop"));
        assert_eq!((event.subject.as_str(), event.category.as_str()), ("events.webhook.orders", "webhook"));
        assert_eq!(event.payload, json!({"order": event.id}));
        assert!(event.timestamp > 0);
    }
}

#[tokio::test]
async fn ids_of_other_sources_and_receivers_are_other_ids() {
    let signed = bench(|builder| builder.secret(SECRET));
    let other = WebhookReceiver::builder("payments", "/hooks/orders").secret(SECRET);
    let other = Bench {
        bus: Arc::clone(&signed.bus),
        receiver: other.publish_to(Arc::clone(&signed.bus)).build().unwrap(),
    };
    for bench in [&signed, &other] {
        assert_eq!(bench.post_signed(SECRET, "msg_1", 0, "{}").await, 202);
    }
    assert_eq!(signed.stored().await.len(), 2);

    let bench = open();
    for source in ["/shop/1", "/shop/2", "/shop/1"] {
        let message = http::to_structured(&CloudEvent::new("1", source, "order.placed")).unwrap();
        let headers = [("content-type", "application/cloudevents+json")];
        assert_eq!(bench.post(&headers, message.body.unwrap()).await, 202);
    }
    let sources: Vec<_> = bench.stored().await.into_iter().map(|event| event.source).collect();
    assert_eq!(sources, ["/shop/1", "/shop/2"]);
}

#[tokio::test]
async fn a_sender_cannot_choose_any_subject() {
    let structured = |subject: &str| {
        let event = CloudEvent::new(subject, "/shop", "t").with_subject(subject);
        http::to_structured(&event).unwrap().body.unwrap()
    };
    let headers = [("content-type", "application/cloudevents+json")];
    let subjects =
        ["events.webhook.orders.eu", "events.admin.delete", "any text > *", "events.webhook.ordersx"];
    for (keep, expected) in [
        (
            false,
            [
                "events.webhook.orders.eu",
                "events.webhook.orders",
                "events.webhook.orders",
                "events.webhook.orders",
            ],
        ),
        (
            true,
            [
                "events.webhook.orders.eu",
                "events.admin.delete",
                "events.webhook.orders",
                "events.webhook.ordersx",
            ],
        ),
    ] {
        let bench = bench(|builder| if keep { builder.keep_subjects() } else { builder }.unauthenticated());
        for subject in subjects {
            assert_eq!(bench.post(&headers, structured(subject)).await, 202);
        }
        let stored = bench.stored().await;
        let found: Vec<_> = stored.iter().map(|event| event.subject.as_str()).collect();
        assert_eq!(found, expected);
        assert_eq!(stored[2].metadata[ORIGINAL_SUBJECT], "any text > *");
    }
}

#[tokio::test]
async fn a_sender_cannot_write_what_the_library_writes() {
    let bench = bench(|builder| builder.keep_subjects().unauthenticated());
    let headers = [("content-type", "application/cloudevents+json")];
    for (place, event_type) in [
        ("events.dlq.letters.events.admin.delete", "a3s.dlq.letter"),
        ("events.dlq.marks.1-a", "a3s.dlq.mark"),
        ("events.handled.mail.00", "a3s.consumer.handled"),
    ] {
        let event = CloudEvent::new(place, "/shop", event_type).with_subject(place);
        let body = http::to_structured(&event).unwrap().body.unwrap();
        assert_eq!(bench.post(&headers, body).await, 202);
    }
    assert!(bench.stored().await.iter().all(|event| event.subject == "events.webhook.orders"));
}

#[tokio::test]
async fn a_signed_request_is_valid_no_longer_than_its_id_is_remembered() {
    let usual = bench(|builder| builder.secret(SECRET));
    for (place, seconds_ago) in [-35, 35].into_iter().enumerate() {
        assert_eq!(usual.post_signed(SECRET, &format!("msg_{place}"), seconds_ago, "{}").await, 202);
    }
    for seconds_ago in [-45, 45] {
        assert_eq!(usual.post_signed(SECRET, "msg_3", seconds_ago, "{}").await, 401);
    }
    let receiver = |bus: &Arc<EventBus>| {
        let builder = WebhookReceiver::builder("orders", "/hooks/orders").publish_to(Arc::clone(bus));
        builder.secret(SECRET).tolerance(Duration::from_secs(300)).build()
    };
    let error = receiver(&usual.bus).unwrap_err().to_string();
    assert!(error.contains("tolerance") && error.contains("dedup window"), "{error}");
    let long = MemoryProvider::builder().dedup_window(Duration::from_secs(640)).build().unwrap();
    receiver(&Arc::new(EventBus::new(long))).unwrap();
    // Nothing is signed, so the time is not checked.
    let builder = WebhookReceiver::builder("orders", "/hooks/orders").publish_to(Arc::clone(&usual.bus));
    builder.token(TOKEN).tolerance(Duration::from_secs(300)).build().unwrap();
}

#[tokio::test]
async fn content_that_is_not_read_is_told_apart_from_content_that_is_wrong() {
    let bench = open();
    let deep = "[".repeat(100_000);
    for (headers, body, expected) in [
        (&[][..], "{}", 415),
        (&[("content-type", "text/xml")], "<a/>", 415),
        (&[("content-type", "application/json; charset=utf-16")], "{}", 415),
        (&[("content-type", "application/x-www-form-urlencoded")], "a=1", 415),
        (&[JSON, ("content-encoding", "gzip")], "{}", 415),
        (&[("content-type", "application/cloudevents+xml")], "{}", 415),
        (&[JSON], "", 400),
        (&[JSON], "{}x", 400),
        (&[JSON], r#"{"id":1,"id":2}"#, 400),
        (&[JSON], "1e400", 400),
        (&[JSON], deep.as_str(), 400),
        (&[("content-type", "application/cloudevents+json")], "{}", 400),
        (&[JSON, ("ce-specversion", "0.3"), ("ce-id", "1"), ("ce-type", "t"), ("ce-source", "s")], "{}", 400),
        (&[JSON, ("ce-specversion", "1.0"), ("ce-id", ""), ("ce-type", "t"), ("ce-source", "s")], "{}", 400),
    ] {
        let shown = format!("{headers:?} {}", &body[..body.len().min(40)]);
        assert_eq!(bench.post(headers, body.to_owned()).await, expected, "{shown}");
    }
    let binary = [JSON, ("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-type", "t"), ("ce-source", "/s")];
    assert_eq!(bench.post(&binary, r#"{"total":1,"total":2}"#).await, 400);
    let structured =
        r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","data":{"total":1,"total":2}}"#;
    assert_eq!(bench.post(&[("content-type", "application/cloudevents+json")], structured).await, 400);
    assert!(bench.stored().await.is_empty());
    let batch = [("content-type", "application/cloudevents-batch+json")];
    let good = r#"{"specversion":"1.0","id":"1","source":"/s","type":"t"}"#;
    assert_eq!(bench.post(&batch, format!("[{good},{{}}]")).await, 400, "all or none");
    assert_eq!(bench.post(&batch, format!("[{}]", [good; 10_001].join(","))).await, 413);
    assert!(bench.stored().await.is_empty());
    assert_eq!(bench.post(&batch, "[]").await, 202);
    let get = Request::builder().uri("/hooks/orders").body(Body::empty()).unwrap();
    assert_eq!(call(&bench.receiver, get).await.status(), StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test(start_paused = true)]
async fn a_body_too_large_or_too_slow_is_refused() {
    let bench = bench(|builder| builder.unauthenticated().max_body(10).timeout(Duration::from_secs(10)));
    assert_eq!(bench.post(&[JSON], r#""12345678""#).await, 202);
    assert_eq!(bench.post(&[JSON], r#""123456789""#).await, 413);
    // Streams of unknown size.
    let stream = |count: usize| {
        let chunks = std::iter::repeat_n("1", count)
            .map(|chunk| Ok::<_, std::convert::Infallible>(Bytes::from(chunk)));
        Body::from_stream(futures_util::stream::iter(chunks))
    };
    assert_eq!(bench.post(&[JSON], stream(10)).await, 202);
    assert_eq!(bench.post(&[JSON], stream(11)).await, 413);
    let never = futures_util::stream::pending::<std::result::Result<Bytes, std::convert::Infallible>>();
    assert_eq!(bench.post(&[JSON], Body::from_stream(never)).await, 408);
}

#[tokio::test]
async fn signed_requests_are_verified_with_any_secret_and_stored_once() {
    let bench = bench(|builder| builder.secret(SECRET).secret(NEXT_SECRET));
    assert_eq!(bench.post_signed(SECRET, "msg_1", 0, "{}").await, 202);
    assert_eq!(bench.post_signed(SECRET, "msg_1", 0, "{}").await, 200, "taken before");
    assert_eq!(bench.post_signed(NEXT_SECRET, "msg_2", 10, "{}").await, 202);
    for seconds_ago in [360, -360] {
        assert_eq!(bench.post_signed(SECRET, "msg_3", seconds_ago, "{}").await, 401);
    }
    assert_eq!(bench.post_signed("whsec_////////////////////////////////", "msg_3", 0, "{}").await, 401);
    assert_eq!(bench.post(&[JSON], "{}").await, 401);
    assert_eq!(bench.post_signed(SECRET, "msg_4", 0, "{").await, 400);
    assert_eq!(bench.post_signed(SECRET, "msg_4", 0, "{}").await, 202, "what was refused was not taken");
    let stored = bench.stored().await;
    let ids: Vec<_> = stored.iter().map(|event| event.metadata[WEBHOOK_ID].as_str()).collect();
    assert_eq!(ids, ["msg_1", "msg_2", "msg_4"]);
}

#[tokio::test]
async fn a_header_that_comes_twice_signs_nothing() {
    let bench = bench(|builder| builder.secret(SECRET));
    let now = (unix_millis() / 1_000).to_string();
    let signature = sign(SECRET, "msg_1", &now, b"{}");
    let twice = [
        JSON,
        ("webhook-id", "msg_1"),
        ("webhook-id", "msg_2"),
        ("webhook-timestamp", now.as_str()),
        ("webhook-signature", signature.as_str()),
    ];
    assert_eq!(bench.post(&twice, "{}").await, 401);
}

#[tokio::test]
async fn tokens_are_asked_for() {
    let bench = bench(|builder| builder.token("another-token-of-some-length").token(TOKEN));
    let bearer = format!("Bearer {TOKEN}");
    assert_eq!(bench.post(&[JSON, ("authorization", &bearer)], "{}").await, 202);
    assert_eq!(bench.post(&[JSON, ("authorization", &bearer.to_lowercase())], "{}").await, 202);
    for wrong in ["", TOKEN, "Basic abc", "Bearer ", "Bearer a-token-of-some-lengt"] {
        assert_eq!(bench.post(&[JSON, ("authorization", wrong)], "{}").await, 401, "{wrong}");
    }
    assert_eq!(bench.post(&[JSON], "{}").await, 401);
    let in_query = Request::builder().method(Method::POST).uri(format!("/hooks/orders?token={TOKEN}"));
    let response = call(&bench.receiver, in_query.body(Body::from("{}")).unwrap()).await;
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(response.headers()["www-authenticate"], "Bearer");
    let shown =
        format!("{:?} {:?}", bench.receiver, WebhookReceiver::builder("o", "/").token(TOKEN).secret(SECRET));
    assert!(!shown.contains(TOKEN) && !shown.contains(SECRET), "{shown}");
}

#[tokio::test]
async fn what_cannot_be_stored_is_told_apart_from_what_cannot_be_stored_now() {
    let registry = MemorySchemaRegistry::new();
    let schema = EventSchema {
        event_type: "order".into(),
        version: 1,
        required_fields: vec!["id".into()],
        description: String::new(),
    };
    registry.register(schema).unwrap();
    let mut bus = EventBus::new(MemoryProvider::default());
    bus.set_schema_registry(Arc::new(registry));
    let bus = Arc::new(bus);
    let builder = WebhookReceiver::builder("orders", "/hooks/orders").unauthenticated();
    let receiver = builder.publish_to(Arc::clone(&bus)).build().unwrap();
    let order = |data: Value| {
        let event = CloudEvent::new("1", "/s", "order").with_data(data);
        let message = http::to_structured(&event).unwrap();
        request(&[("content-type", "application/cloudevents+json")], message.body.unwrap())
    };
    assert_eq!(call(&receiver, order(json!({}))).await.status(), StatusCode::BAD_REQUEST);
    assert_eq!(call(&receiver, order(json!({"id": 1}))).await.status(), StatusCode::ACCEPTED);
    bus.close().await.unwrap();
    let response = call(&receiver, request(&[JSON], "{}")).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["retry-after"], RETRY_AFTER);
}

#[tokio::test(start_paused = true)]
async fn as_a_source_it_hands_its_events_on_while_it_runs() {
    let receiver = WebhookReceiver::builder("orders", "/hooks/orders")
        .unauthenticated()
        .timeout(Duration::from_secs(5))
        .build()
        .unwrap();
    let post = async || call(&receiver, request(&[JSON], "{}")).await.status().as_u16();
    assert_eq!(post().await, 503, "not started");
    let (sender, mut events) = mpsc::channel(2);
    let running = tokio::spawn({
        let receiver = Arc::clone(&receiver);
        async move { receiver.start(sender).await }
    });
    tokio::task::yield_now().await;
    assert_eq!((post().await, post().await), (202, 202));
    assert_eq!(post().await, 503, "the channel is full");
    assert_eq!(events.recv().await.unwrap().subject, "events.webhook.orders");
    assert_eq!(post().await, 202);
    receiver.stop().await.unwrap();
    running.await.unwrap().unwrap();
    assert_eq!(post().await, 503, "stopped");
    assert!(events.recv().await.is_some() && events.recv().await.is_some(), "what was taken is there");
    assert!(events.recv().await.is_none());
    assert_eq!((receiver.path(), receiver.content_types().len()), ("/hooks/orders", 3));
}

#[tokio::test]
async fn a_sender_gets_permission_where_its_origin_is_allowed() {
    let rate = std::num::NonZeroU32::new(100).unwrap();
    let named = bench(|builder| builder.token(TOKEN).allow_origin("Sender.example.com").allow_rate(rate));
    let any = bench(|builder| builder.secret(SECRET).allow_origin("*"));
    let closed = open();
    let origin = ("webhook-request-origin", "sender.example.com");
    let other = ("webhook-request-origin", "other.example.com");
    let rate = |rate| ("webhook-request-rate", rate);
    let callback = ("webhook-request-callback", "https://127.0.0.1/confirm");
    for (bench, headers, status, allowed) in [
        (&named, &[origin][..], 204, Some(("sender.example.com", "100"))),
        (&named, &[origin, rate("60"), callback], 204, Some(("sender.example.com", "60"))),
        (&named, &[origin, rate("120")], 204, Some(("sender.example.com", "100"))),
        (&named, &[other], 403, None),
        (&named, &[other, callback], 403, None),
        (&any, &[other], 204, Some(("other.example.com", "*"))),
        (&any, &[other, rate("7")], 204, Some(("other.example.com", "7"))),
        (&any, &[], 400, None),
        (&any, &[origin, other], 400, None),
        (&any, &[("webhook-request-origin", "")], 400, None),
        (&any, &[("webhook-request-origin", "*")], 400, None),
        (&any, &[("webhook-request-origin", "a b.example")], 400, None),
        (&any, &[origin, rate("0")], 400, None),
        (&any, &[origin, rate("-1")], 400, None),
        (&any, &[origin, rate("abc")], 400, None),
        (&any, &[origin, rate("+1")], 400, None),
        (&any, &[origin, rate("4294967296")], 400, None),
        (&any, &[origin, rate("1"), rate("2")], 400, None),
        (&closed, &[origin], 405, None),
    ] {
        let mut request = request(headers, "");
        *request.method_mut() = Method::OPTIONS;
        let response = call(&bench.receiver, request).await;
        assert_eq!(response.status().as_u16(), status, "{headers:?}");
        let shown = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap());
        let given = shown("webhook-allowed-origin").zip(shown("webhook-allowed-rate"));
        assert_eq!(given, allowed, "{headers:?}");
        assert_eq!(shown("webhook-allowed-origin").is_some(), shown("webhook-allowed-rate").is_some());
        assert!(allowed.is_none() || shown("allow") == Some("POST"));
    }
    // Permission is not authentication: the events still need their token.
    assert_eq!(named.post(&[JSON, origin], "{}").await, 401);
}

#[test]
fn settings_that_leave_a_door_open_are_refused() {
    let builder = || WebhookReceiver::builder("orders", "/hooks");
    for (wrong, reason) in [
        (builder(), "needs a secret"),
        (builder().token("short"), "at least 16"),
        (builder().secret("short"), "webhook secret"),
        (WebhookReceiver::builder("orders", "hooks").unauthenticated(), "path"),
        (WebhookReceiver::builder("orders", "/{id}").unauthenticated(), "path"),
        (WebhookReceiver::builder("no token", "/hooks").unauthenticated(), "subject"),
        (builder().unauthenticated().timeout(Duration::ZERO), "timeout"),
        (builder().unauthenticated().allow_origin("https://sender.example"), "webhook origin"),
    ] {
        let error = wrong.build().unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}
