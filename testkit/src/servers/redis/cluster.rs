//! Three servers that share the slots of a cluster.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use tokio::sync::Mutex;

use super::super::process::{free_port, until};
use super::{RedisServer, USER, reference};

const NODES: usize = 3;
const SLOTS: usize = 16_384;

/// A running cluster on loopback. Dropping it kills the servers and removes their files.
///
/// ```no_run
/// # async fn run() {
/// use a3s_event_testkit::RedisCluster;
///
/// let cluster = RedisCluster::start().await;
/// println!("connect to {}", cluster.url());
/// let slot = cluster.slot("a3s:{events}:log").await;
/// let owner = cluster.owner(slot).await;
/// let migration = cluster.migrate(slot, (owner + 1) % cluster.nodes()).await;
/// // The slot now has two owners.
/// migration.move_keys(1).await;
/// // Some keys have moved, others have not.
/// migration.finish().await;
/// # }
/// ```
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<RedisServer>,
    /// Lines of the test in the configuration of each.
    config: String,
}

impl RedisCluster {
    /// Starts three primaries, and returns when all of them serve.
    ///
    /// # Panics
    ///
    /// Same as [`RedisServer::start`], and if the servers do not agree.
    pub async fn start() -> Self {
        Self::start_binary(&reference(), "").await
    }

    /// Starts three primaries of this binary, each with these lines in its configuration file.
    ///
    /// A node is taken for failed after two seconds without answers, unless a line sets `cluster-node-timeout`.
    ///
    /// # Panics
    ///
    /// If the servers cannot be run or do not agree.
    pub async fn start_binary(binary: &Path, config: &str) -> Self {
        let node = || start_node(binary, config);
        let (first, second, third) = tokio::join!(node(), node(), node());
        let cluster = Self { nodes: vec![first, second, third], config: config.to_owned() };
        for (index, node) in cluster.nodes.iter().enumerate() {
            // Slots that are known before the nodes meet travel with their first messages.
            node.command(&["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()]).await;
            let (first, last) = (SLOTS * index / NODES, SLOTS * (index + 1) / NODES - 1);
            node.command(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]).await;
        }
        for (index, node) in cluster.nodes.iter().enumerate() {
            for other in &cluster.nodes[..index] {
                meet(node, other).await;
            }
        }
        cluster.settled().await;
        cluster
    }

    /// Returns a cluster of this binary that tests share, while one of them holds it. It starts if none does.
    ///
    /// # Panics
    ///
    /// Same as [`start_binary`](RedisCluster::start_binary).
    pub async fn shared(binary: &Path) -> Arc<Self> {
        static SHARED: Mutex<Option<HashMap<PathBuf, Weak<RedisCluster>>>> = Mutex::const_new(None);
        let mut shared = SHARED.lock().await;
        let shared = shared.get_or_insert_default();
        if let Some(cluster) = shared.get(binary).and_then(Weak::upgrade) {
            return cluster;
        }
        let cluster = Arc::new(Self::start_binary(binary, "").await);
        shared.insert(binary.to_owned(), Arc::downgrade(&cluster));
        cluster
    }

    /// Starts another server as the replica of a node, and returns its index.
    ///
    /// # Panics
    ///
    /// If there is no such node, or the replica does not get ready.
    pub async fn add_replica(&mut self, of: usize) -> usize {
        let binary = self.nodes[of].program.binary.clone();
        let replica = start_node(&binary, &self.config).await;
        meet(&replica, &self.nodes[of]).await;
        let primary = id(&self.nodes[of]).await;
        // The replica learns of its primary a little after they have met.
        until("the replica knows its primary", || async {
            let replicated = replica.request(&["CLUSTER", "REPLICATE", &primary]).await.ok()?;
            (replicated.text() == Some("OK")).then_some(())
        })
        .await;
        until("the replica has copied its primary", || async {
            let role = replica.request(&["ROLE"]).await.ok()?;
            (role.list().get(3)?.text() == Some("connected")).then_some(())
        })
        .await;
        self.nodes.push(replica);
        self.settled().await;
        self.nodes.len() - 1
    }

    /// Returns the URL that names all servers.
    pub fn url(&self) -> String {
        let addresses: Vec<_> = self.nodes.iter().map(|node| node.address().to_string()).collect();
        format!("redis://{}", addresses.join(","))
    }

    /// Returns the number of servers.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Returns a server.
    ///
    /// # Panics
    ///
    /// If there is no such server.
    pub fn node(&self, index: usize) -> &RedisServer {
        &self.nodes[index]
    }

    /// Returns the slot of a key.
    ///
    /// # Panics
    ///
    /// If no server answers.
    pub async fn slot(&self, key: &str) -> u16 {
        until("a server knows the slot of a key", || async {
            for node in &self.nodes {
                if let Ok(slot) = node.request(&["CLUSTER", "KEYSLOT", key]).await {
                    return slot.integer()?.try_into().ok();
                }
            }
            None
        })
        .await
    }

    /// Returns the index of the server that owns a slot.
    ///
    /// # Panics
    ///
    /// If the running servers do not agree about one within a minute.
    pub async fn owner(&self, slot: u16) -> usize {
        until("the slot has an owner", || async {
            let slots = self.agreed().await?;
            let range = slots.iter().find(|(first, last, _)| (*first..=*last).contains(&slot))?;
            self.nodes.iter().position(|node| node.port() == range.2)
        })
        .await
    }

    /// Kills a server as a crash would (SIGKILL).
    ///
    /// # Panics
    ///
    /// If there is no such server.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].kill();
    }

    /// Starts a killed server again, with the store that it had, and waits until the cluster serves.
    ///
    /// # Panics
    ///
    /// If there is no such server, or the cluster does not serve within a minute.
    pub async fn start_again(&mut self, node: usize) {
        self.nodes[node].start_again().await;
        self.settled().await;
    }

