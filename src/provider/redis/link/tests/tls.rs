//! TLS, with certificates that were made for the tests.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use super::*;
use crate::tls::TlsFiles;

/// The only one that was built with TLS.
const WITH_TLS: &str = "redis-7.0.15";

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "link tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { pem: params.self_signed(&key).unwrap().pem(), issuer: Issuer::new(params, key) }
    }

    /// Writes a certificate and its key.
    fn certify(&self, folder: &Path, file: &str, name: &str) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(folder.join(format!("{file}.pem")), certificate.pem()).unwrap();
        std::fs::write(folder.join(format!("{file}.key")), key.serialize_pem()).unwrap();
    }
}

/// Files of two authorities, of which the first has signed the certificates of a server and a client.
fn certificates(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let [ours, other] = [Authority::new(), Authority::new()];
    ours.certify(folder.path(), "server", name);
    ours.certify(folder.path(), "client", "client");
    other.certify(folder.path(), "stranger", "client");
    std::fs::write(folder.path().join("ca.pem"), &ours.pem).unwrap();
    std::fs::write(folder.path().join("other.pem"), &other.pem).unwrap();
    folder
}

async fn start(folder: &Path, asks_clients: &str) -> (Server, u16) {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let path = |name: &str| folder.join(name).display().to_string();
    let lines = format!(
        "tls-port {port}\ntls-cert-file {}\ntls-key-file {}\ntls-ca-cert-file {}\ntls-auth-clients {asks_clients}",
        path("server.pem"),
        path("server.key"),
        path("ca.pem")
    );
    (Server::start(WITH_TLS, &lines).await, port)
}

fn with(port: u16, folder: &Path, roots: &str, client: Option<&str>) -> LinkConfig {
    let mut config = config(Node::tcp("127.0.0.1", port));
    let pair = |name| (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
    config.tls = Some(TlsFiles { root_certificates: Some(folder.join(roots)), client: client.map(pair) });
    config
}

#[tokio::test]
async fn a_server_with_the_right_certificate_is_used() {
    let folder = certificates("127.0.0.1");
    let (server, port) = start(folder.path(), "no").await;
    let (link, owner) = connect(with(port, folder.path(), "ca.pem", None)).await.unwrap();
    assert_eq!(link.call("test", &count("a")).await.unwrap(), counted(1, "a"));
    // Again on another connection.
    server.command("CLIENT KILL TYPE pubsub").await;
    owner.connected(2).await;
    assert_eq!(link.call("test", &count("b")).await.unwrap(), counted(2, "b"));
    assert!(rustls::crypto::CryptoProvider::get_default().is_none(), "the process keeps its choice");
}

#[tokio::test]
async fn certificates_are_read_again_for_the_next_connection() {
    let [folder, renewed] = [certificates("127.0.0.1"), certificates("127.0.0.1")];
    let (server, port) = start(folder.path(), "yes").await;
    let (link, owner) = connect(with(port, folder.path(), "ca.pem", Some("client"))).await.unwrap();
    let path = |name: &str| renewed.path().join(name).display().to_string();
    let [certificate, key, authority] = ["server.pem", "server.key", "ca.pem"].map(path);
    let settings = format!("tls-cert-file {certificate} tls-key-file {key} tls-ca-cert-file {authority}");
    server.command(&format!("CONFIG SET {settings}")).await;
    for name in ["client.pem", "client.key", "ca.pem"] {
        std::fs::copy(renewed.path().join(name), folder.path().join(name)).unwrap();
    }
    server.command("CLIENT KILL TYPE pubsub").await;
    owner.connected(2).await;
    assert_eq!(link.call("test", &count("a")).await.unwrap(), counted(1, "a"));
}

#[tokio::test]
async fn wrong_certificates_are_refused_with_advice() {
    let folder = certificates("elsewhere.example");
    let (_server, port) = start(folder.path(), "no").await;
    for roots in ["ca.pem", "other.pem"] {
        let error = refused(with(port, folder.path(), roots, None)).await;
        let text = told(&error);
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Connection, false), "{text}");
        assert!(text.contains("only after the certificates"), "{text}");
    }
    // Without authorities, those of the system count.
    let mut config = with(port, folder.path(), "ca.pem", None);
    config.tls = Some(TlsFiles::default());
    assert!(told(&refused(config).await).contains("only after the certificates"));
}

#[tokio::test]
async fn a_server_that_asks_for_a_certificate_gets_it() {
    let folder = certificates("127.0.0.1");
    let (_server, port) = start(folder.path(), "yes").await;
    let (link, _) = connect(with(port, folder.path(), "ca.pem", Some("client"))).await.unwrap();
    assert_eq!(link.call("test", &count("a")).await.unwrap(), counted(1, "a"));
    for client in [None, Some("stranger")] {
        let error = refused(with(port, folder.path(), "ca.pem", client)).await;
        assert_eq!(error.kind(), ErrorKind::Connection, "{}", told(&error));
    }
    let missing = refused(with(port, folder.path(), "missing.pem", None)).await;
    assert!(missing.kind() == ErrorKind::Config && missing.to_string().contains("missing.pem"), "{missing}");
}

#[tokio::test]
async fn tls_on_one_side_only_is_told() {
    let folder = certificates("127.0.0.1");
    let (server, port) = start(folder.path(), "no").await;
    let mut plain = with(port, folder.path(), "ca.pem", None);
    plain.tls = None;
    let encrypted = with(server.port, folder.path(), "ca.pem", None);
    for mut config in [plain, encrypted] {
        config.connect_timeout = Duration::from_secs(2);
        let error = refused(config).await;
        let text = told(&error);
        assert_eq!(error.kind(), ErrorKind::Connection, "{text}");
        assert!(text.contains("TLS"), "{text}");
    }
}
