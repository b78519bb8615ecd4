//! Servers with TLS, by their own means and behind the proxy.

use std::net::SocketAddr;
use std::sync::Arc;

use a3s_event_testkit::RedisServer;
use a3s_event_testkit::servers::redis::{OLDEST, unpacked, versions};
use a3s_event_testkit::servers::tls::{Certificates, TlsProxy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// Sends PING, and returns the answer.
async fn ping(
    address: SocketAddr,
    certificates: &Certificates,
    ca: &str,
    client: bool,
) -> std::io::Result<String> {
    let certificate = |file| CertificateDer::from_pem_file(certificates.path(file)).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate(ca)).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = if client {
        let key = PrivateKeyDer::from_pem_file(certificates.path("client.key")).unwrap();
        config.with_client_auth_cert(vec![certificate("client.pem")], key).unwrap()
    } else {
        config.with_no_client_auth()
    };
    let stream = TcpStream::connect(address).await?;
    let name = "127.0.0.1".try_into().unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    stream.write_all(b"PING\r\n").await?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

async fn check(address: SocketAddr, certificates: &Certificates, is_mutual: bool) {
    let ping = async |ca, client| ping(address, certificates, ca, client).await;
    assert_eq!(ping("ca.pem", true).await.unwrap(), "+PONG\r\n");
    assert!(ping("other-ca.pem", true).await.is_err());
    assert_eq!(ping("ca.pem", false).await.is_err(), is_mutual);
}

#[tokio::test]
async fn the_proxy_adds_tls_to_any_server() {
    let certificates = Certificates::new();
    for (version, binary) in versions() {
        println!("on {version}");
        let server = RedisServer::start_binary(&binary, "").await;
        for is_mutual in [false, true] {
            let proxy = TlsProxy::start(server.address(), &certificates, is_mutual).await;
            check(proxy.address(), &certificates, is_mutual).await;
        }
    }
}

#[tokio::test]
async fn a_server_has_tls_of_its_own() {
    let Some(binary) = unpacked(OLDEST) else { return println!("not checked: there is no {OLDEST} here") };
    let certificates = Certificates::new();
    for is_mutual in [false, true] {
        let server = RedisServer::start_tls(&binary, &certificates, is_mutual, "").await;
        assert!(server.url().starts_with("rediss://"), "{}", server.url());
        check(server.address(), &certificates, is_mutual).await;
    }
}
