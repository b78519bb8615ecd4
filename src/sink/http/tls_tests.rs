//! Tests against a TLS server, with certificates that were made for the tests.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

const HOST: &str = "hooks.example";

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { pem: params.self_signed(&key).unwrap().pem(), issuer: Issuer::new(params, key) }
    }

    fn certify(&self, name: &str, is_expired: bool) -> ServerConfig {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        if is_expired {
            params.not_after = date_time_ymd(2020, 1, 1);
        }
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let chain = vec![CertificateDer::from_pem_slice(certificate.pem().as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap()
    }
}

/// Answers every request with 202, and counts the requests.
struct Server {
    port: u16,
    requests: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn start(config: ServerConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&requests);
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut buffer = [0; 4_096];
                if matches!(stream.read(&mut buffer).await, Ok(read) if read > 0) {
                    seen.fetch_add(1, Ordering::SeqCst);
                    let answer = "HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                    let _ = stream.write_all(answer.as_bytes()).await;
                    let _ = stream.shutdown().await;
                }
            }
        });
        Self { port, requests, task }
    }

    /// Returns a sink that resolves the name to this server.
    fn sink(&self) -> HttpSinkBuilder {
        let address: IpAddr = "127.0.0.1".parse().unwrap();
        HttpSink::builder("hook", format!("https://{HOST}:{}/hook", self.port))
            .allow_port(self.port)
            .allow_network("127.0.0.0/8")
            .lookup(Arc::new(move |_| Box::pin(async move { Ok(vec![address]) })))
    }
}

async fn deliver(sink: HttpSinkBuilder) -> std::result::Result<(), SinkFailure> {
    let event = Event::new("events.a", "a", "", "shop", json!({}));
    sink.build().unwrap().deliver(&event).await.map_err(|error| SinkFailure::of(&error))
}

#[tokio::test]
async fn a_certificate_of_an_authority_that_is_named_is_trusted() {
    let [authority, other] = ["ours", "another"].map(Authority::new);
    let server = Server::start(authority.certify(HOST, false)).await;
    deliver(server.sink().root_certificates(authority.pem.as_bytes())).await.unwrap();
    let both = [other.pem.as_bytes(), authority.pem.as_bytes()].concat();
    deliver(server.sink().root_certificates(&both)).await.unwrap();
    let in_turn = server.sink().root_certificates(other.pem.as_bytes());
    deliver(in_turn.root_certificates(authority.pem.as_bytes())).await.unwrap();
    assert_eq!(server.requests.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_certificate_that_is_not_right_gets_no_event_and_is_tried_again_slowly() {
    let [authority, other] = ["ours", "another"].map(Authority::new);
    for (name, is_expired, roots, reason) in [
        (HOST, false, None, "UnknownIssuer"),
        (HOST, false, Some(&other), "UnknownIssuer"),
        ("other.example", false, Some(&authority), "not valid for name \"hooks.example\""),
        (HOST, true, Some(&authority), "expired"),
    ] {
        let server = Server::start(authority.certify(name, is_expired)).await;
        let mut sink = server.sink();
        if let Some(roots) = roots {
            sink = sink.root_certificates(roots.pem.as_bytes());
        }
        let failure = deliver(sink).await.unwrap_err();
        assert!(failure.to_string().contains(reason), "{reason}: {failure}");
        assert_eq!((failure.is_retryable(), failure.after()), (true, Some(RETRY_TLS_AFTER)), "{failure}");
        assert_eq!(server.requests.load(Ordering::SeqCst), 0, "{reason}");
    }
}

#[test]
fn what_is_no_certificate_is_refused() {
    let authority = Authority::new("ours");
    let cut = authority.pem.replace("-----END CERTIFICATE-----", "");
    let key = KeyPair::generate().unwrap().serialize_pem();
    let garbage = "-----BEGIN CERTIFICATE-----\nYWJj\n-----END CERTIFICATE-----\n";
    for pem in ["", "nonsense", &cut, &key, garbage] {
        let built =
            HttpSink::builder("hook", "https://example.com/").root_certificates(pem.as_bytes()).build();
        let text = built.unwrap_err().to_string();
        assert!(text.contains("root certificates: "), "{pem}: {text}");
    }
}
