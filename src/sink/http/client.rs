//! HTTP client of a sink: it connects only to allowed targets, and trusts only the configured certificate authorities.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Client;
use reqwest::redirect::Policy;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt;

use super::guard::Allowed;
use super::resolver::{Guarded, Lookup};
use crate::error::{EventError, Result};

const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Trusted certificate authorities; if there are none, those of the system.
pub(super) struct Roots(RootCertStore);

impl Roots {
    pub(super) fn of_the_system() -> Self {
        Self(RootCertStore::empty())
    }

    /// Adds the certificates of a PEM text.
    pub(super) fn add(&mut self, pem: &[u8]) -> Result<()> {
        let refused = |rule: String| EventError::Config(format!("root certificates: {rule}"));
        let before = self.0.len();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate =
                certificate.map_err(|error| refused(format!("cannot be read as PEM: {error}")))?;
            self.0.add(certificate).map_err(|error| refused(error.to_string()))?;
        }
        if self.0.len() == before {
            return Err(refused("the PEM text contains none".to_owned()));
        }
        Ok(())
    }
}

pub(super) fn client(allowed: Allowed, lookup: Lookup, roots: Roots) -> Result<Client> {
    let refused = |error: &dyn fmt::Display| EventError::Config(format!("TLS of an HTTP sink: {error}"));
    // The NATS client uses the same backend, so the program needs only one.
    let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| refused(&error))?;
    let tls = if roots.0.is_empty() {
        tls.with_platform_verifier().map_err(|error| refused(&error))?
    } else {
        tls.with_root_certificates(roots.0)
    };
    Client::builder()
        .tls_backend_preconfigured(tls.with_no_client_auth())
        .dns_resolver(Guarded { allowed, lookup })
        .redirect(Policy::none())
        .retry(reqwest::retry::never())
        .no_proxy()
        .referer(false)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .user_agent(concat!("a3s-event/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| refused(&error))
}