    /// Waits until all running servers serve and agree about the owners of the slots.
    ///
    /// # Panics
    ///
    /// If that takes longer than a minute.
    pub async fn settled(&self) {
        until("the cluster serves", || async {
            for node in &self.nodes {
                let Ok(info) = node.request(&["CLUSTER", "INFO"]).await else { continue };
                let is = |name: &str, value: &str| {
                    let fields = info.text().into_iter().flat_map(str::lines);
                    fields.filter_map(|line| line.split_once(':')).any(|field| field == (name, value))
                };
                let known = self.nodes.len().to_string();
                let serves = is("cluster_state", "ok")
                    && is("cluster_known_nodes", &known)
                    && is("cluster_slots_ok", &SLOTS.to_string());
                if !serves {
                    return None;
                }
            }
            self.agreed().await.map(drop)
        })
        .await;
    }

    /// Begins to move a slot to a server: from now on it has two owners, and keys are on either.
    ///
    /// # Panics
    ///
    /// If there is no such server, or if it has the slot already.
    pub async fn migrate(&self, slot: u16, to: usize) -> SlotMigration<'_> {
        let from = self.owner(slot).await;
        let migration = SlotMigration {
            from: &self.nodes[from],
            to: &self.nodes[to],
            cluster: self,
            slot: slot.to_string(),
        };
        migration.set(migration.to, &["IMPORTING", &id(migration.from).await]).await;
        migration.set(migration.from, &["MIGRATING", &id(migration.to).await]).await;
        migration
    }

    /// Moves a slot with all its keys to a server.
    ///
    /// # Panics
    ///
    /// Same as [`migrate`](RedisCluster::migrate), and if a server refuses.
    pub async fn migrate_slot(&self, slot: u16, to: usize) {
        let migration = self.migrate(slot, to).await;
        while migration.move_keys(100).await > 0 {}
        migration.finish().await;
    }

    /// Returns the first slot, the last slot and the port of the owner of each range, if all running servers agree.
    async fn agreed(&self) -> Option<Vec<(u16, u16, u16)>> {
        let mut agreed = None;
        for node in &self.nodes {
            let Ok(slots) = node.request(&["CLUSTER", "SLOTS"]).await else { continue };
            let mut found = Vec::new();
            for range in slots.list() {
                let [first, last, owner, ..] = range.list() else { return None };
                let number = |part: &super::Reply| u16::try_from(part.integer()?).ok();
                found.push((number(first)?, number(last)?, number(owner.list().get(1)?)?));
            }
            found.sort_unstable();
            if agreed.get_or_insert_with(|| found.clone()) != &found {
                return None;
            }
        }
        agreed
    }
}

/// A slot on its way from one server to another. Dropped before the [end](SlotMigration::finish), it stays in the middle.
#[derive(Debug)]
pub struct SlotMigration<'a> {
    cluster: &'a RedisCluster,
    slot: String,
    from: &'a RedisServer,
    to: &'a RedisServer,
}

impl SlotMigration<'_> {
    /// Moves up to this many keys, and returns how many it moved.
    ///
    /// # Panics
    ///
    /// If a server refuses.
    pub async fn move_keys(&self, count: usize) -> usize {
        let keys = self.from.command(&["CLUSTER", "GETKEYSINSLOT", &self.slot, &count.to_string()]).await;
        let keys: Vec<_> = keys.list().iter().filter_map(super::Reply::text).collect();
        if !keys.is_empty() {
            self.move_these(&keys).await;
        }
        keys.len()
    }

    /// Moves these keys.
    ///
    /// # Panics
    ///
    /// If a server refuses.
    pub async fn move_these(&self, keys: &[&str]) {
        let port = self.to.port().to_string();
        let mut command = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "AUTH2", USER, USER, "KEYS"];
        command.extend(keys);
        self.from.command(&command).await;
    }

    /// Gives the slot to its new owner, and waits until all servers know. All keys must have moved.
    ///
    /// # Panics
    ///
    /// If a server refuses, for example because keys are left.
    pub async fn finish(self) {
        let owner = id(self.to).await;
        self.set(self.to, &["NODE", &owner]).await;
        self.set(self.from, &["NODE", &owner]).await;
        let slot = self.slot.parse().expect("it was a number before");
        until("all servers know the new owner", || async {
            let slots = self.cluster.agreed().await?;
            let is_owner =
                |range: &&(u16, u16, u16)| (range.0..=range.1).contains(&slot) && range.2 == self.to.port();
            slots.iter().find(is_owner).map(drop)
        })
        .await;
    }

    async fn set(&self, node: &RedisServer, state: &[&str]) {
        let mut command = vec!["CLUSTER", "SETSLOT", &self.slot];
        command.extend(state);
        node.command(&command).await;
    }
}

async fn start_node(binary: &Path, config: &str) -> RedisServer {
    let config = format!(
        "cluster-enabled yes\ncluster-port {}\ncluster-node-timeout 2000\n{config}",
        // The default, the port and 10,000, can be an ephemeral one.
        free_port()
    );
    RedisServer::start_binary(binary, &config).await
}

/// Introduces two nodes to each other.
async fn meet(node: &RedisServer, other: &RedisServer) {
    let bus = other.command(&["CONFIG", "GET", "cluster-port"]).await;
    let bus = bus.list().get(1).and_then(super::Reply::text).expect("a node has a port for other nodes");
    node.command(&["CLUSTER", "MEET", "127.0.0.1", &other.port().to_string(), bus]).await;
}

async fn id(node: &RedisServer) -> String {
    let id = node.command(&["CLUSTER", "MYID"]).await;
    id.text().expect("a node has an id").to_owned()
}
