//! Subscriptions that wait.

use super::*;

#[tokio::test]
async fn a_lost_lease_is_taken_over_on_another_connection_without_traffic() {
    on_each(async |version, binary| {
        let server = RedisServer::start_binary(&binary, "").await;
        let [holding, waiting] = [connect(&server).await, connect(&server).await];
        let open = async |provider: &RedisProvider| {
            provider.subscribe_durable_with_options("worker", FILTER, &short_leases()).await.unwrap()
        };
        let (mut holder, mut waiter) = (open(&holding).await, open(&waiting).await);
        publish_numbers(&holding, 1..=1).await;
        let held = next(&mut *holder).await;
        let leased = tokio::time::Instant::now();
        let taken_over = next(&mut *waiter).await;
        assert_eq!((taken_over.sequence(), taken_over.num_delivered()), (1, 2), "{version}");
        // It is not taken early: the lease is one of the server, and began before the event arrived.
        assert!(leased.elapsed() > Duration::from_millis(500), "{version}");
        assert!(held.ack_confirmed().await.is_err(), "{version}");
        taken_over.ack_confirmed().await.unwrap();
    })
    .await;
}

/// The number of calls of scripts so far.
async fn calls(server: &RedisServer) -> f64 {
    let stats = server.info("cmdstat_evalsha").await;
    stats.split(',').find_map(|field| field.strip_prefix("calls=")).unwrap().parse().unwrap()
}

#[tokio::test]
#[ignore = "slow: scripts/test --slow scale"]
async fn a_thousand_idle_subscriptions_ask_seldom() {
    const SUBSCRIPTIONS: u32 = 1_000;
    const WATCHED: Duration = Duration::from_secs(60);
    let server = RedisServer::start().await;
    let provider = connect(&server).await;
    let mut waiting = tokio::task::JoinSet::new();
    for number in 0..SUBSCRIPTIONS {
        let mut member = provider.subscribe_durable(&format!("worker-{number}"), FILTER).await.unwrap();
        waiting.spawn(async move { member.next_delivery().await.unwrap().unwrap().sequence() });
    }
    // Each has looked once and waits.
    eventually("all wait", async || {
        let before = calls(&server).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        calls(&server).await - before < 100.0
    })
    .await;
    let (before, used) = (calls(&server).await, server.used_cpu().await);
    tokio::time::sleep(WATCHED).await;
    let calls = (calls(&server).await - before) / WATCHED.as_secs_f64();
    let used = (server.used_cpu().await - used).as_secs_f64() / WATCHED.as_secs_f64();
    println!("{calls:.1} calls a second, {:.2} % of a core", 100.0 * used);
    assert!(calls <= 50.0, "{calls} calls a second");
    provider.publish(&numbered(1)).await.unwrap();
    while let Some(sequence) = waiting.join_next().await {
        assert_eq!(sequence.unwrap(), 1);
    }
}
