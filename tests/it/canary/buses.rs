//! The providers with credentials, right and wrong, and the buses on them.

use std::path::Path;
use std::sync::Arc;

use a3s_event::crypto::EventEncryptor;
use a3s_event::dlq::DlqHandler;
use a3s_event::provider::nats::NatsProviderBuilder;
use a3s_event::provider::{HistoryQuery, ProviderUrl};
use a3s_event::trace::process_span;
use a3s_event::{
    Aes256GcmEncryptor, Broker, EventBus, EventProvider, LogSink, MemoryDlqHandler, MemoryProvider,
    NatsConfig, NatsProvider, ProviderRegistry, SinkDlqHandler, SubscribeOptions, Subscription,
    SubscriptionFilter, Trigger, TriggerFilter,
};
use a3s_event_testkit::NatsServer;
use serde_json::json;
use tracing::Instrument;

use super::show::{line, show, show_error};
use super::{
    CLIENT_KEY, CREDS_SEED, DEADLINE, ENCRYPTION_KEY, JWT, NEXT_ENCRYPTION_KEY, NKEY, NKEY_SEED,
    NO_NKEY_SEED, PASSWORD, PAYLOAD, TOKEN, USER, WRONG_NKEY_SEED, WRONG_PASSWORD, WRONG_TOKEN,
};

pub(super) async fn shown(folder: &Path) {
    use_bus("memory", Arc::new(MemoryProvider::default())).await;
    let sqlite = format!("sqlite://{}/events.db", folder.display());
    use_bus("sqlite", by_url(&sqlite).await.unwrap()).await;

    let creds = folder.join("service.creds");
    let text = format!(
        "-----BEGIN NATS USER JWT-----\n{JWT}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{CREDS_SEED}\n------END USER NKEY SEED------\n"
    );
    std::fs::write(&creds, text).unwrap();
    let broken = folder.join("broken.creds");
    std::fs::write(&broken, format!("no creds at all: {CREDS_SEED}")).unwrap();
    let key = folder.join("key.pem");
    std::fs::write(&key, format!("-----BEGIN PRIVATE KEY-----\n{CLIENT_KEY}\n-----END PRIVATE KEY-----\n"))
        .unwrap();
    let [creds, broken, key] = [creds, broken, key].map(|path| path.display().to_string());

    with_token().await;
    with_password().await;
    with_nkey().await;
    with_files(&creds, &broken, &key).await;
    unreadable_urls(&creds).await;
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
        format!("nats://{USER}:{PASSWORD}@127.0.0.1:1?connect_timeout=1s"),
        format!("nats://127.0.0.1:1?connect_timeout=1s&credentials_path={creds}"),
        format!("{USER}:{PASSWORD}@host"),
        format!("nats:{USER}:{PASSWORD}@host"),
        format!("nats://{USER}:{PASSWORD}@host:port"),
        format!("nats://{USER}:{PASSWORD}@host#{TOKEN}"),
        format!("nats://{USER}:{PASSWORD}@one,{USER}:{PASSWORD}@two?x=1"),
        format!("nats://host?tkn={TOKEN}"),
        // A token whose `&` was not escaped.
        format!("nats://host?token=a&{TOKEN}"),
        format!("nats://host?token=a&{TOKEN}={TOKEN}"),
        format!("nats://host?token=a&{TOKEN}=1&{TOKEN}=2"),
        format!("nats://host?nkey={NO_NKEY_SEED}"),
        format!("memory://?token={TOKEN}"),
        format!("sqlite://{USER}:{PASSWORD}@host/a.db"),
        format!("sqlite:/nowhere/a.db?password={PASSWORD}"),
    ] {
        use_url(&url, false).await;
    }
    for url in [format!("nats://host?token={TOKEN}"), format!("nats://host#{TOKEN}")] {
        use_nats(NatsProvider::builder(NatsConfig { url, ..NatsConfig::default() }), false).await;
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

pub(super) async fn by_url(url: &str) -> a3s_event::Result<Arc<dyn EventProvider>> {
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
