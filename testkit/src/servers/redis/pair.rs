//! A server and its replica.

use std::path::Path;

use super::super::process::until;
use super::{RedisServer, reference};

/// A primary and its replica on loopback. Dropping it kills the servers and removes their files.
///
/// ```no_run
/// # async fn run() {
/// use a3s_event_testkit::RedisPair;
///
/// let mut pair = RedisPair::start().await;
/// pair.detach().await;
/// // The primary stores something that the replica never receives.
/// pair.primary.kill();
/// pair.promote().await;
/// println!("now the primary is at {}", pair.primary.url());
/// # }
/// ```
#[derive(Debug)]
pub struct RedisPair {
    /// The server that takes writes.
    pub primary: RedisServer,
    /// Its replica.
    pub replica: RedisServer,
}

impl RedisPair {
    /// Starts two servers, and returns when the replica has copied the primary.
    ///
    /// # Panics
    ///
    /// Same as [`RedisServer::start`], and if the replica does not get ready.
    pub async fn start() -> Self {
        Self::start_binary(&reference(), "").await
    }

    /// Starts two servers of this binary, both with these lines in their configuration files.
    ///
    /// # Panics
    ///
    /// If the servers cannot be run or do not get ready.
    pub async fn start_binary(binary: &Path, config: &str) -> Self {
        let start = || RedisServer::start_binary(binary, config);
        let (primary, replica) = tokio::join!(start(), start());
        let pair = Self { primary, replica };
        pair.follow().await;
        pair
    }

    /// Waits until the replica has everything that the primary had when this was called, also when it is killed.
    ///
    /// # Panics
    ///
    /// If that takes longer than a minute.
    pub async fn in_sync(&self) {
        until("the replica is in sync", || async {
            // In this order: what the primary receives meanwhile can only be more.
            let (there, here) = (offset(&self.primary).await?, offset_of_replica(&self.replica).await?);
            (here >= there && !self.replica.is_rewriting().await).then_some(())
        })
        .await;
    }

    /// Detaches the replica: it receives nothing more, keeps what it has, and still refuses writes.
    ///
    /// # Panics
    ///
    /// If the replica refuses.
    pub async fn detach(&self) {
        // No server listens on port 1.
        self.replica.command(&["REPLICAOF", "127.0.0.1", "1"]).await;
    }

    /// Makes the replica the primary, also after a restart. The previous primary stays what it is, running or not.
    ///
    /// # Panics
    ///
    /// If the replica refuses.
    pub async fn promote(&mut self) {
        self.replica.command(&["REPLICAOF", "NO", "ONE"]).await;
        self.replica.command(&["CONFIG", "REWRITE"]).await;
        self.swap();
    }

    /// Makes the replica follow the primary, also after a restart. It loses what the primary does not have.
    ///
    /// # Panics
    ///
    /// If the replica does not copy the primary.
    pub async fn follow(&self) {
        let port = self.primary.port().to_string();
        self.replica.command(&["REPLICAOF", "127.0.0.1", &port]).await;
        self.replica.command(&["CONFIG", "REWRITE"]).await;
        self.in_sync().await;
    }

    /// Exchanges the names of the two.
    pub(super) fn swap(&mut self) {
        std::mem::swap(&mut self.primary, &mut self.replica);
    }
}

async fn offset(primary: &RedisServer) -> Option<i64> {
    match primary.request(&["ROLE"]).await.ok()?.list() {
        [role, offset, ..] if role.text() == Some("master") => offset.integer(),
        _ => None,
    }
}

/// Returns `None` while the replica is not connected.
async fn offset_of_replica(replica: &RedisServer) -> Option<i64> {
    match replica.request(&["ROLE"]).await.ok()?.list() {
        [_, _, _, state, offset] if state.text() == Some("connected") => offset.integer(),
        _ => None,
    }
}
