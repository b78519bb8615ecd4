//! Every secret of every configuration is a canary: a text that nothing else contains. A process of its own runs the bus on
//! every provider at trace level and shows all that can be shown: logs, Debug and Display of values and errors, metrics,
//! dead letters. No canary may be in its output.

use std::fmt::{Debug, Write as _};
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use a3s_event::crypto::EventEncryptor;
use a3s_event::dlq::DlqHandler;
use a3s_event::provider::nats::NatsProviderBuilder;
use a3s_event::provider::{HistoryQuery, ProviderUrl};
use a3s_event::source::webhook::WebhookReceiver;
use a3s_event::trace::process_span;
use a3s_event::{
    Aes256GcmEncryptor, Broker, EventBus, EventProvider, LogSink, MemoryDlqHandler, MemoryProvider,
    NatsConfig, NatsProvider, ProviderRegistry, SinkDlqHandler, SubscribeOptions, Subscription,
    SubscriptionFilter, Trigger, TriggerFilter,
};
use a3s_event_testkit::NatsServer;
use serde_json::json;
use tower::ServiceExt;
use tracing::Instrument;
use tracing::field::{Field, Visit};

const IN_CHILD: &str = "A3S_EVENT_TEST_CANARY";
const CHILD_TEST: &str = "canary::in_the_other_process";
/// What the other process says when it came to its end.
const COMPLETE: &str = "the whole run was shown";
/// No wait in the other process is longer.
const DEADLINE: Duration = Duration::from_secs(60);

const TOKEN: &str = "canary-token-8d1f";
const WRONG_TOKEN: &str = "canary-wrong-token-55aa";
const USER: &str = "canary-user-31c7";
const PASSWORD: &str = "canary-password-b0e4";
const WRONG_PASSWORD: &str = "canary-wrong-password-77f2";
const NKEY: &str = "UB67ACTFJXVELBMVZ4NQEVYRMEGV7H356D75HFKBFLR4EBY7P4EUSC4Z";
const NKEY_SEED: &str = "SUAIIWQIQF5F2EEX4JGHECALPFSVLTQLUZKMOZR2NNRDVUVS6EH4WK5QAU";
const WRONG_NKEY_SEED: &str = "SUAJZQGYPECLSUCD3AP3VAEHEQTHBQ5JNFQMOY3YUYRUUTDTOIP26BHRHY";
const NO_NKEY_SEED: &str = "SUCANARYNOSEED4711";
/// Not signed by anybody: a server without accounts does not look at it.
const JWT: &str = "eyJjYW5hcnkiOiJqd3QifQ.Y2FuYXJ5LWp3dC02YjE5.Y2FuYXJ5LXNpZ25hdHVyZQ";
const CREDS_SEED: &str = "SUAITK55P3KDRVYFN7NOGPXQ22WNFD5HNNPULK6HQY3GVXCOHZKGKNKN7U";
const WEBHOOK_TOKEN: &str = "canary-webhook-token-90a1";
const WEBHOOK_SECRET: &str = "Y2FuYXJ5LXdlYmhvb2stc2VjcmV0LTc3YzQ=";
const SHORT_WEBHOOK_SECRET: &str = "Y2FuYXJ5LXNob3J0LTEyMzQ=";
const CLIENT_KEY: &str = "canaryClientKey9Q2m";
const ENCRYPTION_KEY: &[u8; 32] = b"canary-encryption-key-1234567890";
const NEXT_ENCRYPTION_KEY: &[u8; 32] = b"canary-next-encryption-key-99999";
/// Of events that are encrypted.
const PAYLOAD: &str = "canary-payload-4111111111111111";

/// Every form in which a secret could be shown.
fn canaries() -> Vec<String> {
    let texts = [
        TOKEN,
        WRONG_TOKEN,
        USER,
        PASSWORD,
        WRONG_PASSWORD,
        NKEY_SEED,
        WRONG_NKEY_SEED,
        NO_NKEY_SEED,
        JWT,
        CREDS_SEED,
        WEBHOOK_TOKEN,
        WEBHOOK_SECRET,
        "canary-webhook-secret-77c4",
        SHORT_WEBHOOK_SECRET,
        CLIENT_KEY,
        PAYLOAD,
    ];
    let keys = [ENCRYPTION_KEY, NEXT_ENCRYPTION_KEY];
    let texts = texts.iter().map(|text| text.as_bytes()).chain(keys.iter().map(|key| key.as_slice()));
    texts.flat_map(|secret| [raw(secret), hex(secret), base64(secret), list(secret)]).collect()
}

fn raw(secret: &[u8]) -> String {
    String::from_utf8(secret.to_vec()).unwrap()
}

