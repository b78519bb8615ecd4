//! Looks names up for an HTTP sink. It checks every address, and the client connects only to checked ones.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::guard::Allowed;

/// Timeout of a lookup. If a lookup fails, the sink does not connect.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) type Found = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;

/// Function that finds the addresses of a name.
pub(super) type Lookup = Arc<dyn Fn(String) -> Found + Send + Sync>;

/// Returns the lookup of the system.
pub(super) fn system() -> Lookup {
    Arc::new(|name| {
        Box::pin(async move {
            let addresses = tokio::net::lookup_host((name.as_str(), 0)).await?;
            Ok(addresses.map(|address| address.ip()).collect())
        })
    })
}

pub(super) struct Guarded {
    pub(super) allowed: Allowed,
    pub(super) lookup: Lookup,
}

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let (allowed, name) = (self.allowed.clone(), name.as_str().to_owned());
        let lookup = (self.lookup)(name.clone());
        Box::pin(async move {
            let found = tokio::time::timeout(LOOKUP_TIMEOUT, lookup).await??;
            allowed.check_resolved(&name, &found)?;
            let addresses: Addrs = Box::new(found.into_iter().map(|address| SocketAddr::new(address, 0)));
            Ok(addresses)
        })
    }
}
