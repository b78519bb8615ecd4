//! Certificates for tests, and a proxy that adds TLS to a server without it.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

/// PEM files of an authority, of what it has signed for a server on loopback and for a client, and of another authority.
/// Dropping it removes them.
#[derive(Debug)]
pub struct Certificates {
    folder: TempDir,
}

impl Default for Certificates {
    fn default() -> Self {
        Self::new()
    }
}

impl Certificates {
    /// Creates the files.
    ///
    /// # Panics
    ///
    /// If they cannot be created.
    pub fn new() -> Self {
        let certificates = Self { folder: tempfile::tempdir().expect("a folder can be created") };
        let write = |file: &str, text: String| {
            fs::write(certificates.path(file), text).expect("the folder can be written to");
        };
        let new_key = || KeyPair::generate().expect("a key can be generated");
        let authority = |file| {
            let mut params = named("testkit authority", Vec::new());
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = new_key();
            write(file, params.self_signed(&key).expect("an authority signs itself").pem());
            Issuer::new(params, key)
        };
        authority("other-ca.pem");
        let issuer = authority("ca.pem");
        for name in ["server", "client"] {
            let key = new_key();
            let params = named(name, vec!["127.0.0.1".to_owned(), "localhost".to_owned()]);
            let signed = params.signed_by(&key, &issuer).expect("an authority signs valid names");
            write(&format!("{name}.pem"), signed.pem());
            write(&format!("{name}.key"), key.serialize_pem());
        }
        certificates
    }

    /// Returns the path of `ca.pem`, `other-ca.pem`, `server.pem`, `server.key`, `client.pem` or `client.key`.
    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    /// The configuration of a server, which requires a certificate of a client if it `is_mutual`.
    fn server(&self, is_mutual: bool) -> ServerConfig {
        let certificate =
            |file| CertificateDer::from_pem_file(self.path(file)).expect("the file was written");
        let key = PrivateKeyDer::from_pem_file(self.path("server.key")).expect("the file was written");
        let provider = Arc::new(default_provider());
        let verifier = if is_mutual {
            let mut roots = RootCertStore::empty();
            roots.add(certificate("ca.pem")).expect("the authority is valid");
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider));
            verifier.build().expect("there is an authority")
        } else {
            WebPkiClientVerifier::no_client_auth()
        };
        ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring supports the versions")
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate("server.pem")], key)
            .expect("the key belongs to the certificate")
    }
}

/// OpenSSL takes a certificate with the name of its authority for one that has signed itself.
fn named(name: &str, alternatives: Vec<String>) -> CertificateParams {
    let mut params = CertificateParams::new(alternatives).expect("the names are valid");
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// A proxy on a free loopback port that speaks TLS with clients, and plain text with the server. Dropping it closes its
/// port and its connections.
#[derive(Debug)]
pub struct TlsProxy {
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl TlsProxy {
    /// Starts a proxy to a server. If it `is_mutual`, clients must show a certificate.
    ///
    /// # Panics
    ///
    /// If loopback has no free port.
    pub async fn start(upstream: SocketAddr, certificates: &Certificates, is_mutual: bool) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let acceptor = TlsAcceptor::from(Arc::new(certificates.server(is_mutual)));
        Self { address, accepting: tokio::spawn(accept(listener, acceptor, upstream)) }
    }

    /// Returns the address to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for TlsProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Accepts connections forever. It owns them, and they end with it.
async fn accept(listener: TcpListener, acceptor: TlsAcceptor, upstream: SocketAddr) {
    let mut connections = JoinSet::new();
    loop {
        // The error belongs to the connection that was about to be accepted.
        let Ok((client, _)) = listener.accept().await else { continue };
        while connections.try_join_next().is_some() {}
        connections.spawn(connection(client, acceptor.clone(), upstream));
    }
}

async fn connection(client: TcpStream, acceptor: TlsAcceptor, upstream: SocketAddr) -> io::Result<()> {
    let mut server = TcpStream::connect(upstream).await?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
    }
    let mut client = acceptor.accept(client).await?;
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}