fn hex(secret: &[u8]) -> String {
    secret.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// As Debug shows bytes, without the brackets.
fn list(secret: &[u8]) -> String {
    secret.iter().map(u8::to_string).collect::<Vec<_>>().join(", ")
}

/// What the base64 of a longer text has in common with this one's: all but the last incomplete group.
fn base64(secret: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let groups = secret.chunks_exact(3).map(|group| u32::from_be_bytes([0, group[0], group[1], group[2]]));
    let digits = groups.flat_map(|bits| [18, 12, 6, 0].map(|shift| DIGITS[(bits >> shift & 63) as usize]));
    String::from_utf8(digits.collect()).unwrap()
}

#[test]
fn no_secret_is_ever_shown() {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", CHILD_TEST, "--ignored", "--nocapture", "--test-threads=1"])
        .env(IN_CHILD, "1")
        .env("RUST_BACKTRACE", "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&[child.stdout, child.stderr].concat()).into_owned();
    assert!(child.status.success() && shown.contains(COMPLETE), "the run failed:\n{}", tail(&shown));
    // What is known to be shown: a run that shows nothing proves nothing.
    for evidence in [
        "TRACE async_nats",
        "INFO a3s_event",
        "NatsConfig {",
        "dead letter",
        "a3s_event_published_total",
        "a3s_event_consumer_dead_lettered_total{messaging_system=\"nats\"",
    ] {
        assert!(shown.contains(evidence), "{evidence} is not in {} bytes of output", shown.len());
    }
    // The user's name stands in what the client writes about itself at the level trace; it is no secret there.
    let of_client = |line: &str| line.starts_with("TRACE async_nats::connection") && line.contains("CONNECT");
    let shown: Vec<_> = shown
        .lines()
        .map(|line| if of_client(line) { line.replace(USER, "") } else { line.to_owned() })
        .collect();
    let lines: Vec<_> = canaries()
        .into_iter()
        .flat_map(|canary| shown.iter().filter(move |line| line.contains(&canary)))
        .map(|line| line.chars().take(400).collect::<String>())
        .collect();
    assert!(lines.is_empty(), "{} lines show a secret:\n{}", lines.len(), lines.join("\n"));
}

#[test]
fn canaries_are_found_in_each_form() {
    let all = canaries();
    assert!(all.contains(&"canary-token-8d1f".to_owned()));
    assert!(all.contains(&"63616e6172792d746f6b656e2d38643166".to_owned()));
    assert!(all.contains(&"Y2FuYXJ5LXRva2VuLThk".to_owned()));
    assert!(all.contains(
        &"99, 97, 110, 97, 114, 121, 45, 116, 111, 107, 101, 110, 45, 56, 100, 49, 102".to_owned()
    ));
}

fn tail(text: &str) -> &str {
    let mut start = text.len().saturating_sub(4_000);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

#[test]
#[ignore = "what the other process runs"]
fn in_the_other_process() {
    if std::env::var_os(IN_CHILD).is_none() {
        return;
    }
    tracing::subscriber::set_global_default(ShowAll).unwrap();
    log::set_logger(&ShowAll).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(DEADLINE, run()).await.expect("the run ended in time") });
    line(COMPLETE);
}

/// Writes one line. The stream of errors has no buffer that the end of the process could lose.
fn line(text: impl AsRef<str>) {
    let mut stderr = std::io::stderr().lock();
    stderr.write_all(text.as_ref().as_bytes()).unwrap();
    stderr.write_all(b"\n").unwrap();
}

/// Shows a value in both forms of Debug.
fn show(what: &str, value: &impl Debug) {
    line(format!("{what}: {value:?}\n{value:#?}"));
}

/// Shows an error with its causes, in every form.
fn show_error(what: &str, error: &(dyn std::error::Error + 'static)) {
    let mut cause = Some(error);
    while let Some(error) = cause {
        line(format!("{what} failed: {error}\n{error:?}\n{error:#?}"));
        cause = error.source();
    }
}

/// A subscriber and a logger that show everything.
struct ShowAll;

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

async fn run() {
    let folder = tempfile::tempdir().unwrap();
    use_bus("memory", Arc::new(MemoryProvider::default())).await;
    let sqlite = format!("sqlite://{}/events.db", folder.path().display());
    use_bus("sqlite", by_url(&sqlite).await.unwrap()).await;

    let creds = folder.path().join("service.creds");
    let text = format!(
        "-----BEGIN NATS USER JWT-----\n{JWT}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{CREDS_SEED}\n------END USER NKEY SEED------\n"
    );
    std::fs::write(&creds, text).unwrap();
    let broken = folder.path().join("broken.creds");
    std::fs::write(&broken, format!("no creds at all: {CREDS_SEED}")).unwrap();
    let key = folder.path().join("key.pem");
    std::fs::write(&key, format!("-----BEGIN PRIVATE KEY-----\n{CLIENT_KEY}\n-----END PRIVATE KEY-----\n"))
        .unwrap();
    let [creds, broken, key] = [creds, broken, key].map(|path| path.display().to_string());

    with_token().await;
    with_password().await;
    with_nkey().await;
    with_files(&creds, &broken, &key).await;
    unreadable_urls(&creds).await;
    with_webhooks().await;
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

async fn with_token() {
    let server = NatsServer::start_with(&format!("authorization {{ token: \"{TOKEN}\" }}")).await;
    let address = server.address();
    for (token, works) in [(TOKEN, true), (WRONG_TOKEN, false)] {
        let config = NatsConfig { token: Some(token.to_owned()), ..at(&server, "") };
        use_nats(NatsProvider::builder(config), works).await;
        use_nats(NatsProvider::builder(at(&server, &format!("{token}@"))), works).await;
        use_url(&format!("nats://{token}@{address}"), works).await;
        use_url(&format!("nats://{address}?token={token}"), works).await;
    }
}

async fn with_password() {
    let server =
        NatsServer::start_with(&format!("authorization {{ user: \"{USER}\", password: \"{PASSWORD}\" }}"))
            .await;
    for (password, works) in [(PASSWORD, true), (WRONG_PASSWORD, false)] {
        use_nats(NatsProvider::builder(at(&server, "")).user_and_password(USER, password), works).await;
        use_nats(NatsProvider::builder(at(&server, &format!("{USER}:{password}@"))), works).await;
        use_url(&format!("nats://{USER}:{password}@{}", server.address()), works).await;
    }
}

async fn with_nkey() {
    let server = NatsServer::start_with(&format!("authorization {{ users: [{{ nkey: {NKEY} }}] }}")).await;
    for (seed, works) in [(NKEY_SEED, true), (WRONG_NKEY_SEED, false), (NO_NKEY_SEED, false)] {
        use_nats(NatsProvider::builder(at(&server, "")).nkey(seed), works).await;
        use_url(&format!("nats://{}?nkey={seed}", server.address()), works).await;
    }
}

async fn with_files(creds: &str, broken: &str, key: &str) {
    let server = NatsServer::start().await;
    for (path, works) in [(creds, true), (broken, false)] {
        use_nats(NatsProvider::builder(at(&server, "")).credentials_file(path), works).await;
        use_url(&format!("nats://{}?credentials_path={path}", server.address()), works).await;
    }
    use_nats(NatsProvider::builder(at(&server, "")).client_certificate(key, key).require_tls(true), false)
        .await;
    use_url(&format!("tls://{}?client_certificate={key}&client_key={key}", server.address()), false).await;
    let guarded = NatsServer::start_with("authorization { token: \"another\" }").await;
    use_nats(NatsProvider::builder(at(&guarded, "")).credentials_file(creds), false).await;
}

/// URLs that cannot be read, and one whose server does not exist.
async fn unreadable_urls(creds: &str) {
    for url in [
        format!("unknown://{USER}:{PASSWORD}@host"),
        format!("nats://{USER}:{PASSWORD}/{TOKEN}@host"),
        format!("nats://{USER}:{PASSWORD}@host?max_events=many"),
        format!("nats://{USER}:{PASSWORD}@host?max_evnts=1"),
        format!("nats://{USER}:%zz{PASSWORD}@host"),
        format!("nats://host?token={TOKEN}&token={WRONG_TOKEN}"),
        format!("nats://{TOKEN}@host?token={WRONG_TOKEN}&nkey={NKEY_SEED}"),
        format!("nats://{USER}:{PASSWORD}@127.0.0.1:1?connect_timeout_secs=1"),
        format!("nats://127.0.0.1:1?connect_timeout_secs=1&credentials_path={creds}"),
        format!("{USER}:{PASSWORD}@host"),
    ] {
        use_url(&url, false).await;
    }
}

fn at(server: &NatsServer, credentials: &str) -> NatsConfig {
    NatsConfig {
        url: format!("nats://{credentials}{}", server.address()),
        connect_timeout_secs: 2,
        request_timeout_secs: 2,
        ..NatsConfig::default()
    }
}

async fn by_url(url: &str) -> a3s_event::Result<Arc<dyn EventProvider>> {
    match ProviderUrl::parse(url) {
        Ok(url) => {
            show("url", &url);
            line(format!("url: {url}"));
        }
        Err(error) => show_error("parse", &error),
    }
    ProviderRegistry::builtin().connect(url).await
}

/// Connects and uses the bus, or shows why that is not possible; which of both, is known.
async fn use_url(url: &str, works: bool) {
    let connected = by_url(url).await;
    assert_eq!(connected.is_ok(), works, "{connected:?}", connected = connected.as_ref().err());
    match connected {
        Ok(provider) => use_bus("by url", provider).await,
        Err(error) => show_error("connect", &error),
    }
    if let Err(error) = EventBus::connect(url).await {
        show_error("connect", &error);
    }
}

async fn use_nats(builder: NatsProviderBuilder, works: bool) {
    show("builder", &builder);
    let connected = builder.connect().await;
    assert_eq!(connected.is_ok(), works, "{connected:?}", connected = connected.as_ref().err());
    match connected {
        Ok(provider) => {
            show("config", provider.client().config());
            show("client", provider.client());
            use_bus("nats", Arc::new(provider)).await;
        }
        Err(error) => show_error("connect", &error),
    }
}

/// Publishes, delivers, refuses and dead-letters encrypted events, with the right key and without it.
async fn use_bus(what: &str, provider: Arc<dyn EventProvider>) {
    let mut encryptor = Aes256GcmEncryptor::new("k1", ENCRYPTION_KEY);
    encryptor.add_key("k2", NEXT_ENCRYPTION_KEY).unwrap();
    encryptor.rotate_to("k2").unwrap();
    show("encryptor", &encryptor);
    let dlq = Arc::new(SinkDlqHandler::new(Arc::new(LogSink::default()), 100));
    let mut bus = bus_over(&provider, Arc::new(encryptor), dlq.clone()).await;
    let broker = Arc::new(Broker::new());
    broker.add_trigger(Trigger::new("log", TriggerFilter::default(), Arc::new(LogSink::default()))).await;
    bus.set_broker(broker);
    show("bus", &bus);

    let mut subscription = subscribe(&bus, "reader").await;
    for _ in 0..2 {
        let stored = bus.publish("pay", "card", "paid", "shop", json!({ "card": PAYLOAD })).await;
        show("stored", &stored.unwrap());
    }
    let delivery = receive(&mut subscription).await;
    assert_eq!(delivery.event().payload["card"], PAYLOAD, "it is there, in clear");
    show("delivery", &delivery);
    let span = process_span(bus.provider_name(), "reader", &delivery);
    delivery.ack().instrument(span).await.unwrap();
    receive(&mut subscription).await.nak().await.unwrap();
    for letter in dlq.list(10).await.unwrap() {
        show("dead letter", &letter);
    }
    assert_eq!(dlq.count().await.unwrap(), 1);
    assert_eq!(bus.list_events(None, 10).await.unwrap()[0].payload["card"], PAYLOAD);
    bus.observe_lag().await.unwrap();
    show("metrics", bus.telemetry());
    line(bus.telemetry().snapshot().to_prometheus());
    line(serde_json::to_string(&bus.telemetry().snapshot()).unwrap());
    show("info", &bus.info().await.unwrap());
    show("consumers", &bus.consumers().await.unwrap());

    let stranger: Arc<dyn EventEncryptor> = Arc::new(Aes256GcmEncryptor::new("k3", &[3; 32]));
    let dlq = Arc::new(MemoryDlqHandler::default());
    let reader = bus_over(&provider, stranger, dlq.clone()).await;
    let mut subscription = subscribe(&reader, "stranger").await;
    let error = tokio::time::timeout(DEADLINE, subscription.next_delivery()).await.unwrap().unwrap_err();
    show_error(what, &error);
    for letter in dlq.list(10).await.unwrap() {
        show("dead letter", &letter);
    }
    show("history", &provider.query(&HistoryQuery::new(10)).await.unwrap());
    let deep = (0..150).fold(json!(PAYLOAD), |inner, _| json!([inner]));
    show_error("publish", &bus.publish("pay", "card", "", "", deep).await.unwrap_err());
    bus.close().await.unwrap();
    show_error("publish", &bus.publish("pay", "card", "", "", json!(PAYLOAD)).await.unwrap_err());
}

async fn bus_over(
    provider: &Arc<dyn EventProvider>,
    encryptor: Arc<dyn EventEncryptor>,
    dlq: Arc<dyn DlqHandler>,
) -> EventBus {
    let mut bus = EventBus::from_provider(Arc::clone(provider));
    bus.set_encryptor(encryptor);
    bus.set_dlq_handler(dlq);
    bus
}

async fn subscribe(bus: &EventBus, subscriber: &str) -> Box<dyn Subscription> {
    let filter = SubscriptionFilter {
        subscriber_id: subscriber.to_owned(),
        subjects: vec!["events.>".to_owned()],
        durable: true,
        options: Some(SubscribeOptions { max_deliver: Some(1), ..SubscribeOptions::default() }),
    };
    bus.update_subscription(filter).await.unwrap();
    let subscription = bus.create_subscriber(subscriber).await.unwrap().remove(0);
    show("subscription", &bus.get_subscription(subscriber).await);
    subscription
}

async fn receive(subscription: &mut Box<dyn Subscription>) -> a3s_event::Delivery {
    tokio::time::timeout(DEADLINE, subscription.next_delivery()).await.unwrap().unwrap().unwrap()
}
