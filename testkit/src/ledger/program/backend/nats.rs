//! nats-servers.

use std::time::Duration;

use async_trait::async_trait;

use super::super::super::nemesis::Nemesis;
use super::super::schedule::Strike;
use super::{ONE_BEHIND_A_PROXY, Server, strike_network};
use crate::servers::nats::protocol::frame_length;
use crate::{FaultProxy, NatsCluster, NatsServer};

/// One server behind a proxy.
pub(super) struct One {
    server: NatsServer,
    proxy: FaultProxy,
}

impl One {
    pub(super) async fn start(seed: u64) -> Self {
        let server = NatsServer::start().await;
        let proxy = FaultProxy::start(server.address(), frame_length, seed).await;
        Self { server, proxy }
    }
}

#[async_trait(?Send)]
impl Server for One {
    fn url(&self) -> String {
        format!("nats://{}", self.proxy.address())
    }

    fn nemeses(&self) -> &'static [Nemesis] {
        &ONE_BEHIND_A_PROXY
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
            _ => strike_network(&self.proxy, strike).await,
        }
    }

    /// The server writes the positions of consumers with a delay: "Killed server" in the documentation of the provider.
    fn forgets_settlements(&self) -> Duration {
        Duration::from_secs(2)
    }
}

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
