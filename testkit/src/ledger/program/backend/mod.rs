//! Servers that the driver starts and strikes.

#[cfg(feature = "nats")]
mod nats;
#[cfg(feature = "redis")]
mod redis;

use std::time::Duration;

use async_trait::async_trait;
use clap::ValueEnum;

use super::super::nemesis::Nemesis;
use super::schedule::Strike;
#[cfg(any(feature = "nats", feature = "redis"))]
use crate::servers::fault_proxy::{Direction, FaultProxy};

/// A server that the driver can start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ServerKind {
    /// One nats-server behind a proxy
    #[cfg(feature = "nats")]
    Nats,
    /// Three nats-servers that replicate the stream
    #[cfg(feature = "nats")]
    NatsCluster,
    /// One redis-server behind a proxy, which syncs each write
    #[cfg(feature = "redis")]
    Redis,
    /// A redis-server and its replica, which must have each event before its publish is acknowledged
    #[cfg(feature = "redis")]
    RedisPair,
    /// Three redis-servers, and the stream moves between them
    #[cfg(feature = "redis")]
    RedisCluster,
}

impl ServerKind {
    pub(super) async fn start(self, seed: u64) -> Box<dyn Server> {
        let _ = seed;
        match self {
            #[cfg(feature = "nats")]
            Self::Nats => Box::new(nats::One::start(seed).await),
            #[cfg(feature = "nats")]
            Self::NatsCluster => Box::new(crate::NatsCluster::start().await),
            #[cfg(feature = "redis")]
            Self::Redis => Box::new(redis::One::start(seed).await),
            #[cfg(feature = "redis")]
            Self::RedisPair => Box::new(crate::RedisPair::start().await),
            #[cfg(feature = "redis")]
            Self::RedisCluster => Box::new(crate::RedisCluster::start().await),
        }
    }
}

/// A running server. To add one, implement this trait and add a [`ServerKind`].
#[async_trait(?Send)]
pub(super) trait Server {
    /// Returns the URL that the workers connect to.
    fn url(&self) -> String;

    /// Returns the nemeses that it can be struck with.
    fn nemeses(&self) -> &'static [Nemesis];

    /// Strikes it, and returns once the fault is over and the server serves again. `stream` is the name of the stream.
    async fn strike(&mut self, strike: Strike, stream: &str);

    /// Returns the time in which a killed server may forget a settlement, as its provider documents.
    fn forgets_settlements(&self) -> Duration {
        Duration::ZERO
    }

    /// Returns true if a promoted server may give the sequences of events that were not acknowledged, and are lost, to
    /// others, as its provider documents. Programs may have received the lost ones.
    fn reuses_sequences(&self) -> bool {
        false
    }
}

/// Nemeses of one server behind a proxy.
#[cfg(any(feature = "nats", feature = "redis"))]
const ONE_BEHIND_A_PROXY: [Nemesis; 4] =
    [Nemesis::ServerKill, Nemesis::ServerFreeze, Nemesis::NetworkHold, Nemesis::NetworkReset];

/// Strikes the connections through a proxy.
#[cfg(any(feature = "nats", feature = "redis"))]
async fn strike_network(proxy: &FaultProxy, strike: Strike) {
    if strike.nemesis == Nemesis::NetworkReset {
        proxy.reset();
        return;
    }
    proxy.hold(Direction::ToServer);
    // Every other time the server is still heard, so that it answers what was sent before.
    if strike.number.is_multiple_of(2) {
        proxy.hold(Direction::ToClient);
    }
    tokio::time::sleep(strike.lasts).await;
    proxy.release();
}
