//! The launcher of three real servers.

use std::time::Duration;

use a3s_event_testkit::NatsCluster;
use a3s_event_testkit::servers::nats::protocol::request;
use serde_json::{Value, json};

#[tokio::test]
async fn a_cluster_survives_its_leader_and_takes_it_back() {
    let mut cluster = NatsCluster::start().await;
    let urls = cluster.url();
    assert_eq!(urls.split(',').count(), 3, "{urls}");
    let first = urls.split(',').next().and_then(|url| url.strip_prefix("nats://")).unwrap().parse().unwrap();
    let stream = json!({ "name": "S", "subjects": ["s"], "num_replicas": 3 });
    let made = request(first, "$JS.API.STREAM.CREATE.S", &stream).await.unwrap();
    assert_eq!(made["config"]["num_replicas"], 3, "{made}");
    // The other servers learn a little later that the stream takes the subject.
    let storing = async {
        loop {
            if let Ok(stored) = request(first, "s", &Value::Null).await {
                return stored;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let stored = tokio::time::timeout(Duration::from_secs(20), storing).await.unwrap();
    assert_eq!(stored["seq"], 1, "{stored}");
    let killed = cluster.kill_leader("S").await;
    assert_ne!(cluster.leader("S").await, killed);
    cluster.start_again(killed).await;
    cluster.in_sync("S").await;
    let info = request(first, "$JS.API.STREAM.INFO.S", &Value::Null).await.unwrap();
    assert_eq!(info["state"]["messages"], 1, "{info}");
}
