//! What deliveries cost the server. Part of `scripts/test --slow scale`, because it measures.

use std::time::Instant;

use super::*;

const EVENTS: u64 = 20_000;

/// Takes all events one by one, and prints what each cost.
async fn measure(server: &RedisServer, name: &str, take: impl AsyncFn(&mut Box<dyn Subscription>)) {
    let provider = connect(server).await;
    let mut subscription = provider.subscribe_durable(name, FILTER).await.unwrap();
    server.command(&["CONFIG", "RESETSTAT"]).await;
    let (used, began) = (server.used_cpu().await, Instant::now());
    for _ in 0..EVENTS {
        take(&mut subscription).await;
    }
    subscription.close().await.unwrap();
    let took = began.elapsed();
    let used = server.used_cpu().await - used;
    let stats = server.info("cmdstat_evalsha").await;
    let calls = stats.split(',').find_map(|field| field.strip_prefix("calls=")).unwrap();
    let events = f64::from(u32::try_from(EVENTS).unwrap());
    println!(
        "{name:14} {:6.1} us of the server's CPU and {:5.3} calls an event, {:7.0} events/s",
        used.as_secs_f64() * 1e6 / events,
        calls.parse::<f64>().unwrap() / events,
        events / took.as_secs_f64()
    );
}

#[tokio::test]
#[ignore = "slow: scripts/test --slow scale"]
async fn single_deliveries() {
    for (version, binary) in versions() {
        println!("{version}");
        let server = RedisServer::start_binary(&binary, "appendonly no").await;
        let provider = connect(&server).await;
        publish_numbers(&provider, 1..=EVENTS).await;
        measure(&server, "next", async |subscription| {
            subscription.next().await.unwrap().unwrap();
        })
        .await;
        measure(&server, "next_delivery", async |subscription| {
            next(&mut **subscription).await.ack().await.unwrap();
        })
        .await;
    }
}
