//! Translates the settings of the provider into those of the link.

use super::RedisConfig;
use super::address::Address;
use super::keys::Keys;
use super::link::{Confirmation, Credentials, LinkConfig, Node, PATIENCE, Sentinel};
use crate::error::Result;
use crate::tls::TlsFiles;

/// Returns the settings of the link.
pub(super) fn link_config(config: &RedisConfig, keys: &Keys) -> Result<LinkConfig> {
    let nodes = config.addresses()?.into_iter().map(|address| match address {
        Address::Tcp { host, port } => Node::Tcp { host, port },
        Address::Unix(path) => Node::Unix(path),
    });
    let sentinel = config.sentinel.clone().map(|name| Sentinel {
        name,
        credentials: Credentials {
            user: config.sentinel_user.clone(),
            password: config.sentinel_password.clone(),
        },
    });
    let tls = config.tls.then(|| TlsFiles {
        root_certificates: config.root_certificates.clone(),
        client: config.client_certificate.clone().zip(config.client_key.clone()),
    });
    Ok(LinkConfig {
        seeds: nodes.collect(),
        sentinel,
        credentials: Credentials { user: config.user.clone(), password: config.password.clone() },
        tls,
        database: config.db.into(),
        client_name: Some(config.client_name.clone()),
        connect_timeout: config.connect_timeout,
        timeout: config.timeout,
        patience: PATIENCE,
        allow_eviction: config.allow_eviction,
        confirmation: Confirmation { replicas: config.wait_replicas.into(), aof: config.wait_aof },
        channel: keys.channel(),
        key: keys.meta(),
    })
}
