//! Endpoints of the web with secrets: webhooks, and sinks that post to a URL.

use std::sync::Arc;

use a3s_event::broker::DeliverySettings;
use a3s_event::sink::{HttpSink, HttpSinkBuilder};
use a3s_event::source::webhook::WebhookReceiver;
use a3s_event::{
    Aes256GcmEncryptor, Broker, CollectorSink, Event, EventBus, EventSink, MemoryProvider, Trigger,
    TriggerFilter,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tower::ServiceExt;

use super::show::{line, show, show_error, show_result};
use super::{
    ENCRYPTION_KEY, PASSWORD, PAYLOAD, SHORT_SINK_SECRET, SHORT_WEBHOOK_SECRET, SINK_HEADER, SINK_PATH,
    SINK_QUERY, SINK_SECRET, TOKEN, USER, WEBHOOK_SECRET, WEBHOOK_TOKEN,
};
use crate::eventually;

pub(super) async fn shown() {
    with_webhooks().await;
    with_unusable_sinks();
    with_sinks().await;
}

/// Requests with the right token and a wrong one, and with a signature that is none.
async fn with_webhooks() {
    let bus = Arc::new(EventBus::new(MemoryProvider::default()));
    let builder = || WebhookReceiver::builder("orders", "/orders").publish_to(Arc::clone(&bus));
    let weak = builder().secret(SHORT_WEBHOOK_SECRET);
    show("weak webhook", &weak);
    show_error("webhook", &weak.build().unwrap_err());
    show_error("webhook", &builder().token("canary-9").build().unwrap_err());
    let with_token = builder().token(WEBHOOK_TOKEN).build().unwrap();
    let signed = builder().secret(format!("whsec_{WEBHOOK_SECRET}"));
    show("webhook", &signed);
    let signed = signed.build().unwrap();
    for (receiver, token, expected) in
        [(&with_token, WEBHOOK_TOKEN, 202), (&with_token, TOKEN, 401), (&signed, "", 401)]
    {
        show("webhook", receiver);
        let request = axum::extract::Request::post("/orders")
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", "application/json")
            .header("webhook-id", "1")
            .header("webhook-timestamp", "1")
            .header("webhook-signature", format!("v1,{WEBHOOK_SECRET}"));
        let response =
            receiver.router().oneshot(request.body(axum::body::Body::from("{}")).unwrap()).await.unwrap();
        assert_eq!(response.status().as_u16(), expected);
        show("webhook's answer", &axum::body::to_bytes(response.into_body(), 1_000).await.unwrap());
    }
}

fn with_unusable_sinks() {
    let secrets = format!("{SINK_PATH}?key={SINK_QUERY}");
    for url in [
        format!("https://{USER}:{PASSWORD}@host/{secrets}"),
        format!("https://{USER}:{PASSWORD}/{TOKEN}@host/{secrets}"),
        format!("https://{USER}:{PASSWORD}?{TOKEN}@host/{secrets}"),
        format!("https://hooks.example.com:99/{secrets}"),
        format!("ftp://hooks.example.com/{secrets}"),
        format!("hooks.example.com/{secrets}"),
        format!("hooks.example.com:443/{secrets}"),
        format!("https:{SINK_PATH}"),
        format!("https://[bad/{secrets}"),
        format!("https://hooks.example.com/{SINK_PATH}#{SINK_QUERY}"),
        format!("http://hooks.example.com/{secrets}"),
        format!("https://127.0.0.1/{secrets}"),
        format!("https://hooks.example.com/{secrets}{}", "x".repeat(3_000)),
        SINK_PATH.to_owned(),
    ] {
        show_result("http sink", HttpSink::builder("hook", url).build().map(|sink| sink.name().to_owned()));
    }
    let builder = || HttpSink::builder("hook", "https://hooks.example.com/");
    let short = STANDARD.encode(SHORT_SINK_SECRET);
    for sink in [
        builder().sign_with(&format!("whsec_{short}")),
        builder().sign_with(&format!("whsec_{SINK_HEADER}")),
        builder().header("not a name", SINK_HEADER),
        builder().header("host", SINK_HEADER),
        builder().header("authorization", &format!("Bearer\n{SINK_HEADER}")),
    ] {
        show("http sink builder", &sink);
        show_error("http sink", &sink.build().unwrap_err());
    }
}

/// Sinks whose receiver quotes all that it is sent, and no more wants anything in the end.
async fn with_sinks() {
    let (port, receiver) = start_quoting_receiver().await;
    let builder = || quoted(port);
    let in_clear = event(json!({ "card": PAYLOAD }));
    let sink = builder().build().unwrap();
    for attempt in 0..6 {
        // The last one finds the receiver gone.
        show_error("http sink", &sink.deliver(&event(json!(attempt))).await.unwrap_err());
        show("http sink", &sink);
    }
    let sink = builder().decrypted().structured().build().unwrap();
    for _ in 0..5 {
        show_error("http sink", &sink.deliver(&in_clear).await.unwrap_err());
    }

    let mut bus = EventBus::new(MemoryProvider::default());
    bus.set_encryptor(Arc::new(Aes256GcmEncryptor::new("k1", ENCRYPTION_KEY)));
    let (letters, broker) = (Arc::new(CollectorSink::new("letters")), Arc::new(Broker::new()));
    for (name, settings) in
        [("routed", DeliverySettings::fire_and_forget()), ("durable", DeliverySettings::durable())]
    {
        let settings = settings.retries(0).dead_letter_sink(letters.clone());
        let sink = Arc::new(builder().decrypted().build().unwrap());
        let trigger = Trigger::new(name, TriggerFilter::default(), sink).with_delivery(settings);
        show("trigger", &trigger);
        broker.put_trigger(trigger).await.unwrap();
    }
    bus.set_broker(Arc::clone(&broker));
    let bus = Arc::new(bus);
    let mut running = broker.run(Arc::clone(&bus)).await.unwrap();
    bus.publish_event(&in_clear).await.unwrap();
    eventually("both have given it up", async || letters.count().await == 2).await;
    running.shutdown().await;
    for letter in letters.events().await {
        show("dead letter of a trigger", &letter);
        line(serde_json::to_string(&letter).unwrap());
    }
    show("broker", &broker);
    line(bus.telemetry().snapshot().to_prometheus());

    let builder = builder().decrypted();
    receiver.abort();
    let _ = receiver.await;
    show_error("http sink", &builder.build().unwrap().deliver(&in_clear).await.unwrap_err());
}

fn event(payload: serde_json::Value) -> Event {
    Event::typed("events.pay.card", "pay", "paid", 1, "", "shop", payload)
}

/// A sink with secrets for a receiver of this process.
fn quoted(port: u16) -> HttpSinkBuilder {
    HttpSink::builder("hook", format!("http://127.0.0.1:{port}/{SINK_PATH}?{SINK_QUERY}"))
        .allow_http()
        .allow_port(port)
        .allow_network("127.0.0.0/8")
        .header("authorization", &format!("Bearer {SINK_HEADER}"))
        .sign_with(&format!("whsec_{}", STANDARD.encode(SINK_SECRET)))
}

/// Answers each request with one line of it that holds a canary, a different one each time, and every fifth with 410.
async fn start_quoting_receiver() -> (u16, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        for number in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = String::new();
            let mut buffer = [0; 4_096];
            while !is_whole(&request) {
                let read = stream.read(&mut buffer).await.unwrap();
                request.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
            }
            let telling: Vec<_> = request.lines().filter(|line| line.contains("canary")).collect();
            let quoted = telling[number % telling.len()];
            let status = if number % 5 == 4 { "410 Gone" } else { "400 Bad Request" };
            let length = quoted.len();
            let answer =
                format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{quoted}");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (port, task)
}

fn is_whole(request: &str) -> bool {
    let Some((head, body)) = request.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    body.len() >= length.map_or(0, |length| length.parse().unwrap())
}
