//! Servers that the driver starts and strikes.

use std::time::Duration;

use async_trait::async_trait;
use clap::ValueEnum;

use super::super::nemesis::Nemesis;
use super::schedule::Strike;
#[cfg(feature = "nats")]
use crate::servers::nats::protocol::frame_length;
#[cfg(feature = "nats")]
use crate::{FaultProxy, NatsCluster, NatsServer, servers::fault_proxy::Direction};

/// A server that the driver can start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ServerKind {
    /// One nats-server behind a proxy
    #[cfg(feature = "nats")]
    Nats,
    /// Three nats-servers that replicate the stream
    #[cfg(feature = "nats")]
    NatsCluster,
}

impl ServerKind {
    pub(super) async fn start(self, seed: u64) -> Box<dyn Server> {
        let _ = seed;
        match self {
            #[cfg(feature = "nats")]
            Self::Nats => {
                let server = NatsServer::start().await;
                let proxy = FaultProxy::start(server.address(), frame_length, seed).await;
                Box::new(OneNats { server, proxy })
            }
            #[cfg(feature = "nats")]
            Self::NatsCluster => Box::new(NatsCluster::start().await),
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
}

#[cfg(feature = "nats")]
struct OneNats {
    server: NatsServer,
    proxy: FaultProxy,
}

#[cfg(feature = "nats")]
#[async_trait(?Send)]
impl Server for OneNats {
    fn url(&self) -> String {
        format!("nats://{}", self.proxy.address())
    }

    fn nemeses(&self) -> &'static [Nemesis] {
        &[Nemesis::ServerKill, Nemesis::ServerFreeze, Nemesis::NetworkHold, Nemesis::NetworkReset]
    }

    async fn strike(&mut self, strike: Strike, _stream: &str) {
        match strike.nemesis {
            Nemesis::ServerKill => {
                self.server.kill();
                tokio::time::sleep(strike.lasts).await;
                self.server.start_again().await;
            }
            Nemesis::ServerFreeze => {
                self.server.freeze().await;
                tokio::time::sleep(strike.lasts).await;
                self.server.thaw();
            }
            Nemesis::NetworkHold => {
                self.proxy.hold(Direction::ToServer);
                // Every other time the server is still heard, so that it answers what was sent before.
                if strike.number.is_multiple_of(2) {
                    self.proxy.hold(Direction::ToClient);
                }
                tokio::time::sleep(strike.lasts).await;
                self.proxy.release();
            }
            _ => self.proxy.reset(),
        }
    }

    /// The server writes the positions of consumers with a delay: "Killed server" in the documentation of the provider.
    fn forgets_settlements(&self) -> Duration {
        Duration::from_secs(2)
    }
}

#[cfg(feature = "nats")]
#[async_trait(?Send)]
impl Server for NatsCluster {
    fn url(&self) -> String {
        // The scheme is written once.
        format!("{}?replicas=3", NatsCluster::url(self).replace(",nats://", ","))
    }

    fn nemeses(&self) -> &'static [Nemesis] {
        &[Nemesis::LeaderKill, Nemesis::ServerKill, Nemesis::ServerFreeze]
    }

    async fn strike(&mut self, strike: Strike, stream: &str) {
        let nodes = self.nodes();
        let node = usize::try_from(strike.number).unwrap_or_default() % nodes;
        match strike.nemesis {
            Nemesis::ServerFreeze => {
                self.freeze(node).await;
                tokio::time::sleep(strike.lasts).await;
                self.thaw(node);
            }
            nemesis => {
                let killed = if nemesis == Nemesis::LeaderKill {
                    self.kill_leader(stream).await
                } else {
                    self.kill(node);
                    node
                };
                tokio::time::sleep(strike.lasts).await;
                self.start_again(killed).await;
            }
        }
        // Three replicas survive the loss of one. The next one may be struck when this one has caught up.
        self.in_sync(stream).await;
    }
}
