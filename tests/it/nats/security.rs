//! Who may connect and what may be published: every way to authenticate, TLS, and permissions.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use a3s_event::provider::nats::NatsProviderBuilder;
use a3s_event::{ErrorKind, EventProvider, NatsConfig, NatsProvider, ProviderRegistry};
use a3s_event_testkit::NatsServer;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer};
use serde_json::{Value, json};

use super::{config, event};

#[tokio::test]
async fn the_credentials_file_is_read() {
    let server = NatsServer::start().await;
    let with = |path: &str| NatsProvider::builder(config(&server)).credentials_file(path).connect();
    let missing = with("no/such/file.creds").await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Config, "{missing}");
    let path = std::env::temp_dir().join(format!("a3s-event-{}.creds", std::process::id()));
    std::fs::write(&path, "canary").unwrap();
    let garbage = with(path.to_str().unwrap()).await.unwrap_err();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(garbage.kind(), ErrorKind::Config, "{garbage}");
    assert!(!format!("{garbage} {garbage:?}").contains("canary"), "{garbage:?}");
}

#[tokio::test]
async fn every_way_to_authenticate_works_and_a_wrong_secret_is_not_shown() {
    let connects = async |server: &NatsServer, change: fn(NatsProviderBuilder) -> NatsProviderBuilder| {
        change(NatsProvider::builder(config(server))).connect().await.map(drop)
    };
    let server = NatsServer::start_with("authorization { token: canary }").await;
    assert_eq!(connects(&server, |b| b).await.unwrap_err().kind(), ErrorKind::Unauthorized);
    let url = format!("nats://canary@127.0.0.1:{}", server.port());
    ProviderRegistry::builtin().connect(&url).await.map(drop).unwrap();
    let server = NatsServer::start_with("authorization { user: alice, password: canary }").await;
    connects(&server, |b| b.user_and_password("alice", "canary")).await.unwrap();
    let refused = connects(&server, |b| b.user_and_password("alice", "wrong-canary")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unauthorized, "{refused:?}");
    assert!(!format!("{refused} {refused:?}").contains("canary"), "{refused:?}");
    let cause = std::error::Error::source(&refused).unwrap().to_string();
    assert!(
        cause.starts_with(&format!("nats-server at {} refuses the credentials", server.url())),
        "{cause}"
    );
    let url = format!("nats://alice:canary@127.0.0.1:{}/ORDERS?subject_prefix=orders", server.port());
    let provider = ProviderRegistry::builtin().connect(&url).await.unwrap();
    assert_eq!(provider.subject_prefix(), "orders");
    let overlapping = NatsConfig { stream_name: "OTHER".to_owned(), ..config(&server) };
    let overlapping = NatsProvider::builder(overlapping).user_and_password("alice", "canary").connect().await;
    let overlapping = overlapping.unwrap_err();
    assert_eq!(overlapping.kind(), ErrorKind::Conflict);
    assert!(overlapping.to_string().contains("taken by stream 'A3S_EVENTS'"), "{overlapping}");
}

#[tokio::test]
async fn an_nkey_authenticates() {
    let key = KeyPair::new_user();
    let users = format!("authorization {{ users: [ {{ nkey: {} }} ] }}", key.public_key());
    let server = NatsServer::start_with(&users).await;
    let connect =
        async |seed: String| NatsProvider::builder(config(&server)).nkey(seed).connect().await.map(drop);
    connect(key.seed().unwrap()).await.unwrap();
    let stranger = KeyPair::new_user().seed().unwrap();
    let refused = connect(stranger.clone()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unauthorized, "{refused:?}");
    assert!(!format!("{refused} {refused:?}").contains(&stranger), "{refused:?}");
}

