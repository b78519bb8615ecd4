//! redis-servers.

use std::time::Duration;

use async_trait::async_trait;

use super::super::super::nemesis::Nemesis;
use super::super::schedule::Strike;
use super::{ONE_BEHIND_A_PROXY, Server, strike_network};
use crate::servers::redis::protocol::frame_length;
use crate::{FaultProxy, RedisCluster, RedisPair, RedisServer};

/// Number of pauses while a slot moves.
const STEPS: u32 = 8;
/// Keys that move between two pauses. A stream of the ledger has about thirty.
const KEYS_AT_ONCE: usize = 4;

/// One server behind a proxy.
pub(super) struct One {
    server: RedisServer,
    proxy: FaultProxy,
}

impl One {
    pub(super) async fn start(seed: u64) -> Self {
        let server = RedisServer::start_with("appendfsync always").await;
        let proxy = FaultProxy::start(server.address(), frame_length, seed).await;
        Self { server, proxy }
    }
}

#[async_trait(?Send)]
impl Server for One {
    fn url(&self) -> String {
        format!("redis://{}", self.proxy.address())
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
            Nemesis::ServerFreeze => freeze(&self.server, strike.lasts).await,
            _ => strike_network(&self.proxy, strike).await,
        }
    }
}

#[async_trait(?Send)]
impl Server for RedisPair {
    /// The settings of the workers name both, because either may be the primary.
    fn url(&self) -> String {
        format!("redis://{},{}?wait_replicas=1", self.primary.address(), self.replica.address())
    }

    fn nemeses(&self) -> &'static [Nemesis] {
        &[Nemesis::LeaderKill, Nemesis::Promotion, Nemesis::ServerKill, Nemesis::ServerFreeze]
    }

    async fn strike(&mut self, strike: Strike, _stream: &str) {
        let is_primary = strike.number.is_multiple_of(2);
        match strike.nemesis {
            Nemesis::LeaderKill => {
                self.primary.kill();
                tokio::time::sleep(strike.lasts).await;
                self.promote().await;
                // Never a primary again, not even for a moment: its consumers would take events from it.
                self.replica.configure(&format!("replicaof 127.0.0.1 {}", self.primary.port()));
                self.replica.start_again().await;
            }
            Nemesis::Promotion => {
                self.detach().await;
                tokio::time::sleep(strike.lasts).await;
                self.promote().await;
                self.follow().await;
            }
            Nemesis::ServerFreeze => {
                let server = if is_primary { &self.primary } else { &self.replica };
                freeze(server, strike.lasts).await;
            }
            _ => {
                let server = if is_primary { &mut self.primary } else { &mut self.replica };
                server.kill();
                tokio::time::sleep(strike.lasts).await;
                server.start_again().await;
            }
        }
        // Two servers survive the loss of one. The next one may be struck when this one has caught up.
        self.in_sync().await;
    }

    /// Settlements do not wait for the replica: "Failover" in the documentation of the provider. The time is that in
    /// which the replica receives a write, on a machine that has much to do.
    fn forgets_settlements(&self) -> Duration {
        Duration::from_secs(2)
    }

    /// "Failover" in the documentation of the provider.
    fn reuses_sequences(&self) -> bool {
        true
    }
}

#[async_trait(?Send)]
impl Server for RedisCluster {
    fn url(&self) -> String {
        RedisCluster::url(self)
    }

    fn nemeses(&self) -> &'static [Nemesis] {
        &[Nemesis::LeaderKill, Nemesis::ServerKill, Nemesis::ServerFreeze, Nemesis::SlotMove]
    }

    async fn strike(&mut self, strike: Strike, stream: &str) {
        let number = usize::try_from(strike.number).unwrap_or_default();
        let node = number % self.nodes();
        match strike.nemesis {
            Nemesis::SlotMove => {
                let slot = slot(self, stream).await;
                let owner = self.owner(slot).await;
                let target = (owner + 1 + number % (self.nodes() - 1)) % self.nodes();
                let migration = self.migrate(slot, target).await;
                while migration.move_keys(KEYS_AT_ONCE).await > 0 {
                    tokio::time::sleep(strike.lasts / STEPS).await;
                }
                migration.finish().await;
            }
            Nemesis::ServerFreeze => freeze(self.node(node), strike.lasts).await,
            nemesis => {
                let killed = if nemesis == Nemesis::LeaderKill {
                    let slot = slot(self, stream).await;
                    self.owner(slot).await
                } else {
                    node
                };
                self.kill(killed);
                tokio::time::sleep(strike.lasts).await;
                self.start_again(killed).await;
            }
        }
        self.settled().await;
    }
}

/// Returns the slot of a stream.
async fn slot(cluster: &RedisCluster, stream: &str) -> u16 {
    cluster.slot(&format!("a3s:{{{stream}}}:log")).await
}

async fn freeze(server: &RedisServer, lasts: Duration) {
    server.freeze().await;
    tokio::time::sleep(lasts).await;
    server.thaw();
}
