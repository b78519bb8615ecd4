//! Checks the PEM files of TLS before the first connection. The client would find their errors only after it has opened
//! a connection, and report an unreachable server.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use async_nats::rustls::crypto::ring::default_provider;
use async_nats::rustls::pki_types::pem::PemObject as _;
use async_nats::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use async_nats::rustls::sign::CertifiedKey;
use async_nats::rustls::{Error, InconsistentKeys, RootCertStore};

use super::config::NatsProviderBuilder;
use crate::error::{EventError, Result};

/// Maximum size in bytes, larger than any file of certificates.
const MAX_BYTES: u64 = 1 << 20;

/// Refuses files that cannot be used.
pub(super) async fn check(settings: &NatsProviderBuilder) -> Result<()> {
    let roots = settings.root_certificates.clone();
    let client = settings.client_certificate.clone().zip(settings.client_key.clone());
    if roots.is_none() && client.is_none() {
        return Ok(());
    }
    let checked = tokio::task::spawn_blocking(move || {
        roots.map_or(Ok(()), |path| check_roots(&path))?;
        client.map_or(Ok(()), |(certificate, key)| check_client(&certificate, &key))
    });
    // The file can be a pipe without a writer.
    match tokio::time::timeout(settings.config.connect_timeout(), checked).await {
        Ok(Ok(checked)) => checked,
        Ok(Err(ended)) => Err(EventError::Config(format!("tls: reading the files failed: {ended}"))),
        Err(_) => {
            let within = settings.config.connect_timeout_secs;
            Err(EventError::Config(format!("tls: the files could not be read within {within} s")))
        }
    }
}

fn check_roots(path: &Path) -> Result<()> {
    let file = PemFile::read("root_certificates", path)?;
    let mut store = RootCertStore::empty();
    for certificate in file.certificates()? {
        store.add(certificate).map_err(|error| file.wrong(error))?;
    }
    Ok(())
}

fn check_client(certificate: &Path, key: &Path) -> Result<()> {
    let certificates = PemFile::read("client_certificate", certificate)?;
    let chain = certificates.certificates()?;
    let key = PemFile::read("client_key", key)?;
    match CertifiedKey::from_der(chain, key.key()?, &default_provider()) {
        Ok(_) => Ok(()),
        Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            let certificate = certificates.path.display();
            Err(key.wrong(format!("is not the key of the client_certificate {certificate}")))
        }
        Err(Error::InvalidCertificate(why)) => Err(certificates.wrong(format!("{why:?}"))),
        Err(error) => Err(key.wrong(error)),
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