/// A signed JWT as NATS has them.
fn jwt(subject: &str, name: &str, signer: &KeyPair, claims: &Value) -> String {
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = encode(&json!({ "typ": "JWT", "alg": "ed25519-nkey" }));
    let claims = encode(&json!({
        "jti": name, "iat": 1_700_000_000, "iss": signer.public_key(), "sub": subject, "name": name, "nats": claims
    }));
    let signature = signer.sign(format!("{header}.{claims}").as_bytes()).unwrap();
    format!("{header}.{claims}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[tokio::test]
async fn a_credentials_file_authenticates() {
    let (operator, account, user) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_user());
    let by_operator =
        jwt(&operator.public_key(), "operator", &operator, &json!({ "type": "operator", "version": 2 }));
    let unlimited = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
        "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1
    });
    let system = KeyPair::new_account();
    let of_account = |account: &KeyPair, limits: &Value| {
        let claims = json!({ "type": "account", "version": 2, "limits": limits });
        jwt(&account.public_key(), "account", &operator, &claims)
    };
    let of_user = jwt(
        &user.public_key(),
        "user",
        &account,
        &json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 }),
    );
    let server = NatsServer::start_with(&format!(
        "operator: {by_operator}\nsystem_account: {system}\nresolver: MEMORY\n\
         resolver_preload {{ {}: {}, {system}: {} }}\n",
        account.public_key(),
        of_account(&account, &unlimited),
        of_account(&system, &json!({})),
        system = system.public_key(),
    ))
    .await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("user.creds");
    let contents = format!(
        "-----BEGIN NATS USER JWT-----\n{of_user}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
        user.seed().unwrap()
    );
    std::fs::write(&path, contents).unwrap();
    assert_eq!(NatsProvider::connect(config(&server)).await.unwrap_err().kind(), ErrorKind::Unauthorized);
    let config = NatsConfig { credentials_path: Some(path.display().to_string()), ..config(&server) };
    let provider = NatsProvider::connect(config).await.unwrap();
    assert_eq!(provider.publish(&event("a", 1)).await.unwrap(), 1);
}

/// A certificate authority, and what it has signed for the server and for a client, as PEM files.
struct Certificates {
    folder: tempfile::TempDir,
}

impl Certificates {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        std::fs::write(folder.path().join("ca.pem"), authority.self_signed(&key).unwrap().pem()).unwrap();
        let issuer = Issuer::new(authority, key);
        for name in ["server", "client"] {
            let key = rcgen::KeyPair::generate().unwrap();
            let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
            let signed = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
            std::fs::write(folder.path().join(format!("{name}.pem")), signed.pem()).unwrap();
            std::fs::write(folder.path().join(format!("{name}.key")), key.serialize_pem()).unwrap();
        }
        Self { folder }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    /// The `tls` block of a server, with what else is to stand in it.
    fn server(&self, more: &str) -> String {
        let quoted = |file: &str| format!("\"{}\"", self.path(file).display());
        format!(
            "tls {{ cert_file: {}, key_file: {}, ca_file: {}, {more} }}",
            quoted("server.pem"),
            quoted("server.key"),
            quoted("ca.pem")
        )
    }
}

async fn publishes(builder: NatsProviderBuilder) -> a3s_event::Result<u64> {
    builder.connect().await?.publish(&event("a", 1)).await
}

