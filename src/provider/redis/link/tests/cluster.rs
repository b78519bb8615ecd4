//! A cluster of three servers, with slots assigned by hand.

use super::servers::in_step;
use super::*;

struct Cluster {
    servers: Vec<Server>,
    ids: Vec<String>,
}

impl Cluster {
    /// Starts three servers, each with a third of the slots.
    async fn start(version: &str) -> Self {
        let mut servers = Vec::new();
        for _ in 0..3 {
            servers.push(Server::start(version, "cluster-enabled yes\ncluster-node-timeout 2000").await);
        }
        let mut ids = Vec::new();
        for (server, (first, last)) in servers.iter().zip([(0, 5_460), (5_461, 10_922), (10_923, 16_383)]) {
            ids.push(server.text("CLUSTER MYID").await);
            server.command(&format!("CLUSTER ADDSLOTSRANGE {first} {last}")).await;
            server.command(&format!("CLUSTER MEET 127.0.0.1 {}", servers[0].port)).await;
        }
        let cluster = Self { servers, ids };
        for server in &cluster.servers {
            let is_complete = async || {
                let info = server.text("CLUSTER INFO").await;
                info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
            };
            eventually("the cluster is complete", is_complete).await;
        }
        cluster
    }

    /// Returns the numbers of the owner of the stream's slot and of the two others, and the slot.
    async fn places(&self) -> ([usize; 3], i64) {
        let Value::Int(slot) = self.servers[0].command(&format!("CLUSTER KEYSLOT {}", keys().meta())).await
        else {
            panic!("no slot")
        };
        let owner = usize::try_from(slot).unwrap().min(16_382) / 5_461;
        ([owner, (owner + 1) % 3, (owner + 2) % 3], slot)
    }

    async fn set_slot(&self, slot: i64, at: usize, what: &str, node: usize) {
        self.servers[at].command(&format!("CLUSTER SETSLOT {slot} {what} {}", self.ids[node])).await;
    }
}

#[tokio::test]
async fn the_owner_of_the_slot_is_found_and_followed() {
    for version in VERSIONS {
        let cluster = Cluster::start(version).await;
        let ([owner, target, other], slot) = cluster.places().await;
        let (link, owner_of_link) = connect(config(cluster.servers[other].node())).await.unwrap();
        assert!(link.server().is_cluster);
        assert_eq!(link.call("test", &count("a")).await.unwrap(), counted(1, "a"));
        assert_eq!(cluster.servers[owner].links().await, 1);

        // The slot moves: what is not at its owner any more is asked of the target, once.
        cluster.set_slot(slot, target, "IMPORTING", owner).await;
        cluster.set_slot(slot, owner, "MIGRATING", target).await;
        assert_eq!(link.call("test", &count("b")).await.unwrap(), counted(2, "b"));
        let port = cluster.servers[target].port;
        cluster.servers[owner].command(&format!("MIGRATE 127.0.0.1 {port} {} 0 5000", counter())).await;
        assert_eq!(link.call("test", &count("c")).await.unwrap(), counted(3, "c"));
        assert_eq!(link.call("test", &count("d")).await.unwrap(), counted(4, "d"));
        assert_eq!(owner_of_link.connections(), 1, "nothing is remembered");
        assert_eq!(cluster.servers[target].links().await, 0);

        // A part of the keys is there and a part here: refused until the rest has moved.
        let here = format!("{}here", keys().base());
        let both = Call::new(&COUNT).key(counter()).key(&*here).argument("e");
        let (limit, since) = (Duration::from_millis(300), Instant::now());
        cluster.servers[owner].command(&format!("CLUSTER SETSLOT {slot} STABLE")).await;
        cluster.servers[owner].command(&format!("SET {here} x")).await;
        cluster.set_slot(slot, owner, "MIGRATING", target).await;
        let error = link.ask(&both, limit).await.err().unwrap().to_error("publish");
        assert!(since.elapsed() < limit + GRACE);
        assert!(error.is_retryable() && !error.may_be_stored(), "{}", told(&error));

        cluster.servers[owner].command(&format!("DEL {here}")).await;
        for at in [target, owner, other] {
            cluster.set_slot(slot, at, "NODE", target).await;
        }
        assert_eq!(link.call("test", &count("f")).await.unwrap(), counted(5, "f"));
        assert_eq!(cluster.servers[target].links().await, 1);
        assert_eq!(owner_of_link.connections(), 2);
        // A message reaches all servers of a cluster.
        cluster.servers[other].command(&format!("PUBLISH {} hello", keys().channel())).await;
        eventually("the message", async || owner_of_link.received.load(Ordering::SeqCst) == 1).await;
    }
}

#[tokio::test]
async fn a_database_other_than_0_is_refused() {
    let cluster = Cluster::start(REFERENCE).await;
    let mut config = config(cluster.servers[0].node());
    config.database = 1;
    let error = refused(config).await;
    assert!(error.kind() == ErrorKind::Config && error.to_string().contains("db 1"), "{error}");
}

#[tokio::test]
async fn a_replica_that_replaces_the_owner_is_found_without_a_seed() {
    for version in VERSIONS {
        let mut cluster = Cluster::start(version).await;
        let ([owner, _, other], _) = cluster.places().await;
        let replica = Server::start(version, "cluster-enabled yes\ncluster-node-timeout 2000").await;
        replica.command(&format!("CLUSTER MEET 127.0.0.1 {}", cluster.servers[other].port)).await;
        let id = cluster.ids[owner].clone();
        let follow = cmd("CLUSTER").arg("REPLICATE").arg(&id).take();
        eventually("it is a replica", async || replica.try_command(&follow).await == Value::Okay).await;
        let is_online =
            async || cluster.servers[owner].text("INFO replication").await.contains("state=online");
        eventually("the replica is online", is_online).await;
        // All know it before the only seed vanishes.
        for server in &cluster.servers {
            let knows = async || server.text("CLUSTER NODES").await.matches("slave").count() == 1;
            eventually("the replica is known", knows).await;
        }
        let (link, _) = connect(config(cluster.servers[owner].node())).await.unwrap();
        assert_eq!(link.call("test", &count("a")).await.unwrap(), counted(1, "a"));
        in_step(&cluster.servers[owner], &replica).await;
        cluster.servers[owner].kill();
        eventually("the end", async || !link.is_connected()).await;
        let call = count("b");
        let answer = link.ask(&call, Duration::from_secs(25)).await;
        assert_eq!(answer.map_err(|failure| failure.summary()).unwrap().value, counted(2, "b"));
        assert_eq!(replica.links().await, 1);
    }
}
