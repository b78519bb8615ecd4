//! PEM files of TLS, read and checked before the first connection. A client would find their errors only after it has
//! opened a connection, and report an unreachable server.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys, RootCertStore};

use crate::error::{EventError, Result};

/// Maximum size in bytes, larger than any file of certificates.
const MAX_BYTES: u64 = 1 << 20;

/// Names of the files.
#[derive(Debug, Clone, Default)]
pub(crate) struct TlsFiles {
    /// Certificate authorities to trust; without them, those of the system.
    pub(crate) root_certificates: Option<PathBuf>,
    /// Certificate of the client with its chain, and its key.
    pub(crate) client: Option<(PathBuf, PathBuf)>,
}

/// What the files contain.
#[derive(Default)]
#[cfg_attr(not(feature = "redis"), expect(dead_code, reason = "the NATS client reads the files itself"))]
pub(crate) struct Certificates {
    roots: Option<RootCertStore>,
    client: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
}

impl TlsFiles {
    /// Returns true if there are files. Without them, those of the system count.
    #[cfg(feature = "redis")]
    pub(crate) fn are_named(&self) -> bool {
        self.root_certificates.is_some() || self.client.is_some()
    }

    /// Reads the files, at most for `limit`, and refuses what cannot be used.
    pub(crate) async fn read(&self, limit: Duration) -> Result<Certificates> {
        if self.root_certificates.is_none() && self.client.is_none() {
            return Ok(Certificates::default());
        }
        let files = self.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let roots = files.root_certificates.map(|path| read_roots(&path)).transpose()?;
            let client =
                files.client.map(|(certificate, key)| read_client(&certificate, &key)).transpose()?;
            Ok(Certificates { roots, client })
        });
        // The file can be a pipe without a writer.
        match tokio::time::timeout(limit, reading).await {
            Ok(Ok(read)) => read,
            Ok(Err(ended)) => Err(EventError::Config(format!("tls: reading the files failed: {ended}"))),
            Err(_) => Err(EventError::Config(format!("tls: the files could not be read within {limit:?}"))),
        }
    }
}

#[cfg(feature = "redis")]
impl Certificates {
    /// Returns the settings of a client that trusts and presents these certificates. Needs no crypto provider of the
    /// process. Without authorities it reads those of the system, which blocks.
    pub(crate) fn client_config(self) -> Result<rustls::ClientConfig> {
        use rustls_platform_verifier::BuilderVerifierExt as _;

        let refused = |error: Error| EventError::Config(format!("tls: {error}"));
        let config = rustls::ClientConfig::builder_with_provider(std::sync::Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(refused)?;
        let config = match self.roots {
            Some(roots) => config.with_root_certificates(roots),
            None => config.with_platform_verifier().map_err(refused)?,
        };
        match self.client {
            Some((chain, key)) => config.with_client_auth_cert(chain, key).map_err(refused),
            None => Ok(config.with_no_client_auth()),
        }
    }
}

fn read_roots(path: &Path) -> Result<RootCertStore> {
    let file = PemFile::read("root_certificates", path)?;
    let mut store = RootCertStore::empty();
    for certificate in file.certificates()? {
        store.add(certificate).map_err(|error| file.wrong(error))?;
    }
    Ok(store)
}

fn read_client(
    certificate: &Path,
    key: &Path,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let certificates = PemFile::read("client_certificate", certificate)?;
    let chain = certificates.certificates()?;
    let key_file = PemFile::read("client_key", key)?;
    let key = key_file.key()?;
    match CertifiedKey::from_der(chain.clone(), key.clone_key(), &default_provider()) {
        Ok(_) => Ok((chain, key)),
        Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            let certificate = certificates.path.display();
            Err(key_file.wrong(format!("is not the key of the client_certificate {certificate}")))
        }
        Err(Error::InvalidCertificate(why)) => Err(certificates.wrong(format!("{why:?}"))),
        Err(error) => Err(key_file.wrong(error)),
    }
}
/// A file and the setting that names it. No error shows its contents.
struct PemFile {
    field: &'static str,
    path: PathBuf,
    pem: Vec<u8>,
}

impl PemFile {
    fn read(field: &'static str, path: &Path) -> Result<Self> {
        let mut file = Self { field, path: path.to_owned(), pem: Vec::new() };
        let read = File::open(path).and_then(|opened| opened.take(MAX_BYTES + 1).read_to_end(&mut file.pem));
        match read {
            Ok(bytes) if bytes as u64 <= MAX_BYTES => Ok(file),
            Ok(_) => Err(file.wrong("is larger than 1 MiB")),
            Err(error) => Err(file.wrong(error)),
        }
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>> {
        let found: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.pem).collect();
        match found {
            Ok(found) if found.is_empty() => Err(self.wrong("holds no certificate in PEM")),
            Ok(found) => Ok(found),
            Err(error) => Err(self.wrong(error)),
        }
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>> {
        let found: std::result::Result<Vec<_>, _> = PrivateKeyDer::pem_slice_iter(&self.pem).collect();
        let mut found = found.map_err(|error| self.wrong(error))?;
        match (found.pop(), found.len()) {
            (Some(key), 0) => Ok(key),
            (None, _) => Err(self.wrong("holds no private key in PEM")),
            (Some(_), others) => Err(self.wrong(format!("holds {} private keys, must hold one", others + 1))),
        }
    }

    fn wrong(&self, why: impl std::fmt::Display) -> EventError {
        EventError::Config(format!("tls: {} {}: {why}", self.field, self.path.display()))
    }
}
