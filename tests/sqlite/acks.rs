//! Acks that nobody waits for: what bounds them, and what becomes of them when they cannot be stored.

use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use a3s_event::provider::sqlite::{SqliteConfig, SqliteProvider};
use a3s_event::{ErrorKind, EventBus, EventProvider, SubscribeOptions};
use rusqlite::Connection;

use crate::{DEADLINE, durable, publish};

/// Keeps everybody else from writing until it is dropped.
fn lock(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    connection
}

async fn open(config: SqliteConfig) -> SqliteProvider {
    SqliteProvider::connect(config).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ack_does_not_wait_until_too_many_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let provider = open(SqliteConfig::file(&path).busy_timeout(DEADLINE / 4).max_unconfirmed_acks(3)).await;
    let mut worker = provider.subscribe_durable("worker", crate::FILTER).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..4 {
        publish(&provider, "a").await;
        held.push(worker.next_delivery().await.unwrap().unwrap());
    }
    let foreign = lock(&path);
    let last = held.pop().unwrap();
    for delivery in held {
        delivery.ack().await.unwrap();
    }
    let mut waits = pin!(last.ack());
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut waits).await.is_err(), "it had no room");
    drop(foreign);
    waits.await.unwrap();
    worker.flush().await.unwrap();
    let consumers = provider.consumers().await.unwrap();
    assert_eq!((consumers[0].pending, consumers[0].lag), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ack_that_could_not_be_stored_is_told_by_flush_and_its_event_comes_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let provider = open(SqliteConfig::file(&path).busy_timeout(Duration::from_millis(50))).await;
    let mut worker = durable(&provider, "worker").await;
    publish(&provider, "a").await;
    let delivery = worker.next_delivery().await.unwrap().unwrap();
    let foreign = lock(&path);
    delivery.ack().await.unwrap();
    // Behind it in the queue: what is answered last was tried last.
    assert!(worker.flush().await.is_err());
    drop(foreign);
    let error = worker.flush().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Ack, "{error:?}");
    assert!(error.to_string().contains("1 acks were lost"), "{error}");
    worker.flush().await.unwrap();
    assert_eq!(provider.ack_failures().unwrap().lost(), 1);
    let again = tokio::time::timeout(DEADLINE, worker.next_delivery()).await.unwrap().unwrap().unwrap();
    assert_eq!((again.sequence(), again.num_delivered()), (1, 2));
    again.ack().await.unwrap();
    worker.close().await.unwrap();
    assert_eq!(provider.consumers().await.unwrap()[0].pending, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn flush_and_close_wait_for_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.db");
    let provider = open(SqliteConfig::file(&path)).await;
    let mut worker = provider.subscribe_durable("worker", crate::FILTER).await.unwrap();
    publish(&provider, "a").await;
    publish(&provider, "b").await;
    // What is synced is written first: the log grows by what tells the disk to take the acks.
    let log = || std::fs::metadata(folder.path().join("events.db-wal")).unwrap().len();
    for ends in ["flush", "close"] {
        worker.next_delivery().await.unwrap().unwrap().ack().await.unwrap();
        while provider.consumers().await.unwrap()[0].pending > 0 {
            tokio::task::yield_now().await;
        }
        let before = log();
        match ends {
            "flush" => worker.flush().await.unwrap(),
            _ => worker.close().await.unwrap(),
        }
        assert!(log() > before, "{ends}: {before} bytes, and not more");
        // Once is enough.
        let before = log();
        worker.flush().await.unwrap();
        assert_eq!(log(), before, "{ends}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ack_that_comes_too_late_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let bus = EventBus::new(open(SqliteConfig::file(folder.path().join("events.db"))).await);
    let options = SubscribeOptions { ack_wait_secs: Some(1), ..SubscribeOptions::default() };
    let provider = bus.provider();
    let mut worker =
        provider.subscribe_durable_with_options("worker", crate::FILTER, &options).await.unwrap();
    provider.publish(&crate::event("a")).await.unwrap();
    let late = worker.next_delivery().await.unwrap().unwrap();
    let again = tokio::time::timeout(DEADLINE, worker.next_delivery()).await.unwrap().unwrap().unwrap();
    late.ack().await.unwrap();
    worker.flush().await.unwrap();
    let text = bus.telemetry().snapshot().to_prometheus();
    assert!(text.contains("a3s_event_stale_acks_total{messaging_system=\"sqlite\"} 1\n"), "{text}");
    assert_eq!(provider.consumers().await.unwrap()[0].pending, 1, "the newer delivery is in force");
    again.ack_confirmed().await.unwrap();
    assert_eq!(provider.consumers().await.unwrap()[0].pending, 0);
}