#[tokio::test]
async fn tls_is_verified_and_a_client_certificate_authenticates() {
    let certificates = Certificates::new();
    let server = NatsServer::start_with(&certificates.server("verify: true")).await;
    let builder = || NatsProvider::builder(config(&server)).root_certificates(certificates.path("ca.pem"));
    let with = |certificate: &Path, key: &Path| builder().client_certificate(certificate, key);
    let (certificate, key) = (certificates.path("client.pem"), certificates.path("client.key"));
    assert_eq!(publishes(with(&certificate, &key)).await.unwrap(), 1);
    let unknown = builder().connect().await.unwrap_err();
    assert!(matches!(unknown.kind(), ErrorKind::Connection | ErrorKind::Unauthorized), "{unknown:?}");
    let untrusted =
        NatsProvider::builder(config(&server)).client_certificate(&certificate, &key).connect().await;
    let untrusted = untrusted.unwrap_err();
    assert_eq!(untrusted.kind(), ErrorKind::Connection);
    let text = untrusted.to_string();
    assert!(text.contains(&format!("nats-server at {} cannot be reached", server.url())), "{text}");
    assert!(text.contains("a retry helps only after the certificates"), "{text}");
    let mismatched = with(&certificate, &certificates.path("server.key")).connect().await.unwrap_err();
    assert_eq!(mismatched.kind(), ErrorKind::Config, "{mismatched:?}");
    let url = format!(
        "tls://127.0.0.1:{}?root_certificates={}&client_certificate={}&client_key={}",
        server.port(),
        certificates.path("ca.pem").display(),
        certificate.display(),
        key.display()
    );
    let provider = ProviderRegistry::builtin().connect(&url).await.unwrap();
    assert_eq!(provider.publish(&event("a", 2)).await.unwrap(), 2);
}

#[tokio::test]
async fn tls_can_begin_before_the_greeting() {
    let certificates = Certificates::new();
    let server = NatsServer::start_with(&certificates.server("handshake_first: true")).await;
    let builder = || NatsProvider::builder(config(&server)).root_certificates(certificates.path("ca.pem"));
    assert_eq!(publishes(builder().tls_first(true)).await.unwrap(), 1);
}

#[tokio::test]
async fn a_server_without_tls_is_refused_where_it_is_required() {
    let server = NatsServer::start().await;
    let refused = NatsProvider::builder(config(&server)).require_tls(true).connect().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Connection, "{refused:?}");
}

/// The permissions that the documentation lists, and none more; events.secret is not among them.
const LEAST: &str = r#"authorization { users: [ { user: app, password: app, permissions: {
    publish: { allow: [
        "events.open.>", "$JS.API.STREAM.INFO.A3S_EVENTS", "$JS.API.STREAM.CREATE.A3S_EVENTS",
        "$JS.API.STREAM.MSG.GET.A3S_EVENTS", "$JS.API.DIRECT.GET.A3S_EVENTS", "$JS.API.CONSUMER.*.A3S_EVENTS.>",
        "$JS.API.CONSUMER.LIST.A3S_EVENTS", "$JS.API.CONSUMER.MSG.NEXT.A3S_EVENTS.>", "$JS.ACK.A3S_EVENTS.>", "_INBOX.>"
    ] }, subscribe: "_INBOX.>" } } ] }"#;

#[tokio::test]
async fn the_documented_permissions_are_enough_and_a_denied_publish_says_so_at_once() {
    let server = NatsServer::start_with(LEAST).await;
    let builder = NatsProvider::builder(config(&server)).user_and_password("app", "app");
    let provider = builder.connect().await.unwrap();
    let started = Instant::now();
    for number in 1..=2 {
        let denied = provider.publish(&event("secret.a", number)).await.unwrap_err();
        assert_eq!(denied.kind(), ErrorKind::Unauthorized, "{denied:?}");
        assert!(!denied.may_be_stored() && !denied.is_retryable(), "{denied:?}");
    }
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(provider.publish(&event("open.a", 3)).await.unwrap(), 1);
    let mut subscription = provider.subscribe_durable("reader", "events.>").await.unwrap();
    assert_eq!(super::ack_next(&mut *subscription).await, 3);
    let mut ephemeral = provider.subscribe("events.open.*").await.unwrap();
    assert_eq!(super::ack_next(&mut *ephemeral).await, 3);
    assert_eq!(super::numbers(&provider.history(None, 10).await.unwrap()), [3]);
    assert_eq!(provider.consumers().await.unwrap().len(), 2);
    ephemeral.close().await.unwrap();
    provider.unsubscribe("reader").await.unwrap();
    assert_eq!(provider.info().await.unwrap().consumers, 0);
}
