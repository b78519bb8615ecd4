//! A server whose memory is full.

use a3s_event::{ErrorKind, EventError};
use tracing_subscriber::layer::SubscriberExt;

use super::traced::{Log, traced};
use super::*;

/// Returns the error of a publish that the server refused before it did anything.
async fn refused(provider: &RedisProvider) -> EventError {
    let error = provider.publish(&numbered(0)).await.unwrap_err();
    let seen = (error.kind(), error.is_retryable(), error.may_be_stored());
    assert_eq!(seen, (ErrorKind::Storage, true, false), "{error}");
    error
}

async fn stored(provider: &RedisProvider) -> u64 {
    provider.info().await.unwrap().messages
}

#[tokio::test]
async fn full_memory_refuses_publishes_and_nothing_else() {
    on_each(async |version, binary| {
        let server = RedisServer::start_binary(&binary, "maxmemory-policy noeviction").await;
        let provider = connect(&server).await;
        publish_numbers(&provider, 1..=200).await;
        server.command(&["CONFIG", "SET", "maxmemory", "100kb"]).await;
        refused(&provider).await;
        assert!(!provider.health().await.unwrap(), "{version}");
        let mut member = provider.subscribe_durable("worker", FILTER).await.unwrap();
        let first = next(&mut *member).await;
        first.nak().await.unwrap();
        let again = next(&mut *member).await;
        assert_eq!((again.sequence(), again.num_delivered()), (1, 2));
        again.extend().await.unwrap();
        again.ack_confirmed().await.unwrap();
        for number in 2..=200 {
            let delivery = next(&mut *member).await;
            assert_eq!(delivery.sequence(), number);
            delivery.ack().await.unwrap();
        }
        member.flush().await.unwrap();
        assert_eq!(provider.history(None, 500).await.unwrap().len(), 200);
        assert_eq!(member.lag().await.unwrap(), 0);
        provider.unsubscribe("worker").await.unwrap();
        assert_eq!(provider.purge(Some("events.test.3")).await.unwrap(), 20);
        refused(&provider).await;
        server.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
        assert_eq!(provider.publish(&numbered(1)).await.unwrap(), 201, "{version}");
        assert_eq!(stored(&provider).await, 181);
    })
    .await;
}

#[tokio::test]
async fn a_policy_for_keys_with_a_time_to_live_evicts_nothing() {
    on_each(async |version, binary| {
        let server = RedisServer::start_binary(&binary, "maxmemory 8mb\nmaxmemory-policy volatile-ttl").await;
        let provider = connect(&server).await;
        let mut member = provider.subscribe_durable("worker", FILTER).await.unwrap();
        let text = "x".repeat(10_000);
        let mut acknowledged = 0;
        let refusal = loop {
            let event = Event::new("events.test.large", "test", "", "test", text.as_str().into());
            match provider.publish(&event).await {
                Ok(_) => acknowledged += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(refusal.kind(), ErrorKind::Storage, "{refusal}");
        assert_eq!(
            (stored(&provider).await, &*server.info("evicted_keys").await),
            (acknowledged, "0"),
            "{version}"
        );
        for sequence in 1..=acknowledged {
            let delivery = next(&mut *member).await;
            assert_eq!(delivery.sequence(), sequence);
            delivery.ack().await.unwrap();
        }
        member.close().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_server_that_may_evict_events_is_refused_or_warned_of() {
    let log = Log::default();
    let _guard = traced(tracing_subscriber::registry().with(log.clone()));
    let server = RedisServer::start_with("maxmemory 100mb\nmaxmemory-policy allkeys-lru").await;
    let refused = RedisProvider::connect(config(&server)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Config);
    for part in ["maxmemory-policy is allkeys-lru", "noeviction", "allow_eviction"] {
        assert!(refused.to_string().contains(part), "{refused}");
    }
    let warnings =
        || log.lines().iter().filter(|line| line.starts_with("WARN") && line.contains("allkeys-lru")).count();
    assert_eq!(warnings(), 0);
    let provider = RedisProvider::connect(config(&server).allow_eviction(true)).await.unwrap();
    assert_eq!(warnings(), 1, "{:?}", log.lines());
    provider.publish(&numbered(1)).await.unwrap();
}

#[tokio::test]
async fn missing_replicas_refuse_a_publish() {
    on_each(async |_, binary| {
        let server = RedisServer::start_binary(&binary, "").await;
        let provider = connect(&server).await;
        publish_numbers(&provider, 1..=2).await;
        server.command(&["CONFIG", "SET", "min-replicas-to-write", "1"]).await;
        refused(&provider).await;
        assert_eq!(provider.history(None, 5).await.unwrap().len(), 2);
        server.command(&["CONFIG", "SET", "min-replicas-to-write", "0"]).await;
        assert_eq!(provider.publish(&numbered(3)).await.unwrap(), 3);
    })
    .await;
}
