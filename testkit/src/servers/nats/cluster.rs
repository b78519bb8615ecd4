//! Three nats-servers that replicate streams: when a leader is killed, the others continue.

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::{Value, json};

use super::super::process::until;
use super::protocol::request;
use super::{NatsServer, free_port};

const NODES: usize = 3;
/// Stream whose creation shows that the cluster works.
const PROBE: &str = "TESTKIT_READY";

/// A running cluster of three servers on loopback. Dropping it kills the servers and removes their files.
///
/// ```no_run
/// # async fn run() {
/// use a3s_event_testkit::NatsCluster;
///
/// let mut cluster = NatsCluster::start().await;
/// println!("connect to {}", cluster.url());
/// // A provider with `replicas(3)` makes the stream ORDERS and publishes; meanwhile:
/// let killed = cluster.kill_leader("ORDERS").await;
/// cluster.start_again(killed).await;
/// # }
/// ```
#[derive(Debug)]
pub struct NatsCluster {
    nodes: Vec<NatsServer>,
    running: [bool; NODES],
}

impl NatsCluster {
    /// Starts three servers, and returns when they have a leader and store a stream with three replicas.
    ///
    /// # Panics
    ///
    /// Same as [`NatsServer::start`], and if the servers do not get ready.
    pub async fn start() -> Self {
        let routes = free_addresses();
        let mut nodes = Vec::new();
        for (index, address) in routes.iter().enumerate() {
            nodes.push(NatsServer::start_with(&node_config(index, *address, &routes)).await);
        }
        let cluster = Self { nodes, running: [true; NODES] };
        cluster.ready().await;
        cluster
    }

    /// Returns the URL that names all three servers.
    pub fn url(&self) -> String {
        self.nodes.iter().map(NatsServer::url).collect::<Vec<_>>().join(",")
    }

    /// Returns the number of servers.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Kills a server as a crash would (SIGKILL).
    ///
    /// # Panics
    ///
    /// If there is no such server.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].kill();
        self.running[node] = false;
    }

    /// Suspends a server (SIGSTOP): connections stay open and nothing answers.
    ///
    /// # Panics
    ///
    /// If there is no such server, or the signal has no effect.
    pub async fn freeze(&self, node: usize) {
        self.nodes[node].freeze().await;
    }

    /// Resumes a suspended server (SIGCONT).
    ///
    /// # Panics
    ///
    /// If there is no such server, or the signal cannot be sent.
    pub fn thaw(&self, node: usize) {
        self.nodes[node].thaw();
    }

    /// Kills the leader of a stream as a crash would (SIGKILL) and returns its index.
    ///
    /// # Panics
    ///
    /// If there is no such stream, or no leader within a minute.
    pub async fn kill_leader(&mut self, stream: &str) -> usize {
        let leader = self.leader(stream).await;
        self.kill(leader);
        leader
    }

    /// Starts a killed server again, with the store that it had.
    ///
    /// # Panics
    ///
    /// If it does not get ready.
    pub async fn start_again(&mut self, node: usize) {
        self.nodes[node].start_again().await;
        self.running[node] = true;
    }

    /// Returns the index of the server that leads a stream.
    ///
    /// # Panics
    ///
    /// If there is no such stream, or no leader within a minute.
    pub async fn leader(&self, stream: &str) -> usize {
        let subject = format!("$JS.API.STREAM.INFO.{stream}");
        until(&format!("stream {stream} has a leader"), || async {
            let info = self.ask(&subject, &Value::Null).await?;
            let name = info["cluster"]["leader"].as_str()?;
            (0..NODES).find(|node| node_name(*node) == name && self.running[*node])
        })
        .await
    }

    /// Waits until every server has everything that the leader of the stream has.
    ///
    /// # Panics
    ///
    /// If that takes longer than a minute.
    pub async fn in_sync(&self, stream: &str) {
        let subject = format!("$JS.API.STREAM.INFO.{stream}");
        until(&format!("stream {stream} is in sync"), || async {
            let info = self.ask(&subject, &Value::Null).await?;
            let replicas = info["cluster"]["replicas"].as_array()?;
            let current = replicas.iter().filter(|replica| replica["current"] == true).count();
            (info["cluster"]["leader"].is_string() && current == NODES - 1).then_some(())
        })
        .await;
    }

    async fn ready(&self) {
        let config = json!({ "name": PROBE, "subjects": ["testkit.ready"], "num_replicas": NODES });
        until("the cluster can create a stream", || async {
            let made = self.ask(&format!("$JS.API.STREAM.CREATE.{PROBE}"), &config).await?;
            made.get("config").map(drop)
        })
        .await;
        until("the stream can be deleted", || async {
            let deleted = self.ask(&format!("$JS.API.STREAM.DELETE.{PROBE}"), &Value::Null).await?;
            (deleted["success"] == true || deleted["error"]["code"] == 404).then_some(())
        })
        .await;
    }

    /// Returns the answer of the first running server that gives one.
    async fn ask(&self, subject: &str, body: &Value) -> Option<Value> {
        for (node, _) in self.nodes.iter().zip(self.running).filter(|(_, running)| *running) {
            if let Ok(answer) = request(node.address(), subject, body).await {
                return Some(answer);
            }
        }
        None
    }
}

fn node_name(index: usize) -> String {
    format!("node{index}")
}

fn node_config(index: usize, address: SocketAddr, routes: &[SocketAddr]) -> String {
    let routes: Vec<_> = routes.iter().map(|route| format!("\"nats-route://{route}\"")).collect();
    format!(
        "server_name: {}\ncluster {{ name: testkit, listen: \"{address}\", routes: [{}] }}\n",
        node_name(index),
        routes.join(", ")
    )
}

/// Returns free addresses. The servers must know each other's address before any of them runs.
fn free_addresses() -> Vec<SocketAddr> {
    (0..NODES).map(|_| (Ipv4Addr::LOCALHOST, free_port()).into()).collect()
}
